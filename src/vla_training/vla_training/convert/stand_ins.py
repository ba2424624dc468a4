"""Fills frames with a missing image by an earlier image of the camera.

The policy node reads a stream as of a time, so an image may be older than the frame by its limit. A frame with a
missing image is read in the same way, as of its newest image. This is for single lost messages: a camera slower than
the frame rate would fill a data set with images that do not fit the states.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any

from vla_core.clocks import NS
from vla_core.observe.streams import Aligned
from vla_training.convert.episode_parts import Series
from vla_training.convert.report import GAP

LAST, MOST = 10, 3  # of the last LAST frames, MOST may have an image that stands in
KEPT = 2  # [s] of values


class StandIns:
    """Keeps the values of the last KEPT seconds; `frames` reads those of a gap.

    limits: stream -> how old its value may be at the frame [s]. period [ns]: of the frames.
    """

    def __init__(self, cameras: Mapping[str, str], limits: Mapping[str, float], period: int) -> None:
        self._cameras, self._limits, self._period = list(cameras), dict(limits), period
        self._last: deque[bool] = deque(maxlen=LAST)
        self.clear()

    def clear(self) -> None:
        """Forget all values: their clock was set back."""
        self._values = {name: Series() for name in self._limits}

    def put(self, stream: str, stamp: int, value: Any) -> None:
        self._values[stream].put(stamp, value)
        self._values[stream].forget(stamp - KEPT * NS)

    def count(self, stands_in: bool) -> None:
        """Count a frame. stands_in: it has an earlier image."""
        self._last.append(stands_in)

    def frames(self, due: int, until: int) -> list[Aligned]:
        """Return the frames at due [ns] and further periods before `until` [ns]; [] unless all can be read."""
        found = list[Aligned]()
        while due < until - self._period // 2:
            frame = self._frame(due)
            if frame is None:
                return []
            found.append(frame)
            due += self._period
        recent = [*self._last, *(True for _ in found)][-LAST:]
        return found if sum(recent) <= MOST else []

    def _limit(self, stream: str) -> float:
        """Return the largest age of a stream's value [ns]. Other streams than cameras must be complete."""
        limit = self._limits[stream] * NS
        return limit if stream in self._cameras else min(limit, GAP * self._values[stream].interval())

    def _frame(self, due: int) -> Aligned | None:
        half = self._period // 2
        near = [t for c in self._cameras for t in self._values[c].stamps if abs(t - due) <= half]
        t_ref = min(near, key=lambda t: abs(t - due), default=due)
        found = {name: series.last(t_ref) for name, series in self._values.items()}
        if any(f is None or t_ref - f[0] > self._limit(name) for name, f in found.items()):
            return None
        stamps = {name: f[0] for name, f in found.items() if f is not None}
        values = {name: f[1] for name, f in found.items() if f is not None}
        return Aligned(t_ref, values, stamps, 0, 0.0)
