"""Success in the simulator with a driver that is late, by what makes set-points of its chunks. Without ROS."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from rich.console import Console
from rich.progress import Progress

from vla_bringup.bench_motion_contenders import BASELINES, contender
from vla_bringup.bench_motion_streams import PERIOD, STEP, Grid, continued, model_error
from vla_model.types import Chunk, Observation
from vla_policy_node.core.executor import ChunkExecutor
from vla_policy_node.core.profile import RobotProfile
from vla_policy_node.core.seams import STRATEGIES
from vla_sim.cameras import Cameras
from vla_sim.expert import Expert
from vla_sim.rollout import FRAME, TICK, Acting, PolicyDriver, run_episode
from vla_sim.tasks import Episode
from vla_sim.world import World
from vla_training.evaluate import Drive

EXPERT = 'expert'  # the scripted expert with the errors of a model
TIME_LIMIT = 30.0  # [s] of an episode
_GRID = Grid(2 * STEP, 16)  # of that expert's chunks


class ErringExpert:
    """Acts as a model does whose chunks are the expert's plus an error of their own, see bench_motion_streams."""

    def __init__(self, profile: RobotProfile, world: World) -> None:
        self.world, self.expert = world, Expert(profile, _GRID.dt, _GRID.horizon)
        self._episode: Episode | None = None

    def act(self, observation: Observation, prefix: Chunk | None = None) -> Chunk:
        """Raises ValueError for an arm from which the expert cannot go on."""
        if self.world.episode is not self._episode:
            self._episode = self.world.episode
            self.expert.begin(self.world.task, observation.instruction)
            self._rng = np.random.default_rng(self.world.seed)
        chunk = self.expert.plan(
            observation.t_ref, observation.positions, observation.gripper, self.world.objects()
        ).chunk
        error = model_error(_GRID, chunk.positions.shape[1], self._rng)
        return continued(replace(chunk, positions=chunk.positions + error), prefix)


class _Blind:
    """Cameras for who needs none."""

    def render(self, snapshot: Any) -> dict[str, np.ndarray]:
        return {}

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Loop:
    """Who drives."""

    name: str  # for the report
    acting: Callable[[RobotProfile, World], Acting]
    sees: bool  # camera images
    contenders: tuple[str, ...] = (*STRATEGIES, *BASELINES)

    @classmethod
    def make(cls, model: str, device: str, profile: RobotProfile) -> 'Loop | None':
        """None for the untrained random-nano. Raises FileNotFoundError or ValueError for no checkpoint."""
        if model == 'random-nano':
            return None
        if model == EXPERT:
            # It goes by the clock: an arm that waits for it is, to it, an arm that does not follow.
            names = tuple(name for name in (*STRATEGIES, *BASELINES) if name != 'blocking')
            return cls('the scripted expert with the errors of a model', ErringExpert, False, names)
        policy = Drive(model, device=device).load(profile)
        return cls(policy.model_id, lambda profile, world: policy, True)


def close_loop(
    loop: Loop,
    profile: RobotProfile,
    tasks: tuple[str, ...],
    delays: tuple[float, ...],
    episodes: int,
    seed: int,
    console: Console,
) -> list[dict[str, Any]]:
    """One row for each delay and contender: successes, episodes, durations [s] of successes, chunks refused.

    The same episodes, `episodes` of each task from `seed` on, for everyone. A model that takes longer than PERIOD
    looks again when it has answered. Only `inpaint` gives the steps that are under way to the model.
    """
    counts = {'successes': 0, 'episodes': 0, 'refused': 0, 'chunks': 0}
    rows: dict[tuple[float, str], dict[str, Any]] = {
        (delay, name): {'delay': delay, 'contender': name, **counts, 'durations': []}
        for delay in delays
        for name in loop.contenders
    }
    frame = FRAME * TICK * 1e-3
    with Progress(console=console, transient=True) as bar:
        job = bar.add_task('closed loop', total=len(tasks) * episodes * len(rows))
        for task in tasks:
            world = World(task)
            cameras = cast(Cameras, world.cameras() if loop.sees else _Blind())
            acting = loop.acting(profile, world)
            for (delay, name), row in rows.items():
                period = max(PERIOD, frame * math.ceil(delay / frame - 1e-9))
                for i in range(episodes):
                    driver = PolicyDriver(acting, cameras, period, delay, inpaint=name == 'inpaint')
                    # A contender has all that run_episode uses of an executor.
                    drive = cast(ChunkExecutor, contender(name, profile, TICK * 1e-3))
                    result = run_episode(world, driver, drive, seed + i, time_limit=TIME_LIMIT)
                    row['episodes'] += 1
                    row['successes'] += result.success
                    row['durations'] += [result.duration] if result.success else []
                    row['refused'] += result.refused
                    row['chunks'] += result.chunks
                    bar.advance(job)
            cameras.close()
    return list(rows.values())
