"""Streams of chunks to replay: the chunks of a source in an episode, with their times of receipt."""

from dataclasses import dataclass, replace

import numpy as np

from vla_core.clocks import NS
from vla_core.motion.chunk import StampedChunk
from vla_core.motion.executor import ChunkExecutor
from vla_core.observe.action_prefix import action_prefix
from vla_core.observe.committed_actions import CommittedActions
from vla_core.profile import RobotProfile
from vla_model.types import Chunk
from vla_sim.expert import Expert
from vla_sim.rollout import Answer, ExpertDriver, run_episode
from vla_sim.world import World

PERIOD = 0.2  # [s] between two observations, at least: a model that takes longer looks again when it has answered
STEP, AHEAD = 0.05, 32  # [s] between recorded steps, and their number: 1.6 s
SOURCES = ('expert', 'noisy', 'inpainted')

# Error of a model, added to the expert and drawn for every chunk: smooth, and increasing with the time ahead.
ERROR, ERROR_GROWTH = 0.003, 0.010  # [rad] standard deviation at t_ref, and [rad/s] by which it grows
ERROR_TIME = 0.3  # [s] over which the error of a chunk changes
RETURN_TIME = 0.1  # [s] time constant of the return from the action prefix to the model's own motion


@dataclass(frozen=True)
class Recording:
    """An episode of the expert in the simulator, with the future motion at every PERIOD."""

    task: str
    seed: int
    start: np.ndarray  # (dof,) [rad] initial position of the arm
    positions: np.ndarray  # (observations, AHEAD, dof) [rad], step i due (i + 1) * STEP after the observation
    gripper: np.ndarray  # (observations, AHEAD) [m]


class _Recorder(ExpertDriver):
    """The expert as driver, which records its chunks."""

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
    """Run the episode and return the expert's chunks. Raises RuntimeError without a chunk."""
    world, recorder = World(task), _Recorder(Expert(profile, STEP, AHEAD))
    world.reset(seed)
    start = world.joint_positions
    run_episode(world, recorder, ChunkExecutor(profile), seed, time_limit=time_limit)
    if not recorder.chunks:
        raise RuntimeError(f'the expert made no chunk in {task}, seed {seed}')
    positions = np.stack([chunk.positions for chunk in recorder.chunks])
    return Recording(task, seed, start, positions, np.stack([chunk.gripper for chunk in recorder.chunks]))


@dataclass(frozen=True)
class Grid:
    """Time grid of a chunk."""

    dt: float  # [s], a multiple of STEP
    horizon: int

    def __str__(self) -> str:
        return f'{self.horizon} x {self.dt:g} s'


@dataclass(frozen=True)
class Stream:
    """Chunks of epoch 1 with t_ref from 0; each is received `delay` after its t_ref."""

    source: str
    delay: float  # [s]
    period: float  # [s] between two t_ref
    start: np.ndarray  # (dof,) [rad] position of the arm at 0
    chunks: tuple[StampedChunk, ...]

    @property
    def end(self) -> float:
        """Due time of the last step [s]."""
        last = self.chunks[-1]
        return last.t_ref / NS + last.horizon * last.dt


def make_stream(
    recording: Recording, profile: RobotProfile, source: str, grid: Grid, delay: float, seed: int = 0
) -> Stream:
    """Return the stream of one source, see SOURCES. An observation has the same error at every delay.

    expert: the recorded chunks. noisy: each chunk with its own error, as a model has. inpainted: a substitute for that
    model with the action prefix (observe/action_prefix.py). It keeps the steps of the prefix, and returns smoothly from
    the last one, with the speed there, to the chunk without prefix.
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
        chunk = Chunk(recording.positions[k, steps], recording.gripper[k, steps], grid.dt)
        if source != 'expert':
            error = model_error(grid, chunk.positions.shape[1], np.random.default_rng([seed, recording.seed, k]))
            chunk = replace(chunk, positions=chunk.positions + error)
        if source == 'inpainted':
            chunk = continued(chunk, action_prefix(committed, t_ref, 1, recording.start, np.inf))
            committed.add(len(chunks), chunk, t_ref, 1, delay)
        chunks.append(
            StampedChunk(
                t_ref=t_ref,
                epoch=1,
                sequence=len(chunks) + 1,
                source=source,
                joint_names=profile.joint_names,
                dt=grid.dt,
                horizon=grid.horizon,
                positions=chunk.positions,
                gripper=chunk.gripper,
                frozen=chunk.frozen,
            )
        )
    return Stream(source, delay, every * PERIOD, recording.start, tuple(chunks))


def model_error(grid: Grid, dof: int, rng: np.random.Generator) -> np.ndarray:
    """Draw an error (horizon, dof) [rad] from a Gaussian process whose squared exponential kernel grows with time."""
    # Drawn on the recorded steps, so that the error of an observation does not depend on the grid.
    ahead = STEP * np.arange(1, AHEAD + 1)
    size = ERROR + ERROR_GROWTH * ahead
    near = np.exp(-0.5 * ((ahead[:, None] - ahead) / ERROR_TIME) ** 2)
    covariance = size[:, None] * size * near + 1e-12 * np.eye(AHEAD)
    draw = np.linalg.cholesky(covariance) @ rng.normal(size=(AHEAD, dof))
    stride = round(grid.dt / STEP)
    return draw[stride - 1 : stride * grid.horizon : stride]


def continued(chunk: Chunk, prefix: Chunk | None) -> Chunk:
    """Return the chunk with the steps of the prefix; the difference at their end decays over the remaining steps."""
    if prefix is None:
        return chunk
    n = len(prefix.positions)
    apart = prefix.positions - chunk.positions[:n]
    speed = (apart[-1] - apart[-2]) / chunk.dt if n > 1 else np.zeros_like(apart[-1])
    since = chunk.dt * np.arange(1, len(chunk.positions) - n + 1)[:, None]
    # Critically damped, from position and speed at the end of the prefix.
    rest = (apart[-1] + (speed + apart[-1] / RETURN_TIME) * since) * np.exp(-since / RETURN_TIME)
    positions = np.vstack([prefix.positions, chunk.positions[n:] + rest])
    return replace(chunk, positions=positions, frozen=n)
