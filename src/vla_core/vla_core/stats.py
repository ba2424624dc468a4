"""Running statistics over the newest values: percentiles and a rate."""

import math
from collections import deque
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Percentiles:
    """Percentiles of a window; NaN before the first value."""

    p50: float
    p95: float
    p99: float
    largest: float


class Window:
    """Keeps the newest `size` values."""

    def __init__(self, size: int = 200) -> None:
        self._values: deque[float] = deque(maxlen=size)

    def __len__(self) -> int:
        return len(self._values)

    def add(self, value: float) -> None:
        self._values.append(float(value))

    def percentiles(self) -> Percentiles:
        """Return the percentiles, interpolated linearly between the closest ranks."""
        if not self._values:
            return Percentiles(math.nan, math.nan, math.nan, math.nan)
        return Percentiles(*(float(p) for p in np.percentile(list(self._values), (50, 95, 99, 100))))


class Rate:
    """Counts events per second over the newest `span` [s]."""

    def __init__(self, span: float = 5.0, limit: int = 1000) -> None:
        self._span, self._times = span, deque[float](maxlen=limit)

    def mark(self, now: float) -> None:
        """Count one event. now: [s] of a monotonic clock."""
        self._times.append(now)

    def value(self, now: float) -> float:
        """Return the rate [1/s] at time now [s]; 0 with fewer than two events within the span."""
        recent = [t for t in self._times if now - t <= self._span]
        if len(recent) < 2:
            return 0.0
        return (len(recent) - 1) / max(now - recent[0], 1e-9)


class LongestButOne:
    """Finds the longest but one of the durations within `span` [s]: a single long one may be an accident.

    One thread adds, any thread reads.
    """

    def __init__(self, span: float) -> None:
        self._span = span
        self._kept: list[
            tuple[float, float]
        ] = []  # (when, duration), oldest first, without those that two later ones reach

    def add(self, now: float, duration: float) -> None:
        """Add a duration [s] at time now [s] of a monotonic clock."""
        kept, reached = [(now, duration)], [duration]
        for when, earlier in reversed(self._kept):
            if now - when <= self._span and sum(later >= earlier for later in reached) < 2:
                kept.append((when, earlier))
                reached.append(earlier)
        self._kept = kept[::-1]

    def value(self, now: float) -> float:
        """Return the longest duration but one [s] at time now [s]; 0 with fewer than two."""
        recent = sorted(duration for when, duration in self._kept if now - when <= self._span)
        return recent[-2] if len(recent) > 1 else 0.0
