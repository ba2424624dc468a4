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


class LongestButOne:
    """The longest but one of the durations of the last `span` seconds: once is an accident, twice is to be expected.

    One thread adds, any reads.
    """

    def __init__(self, span: float) -> None:
        self._span = span
        self._kept: list[tuple[float, float]] = []  # (when, duration), oldest first, without what two later ones reach

    def add(self, now: float, duration: float) -> None:
        """Both in s; now must come from a clock that never goes back."""
        kept, reached = [(now, duration)], [duration]
        for when, earlier in reversed(self._kept):
            if now - when <= self._span and sum(later >= earlier for later in reached) < 2:
                kept.append((when, earlier))
                reached.append(earlier)
        self._kept = kept[::-1]

    def value(self, now: float) -> float:
        """[s] at time now [s]; 0 where there were fewer than two."""
        recent = sorted(duration for when, duration in self._kept if now - when <= self._span)
        return recent[-2] if len(recent) > 1 else 0.0
