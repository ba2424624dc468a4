"""What is under way, on the grid of the chunk to come."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_model.types import Chunk
from vla_policy_node.observe.committed import Committed

MS = 1_000_000


def ramp(horizon=8, dt=0.1, speed=0.5):
    """Joint 0 at `speed` [rad/s]; the gripper closes half-way."""
    positions = np.zeros((horizon, 7))
    positions[:, 0] = speed * dt * np.arange(1, horizon + 1)
    return Chunk(positions, np.where(np.arange(horizon) < horizon // 2, 0.08, 0.0), dt)


def sent(delay, chunk=None):
    committed = Committed()
    committed.sent(1, chunk or ramp(), 1_000 * MS, 1, delay)
    return committed


def test_steps_are_those_of_the_old_chunk_at_the_same_times():
    under_way = sent(0.08).steps(1_200 * MS, 1)
    assert under_way.positions.shape == (1, 7) and under_way.gripper.tolist() == [0.08] and under_way.dt == 0.1
    assert under_way.positions[0, 0] == pytest.approx(0.5 * 0.3)  # due 0.3 s after the old reference
    between = sent(0.25).steps(1_230 * MS, 1)
    assert between.positions[:, 0] == pytest.approx(0.5 * np.array([0.33, 0.43, 0.53]))
    assert between.gripper.tolist() == [0.08, 0.08, 0.0]


def test_nothing_is_under_way_without_a_chunk_of_the_same_epoch():
    assert Committed().steps(1_000 * MS, 1) is None
    committed = sent(0.08)
    assert committed.steps(1_200 * MS, 2) is None
    assert committed.steps(900 * MS, 1) is None  # the clock went back
    assert committed.steps(1_900 * MS, 1) is None  # it is over
    committed.followed = False
    assert committed.steps(1_200 * MS, 1) is None
    committed.followed = True
    assert committed.steps(1_200 * MS, 1) is not None


def test_after_a_refusal_the_arm_goes_on_with_the_chunk_that_was_taken():
    committed = sent(0.08)
    committed.sent(2, ramp(speed=-0.5), 1_200 * MS, 1, 0.08)
    committed.heard(1, refused=True)
    committed.sent(3, ramp(speed=-0.9), 1_400 * MS, 1, 0.08)  # goes on from the second, which the arm does not
    assert committed.steps(1_600 * MS, 1).positions[0, 0] == pytest.approx(0.5 * 0.7)
    committed.heard(0, refused=True)  # one that nobody remembers
    assert committed.steps(1_600 * MS, 1) is None
    committed.heard(3, refused=False)
    assert committed.steps(1_600 * MS, 1).positions[0, 0] == pytest.approx(-0.9 * 0.3)
    committed.heard(1, refused=True)
    assert committed.steps(1_900 * MS, 1) is None  # it is over


def test_the_longest_of_the_newest_delays_counts():
    committed = Committed(window=3)
    for delay in (0.39, 0.05, 0.12, 0.05):
        committed.sent(1, ramp(), 0, 1, delay)
    assert committed.delay == 0.12
    committed.sent(2, ramp(), 0, 1, 2.0)
    assert len(committed.steps(10 * MS, 1).positions) == 4  # half a horizon at most


def test_a_gripper_that_is_not_there():
    chunk = Chunk(ramp().positions, np.zeros(0), 0.1)
    assert sent(0.08, chunk).steps(1_100 * MS, 1).gripper.shape == (0,)


@given(st.integers(2, 16), st.floats(0.02, 0.5), st.floats(0, 1), st.integers(1, 3000))
def test_steps_fit_what_a_policy_takes(horizon, dt, delay, since):
    under_way = sent(delay, ramp(horizon, dt)).steps((1_000 + since) * MS, 1)
    if under_way is not None:
        count = len(under_way.positions)
        assert 1 <= count <= horizon // 2 and under_way.gripper.shape == (count,)
        due = since * 1e-3 + dt * np.arange(1, count + 1)
        assert np.allclose(under_way.positions[:, 0], 0.5 * due, atol=1e-5)
