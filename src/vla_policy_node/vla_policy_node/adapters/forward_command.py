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

from vla_policy_node.adapters.command_topic import check_finite
from vla_policy_node.adapters.joint_controller import JointController, Target

SLOWEST = 100.0  # [Hz] below, the steps between two set-points become jerks of the arm


class ForwardCommandController(JointController):
    """Publishes positions in the joint order of the robot profile, which must be that of the controller.

    Raises ValueError when the rate is below what this controller needs.
    """

    message: ClassVar[type] = Float64MultiArray
    releases_within_acceleration: ClassVar[bool] = True

    def __init__(self, node: Node, target: Target) -> None:
        if target.rate < SLOWEST - 1e-6:  # the node keeps the period, not the rate
            raise ValueError(
                f'rate is {target.rate:g}: a forward_command controller does not interpolate and needs {SLOWEST:g} or '
                'more'
            )
        super().__init__(node, target)

    def send(self, now: Time, positions: np.ndarray, velocities: np.ndarray) -> None:
        """positions (dof,) [rad]; velocities are only checked. Raises ValueError when something is not finite."""
        check_finite(positions, velocities)
        self.topic.publish(Float64MultiArray(data=array.array('d', positions)))
