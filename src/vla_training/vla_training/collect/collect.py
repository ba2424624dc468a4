"""Expert episodes from the simulator as a data set, made by several processes: no ROS in the loop."""

import multiprocessing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.progress import Progress

from vla_core.profile import RobotProfile
from vla_sim.expert import Expert
from vla_sim.rendering.cameras import Cameras
from vla_sim.scene import CAMERAS
from vla_sim.world import World
from vla_training.collect.dagger import Lead, Leader
from vla_training.collect.dart import Push
from vla_training.collect.episode import Recording, record_episode
from vla_training.collect.scenes import Away, check_seeds
from vla_training.data.features import FPS, image, simulator_features
from vla_training.lerobot import Dataset, DatasetWriter, Feature, encode_video
from vla_training.lerobot.layout import INDICES, INFO


@dataclass(frozen=True)
class How:
    """How episodes are collected."""

    push: Push | None = field(default_factory=Push)  # None: undisturbed
    away: Away | None = field(default_factory=Away)  # None: all begin at home
    lead: Lead | None = None  # None: the expert alone
    tail: float = 3.5  # [s] recorded after success: time for a chunk to look into, and to see that it stays
    depth: bool = False  # the depth map of the first camera is recorded, too


_worker: tuple[How, dict[str, tuple[World, Cameras]], Expert, list[Leader]] | None = None


def _start_worker(profile: RobotProfile, how: How) -> None:
    global _worker  # noqa: PLW0603, what a worker process keeps from one episode to the next
    _worker = how, {}, Expert(profile), []


def _run(job: tuple[str, int]) -> tuple[Recording, dict[str, bytes]]:
    """The episode of (task, seed), its images already as video."""
    assert _worker is not None
    how, worlds, expert, leaders = _worker
    task, seed = job
    if how.lead is not None and not leaders:  # not in _start_worker, whose exceptions nobody would hear
        leaders.append(Leader(how.lead, expert.profile))
    if task not in worlds:
        world = World(task)
        worlds[task] = world, world.cameras()
    leader = leaders[0] if leaders else None
    recording = record_episode(
        *worlds[task], expert, seed, how.push, how.away, how.tail, leader=leader, depth_map=how.depth
    )
    videos = {image(name): encode_video(np.stack(frames), FPS) for name, frames in recording.images.items() if frames}
    recording.images = {}
    return recording, videos


def collect(
    out: Path,
    profile: RobotProfile,
    tasks: tuple[str, ...],
    seeds: range,
    *,
    processes: int = 1,
    how: How,
) -> dict[str, tuple[int, int]]:
    """Writes a data set with one episode per task and seed. Returns (episodes, successes) by task.

    An unfinished data set in `out` is continued. Failed episodes are left out: they show what not to do. Raises
    ValueError for seeds that are held out for evaluation.
    """
    check_seeds(seeds)
    features = simulator_features(profile.joint_names, CAMERAS, depth_map=how.depth)
    if (out / INFO).is_file():
        _check_own(Dataset(out), features)
    there = out.exists() and any(out.iterdir())
    writer = DatasetWriter.resume(out) if there else DatasetWriter(out, FPS, profile.name, features)
    _check_own(writer, features)
    known = {(e.extra['sim_task'], e.extra['seed']) for e in writer.episodes}
    done = {task: [0, 0] for task in tasks}
    jobs = [(task, seed) for seed in seeds for task in tasks if (task, seed) not in known]
    with Progress(transient=True) as bar:
        line = bar.add_task('episodes', total=len(jobs))
        for recording, videos in _all(profile, how, jobs, processes):
            done[recording.task][0] += 1
            if recording.success:
                done[recording.task][1] += 1
                extra: dict[str, int | float | bool | str] = {'sim_task': recording.task, 'seed': recording.seed}
                writer.add_episode(recording.columns(), videos, recording.instruction, extra)
            bar.advance(line)
    writer.close()
    return {task: (n, good) for task, (n, good) in done.items()}


def _check_own(data: Dataset | DatasetWriter, features: Mapping[str, Feature]) -> None:
    """Raises ValueError for a data set that `collect` with these options would not have made."""
    has = {name: feature for name, feature in data.features.items() if name not in INDICES}
    if has != features or any(not {'sim_task', 'seed'} <= e.extra.keys() for e in data.episodes):
        raise ValueError(
            f'{data.folder} has other columns than are written with these options, or episodes without sim_task and '
            'seed: it was made by another command or version, or edited. Give another folder'
        )


def _all(
    profile: RobotProfile, how: How, jobs: Iterable[tuple[str, int]], processes: int
) -> Iterator[tuple[Recording, dict[str, bytes]]]:
    # Spawned, not forked: the caller may hold locks, threads and a GL context.
    with multiprocessing.get_context('spawn').Pool(processes, _start_worker, (profile, how)) as pool:
        yield from pool.imap(_run, jobs)
