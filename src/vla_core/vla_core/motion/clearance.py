"""Clearance: checks a motion for collisions, a few configurations at a time, ahead of the arm's stopping distance."""

from typing import TYPE_CHECKING

import numpy as np

from vla_core.motion.states import Hold

if TYPE_CHECKING:  # a collision monitor loads Pinocchio
    from vla_core.kinematics.collision_monitor import CollisionMonitor

_CHECKS = 2  # configurations per control step
_MAX_CHECKS = 100  # the same, while the arm could not stop in the free part
_SLACK = 5e-4  # [m] a pair that is too close at the start may get closer by less than this


class Clearance:
    """The part of one motion that was checked. It is free where every pair of bodies keeps its margin.

    Pairs that are closer at the start must get no closer until they keep it. A pair that is d further apart than its
    margin stays free until some point of the arm has moved by d. So the next check is this far ahead, or by the
    collision monitor's resolution if that is more.
    """

    def __init__(self, monitor: 'CollisionMonitor', q: np.ndarray, ends: np.ndarray, ahead: int) -> None:
        """q: (n, dof) [rad] the motion. ends: (n,) rows where a brake from each row ends. ahead: rows between calls."""
        self.version = monitor.version
        self.free_to = 0  # the motion is free up to this row
        self.blocked: tuple[Hold, str] | None = None  # the obstacle at the next row that was checked
        self._monitor, self._q, self._ends, self._ahead = monitor, q, ends, ahead
        self._travel = monitor.travel(q)
        distances = monitor.distances(q[0])
        self._floors = np.minimum(monitor.margins, distances - _SLACK)
        self._advance(float((distances - monitor.margins).min(initial=np.inf)))

    def safe(self, row: int) -> bool:
        """Return whether the arm can still stop in the free part if it continues until the next call."""
        needed = self._ends[min(row + self._ahead, len(self._ends) - 1)]
        for n in range(_MAX_CHECKS):
            if self._done or (n >= _CHECKS and self.free_to >= needed):
                break
            self._check_next()
        return bool(self.free_to >= needed)

    def safe_until(self, row: int, most: int) -> int:
        """Return the last row from `row` to `most` from which the arm can still stop in the free part."""
        if self.safe(most):
            return most
        return max(row, int(np.searchsorted(self._ends[: most + 1], self.free_to, side='right')) - 1)

    def all_free(self) -> bool:
        """Check the whole motion, which may take some 10 ms, and return whether it is free."""
        while not self._done:
            self._check_next()
        return self.blocked is None

    @property
    def reason(self) -> tuple[Hold, str]:
        """Hold and sentence why the motion is not safe."""
        return self.blocked or (
            Hold.COLLISION_AHEAD,
            'the path ahead is too close to an obstacle to be checked in time',
        )

    # ---- inside

    @property
    def _done(self) -> bool:
        return self.blocked is not None or self.free_to == len(self._q) - 1

    def _check_next(self) -> None:
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
        self._advance(float(room.min(initial=np.inf)))

    def _advance(self, free: float) -> None:
        """Set the next row to check, from the one checked last, whose distance to its margins is `free` [m]."""
        here, last = self._travel[self.free_to], len(self._q) - 1
        step = here + max(free, self._monitor.config.resolution)
        self.free_to = max(self.free_to, min(int(np.searchsorted(self._travel, here + free, side='right')) - 1, last))
        furthest = int(np.searchsorted(self._travel, step, side='right')) - 1
        self._next = min(max(furthest, self.free_to + 1), last)
