"""Does it help to learn plans and images beside actions? The same recipe with and without them, over several seeds.

The budget that is the same is the number of contexts whose chunks are learned; plans and images come on top. A stage
that would teach nothing is left out. Fitting and evaluating can be done on different machines.
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

ERROR = 'action error [rad]'  # of evaluate_offline
VARIANTS = {'action': (False, False), '+ text': (True, False), '+ image': (False, True), '+ both': (True, True)}


@dataclass(frozen=True)
class Run:
    variant: str
    seed: int
    recipe: Recipe
    folder: Path


def runs(recipe: Recipe, out: Path, seeds: int) -> list[Run]:
    """Every variant with `seeds` seeds, seed by seed, so that what is cut is complete up to some seed."""
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
        raise ValueError('the recipe has no stage that learns actions: there is nothing to compare')
    return replace(recipe, name=f'{recipe.name} {variant}', seed=seed, stages=tuple(stages))


def fit(
    recipe: Recipe, tokens: Path | Sequence[Path], out: Path, *, seeds: int = 3, device: str = 'cpu',
    minutes: float = math.inf, threads: int = 0, processes: int = 1,
) -> Iterator[Path]:  # fmt: skip
    """Trains every run that has not been trained to its end. tokens: as of train. minutes: per run.

    processes: runs at a time, which share the cores and say nothing. Small networks get more done so. Yields the
    checkpoints.
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
    """Bars of several processes would write over each other; log.csv of each run tells how far it is."""
    sys.stdout = open(os.devnull, 'w')  # noqa: SIM115, PTH123, for as long as the process lives


@dataclass(frozen=True)
class Result:
    """Closed-loop success of one run by (task, seed of the scene); and how far its chunks are from the wanted."""

    run: Run
    scenes: dict[tuple[str, int], bool]
    error: float | None = None  # [rad] mean over joints, steps and recorded frames; None: not measured

    def of(self, task: str) -> list[bool]:
        return [success for (name, _), success in self.scenes.items() if name == task]

    @property
    def rate(self) -> float:
        """Mean over the tasks, which have as many scenes each."""
        return mean(self.scenes.values())


def evaluate(recipe: Recipe, out: Path, profile: str | Path, *, seeds: int = 3, episodes: int = 25, processes: int = 0,
             dataset: Path | None = None, console: Console | None = None, **options: Any) -> list[Result]:  # fmt: skip
    """Drives every run's checkpoint through the same held-out scenes, writes `ablation.md` and prints its table.

    dataset: recorded episodes that were not trained on, for the error of chunks. options: of drive.Drive. Raises
    FileNotFoundError where a run has no checkpoint yet.
    """
    from vla_core.profile import RobotProfile
    from vla_training.evaluate.evaluate import evaluate as drive

    console = console or Console()
    every = runs(recipe, out, seeds)
    for run in every:
        if not (run.folder / 'checkpoint' / 'config.json').is_file():
            raise FileNotFoundError(f'{run.folder} has no checkpoint: fit it first')
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
    """(head, rows): per variant the success by task over all seeds, with Wilson's 95 % interval, over the seeds, and by
    how much that is more than with actions alone."""
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
    head = ['learned', *names, 'mean over tasks +- deviation over seeds', 'more than action alone [points]']
    return head + ['error of chunks [mrad] +- the same'] * any(r.error is not None for r in results), rows


def gain(these: list[Result], those: list[Result], draws: int = 10_000) -> tuple[float, float, float]:
    """Percentage points by which these succeed more often than those in the same scenes, and 95 % of its bootstrap.

    Each draw takes as many seeds of either, and as many scenes of each task, the same ones for both.
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
        f'each of {sum(s.steps for s in recipe.stages if s.action)} steps. In brackets: 95 % intervals (Wilson), all '
        'seeds together; of the differences, bootstrapped over seeds and scenes.'
    ]
    return '\n'.join(['# What plans and images add', '', *lines, ''])
