"""The loop that the trainers share: learning rate, steps, log.csv, checkpoints, progress on the terminal."""

import csv
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

LOG = 'log.csv'


class Schedule(Protocol):
    """The settings of a run that the loop reads."""

    @property
    def steps(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def min_lr(self) -> float: ...  # share of lr at the end
    @property
    def warmup(self) -> int: ...  # steps
    @property
    def log_every(self) -> int: ...
    @property
    def save_every(self) -> int: ...


def learning_rate(schedule: Schedule, step: int) -> float:
    """Return the learning rate of a step: a linear warm-up, then a cosine down to min_lr."""
    s = schedule
    if step < s.warmup:
        return s.lr * (step + 1) / s.warmup
    done = (step - s.warmup) / max(1, s.steps - s.warmup)
    return s.lr * (s.min_lr + (1 - s.min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


class TrainingLoop:
    """One run in one folder; a subclass gives `train_step`, `save` and what else differs.

    `columns` are those of log.csv, `label` names the run on the terminal, `rate` names the column of batch / time.
    """

    columns: Sequence[str]
    label: str
    rate: str

    def __init__(self, schedule: Schedule, out: Path) -> None:
        self.schedule, self.out = schedule, out
        self.step, self.seconds = 0, 0.0

    def train_step(self) -> Mapping[str, float | Tensor]:
        """Take one optimizer step; return values by name, which the log averages."""
        raise NotImplementedError

    def save(self) -> object:
        """Write a checkpoint from which the run continues."""
        raise NotImplementedError

    def complete(self, row: dict[str, float]) -> None:
        """Add further values to a row of the log, or raise ValueError when the run has failed."""

    def describe(self, row: dict[str, float]) -> str:
        """Return the text beside the progress bar for a row of the log."""
        raise NotImplementedError

    def runs_on(self, until: float) -> bool:
        """Return whether another step may start before time.monotonic() passes `until`."""
        return time.monotonic() < until

    @property
    def writes(self) -> bool:
        """Whether this process writes the log and shows the progress."""
        return True

    def lr(self, step: int) -> float:
        return learning_rate(self.schedule, step)

    def run(self, until: float = math.inf) -> int:
        """Train to the last step, or until time.monotonic() passes `until`. Save, and return the step."""
        s = self.schedule
        shown = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*shown, refresh_per_second=1, disable=not self.writes) as bar:
            line = bar.add_task(self.label, total=s.steps, completed=self.step)
            sums: dict[str, list[float | Tensor]] = {}
            began, since = time.monotonic(), self.step
            while self.step < s.steps and (until == math.inf or self.runs_on(until)):
                for name, value in self.train_step().items():
                    sums.setdefault(name, []).append(value)
                self.step += 1
                bar.update(line, completed=self.step)
                if self.step % s.log_every == 0 or self.step == s.steps:
                    took = time.monotonic() - began
                    self.seconds += took
                    row = {name: float(sum(values)) / len(values) for name, values in sums.items()}
                    row |= {'step': self.step, 'seconds': self.seconds, 'lr': self.lr(self.step - 1)}
                    row[self.rate] = (self.step - since) * s.batch / took
                    self.complete(row)
                    self._log(row)
                    bar.update(line, description=self.describe(row))
                    sums, began, since = {}, time.monotonic(), self.step
                if self.step % s.save_every == 0:
                    self.save()
        if self.step % s.save_every:
            self.save()
        return self.step

    def _log(self, row: dict[str, float]) -> None:
        if not self.writes:
            return
        path = self.out / LOG
        new = not path.exists()
        with path.open('a', newline='') as file:
            writer = csv.DictWriter(file, self.columns, restval='')
            if new:
                writer.writeheader()
            writer.writerow({k: f'{v:.6g}' for k, v in row.items()})
