"""Makes the plan text of each frame from its sub-tasks."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from vla_model.tokens.prompt_texts import plan
from vla_training.data.features import COMPLETED, REMAINING, SUBTASK, split
from vla_training.lerobot import Dataset


class Frames(Protocol):
    """The part of a lerobot.Episode that plan texts need."""

    @property
    def columns(self) -> dict[str, np.ndarray | list[str]]: ...
    @property
    def task(self) -> str: ...
    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Plan:
    """The sub-tasks at one frame, in order."""

    subtasks: list[str]  # all sub-tasks of the episode
    finished: list[str]
    current: str


def plans(episode: Frames) -> list[Plan | None]:
    """Return a plan per frame (T,); None where the frame has no sub-task.

    The columns COMPLETED and REMAINING count where they exist. Otherwise the plan follows MM-ACT's annotation: it has
    all sub-tasks of the episode, and those that appeared before the frame are finished. After the last sub-task that
    one stays current, because the text needs one.
    """
    current = _texts(episode, SUBTASK)
    completed = [split(text) for text in _texts(episode, COMPLETED)]
    remaining = [split(text) for text in _texts(episode, REMAINING)]
    if any(completed) or any(remaining):
        return [_stated(*frame) for frame in zip(current, completed, remaining, strict=True)]
    subtasks = list(dict.fromkeys(text for text in current if text))
    found: list[Plan | None] = []
    seen: dict[str, None] = {}
    for text in current:
        if text:
            seen.setdefault(text)
        found.append(Plan(subtasks, [t for t in seen if t != text], text) if text else None)
    return found


def plan_texts(episode: Frames) -> list[str]:
    """Return the plan text of each frame (T,); empty where the frame has no plan."""
    return [plan(episode.task, p.subtasks, p.finished, p.current) if p is not None else '' for p in plans(episode)]


def records(dataset: Dataset) -> Iterator[dict]:
    """Yield a record per annotated frame, with the keys of MM-ACT's annotation files."""
    for info in dataset.episodes:
        for episode in dataset.episode(info.index).by_task():
            frames = zip(episode.columns['frame_index'], plans(episode), plan_texts(episode), strict=True)
            for k, p, text in frames:
                if p is not None:
                    yield {
                        'episode_id': info.index,
                        'frame_index': int(k),
                        'task': episode.task,
                        'all_subtasks': p.subtasks,
                        'completed_subtasks': p.finished,
                        'current_subtask': p.current,
                        'cot_reasoning': text,
                    }


def write_records(folder: Path, out: Path | None = None) -> tuple[Path, int]:
    """Write the records as JSON lines, by default to meta/plans.jsonl in the dataset. Return the file and the count.

    Raises ValueError when the dataset has no sub-tasks.
    """
    dataset = Dataset(folder)
    out = out or folder / 'meta/plans.jsonl'
    new, count = out.with_name(out.name + '.new'), 0
    with new.open('w') as file:
        for record in records(dataset):
            file.write(json.dumps(record, ensure_ascii=False) + '\n')
            count += 1
    if not count:
        new.unlink()
        raise ValueError(f'{folder} has no sub-tasks in {SUBTASK}: convert it with --subtasks FILE, or record them')
    new.replace(out)
    return out, count


def _stated(current: str, completed: list[str], remaining: list[str]) -> Plan | None:
    if not current and completed and not remaining:
        completed, current = completed[:-1], completed[-1]
    return Plan([*completed, current, *remaining], completed, current) if current else None


def _texts(episode: Frames, column: str) -> list[str]:
    return list(map(str, episode.columns.get(column, [''] * len(episode))))
