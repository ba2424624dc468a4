"""A model and a robot: do they fit, and what acts in the robot's joints. No ROS, no torch."""

from collections.abc import Callable, Collection
from typing import Any

from vla_policy_node.core.profile import RobotProfile
from vla_policy_node.kinematics.arm import load_kinematics
from vla_policy_node.kinematics.end_effector import EndEffectorPolicy


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
    if robot.dof != profile.dof or (robot.gripper and not profile.gripper_joint_names):
        raise ValueError(
            f'model {model} is for {robot.dof} joints{" and a gripper" if robot.gripper else ""}, the robot '
            f'profile {profile.name} has {profile.dof} joints and finger joints {list(profile.gripper_joint_names)}'
        )
    if robot.joints:
        return policy
    return EndEffectorPolicy(policy, load_kinematics(description(), profile), profile)
