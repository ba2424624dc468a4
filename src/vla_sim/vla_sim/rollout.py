"""Episodes without ROS: expert, executor and simulator in one loop of simulation time; success rates over seeds."""

import math
import multiprocessing
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from vla_policy_node.core.chunk import StampedChunk, Verdict
from vla_policy_node.core.executor import ChunkExecutor
from vla_policy_node.core.profile import RobotProfile
from vla_sim.expert import Expert
from vla_sim.kinematics import IKError
from vla_sim.world import World

TICK = 10  # [ms] of one control step
PLAN = 20  # control steps between two chunks
AFTER = 50  # control steps after the last chunk, to come to rest


@dataclass(frozen=True)
class EpisodeResult:
    """How one episode went."""

    task: str
    seed: int
    instruction: str
    success: bool  # the simulator's own test, at the end
    duration: float  # [s] of simulation until the expert was done, or the time limit
    chunks: int
    peak_speed: float  # largest share of a joint's velocity limit that was measured
    messages: tuple[str, ...]  # why the expert started over or gave up, and refused chunks, in order


def run_episode(
    world: World,
    expert: Expert,
    drive: ChunkExecutor,
    seed: int,
    time_limit: float = 30.0,
    watch: Callable[[World, str], None] | None = None,
) -> EpisodeResult:
    """One episode of the world's task. time_limit: [s] of simulation.

    watch: called each control step with the world and the sub-task; for films, records, and tests that interfere.
    """
    world.reset(seed)
    expert.begin(world.task, world.instruction)
    drive.observe(world.joint_positions, world.time_ns)
    drive.activate(world.time_ns)
    began, chunks, peak, subtask = world.time_ns, 0, 0.0, ''
    messages: list[str] = []
    ends = math.inf
    tick = 0
    while tick < min(ends, time_limit * 1000 / TICK):
        now = world.time_ns
        drive.observe(world.joint_positions, now)
        if tick % PLAN == 0 and math.isinf(ends):
            try:
                plan = expert.plan(now, world.joint_positions, world.gripper_opening, world.objects())
            except IKError as error:
                messages.append(str(error))
                break
            subtask = plan.subtask
            if plan.message and plan.message not in messages[-1:]:
                messages.append(plan.message)
            if plan.done:
                ends = tick + AFTER
            chunks += 1
            verdict = drive.ingest(
                StampedChunk(
                    t_ref=now,
                    epoch=drive.epoch,
                    sequence=chunks,
                    source='expert',
                    joint_names=expert.profile.joint_names,
                    dt=plan.chunk.dt,
                    horizon=len(plan.chunk.positions),
                    positions=plan.chunk.positions,
                    gripper=plan.chunk.gripper,
                ),
                now,
            )
            if verdict is not Verdict.ACCEPTED:
                messages.append(f'the executor refused a chunk: {drive.message}')  # it goes on with the one it has
        if set_point := drive.step(now):
            world.set_target(set_point.positions, set_point.velocities)
            if set_point.gripper is not None:
                world.set_gripper(set_point.gripper)
        world.step(TICK)
        peak = max(peak, float((np.abs(world.joint_velocities) / expert.profile.velocity).max()))
        if watch is not None:
            watch(world, subtask)
        tick += 1
    return EpisodeResult(
        task=world.task,
        seed=seed,
        instruction=world.instruction,
        success=world.success(),
        duration=(world.time_ns - began) * 1e-9,
        chunks=chunks,
        peak_speed=peak,
        messages=tuple(messages),
    )


@dataclass(frozen=True)
class SuccessRate:
    """Of one task over many seeds."""

    task: str
    episodes: tuple[EpisodeResult, ...]  # by seed

    @property
    def successes(self) -> int:
        return sum(episode.success for episode in self.episodes)

    @property
    def rate(self) -> float:
        return self.successes / len(self.episodes)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the rate."""
        return wilson(self.successes, len(self.episodes))

    @property
    def failed(self) -> tuple[EpisodeResult, ...]:
        return tuple(episode for episode in self.episodes if not episode.success)


def wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Score interval of a proportion (Wilson, 1927); z = 1.96: 95 %. Raises ValueError without trials."""
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f'{successes} successes of {trials} trials is no proportion')
    p = successes / trials
    centre = p + z * z / (2 * trials)
    spread = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def success_rate(
    profile: RobotProfile,
    task: str,
    seeds: Iterable[int],
    *,
    processes: int = 2,
    time_limit: float = 30.0,
    progress: Callable[[EpisodeResult], None] | None = None,
) -> SuccessRate:
    """Run one episode of the task per seed in worker processes. progress is called here, after each episode."""
    results = []
    # Spawned, not forked: the caller may hold locks, threads and a GL context.
    with multiprocessing.get_context('spawn').Pool(processes, _start_worker, (profile, task, time_limit)) as pool:
        for result in pool.imap_unordered(_run_seed, list(seeds)):
            results.append(result)
            if progress is not None:
                progress(result)
    return SuccessRate(task, tuple(sorted(results, key=lambda result: result.seed)))


_worker: tuple[World, Expert, float] | None = None


def _start_worker(profile: RobotProfile, task: str, time_limit: float) -> None:
    global _worker  # noqa: PLW0603, what a worker process keeps from one episode to the next
    _worker = World(task), Expert(profile), time_limit


def _run_seed(seed: int) -> EpisodeResult:
    assert _worker is not None
    world, expert, time_limit = _worker
    return run_episode(world, expert, ChunkExecutor(expert.profile), seed, time_limit)
