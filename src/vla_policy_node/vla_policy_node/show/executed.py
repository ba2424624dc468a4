"""The way that the tool took: a bounded ring of poses."""

from collections import deque

import numpy as np
from geometry_msgs.msg import PoseStamped

from vla_core.clocks import NS, Stamps
from vla_policy_node.show.messages import pose_stamped

STEP = 0.002  # [m] the tool must have moved for another pose
MOST = 2000  # poses
LEAP = 2.0  # times the tool's top speed: no motion, but another start (a simulator's reset)


class Executed:
    """frame: of the poses. seconds: how long they are kept. tool_speed: top speed of the tool [m/s]."""

    def __init__(self, frame: str, seconds: float, tool_speed: float) -> None:
        self._frame, self._keep, self._speed = frame, int(seconds * NS), tool_speed
        self._points: deque[tuple[int, np.ndarray]] = deque(maxlen=MOST)
        self._sent = Stamps()
        self.poses: deque[PoseStamped] = deque(maxlen=MOST)  # oldest first

    def add(self, stamp: int, position: np.ndarray, rotation: np.ndarray) -> bool:
        """Where the tool is at stamp [ns]; whether the path has changed."""
        back = self._sent.take(stamp, 0) > 0
        if self._points:
            before, there = self._points[-1]
            moved, seconds = float(np.linalg.norm(position - there)), (stamp - before) / NS
            if back or moved > 0.05 + LEAP * self._speed * max(seconds, 0.0):
                self.clear()
            elif seconds < 0:
                return False  # it was overtaken
        forgotten = self._forget(stamp - self._keep)
        if self._points and float(np.linalg.norm(position - self._points[-1][1])) < STEP:
            return forgotten
        self._points.append((stamp, position))
        self.poses.append(pose_stamped(stamp, self._frame, position, rotation))
        return True

    def _forget(self, oldest: int) -> bool:
        """What is older than that [ns]; whether there was any. The newest stays: the tool is there still."""
        count = len(self._points)
        while len(self._points) > 1 and self._points[0][0] < oldest:
            self._points.popleft()
            self.poses.popleft()
        return len(self._points) < count

    def clear(self) -> None:
        self._points.clear()
        self.poses.clear()
