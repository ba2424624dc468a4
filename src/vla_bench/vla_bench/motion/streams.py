"""Streams of chunks to replay: what a source said in an episode, chunk by chunk, and when each answer came."""

from dataclasses import dataclass, replace

import numpy as np

from vla_core.clocks import NS
from vla_core.motion.chunk import StampedChunk
from vla_core.motion.executor import ChunkExecutor
from vla_core.observe.action_prefix import action_prefix
from vla_core.observe.committed import CommittedActions
from vla_core.profile import RobotProfile
from vla_model.types import Chunk
from vla_sim.expert import Expert
from vla_sim.rollout import Answer, ExpertDriver, run_episode
from vla_sim.world import World

PERIOD = 0.2  # [s] between two observations, at least: a model that takes longer looks again when it has answered
STEP, AHEAD = 0.05, 32  # [s] between recorded steps, and their number: 1.6 s
SOURCES = ('expert', 'noisy', 'inpainted')

# What a model adds to the expert, drawn anew for every chunk: smooth along the chunk, and more the further it looks.
ERROR, ERROR_GROWTH = 0.003, 0.010  # [rad] standard deviation at t_ref, and [rad/s] by which it grows
ERROR_TIME = 0.3  # [s] over which the error of a chunk changes
RETURN_TIME = 0.1  # [s] time constant on which it leaves given steps for what it means to do


@dataclass(frozen=True)
class Recording:
    """One episode of the expert in the simulator: from every PERIOD on, what it was about to do."""

    task: str
    seed: int
    start: np.ndarray  # (dof,) [rad] where the arm was
    positions: np.ndarray  # (observations, AHEAD, dof) [rad], step i due (i + 1) * STEP after the observation
    gripper: np.ndarray  # (observations, AHEAD) [m]


class _Recorder(ExpertDriver):
    """The expert, overheard."""

    period = round(PERIOD * 100)

    def __init__(self, expert: Expert) -> None:
        super().__init__(expert)
        self.chunks: list[Chunk] = []

    def look(self, world: World) -> Answer:
        answer = super().look(world)
        if answer.chunk is not None:
            self.chunks.append(answer.chunk)
        return answer


def record(profile: RobotProfile, task: str, seed: int, time_limit: float = 30.0) -> Recording:
    """Run the episode and keep what the expert says. Raises RuntimeError when it says nothing."""
    world, recorder = World(task), _Recorder(Expert(profile, STEP, AHEAD))
    world.reset(seed)
    start = world.joint_positions
    run_episode(world, recorder, ChunkExecutor(profile), seed, time_limit=time_limit)
    if not recorder.chunks:
        raise RuntimeError(f'the expert had nothing to say in {task}, seed {seed}')
    positions = np.stack([chunk.positions for chunk in recorder.chunks])
    return Recording(task, seed, start, positions, np.stack([chunk.gripper for chunk in recorder.chunks]))


@dataclass(frozen=True)
class Grid:
    """The steps of a chunk."""

    dt: float  # [s], a multiple of STEP
    horizon: int

    def __str__(self) -> str:
        return f'{self.horizon} x {self.dt:g} s'


@dataclass(frozen=True)
class Stream:
    """Chunks, all for epoch 1, with t_ref from 0 on; each arrives `delay` after its t_ref."""

    source: str
    delay: float  # [s]
    period: float  # [s] between two t_ref
    start: np.ndarray  # (dof,) [rad] where the arm is at 0
    chunks: tuple[StampedChunk, ...]

    @property
    def end(self) -> float:
        """[s] when the last step is due."""
        last = self.chunks[-1]
        return last.t_ref / NS + last.horizon * last.dt


def make_stream(
    recording: Recording, profile: RobotProfile, source: str, grid: Grid, delay: float, seed: int = 0
) -> Stream:
    """The stream of one source, see SOURCES. The same observation has the same error whatever the delay.

    expert: as it was said. noisy: each chunk with an error of its own, as a model has. inpainted: stands for the same
    model given the action prefix (observe/action_prefix.py): it keeps these steps, and goes from the last of them, with
    the speed it has there, smoothly over to what it would have said without.
    """
    if source not in SOURCES:
        raise ValueError(f'source {source!r}: must be one of {", ".join(SOURCES)}')
    every, committed = max(1, int(np.ceil(delay / PERIOD - 1e-9))), CommittedActions()
    stride = round(grid.dt / STEP)
    steps = slice(stride - 1, stride * grid.horizon, stride)
    if stride * grid.horizon > AHEAD:
        raise ValueError(f'chunks of {grid} are longer than the {AHEAD * STEP:g} s that were recorded')
    chunks: list[StampedChunk] = []
    for k in range(0, len(recording.positions), every):
        t_ref = round(k * PERIOD * NS)
        said = Chunk(recording.positions[k, steps], recording.gripper[k, steps], grid.dt)
        if source != 'expert':
            error = model_error(grid, said.positions.shape[1], np.random.default_rng([seed, recording.seed, k]))
            said = replace(said, positions=said.positions + error)
        if source == 'inpainted':
            said = continued(said, action_prefix(committed, t_ref, 1, recording.start, np.inf))
            committed.add(len(chunks), said, t_ref, 1, delay)
        chunks.append(
            StampedChunk(
                t_ref=t_ref,
                epoch=1,
                sequence=len(chunks) + 1,
                source=source,
                joint_names=profile.joint_names,
                dt=grid.dt,
                horizon=grid.horizon,
                positions=said.positions,
                gripper=said.gripper,
                frozen=said.frozen,
            )
        )
    return Stream(source, delay, every * PERIOD, recording.start, tuple(chunks))


def model_error(grid: Grid, dof: int, rng: np.random.Generator) -> np.ndarray:
    """(horizon, dof) [rad], one draw: a Gaussian process with a squared exponential kernel that grows with time."""
    # Drawn on the recorded steps, whatever the grid: chunks of one observation are wrong in the same way.
    ahead = STEP * np.arange(1, AHEAD + 1)
    size = ERROR + ERROR_GROWTH * ahead
    near = np.exp(-0.5 * ((ahead[:, None] - ahead) / ERROR_TIME) ** 2)
    covariance = size[:, None] * size * near + 1e-12 * np.eye(AHEAD)
    draw = np.linalg.cholesky(covariance) @ rng.normal(size=(AHEAD, dof))
    stride = round(grid.dt / STEP)
    return draw[stride - 1 : stride * grid.horizon : stride]


def continued(said: Chunk, under_way: Chunk | None) -> Chunk:
    """The chunk with the steps that are under way, and what is left of their difference to it fading away."""
    if under_way is None:
        return said
    n = len(under_way.positions)
    apart = under_way.positions - said.positions[:n]
    speed = (apart[-1] - apart[-2]) / said.dt if n > 1 else np.zeros_like(apart[-1])
    since = said.dt * np.arange(1, len(said.positions) - n + 1)[:, None]
    # Critically damped, from where and how fast the given steps end.
    rest = (apart[-1] + (speed + apart[-1] / RETURN_TIME) * since) * np.exp(-since / RETURN_TIME)
    positions = np.vstack([under_way.positions, said.positions[n:] + rest])
    return replace(said, positions=positions, frozen=n)
