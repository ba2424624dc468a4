"""What joint_trajectory_controller makes of the messages on its topic: the state that it wants the arm to be in.

Written after ros2_controllers 4.42.1, src/joint_trajectory_controller.cpp and src/trajectory.cpp, and
controller_manager 4.46.0. Only messages as our adapter sends them are understood: all joints, with velocities and
without accelerations.
"""

from typing import Any

import numpy as np

from vla_policy_node.ros.chunk_msg import to_ns


class TrajectoryFollower:
    """Times are int ns of the ROS clock, arrays (dof,) [rad] and [rad/s].

    interpolate_from_desired_state: the parameter of that name.
    """

    def __init__(self, start: np.ndarray, interpolate_from_desired_state: bool = False) -> None:
        self.q, self.v = np.array(start, float), np.zeros(len(start))  # state_desired_
        self.refused = 0
        self.fastest = self.hardest = np.zeros(len(start))  # [rad/s], [rad/s^2] of any cubic of any message
        self._from_desired = interpolate_from_desired_state
        self._new: tuple[int, np.ndarray, np.ndarray, np.ndarray] | None = None
        self._trajectory: tuple[int, np.ndarray, np.ndarray, np.ndarray] | None = None
        self._commanded = 0  # last_commanded_time_
        self._time = 0  # traj_time_
        self._before = 0, self.q, self.v  # time and state before the trajectory

    def receive(self, message: Any, now: int) -> None:
        """Take a message at `now`. It is refused as in validate_trajectory_msg in three cases.

        Its last point is due before now (l. 1714), it does not end at rest (l. 1695), or its times do not grow
        (l. 1730).
        """
        begins, points = to_ns(message.header.stamp), message.points
        times = np.array([to_ns(p.time_from_start) for p in points])
        q, v = np.array([p.positions for p in points]), np.array([p.velocities for p in points])
        ends_at_rest = (np.abs(v[-1]) <= np.finfo(np.float32).eps).all()
        if begins + times[-1] < now or not ends_at_rest or (np.diff(times) <= 0).any():
            self.refused += 1
        else:
            self._new = begins, times, q, v
            speed, acceleration = largest(times, q, v)
            self.fastest = np.maximum(self.fastest, speed)
            self.hardest = np.maximum(self.hardest, acceleration)

    def update(self, now: int, period: int) -> None:
        """Run a control cycle. period: [ns] since the one before, by a monotonic clock: controller_manager gives
        the ROS time beside it (ControllerManager::update, trigger_clock_).
        """
        if self._new is not None:
            # A new trajectory is sampled at the ROS time at once, whatever was executed (update, l. 277 to 314).
            self._trajectory, self._new = self._new, None
            self._time = now
            self._before = (self._commanded if self._from_desired else now), self.q, self.v
        else:
            self._time += period  # l. 318
        if self._trajectory is None or self._time < self._before[0]:
            return  # no valid point: nothing is commanded (trajectory.cpp, l. 143; update, l. 331)
        self.q, self.v = self._sample(*self._trajectory)
        self._commanded = now

    def _sample(self, begins: int, times: np.ndarray, q: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Trajectory::sample: before the first point from the state before, behind the last one at rest there."""
        since = self._time - begins
        if since < times[0]:
            start, before, along = self._before
            return _cubic(since - (start - begins), times[0] - (start - begins), before, along, q[0], v[0])
        k = int(np.searchsorted(times, since, side='right')) - 1
        if k == len(times) - 1:
            return q[-1], v[-1]
        return _cubic(since - times[k], times[k + 1] - times[k], q[k], v[k], q[k + 1], v[k + 1])


def largest(times: np.ndarray, q: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Largest speed and acceleration, (dof,) each, anywhere on the cubics between the points (n, dof) at `times` (n,)
    [ns].
    """
    h, rise = np.diff(times)[:, None] * 1e-9, np.diff(q, axis=0)
    begins = (6 * rise / h - 4 * v[:-1] - 2 * v[1:]) / h  # an acceleration is a straight line in between
    ends = (2 * v[:-1] + 4 * v[1:] - 6 * rise / h) / h
    with np.errstate(divide='ignore', invalid='ignore'):
        turns = np.where(begins * ends < 0, v[:-1] - begins**2 * h / (2 * (ends - begins)), 0.0)
    hardest = np.maximum(np.abs(begins), np.abs(ends)).max(axis=0, initial=0.0)
    return np.maximum(np.abs(v).max(axis=0), np.abs(turns).max(axis=0, initial=0.0)), hardest


def _cubic(since: int, span: int, q0: Any, v0: Any, q1: Any, v1: Any) -> tuple[np.ndarray, np.ndarray]:
    """interpolate_between_points with velocities and no accelerations. Times in ns."""
    t, h = since * 1e-9, span * 1e-9
    c2 = (3 * (q1 - q0) - (2 * v0 + v1) * h) / h**2
    c3 = (2 * (q0 - q1) + (v0 + v1) * h) / h**3
    return q0 + t * (v0 + t * (c2 + t * c3)), v0 + t * (2 * c2 + 3 * c3 * t)
