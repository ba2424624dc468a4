"""Keeps the depth and the trace of an answer for the answers after it, while the picture changes little."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

CELLS = 10  # of a depth map, per side
STEP = 8  # of 255: a cell whose mean grey changed by more has changed


@dataclass(frozen=True)
class _Kept:
    question: str
    size: tuple[int, ...]
    cells: np.ndarray  # (CELLS, CELLS) grey
    ids: list[int]  # of the answer, up to its actions


class Reasoning:
    """Gives the beginning of the next answer."""

    def __init__(self, answers: int, change: float):
        """answers: most that have the same beginning. change: share of the cells that may change meanwhile."""
        self._most, self._change = answers, change
        self._kept: _Kept | None = None
        self._used = 0

    def given(self, question: str, picture: np.ndarray) -> list[int]:
        """Return the ids that the answer begins with; none where the reasoning is to be made again.

        picture: the first of the prompt, (h, w, 3) uint8.
        """
        kept = self._kept
        if kept is None or self._used >= self._most or (question, picture.shape) != (kept.question, kept.size):
            return []
        if (np.abs(_cells(picture) - kept.cells) > STEP).mean() > self._change:
            return []
        self._used += 1
        return kept.ids

    def put(self, question: str, picture: np.ndarray, ids: list[int]) -> None:
        """Keep the beginning of an answer that was made now."""
        if self._most > 1:
            self._kept, self._used = _Kept(question, picture.shape, _cells(picture), ids), 1


def _cells(picture: np.ndarray) -> np.ndarray:
    grey = Image.fromarray(np.ascontiguousarray(picture)).convert('L')
    return np.asarray(grey.resize((CELLS, CELLS), Image.Resampling.BOX), np.float64)
