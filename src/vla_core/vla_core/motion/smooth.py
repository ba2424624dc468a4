"""The trajectory buffer: from the planned motion to set-points, by a moving average and a spline through it.

Finite-impulse-response smoothing of trajectories after Biagiotti and Melchiorri ("FIR filters for online trajectory
planning with time- and frequency-domain specifications", 2012). The planned motion, continuous in velocity, is sampled
every GRID [s]. Its average over the last T [s] gives the control points of a uniform cubic B-spline, which is sent.

An average never leaves the range of its values. The spline's derivatives never leave the range of the differences of
its control points. So position, velocity and acceleration keep the limits of the planned motion, whatever the motion
before, and jerk stays below 2 acceleration / T. The path is cut short by at most acceleration (T^2 / 24 + GRID^2 / 6).
"""

import math
from dataclasses import dataclass, fields

import numpy as np

GRID = 0.002  # [s]
_BEND = 4 / 27  # see TrajectoryBuffer.points


@dataclass(frozen=True)
class Motion:
    """A planned motion, one row every GRID [s]."""

    q: np.ndarray  # (n, dof) [rad]
    v: np.ndarray  # (n, dof) [rad/s]
    a: np.ndarray  # (n, dof) [rad/s^2]
    s: np.ndarray  # (n,) [s] path time

    def rows(self, start: int, stop: int | None = None) -> 'Motion':
        """Return the rows from start up to stop, without it; None: up to the last."""
        return Motion(*(getattr(self, f.name)[start:stop] for f in fields(self)))

    def then(self, other: 'Motion') -> 'Motion':
        """Return this motion, continued by the other one."""
        return Motion(*(np.concatenate([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)))

    def rest(self, n: int) -> 'Motion':
        """Return n rows at rest at the end of this motion."""
        still = np.zeros((n, self.q.shape[1]))
        return Motion(np.tile(self.q[-1], (n, 1)), still, still, np.full(n, self.s[-1]))


def averaging_rows(time: float, braking: np.ndarray, jerk: np.ndarray) -> int:
    """Return how many rows to average: `time` [s] or more.

    There are enough that a step from braking (dof,), the largest acceleration, to its opposite keeps 90 % of the jerk
    limit (dof,).
    """
    longest = max(time, float((2 * braking / (0.9 * jerk)).max()))
    return max(1, math.ceil(longest / GRID - 1e-9))


class TrajectoryBuffer:
    """Buffer of the planned motion, which is averaged into set-points.

    `head` is the newest row that the set-points sent so far depend on. Rows up to it are final, later ones can be
    replaced. Set-points lag behind the head by `lag` [s].
    """

    def __init__(self, width: int) -> None:
        """width: rows to average."""
        self._width = width
        self._past = width + 2  # rows before the head that set-points depend on
        self.lag = (2 + (width - 1) / 2) * GRID
        self._time = 0.0  # [s] since the first row
        self.ends = 0  # row at which the planned motion comes to rest

    def hold(self, q: np.ndarray) -> None:
        """Replace the motion by rest at q (dof,) [rad], without a motion to it."""
        q = np.asarray(q, float)[None]
        zero = np.zeros_like(q)
        self._set(Motion(q, zero, zero, np.zeros(1)).rest(self._past + 1), 0, 0.0)

    def with_history(self, motion: Motion) -> tuple[np.ndarray, int]:
        """Return the control points (n, dof) with this motion from the head on, and how many depend on rows before it.

        The first points are final ones, so that differences over the head are among them.
        """
        return self._averages(self._joined(motion).q)[self._past - 3 :], self._width + 3

    def follow(self, motion: Motion) -> None:
        """Replace the rows after the head by this motion, whose first row is the head."""
        since = self._time - self.head * GRID
        self._set(self._joined(motion), self._past + len(motion.q) - 1, since)

    def advance(self, dt: float) -> None:
        """Advance the time by dt [s], to the last row at most."""
        self._time = min(self._time + dt, (len(self.motion.q) - 1) * GRID)

    @property
    def head(self) -> int:
        """Index of the newest row that is due."""
        return min(
            int(self._time / GRID + 1e-6), len(self.motion.q) - 1
        )  # a row that is due now must not be rounded down

    @property
    def since_head(self) -> float:
        """Time since the head was due [s]."""
        return self._time - self.head * GRID

    @property
    def finished(self) -> bool:
        """Whether all further set-points are the last row."""
        return self.head >= self.ends + self._past

    @property
    def duration(self) -> float:
        """Time from now until all further set-points are the last row [s]."""
        return max(0.0, (self.ends + self._past) * GRID - self._time)

    def sample(self, ahead: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return positions [rad] and velocities [rad/s], each (n, dof), of set-points `ahead` (n,) [s] from now."""
        at = (self._time + ahead) / GRID
        k = np.minimum(at.astype(int), len(self.motion.q) - 1)
        u = np.minimum(at - k, 1.0)
        near = self._sent[k[:, None] + _AROUND]  # (n, 4, dof)
        powers = np.stack([np.ones_like(u), u, u * u, u * u * u], axis=-1)[:, None, :]
        return (powers @ _SPLINE @ near)[:, 0], (powers[..., :3] @ _SLOPE @ near)[:, 0]

    def points(self, longest: float, near: np.ndarray) -> np.ndarray:
        """Return times (n,) [s] from now until rest at which `sample` gives the points of piecewise cubics.

        The accelerations of these cubics and of `sample` differ by at most `near` (dof,) [rad/s^2]. longest: [s]
        between two times. Between two rows `sample` is a cubic itself. A cubic over several rows differs in its
        acceleration by at most the change of jerk over them, times 4/27 of their duration. So where jerk changes, each
        row is a point.
        """
        first, last, most = self.head + 1, self.ends + self._past, max(1, round(longest / GRID))
        if first >= last:
            return np.append(0.0, np.arange(first, last + 1) * GRID - self._time)
        jerk = np.diff(self._sent[first - 3 : last], 3, axis=0) / GRID**3  # from each row to the next
        begins = np.arange(0, last - first, most)
        change = np.maximum.reduceat(jerk, begins) - np.minimum.reduceat(jerk, begins)
        bends = (_BEND * most * GRID * change > near).any(axis=1)
        rows = np.flatnonzero(np.repeat(bends, most)[: last - first] | (np.arange(last - first) % most == 0))
        return np.concatenate([[0.0], np.append(first + rows, last) * GRID - self._time])

    # ---- inside

    def _joined(self, motion: Motion) -> Motion:
        head = self.head
        return self.motion.rows(head - self._past, head).then(motion).then(motion.rest(self._past + 1))

    def _set(self, motion: Motion, ends: int, since: float) -> None:
        self.motion, self.ends = motion, ends
        self._sent = self._averages(motion.q)
        self._time = self._past * GRID + since

    def _averages(self, q: np.ndarray) -> np.ndarray:
        """Return the mean (n, dof) of each row and the width - 1 before it; the first row counts for missing ones."""
        early = np.broadcast_to(q[0], (self._width - 1, q.shape[1]))
        return np.lib.stride_tricks.sliding_window_view(np.concatenate([early, q]), self._width, axis=0).mean(axis=-1)


_AROUND = np.array([-3, -2, -1, 0])
# Uniform cubic B-spline and its derivative: rows are powers of u, columns the control points.
_SPLINE = np.array([[1, 4, 1, 0], [-3, 0, 3, 0], [3, -6, 3, 0], [-1, 3, -3, 1]]) / 6
_SLOPE = np.array([[1.0], [2.0], [3.0]]) * _SPLINE[1:] / GRID
