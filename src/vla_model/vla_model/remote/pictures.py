"""Images of cameras as a policy server expects them."""

import numpy as np
from PIL import Image

from vla_model.remote.mapping import Picture

_FLIPS = {'none': (1, 1), 'horizontal': (1, -1), 'vertical': (-1, 1), 'both': (-1, -1)}


def picture(image: np.ndarray, how: Picture) -> np.ndarray:
    """Return an image (height, width, 3) uint8 RGB flipped, resized and laid out, uint8 and contiguous."""
    rows, columns = _FLIPS[how.flip]
    image = image[::rows, ::columns]
    if how.size is not None and image.shape[:2] != how.size:
        image = (letterbox if how.fit == 'letterbox' else _stretch)(image, *how.size)
    return np.ascontiguousarray(image.transpose(2, 0, 1) if how.layout == 'chw' else image)


def letterbox(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the image resized into (height, width, 3) with black borders, bit-equal to openpi's resize_with_pad."""
    ratio = max(image.shape[1] / width, image.shape[0] / height)
    h, w = int(image.shape[0] / ratio), int(image.shape[1] / ratio)
    framed = np.zeros((height, width, 3), np.uint8)
    top, left = int((height - h) / 2), int((width - w) / 2)
    framed[top : top + h, left : left + w] = _stretch(image, h, w)
    return framed


def _stretch(image: np.ndarray, height: int, width: int) -> np.ndarray:
    resized = Image.fromarray(np.ascontiguousarray(image)).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized)
