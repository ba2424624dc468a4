"""The prediction error of an image: how far the camera's image is from the one predicted for its time. No ROS."""

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from vla_model.types import PredictedImage

CELLS = 16  # images are compared on a grid of CELLS x CELLS means; finer detail comes from the image tokenizer
NOISE = 0.05  # of the full scale: a cell that differs by less counts as equal
SMALL = 1.0  # [cells] of change from black to white, added to the denominator: a small change gives a small error
LATE = 0.1  # [s] an image counts for the predicted time if it is at most this far from it


def square(image: np.ndarray, side: int) -> np.ndarray:
    """(side, side, 3) uint8: an image (height, width, 3) as the model sees it, with black bars that make it square.

    The bars are placed as in vla_model.image_tokenizer.preprocess.
    """
    height, width = image.shape[:2]
    page = Image.new('RGB', (max(height, width),) * 2)
    page.paste(Image.fromarray(np.ascontiguousarray(image)), ((page.width - width) // 2, (page.height - height) // 2))
    return np.asarray(page.resize((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0))


def prediction_error(before: np.ndarray, predicted: np.ndarray, observed: np.ndarray) -> float:
    """The share of change that was not as predicted: 0 for all as predicted, near 1 for none.

    before: (height, width, 3) uint8 RGB, the image that the model predicted from. predicted: (side, side, 3).
    observed: the image of the same camera at the time that `predicted` shows. Each image is cut into 16 x 16 cells c,
    whose mean colours are compared. |a - b| is the root mean square over the three colours, 1 from black to white.
    With x+ = max(x - 0.05, 0):

        error = sum_c |predicted - observed|+ / (1 + sum_c max(|predicted - observed|, |observed - before|,
                                                               |predicted - before|)+)

    Only cells that moved, or should have moved, count. A large still background neither hides a change nor adds to the
    error, as it does in a mean error or SSIM. Errors of the image tokenizer in every cell are below the 0.05. When
    nothing moved and nothing was to move, the error is 0, and not a ratio of two small numbers.
    Raises ValueError for a predicted image that is not square.
    """
    side = predicted.shape[0]
    if predicted.shape != (side, side, 3):
        raise ValueError(f'the predicted image has shape {predicted.shape}, must be (side, side, 3)')
    cells = min(CELLS, side)
    was, expected, came = (_cells(square(a, side // cells * cells), cells) for a in (before, predicted, observed))
    wrong, moved, meant = _apart(expected, came), _apart(came, was), _apart(expected, was)
    change = np.maximum(wrong, np.maximum(moved, meant))
    return float(_above(wrong).sum() / (SMALL + _above(change).sum()))


def _cells(image: np.ndarray, cells: int) -> np.ndarray:
    """(cells, cells, 3) mean colours, 0..1."""
    edge = image.shape[0] // cells
    return image.reshape(cells, edge, cells, edge, 3).mean((1, 3)) / 255


def _apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(a - b).mean(-1))


def _above(difference: np.ndarray) -> np.ndarray:
    return np.maximum(difference - NOISE, 0.0)


@dataclass
class _Waiting:
    """An image that is being predicted, or waits for its time."""

    t_ref: int  # [ns]
    due: int  # [ns]
    before: np.ndarray
    owner: Any = None
    predicted: np.ndarray | None = None
    observed: tuple[int, np.ndarray] | None = None  # stamp [ns] and pixels of the image closest to `due` so far
    past: bool = False  # the camera has an image of `due` or later

    @property
    def ready(self) -> bool:
        return self.predicted is not None and self.past


@dataclass(frozen=True)
class ImagePair:
    """A predicted image and the camera's image of its time."""

    owner: Any
    due: int  # [ns]
    before: np.ndarray  # (height, width, 3) uint8 RGB, the image that the model predicted from
    predicted: np.ndarray  # (side, side, 3)
    observed: np.ndarray  # (height, width, 3)


class PredictionMatcher:
    """Finds the camera's image for each predicted image. It keeps one image for each, no more.

    The camera's images come in one thread, predicted ones in another.
    """

    def __init__(self) -> None:
        self._waiting: list[_Waiting] = []
        self._lock = threading.Lock()

    def begin(self, t_ref: int, due: int, before: np.ndarray) -> None:
        """An image for the time `due` is going to be predicted from `before`, seen at t_ref [ns].

        A prediction that began earlier and is not complete was dropped.
        """
        with self._lock:
            self._waiting = [w for w in self._waiting if w.predicted is not None]
            self._waiting.append(_Waiting(t_ref, due, before))

    def predicted(self, owner: Any, image: PredictedImage) -> None:
        """The image is complete, perhaps after the time that it shows. owner: returned with the pair."""
        with self._lock:
            for w in self._waiting:
                if w.t_ref == image.t_ref:
                    w.owner, w.predicted = owner, image.image

    def observed(self, stamp: int, pixels: np.ndarray) -> None:
        """The camera has an image: stamp [ns], (height, width, 3) uint8 RGB. Keeps it, or forgets it at once."""
        if not self._waiting:
            return
        with self._lock:
            for w in self._waiting:
                if w.observed is None or abs(stamp - w.due) < abs(w.observed[0] - w.due):
                    w.observed = stamp, pixels
                w.past = w.past or stamp >= w.due

    @property
    def ready(self) -> bool:
        """Whether `take` has something to take."""
        return any(w.ready for w in list(self._waiting))

    def take(self) -> ImagePair | None:
        """Remove and return the oldest pair. None: there is none, or no image within 0.1 s of its time."""
        with self._lock:
            w = next((w for w in self._waiting if w.ready), None)
            if w is None:
                return None
            self._waiting.remove(w)
        if w.predicted is None or w.observed is None or abs(w.observed[0] - w.due) > LATE * 1e9:
            return None
        return ImagePair(w.owner, w.due, w.before, w.predicted, w.observed[1])

    def clear(self) -> None:
        """Forget all predictions."""
        with self._lock:
            self._waiting = []
