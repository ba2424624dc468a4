"""Ids of RynnVLA-002: images, states and actions as blocks of tokens of the Chameleon vocabulary.

A token with the name `<reservedNNNNN>` has id NNNNN + 4.
"""

from dataclasses import dataclass

import numpy as np

BOS, PAD = 0, 0  # training pads with the id of BOS
CODES, FIRST_CODE = 8192, 4  # image codes, and the id of code 0
IMAGE_END, IMAGE_START = 8196, 8197
TURN_END = 8710  # after the prompt and after the answer; generation ends with it
ROW_END, FIRST_SIZE = 8803, 8804  # a row of codes ends; a side of 32 n pixels has id FIRST_SIZE + n
ACTION_START, ACTION_END = 10004, 15004
STATE_START, STATE_END = 15504, 16004
EDGES = 256  # of the bins of [-1, 1]: 255 cells. Edge i has id start + 2 + i, a value above it up to the next, too
PATCH, SIZE_UNIT = 16, 32  # [px] side of a code, unit of a side in the size marks
VOCABULARY = 65536
EPS = 1e-8  # the reference's, so that a range of width 0 divides

_SCALE = np.linspace(-1.0, 1.0, EDGES)
_CENTRES = (_SCALE[:-1] + _SCALE[1:]) / 2


@dataclass(frozen=True)
class Block:
    """A block of bins: its start and end marks. A bin with index i in 1..256 has id start + 1 + i."""

    name: str
    start: int
    end: int

    @property
    def bins(self) -> slice:
        """Ids of all bins."""
        return slice(self.start + 2, self.start + 2 + EDGES)


ACTION, STATE = Block('action', ACTION_START, ACTION_END), Block('state', STATE_START, STATE_END)


@dataclass(frozen=True)
class Scale:
    """Smallest and largest values, (dims,) float64 in robot units, that become -1 and +1."""

    low: np.ndarray
    high: np.ndarray

    def __post_init__(self) -> None:
        if self.low.ndim != 1 or self.low.shape != self.high.shape or not (self.low <= self.high).all():
            raise ValueError('a scale needs as many smallest as largest values, and none of them above its largest')

    def normalize(self, values: np.ndarray) -> np.ndarray:
        """(..., dims) of robot units -> [-1, 1], clipped. NaN stays NaN."""
        return np.clip(2 * (values - self.low) / (self.high - self.low + EPS) - 1, -1.0, 1.0)

    def denormalize(self, values: np.ndarray) -> np.ndarray:
        """(..., dims) of [-1, 1] -> robot units, float64."""
        return (np.asarray(values, np.float64) + 1) / 2 * (self.high - self.low + EPS) + self.low


def bin_ids(normalized: np.ndarray, block: Block) -> np.ndarray:
    """Ids (..., dims) int64 of numbers in [-1, 1].

    Raises ValueError on NaN: the reference reads it as the largest value.
    """
    if np.isnan(normalized).any():
        raise ValueError(f'the {block.name} has a NaN, which would be read as the largest value: it is refused')
    return np.digitize(normalized, _SCALE) + block.start + 1


def block_ids(normalized: np.ndarray, block: Block) -> np.ndarray:
    """One block (dims + 2,) int64: start mark, a bin for each of `normalized` (dims,), end mark."""
    return np.concatenate([[block.start], bin_ids(normalized, block), [block.end]])


def bin_values(ids: np.ndarray, block: Block) -> np.ndarray:
    """Numbers in [-1, 1], float64, of bin ids: centres of their cells. The reference clips other ids to the ends."""
    return _CENTRES[np.clip(np.asarray(ids) - block.start - 2, 0, EDGES - 2)]


def image_ids(codes: np.ndarray) -> np.ndarray:
    """The block of an image, int64, of its codes (rows, columns): marks, size, rows each with an end, end mark.

    Raises ValueError where a side is not a multiple of 32 pixels.
    """
    rows, columns = codes.shape
    if rows % 2 or columns % 2:
        raise ValueError(
            f'an image of {columns * PATCH} x {rows * PATCH} px: both sides must be multiples of {SIZE_UNIT}'
        )
    size = [FIRST_SIZE + rows * PATCH // SIZE_UNIT, FIRST_SIZE + columns * PATCH // SIZE_UNIT]
    with_ends = np.concatenate([codes + FIRST_CODE, np.full((rows, 1), ROW_END)], axis=1)
    return np.concatenate([[IMAGE_START, *size], with_ends.ravel(), [IMAGE_END]])


def image_length(rows: int, columns: int) -> int:
    """Tokens of the block of an image with so many codes."""
    return 4 + rows * (columns + 1)


def codes_of(ids: np.ndarray) -> list[np.ndarray]:
    """The codes (rows, columns) of every image in a list of ids. Raises ValueError on a block that is malformed."""
    ids, found = np.asarray(ids), []
    for start in np.flatnonzero(ids == IMAGE_START):
        rows, columns = (int(ids[start + i] - FIRST_SIZE) * SIZE_UNIT // PATCH for i in (1, 2))
        end = start + image_length(rows, columns) - 1
        if rows < 1 or columns < 1 or end >= len(ids) or ids[end] != IMAGE_END:
            raise ValueError(f'the image at token {start} has no end where its size puts it')
        grid = ids[start + 3 : end].reshape(rows, columns + 1)
        codes = grid[:, :-1] - FIRST_CODE
        if (grid[:, -1] != ROW_END).any() or codes.min() < 0 or codes.max() >= CODES:
            raise ValueError(f'the image at token {start} has tokens that are no image codes')
        found.append(codes)
    return found
