"""Checks features, columns and videos before they are written."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vla_training.lerobot import video
from vla_training.lerobot.layout import INDICES, Feature


def check_features(features: Mapping[str, Feature]) -> None:
    """Raise ValueError naming the first feature that cannot be written."""
    for name, f in features.items():
        if '/' in name or name in INDICES or name == 'task':
            raise ValueError(f'feature {name!r}: the name is taken or has a /, choose another')
        if f.dtype == 'image':
            raise ValueError(f'feature {name} is kept as images: only datasets with videos are written')
        if f.dtype == 'video':
            if len(f.shape) != 3 or f.shape[2] != 3:
                raise ValueError(f'video {name} has shape {f.shape}, must be (height, width, 3)')
        elif not f.shape or min(f.shape) < 1 or len(f.shape) > 5:
            raise ValueError(f'feature {name} has shape {f.shape}, must have 1 to 5 sizes above zero')
        elif f.dtype == 'string':
            if f.shape != (1,):
                raise ValueError(f'feature {name} is a string, its shape must be (1,)')
        else:
            try:
                np.dtype(f.dtype)
            except TypeError:
                raise ValueError(f'feature {name} has the unknown dtype {f.dtype!r}') from None


def checked_columns(columns: Mapping[str, Any], features: Mapping[str, Feature]) -> dict[str, np.ndarray | list[str]]:
    """Return the columns in the types of their features. Raises ValueError naming the column and the fault."""
    wanted = {name: f for name, f in features.items() if f.dtype != 'video'}
    if set(columns) != set(wanted):
        missing, unknown = sorted(set(wanted) - set(columns)), sorted(set(columns) - set(wanted))
        raise ValueError(f'the episode lacks the columns {missing} and has the unknown columns {unknown}')
    length = len(next(iter(columns.values()))) if columns else 0
    if length == 0:
        raise ValueError('the episode has no frame')
    checked: dict[str, np.ndarray | list[str]] = {}
    for name, f in wanted.items():
        if len(columns[name]) != length:
            raise ValueError(f'column {name} has {len(columns[name])} values, others {length}')
        checked[name] = _strings(name, columns[name]) if f.dtype == 'string' else _array(name, columns[name], f)
    return checked


def checked_videos(videos: Mapping[str, bytes], features: Mapping[str, Feature], length: int) -> dict[str, bytes]:
    """Return the codec headers of the videos by name. Raises ValueError naming the video and the fault."""
    wanted = [name for name, f in features.items() if f.dtype == 'video']
    if set(videos) != set(wanted):
        raise ValueError(f'the dataset has the videos {wanted}, the episode {sorted(videos)}')
    headers = {}
    for key, content in videos.items():
        try:
            count, height, width, headers[key] = video.probe(content)
        except ValueError as error:
            raise ValueError(f'video {key}: {error}') from error
        if count != length:
            raise ValueError(f'video {key} has {count} frames, the columns have {length}')
        if (height, width, 3) != features[key].shape:
            raise ValueError(f'video {key} is {height} x {width}, the dataset has {features[key].shape[:2]}')
    return headers


def _strings(name: str, values: Any) -> list[str]:
    if not all(isinstance(value, str) for value in values):
        raise ValueError(f'column {name} must be strings, got {type(values[0]).__name__}')
    return list(values)


def _array(name: str, values: Any, feature: Feature) -> np.ndarray:
    array, dtype = np.asarray(values), np.dtype(feature.dtype)
    shapes = [(len(array), *feature.shape)] + ([(len(array),)] if feature.shape == (1,) else [])
    if array.shape not in shapes:
        raise ValueError(f'column {name} has shape {array.shape}, must be {shapes[-1]}')
    both_float = array.dtype.kind == 'f' and dtype.kind == 'f'
    if not both_float and not np.can_cast(array.dtype, dtype):
        raise ValueError(f'column {name} is {array.dtype}, must be {dtype}: convert it without loss')
    array = array.astype(dtype, copy=False).reshape(shapes[-1])
    if dtype.kind == 'f':
        # A label may be unknown (NaN); an input or an action may not.
        wrong = np.isinf(array) if name.startswith('annotation.') else ~np.isfinite(array)
        if wrong.any():
            frame = int(np.argwhere(wrong)[0][0])
            raise ValueError(f'column {name} is not finite at frame {frame}: leave such frames out')
    return array
