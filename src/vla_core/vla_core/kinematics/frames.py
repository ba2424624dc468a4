"""Poses between frames, from /tf and /tf_static: as much of tf2 as a picture needs. No ROS.

A pose is (rotation (3, 3), translation (3,) [m]) of a child in its parent: p_parent = R p_child + t.
"""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field

import numpy as np

from vla_core.clocks import Stamps
from vla_core.kinematics.ik import quaternion_matrix

Pose = tuple[np.ndarray, np.ndarray]
KEEP = 5_000_000_000  # [ns] of history


@dataclass
class _Edge:
    """A frame in its parent. fixed: each pose holds until the next one, and the first also before it."""

    parent: str
    fixed: bool
    stamps: list[int] = field(default_factory=list)  # [ns] growing
    poses: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)  # quaternion w, x, y, z, and translation
    sent: Stamps = field(default_factory=Stamps)


class FrameError(ValueError):
    """There is no such pose: one sentence, why and what to do."""


class Frames:
    """The tree of frames."""

    def __init__(self) -> None:
        self._edges: dict[str, _Edge] = {}

    def clear(self) -> None:
        self._edges.clear()

    def set_back(self) -> None:
        """Forget what moves: the clock of its times was set back. What is fixed is not sent again."""
        self._edges = {child: edge for child, edge in self._edges.items() if edge.fixed}
        for edge in self._edges.values():
            edge.stamps, edge.poses, edge.sent = edge.stamps[-1:], edge.poses[-1:], Stamps()

    def put(
        self, parent: str, child: str, stamp: int, quaternion: np.ndarray, translation: np.ndarray, fixed: bool
    ) -> None:
        """A transform as tf sends it: pose of child in parent at stamp [ns]; quaternion w, x, y, z.

        stamp of a fixed one: when it arrived, because its sender may give any time in its header.
        One that is not finite, or whose quaternion is zero, is refused with a ValueError.
        """
        parent, child = parent.lstrip('/'), child.lstrip('/')
        length = float(np.linalg.norm(quaternion))
        if not (np.isfinite(length) and np.isfinite(translation).all() and length > 1e-6):
            raise ValueError(f'the transform of {child} in {parent} on /tf is not finite, or has no rotation')
        edge = self._edges.get(child)
        if edge is None or edge.parent != parent or edge.fixed != fixed:
            edge = self._edges[child] = _Edge(parent, fixed)
        if edge.sent.take(stamp, 0):
            edge.stamps, edge.poses = [], []
        i = bisect_left(edge.stamps, stamp)
        if i < len(edge.stamps) and edge.stamps[i] == stamp:
            edge.poses[i] = quaternion / length, translation
        else:
            edge.stamps.insert(i, stamp)
            edge.poses.insert(i, (quaternion / length, translation))
        old = bisect_left(edge.stamps, edge.stamps[-1] - KEEP)
        del edge.stamps[:old], edge.poses[:old]

    def pose(self, frame: str, reference: str, time: int) -> Pose:
        """Of `frame` in `reference` at time [ns].

        Raises FrameError, also where time lies before or after what is known: a camera in the hand would be taken to be
        where it is not.
        """
        up, down = self._to_root(frame), self._to_root(reference)
        if up[-1] != down[-1]:
            raise FrameError(
                f'no transforms between {reference} and {frame}: is robot_state_publisher running, and is the '
                'camera calibrated and its frame published on /tf or /tf_static?'
            )
        common = next(name for name in up if name in down)
        a, b = self._chain(up[: up.index(common)], time), self._chain(down[: down.index(common)], time)
        return b[0].T @ a[0], b[0].T @ (a[1] - b[1])

    def _to_root(self, frame: str) -> list[str]:
        names = [frame.lstrip('/')]
        while (edge := self._edges.get(names[-1])) is not None:
            if edge.parent in names:
                raise FrameError(f'the frames {names} on /tf are parents of one another: two publishers disagree')
            names.append(edge.parent)
        return names

    def _chain(self, names: list[str], time: int) -> Pose:
        """Of the first in the parent of the last."""
        rotation, translation = np.eye(3), np.zeros(3)
        for name in names:
            r, t = self._edge_pose(name, time)
            rotation, translation = r @ rotation, r @ translation + t
        return rotation, translation

    def _edge_pose(self, name: str, time: int) -> Pose:
        edge = self._edges[name]
        if edge.fixed:
            quaternion, translation = edge.poses[max(0, bisect_right(edge.stamps, time) - 1)]
            return quaternion_matrix(quaternion), translation
        i = bisect_left(edge.stamps, time)
        if i < len(edge.stamps) and edge.stamps[i] == time:
            return quaternion_matrix(edge.poses[i][0]), edge.poses[i][1]
        if i == 0 or i == len(edge.stamps):
            off = (time - edge.stamps[min(i, len(edge.stamps) - 1)]) * 1e-9
            raise FrameError(
                f'/tf has {name} in {edge.parent} only {"until" if off > 0 else "from"} {abs(off):.2f} s '
                f'{"before" if off > 0 else "after"} the time of the image: does its sender live, and share our clock?'
            )
        (q0, t0), (q1, t1) = edge.poses[i - 1], edge.poses[i]
        s = (time - edge.stamps[i - 1]) / (edge.stamps[i] - edge.stamps[i - 1])
        quaternion = (1 - s) * q0 + s * (q1 if q0 @ q1 >= 0 else -q1)  # so close that it is as good as slerp
        return quaternion_matrix(quaternion), (1 - s) * t0 + s * t1
