"""Pictures as MolmoAct sees them: an overview and overlapping crops, in patches, and which patches are pooled.

Bit for bit the reference: bilinear resizing without antialiasing, rounded half to even.
"""

from dataclasses import dataclass

import numpy as np

SIDE, PATCH = 378, 14  # [px]
PATCHES = SIDE // PATCH  # per side of a crop
MARGIN = 4  # patches of a crop that its neighbour owns
STEP = PATCHES - 2 * MARGIN
POOL, MOST_CROPS = 2, 8


@dataclass(frozen=True)
class Views:
    """Pictures of one prompt."""

    patches: np.ndarray  # (crops * 729, 588) uint8, rows of 14 x 14 x 3
    pooled: np.ndarray  # (N, 4) int64 patches of each token; -1: none
    grids: np.ndarray  # (2 * pictures, 2) int64 rows and columns of tokens: overview and crops of each picture


def tiling(height: int, width: int) -> tuple[int, int]:
    """(rows, columns) of crops: the least enlargement of the picture, or the least reduction."""
    margin = 2 * MARGIN * PATCH
    candidates = [(r, c) for r in range(1, MOST_CROPS + 1) for c in range(1, MOST_CROPS + 1) if r * c <= MOST_CROPS]
    candidates.sort(key=lambda t: (t[0] * t[1], t[0]))
    sizes = np.array(candidates) * STEP * PATCH
    with np.errstate(divide='ignore'):
        scales = np.min(sizes.astype(np.float32) / np.array([height - margin, width - margin], np.float32), axis=-1)
    if (scales < 1).all():
        return candidates[int(np.argmax(scales))]
    return candidates[int(np.argmin(np.where(scales < 1, np.float32(1e9), scales)))]


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """(h, w, 3) uint8 -> (height, width, 3) uint8; the aspect ratio is lost.

    The bits of torch's bilinear interpolation with several threads, which fuses each second product with the sum. With
    one thread torch takes another way, and a pixel in 30 000 is another.
    """
    x = image.astype(np.float32)
    top, bottom, upper, lower = (a[..., None, None] for a in _weights(x.shape[0], height))
    left, right, near, far = (a[None, :, None] for a in _weights(x.shape[1], width))
    rows = _between(x[:, left[0, :, 0]], near, x[:, right[0, :, 0]], far)
    found = _between(rows[top[:, 0, 0]], upper, rows[bottom[:, 0, 0]], lower)
    return np.clip(np.rint(found), 0, 255).astype(np.uint8)


def _weights(before: int, after: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of a resized axis: indices of the pixels on both sides, and their shares, (after,) each."""
    scale, half = np.float32(before) / np.float32(after), np.float32(0.5)
    centres = np.arange(after, dtype=np.float32) + half
    source = (np.float64(scale) * centres.astype(np.float64) - 0.5).astype(np.float32).clip(0)
    low = np.minimum(source.astype(np.int64), before - 1)
    far = np.clip(source - low.astype(np.float32), 0, 1).astype(np.float32)
    return low, np.minimum(low + 1, before - 1), np.float32(1) - far, far


def _between(a: np.ndarray, near: np.ndarray, b: np.ndarray, far: np.ndarray) -> np.ndarray:
    """near a + far b in float32, rounded after the second product and after the sum."""
    return (a.astype(np.float64) * near + (b * far)).astype(np.float32)


def views(pictures: list[np.ndarray]) -> Views:
    """Patches and pooling of pictures (h, w, 3) uint8.

    Where a patch to pool is missing in the second picture or a later one, the reference takes the last patch of the
    picture before; so do the weights.
    """
    patches, pooled = list[np.ndarray](), list[np.ndarray]()
    grids: list[tuple[int, int]] = []
    for picture in pictures:
        before = sum(len(p) for p in patches)
        found, indices, grid = _picture(picture)
        patches.append(found)
        pooled.append(indices + before)
        grids += grid
    return Views(np.concatenate(patches), np.concatenate(pooled), np.array(grids))


def pixels(patches: np.ndarray) -> np.ndarray:
    """Patches uint8 as the network's input, float32 in [-1, 1]."""
    return -1 + 2 * (patches.astype(np.float32) / np.float32(255))


def _picture(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int]]]:
    rows, columns = tiling(*image.shape[:2])
    large = resize(image, (rows * STEP + 2 * MARGIN) * PATCH, (columns * STEP + 2 * MARGIN) * PATCH)
    crops = [resize(image, SIDE, SIDE)]
    owned = np.full((rows * STEP + 2 * MARGIN, columns * STEP + 2 * MARGIN), -1)
    local = np.arange(PATCHES**2).reshape(PATCHES, PATCHES)
    for r in range(rows):
        for c in range(columns):
            y, x = r * STEP, c * STEP
            crops.append(large[y * PATCH : y * PATCH + SIDE, x * PATCH : x * PATCH + SIDE])
            top, left = (0 if n == 0 else MARGIN for n in (r, c))
            bottom, right = (PATCHES - (0 if n + 1 == count else MARGIN) for n, count in ((r, rows), (c, columns)))
            owned[y + top : y + bottom, x + left : x + right] = (
                local[top:bottom, left:right] + len(crops[1:]) * PATCHES**2
            )
    overview, high = _pooled(local), _pooled(owned)
    grids = [overview.shape[:2], high.shape[:2]]
    indices = np.concatenate([overview.reshape(-1, 4), high.reshape(-1, 4)])
    return np.concatenate([_patches(crop) for crop in crops]), indices, grids


def _pooled(indices: np.ndarray) -> np.ndarray:
    """(rows, columns) of patches -> (rows / 2, columns / 2, 4), rounded up; -1 where there is none."""
    height, width = indices.shape
    padded = np.pad(indices, ((0, -height % POOL), (0, -width % POOL)), constant_values=-1)
    rows, columns = padded.shape[0] // POOL, padded.shape[1] // POOL
    return padded.reshape(rows, POOL, columns, POOL).swapaxes(1, 2).reshape(rows, columns, POOL * POOL)


def _patches(crop: np.ndarray) -> np.ndarray:
    """(378, 378, 3) -> (729, 588)."""
    parts = crop.reshape(PATCHES, PATCH, PATCHES, PATCH, 3).swapaxes(1, 2)
    return parts.reshape(PATCHES**2, PATCH * PATCH * 3)
