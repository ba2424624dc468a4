"""The action prefix: committed actions on the grid of the chunk to come."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_core.observe.action_prefix import INPAINT, action_prefix, takes_prefix
from vla_core.observe.committed_actions import CommittedActions
from vla_model.types import Chunk

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
    committed = CommittedActions()
    committed.add(1, chunk or ramp(), 1_000 * MS, 1, delay)
    return committed


def test_the_prefix_has_the_actions_of_the_old_chunk_at_the_same_times():
    prefix = action_prefix(sent(0.08), 1_200 * MS, 1, on_ramp(1_200))
    assert prefix.positions.shape == (1, 7) and prefix.gripper.tolist() == [0.08] and prefix.dt == 0.1
    assert prefix.positions[0, 0] == pytest.approx(0.5 * 0.3)  # due 0.3 s after the old reference
    between = action_prefix(sent(0.25), 1_230 * MS, 1, on_ramp(1_230))
    assert between.positions[:, 0] == pytest.approx(0.5 * np.array([0.33, 0.43, 0.53]))
    assert between.gripper.tolist() == [0.08, 0.08, 0.0]


def test_there_is_no_prefix_without_a_chunk_of_the_same_epoch():
    assert action_prefix(CommittedActions(), 1_000 * MS, 1, on_ramp(1_000)) is None
    committed = sent(0.08)
    assert action_prefix(committed, 1_200 * MS, 2, on_ramp(1_200)) is None
    assert action_prefix(committed, 900 * MS, 1, on_ramp(900)) is None  # the clock went back
    assert action_prefix(committed, 1_900 * MS, 1, on_ramp(1_900)) is None  # it is over
    committed.followed = False
    assert action_prefix(committed, 1_200 * MS, 1, on_ramp(1_200)) is None
    committed.followed = True
    assert action_prefix(committed, 1_200 * MS, 1, on_ramp(1_200)) is not None


def test_after_a_refusal_the_prefix_is_of_the_chunk_that_was_accepted():
    committed = sent(0.08)
    committed.add(2, ramp(speed=-0.5), 1_200 * MS, 1, 0.08)
    committed.reported(1, refused=True)
    committed.add(3, ramp(speed=-0.9), 1_400 * MS, 1, 0.08)  # continues the second, which the arm does not
    assert action_prefix(committed, 1_600 * MS, 1, on_ramp(1_600)).positions[0, 0] == pytest.approx(0.5 * 0.7)
    committed.reported(0, refused=True)  # a chunk that is not kept
    assert action_prefix(committed, 1_600 * MS, 1, on_ramp(1_600)) is None
    committed.reported(3, refused=False)
    turned = on_ramp(1_600, speed=-0.9, began=1_400)
    assert action_prefix(committed, 1_600 * MS, 1, turned).positions[0, 0] == pytest.approx(-0.9 * 0.3)
    committed.reported(1, refused=True)
    assert action_prefix(committed, 1_900 * MS, 1, on_ramp(1_900)) is None  # it is over


def test_the_longest_of_the_newest_delays_counts():
    committed = CommittedActions(window=3)
    for delay in (0.39, 0.05, 0.12, 0.05):
        committed.add(1, ramp(), 0, 1, delay)
    assert committed.delay == 0.12
    committed.add(2, ramp(), 0, 1, 2.0)
    assert len(action_prefix(committed, 10 * MS, 1, on_ramp(10, began=0)).positions) == 4  # half a horizon at most


@pytest.mark.parametrize('joint', [0, 4])
def test_there_is_no_prefix_for_an_arm_that_deviates_from_its_chunk(joint):
    committed = sent(0.08)
    behind = on_ramp(1_200)
    behind[joint] -= 0.09
    assert action_prefix(committed, 1_200 * MS, 1, behind) is not None
    behind[joint] -= 0.02
    assert action_prefix(committed, 1_200 * MS, 1, behind) is None
    assert action_prefix(committed, 1_200 * MS, 1, on_ramp(1_200)) is not None  # it has caught up
    assert action_prefix(committed, 1_200 * MS, 1, behind, max_deviation=0.2) is not None


def test_a_model_that_continues_from_its_prefix_cannot_run_away_from_the_arm():
    """Each chunk continues its prefix at 1 rad/s; limits allow the arm 0.3 rad/s."""
    committed, arm, ahead = CommittedActions(), 0.0, []
    for k in range(20):
        arm = 0.3 * 0.2 * k
        steps = action_prefix(committed, 200 * k * MS, 1, np.array([arm]))
        given = np.zeros((0, 1)) if steps is None else steps.positions
        start = arm if steps is None else given[-1, 0]
        goes = start + 0.1 * np.arange(1, 9 - len(given))
        positions = np.concatenate([given, goes[:, None]])
        committed.add(k + 1, Chunk(positions, np.zeros(0), 0.1), 200 * k * MS, 1, 0.08)
        ahead.append(positions[0, 0] - arm)
    assert max(ahead) < 0.1 + 0.1 + 1e-9  # max_deviation, and one step


def test_a_gripper_that_is_not_there():
    chunk = Chunk(ramp().positions, np.zeros(0), 0.1)
    assert action_prefix(sent(0.08, chunk), 1_100 * MS, 1, on_ramp(1_100)).gripper.shape == (0,)


@given(st.integers(2, 16), st.floats(0.02, 0.5), st.floats(0, 1), st.integers(1, 3000))
def test_a_prefix_fits_what_a_policy_takes(horizon, dt, delay, since):
    prefix = action_prefix(
        sent(delay, ramp(horizon, dt)), (1_000 + since) * MS, 1, on_ramp(1_000 + max(since, round(dt * 1e3)))
    )
    if prefix is not None:
        count = len(prefix.positions)
        assert 1 <= count <= horizon // 2 and prefix.gripper.shape == (count,)
        due = since * 1e-3 + dt * np.arange(1, count + 1)
        assert np.allclose(prefix.positions[:, 0], 0.5 * due, atol=1e-5)


def test_a_model_is_given_the_prefix_if_it_learned_to_continue_one_or_always():
    assert [takes_prefix(inpaint, True) for inpaint in INPAINT] == [True, True, False]
    assert [takes_prefix(inpaint, False) for inpaint in INPAINT] == [False, True, False]
    with pytest.raises(ValueError, match="inpaint 'maybe': must be one of auto, always, never"):
        takes_prefix('maybe', True)
