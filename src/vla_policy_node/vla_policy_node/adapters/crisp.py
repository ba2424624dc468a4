"""crisp_controllers' joint input: a JointState on `target_joint`, reliable, depth 1.

The controller takes positions and velocities in index order (it ignores the names), ignores the stamp, and holds the
last target for ever: whoever sends must stop smoothly by itself, and must never send what is not finite.
"""

import array

import numpy as np
from rclpy.node import Node
from rclpy.time import Time
from sensor_msgs.msg import JointState

from vla_policy_node.ros import qos


class CrispJointController:
    """Publishes set-points for crisp_controllers, in the joint order of the robot profile."""

    def __init__(self, node: Node, topic: str, joint_names: tuple[str, ...]) -> None:
        self._node = node
        self._publisher = node.create_publisher(JointState, topic, qos.COMMAND)
        self._message = JointState(name=list(joint_names))

    def send(self, now: Time, positions: np.ndarray, velocities: np.ndarray) -> None:
        """positions (dof,) [rad], velocities (dof,) [rad/s]. Raises ValueError when something is not finite."""
        if not (np.isfinite(positions).all() and np.isfinite(velocities).all()):
            raise ValueError('set-point is not finite: nothing was sent')
        self._message.header.stamp = now.to_msg()
        self._message.position = array.array('d', positions)
        self._message.velocity = array.array('d', velocities)
        self._publisher.publish(self._message)

    def subscribers(self) -> int:
        return self._publisher.get_subscription_count()

    def close(self) -> None:
        self._node.destroy_publisher(self._publisher)
