"""The timing of a path: inside the limits at every point, never faster than asked, at rest at the end."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_core.motion.config import ExecutorConfig
from vla_core.motion.limits import Limits
from vla_core.motion.path import ChunkPath
from vla_core.motion.retime import retime
from vla_core.profile import RobotProfile

VELOCITY, ACCELERATION = np.array([2.0, 1.5, 1.0]), np.array([5.0, 4.0, 3.0])


def timed(s, first, second, rate):
    with np.errstate(divide='ignore'):
        caps = np.minimum(1.0, (VELOCITY / np.abs(first)).min(axis=1))
    return retime(s, first, (second[:-1], second[1:]), rate, caps, ACCELERATION)


def curve(seed, roughness, n=300):
    steps = np.cumsum(np.random.default_rng(seed).normal(size=(8, 3)), axis=0) * roughness
    path = ChunkPath(steps, 0.05)
    s = np.linspace(0.0, path.end, n)
    return path, s, *path.sample(s)[1:]


@settings(max_examples=100)
@given(st.integers(0, 10**6), st.floats(1e-4, 0.1))
def test_velocity_and_acceleration_stay_inside_the_limits(seed, roughness):
    _, s, first, second = curve(seed, roughness)
    timing = timed(s, first, second, 0.0)
    assert timing is not None  # from rest any path can be followed
    assert timing.rates[-1] == 0.0
    assert (timing.rates <= 1 + 1e-9).all()
    assert (np.diff(timing.times) > 0).all()
    assert (np.abs(first) * timing.rates[:, None] <= VELOCITY * (1 + 1e-6)).all()
    push = np.diff(timing.rates**2) / (2 * np.diff(s))
    for i in (0, 1):  # u holds from point k to k + 1
        k = slice(i, len(s) - 1 + i)
        acceleration = first[k] * push[:, None] + second[k] * timing.rates[k, None] ** 2
        assert (np.abs(acceleration) <= ACCELERATION * 1.01 + 1e-6).all()


@settings(max_examples=30)
@given(st.integers(0, 10**6))
def test_samples_in_time_are_the_derivatives_of_one_another(seed):
    _, s, first, second = curve(seed, 0.03)
    timing = timed(s, first, second, 0.0)
    h = timing.times[-1] / 2000
    at, rates, push = timing.at(np.arange(0, timing.times[-1], h))
    np.testing.assert_allclose(np.diff(at) / h, (rates[1:] + rates[:-1]) / 2, atol=0.05)
    np.testing.assert_allclose(np.diff(rates)[push[1:] == push[:-1]] / h, push[1:][push[1:] == push[:-1]], atol=1e-6)
    assert [float(x[0]) for x in timing.at(timing.times[-1:] + 1)] == [s[-1], 0.0, 0.0]


def test_an_easy_path_is_run_at_full_rate_and_brakes_only_at_the_end():
    path, s, first, second = curve(3, 0.0003)
    timing = timed(s, first, second, 1.0)
    assert timing.rates[0] == 1.0
    np.testing.assert_allclose(timing.rates[: len(s) * 9 // 10], 1.0)
    assert timing.braking_from > 0.9 * path.end


def test_too_fast_to_stop_is_no_timing():
    s = np.linspace(0, 0.1, 50)
    first = np.tile([1.9, 0.0, 0.0], (50, 1))  # 1.9 rad/s, and 0.19 rad to stop in: 0.36 are needed
    assert timed(s, first, np.zeros((50, 3)), 1.0) is None
    assert timed(s, first, np.zeros((50, 3)), 0.5) is not None


@pytest.mark.parametrize('n', [2, 3])
def test_shortest_grids(n):
    s = np.linspace(0, 0.01, n)
    timing = timed(s, np.ones((n, 3)), np.zeros((n, 3)), 0.0)
    assert timing is not None
    assert timing.times[-1] > 0


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('least', [0.0, 5e-324, 1e-310])
def test_a_joint_that_hardly_moves_warns_of_nothing(least):
    s = np.linspace(0.0, 1.0, 20)
    first, second = np.tile([1.0, least, 0.0], (20, 1)), np.tile([0.0, least, 0.0], (20, 1))
    timing = retime(s, first, (second[:-1], second[1:]), 0.0, np.ones(20), ACCELERATION)
    assert timing is not None
    assert timing.rates.max() == pytest.approx(1.0)
    profile = RobotProfile.load(Path(__file__).parents[2] / 'vla_bringup' / 'config' / 'robots' / 'fr3.yaml')
    first = np.tile([1.0, least, 0.0, 0.0, 0.0, 0.0, 0.0], (20, 1))
    assert np.isfinite(Limits(profile, ExecutorConfig()).rate_caps(np.tile(profile.home, (20, 1)), first)).all()
