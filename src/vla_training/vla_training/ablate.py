"""Measures whether learning plans and images helps actions: one recipe with and without them, over several seeds.

All variants learn the same number of contexts with chunks. Plans and images come on top. A stage without a loss is left
out. Training and evaluation can run on different machines.
"""

import json
import math
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from vla_training.train.recipe import Recipe, Stage

ERROR = 'action error [rad]'  # measure of evaluate/offline.py
VARIANTS = {'action': (False, False), '+ text': (True, False), '+ image': (False, True), '+ both': (True, True)}


@dataclass(frozen=True)
class Run:
    """One training run of the study."""

    variant: str  # of VARIANTS
    seed: int
    recipe: Recipe
    folder: Path


def runs(recipe: Recipe, out: Path, seeds: int) -> list[Run]:
    """Return every variant with `seeds` seeds, seed by seed: an interrupted study is complete up to some seed."""
    made = []
    for seed in range(recipe.seed, recipe.seed + seeds):
        for variant in VARIANTS:
            name = variant.replace('+ ', 'with-')
            made.append(Run(variant, seed, _variant(recipe, variant, seed), out / f'{name}-{seed}'))
    return made


def _variant(recipe: Recipe, variant: str, seed: int) -> Recipe:
    text, image = VARIANTS[variant]
    stages: list[Stage] = []
    for stage in recipe.stages:
        if stage.action or text * stage.text or image * stage.image:
            stages.append(replace(stage, text=text * stage.text, image=image * stage.image))
    if not any(stage.action for stage in stages):
        raise ValueError('no stage of the recipe learns actions, so there is nothing to compare: give one a weight')
    return replace(recipe, name=f'{recipe.name} {variant}', seed=seed, stages=tuple(stages))


