"""The path of a chunk, and the seam that joins it to the motion before."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_core.motion.path import ChunkPath, Seam

DOF = 3


def at(curve, s):
    """One sample of a path or seam."""
    return [x[0] for x in curve.sample(np.array([s]))]


@pytest.mark.parametrize('kind', ['cubic', 'monotone'])
def test_path_goes_through_its_steps(kind):
    steps = np.random.default_rng(1).normal(size=(6, DOF))
    path = ChunkPath(steps, 0.1, kind)
    for i, step in enumerate(steps):
        np.testing.assert_allclose(at(path, (i + 1) * 0.1)[0], step, atol=1e-12)
        assert path.step_at((i + 1) * 0.1) == i


def test_path_velocity_and_acceleration_are_the_derivatives():
    path = ChunkPath(np.random.default_rng(2).normal(size=(6, DOF)), 0.1)
    h = 1e-6
    for s in np.linspace(0.013, 0.58, 40):
        before, here, after = at(path, s - h), at(path, s), at(path, s + h)
        np.testing.assert_allclose((after[0] - before[0]) / (2 * h), here[1], atol=1e-4)
        np.testing.assert_allclose((after[1] - before[1]) / (2 * h), here[2], rtol=1e-3, atol=1e-3)


def test_one_step_is_a_standing_target():
    path = ChunkPath(np.full((1, DOF), 0.3), 0.05)
    for s in (-1.0, 0.0, 0.02, 0.05, 3.0):
        np.testing.assert_allclose(at(path, s)[0], 0.3)


@given(st.lists(st.floats(-1, 1), min_size=9, max_size=9))
def test_seam_starts_at_the_offset_ends_at_zero_and_respects_its_limits(values):
    e, v, a = np.array(values).reshape(3, DOF)
    velocity, acceleration = np.full(DOF, 0.5), np.full(DOF, 2.5)
    seam = Seam(1.0, (e, v, a * 0), velocity, acceleration, 0.15)
    for got, want in zip(at(seam, 1.0), (e, v, a * 0), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-9)
    for got in at(seam, 1.0 + seam.duration):
        np.testing.assert_allclose(got, 0, atol=1e-6)
    samples = [at(seam, s) for s in np.linspace(1.0, 1.0 + seam.duration, 50)]
    assert max(np.abs(s[1]).max() for s in samples) <= 0.5 + np.abs(v).max() + 1e-9
    assert max(np.abs(s[2]).max() for s in samples) <= 2 * 2.5 + 1e-9  # one budget for the offset, one for its speed


def test_a_spline_bends_without_a_jump_and_not_at_its_ends():
    path = ChunkPath(np.random.default_rng(4).normal(size=(7, DOF)), 0.1)
    for knot in 0.1 * np.arange(8):
        before, after = at(path, knot - 1e-9), at(path, knot + 1e-9)
        for b, a in zip(before, after, strict=True):
            np.testing.assert_allclose(b, a, atol=1e-4)
    for end in (0.0, 0.7):
        np.testing.assert_allclose(at(path, end)[2], 0.0, atol=1e-9)
    np.testing.assert_allclose(at(path, 0.9)[0], at(path, 0.7)[0] + 0.2 * at(path, 0.7)[1])


def test_a_single_corner_does_not_ring():
    steps = np.zeros((21, 1))
    steps[10:] = 1.0
    q = ChunkPath(steps, 0.1).sample(np.linspace(0.1, 2.1, 2001))[0][:, 0]
    far = np.abs(np.linspace(0.1, 2.1, 2001) - 1.05) > 0.35  # 3 steps away
    assert np.abs(q - np.round(q))[far].max() < 0.02


@settings(max_examples=60)
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=12), st.floats(0.02, 0.5))
def test_between_steps_inside_the_limits_a_path_stays_inside(values, dt):
    values = np.array(values)[:, None]
    s = np.linspace(dt, len(values) * dt, 500)
    for path in (ChunkPath(values, dt, 'cubic', -1.0, 1.0), ChunkPath(values, dt, 'monotone')):
        q = path.sample(s)[0]
        assert q.max() <= 1 + 1e-12
        assert q.min() >= -1 - 1e-12


def test_only_a_joint_that_would_leave_its_limits_is_bent_another_way():
    steps = np.stack([np.tile([0.0, 1.0, 1.0, 0.0], 2)] * 2, axis=1)
    free, bound = ChunkPath(steps, 0.1), ChunkPath(steps, 0.1, 'cubic', -2.0, np.array([1.0, 2.0]))
    s = np.linspace(0.1, 0.8, 300)
    np.testing.assert_array_equal(free.sample(s)[0][:, 1], bound.sample(s)[0][:, 1])
    assert free.sample(s)[0][:, 0].max() > 1.05
    assert bound.sample(s)[0][:, 0].max() <= 1.0


def test_unknown_interpolation():
    with pytest.raises(ValueError, match='cubic or monotone'):
        ChunkPath(np.zeros((2, 1)), 0.1, 'linear')
