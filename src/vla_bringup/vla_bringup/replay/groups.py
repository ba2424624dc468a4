"""Numbers of a replay by part (driven, or the reason why not), by episode, by instruction. Angles in mrad."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from vla_bringup.replay.driven import DRIVEN, NOT_COMPARED, PARTS, PAST
from vla_bringup.replay.figures import Result
from vla_bringup.replay.measures import Measures, mean_known

REST = 'not driven, together'
REASONS = range(DRIVEN + 1, PAST + 1)  # compared parts that are not driven


def number(value: Any) -> float | None:
    """Return a float for JSON; None in place of NaN, which JSON lacks."""
    return round(float(value), 4) if np.isfinite(value) else None


def errors(m: Measures) -> dict[str, Any]:
    """Return mean errors over the steps with a recorded state, and those of an arm at rest on the same steps."""
    by_step = 1e3 * mean_known(m.norm, 0) if len(m.norm) else np.full(1, np.nan)
    return {
        'chunks compared': int(np.isfinite(m.norm).any(1).sum()),
        'steps compared': int(np.isfinite(m.norm).sum()),
        'error mean': _mean(m.norm),
        'error if the arm stays': _mean(m.still),
        'joint error mean': _mean(np.abs(m.error)),
        'joint error if the arm stays': _mean(np.abs(m.staying)),
        'error first step': number(by_step[0]),
        'error middle step': number(by_step[len(by_step) // 2]),
        'error last step': number(by_step[-1]),
    }


def parts(result: Result) -> list[dict[str, Any]]:
    """Return a row for the driven part, one for the rest, and one for each reason; parts without comparison are last.

    seconds: time in the bag; None for parts that consist of steps.
    """
    m, session = result.measures, result.run.session
    seconds = result.line.seconds(session.began, session.events.end)
    rest = sum(seconds[part] for part in REASONS)
    rows = [_row(m, PARTS[DRIVEN], (DRIVEN,), seconds[DRIVEN]), _row(m, REST, tuple(REASONS), rest)]
    for part, name in enumerate(PARTS):
        if part != DRIVEN and ((m.part == part).any() or seconds[part]):
            rows.append(_row(m, name, (part,), seconds[part] if part < PAST else None))
    return rows


def episodes(result: Result) -> list[dict[str, Any]]:
    """Return a row per episode; without a simulator per span without new instruction, reset or clock step."""
    recorded = result.run.session.events.episodes
    stretches = [result.line.stretches[i] for i in result.measures.stretch]
    if recorded.values:
        keys = np.array([s.episode for s in stretches])
        names = {-1: 'before the first'} | dict(enumerate(recorded.in_order()))
    else:
        keys = np.array([s.whole for s in stretches])
        names = {}
    driven = np.isfinite(result.driven.norm).any(1)
    rows = []
    for key, group in _groups(result, keys):
        first, last = (float(result.times[chosen]) for chosen in (np.flatnonzero(keys == key)[[0, -1]]))
        name = names.get(key, f'{first:.1f} .. {last:.1f} s')
        here = (keys == key) & driven if ((keys == key) & driven).any() else keys == key
        words = dict.fromkeys(c.instruction for c, k in zip(result.run.cycles, here, strict=True) if k)
        rows.append({'episode': name, 'begins [s]': round(first, 3), 'instruction': ' / '.join(words), **errors(group)})
    return rows


def instructions(result: Result) -> list[dict[str, Any]]:
    """Return a row per instruction of the model, in order of time."""
    words = [c.instruction for c in result.run.cycles]
    order = list(dict.fromkeys(words))
    keys = np.array([order.index(w) for w in words])
    return [{'instruction': order[key], **errors(group)} for key, group in _groups(result, keys)]


def _groups(result: Result, keys: np.ndarray) -> Iterator[tuple[int, Measures]]:
    """Yield (key, driven measures of its chunks). keys: (n,), one per chunk."""
    driven = result.measures.of(DRIVEN)
    for key in np.unique(keys).tolist():
        yield key, driven.chunks(keys == key)


def _row(m: Measures, name: str, which: tuple[int, ...], seconds: float | None) -> dict[str, Any]:
    steps = np.isin(m.part, which)
    compared = not set(which) & set(NOT_COMPARED)
    group = m.of(*which)
    return {
        'part': name,
        'seconds': None if seconds is None else round(seconds, 3),
        'chunks': int(steps.any(1).sum()),
        'steps': int(steps.sum()),
        'share of steps [%]': number(100 * steps.mean()),
        'error mean': _mean(group.norm) if compared else None,
        'error if the arm stays': _mean(group.still) if compared else None,
        'joint error mean': _mean(np.abs(group.error)) if compared else None,
        'joint error if the arm stays': _mean(np.abs(group.staying)) if compared else None,
    }


def _mean(values: np.ndarray) -> float | None:
    return number(1e3 * mean_known(values.ravel(), 0))
