"""forward_command_controller (position interface): a Float64MultiArray on `<controller>/commands`.

The controller hands each message to the hardware as it is, in the order of its own joints, and holds the last one for
ever. It neither interpolates nor limits: set-points must come at 100 Hz at least, and be limited already.
"""

import array
from typing import ClassVar

import numpy as np
from rclpy.node import Node
from rclpy.time import Time
from std_msgs.msg import Float64MultiArray

from vla_policy_node.adapters.command_topic import CommandTopic, check_finite
from vla_policy_node.adapters.controller_joints import ControllerJoints
from vla_policy_node.ros import qos

SLOWEST = 100.0  # [Hz] below, the steps between two set-points become jerks of the arm


class ForwardCommandController:
    """Publishes positions in the joint order of the robot profile, which must be that of the controller.

    rate: set-points per second. Raises ValueError when that is below what this controller needs.
    """

    releases_within_acceleration: ClassVar[bool] = True
    takes_while_inactive: ClassVar[bool] = False

    def __init__(
        self, node: Node, topic: str, joint_names: tuple[str, ...], rate: float, controller_node: str = ''
    ) -> None:
        if rate < SLOWEST - 1e-6:  # the node keeps the period, not the rate
            raise ValueError(
                f'rate is {rate:g}: a forward_command controller does not interpolate and needs {SLOWEST:g} or more'
            )
        self.topic = CommandTopic(node, Float64MultiArray, topic, qos.COMMAND, controller_node)
        self.joints = ControllerJoints(node, self.topic, joint_names, ordered=True)

    def send(self, now: Time, positions: np.ndarray, velocities: np.ndarray) -> None:
        """positions (dof,) [rad]; velocities are only checked. Raises ValueError when something is not finite."""
        check_finite(positions, velocities)
        self.topic.publish(Float64MultiArray(data=array.array('d', positions)))

    def check(self, require_controller: bool) -> list[str]:
        """What speaks against activating: one sentence each."""
        return self.topic.problems(require_controller) + self.joints.problems()

    def close(self) -> None:
        self.joints.close()
        self.topic.close()
