"""Steering: the remaining part of a trace that a person drew, while the tool moves along it."""

from dataclasses import replace

import numpy as np

from vla_model.types import Trace

MOST = 5  # points that are kept of a drawn line, at equal distances along it
NEAR = 0.10  # of the longer side of the image: a tool farther from the line does not advance along it
AHEAD = 0.25  # of the longer side: the nearest point is searched this far along the line, which may cross itself
DONE = 0.03  # of the longer side: a trace with less than this left is done


class Steering:
    """Cuts off the part of a trace that the tool has passed."""

    def __init__(self, trace: Trace) -> None:
        """trace: two or more points inside its image, see `vla_model.observation.check_trace`."""
        self.trace = trace
        self._points = np.asarray(trace.points, np.float64)
        self._at = np.concatenate([[0.0], np.linalg.norm(np.diff(self._points, axis=0), axis=1).cumsum()])  # [px]
        self._side = max(trace.width, trace.height)
        self._passed = 0.0  # [px] along the line

    @property
    def done(self) -> bool:
        """Whether the tool has reached the end."""
        return self._at[-1] - self._passed < DONE * self._side

    def left(self, tool: np.ndarray | None) -> Trace | None:
        """Return the remaining trace; None when it is done.

        tool: (2,) position of the tool in the image of the trace [px]; None: unknown, no further part is cut off.
        """
        if tool is not None and np.isfinite(tool).all():
            along = np.linspace(self._passed, min(self._passed + AHEAD * self._side, self._at[-1]), 64)
            distance = np.linalg.norm(self._place(along) - tool, axis=1)
            nearest = int(distance.argmin())
            if distance[nearest] < NEAR * self._side:
                self._passed = float(along[nearest])
        if self.done:
            return None
        after = self._points[self._at > self._passed]
        return replace(self.trace, points=np.vstack([self._place(np.array([self._passed])), after]))

    def _place(self, along: np.ndarray) -> np.ndarray:
        """Return the points (n, 2) at distances along the line (n,) [px]."""
        return np.column_stack([np.interp(along, self._at, column) for column in self._points.T])
