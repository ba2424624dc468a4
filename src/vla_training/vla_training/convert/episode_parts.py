"""Defines the parts of an episode: values by time, and consecutive frames."""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vla_core.clocks import NS
from vla_training.data import features
from vla_training.lerobot.video import VideoEncoder


@dataclass(frozen=True)
class Recorded:
    """One episode in the form of DatasetWriter."""

    columns: dict[str, Any]
    videos: dict[str, bytes]
    sizes: dict[str, tuple[int, int]]  # camera -> (height, width)
    instruction: str
    extra: dict[str, Any]


@dataclass
class Series:
    """Values by time."""

    stamps: list[int] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)

    def put(self, stamp: int, value: Any) -> None:
        i = bisect_right(self.stamps, stamp)
        self.stamps.insert(i, stamp)
        self.values.insert(i, value)

    def as_of(self, time: int, max_age: float = np.inf) -> Any:
        """Return the newest value not newer than time [ns]; None: there is none, or it is older than max_age [s]."""
        i = bisect_right(self.stamps, time) - 1
        return self.values[i] if i >= 0 and time - self.stamps[i] <= max_age * NS else None

    def last(self, time: int) -> tuple[int, Any] | None:
        """Return stamp [ns] and value of the newest value not newer than time [ns]."""
        i = bisect_right(self.stamps, time) - 1
        return (self.stamps[i], self.values[i]) if i >= 0 else None

    def interval(self) -> float:
        """Return the median time between two values [ns]."""
        return float(np.median(np.diff(self.stamps))) if len(self.stamps) > 1 else 0.0

    def between(self, time: int, max_gap: float) -> Any:
        """Interpolate linearly at time [ns]; None: a neighbour is missing, or they are max_gap [s] apart."""
        i = bisect_right(self.stamps, time)
        if i == 0 or i == len(self.stamps):
            return self.values[i - 1] if i and self.stamps[i - 1] == time else None
        a, b = self.stamps[i - 1], self.stamps[i]
        if b - a > max_gap * NS:
            return None
        return self.values[i - 1] + (self.values[i] - self.values[i - 1]) * ((time - a) / (b - a))

    def forget_from(self, time: int) -> None:
        """Forget the values of time [ns] or later."""
        i = bisect_left(self.stamps, time)
        del self.stamps[i:], self.values[i:]

    def forget(self, time: int) -> None:
        """Forget the values older than the value as of time [ns]."""
        i = bisect_right(self.stamps, time) - 1
        if i > 0:
            del self.stamps[:i], self.values[:i]


class Segment:
    """Consecutive frames of an episode that is being written."""

    def __init__(self, fps: int) -> None:
        self.fps, self.rows = fps, list[dict[str, Any]]()
        self.encoders: dict[str, VideoEncoder] = {}

    def add(self, images: dict[str, np.ndarray], row: dict[str, Any]) -> None:
        for name, pixels in images.items():
            self.encoders.setdefault(name, VideoEncoder(pixels.shape[0], pixels.shape[1], self.fps)).add(pixels)
        self.rows.append(row)

    def finish(self, instruction: str, extra: dict[str, Any]) -> Recorded:
        self.rows[-1][features.DONE] = True
        videos = {features.image(name): encoder.finish() for name, encoder in self.encoders.items()}
        sizes = {name: (encoder.height, encoder.width) for name, encoder in self.encoders.items()}
        return Recorded(features.columns_of(self.rows), videos, sizes, instruction, extra)
