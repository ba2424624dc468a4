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


def on_ramp(milliseconds, speed=0.5, began=1_000):
    """The arm that follows a ramp sent at `began`."""
    return np.array([speed * 1e-3 * (milliseconds - began), *[0.0] * 6])


def sent(delay, chunk=None):
    committed = Committed()
    committed.sent(1, chunk or ramp(), 1_000 * MS, 1, delay)
    return committed


def test_steps_are_those_of_the_old_chunk_at_the_same_times():
    under_way = sent(0.08).steps(1_200 * MS, 1, on_ramp(1_200))
    assert under_way.positions.shape == (1, 7) and under_way.gripper.tolist() == [0.08] and under_way.dt == 0.1
    assert under_way.positions[0, 0] == pytest.approx(0.5 * 0.3)  # due 0.3 s after the old reference
    between = sent(0.25).steps(1_230 * MS, 1, on_ramp(1_230))
    assert between.positions[:, 0] == pytest.approx(0.5 * np.array([0.33, 0.43, 0.53]))
    assert between.gripper.tolist() == [0.08, 0.08, 0.0]


def test_nothing_is_under_way_without_a_chunk_of_the_same_epoch():
    assert Committed().steps(1_000 * MS, 1, on_ramp(1_000)) is None
    committed = sent(0.08)
    assert committed.steps(1_200 * MS, 2, on_ramp(1_200)) is None
    assert committed.steps(900 * MS, 1, on_ramp(900)) is None  # the clock went back
    assert committed.steps(1_900 * MS, 1, on_ramp(1_900)) is None  # it is over
    committed.followed = False
    assert committed.steps(1_200 * MS, 1, on_ramp(1_200)) is None
    committed.followed = True
    assert committed.steps(1_200 * MS, 1, on_ramp(1_200)) is not None


def test_after_a_refusal_the_arm_goes_on_with_the_chunk_that_was_taken():
    committed = sent(0.08)
    committed.sent(2, ramp(speed=-0.5), 1_200 * MS, 1, 0.08)
    committed.heard(1, refused=True)
    committed.sent(3, ramp(speed=-0.9), 1_400 * MS, 1, 0.08)  # goes on from the second, which the arm does not
    assert committed.steps(1_600 * MS, 1, on_ramp(1_600)).positions[0, 0] == pytest.approx(0.5 * 0.7)
    committed.heard(0, refused=True)  # one that nobody remembers
    assert committed.steps(1_600 * MS, 1, on_ramp(1_600)) is None
    committed.heard(3, refused=False)
    turned = on_ramp(1_600, speed=-0.9, began=1_400)
    assert committed.steps(1_600 * MS, 1, turned).positions[0, 0] == pytest.approx(-0.9 * 0.3)
    committed.heard(1, refused=True)
    assert committed.steps(1_900 * MS, 1, on_ramp(1_900)) is None  # it is over


def test_the_longest_of_the_newest_delays_counts():
    committed = Committed(window=3)
    for delay in (0.39, 0.05, 0.12, 0.05):
        committed.sent(1, ramp(), 0, 1, delay)
    assert committed.delay == 0.12
    committed.sent(2, ramp(), 0, 1, 2.0)
    assert len(committed.steps(10 * MS, 1, on_ramp(10, began=0)).positions) == 4  # half a horizon at most


@pytest.mark.parametrize('joint', [0, 4])
def test_an_arm_that_is_not_where_the_chunk_has_it_does_not_follow_it(joint):
    committed = sent(0.08)
    behind = on_ramp(1_200)
    behind[joint] -= 0.09
    assert committed.steps(1_200 * MS, 1, behind) is not None
    behind[joint] -= 0.02
    assert committed.steps(1_200 * MS, 1, behind) is None
    assert committed.steps(1_200 * MS, 1, on_ramp(1_200)) is not None  # it has caught up
    further = Committed(away=0.2)
    further.sent(1, ramp(), 1_000 * MS, 1, 0.08)
    assert further.steps(1_200 * MS, 1, behind) is not None


