"""Lets physics wait for the source of set-points. No ROS, no MuJoCo.

On a loaded machine a set-point may be a fraction of a second late. Without the wait the arm would leave its path, which
looks like a collision. The controller of a robot receives its set-points in time. Here load makes the simulation slower
and not wrong.
"""

import threading
import time
from collections import deque

_SLACK = 20_000_000  # [ns] of simulation by which a set-point may be late, beyond the usual interval
_LONGEST = 100_000_000  # [ns] largest interval of a steady stream of set-points, for which physics waits
_REGULAR = 10  # number of set-points before physics waits
PATIENCE = 0.5  # [s] of wall time, after which a silent source has ended


class Commander:
    """Tracks the stream of set-points. Stamps are simulation time [ns]. One thread calls `sent`, another one `wait`."""

    def __init__(self, patience: float = PATIENCE) -> None:
        """patience: longest duration of `wait` in wall time [s]."""
        self.waited = 0.0  # [s] of wall time, until the reader sets it back
        self._patience = patience
        self._came = threading.Condition()
        self._newest = self._until = 0  # stamp of the newest set-point; the time to which physics may run [ns]
        self._intervals: deque[int] = deque(maxlen=_REGULAR)  # [ns] between the newest, whose stamps fit

    def sent(self, stamp: int, now: int) -> None:
        """Record a set-point with this stamp, received at `now` [ns]. A stamp of another clock ends the waiting."""
        with self._came:
            interval = stamp - self._newest
            if not 0 <= interval <= _LONGEST or stamp > now:
                self._intervals.clear()
            elif interval > 0:
                self._intervals.append(interval)
                self._until = stamp + min(self._intervals) + _SLACK
            self._newest = stamp
            self._came.notify()

    def wait(self, now: int) -> bool:
        """Wait until physics may continue from `now` [ns]. Return False when the source is silent and has ended."""
        with self._came:
            if self._may_go_on(now):
                return True
            began = time.monotonic()
            came = self._came.wait_for(lambda: self._may_go_on(now), self._patience)
            self.waited += time.monotonic() - began
            if not came:
                self._intervals.clear()
            return came

    def _may_go_on(self, now: int) -> bool:
        return len(self._intervals) < _REGULAR or now <= self._until
