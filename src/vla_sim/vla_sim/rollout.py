"""Episodes without ROS: a driver, the executor and the simulator in one loop of simulation time; success rates.

A driver makes chunks. It is the scripted expert, which has the poses of all objects, or a policy, which has the inputs
and the latency of a policy on the robot.
"""

import math
import multiprocessing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vla_core.motion.chunk import StampedChunk, Verdict
from vla_core.motion.executor import ChunkExecutor, Hold, State
from vla_core.observe.action_prefix import action_prefix
from vla_core.observe.committed_actions import CommittedActions
from vla_core.observe.stall import StallDetector
from vla_core.profile import RobotProfile
from vla_model.policy import Prediction
from vla_model.types import Chunk, Observation
from vla_sim.expert import Expert
from vla_sim.kinematics import IKError
from vla_sim.rendering.cameras import Cameras
from vla_sim.world import World

TICK = 10  # [ms] of one control step
PLAN = 20  # control steps between two chunks of the expert
FRAME = 10  # control steps between two camera images: 10 Hz, as the simulated robot's cameras
AFTER = 50  # control steps after the last chunk, to come to rest
HELD = 100  # control steps for which success must last at the end of a policy's episode


@dataclass(frozen=True)
class Answer:
    """Output of a driver at one reference time."""

    chunk: Chunk | None  # None: no chunk
    subtask: str = ''
    message: str = ''  # a fault, as a sentence; empty: none
    done: bool = False  # there will be no more chunks


class Driver(Protocol):
    """Makes chunks. `look` is called every `period`; the executor gets its chunk `latency` later."""

    period: int  # control steps
    latency: int  # control steps, at most `period`
    says_done: bool  # False: the episode ends once success has lasted

    def begin(self, world: World) -> None:
        """Start with the world's new episode."""

    def look(self, world: World) -> Answer:
        """Return the chunk for the present state."""

    def on_verdict(self, sequence: int, taken: bool) -> None:
        """Report whether the executor accepted a chunk. sequence: number of the chunk in the episode, from 1."""


class ExpertDriver:
    """The scripted expert, without delay."""

    period, latency, says_done = PLAN, 0, True

    def __init__(self, expert: Expert) -> None:
        self.expert = expert

    def begin(self, world: World) -> None:
        self.expert.begin(world.task, world.instruction)

    def look(self, world: World) -> Answer:
        try:
            step = self.expert.plan(world.time_ns, world.joint_positions, world.gripper_opening, world.objects())
        except IKError as error:
            return Answer(None, message=str(error), done=True)
        return Answer(step.chunk, step.subtask, step.message, step.done)

    def on_verdict(self, sequence: int, taken: bool) -> None:
        """Ignore the verdict, as the expert continues on its path."""


class Acting(Protocol):
    """The part of vla_model.policy.Policy that drives; its chunks are joint set-points."""

    def act(self, observation: Observation, prefix: Chunk | None = None) -> Prediction: ...


class PolicyDriver:
    """A policy as driver. Its inputs are camera images, joints and the instruction."""

    says_done = False

    def __init__(
        self, policy: Acting, cameras: Cameras, period: float = 0.2, latency: float = 0.08, inpaint: bool = False,
        guide: Callable[[Observation, World], Observation] | None = None,
    ) -> None:  # fmt: skip
        """period: time between inferences [s], a multiple of the camera period.

        latency: from the time of an observation to the receipt of its chunk by the executor [s]. inpaint: give the
        action prefix to the policy. guide: changes each observation, to what a person says and draws.
        Raises ValueError for a wrong combination.
        """
        self.policy, self.cameras = policy, cameras
        self.period, self.latency = round(period * 1000 / TICK), round(latency * 1000 / TICK)
        if self.period < FRAME or self.period % FRAME:
            raise ValueError(f'period must be a multiple of {FRAME * TICK} ms (the cameras), got {period} s')
        if not 0 <= self.latency <= self.period:
            raise ValueError(f'latency must be 0 to the period of {period} s, got {latency} s')
        self.seen: Observation | None = None  # the newest observation
        self._inpaint, self._guide = inpaint, guide
        self._forget()

    def _forget(self) -> None:
        self.committed = CommittedActions()
        self._stall = StallDetector(self.committed)
        self._sequence = self._taken = 0  # of the newest chunk, and of the newest accepted one

    def begin(self, world: World) -> None:
        self.seen = None
        self._forget()

    def on_verdict(self, sequence: int, taken: bool) -> None:
        self._taken = sequence if taken else self._taken
        self.committed.reported(self._taken, refused=not taken)

    def look(self, world: World) -> Answer:
        if self._stall.stalled(world.time_ns, 0, world.joint_positions):
            return Answer(None)
        self.seen = Observation(
            t_ref=world.time_ns,
            images=self.cameras.render(world.snapshot()),
            positions=world.joint_positions,
            velocities=world.joint_velocities,
            gripper=world.gripper_opening,
            instruction=world.instruction,
        )
        if self._guide is not None:
            self.seen = self._guide(self.seen, world)
        prefix = action_prefix(self.committed, world.time_ns, 0, self.seen.positions) if self._inpaint else None
        try:
            chunk = self.policy.act(self.seen, prefix).chunk
        except ValueError as error:  # for example an arm far outside the model's range
            return Answer(None, message=str(error))
        self._sequence += 1
        self.committed.add(self._sequence, chunk, world.time_ns, 0, self.latency * TICK * 1e-3)
        return Answer(chunk)


