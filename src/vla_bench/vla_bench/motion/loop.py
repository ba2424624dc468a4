"""Success in the simulator with a delayed driver, for each contender. Without ROS."""

import math
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from rich.console import Console
from rich.progress import Progress

from vla_bench.motion.contenders import BASELINES, contender
from vla_bench.motion.streams import PERIOD, STEP, Grid, continued, model_error
from vla_core.motion.chunk_blending import STRATEGIES
from vla_core.motion.executor import ChunkExecutor
from vla_core.profile import RobotProfile
from vla_model.checkpoints.shipped import is_random
from vla_model.policy import Prediction
from vla_model.types import Chunk, Observation
from vla_sim.expert import Expert
from vla_sim.rendering.cameras import Cameras
from vla_sim.rollout import FRAME, TICK, Acting, EpisodeResult, PolicyDriver, run_episode
from vla_sim.tasks.episode import Episode
from vla_sim.world import World
from vla_training.evaluate.drive import Drive

EXPERT = 'expert'  # the scripted expert with the errors of a model
TIME_LIMIT = 30.0  # [s] of an episode
_GRID = Grid(2 * STEP, 16)  # of the chunks of that expert


class ErringExpert:
    """A substitute for a model: the chunks of the expert plus an error each, see streams.py."""

    def __init__(self, profile: RobotProfile, world: World) -> None:
        self.world, self.expert = world, Expert(profile, _GRID.dt, _GRID.horizon)
        self._episode: Episode | None = None

    def act(self, observation: Observation, prefix: Chunk | None = None) -> Prediction:
        """Return a chunk. Raises ValueError for an arm from which the expert cannot continue."""
        if self.world.episode is not self._episode:
            self._episode = self.world.episode
            self.expert.begin(self.world.task, observation.instruction)
            self._rng = np.random.default_rng(self.world.seed)
        chunk = self.expert.plan(
            observation.t_ref, observation.positions, observation.gripper, self.world.objects()
        ).chunk
        error = model_error(_GRID, chunk.positions.shape[1], self._rng)
        return Prediction(continued(replace(chunk, positions=chunk.positions + error), prefix))


class _Blind:
    """Cameras without images, for a driver that needs none."""

    def render(self, snapshot: Any) -> dict[str, np.ndarray]:
        return {}

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Loop:
    """The driver of the closed loop."""

    name: str  # for the report
    model: str  # EXPERT or a checkpoint folder
    device: str = 'cpu'
    contenders: tuple[str, ...] = (*STRATEGIES, *BASELINES)

    @classmethod
    def make(cls, model: str, device: str, profile: RobotProfile) -> 'Loop | None':
        """Return the driver of a model; None for the untrained random-nano.

        Raises FileNotFoundError or ValueError for a wrong checkpoint.
        """
        if is_random(model):
            return None
        if model == EXPERT:
            # The expert plans over time: an arm that waits for it seems not to follow.
            names = tuple(name for name in (*STRATEGIES, *BASELINES) if name != 'blocking')
            return cls('the scripted expert with the errors of a model', model, device, names)
        return cls(Drive(model, device=device).load(profile).info.model_id, model, device)


Job = tuple[float, str, str, int]  # delay [s], contender, task, seed


class Worker:
    """Runs episodes one after another, and keeps worlds between them."""

    def __init__(self, loop: Loop, profile: RobotProfile) -> None:
        self.profile, self.sees = profile, loop.model != EXPERT
        loaded = (
            Drive(loop.model, device=loop.device, engine='auto', image_engine='auto').load(profile)
            if self.sees
            else None
        )
        self._acting: Callable[[World], Acting] = lambda world: loaded or ErringExpert(profile, world)
        self._scenes: dict[str, tuple[World, Cameras, Acting]] = {}

    def run(self, job: Job) -> tuple[Job, EpisodeResult]:
        delay, name, task, seed = job
        if task not in self._scenes:
            world = World(task)
            self._scenes[task] = world, cast(Cameras, world.cameras() if self.sees else _Blind()), self._acting(world)
        world, cameras, acting = self._scenes[task]
        frame = FRAME * TICK * 1e-3
        period = max(PERIOD, frame * math.ceil(delay / frame - 1e-9))
        driver = PolicyDriver(acting, cameras, period, delay, inpaint=name == 'inpaint')
        # A contender has all that run_episode uses of an executor.
        drive = cast(ChunkExecutor, contender(name, self.profile, TICK * 1e-3))
        return job, run_episode(world, driver, drive, seed, time_limit=TIME_LIMIT)


_worker: Worker | None = None


def _start_worker(loop: Loop, profile: RobotProfile) -> None:
    global _worker  # noqa: PLW0603, kept by a worker process between episodes
    _worker = Worker(loop, profile)


def _run(job: Job) -> tuple[Job, EpisodeResult]:
    assert _worker is not None
    return _worker.run(job)


def close_loop(
    loop: Loop,
    profile: RobotProfile,
    tasks: tuple[str, ...],
    delays: tuple[float, ...],
    episodes: int,
    seed: int,
    console: Console,
) -> list[dict[str, Any]]:
    """Return a row per delay and contender: successes, episodes, durations [s] of successes, refused chunks.

    All contenders have the same `episodes` per task, from `seed`, in a process per core. A model slower than PERIOD
    observes again after its inference. Only `inpaint` gives the action prefix to the model.
    """
    rows: dict[tuple[float, str], dict[str, Any]] = {
        (delay, name): {
            **{'delay': delay, 'contender': name, 'successes': 0, 'episodes': 0, 'refused': 0, 'chunks': 0},
            'durations': [],
        }
        for delay in delays
        for name in loop.contenders
    }
    jobs = [(delay, name, task, seed + i) for i in range(episodes) for task in tasks for delay, name in rows]
    cores = min(len(os.sched_getaffinity(0)), len(jobs))
    # Spawned, not forked: the caller may hold locks, threads and a GL context.
    with (
        multiprocessing.get_context('spawn').Pool(cores, _start_worker, (loop, profile)) as pool,
        Progress(console=console, transient=True) as bar,
    ):
        line = bar.add_task('closed loop', total=len(jobs))
        for (delay, name, _, _), result in pool.imap_unordered(_run, jobs):
            row = rows[delay, name]
            row['episodes'] += 1
            row['successes'] += result.success
            row['durations'] += [result.duration] if result.success else []
            row['refused'] += result.refused
            row['chunks'] += result.chunks
            bar.advance(line)
    return list(rows.values())
