"""Traces of MolmoAct: up to five points of the tool's way in the first picture, x and y in 0..255."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

MOST = 5


def to_pixels(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """(n, 2) points in 0..255 -> pixels (n, 2) int64 of a picture, rounded half to even, inside it."""
    scale = np.array([width - 1, height - 1], np.float32) / np.float32(255)
    return np.clip(np.rint(np.asarray(points, np.float32) * scale), 0, [width - 1, height - 1]).astype(np.int64)


def subsample(points: Sequence[Sequence[float] | None], last: Sequence[float], most: int = MOST) -> list[list[float]]:
    """At most `most` of the points that are known, the first and the last among them; `last` where none is."""
    known = [list(p) for p in points if p is not None]
    if not known:
        return [list(last)]
    if len(known) <= most:
        return known
    return [known[i] for i in np.linspace(0, len(known) - 1, most, dtype=int)]


def centre_crop(image: np.ndarray, area: float = 0.9) -> np.ndarray:
    """The middle of a picture (h, w, 3) uint8, of so much of its area, brought to its size again (bilinear)."""
    height, width = image.shape[:2]
    inner = [int(n * area**0.5) for n in (height, width)]
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    cut = Image.fromarray(image).crop((left, top, left + inner[1], top + inner[0]))
    return np.asarray(cut.resize((width, height), Image.Resampling.BILINEAR))