@dataclass(frozen=True)
class EpisodeResult:
    """Result of one episode."""

    task: str
    seed: int
    instruction: str
    success: bool  # the simulator's own test, at the end
    duration: float  # [s] of simulation until the driver was done, success had lasted, or the time limit
    chunks: int
    refused: int  # chunks that the executor refused
    peak_speed: float  # largest measured share of a joint's velocity limit
    messages: tuple[str, ...]  # reasons of restarts, refused chunks and blockages, in order
    missed: str  # first stage of the task that was not reached, see referee.py; empty: success
    wrong: str  # wrong action, on another object than the instruction names; empty: none
    seams: tuple[float, ...]  # [rad] largest joint jump at each new chunk of a moving arm, before blending


def run_episode(
    world: World,
    driver: Driver,
    drive: ChunkExecutor,
    seed: int,
    instruction: str = '',
    time_limit: float = 30.0,
    watch: Callable[[World, str], None] | None = None,
) -> EpisodeResult:
    """Run one episode of the world's task. instruction: see World.reset; time_limit: [s] of simulation.

    watch: called in each control step with the world and the sub-task, for videos, records and tests.
    """
    world.reset(seed, instruction)
    driver.begin(world)
    drive.observe(world.joint_positions, world.time_ns)
    drive.activate(world.time_ns)
    began, chunks, peak, subtask = world.time_ns, 0, 0.0, ''
    messages: list[str] = []
    seams: list[float] = []
    coming: list[tuple[int, StampedChunk]] = []  # control step of the receipt
    held = refused = tick = 0
    ends = math.inf
    while tick < min(ends, time_limit * 1000 / TICK):
        now = world.time_ns
        drive.observe(world.joint_positions, now)
        if tick % driver.period == 0 and math.isinf(ends):
            answer = driver.look(world)
            subtask = answer.subtask
            _add(messages, answer.message)
            if answer.done:
                ends = tick + (AFTER if answer.chunk is not None else 0)
            if answer.chunk is not None:
                chunks += 1
                chunk = _stamped(answer.chunk, now, drive.epoch, chunks, drive.profile)
                coming.append((tick + driver.latency, chunk))
        while coming and coming[0][0] <= tick:
            moving, chunk = drive.state is State.EXECUTING, coming.pop(0)[1]
            taken = drive.ingest(chunk, now) is Verdict.ACCEPTED
            driver.on_verdict(chunk.sequence, taken)
            if not taken:  # it continues with the present one
                refused += 1
                _add(messages, f'the executor refused a chunk: {drive.message}')
            elif moving:
                seams.append(drive.seam_position)
        if set_point := drive.step(now):
            world.set_target(set_point.positions, set_point.velocities)
            if set_point.gripper is not None:
                world.set_gripper(set_point.gripper)
        world.step(TICK)
        peak = max(peak, float((np.abs(world.joint_velocities) / drive.profile.velocity).max()))
        if watch is not None:
            watch(world, subtask)
        held = held + 1 if world.success() else 0
        tick += 1
        if held >= HELD and not driver.says_done:
            break
        if (
            drive.hold is Hold.BLOCKED and drive.at_rest and not held
        ):  # the executor released the arm, and there is no operator to resume
            _add(messages, drive.message)
            break
    return EpisodeResult(
        task=world.task,
        seed=seed,
        instruction=world.instruction,
        success=world.success(),
        duration=(world.time_ns - began) * 1e-9,
        chunks=chunks,
        refused=refused,
        peak_speed=peak,
        messages=tuple(messages),
        missed=world.missed(),
        wrong=world.wrong_object(),
        seams=tuple(seams),
    )


def _stamped(chunk: Chunk, t_ref: int, epoch: int, sequence: int, profile: RobotProfile) -> StampedChunk:
    """Return the chunk with t_ref [ns], epoch of the observation, sequence and names, as the nodes publish it."""
    return StampedChunk(
        t_ref=t_ref,
        epoch=epoch,
        sequence=sequence,
        source='driver',
        joint_names=profile.joint_names,
        dt=chunk.dt,
        horizon=len(chunk.positions),
        positions=chunk.positions,
        gripper=chunk.gripper,
        frozen=chunk.frozen,
    )


def _add(messages: list[str], message: str) -> None:
    if message and message not in messages[-1:]:
        messages.append(message)


@dataclass(frozen=True)
class SuccessRate:
    """Success rate of one task over seeds."""

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
    """Return the score interval of a proportion (Wilson, 1927); z = 1.96: 95 %. Raises ValueError without trials."""
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
    global _worker  # noqa: PLW0603, kept by a worker process between episodes
    _worker = World(task), Expert(profile), time_limit


def _run_seed(seed: int) -> EpisodeResult:
    assert _worker is not None
    world, expert, time_limit = _worker
    return run_episode(world, ExpertDriver(expert), ChunkExecutor(expert.profile), seed, time_limit=time_limit)
