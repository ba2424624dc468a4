"""joint_trajectory_controller's topic input: a JointTrajectory on `<controller>/joint_trajectory`.

A new trajectory replaces the one before, so each holds all that is known: the plan for the next moments, and behind it
a brake to rest along the plan's own path. When no further one comes (the executor died, the network is gone), the
controller runs into that brake. Stamped, so that a late message is executed where it is due, not shifted; positions
and velocities, which makes the controller interpolate with cubics: the points are as close to each other as these need
to be what was planned, see TrajectoryBuffer.points.

What was sent is a promise: the course continues from there, however late the next control step comes (see course.py).
The first point is due at the stamp, so the controller never fills in a piece of its own before it.
"""

import array
from typing import ClassVar

import numpy as np
from rclpy.node import Node
from rclpy.time import Time
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from vla_core.motion.course import Promise
from vla_policy_node.adapters.command_topic import check_finite
from vla_policy_node.adapters.joint_controller import JointController, Target
from vla_policy_node.ros.chunk_msg import to_duration

EVERY = 0.05  # [s] between two messages
LEAD = 0.2  # [s] of plan before the brake: three messages may be lost without a trace
SPACING = 0.01  # [s] between two points at most
_APART = 1e-6  # [s] and at least: closer, the last bits of the positions would be accelerations


def points(promise: Promise) -> list[JointTrajectoryPoint]:
    """What is promised, from now until it is at rest, and for LEAD at least: a trajectory that ends before it arrives
    would be refused."""
    times = np.round(promise.points(SPACING), 9)  # as the message has them
    times = times[np.diff(times, prepend=-1.0) > _APART]
    if times[-1] < LEAD:
        times = np.append(times, LEAD)
    q, v = promise.sample(times)
    v[-1] = 0.0
    check_finite(q, v)
    return [
        JointTrajectoryPoint(
            positions=array.array('d', qi), velocities=array.array('d', vi), time_from_start=to_duration(t)
        )
        for t, qi, vi in zip(times.tolist(), q.tolist(), v.tolist(), strict=True)
    ]


class JointTrajectoryController(JointController):
    """Publishes stamped trajectories for joint_trajectory_controller every 50 ms, and at once when the plan changes.

    The course of the target is what is planned; it keeps to what was sent.
    """

    message: ClassVar[type] = JointTrajectory
    ordered: ClassVar[bool] = False  # it goes by the names
    releases_within_acceleration: ClassVar[bool] = True
    sends_ahead: ClassVar[bool] = True

    def __init__(self, node: Node, target: Target) -> None:
        super().__init__(node, target)
        self._names, self._course, self._clock = list(target.joint_names), target.course, node.get_clock()
        self._sent, self._sent_plan = Time(clock_type=self._clock.clock_type), -1

    def send(self, now: Time, positions: np.ndarray, velocities: np.ndarray) -> None:
        """The set-point for now, (dof,) [rad] and [rad/s]: only checked, the plan from now on is sent when it is due.

        Raises ValueError when something is not finite.
        """
        check_finite(positions, velocities)
        course = self._course
        new = course.plan != self._sent_plan
        if not new and 0 <= (now - self._sent).nanoseconds < 0.99 * EVERY * 1e9:
            return
        promise = course.promise(LEAD)
        message = JointTrajectory(joint_names=self._names, points=points(promise))
        ready, waited = self._clock.now(), 0.0
        late = (ready - now).nanoseconds * 1e-9
        if not course.in_time(late):
            if not course.may_wait:
                return
            now, waited = ready, late
        message.header.stamp = now.to_msg()
        self.topic.publish(message)
        course.sent(promise, waited)
        self._sent, self._sent_plan = now, course.plan
