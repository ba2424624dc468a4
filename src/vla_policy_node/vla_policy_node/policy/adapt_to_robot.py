"""A model and a robot: do they fit, and what acts in the robot's joints. No ROS, no torch."""

from collections.abc import Callable, Collection
from typing import Any

from vla_core.kinematics.arm import load_kinematics
from vla_core.profile import RobotProfile
from vla_policy_node.policy.end_effector import EndEffectorPolicy


def fit(
    policy: Any, profile: RobotProfile, cameras: Collection[str], model: str, description: Callable[[], str]
) -> Any:
    """The policy, or an EndEffectorPolicy of it where its actions are poses of the tool.

    cameras: names of those that the robot has. model: what errors call it. description: gives the robot's URDF, asked
    only where it is needed. Raises ValueError naming what the robot lacks; also as load_kinematics.
    """
    robot = policy.config.robot
    if missing := [c for c in robot.cameras if c not in cameras]:
        raise ValueError(f'model {model} needs the cameras {missing}, the robot profile has {list(cameras)}')
    if robot.dof != profile.dof:
        raise ValueError(f'model {model} is for {robot.dof} joints, the robot profile {profile.name} has {profile.dof}')
    if robot.gripper and not profile.gripper_joint_names:
        raise ValueError(
            f'model {model} sees and moves a gripper, the robot profile {profile.name} has none: fill '
            'robot.gripper_joint_names, or take a model that was trained without a gripper'
        )
    if robot.joints:
        return policy
    return EndEffectorPolicy(policy, load_kinematics(description(), profile), profile)