def fit(
    recipe: Recipe, tokens: Path | Sequence[Path], out: Path, *, seeds: int = 3, device: str = 'cpu',
    minutes: float = math.inf, threads: int = 0, processes: int = 1,
) -> Iterator[Path]:  # fmt: skip
    """Train every run that is not complete. Yield the checkpoints.

    tokens: as in trainer.train. minutes: per run. processes: runs at a time, which share the cores and print nothing.
    Small networks train faster in this way.
    """
    if processes > 1:
        threads = threads or max(1, len(os.sched_getaffinity(0)) // processes)
    jobs = [(run, tokens, device, minutes, threads) for run in runs(recipe, out, seeds)]
    if processes == 1:
        yield from map(_fit, jobs)
        return
    # Spawned, not forked: the caller may hold locks and threads.
    with multiprocessing.get_context('spawn').Pool(processes, _quiet) as pool:
        yield from pool.imap(_fit, jobs)


def _fit(job: tuple[Run, Path | Sequence[Path], str, float, int]) -> Path:
    from vla_training.train.trainer import train

    run, tokens, device, minutes, threads = job
    return train(run.recipe, tokens, run.folder, device=device, minutes=minutes, threads=threads)


def _quiet() -> None:
    """Silence stdout: progress bars of several processes would overwrite each other. log.csv has the progress."""
    sys.stdout = open(os.devnull, 'w')  # noqa: SIM115, PTH123, until the process ends


@dataclass(frozen=True)
class Result:
    """Closed-loop success and action error of one run."""

    run: Run
    scenes: dict[tuple[str, int], bool]  # (task, seed of the scene) -> success
    error: float | None = None  # [rad] mean over joints, steps and recorded frames; None: not measured

    def of(self, task: str) -> list[bool]:
        return [success for (name, _), success in self.scenes.items() if name == task]

    @property
    def rate(self) -> float:
        """Return the mean success over the tasks. All tasks have the same number of scenes."""
        return mean(self.scenes.values())


def evaluate(recipe: Recipe, out: Path, profile: str | Path, *, seeds: int = 3, episodes: int = 25, processes: int = 0,
             dataset: Path | None = None, console: Console | None = None, **options: Any) -> list[Result]:  # fmt: skip
    """Evaluate every run in the same held-out scenes, write `ablation.md` and print its table. Return the results.

    dataset: recorded episodes that were not trained on, for the action error. options: fields of drive.Drive. Raises
    FileNotFoundError where a run has no checkpoint.
    """
    from vla_core.profile import RobotProfile
    from vla_training.evaluate.evaluate import evaluate as drive

    console = console or Console()
    every = runs(recipe, out, seeds)
    for run in every:
        if not (run.folder / 'checkpoint' / 'config.json').is_file():
            raise FileNotFoundError(f'{run.folder} has no checkpoint: train it first, without --no-fit')
    robot = RobotProfile.load(profile)
    results = []
    for run in every:
        into = run.folder / 'evaluation'
        records = drive(run.folder / 'checkpoint', into, robot, episodes=episodes, contrasts=0, dataset=dataset,
                        processes=processes, console=Console(quiet=True), **options)  # fmt: skip
        error = None
        if dataset is not None:
            error = json.loads((into / 'results.json').read_text())['measures']['On recorded frames'][ERROR]
        results.append(Result(run, {(r.task, r.seed): r.success for r in records}, error))
        console.print(f'{run.variant}, seed {run.seed}: {100 * results[-1].rate:.0f} %')
    head, rows = table(results)
    shown = Table(*head, title=f'{seeds} seeds, {episodes} held-out episodes per task and seed')
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
    (out / 'ablation.md').write_text(markdown(head, rows, seeds, episodes, recipe))
    return results


def table(results: list[Result]) -> tuple[list[str], list[list[str]]]:
    """Return (head, rows), a row per variant.

    A row has the success per task over all seeds with Wilson's 95 % interval, its mean and deviation over seeds, and
    the gain over actions alone.
    """
    from vla_training.evaluate.records import Share

    names = list(dict.fromkeys(task for task, _ in results[0].scenes))
    alone = [r for r in results if r.run.variant == 'action']
    rows = []
    for variant in VARIANTS:
        chosen = [r for r in results if r.run.variant == variant]
        cells = []
        for task in names:
            successes = [success for r in chosen for success in r.of(task)]
            cells.append(str(Share(sum(successes), len(successes))))
        rates = [100 * r.rate for r in chosen]
        cells.append(f'{_with_spread(rates)} %')
        cells.append('{:+.1f} ({:+.1f} to {:+.1f})'.format(*gain(chosen, alone)) if variant != 'action' else '')
        errors = [1000 * r.error for r in chosen if r.error is not None]
        rows.append([variant, *cells, *([_with_spread(errors)] if errors else [])])
    head = ['learned', *names, 'mean over tasks +- deviation over seeds', 'gain over action alone [points]']
    return head + ['action error [mrad] +- deviation'] * any(r.error is not None for r in results), rows


def gain(these: list[Result], those: list[Result], draws: int = 10_000) -> tuple[float, float, float]:
    """Return the gain of these over those in the same scenes [percentage point], and its bootstrapped 95 % interval.

    Each draw resamples the seeds of both, and the scenes of each task, the same scenes for both.
    """
    scenes = sorted(these[0].scenes)
    a, b = (np.array([[r.scenes[scene] for scene in scenes] for r in group], float) for group in (these, those))
    rng, tasks = np.random.default_rng(0), np.array([task for task, _ in scenes])
    found = []
    for _ in range(draws):
        columns = np.concatenate(
            [rng.choice(np.flatnonzero(tasks == task), sum(tasks == task)) for task in np.unique(tasks)]
        )
        drawn = [g[rng.integers(len(g), size=len(g))][:, columns].mean() for g in (a, b)]
        found.append(drawn[0] - drawn[1])
    return 100 * (a.mean() - b.mean()), *(100 * np.quantile(found, (0.025, 0.975)))


def _with_spread(values: Sequence[float]) -> str:
    return f'{mean(values):.1f}' + (f' +- {stdev(values):.1f}' if len(values) > 1 else '')


def markdown(head: list[str], rows: list[list[str]], seeds: int, episodes: int, recipe: Recipe) -> str:
    from vla_training.evaluate.report import markdown as as_table

    lines = as_table(tuple(head), [tuple(row) for row in rows])
    lines += [
        f'{seeds} seeds; {episodes} held-out episodes per task and seed, the same for all; {recipe.batch} chunks in '
        f'each of {sum(s.steps for s in recipe.stages if s.action)} steps. Brackets hold 95 % intervals: Wilson over '
        'all seeds for success, bootstrapped over seeds and scenes for gains.'
    ]
    return '\n'.join(['# Gain by plans and images', '', *lines, ''])
