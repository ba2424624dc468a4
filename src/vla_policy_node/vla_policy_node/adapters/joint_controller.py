"""What the adapters of joint controllers have in common: one topic, and the joints of whoever reads it."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from rclpy.node import Node
from rclpy.time import Time

from vla_core.motion.course import Course
from vla_policy_node.adapters.command_topic import CommandTopic
from vla_policy_node.adapters.controller_joints import ControllerJoints
from vla_policy_node.ros import qos


@dataclass(frozen=True)
class Target:
    """The controller that an adapter is made for."""

    topic: str  # its input
    joint_names: tuple[str, ...]  # of the robot profile, in order
    rate: float  # set-points per second
    course: Course  # the planned motion, for controllers that are sent it ahead
    node: str = ''  # name of the controller's node; empty: any that reads the topic


class JointController:
    """Sends set-points to one controller, (dof,) in the joint order of the robot profile. A subclass gives `send`."""

    message: ClassVar[type]  # of the topic
    ordered: ClassVar[bool] = True  # whether the controller goes by the order of joints, not by their names
    # Whether an arm that is let go must keep its acceleration limits: a step of set-points is a jerk of the arm.
    releases_within_acceleration: ClassVar[bool]
    # Whether the controller goes, once it is activated, to a set-point that it received while it was inactive.
    takes_while_inactive: ClassVar[bool] = False
    # Whether a message holds the motion of the next moments, so that a late control step does not delay it.
    sends_ahead: ClassVar[bool] = False

    def __init__(self, node: Node, target: Target) -> None:
        """Create the publisher. Raises ValueError when the controller cannot be driven as the target asks."""
        self.topic = CommandTopic(node, self.message, target.topic, qos.COMMAND, target.node)
        self.joints = ControllerJoints(node, self.topic, target.joint_names, ordered=self.ordered)

    def send(self, now: Time, positions: np.ndarray, velocities: np.ndarray) -> None:
        """positions [rad], velocities [rad/s] for now. Raises ValueError when something is not finite."""
        raise NotImplementedError

    def check(self, require_controller: bool) -> list[str]:
        """What speaks against activating: one sentence each, with the remedy."""
        return self.topic.problems(require_controller) + self.joints.problems()

    def close(self) -> None:
        self.joints.close()
        self.topic.close()
