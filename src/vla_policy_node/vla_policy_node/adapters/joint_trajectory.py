"""joint_trajectory_controller's topic input: a JointTrajectory on `<controller>/joint_trajectory`.

A new trajectory replaces the one before, so each says all that is known: the plan for the next moments, and behind it
a brake to rest along the plan's own path. When no further one comes (the executor died, the network is gone), the
controller runs into that brake. Stamped, so that a late message is executed where it is due, not shifted; positions
and velocities, which makes the controller interpolate with cubics.
"""

import array
from collections.abc import Callable
from typing import ClassVar

import numpy as np
from rclpy.node import Node
from rclpy.time import Time
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from vla_policy_node.adapters.command_topic import CommandTopic, check_finite
from vla_policy_node.adapters.controller_joints import ControllerJoints
from vla_policy_node.ros import qos
from vla_policy_node.ros.chunk_msg import to_duration

# (n,) times from now [s] -> positions [rad] and velocities [rad/s], (n, dof) each, as planned now.
Preview = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

EVERY = 0.05  # [s] between two messages
LEAD = 0.2  # [s] of plan before the brake: three messages may be lost without a trace
SPACING = 0.02  # [s] between points


def with_brake(preview: Preview, deceleration: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """times (n,) [s] from now, positions (n, dof) [rad] and velocities (n, dof) [rad/s]; the last are at rest.

    The plan up to LEAD, then the same path run slower and slower: path time falls smoothly from its rate 1 to 0 within
    a time that adds at most `deceleration` (dof,) [rad/s^2] to what the plan itself asks for.
    """
    lead = np.arange(1, round(LEAD / SPACING) + 1) * SPACING
    positions, velocities = preview(lead)
    _, ahead = preview(LEAD + lead)
    fastest = np.abs(np.vstack([velocities[-1:], ahead])).max(axis=0)
    # The rate 1 - u^2 (3 - 2 u) falls by 1.5 / duration at most, in the middle.
    duration = 1.5 * float((fastest / deceleration).max())
    if duration < 1e-3:
        return lead, positions, np.vstack([velocities[:-1], np.zeros_like(velocities[:1])])
    u = np.linspace(0.0, 1.0, max(2, round(duration / SPACING) + 1))[1:]
    slowed, unslowed = preview(LEAD + duration * (u - u**3 + u**4 / 2))
    rates = (1 - u * u * (3 - 2 * u))[:, None]
    return (
        np.concatenate([lead, LEAD + duration * u]),
        np.vstack([positions, slowed]),
        np.vstack([velocities, unslowed * rates]),
    )


class JointTrajectoryController:
    """Publishes stamped trajectories for joint_trajectory_controller every 50 ms, and at once when the plan changes.

    preview: what is planned. plan: a number that changes with it. deceleration: (dof,) [rad/s^2] of the brake behind.
    """

    releases_within_acceleration: ClassVar[bool] = True
    takes_while_inactive: ClassVar[bool] = False

    def __init__(
        self,
        node: Node,
        topic: str,
        joint_names: tuple[str, ...],
        preview: Preview,
        plan: Callable[[], int],
        deceleration: np.ndarray,
        controller_node: str = '',
    ) -> None:
        self.topic = CommandTopic(node, JointTrajectory, topic, qos.COMMAND, controller_node)
        self.joints = ControllerJoints(node, self.topic, joint_names, ordered=False)
        self._names, self._preview, self._deceleration = list(joint_names), preview, deceleration
        self._plan, self._sent_plan = plan, -1
        self._sent = Time(clock_type=node.get_clock().clock_type)

    def send(self, now: Time, positions: np.ndarray, velocities: np.ndarray) -> None:
        """The set-point for now, (dof,) [rad] and [rad/s]: only checked, the plan from now on is sent when it is due.

        Raises ValueError when something is not finite.
        """
        check_finite(positions, velocities)
        plan = self._plan()
        if plan == self._sent_plan and 0 <= (now - self._sent).nanoseconds < 0.99 * EVERY * 1e9:
            return
        self._sent, self._sent_plan = now, plan
        times, q, v = with_brake(self._preview, self._deceleration)
        check_finite(q, v)
        message = JointTrajectory(joint_names=self._names)
        message.header.stamp = now.to_msg()
        message.points = [
            JointTrajectoryPoint(
                positions=array.array('d', qi), velocities=array.array('d', vi), time_from_start=to_duration(float(t))
            )
            for t, qi, vi in zip(times, q, v, strict=True)
        ]
        self.topic.publish(message)

    def check(self, require_controller: bool) -> list[str]:
        """What speaks against activating: one sentence each."""
        return self.topic.problems(require_controller) + self.joints.problems()

    def close(self) -> None:
        self.joints.close()
        self.topic.close()
