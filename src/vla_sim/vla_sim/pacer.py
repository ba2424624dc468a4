"""Keeps simulation time at a factor of wall time, and measures the achieved factor. No ROS, no MuJoCo."""

import time
from collections.abc import Callable
from typing import TypeAlias

Clock: TypeAlias = Callable[[], float]
Sleep: TypeAlias = Callable[[float], None]

_PATIENCE = 0.1  # [s] largest delay in wall time that is made up for


class Pacer:
    """Paces physics: call `wait` after each batch. `factor` may change at any time; 0 is as fast as possible."""

    def __init__(self, factor: float, clock: Clock = time.monotonic, sleep: Sleep = time.sleep) -> None:
        self.factor = factor
        self._clock, self._sleep = clock, sleep
        self._due = self._window_start = clock()
        self._simulated = 0.0

    def wait(self, simulated: float) -> None:
        """Sleep until wall time reaches that of `simulated` [s] more of simulation."""
        now = self._clock()
        self._simulated += simulated
        factor = self.factor
        if factor <= 0:
            self._due = now
            return
        self._due += simulated / factor
        if self._due > now:
            self._sleep(self._due - now)
        elif now - self._due > _PATIENCE:
            self._due = now

    def restart(self) -> None:
        """Discard the time since the last `wait`, in which the simulation was meant to pause."""
        gap = self._clock() - self._due
        self._due += gap
        self._window_start += max(gap, 0.0)

    def achieved(self, window: float = 10.0) -> float | None:
        """Return simulated seconds per second, once per `window` [s] of wall time; None in between."""
        elapsed = self._clock() - self._window_start
        if elapsed < window:
            return None
        factor, self._window_start, self._simulated = self._simulated / elapsed, self._clock(), 0.0
        return factor
