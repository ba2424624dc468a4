"""Looks ahead along a motion, a few configurations at a time, so that the arm can always stop before what is in its
way."""

from typing import TYPE_CHECKING

import numpy as np

from vla_core.motion.states import Hold

if TYPE_CHECKING:  # a collision monitor loads Pinocchio
    from vla_core.kinematics.collision_monitor import CollisionMonitor

_LOOKS = 2  # configurations per control step
_MOST = 100  # when it must
_SLACK = 5e-4  # [m] a pair that is too close where the motion begins may not get this much closer


class Clearance:
    """How far one motion has been looked at. It is free where every pair keeps its margin. Pairs that are closer where
    it begins must get no closer, until they are apart.

    What is d further away than its margin stays so until some point of the arm has moved by d: that is how far the
    next look is away, at least the collision monitor's resolution.
    """

    def __init__(self, monitor: 'CollisionMonitor', q: np.ndarray, ends: np.ndarray, ahead: int) -> None:
        """q: (n, dof) [rad] the motion; ends: (n,) row where a brake from each row ends; ahead: rows that the motion
        may go on until the next question."""
        self.version = monitor.version
        self.free_to = 0  # the motion is free up to this row
        self.blocked: tuple[Hold, str] | None = None  # what is in the way at the next one that was looked at
        self._monitor, self._q, self._ends, self._ahead = monitor, q, ends, ahead
        self._ways = monitor.ways(q)
        distances = monitor.distances(q[0])
        self._floors = np.minimum(monitor.margins, distances - _SLACK)
        self._reach_on(float((distances - monitor.margins).min(initial=np.inf)))

    def safe(self, row: int) -> bool:
        """Whether the arm can still stop in the free part if it goes on from this row until the next question."""
        needed = self._ends[min(row + self._ahead, len(self._ends) - 1)]
        for n in range(_MOST):
            if self._done or (n >= _LOOKS and self.free_to >= needed):
                break
            self._look()
        return bool(self.free_to >= needed)

    def safe_until(self, row: int, most: int) -> int:
        """The last row from `row` to `most` that the arm can go on to and still stop in the free part."""
        if self.safe(most):
            return most
        return max(row, int(np.searchsorted(self._ends[: most + 1], self.free_to, side='right')) - 1)

    def all_free(self) -> bool:
        """Whether all of the motion is free; looks at all of it, which may take some 10 ms."""
        while not self._done:
            self._look()
        return self.blocked is None

    @property
    def reason(self) -> tuple[Hold, str]:
        """Why it is not safe."""
        return self.blocked or (Hold.COLLISION_AHEAD, 'the way ahead is too close to something to be checked in time')

    # ---- inside

    @property
    def _done(self) -> bool:
        return self.blocked is not None or self.free_to == len(self._q) - 1

    def _look(self) -> None:
        monitor, q = self._monitor, self._q[self._next]
        distances = monitor.distances(q)
        room = distances - self._floors
        if (room < 0).any():
            pair = int(room.argmin())
            first, second, hold = monitor.names(pair)
            self.blocked = (
                hold,
                (
                    f'the path brings {first} to {1000 * distances[pair]:.0f} mm from {second}, required are '
                    f'{1000 * monitor.margins[pair]:.0f} mm, at joint positions '
                    f'[{", ".join(f"{x:.3f}" for x in q)}] rad'
                ),
            )
            return
        self._floors = np.minimum(monitor.margins, np.maximum(self._floors, distances - _SLACK))
        self.free_to = self._next
        self._reach_on(float(room.min(initial=np.inf)))

    def _reach_on(self, free: float) -> None:
        """From the row looked at last, which is `free` [m] from what is not allowed."""
        here, last = self._ways[self.free_to], len(self._q) - 1
        step = here + max(free, self._monitor.config.resolution)
        self.free_to = max(self.free_to, min(int(np.searchsorted(self._ways, here + free, side='right')) - 1, last))
        furthest = int(np.searchsorted(self._ways, step, side='right')) - 1
        self._next = min(max(furthest, self.free_to + 1), last)
