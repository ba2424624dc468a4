"""A policy and a robot: do they fit, and what acts in the robot's joints. No ROS, no torch."""

from collections.abc import Callable, Collection

from vla_core.kinematics.arm import load_kinematics
from vla_core.profile import RobotProfile
from vla_model.policy import Policy
from vla_policy_node.policy.end_effector import EndEffectorPolicy


def adapt_to_robot(
    policy: Policy, profile: RobotProfile, cameras: Collection[str], model: str, description: Callable[[], str]
) -> Policy:
    """The policy, or an EndEffectorPolicy of it where its actions are poses of the tool: chunks are joint set-points.

    cameras: names of those that the robot has. model: its name in errors. description: gives the robot's URDF, asked
    only where it is needed. Raises ValueError naming what the robot lacks; also as load_kinematics.
    """
    info = policy.info
    if missing := [c for c in info.cameras if c not in cameras]:
        raise ValueError(f'model {model} needs the cameras {missing}, the robot profile has {list(cameras)}')
    if info.dof != profile.dof:
        raise ValueError(f'model {model} is for {info.dof} joints, the robot profile {profile.name} has {profile.dof}')
    if info.gripper and not profile.gripper_joint_names:
        raise ValueError(
            f'model {model} sees and moves a gripper, the robot profile {profile.name} has none: fill '
            'robot.gripper_joint_names, or take a model that was trained without a gripper'
        )
    if info.joints:
        return policy
    return EndEffectorPolicy(policy, load_kinematics(description(), profile), profile)
