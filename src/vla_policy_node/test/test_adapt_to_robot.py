"""What keeps a policy from a robot is named; a policy with joint set-points is given the pose of the tool it needs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vla_core.profile import RobotProfile
from vla_model.policy import PolicyInfo, Prediction
from vla_model.types import Chunk, Observation
from vla_policy_node.policy.adapt_to_robot import adapt_to_robot, misfits

PROFILE = RobotProfile.load(Path(__file__).parents[2] / 'vla_bringup' / 'config' / 'robots' / 'sim_panda.yaml')
INFO = PolicyInfo('m', True, ('front',), 7, 2, 0.1, gripper=True)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'cameras': ('front', 'left')}, r"needs the cameras \['left'\]"),
        ({'dof': 6}, 'is for 6 joints, the robot profile panda has 7'),
        ({'joint_names': tuple('abcdefg')}, 'names and order must be equal'),
        ({'joint_names': PROFILE.joint_names[::-1]}, 'names and order must be equal'),
        ({'gripper_opening': 0.085}, 'opens the gripper 0.085 m, the robot profile panda allows 0.08 m'),
    ],
)
def test_what_keeps_a_policy_from_a_robot_is_named(change, message):
    info = replace(INFO, **change)
    (found,) = misfits(info, PROFILE, ('front', 'wrist'), 'ws://x')
    with pytest.raises(ValueError, match=message) as caught:
        adapt_to_robot(type('P', (), {'info': info})(), PROFILE, ('front', 'wrist'), 'ws://x', str)
    assert str(caught.value) == found


def test_a_policy_that_fits_is_taken():
    info = replace(INFO, joint_names=PROFILE.joint_names, gripper_opening=0.08)
    assert not list(misfits(info, PROFILE, ('front', 'wrist'), 'm'))


class NeedsTool:
    info = replace(INFO, needs_tool=True)

    def act(self, observation, prefix=None):
        self.tool = observation.tool
        return Prediction(Chunk(np.tile(observation.positions, (2, 1)), np.zeros(2), 0.1))


def test_a_policy_with_joint_set_points_is_given_the_pose_of_the_tool(panda_urdf):
    policy = NeedsTool()
    adapted = adapt_to_robot(policy, PROFILE, ('front',), 'm', panda_urdf.read_text)
    seen = Observation(0, {}, PROFILE.home, np.zeros(7), 0.0, 'go')
    chunk = adapted.act(seen).chunk
    assert policy.tool.shape == (6,) and 0.3 < policy.tool[0] < 0.7
    assert np.array_equal(chunk.positions, np.tile(PROFILE.home, (2, 1))) and chunk.space == 'joints'
    assert adapted.info.joints and not adapted.info.needs_tool
