"""Ids of MolmoAct-7B-D, and its actions as words of the base vocabulary.

Action bin i in 1..256 is the word with id ACTIONS_END - i, in its byte-level spelling. A tokenizer splits that spelling
into several ids when it is text.
"""

from dataclasses import dataclass

import numpy as np

END = 151643  # also BOS and padding
ACTIONS_END, BINS = 151643, 256
DEPTH_START, DEPTH_END, DEPTH_0, DEPTHS = 151665, 151666, 151667, 128
IMAGE_START, IMAGE_END, IMAGE_PATCH, IMAGE_COLUMN = 152064, 152065, 152066, 152067
VOCABULARY, ADDED = 152064, 128  # ids that can be answered, and rows of the embedding behind them
EPS = 1e-8  # the reference's, so that a range of width 0 divides

_EDGES = np.linspace(-1.0, 1.0, BINS)
_CENTRES = (_EDGES[:-1] + _EDGES[1:]) / 2


@dataclass(frozen=True)
class ActionStatistics:
    """What becomes -1 and +1, (dims,) each, of one key of a checkpoint's norm_stats."""

    q01: np.ndarray
    q99: np.ndarray
    mask: np.ndarray  # (dims,) bool: which numbers were normalised; the others, a gripper say, are as they are

    @classmethod
    def read(cls, norm_stats: dict, key: str | None) -> 'ActionStatistics':
        """Raises ValueError where the key is missing, or none is given and there are several."""
        if key is None and len(norm_stats) == 1:
            key = next(iter(norm_stats))
        if key not in norm_stats:
            raise ValueError(f'norm_stats has the keys {sorted(norm_stats)}: choose one of them, not {key!r}')
        found = norm_stats[key]['action']
        q01, q99 = (np.array(found[name], np.float32) for name in ('q01', 'q99'))
        mask = np.array(found.get('mask', [True] * len(q01)), bool)
        if q01.ndim != 1 or not q01.shape == q99.shape == mask.shape or not (np.isfinite(q01) & np.isfinite(q99)).all():
            raise ValueError(f'norm_stats of {key!r}: q01, q99 and mask must be as long as one another, and finite')
        mask[-1] = False
        return cls(q01, q99, mask)

    @property
    def dims(self) -> int:
        """Numbers of an action."""
        return len(self.q01)

    def denormalize(self, values: np.ndarray) -> np.ndarray:
        """(..., dims) of [-1, 1] -> units of the data set, float64."""
        return np.where(self.mask, 0.5 * (values + 1) * (self.q99 - self.q01) + self.q01, values)


def bin_values(bins: np.ndarray) -> np.ndarray:
    """Centres in [-1, 1], float64, of bins 1..256; the last two bins have the same."""
    return _CENTRES[np.clip(np.asarray(bins) - 1, 0, BINS - 2)]


def bins_of(normalized: np.ndarray) -> np.ndarray:
    """Bins 1..256 of numbers in [-1, 1]. Raises ValueError on NaN, which would be read as the largest value."""
    if np.isnan(normalized).any():
        raise ValueError('an action has a NaN, which would be read as the largest value: it is refused')
    return np.digitize(np.clip(normalized, -1.0, 1.0), _EDGES)


def normalize(actions: np.ndarray, q01: np.ndarray, q99: np.ndarray) -> np.ndarray:
    """(n, 7) float32 actions as they are trained: six numbers by quantiles, the gripper turned round."""
    q01, q99 = np.asarray(q01, np.float32)[:6], np.asarray(q99, np.float32)[:6]
    arm = np.clip(2 * (actions[:, :6] - q01) / (q99 - q01 + np.float32(EPS)) - 1, -1, 1)
    arm = np.where(np.isclose(q01, q99), 0.0, arm)
    return np.concatenate([arm, 1 - actions[:, 6:7]], axis=1).astype(np.float32)
