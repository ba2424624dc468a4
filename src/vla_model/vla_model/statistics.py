"""Statistics of a data set, which map a model's [-1, 1] to robot units and back.

`statistics.json` is in the checkpoint's folder and has LeRobot's form:
{"observation.state": {"min": [...], "max": ..., "mean": ..., "std": ..., "q01": ..., "q99": ...}, "action": {...}}
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vla_model.file_checks import check_file

FILE = 'statistics.json'
FEATURES = {'state': 'observation.state', 'action': 'action'}
# Statistics that become -1 and +1. The reference divides by 3 standard deviations.
METHODS = {'min_max': ('min', 'max'), 'quantile': ('q01', 'q99'), 'mean_std': ('mean', 'std')}
LEAST_STD = 1e-8  # of the reference, so that a constant dimension keeps its value


@dataclass(frozen=True)
class Statistics:
    """Per feature ('state', 'action') and statistic one number per dimension, in robot units."""

    state: Mapping[str, tuple[float, ...]]
    action: Mapping[str, tuple[float, ...]]

    @classmethod
    def of(cls, states: np.ndarray, actions: np.ndarray) -> 'Statistics':
        """Return the statistics of states (n, state dim) and actions (m, action dim), in robot units."""
        return cls(_describe(states), _describe(actions))

    @classmethod
    def load(cls, path: Path) -> 'Statistics':
        """Read the file. Raises FileNotFoundError or ValueError naming the file and the fault in it."""
        check_file(path, 'the statistics', 'copy the statistics of the data that the model was trained on')
        try:
            content = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f'{path} is not JSON ({error}): restore it') from None
        found = {}
        for kind, feature in FEATURES.items():
            entry = content.get(feature) if isinstance(content, dict) else None
            if not isinstance(entry, dict):
                raise ValueError(f'{path}: {feature} is missing: it must hold its statistics')
            found[kind] = {name: _numbers(entry[name], f'{path}: {feature}.{name}') for name in _names() & entry.keys()}
        return cls(**found)

    def to_json(self) -> str:
        """Return the content of the file; equal numbers give equal text."""
        content = {feature: {k: list(v) for k, v in sorted(getattr(self, kind).items())}
                   for kind, feature in FEATURES.items()}  # fmt: skip
        return json.dumps(content, indent=2) + '\n'

    def save(self, path: Path) -> None:
        path.write_text(self.to_json())

    def span(self, kind: str, method: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the values that become -1 and +1, (dim,) each. kind: state or action; method: one of METHODS."""
        found: Mapping[str, tuple[float, ...]] = getattr(self, kind)
        for name in METHODS[method]:
            if name not in found:
                raise ValueError(f'{FILE}: {FEATURES[kind]}.{name} is missing, which normalization {method!r} needs')
        first, second = (np.array(found[name]) for name in METHODS[method])
        if first.shape != second.shape:
            raise ValueError(
                f'{FILE}: {FEATURES[kind]} has {len(first)} and {len(second)} numbers: they must be as many'
            )
        if method == 'mean_std':
            middle, half = first, 3 * second
        else:
            middle, half = (first + second) / 2, (second - first) / 2
        if (half < 0).any():
            raise ValueError(
                f'{FILE}: {FEATURES[kind]} has a negative spread in dimension {np.flatnonzero(half < 0)[0] + 1}'
            )
        half = np.maximum(half, 3 * LEAST_STD)
        return middle - half, middle + half


def _names() -> set[str]:
    return {name for pair in METHODS.values() for name in pair}


def _describe(values: np.ndarray) -> dict[str, tuple[float, ...]]:
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f'statistics need finite numbers of shape (n, dim), got shape {values.shape}')
    rows = {
        'min': values.min(0), 'max': values.max(0), 'mean': values.mean(0), 'std': values.std(0),
        'q01': np.quantile(values, 0.01, 0), 'q99': np.quantile(values, 0.99, 0),
    }  # fmt: skip
    return {name: tuple(row.tolist()) for name, row in rows.items()}


def _numbers(value: object, label: str) -> tuple[float, ...]:
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        array = np.array(np.nan)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise ValueError(f'{label} must be a list of finite numbers, one per dimension')
    return tuple(array.tolist())