def test_a_model_that_goes_on_from_where_the_arm_is_not_cannot_run_away():
    """Each chunk goes on at 1 rad/s from what it is given; the arm does 0.3, as limits may have it."""
    committed, arm, ahead = Committed(), 0.0, []
    for k in range(20):
        arm = 0.3 * 0.2 * k
        steps = committed.steps(200 * k * MS, 1, np.array([arm]))
        given = np.zeros((0, 1)) if steps is None else steps.positions
        start = arm if steps is None else given[-1, 0]
        goes = start + 0.1 * np.arange(1, 9 - len(given))
        positions = np.concatenate([given, goes[:, None]])
        committed.sent(k + 1, Chunk(positions, np.zeros(0), 0.1), 200 * k * MS, 1, 0.08)
        ahead.append(positions[0, 0] - arm)
    assert max(ahead) < 0.1 + 0.1 + 1e-9  # away, and one step


def waits_then_goes(arm):
    """Two steps of rest, then half a radian: what a model without memory says at each look at a hand that closes."""
    positions = np.tile(arm, (8, 1))
    positions[2:, 0] += 0.5 * np.arange(1, 7) / 6
    return Chunk(positions, np.zeros(8), 0.2)


def looks(committed, seconds, moves=lambda k, arm: arm, refused=False):
    """Five looks a second at an arm that does moves(look, arm); those at which it was looked at."""
    arm, found = np.zeros(7), []
    for k in range(round(seconds * 5)):
        arm = moves(k, arm)
        if not committed.carries_out(200 * k * MS, 1, arm):
            found.append(k)
            committed.sent(k + 1, waits_then_goes(arm), 200 * k * MS, 1, 0.08)
            committed.heard(1 if refused else k + 1, refused)
    return found


def test_an_arm_that_waits_for_ever_carries_its_chunk_out():
    # A horizon has 8 looks; the fourth in a row that finds it stuck is the first that is left out. The chunk of the
    # look before is followed to its half, 0.8 s, then the arm is judged anew, a horizon later.
    assert looks(Committed(), 6.0) == [*range(11), *range(14, 25), 28, 29]


def test_an_arm_that_gets_where_its_chunks_lead_is_looked_at_always():
    assert looks(Committed(), 5.0, moves=lambda k, arm: arm + 0.03) == list(range(25))  # 0.24 of 0.5 rad in a horizon
    assert looks(Committed(stagnation=0), 5.0) == list(range(25))
    slow = looks(Committed(), 5.0, moves=lambda k, arm: arm + 0.01)
    assert slow != list(range(25))
    assert looks(Committed(stagnation=0.1), 5.0, moves=lambda k, arm: arm + 0.01) == list(range(25))


def test_an_arm_is_looked_at_when_its_chunk_is_not_what_it_does():
    assert looks(Committed(), 5.0, refused=True) == list(range(25))
    shadow = Committed()
    shadow.followed = False
    assert looks(shadow, 5.0) == list(range(25))
    stuck = Committed()
    looks(stuck, 2.4)
    assert stuck.carries_out(2_400 * MS, 1, np.zeros(7))
    assert not stuck.carries_out(2_400 * MS, 2, np.zeros(7))  # it was stopped in between
    assert not stuck.carries_out(2_400 * MS, 1, np.zeros(7))


def test_an_arm_that_is_to_stay_is_looked_at():
    committed = Committed()
    for k in range(25):
        assert not committed.carries_out(200 * k * MS, 1, np.zeros(7))
        committed.sent(k + 1, Chunk(np.full((8, 7), 0.05), np.zeros(8), 0.2), 200 * k * MS, 1, 0.08)


def test_a_gripper_that_is_not_there():
    chunk = Chunk(ramp().positions, np.zeros(0), 0.1)
    assert sent(0.08, chunk).steps(1_100 * MS, 1, on_ramp(1_100)).gripper.shape == (0,)


@given(st.integers(2, 16), st.floats(0.02, 0.5), st.floats(0, 1), st.integers(1, 3000))
def test_steps_fit_what_a_policy_takes(horizon, dt, delay, since):
    under_way = sent(delay, ramp(horizon, dt)).steps(
        (1_000 + since) * MS, 1, on_ramp(1_000 + max(since, round(dt * 1e3)))
    )
    if under_way is not None:
        count = len(under_way.positions)
        assert 1 <= count <= horizon // 2 and under_way.gripper.shape == (count,)
        due = since * 1e-3 + dt * np.arange(1, count + 1)
        assert np.allclose(under_way.positions[:, 0], 0.5 * due, atol=1e-5)
