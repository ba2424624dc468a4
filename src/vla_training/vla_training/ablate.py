"""Measures whether what is learned beside actions helps: one recipe with and without it, over several seeds.

All variants of a study learn the same number of contexts with chunks. Plans and images come on top. A stage without a
loss is left out. Training and evaluation can run on different machines.
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

from vla_training.train.objective import MODES
from vla_training.train.recipe import Recipe

ERROR = 'action error [rad]'  # measure of evaluate/offline.py
WORLD_IMAGES = 'front, 1.6 s: predicted PSNR [dB]'  # of evaluate/world.py
WORLD_ARM = 'front, 1.6 s: predicted PSNR on the arm [dB]'


@dataclass(frozen=True)
class Variant:
    """What one variant of a study learns."""

    modes: frozenset[str]  # of objective.MODES; the weights of the others become 0
    head: str = 'discrete'  # action head that drives
    discrete: float = 1.0  # see Masking, as the next one
    continuous: float = 0.0


def _modes(*names: str) -> frozenset[str]:
    return frozenset(names)


# Study -> variant -> what it learns. The first variant of a study is what the others are compared with.
STUDIES: dict[str, dict[str, Variant]] = {
    'outputs': {  # MM-ACT's claim: plans and images help actions
        'action': Variant(_modes('action')),
        '+ text': Variant(_modes('action', 'text')),
        '+ image': Variant(_modes('action', 'image')),
        '+ both': Variant(_modes('action', 'text', 'image')),
    },
    'world': {  # RynnVLA-002's claims: a world model helps the policy, and data of the policy help the world model
        'action': Variant(_modes('action')),
        '+ world': Variant(_modes('action', 'world')),
        'world alone': Variant(_modes('world')),
    },
    'heads': {  # RynnVLA-002's claim: a continuous head converges faster and is smoother, but needs discrete tokens
        'discrete': Variant(_modes('action')),
        'continuous, discrete too': Variant(_modes('action'), 'continuous', 1.0, 10.0),
        'continuous alone': Variant(_modes('action'), 'continuous', 0.0, 10.0),
    },
}


@dataclass(frozen=True)
class Run:
    """One training run of the study."""

    variant: str  # of a study
    seed: int
    recipe: Recipe
    folder: Path


def runs(recipe: Recipe, out: Path, seeds: int, study: str = 'outputs') -> list[Run]:
    """Return every variant with `seeds` seeds, seed by seed: an interrupted study is complete up to some seed.

    Raises ValueError for an unknown study, or a recipe that has nothing to compare.
    """
    if study not in STUDIES:
        raise ValueError(f'{study!r} is no study; known are: {", ".join(STUDIES)}')
    made = []
    for seed in range(recipe.seed, recipe.seed + seeds):
        for name, variant in STUDIES[study].items():
            folder = name.replace('+ ', 'with-').replace(', ', '-').replace(' ', '-')
            made.append(Run(name, seed, _variant(recipe, name, variant, seed), out / f'{folder}-{seed}'))
    return made


def _variant(recipe: Recipe, name: str, variant: Variant, seed: int) -> Recipe:
    off: dict[str, Any] = dict.fromkeys((mode for mode in MODES if mode not in variant.modes), 0.0)
    stages = tuple(
        replace(stage, **off) for stage in recipe.stages if any(getattr(stage, mode) for mode in variant.modes)
    )
    learned = {mode for stage in stages for mode in stage.weights}
    if missing := sorted(variant.modes - learned):
        raise ValueError(
            f'no stage of the recipe learns {missing[0]}, so there is nothing to compare: give it a weight'
        )
    masking = replace(recipe.masking, discrete=variant.discrete, continuous=variant.continuous)
    layers = max(1, recipe.action_layers) if variant.continuous else 0
    return replace(
        recipe, name=f'{recipe.name} {name}', seed=seed, stages=stages, masking=masking, action_layers=layers,
        action_head=variant.head,
    )  # fmt: skip


def fit(
    recipe: Recipe, tokens: Path | Sequence[Path], out: Path, *, seeds: int = 3, device: str = 'cpu',
    minutes: float = math.inf, threads: int = 0, processes: int = 1, study: str = 'outputs',
) -> Iterator[Path]:  # fmt: skip
    """Train every run of a study that is not complete. Yield the checkpoints.

    tokens: as in trainer.train. minutes: per run. processes: runs at a time, which share the cores and print nothing.
    Small networks train faster in this way.
    """
    if processes > 1:
        threads = threads or max(1, len(os.sched_getaffinity(0)) // processes)
    jobs = [(run, tokens, device, minutes, threads) for run in runs(recipe, out, seeds, study)]
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
    """Closed-loop success and other measures of one run."""

    run: Run
    scenes: dict[tuple[str, int], bool]  # (task, seed of the scene) -> success; empty: it learned no actions
    error: float | None = None  # [rad] mean over joints, steps and recorded frames; None: not measured
    jump: float | None = None  # [rad] 95th percentile of joint jumps between two chunks
    world: tuple[float, float] | None = None  # [dB] images after given actions, and on the arm; None: not measured

    def of(self, task: str) -> list[bool]:
        return [success for (name, _), success in self.scenes.items() if name == task]

    @property
    def rate(self) -> float:
        """Return the mean success over the tasks. All tasks have the same number of scenes."""
        return mean(self.scenes.values())


def evaluate(recipe: Recipe, out: Path, profile: str | Path, *, seeds: int = 3, episodes: int = 25, processes: int = 0,
             dataset: Path | None = None, world: int = 10, study: str = 'outputs', console: Console | None = None,
             **options: Any) -> list[Result]:  # fmt: skip
    """Evaluate every run in the same held-out scenes, write `ablation.md` and print its table. Return the results.

    dataset: recorded episodes that were not trained on, for the action error. world: scenes per task for images after
    given actions, of runs that learned them. options: fields of drive.Drive. Raises FileNotFoundError where a run has
    no checkpoint.
    """
    from vla_core.profile import RobotProfile
    from vla_training.evaluate.evaluate import evaluate as drive

    console = console or Console()
    every = runs(recipe, out, seeds, study)
    for run in every:
        if not (run.folder / 'checkpoint' / 'config.json').is_file():
            raise FileNotFoundError(f'{run.folder} has no checkpoint: train it first, without --no-fit')
    robot = RobotProfile.load(profile)
    results = []
    for run in every:
        modes = STUDIES[study][run.variant].modes
        acts, imagines = 'action' in modes, 'world' in modes
        into = run.folder / 'evaluation'
        records = drive(run.folder / 'checkpoint', into, robot, episodes=episodes if acts else 0, contrasts=0,
                        dataset=dataset if acts else None, world=world if imagines else 0,
                        processes=processes, console=Console(quiet=True), **options)  # fmt: skip
        measures = json.loads((into / 'results.json').read_text())['measures']
        images = measures.get('Images after given actions')
        jumps = [jump for r in records for jump in r.seams]
        results.append(
            Result(
                run,
                {(r.task, r.seed): r.success for r in records},
                measures['On recorded frames'][ERROR] if dataset is not None and acts else None,
                float(np.quantile(jumps, 0.95)) if jumps else None,
                (images[WORLD_IMAGES], images[WORLD_ARM]) if images else None,
            )
        )
        done = f'{100 * results[-1].rate:.0f} %' if acts else 'no actions'
        console.print(f'{run.variant}, seed {run.seed}: {done}')
    head, rows = table(results)
    shown = Table(*head, title=f'{seeds} seeds, {episodes} held-out episodes per task and seed')
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
    (out / 'ablation.md').write_text(markdown(head, rows, seeds, episodes, recipe))
    return results


def table(results: list[Result]) -> tuple[list[str], list[list[str]]]:
    """Return (head, rows), a row per variant.

    A row has the success per task over all seeds with Wilson's 95 % interval. It also has its mean and deviation over
    seeds, and the gain over the first variant. Further columns are there where they were measured.
    """
    from vla_training.evaluate.records import Share

    names = list(dict.fromkeys(task for r in results for task, _ in r.scenes))
    variants = list(dict.fromkeys(r.run.variant for r in results))
    first = [r for r in results if r.run.variant == variants[0]]
    further = {
        'action error [mrad] +- deviation': lambda r: None if r.error is None else 1000 * r.error,
        'jump p95 [mrad] +- deviation': lambda r: None if r.jump is None else 1000 * r.jump,
        'images after the chunk [dB]': lambda r: None if r.world is None else r.world[0],
        'the same on the arm [dB]': lambda r: None if r.world is None else r.world[1],
    }
    further = {name: read for name, read in further.items() if any(read(r) is not None for r in results)}
    rows = []
    for variant in variants:
        chosen = [r for r in results if r.run.variant == variant]
        cells = []
        for task in names:
            successes = [success for r in chosen for success in r.of(task)]
            cells.append(str(Share(sum(successes), len(successes))) if successes else '')
        acts = bool(chosen[0].scenes)
        cells.append(f'{_with_spread([100 * r.rate for r in chosen])} %' if acts else '')
        compared = acts and variant != variants[0]
        cells.append('{:+.1f} ({:+.1f} to {:+.1f})'.format(*gain(chosen, first)) if compared else '')
        for read in further.values():
            values = [value for r in chosen if (value := read(r)) is not None]
            cells.append(_with_spread(values) if values else '')
        rows.append([variant, *cells])
    against = (
        f'gain over {variants[0]} alone [points]' if variants[0] == 'action' else f'gain over {variants[0]} [points]'
    )
    head = ['learned', *names, 'mean over tasks +- deviation over seeds', against]
    return head + list(further), rows


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
    return '\n'.join(['# Gain by what is learned beside actions', '', *lines, ''])
