"""States and actions as tokens: numbers in [-1, 1] to bins and back, robot units to [-1, 1] and back."""

from dataclasses import dataclass

import numpy as np


def quantize(values: np.ndarray, bins: int) -> np.ndarray:
    """Return the bin of each value, int64, same shape. Values are clipped to [-1, 1]; -1 is bin 0, +1 bin `bins - 1`.

    Halves round to even. The computation has the precision of `values`, as in the training of the released models:
    states in float64, actions in float32. Raises ValueError on values that are not finite.
    """
    values = np.asarray(values)
    if not np.isfinite(values).all():
        raise ValueError(f'cannot quantize numbers that are not finite: {values.tolist()}')
    return np.rint((np.clip(values, -1, 1) + 1) / 2 * (bins - 1)).astype(np.int64)


def dequantize(indices: np.ndarray, bins: int) -> np.ndarray:
    """Return the value in [-1, 1] of each bin, float32, same shape. End points are exact."""
    return np.clip(indices, 0, bins - 1).astype(np.float32) / np.float32(bins - 1) * np.float32(2) - np.float32(1)


@dataclass(frozen=True)
class Ranges:
    """Affine map of robot units to [-1, 1], per dimension. Low above high reverses the direction."""

    low: np.ndarray  # (n,) robot units that become -1
    high: np.ndarray  # (n,) robot units that become +1

    def __post_init__(self) -> None:
        low, high = np.asarray(self.low, np.float64), np.asarray(self.high, np.float64)
        if low.ndim != 1 or low.shape != high.shape or not (np.isfinite(low) & np.isfinite(high) & (low != high)).all():
            raise ValueError(
                f'a range needs two different finite ends per dimension, got {low.tolist()} and {high.tolist()}'
            )
        object.__setattr__(self, 'low', low)
        object.__setattr__(self, 'high', high)

    def normalize(self, values: np.ndarray) -> np.ndarray:
        """Return normalized values (..., n) float64; they are outside [-1, 1] where a value is outside its range."""
        return 2 * (np.asarray(values, np.float64) - self.low) / (self.high - self.low) - 1

    def denormalize(self, values: np.ndarray) -> np.ndarray:
        """Return robot units (..., n) float64 of values (..., n) in [-1, 1]."""
        return (np.asarray(values, np.float64) + 1) / 2 * (self.high - self.low) + self.low
