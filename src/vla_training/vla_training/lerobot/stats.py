"""Computes statistics of columns as lerobot does: per episode, and merged with the numbers of frames as weights."""

from collections.abc import Iterable

import numpy as np

QUANTILES = {'q01': 0.01, 'q10': 0.10, 'q50': 0.50, 'q90': 0.90, 'q99': 0.99}
Stats = dict[str, list]  # min, max, mean, std, count, q01 ... q99
MOST_IMAGES = 100  # of an episode, as lerobot takes for episodes of up to 500 frames


def column_stats(values: np.ndarray) -> Stats:
    """Return the statistics of (T,) or (T, ..., n) as lists of length 1 or n, over all axes but the last.

    Rows with a NaN, which are unknown, do not count; with no other rows all statistics are 0.
    """
    flat = np.asarray(values, np.float64).reshape(-1, values.shape[-1] if values.ndim > 1 else 1)
    known = flat[~np.isnan(flat).any(1)]
    flat = known if len(known) else np.zeros((1, flat.shape[1]))
    found = {'min': flat.min(0), 'max': flat.max(0), 'mean': flat.mean(0), 'std': flat.std(0)}
    found |= dict(zip(QUANTILES, np.quantile(flat, list(QUANTILES.values()), axis=0), strict=True))
    return {name: value.tolist() for name, value in found.items()} | {'count': [len(values)]}


def image_stats(images: np.ndarray) -> Stats:
    """Return the statistics of images (N, H, W, 3) uint8, each (3, 1, 1) in [0, 1] as in lerobot, of sampled pixels."""
    chosen = np.unique(np.linspace(0, len(images) - 1, min(len(images), MOST_IMAGES)).round().astype(int))
    step = max(1, max(images.shape[1:3]) // 150)
    images = images[chosen, ::step, ::step]
    levels = np.arange(256) / 255
    channels = []
    for c in range(3):
        share = np.bincount(images[..., c].ravel(), minlength=256) / images[..., c].size
        mean = float(levels @ share)
        present = levels[share > 0]
        row = {'min': float(present[0]), 'max': float(present[-1]), 'mean': mean}
        row['std'] = float(np.sqrt((levels - mean) ** 2 @ share))
        below = np.cumsum(share)
        row |= {name: float(levels[min(int(np.searchsorted(below, q)), 255)]) for name, q in QUANTILES.items()}
        channels.append(row)
    return {name: [[[row[name]]] for row in channels] for name in channels[0]} | {'count': [len(images)]}


def aggregate(parts: Iterable[Stats]) -> Stats:
    """Merge the statistics of episodes. Quantiles are weighted means, as in lerobot."""
    parts = list(parts)
    names = [name for name in parts[0] if all(name in part for part in parts)]  # early versions had no quantiles
    arrays = {name: np.array([part[name] for part in parts], float) for name in names}
    count = arrays['count'].reshape(-1, *[1] * (arrays['mean'].ndim - 1))
    weight = count / count.sum()
    mean = (arrays['mean'] * weight).sum(0)
    variance = ((arrays['std'] ** 2 + (arrays['mean'] - mean) ** 2) * weight).sum(0)
    found = {'min': arrays['min'].min(0), 'max': arrays['max'].max(0), 'mean': mean, 'std': np.sqrt(variance)}
    found |= {name: (arrays[name] * weight).sum(0) for name in QUANTILES if name in arrays}
    return {name: value.tolist() for name, value in found.items()} | {'count': [int(count.sum())]}
