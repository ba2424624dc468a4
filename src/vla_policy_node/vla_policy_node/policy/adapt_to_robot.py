"""A policy and a robot: do they fit, and what acts in the robot's joints. No ROS, no torch."""

from collections.abc import Callable, Collection, Iterator

from vla_core.kinematics.arm import load_kinematics
from vla_core.profile import RobotProfile
from vla_model.policy import Policy, PolicyInfo
from vla_policy_node.policy.end_effector import EndEffectorPolicy


def adapt_to_robot(
    policy: Policy, profile: RobotProfile, cameras: Collection[str], model: str, description: Callable[[], str]
) -> Policy:
    """The policy, or an EndEffectorPolicy of it where its actions are poses of the tool: chunks are joint set-points.

    cameras: names of those that the robot has. model: its name in errors. description: gives the robot's URDF, asked
    only where it is needed. Raises ValueError naming what the robot lacks; also as load_kinematics.
    """
    for misfit in misfits(policy.info, profile, cameras, model):
        raise ValueError(misfit)
    if policy.info.joints and not policy.info.needs_tool:
        return policy
    return EndEffectorPolicy(policy, load_kinematics(description(), profile), profile)


def misfits(info: PolicyInfo, profile: RobotProfile, cameras: Collection[str], model: str) -> Iterator[str]:
    """Yield what keeps a policy from a robot, a sentence each. cameras, model: as in adapt_to_robot."""
    if missing := [c for c in info.cameras if c not in cameras]:
        yield f'model {model} needs the cameras {missing}, the robot profile has {list(cameras)}'
    if info.dof != profile.dof:
        yield f'model {model} is for {info.dof} joints, the robot profile {profile.name} has {profile.dof}'
    if info.joint_names and info.joint_names != tuple(profile.joint_names):
        yield (
            f'model {model} is for the joints {list(info.joint_names)}, the robot profile {profile.name} has '
            f'{list(profile.joint_names)}: names and order must be equal'
        )
    if info.gripper and not profile.gripper_joint_names:
        yield (
            f'model {model} sees and moves a gripper, the robot profile {profile.name} has none: fill '
            'robot.gripper_joint_names, or take a model that was trained without a gripper'
        )
    elif info.gripper and info.gripper_opening > profile.gripper_max_opening + 1e-6:
        yield (
            f'model {model} opens the gripper {info.gripper_opening:g} m, the robot profile {profile.name} allows '
            f'{profile.gripper_max_opening:g} m: correct gripper.open of the mapping, or robot.gripper_max_opening'
        )
