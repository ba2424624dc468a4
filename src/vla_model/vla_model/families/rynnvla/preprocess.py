"""Pictures as RynnVLA-002 was trained on them."""

import numpy as np
from PIL import Image

TRAINED = 256  # [px] side to which the reference's data loader squashes every picture that it reads from a file
_UNIT, _RATIO = 32, 4


def squash(image: np.ndarray, side: int = TRAINED) -> np.ndarray:
    """(h, w, 3) uint8 -> (side, side, 3) uint8, bicubic, the aspect ratio is lost, as in training."""
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))


def crop_sizes(target: int) -> list[tuple[int, int]]:
    """All (width, height) [px] of a crop with the area of a square of `target` [px] at most, from wide to tall."""
    patches = (target // _UNIT) ** 2
    sizes, wide, tall = [], patches, 1
    while wide > 0:
        if max(wide, tall) / min(wide, tall) <= _RATIO:
            sizes.append((wide * _UNIT, tall * _UNIT))
        if (tall + 1) * wide <= patches:
            tall += 1
        else:
            wide -= 1
    return sizes


def crop_size(width: int, height: int, target: int) -> tuple[int, int]:
    """(width, height) [px] of the candidate that keeps most of a picture of that size."""

    def score(size: tuple[int, int]) -> tuple[float, tuple[int, int]]:
        shares = size[0] / width, size[1] / height
        return min(shares) / max(shares), size

    return max(crop_sizes(target), key=score)


def crop(image: np.ndarray, target: int, left_top: tuple[int, int]) -> np.ndarray:
    """(h, w, 3) uint8 -> the crop of `crop_size`, uint8: halved while twice as large, scaled to cover it, then cut.

    left_top: offset [px] of the crop, which the reference draws at random.
    """
    width, height = crop_size(image.shape[1], image.shape[0], target)
    picture = cover(image, width, height)
    left, top = left_top
    return np.asarray(picture.crop((left, top, left + width, top + height)))


def cover(image: np.ndarray, width: int, height: int) -> Image.Image:
    """Return a picture scaled to cover (width, height) [px]: exactly in one direction, and more in the other."""
    picture = Image.fromarray(image)
    while picture.width >= 2 * width and picture.height >= 2 * height:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = max(width / picture.width, height / picture.height)
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
