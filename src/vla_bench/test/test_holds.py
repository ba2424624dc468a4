"""What a controller gets keeps the limits in every hold. The table is `./vla bench holds`."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_bench.fuzz.holds import CASES, CONTROLLERS, hold, table
from vla_core.motion.states import Hold
from vla_core.profile import RobotProfile

ROBOTS = Path(__file__).parents[2] / 'vla_bringup' / 'config' / 'robots'
PROFILES = {name: RobotProfile.load(ROBOTS / f'{name}.yaml') for name in ('fr3', 'sim_panda')}


def test_every_hold_is_driven_into():
    assert {case.hold for case in CASES} == set(Hold) - {Hold.NONE, Hold.IDLE}  # IDLE is how each run begins


@pytest.mark.parametrize('kind', CONTROLLERS)
@settings(max_examples=12)
@given(st.sampled_from(CASES), st.sampled_from(sorted(PROFILES)), st.integers(0, 2**31))
def test_no_hold_leaves_the_limits(kind, case, robot, seed):
    seen = hold(PROFILES[robot], kind, case, seed)
    assert case.hold in seen.holds
    assert seen.within, (case.about, seen)


@pytest.mark.parametrize('kind', CONTROLLERS)
def test_an_arm_in_contact_is_let_go_fast(kind):
    case = next(case for case in CASES if case.hold is Hold.BLOCKED)
    seen = hold(PROFILES['fr3'], kind, case, 1)
    assert seen.within
    assert seen.rests <= (0.1 if kind == 'crisp' else 0.36)
    assert seen.velocity > (0.9 if kind == 'crisp' else 0.3)
    assert f'| `BLOCKED` | contact in motion | {kind} | 1 |' in table([seen])


@pytest.mark.parametrize('seed', [13, 15, 17, 25, 31])  # up to 1 rad/s
def test_a_fast_arm_whose_stamps_stand_still_is_not_taken_for_blocked(seed):
    case = next(case for case in CASES if case.about == 'stamps that stand still')
    seen = hold(PROFILES['fr3'], 'forward_command', case, seed)
    assert Hold.JOINT_STATE_STALE in seen.holds
    assert Hold.BLOCKED not in seen.holds
