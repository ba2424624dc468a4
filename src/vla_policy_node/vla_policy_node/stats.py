"""Running statistics over the newest values: percentiles and a rate."""

import math
from collections import deque
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Percentiles:
    """NaN where there is no value yet."""

    p50: float
    p95: float
    p99: float
    largest: float


class Window:
    """The newest `size` values."""

    def __init__(self, size: int = 200) -> None:
        self._values: deque[float] = deque(maxlen=size)

    def __len__(self) -> int:
        return len(self._values)

    def add(self, value: float) -> None:
        self._values.append(float(value))

    def percentiles(self) -> Percentiles:
        """Linear interpolation between the closest ranks."""
        if not self._values:
            return Percentiles(math.nan, math.nan, math.nan, math.nan)
        return Percentiles(*(float(p) for p in np.percentile(list(self._values), (50, 95, 99, 100))))


class Rate:
    """Events per second over the newest `span` seconds."""

    def __init__(self, span: float = 5.0, limit: int = 1000) -> None:
        self._span, self._times = span, deque[float](maxlen=limit)

    def mark(self, now: float) -> None:
        """One event; now [s] must come from a clock that never goes back."""
        self._times.append(now)

    def value(self, now: float) -> float:
        """[1/s] at time now [s]; 0 with fewer than two events within the span."""
        recent = [t for t in self._times if now - t <= self._span]
        if len(recent) < 2:
            return 0.0
        return (len(recent) - 1) / max(now - recent[0], 1e-9)


class Longest:
    """The longest of the durations of the last `span` seconds. One thread adds, any reads."""

    def __init__(self, span: float) -> None:
        self._span = span
        self._falling: deque[tuple[float, float]] = deque()  # (when, duration): none that a later one exceeds

    def add(self, now: float, duration: float) -> None:
        """Both in s; now must come from a clock that never goes back."""
        while self._falling and self._falling[-1][1] <= duration:
            self._falling.pop()
        while self._falling and now - self._falling[0][0] > self._span:
            self._falling.popleft()
        self._falling.append((now, duration))

    def value(self, now: float) -> float:
        """[s] at time now [s]; 0 where there was none."""
        return next((duration for when, duration in list(self._falling) if now - when <= self._span), 0.0)
