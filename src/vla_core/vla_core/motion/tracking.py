"""Is the arm where it was sent? A controller may follow late, but it goes where the set-points went.

A joint is compared with the range of the set-points that were in force over the `delay` before it was measured. So
neither the lag of an impedance controller that is not told velocities (damping / stiffness, 0.1 s with
crisp_controllers' gains) nor an old joint state counts as being elsewhere. A blocked joint is noticed once it is
`limit` + speed x `delay` behind, and that times the stiffness is about the torque with which the arm then pushes.

A set-point is in force until the next. While that is late, an impedance controller that was told a velocity runs on by
damping / stiffness x speed, and rests there.

Joint states in which no bit changes while the set-points go on are frozen: the driver repeats old values, or the arm is
switched off. Encoders of an arm at rest may stand still, too; so how far the set-points moved decides.
"""

from collections import deque

import numpy as np

_CONFIRMED = 2  # messages in a row must find a joint elsewhere: one alone may be a glitch
_REPEATS = 3  # messages with the same values at least, before they count as frozen
_FROZEN = 0.5  # of `limit`: how far set-points move while frozen values do not


class Tracking:
    """The set-points that were sent of late, and the joint states that came meanwhile. Arrays are (dof,) [rad]."""

    def __init__(self, delay: float, period: float, limit: float, max_age: float = 0.0) -> None:
        """delay: [s] by which the arm may be late. period: [s] between two set-points. limit: [rad] that a joint may be
        from where it was sent. max_age: [s] a joint state may be old when it comes."""
        self.frozen = False  # stays until a value changes, or the driver was restarted
        # [s] of control time, set-point, its velocity [rad/s]
        self._sent: deque[tuple[float, np.ndarray, np.ndarray]] = deque()
        self._delay, self._period, self._limit, self._max_age = delay, period, limit, max_age
        self._time = 0.0  # [s] of control time
        self._at = 0.0  # the same, when the newest joint state was measured
        self._measured: np.ndarray | None = None
        self._fresh = False
        self._elsewhere = 0  # messages in a row that found a joint elsewhere
        self._repeats = 0
        # While the same values come: the range of the set-points when they came first, and the way since.
        self._first: tuple[np.ndarray, np.ndarray] | None = None
        self._low = self._high = np.zeros(0)

    def begin(self, positions: np.ndarray) -> None:
        """The arm stands here; what was sent before counts no more."""
        self._sent.clear()
        self._sent.append((self._time, positions, np.zeros(len(positions))))
        self._repeats, self._first, self._elsewhere = 0, None, 0

    def forget(self) -> None:
        """No set-point of late counts, whatever joint states did meanwhile."""
        self.frozen, self._repeats, self._first, self._elsewhere = False, 0, None, 0
        self._sent.clear()

    def elapse(self, seconds: float) -> None:
        """Control time goes on, before the set-point of each step."""
        self._time += seconds

    def sent(self, positions: np.ndarray, velocities: np.ndarray) -> None:
        """A set-point [rad] and the velocities [rad/s] that are sent with it."""
        self._sent.append((self._time, positions, velocities))
        while len(self._sent) > 1 and self._sent[1][0] < self._time - self._delay - self._max_age - self._period:
            self._sent.popleft()
        if self._first is None:
            sent = self._between(self._time)
            self._first = sent.min(axis=0), sent.max(axis=0)
            self._low = self._high = positions
        self._low, self._high = np.minimum(self._low, positions), np.maximum(self._high, positions)

    def measured(self, positions: np.ndarray, restarted: bool, age: float = 0.0) -> None:
        """A joint state that was measured `age` [s] before the newest step of control time; below zero: behind it, the
        next step is late. restarted: none had come for long before it."""
        if restarted or self._measured is None or not np.array_equal(positions, self._measured):
            self.frozen, self._repeats, self._first = False, 0, None
        self._measured, self._fresh, self._at = positions, True, self._time - age
        self._repeats += 1

    def look(self) -> tuple[int, float] | None:
        """Joint and distance [rad] of the one that is furthest from where it was sent; None if all are there, or
        nothing new was measured. Sets `frozen`."""
        if not self._fresh or self._measured is None or not self._sent:
            return None
        self._fresh = False
        sent = self._between(self._at)
        low, high = sent.min(axis=0), sent.max(axis=0)
        if self._repeats >= _REPEATS and self._first is not None:
            # However late the arm follows within `delay`, it must have moved by so much.
            moved = max(float((low - self._first[1]).max()), float((self._first[0] - high).max()))
            self.frozen |= moved > _FROZEN * self._limit
        away = np.maximum(np.maximum(low - self._measured, self._measured - high), 0.0)
        joint = int(away.argmax())
        self._elsewhere = self._elsewhere + 1 if away[joint] > self._limit else 0
        if self._elsewhere < _CONFIRMED:
            return None
        # Something in the way leaves its trace in the last bits: what has none is not a reading to go to.
        self.frozen |= self.unmoved
        return joint, float(away[joint])

    def _between(self, at: float) -> np.ndarray:
        """(n, dof) set-points that an arm measured at this control time [s] may be at: one at least."""
        margin = self._period / 2
        begin, end = at - self._delay - margin, at + self._period + margin
        found = [self._sent[0][1]] if self._sent[0][0] > end else []
        for i, (since, q, v) in enumerate(self._sent):
            until = min(self._sent[i + 1][0] if i + 1 < len(self._sent) else end, end)
            if since > end or until < begin:
                continue
            found.append(q)
            if until - since > 2 * self._period + margin:
                found.append(q + v * min(until - since, self._delay))
        return np.array(found)

    @property
    def unmoved(self) -> bool:
        """Whether the same values came while set-points went far. An arm that follows late may not have moved yet."""
        if self._repeats < _REPEATS or self._first is None:
            return False
        return float((self._high - self._low).max()) > _FROZEN * self._limit
