"""The prediction error of an image: how far the camera's image is from the one that was predicted for its time."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from vla_core.observe.prediction_error import ImagePair, PredictionMatcher, prediction_error
from vla_core.stats import Window
from vla_model.types import PredictedImage
from vla_policy_node.policy.session import Session
from vla_policy_node.policy.task_scheduler import DecodeTask

MOST = 10.0  # [Hz] most comparisons; there is at most one for each predicted image


class _Comparison:
    """A job of one step: a few milliseconds."""

    def __init__(self, pair: ImagePair | None) -> None:
        self._pair = pair
        self.result: tuple[ImagePair, float] | None = None

    def step(self) -> bool:
        if (pair := self._pair) is not None:
            self.result = pair, prediction_error(pair.before, pair.predicted, pair.observed)
        return True


class PredictionErrors:
    """Compares each predicted image with the camera's image of that time, in the gaps between actions.

    newest: the time [ns] of the image that was compared last, and its prediction error, 0..1; (0, NaN): none yet.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._matcher = PredictionMatcher()
        self.newest, self._errors = (0, math.nan), Window(100)

    def task(self, report: Callable[[str, Exception | None], None]) -> DecodeTask:
        """The task that compares. report: see DecodeTask."""
        blank = np.zeros((256, 256, 3), np.uint8)
        trial = ImagePair(None, 0, blank, blank, blank)
        return DecodeTask(
            'surprise',
            MOST,
            start=lambda _: _Comparison(self._matcher.take()),
            trial=lambda _: _Comparison(trial),
            wanted=lambda: self._matcher.ready,
            deliver=self._compared,
            report=report,
        )

    def begin(self, t_ref: int, due: int, before: np.ndarray) -> None:
        """An image for the time `due` is going to be predicted from `before`, seen at t_ref [ns]. In the worker."""
        self._matcher.begin(t_ref, due, before)

    def predicted(self, owner: Any, image: PredictedImage) -> None:
        """The image was predicted for this owner. In the worker thread."""
        self._matcher.predicted(owner, image)

    def observed(self, stamp: int, pixels: np.ndarray) -> None:
        """The camera saw an image: stamp [ns], (height, width, 3) uint8 RGB. In the spin thread."""
        self._matcher.observed(stamp, pixels)

    def clear(self) -> None:
        """Forget what was predicted, and the newest error. Under the lock of the session."""
        self._matcher.clear()
        self.newest = 0, math.nan

    def values(self) -> dict[str, str]:
        """For the diagnostics. Under the lock of the session."""
        p = self._errors.percentiles()
        return {'surprise newest/p50/p95': ' / '.join(f'{v:.2f}' for v in (self.newest[1], p.p50, p.p95))}

    def _compared(self, owner: Any, result: tuple[ImagePair, float] | None) -> None:
        with self._session.lock:
            if result is None or result[0].owner != self._session.current():
                return  # what was predicted for another instruction, or another epoch, did not have to happen
            self.newest = result[0].due, result[1]
            self._errors.add(result[1])
