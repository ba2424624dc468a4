"""crisp_controllers' joint input: a JointState on `target_joint`, reliable, depth 1.

The controller takes positions and velocities in index order (it ignores the names), ignores the stamp, and holds the
last target for ever: whoever sends must stop smoothly by itself, and must never send what is not finite. It refuses
input while its topic has more than one publisher.
"""

import array
from typing import ClassVar

import numpy as np
from rclpy.node import Node
from rclpy.time import Time
from sensor_msgs.msg import JointState

from vla_policy_node.adapters.command_topic import check_finite
from vla_policy_node.adapters.joint_controller import JointController, Target


class CrispJointController(JointController):
    """Publishes set-points in the joint order of the robot profile, which must be that of the controller."""

    message: ClassVar[type] = JointState
    # The distance between set-point and arm is a force, which is to be gone soonest.
    releases_within_acceleration: ClassVar[bool] = False
    takes_while_inactive: ClassVar[bool] = True  # its on_activate does not reset what the topic brought

    def __init__(self, node: Node, target: Target) -> None:
        super().__init__(node, target)
        self._message = JointState(name=list(target.joint_names))

    def send(self, now: Time, positions: np.ndarray, velocities: np.ndarray) -> None:
        """positions (dof,) [rad], velocities (dof,) [rad/s]. Raises ValueError when something is not finite."""
        check_finite(positions, velocities)
        self._message.header.stamp = now.to_msg()
        self._message.position = array.array('d', positions)
        self._message.velocity = array.array('d', velocities)
        self.topic.publish(self._message)
