"""Tracking: whether the measured arm follows its set-points. A controller may lag, but on the path of the set-points.

A joint is compared with the range of the set-points that were in force over the `delay` before it was measured. So
neither the lag of an impedance controller nor the age of a joint state counts as a deviation. Without velocity
set-points this lag is damping / stiffness, 0.1 s with crisp_controllers' gains. A blocked joint is detected when it is
`limit` + speed x `delay` behind. This distance times the stiffness is about the torque with which the arm then pushes.

A set-point is in force until the next. While the next one is late, an impedance controller with a velocity set-point
moves on by damping / stiffness x speed, and rests there.

Joint states are frozen if no bit of them changes while the set-points move: the driver repeats old values, or the arm
is switched off. Encoders of an arm at rest may not change either, so the distance of the set-points decides.
"""

from collections import deque

import numpy as np

_CONFIRMED = 2  # messages in a row that must show a deviation: a single one may be a glitch
_REPEATS = 3  # messages with equal values after which they may count as frozen
_FROZEN = 0.5  # of `limit`: distance of set-points during equal values, above which these are frozen


class Tracking:
    """Compares recent set-points with the joint states. Arrays are (dof,) [rad]."""

    def __init__(self, delay: float, period: float, limit: float, max_age: float = 0.0) -> None:
        """delay: [s] largest lag of the arm. period: [s] between two set-points. limit: [rad] largest deviation.

        max_age: [s] largest age of a joint state at its arrival.
        """
        self.frozen = False  # until a value changes, or the driver is restarted
        # [s] of control time, set-point, its velocity [rad/s]
        self._sent: deque[tuple[float, np.ndarray, np.ndarray]] = deque()
        self._delay, self._period, self._limit, self._max_age = delay, period, limit, max_age
        self._time = 0.0  # [s] of control time
        self._at = 0.0  # the same, at the time of the newest joint state
        self._measured: np.ndarray | None = None
        self._fresh = False
        self._deviations = 0  # messages in a row with a deviation
        self._repeats = 0
        # While joint states are equal: the range of the set-points at the first of them, and the range since.
        self._first: tuple[np.ndarray, np.ndarray] | None = None
        self._low = self._high = np.zeros(0)

    def begin(self, positions: np.ndarray) -> None:
        """Restart at rest at positions (dof,) [rad]: earlier set-points are forgotten."""
        self._sent.clear()
        self._sent.append((self._time, positions, np.zeros(len(positions))))
        self._repeats, self._first, self._deviations = 0, None, 0

    def forget(self) -> None:
        """Forget all set-points, whatever the joint states were meanwhile."""
        self.frozen, self._repeats, self._first, self._deviations = False, 0, None, 0
        self._sent.clear()

    def elapse(self, seconds: float) -> None:
        """Advance control time by `seconds`, before the set-point of each step."""
        self._time += seconds

    def sent(self, positions: np.ndarray, velocities: np.ndarray) -> None:
        """Record a set-point [rad] and the velocities [rad/s] that are sent with it."""
        self._sent.append((self._time, positions, velocities))
        while len(self._sent) > 1 and self._sent[1][0] < self._time - self._delay - self._max_age - self._period:
            self._sent.popleft()
        if self._first is None:
            sent = self._between(self._time)
            self._first = sent.min(axis=0), sent.max(axis=0)
            self._low = self._high = positions
        self._low, self._high = np.minimum(self._low, positions), np.maximum(self._high, positions)

    def measured(self, positions: np.ndarray, restarted: bool, age: float = 0.0) -> None:
        """Record a joint state that was measured `age` [s] before the newest control step.

        A negative age is a time after it, because the next step is late. restarted: it is the first one after a long
        gap.
        """
        if restarted or self._measured is None or not np.array_equal(positions, self._measured):
            self.frozen, self._repeats, self._first = False, 0, None
        self._measured, self._fresh, self._at = positions, True, self._time - age
        self._repeats += 1

    def check(self) -> tuple[int, float] | None:
        """Return index and deviation [rad] of the joint that deviates most; None if none does.

        None, too, without a new joint state. Sets `frozen`.
        """
        if not self._fresh or self._measured is None or not self._sent:
            return None
        self._fresh = False
        sent = self._between(self._at)
        low, high = sent.min(axis=0), sent.max(axis=0)
        if self._repeats >= _REPEATS and self._first is not None:
            # Even an arm that lags by `delay` must have moved by this much.
            moved = max(float((low - self._first[1]).max()), float((self._first[0] - high).max()))
            self.frozen |= moved > _FROZEN * self._limit
        away = np.maximum(np.maximum(low - self._measured, self._measured - high), 0.0)
        joint = int(away.argmax())
        self._deviations = self._deviations + 1 if away[joint] > self._limit else 0
        if self._deviations < _CONFIRMED:
            return None
        # Values of an arm that is blocked still change in the last bits. Equal ones are no position to release to.
        self.frozen |= self.unmoved
        return joint, float(away[joint])

    def _between(self, at: float) -> np.ndarray:
        """Return set-points (n, dof), n >= 1, at which an arm measured at this control time [s] may be."""
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
        """Whether joint states were equal while set-points moved far. An arm that lags may not have moved yet."""
        if self._repeats < _REPEATS or self._first is None:
            return False
        return float((self._high - self._low).max()) > _FROZEN * self._limit
