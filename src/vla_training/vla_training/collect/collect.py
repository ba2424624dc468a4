"""Collects expert episodes from the simulator into a data set, in several processes and without ROS."""

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
from vla_training.collect.dagger import Dagger, RolloutPolicy
from vla_training.collect.dart import Push
from vla_training.collect.episode import Recording, record_episode
from vla_training.collect.scenes import StartPose, check_seeds
from vla_training.data.features import FPS, image, simulator_features
from vla_training.lerobot import Dataset, DatasetWriter, Feature, encode_video
from vla_training.lerobot.layout import INDICES, INFO


@dataclass(frozen=True)
class CollectSettings:
    """Settings of a collection."""

    push: Push | None = field(default_factory=Push)  # None: undisturbed
    start: StartPose | None = field(default_factory=StartPose)  # None: all episodes start at home
    dagger: Dagger | None = None  # None: the expert alone
    tail: float = 3.5  # [s] recorded after success: chunks need these set-points, and success must last
    depth: bool = False  # also record the depth map of the first camera


_worker: tuple[CollectSettings, dict[str, tuple[World, Cameras]], Expert, list[RolloutPolicy]] | None = None


def _start_worker(profile: RobotProfile, settings: CollectSettings) -> None:
    global _worker  # noqa: PLW0603, a worker process keeps its worlds from one episode to the next
    _worker = settings, {}, Expert(profile), []


def _run(job: tuple[str, int]) -> tuple[Recording, dict[str, bytes]]:
    """Record the episode of (task, seed). Return it without images, and its videos (mp4) by column name."""
    assert _worker is not None
    settings, worlds, expert, policies = _worker
    task, seed = job
    if settings.dagger is not None and not policies:  # not in _start_worker: a pool loses the exceptions of it
        policies.append(RolloutPolicy(settings.dagger, expert.profile))
    if task not in worlds:
        world = World(task)
        worlds[task] = world, world.cameras()
    policy = policies[0] if policies else None
    recording = record_episode(
        *worlds[task],
        expert,
        seed,
        settings.push,
        settings.start,
        settings.tail,
        rollout_policy=policy,
        depth_map=settings.depth,
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
    settings: CollectSettings,
) -> dict[str, tuple[int, int]]:
    """Write a data set with one episode per task and seed. Return (episodes, successes) by task.

    An unfinished data set in `out` is continued. Failed episodes are left out, because they show wrong motions. Raises
    ValueError for seeds that are held out for evaluation.
    """
    check_seeds(seeds)
    features = simulator_features(profile.joint_names, CAMERAS, depth_map=settings.depth)
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
        for recording, videos in _all(profile, settings, jobs, processes):
            done[recording.task][0] += 1
            if recording.success:
                done[recording.task][1] += 1
                extra: dict[str, int | float | bool | str] = {'sim_task': recording.task, 'seed': recording.seed}
                writer.add_episode(recording.columns(), videos, recording.instruction, extra)
            bar.advance(line)
    writer.close()
    return {task: (n, good) for task, (n, good) in done.items()}


def _check_own(data: Dataset | DatasetWriter, features: Mapping[str, Feature]) -> None:
    """Raise ValueError for a data set that `collect` with these options would not have made."""
    has = {name: feature for name, feature in data.features.items() if name not in INDICES}
    if has != features or any(not {'sim_task', 'seed'} <= e.extra.keys() for e in data.episodes):
        raise ValueError(
            f'{data.folder} has other columns than these options write, or episodes without sim_task and seed: another '
            'command or version made it, or it was edited. Give another folder'
        )


def _all(
    profile: RobotProfile, settings: CollectSettings, jobs: Iterable[tuple[str, int]], processes: int
) -> Iterator[tuple[Recording, dict[str, bytes]]]:
    # Spawned, not forked: the caller may hold locks, threads and a GL context.
    with multiprocessing.get_context('spawn').Pool(processes, _start_worker, (profile, settings)) as pool:
        yield from pool.imap(_run, jobs)
