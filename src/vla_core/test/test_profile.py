"""The robot profile and the limits that it stands for."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from vla_core.motion.limits import reach, velocity_limits
from vla_core.profile import RobotProfile

ROBOTS = Path(__file__).parents[2] / 'vla_bringup' / 'config' / 'robots'
FR3 = RobotProfile.load(ROBOTS / 'fr3.yaml')


def facts(**changes):
    robot = yaml.safe_load((ROBOTS / 'fr3.yaml').read_text())['/**']['ros__parameters']['robot']
    return {k: v for k, v in (robot | changes).items() if v is not None}


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'jerk': None}, 'lacks robot.jerk'),
        ({'jerk': [0.0] * 7}, 'robot.jerk must be above zero'),
        ({'tool_speed': 0.0}, 'robot.tool_speed must be above zero'),
        ({'tool_offset': [0.0] * 3}, 'robot.tool_offset needs 6 finite numbers, x, y, z, roll, pitch, yaw'),
        ({'workspace': [0.0] * 5}, 'robot.workspace needs 6 finite numbers'),
        ({'workspace': [0, 0, 0, 1, 1, 0]}, 'robot.workspace .*: must be lower x, y, z, then upper'),
        ({'velocity_offset': None}, 'all or none'),
        ({'velocity_deceleration': [1.0] * 6}, 'needs 7 finite numbers'),
        ({'velocity_deceleration': [-1.0] * 7}, 'velocity_deceleration must be above zero'),
        ({'gripper_joint_names': ['', 'f']}, 'robot.gripper_joint_names has an empty name among others'),
        ({'gripper_joint_names': 'f'}, "robot.gripper_joint_names must be a list of names, got 'f'"),
        ({'gripper_max_opening': None}, 'robot.gripper_max_opening must be above zero for the finger joints'),
        ({'joint_names': ['']}, 'robot.joint_names must be distinct and not empty'),
    ],
)
def test_what_is_wrong_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        RobotProfile.from_dict(facts(**changes))


@pytest.mark.parametrize('none', [[], ['']])
def test_an_arm_without_a_gripper_has_no_finger_joint_and_no_opening(none):
    profile = RobotProfile.from_dict(facts(gripper_joint_names=none, gripper_max_opening=None))
    assert (profile.gripper_joint_names, profile.gripper_max_opening) == ((), 0.0)


def test_without_the_formula_the_limits_are_the_same_everywhere():
    names = ('velocity_deceleration', 'velocity_offset', 'velocity_end_lower', 'velocity_end_upper')
    profile = RobotProfile.from_dict(facts(**dict.fromkeys(names)))
    assert profile.velocity_law is None
    down, up = velocity_limits(profile, np.stack([profile.home, profile.position_upper]))
    for limits in (down, up):
        np.testing.assert_array_equal(limits, np.tile(profile.velocity, (2, 1)))
    assert reach(profile) == (profile.position_lower, profile.position_upper)


def test_near_its_ends_the_fr3_is_slow_towards_them_only():
    q = np.tile(FR3.home, (3, 1))
    q[1, 0], q[2, 0] = 2.5, -2.5
    down, up = velocity_limits(FR3, q)
    assert up[0, 0] == down[0, 0] == 2.62
    assert up[1, 0] == pytest.approx(-0.30 + np.sqrt(2 * 6.0 * (2.7501 - 2.5)))
    assert down[1, 0] == 2.62
    np.testing.assert_allclose(down[2, 0], up[1, 0])


def test_the_fr3_reaches_as_far_as_it_may_still_move():
    lower, upper = reach(FR3)
    assert (lower >= FR3.position_lower).all()
    assert (upper <= FR3.position_upper).all()
    _, up = velocity_limits(FR3, np.stack([upper, upper + 1e-3]))
    assert (up[0] >= 0.0099).all()
    assert (up[1] < 0.0100).all()
