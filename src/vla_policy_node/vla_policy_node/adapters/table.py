"""The table of controllers that the executor can drive. A new one is a file beside this one and a row here.

The parameters of the executor, launch files, doctor, the conversion of bags and the reference page read this table. It
imports no ROS, so that bags can be read without.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_policy_node.ros.joints import decode_array, decode_set_point, decode_trajectory

if TYPE_CHECKING:
    from vla_policy_node.adapters.joint_controller import JointController


@dataclass(frozen=True)
class Adapter:
    """One kind of controller, and the controller of that kind that the suite configures for an FR3."""

    module: str  # beside this file
    implementation: str  # class in it, a JointController
    message: str  # type of the controller's input
    decode: Callable[[Any, Sequence[str], str], tuple[list[int], np.ndarray]]  # see ros/joints.py
    about: str  # how it moves the arm, for launch files
    controller_type: str  # plugin of ros2_control
    controller: str  # name in vla_bringup/config/controllers
    topic: str  # its input
    replaces: bool = False  # a message takes the place of all that was sent for later times
    not_on_robot: str = ''  # why franka.launch.py refuses it on a robot, with the remedy; empty: it does not
    not_on_fake: str = ''  # why franka.launch.py refuses it on mock hardware, with the remedy

    def load(self) -> 'type[JointController]':
        """Return the class. Needs ROS."""
        module = importlib.import_module(f'vla_policy_node.adapters.{self.module}')
        return getattr(module, self.implementation)


ADAPTERS = {
    'crisp': Adapter(
        'crisp',
        'CrispJointController',
        'sensor_msgs/msg/JointState',
        decode_set_point,
        about='joint impedance of crisp_controllers, robot only',
        controller_type='crisp_controllers/CartesianController',
        controller='joint_controller',
        topic='target_joint',
        not_on_fake='controller crisp sends torques, and the mock hardware of ros2_control does not integrate them: '
        'the arm would never move. Take joint_trajectory or forward_command with use_fake_hardware',
    ),
    'joint_trajectory': Adapter(
        'joint_trajectory',
        'JointTrajectoryController',
        'trajectory_msgs/msg/JointTrajectory',
        decode_trajectory,
        about='joint_trajectory_controller on torques, on positions with fake hardware',
        controller_type='joint_trajectory_controller/JointTrajectoryController',
        controller='joint_trajectory_controller',
        topic='joint_trajectory_controller/joint_trajectory',
        replaces=True,
    ),
    'forward_command': Adapter(
        'forward_command',
        'ForwardCommandController',
        'std_msgs/msg/Float64MultiArray',
        decode_array,
        about='positions as they are, fake hardware only',
        controller_type='forward_command_controller/ForwardCommandController',
        controller='forward_position_controller',
        topic='forward_position_controller/commands',
        not_on_robot='controller forward_command sends positions as they are, and the robot stops at any that do not '
        'come every millisecond: take crisp or joint_trajectory, or use_fake_hardware',
    ),
}


def adapter_of(message: str) -> Adapter:
    """Return the first adapter that sends messages of this type. Raises ValueError for a type that none sends."""
    for adapter in ADAPTERS.values():
        if adapter.message == message:
            return adapter
    known = ', '.join(adapter.message for adapter in ADAPTERS.values())
    raise ValueError(f'no controller takes set-points as {message}: the types are {known}')
