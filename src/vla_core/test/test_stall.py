"""Stall detection: when the arm executes its chunk instead of another inference."""

import numpy as np

from vla_core.observe.committed_actions import CommittedActions
from vla_core.observe.stall import StallDetector
from vla_model.types import Chunk

MS = 1_000_000


def rests_then_moves(arm):
    """Two steps of rest, then half a radian: what a model without memory answers to a hand that closes."""
    positions = np.tile(arm, (8, 1))
    positions[2:, 0] += 0.5 * np.arange(1, 7) / 6
    return Chunk(positions, np.zeros(8), 0.2)


def inferences(seconds, moves=lambda k, arm: arm, refused=False, followed=True, **options):
    """Five chances of an inference a second for an arm that does moves(k, arm); those that stall detection leaves."""
    committed = CommittedActions()
    committed.followed = followed
    detector, arm, found = StallDetector(committed, **options), np.zeros(7), []
    for k in range(round(seconds * 5)):
        arm = moves(k, arm)
        if not detector.stalled(200 * k * MS, 1, arm):
            found.append(k)
            committed.add(k + 1, rests_then_moves(arm), 200 * k * MS, 1, 0.08)
            committed.reported(1 if refused else k + 1, refused)
    return found, detector


def test_an_arm_that_rests_for_ever_executes_its_chunk():
    # A horizon has 8 inferences; the fourth in a row that finds it stalled is the first that is left out. The chunk
    # before it is executed to its half, 0.8 s, then the arm is judged anew, a horizon later.
    assert inferences(6.0)[0] == [*range(11), *range(14, 25), 28, 29]


def test_an_arm_that_gets_where_its_chunks_lead_is_never_stalled():
    def slowly(k, arm):
        return arm + 0.01

    assert inferences(5.0, lambda k, arm: arm + 0.03)[0] == list(range(25))  # 0.24 of 0.5 rad in a horizon
    assert inferences(5.0, share=0)[0] == list(range(25))
    assert inferences(5.0, slowly)[0] != list(range(25))
    assert inferences(5.0, slowly, share=0.1)[0] == list(range(25))


def test_an_arm_that_executes_another_chunk_than_its_newest_is_never_stalled():
    assert inferences(5.0, refused=True)[0] == list(range(25))
    assert inferences(5.0, followed=False)[0] == list(range(25))
    _, detector = inferences(2.4)
    assert detector.stalled(2_400 * MS, 1, np.zeros(7))
    assert not detector.stalled(2_400 * MS, 2, np.zeros(7))  # it was stopped in between
    assert not detector.stalled(2_400 * MS, 1, np.zeros(7))


def test_an_arm_that_is_to_stay_is_never_stalled():
    committed = CommittedActions()
    detector = StallDetector(committed)
    for k in range(25):
        assert not detector.stalled(200 * k * MS, 1, np.zeros(7))
        committed.add(k + 1, Chunk(np.full((8, 7), 0.05), np.zeros(8), 0.2), 200 * k * MS, 1, 0.08)
