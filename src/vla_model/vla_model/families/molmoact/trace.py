"""Traces of MolmoAct: up to five points of the tool's way in the first picture, x and y in 0..255."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
from PIL import Image

MOST, LARGEST = 5, 255
CYAN = (0, 255, 255)  # RGB of a drawn trace
LINE = 2  # [px] its thickness in training; the reference's steering interface draws 3


def to_pixels(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """(n, 2) points in 0..255 -> pixels (n, 2) int64 of a picture, rounded half to even, inside it."""
    scale = np.array([width - 1, height - 1], np.float32) / np.float32(LARGEST)
    return np.clip(np.rint(np.asarray(points, np.float32) * scale), 0, [width - 1, height - 1]).astype(np.int64)


def subsample(points: Sequence[Sequence[float] | None], last: Sequence[float], most: int = MOST) -> list[list[float]]:
    """At most `most` of the points that are known, the first and the last among them; `last` where none is."""
    known = [list(p) for p in points if p is not None]
    if not known:
        return [list(last)]
    if len(known) <= most:
        return known
    return [known[i] for i in np.linspace(0, len(known) - 1, most, dtype=int)]


def of_pixels(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return (n, 2) whole numbers 0..255 of points (n, 2) [px] of an image, as the steering interface makes them."""
    return np.clip(np.rint(np.asarray(points, np.float64) / [width, height] * LARGEST), 0, LARGEST)


def draw(picture: np.ndarray, pixels: np.ndarray, thickness: int = LINE) -> np.ndarray:
    """Return a copy of a picture (h, w, 3) uint8 RGB with an anti-aliased line through pixels (n, 2) int.

    Less than two points draw nothing. Raises RuntimeError without OpenCV, whose lines the weights were trained on.
    """
    cv2, drawn = _opencv(), np.array(picture, order='C')
    for a, b in zip(pixels[:-1].tolist(), pixels[1:].tolist(), strict=True):
        cv2.line(drawn, tuple(a), tuple(b), CYAN, thickness, cv2.LINE_AA)
    return drawn


def resize_area(picture: np.ndarray, side: int) -> np.ndarray:
    """Return (side, side, 3) uint8: each pixel is the mean of its area. Raises RuntimeError without OpenCV."""
    cv2 = _opencv()
    return cv2.resize(np.ascontiguousarray(picture), (side, side), interpolation=cv2.INTER_AREA)


def shrink(picture: np.ndarray, longest: int = 336) -> np.ndarray:
    """Return a picture (h, w, 3) uint8 with sides of at most `longest` [px], as the loader of a fine-tuning does."""
    height, width = picture.shape[:2]
    if max(height, width) <= longest:
        return picture
    scale = longest / max(height, width)
    size = round(width * scale), round(height * scale)
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize(size, Image.Resampling.LANCZOS))


def has_opencv() -> bool:
    """Return whether traces can be drawn."""
    try:
        _opencv()
    except RuntimeError:
        return False
    return True


def _opencv() -> Any:
    """Return OpenCV, which only traces and some checkpoints need."""
    try:
        return import_module('cv2')
    except ImportError:
        raise RuntimeError(
            'OpenCV is not installed, which draws traces as in training: pip install opencv-python-headless'
        ) from None


def centre_crop(image: np.ndarray, area: float = 0.9) -> np.ndarray:
    """The middle of a picture (h, w, 3) uint8, of so much of its area, brought to its size again (bilinear)."""
    height, width = image.shape[:2]
    inner = [int(n * area**0.5) for n in (height, width)]
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    cut = Image.fromarray(image).crop((left, top, left + inner[1], top + inner[0]))
    return np.asarray(cut.resize((width, height), Image.Resampling.BILINEAR))
