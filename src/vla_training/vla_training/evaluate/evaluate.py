"""Evaluates a policy on the simulated arm, in closed loop and without ROS, in scenes that it has never seen.

The policy receives the same inputs as on the robot: camera images, joints and the instruction. It is as late, too: a
chunk reaches the executor `latency` after its observation. The next inference starts a `period` after the one before.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn, TimeRemainingColumn

from vla_core.motion.chunk_blending import ChunkBlending
from vla_core.motion.executor import ChunkExecutor
from vla_core.observe.action_prefix import takes_prefix
from vla_core.profile import RobotProfile
from vla_sim.rendering.cameras import Cameras
from vla_sim.rollout import Acting, PolicyDriver, run_episode
from vla_sim.scene import CAMERAS
from vla_sim.tasks import TASKS, check_task, contrast, sample_episode
from vla_sim.world import World
from vla_training.collect.scenes import HELD_OUT as FIRST_SEED
from vla_training.evaluate.drive import Drive
from vla_training.evaluate.records import CONTRAST, HELD_OUT, Record, RecordFile, Share
from vla_training.evaluate.report import print_report, write_report
from vla_training.evaluate.steering import WAYS, Person, guidance

CONTRAST_SEED = FIRST_SEED + 1_000_000  # first seed of the search for contrast scenes
SHEETS, SHOTS, SHOT = 4, 10, 144  # contact sheets per task, pictures per camera on each, edge of a picture [px]

Job = tuple[str, str, int, str]  # group, task, seed, instruction


class Worker:
    """Runs episodes one after another in one process. Worlds are kept from one episode to the next."""

    def __init__(
        self,
        profile: RobotProfile,
        drive: Drive,
        sheets: Path | None = None,
        policy: Callable[[World], Acting] | None = None,
    ) -> None:
        """Load the policy.

        sheets: folder for contact sheets of failures. policy: makes the policy of a world, instead of the checkpoint.
        """
        self.profile, self.drive, self.sheets = profile, drive, sheets
        loaded = drive.load(profile) if policy is None else None
        self.inpaint = takes_prefix(drive.inpaint, loaded is not None and loaded.info.learned_prefix)
        self._policy: Callable[[World], Any] = policy or (lambda world: loaded)
        self._scenes: dict[str, tuple[World, Cameras, Acting]] = {}

    def run(self, job: Job) -> Record:
        """Run one episode and return its record. A failure gets a contact sheet."""
        group, task, seed, instruction = job
        guide = Person(guidance(task, seed, group), seed).guided if group in WAYS else None
        if task not in self._scenes:
            world = World(task)
            self._scenes[task] = world, world.cameras(), self._policy(world)
        world, cameras, policy = self._scenes[task]
        driver = PolicyDriver(policy, cameras, self.drive.period, self.drive.latency, self.inpaint, guide)
        shots: list[tuple[float, dict[str, np.ndarray]]] = []

        def watch(world: World, _: str) -> None:
            seen = driver.seen
            if seen is not None and (not shots or seen.images is not shots[-1][1]):
                shots.append((seen.t_ref * 1e-9, seen.images))

        blending = ChunkBlending(self.drive.blending, gripper_threshold=self.profile.gripper_max_opening / 2)
        executor = ChunkExecutor(self.profile, blending=blending)
        result = run_episode(world, driver, executor, seed, instruction, self.drive.time_limit, watch)
        record = Record.of(group, result)
        if not record.success and self.sheets is not None:
            _write_sheet(self.sheets, record, shots)
        return record

    def close(self) -> None:
        for _, cameras, _ in self._scenes.values():
            cameras.close()


def jobs_of(
    tasks: Iterable[str], episodes: int, seed: int = FIRST_SEED, contrasts: int = 0, steered: int = 0
) -> list[Job]:
    """Return the jobs: `episodes` held-out seeds per task, and `contrasts` scenes per task with two instructions each.

    steered: scenes per task, each driven in the four ways of steering.py. Tasks take turns. Raises ValueError for
    seeds that may have been trained on.
    """
    if seed < FIRST_SEED:
        raise ValueError(f'seeds below {FIRST_SEED} may have been trained on: give a seed from {FIRST_SEED} on')
    if seed + episodes > CONTRAST_SEED and contrasts:
        raise ValueError(f'seeds from {CONTRAST_SEED} on are for contrast scenes: give a smaller seed')
    tasks = tuple(tasks)
    for task in tasks:
        check_task(task)
    jobs = [
        (HELD_OUT, task, seed + i, sample_episode(task, seed + i).instruction)
        for i in range(episodes)
        for task in tasks
    ]
    jobs += [
        (way, task, seed + i, guidance(task, seed + i, way).goal)
        for i in range(steered)
        for task in tasks
        for way in WAYS
    ]
    for task in tasks:
        found, at = 0, CONTRAST_SEED
        while found < contrasts:
            episode = sample_episode(task, at)
            if other := contrast(episode):
                jobs += [(CONTRAST, task, at, instruction) for instruction in (episode.instruction, other)]
                found += 1
            at += 1
    return jobs


def run_jobs(
    jobs: list[Job], profile: RobotProfile, drive: Drive, processes: int = 0, sheets: Path | None = None
) -> Iterator[Record]:
    """Run the jobs in worker processes and yield their records as they end. processes: 0 is one per core."""
    if not jobs:
        return
    count = min(processes or len(os.sched_getaffinity(0)), len(jobs))
    # Spawned, not forked: the caller may hold locks, threads and a GL context.
    with multiprocessing.get_context('spawn').Pool(count, _start_worker, (profile, drive, sheets)) as pool:
        yield from pool.imap_unordered(_run_job, jobs)


_worker: Worker | None = None


def _start_worker(profile: RobotProfile, drive: Drive, sheets: Path | None) -> None:
    global _worker  # noqa: PLW0603, a worker process keeps its worlds from one episode to the next
    _worker = Worker(profile, drive, sheets)


def _run_job(job: Job) -> Record:
    assert _worker is not None
    return _worker.run(job)


def quick(
    checkpoint: str | Path, profile: RobotProfile, episodes: int = 10, tasks: Iterable[str] = TASKS,
    processes: int = 0, **options: Any,
) -> dict[str, Share]:  # fmt: skip
    """Return the success per task over the first held-out seeds, to watch a training. Nothing is written.

    options: fields of Drive.
    """
    tasks = tuple(tasks)
    drive = Drive(str(checkpoint), **options)
    records = list(run_jobs(jobs_of(tasks, episodes), profile, drive, processes))
    return {task: Share.successes([r for r in records if r.task == task]) for task in tasks}


def evaluate(
    checkpoint: str | Path,
    out: Path,
    profile: RobotProfile,
    *,
    episodes: int = 100,
    contrasts: int = 25,
    steered: int = 0,
    tasks: Iterable[str] = TASKS,
    seed: int = FIRST_SEED,
    processes: int = 0,
    dataset: Path | None = None,
    single_step: int = 0,
    world: int = 0,
    console: Console | None = None,
    run: Callable[[list[Job]], Iterable[Record]] | None = None,
    model_id: str = '',
    **options: Any,
) -> list[Record]:
    """Evaluate a checkpoint in closed loop and, if asked, on recorded frames and single steps. Return the records.

    A report is written into `out`. An interrupted run continues with the same arguments. episodes, contrasts, steered:
    per task, see jobs_of. dataset: recorded frames, see offline.py. single_step, world: scenes per task, see
    single_step.py and world.py. options: fields of Drive. run, model_id: replace run_jobs and the checkpoint. Raises
    FileNotFoundError or ValueError before anything runs.
    """
    console = console or Console()
    drive = Drive(str(checkpoint), **options)
    jobs = jobs_of(tasks, episodes, seed, contrasts, steered)
    model = drive.model() if not model_id else None
    policy = drive.adapt(model, profile) if model is not None else None
    facts = {'model': policy.info.model_id if policy is not None else model_id} | asdict(drive)
    del facts['checkpoint']  # the model's id identifies it in any folder
    if drive.action_head == 'auto':
        del facts['action_head']  # records of earlier versions do not have it
    if steered and model is not None and not model.info.steers:
        raise ValueError(f'model {model.info.model_id} does not follow traces: leave out --steer')
    file = RecordFile(out, facts)
    left = [job for job in jobs if job in set(file.missing(jobs))]
    sheets = out / 'failures'
    sheets.mkdir(exist_ok=True)
    columns = (*Progress.get_default_columns()[:-1], TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        line = bar.add_task('episodes', total=len(jobs), completed=len(jobs) - len(left))
        for record in run(left) if run is not None else run_jobs(left, profile, drive, processes, sheets):
            file.add(record)
            good = sum(r.success for r in file.records)
            bar.update(line, advance=1, description=f'episodes ({good} of {len(file.records)} succeeded)')
    wanted = set(jobs)
    records = [r for r in file.records if r.key in wanted]
    measures = {}
    if dataset is not None and policy is not None:
        from vla_model.families.mmact.policy import MaskedPolicy
        from vla_training.evaluate.offline import recorded_frames

        tokenizer = model.image_tokenizer if isinstance(model, MaskedPolicy) else None
        measures['On recorded frames'] = recorded_frames(policy, dataset, tokenizer=tokenizer, console=console)
    if single_step and policy is not None:
        from vla_training.evaluate.single_step import evaluate_single_step

        measures['Single-step evaluation'] = evaluate_single_step(policy, profile, single_step, console)
    if world and policy is not None:
        from vla_model.families.mmact.policy import MaskedPolicy
        from vla_training.evaluate.world import evaluate_world

        tokenizer = model.image_tokenizer if isinstance(model, MaskedPolicy) else None
        found = evaluate_world(policy, profile, world, console=console, tokenizer=tokenizer)
        measures['Images after given actions'] = found
    write_report(out, facts, records, measures)
    print_report(console, facts, records, measures)
    console.print(f'{out}/summary.md, results.json and figures are ready')
    return records


def _write_sheet(folder: Path, record: Record, shots: list[tuple[float, dict[str, np.ndarray]]]) -> None:
    """Write a contact sheet with pictures at even times, a row per camera, for the first SHEETS failures of a task."""
    if len(list(folder.glob(f'{record.task}_*.png'))) >= SHEETS:
        return
    chosen = [shots[i] for i in np.linspace(0, len(shots) - 1, SHOTS).round().astype(int)]
    page = Image.new('RGB', (SHOTS * SHOT, 34 + len(CAMERAS) * SHOT), '#16181d')
    draw = ImageDraw.Draw(page)
    draw.text((6, 4), f'{record.task}, seed {record.seed}: {record.instruction}', fill='white')
    draw.text((6, 18), record.wrong or f'missed: {record.missed}', fill='#ffb074')
    for x, (time, images) in enumerate(chosen):
        for y, camera in enumerate(CAMERAS):
            page.paste(Image.fromarray(images[camera]).resize((SHOT, SHOT)), (x * SHOT, 34 + y * SHOT))
        draw.text((x * SHOT + 4, 36), f'{time - chosen[0][0]:.1f} s', fill='white', stroke_width=1, stroke_fill='black')
    name = f'{record.task}_{record.seed}' + ('_contrast' * (record.group == CONTRAST))
    page.save(folder / f'{name}.png')
