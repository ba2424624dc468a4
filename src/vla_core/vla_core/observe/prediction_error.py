"""How far what a camera saw is from what was imagined for that time. No ROS."""

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from vla_model.types import PredictedImage

CELLS = (
    16  # pictures are compared on a grid of CELLS x CELLS means: finer detail is the image tokenizer's, not the world's
)
NOISE = 0.05  # of the full scale: a cell that differs by less is the same
SMALL = 1.0  # cells' worth of change, black to white: with less than this, little is little
LATE = 0.1  # [s] an image is of the imagined time if it is not further from it


def square(image: np.ndarray, side: int) -> np.ndarray:
    """(side, side, 3) uint8: an image (height, width, 3) as the model sees it, with black bars that make it square.

    The bars lie as in vla_model.image_tokenizer.preprocess.
    """
    height, width = image.shape[:2]
    page = Image.new('RGB', (max(height, width),) * 2)
    page.paste(Image.fromarray(np.ascontiguousarray(image)), ((page.width - width) // 2, (page.height - height) // 2))
    return np.asarray(page.resize((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0))


def surprise(before: np.ndarray, imagined: np.ndarray, observed: np.ndarray) -> float:
    """The share of change that was not as imagined: 0 all of it was, towards 1 none.

    before: (height, width, 3) uint8 RGB, what the model imagined from; observed: what the same camera saw at the time
    that `imagined` (side, side, 3) shows. Each picture is cut into 16 x 16 cells c, whose mean colours are compared,
    |a - b| being the root mean square over the three colours, 1 from black to white. With x+ = max(x - 0.05, 0):

        surprise = sum_c |imagined - observed|+ / (1 + sum_c max(|imagined - observed|, |observed - before|,
                                                                 |imagined - before|)+)

    The cells that moved, or should have, make the measure: a large still background neither hides what happened nor
    adds to it, which it does in a mean error or SSIM. What the image tokenizer gets wrong in every cell falls below the
    0.05. When nothing moves and nothing was to move it is 0, not a ratio of two errors that are both next to nothing.
    """
    side = imagined.shape[0]
    if imagined.shape != (side, side, 3):
        raise ValueError(f'the imagined image has shape {imagined.shape}, must be (side, side, 3)')
    cells = min(CELLS, side)
    was, thought, came = (_cells(square(a, side // cells * cells), cells) for a in (before, imagined, observed))
    wrong, moved, meant = _apart(thought, came), _apart(came, was), _apart(thought, was)
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
    """An image that is being imagined, or waits for its time."""

    t_ref: int  # [ns]
    due: int  # [ns]
    before: np.ndarray
    owner: Any = None
    imagined: np.ndarray | None = None
    observed: tuple[int, np.ndarray] | None = None  # stamp [ns] and pixels of the image that is closest to `due` so far
    past: bool = False  # the camera went on

    @property
    def ready(self) -> bool:
        return self.imagined is not None and self.past


@dataclass(frozen=True)
class Pair:
    """What was imagined, and what came."""

    owner: Any
    due: int  # [ns]
    before: np.ndarray
    imagined: np.ndarray
    observed: np.ndarray


class Expectations:
    """Keeps of the camera's images those that show what was imagined: one for each imagined image, no more.

    Images come in one thread, imagined ones in another.
    """

    def __init__(self) -> None:
        self._waiting: list[_Waiting] = []
        self._lock = threading.Lock()

    def begin(self, t_ref: int, due: int, before: np.ndarray) -> None:
        """An image is going to be imagined from `before`, seen at t_ref, for the time `due` [ns].

        What was under way until now is not any more.
        """
        with self._lock:
            self._waiting = [w for w in self._waiting if w.imagined is not None]
            self._waiting.append(_Waiting(t_ref, due, before))

    def imagined(self, owner: Any, image: PredictedImage) -> None:
        """That image is there, maybe after the time that it shows. owner: given back with the pair."""
        with self._lock:
            for w in self._waiting:
                if w.t_ref == image.t_ref:
                    w.owner, w.imagined = owner, image.image

    def saw(self, stamp: int, pixels: np.ndarray) -> None:
        """Every image of the camera: stamp [ns], (height, width, 3) uint8 RGB. Keeps it, or forgets it at once."""
        if not self._waiting:
            return
        with self._lock:
            for w in self._waiting:
                if w.observed is None or abs(stamp - w.due) < abs(w.observed[0] - w.due):
                    w.observed = stamp, pixels
                w.past = w.past or stamp >= w.due

    @property
    def ready(self) -> bool:
        """Whether there is something to take."""
        return any(w.ready for w in list(self._waiting))

    def take(self) -> Pair | None:
        """The oldest pair, which is forgotten; None: none, or the camera had no image within 0.1 s of its time."""
        with self._lock:
            w = next((w for w in self._waiting if w.ready), None)
            if w is None:
                return None
            self._waiting.remove(w)
        if w.imagined is None or w.observed is None or abs(w.observed[0] - w.due) > LATE * 1e9:
            return None
        return Pair(w.owner, w.due, w.before, w.imagined, w.observed[1])

    def clear(self) -> None:
        """Nothing of what was imagined counts any more."""
        with self._lock:
            self._waiting = []
