"""Keeps simulated time from running away from who sends the set-points. No ROS, no MuJoCo.

On a loaded machine a set-point comes a fraction of a second late. Meanwhile the arm would stand behind its path, or run
on with the last velocity, and both look like something in its way. The controller of a robot has its set-points in
time. So physics waits for them, and load makes the simulation slower instead of wrong.
"""

import threading
import time
from collections import deque

_SLACK = 20_000_000  # [ns] of simulated time that a set-point may be late by, beyond the interval between two
_LONGEST = 100_000_000  # [ns] between two set-points; with more there is no steady stream that could be waited for
_REGULAR = 10  # set-points in a row, before they are waited for
PATIENCE = 0.5  # [s] of wall time; a sender that is silent for longer has ended


class Commander:
    """Stamps are simulated time [ns]. One thread calls `sent`, the other `wait`."""

    def __init__(self, patience: float = PATIENCE) -> None:
        """patience: [s] of wall time that `wait` takes at most."""
        self.waited = 0.0  # [s] of wall time, until the reader sets it back
        self._patience = patience
        self._came = threading.Condition()
        self._newest = self._until = 0  # stamp of the newest set-point; the time to which physics may run [ns]
        self._intervals: deque[int] = deque(maxlen=_REGULAR)  # [ns] between the newest, whose stamps fit

    def sent(self, stamp: int, now: int) -> None:
        """A set-point with this stamp came at `now`. Stamps of another clock, or none, are not waited for."""
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
        """Wait until physics may go on from `now`. False: the sender is silent, and is waited for no more."""
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
