"""Expert episodes from the simulator as a data set: no ROS in the loop, the controller and executor of the robot.

The arm is pushed off the expert's path now and then by a smooth error of its set-points. What is recorded as action is
the set-point without it, so the data shows the way back (DART, Laskey et al. 2017).
"""

import json
import math
import multiprocessing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from vla_policy_node.core.chunk import StampedChunk
from vla_policy_node.core.executor import ChunkExecutor, ExecutorConfig
from vla_policy_node.core.profile import RobotProfile
from vla_policy_node.core.seams import Seams
from vla_sim.cameras import Cameras
from vla_sim.expert import Expert, ExpertStep
from vla_sim.kinematics import IKError, rotation_matrix, tool_down
from vla_sim.rollout import PolicyDriver, run_episode
from vla_sim.scene import CAMERAS
from vla_sim.tasks import X_RANGE, Y_RANGE, parse_instruction
from vla_sim.world import World
from vla_training.features import (
    ACTION,
    COMPLETED,
    DEPTH_SIDE,
    DONE,
    EXECUTED,
    FPS,
    POINTS,
    REMAINING,
    STATE,
    SUBTASK,
    SUCCESS,
    VELOCITY,
    columns_of,
    depth,
    ee_pixel,
    image,
    join,
    simulator_features,
)
from vla_training.lerobot import Dataset, DatasetWriter, Feature, encode_video
from vla_training.lerobot.layout import INDICES, INFO

TICK = 10  # [ms] of one control step
PLAN = 20  # control steps between two chunks of the expert
FRAME = round(1000 / FPS / TICK)  # control steps between two frames
REST = 500  # [ms] for an arm that was led to come to rest
AFTER = 50  # control steps recorded after the task is done: the arm at rest
PUSHED = 0.25  # [rad] that a joint may be from where the executor sent it; on the robot less: there nobody pushes
LONGEST = 4000  # control steps; then the episode has failed
HELD_OUT = 2_000_000  # seeds from here on are for evaluation


@dataclass(frozen=True)
class Push:
    """How the set-points are disturbed. Lengths of time [s], angles [rad]."""

    size: float = 0.035  # standard deviation per joint
    start_size: float = 0.06  # same, of the push that an episode may begin with
    start_share: float = 0.4  # of the episodes that begin with one
    rest: tuple[float, float] = (0.4, 2.0)  # between two pushes
    hold: tuple[float, float] = (0.3, 0.9)
    lag: float = 0.12  # the error follows the push like two low-pass filters in a row


@dataclass(frozen=True)
class Away:
    """Where episodes begin that do not begin at home. Else the arm's pose tells where the object is, and who learns
    from that looks at the joints, not at the pictures.
    """

    share: float = 0.6  # of the episodes
    near: float = 0.5  # share of those that begin over one of the props, not anywhere over the table
    spread: float = 0.08  # [m] from the prop, standard deviation of each axis
    height: tuple[float, float] = (0.06, 0.42)  # [m] of the tool above the table; low ones are likelier
    yaw: float = 0.5  # [rad] standard deviation, from where the tool faces away from the base
    tilt: float = 0.08  # [rad] standard deviation about each axis
    named: bool = False  # near ones begin over what the instruction names first, not over any prop

    @classmethod
    def over(cls) -> 'Away':
        """Close over what is to be gripped, the hand turned any way. The expert's hand is turned right long before it
        is there, so who learns from that alone learns that a hand close to a thing needs no turning, however it lies.
        """
        return cls(share=1.0, near=1.0, spread=0.025, height=(0.045, 0.3), yaw=1.0, named=True)


def begin_away(world: World, expert: Expert, away: Away, rng: np.random.Generator) -> None:
    """Puts the arm where an episode begins that does not begin at home; leaves it there where nothing is found."""
    goal = parse_instruction(world.instruction)
    for _ in range(20):
        place = rng.uniform((X_RANGE[0] - 0.05, Y_RANGE[0]), (X_RANGE[1], Y_RANGE[1]))
        if rng.random() < away.near:
            props = [p for p in world.episode.placements if not away.named or p.name == goal.object]
            prop = props[rng.integers(len(props))]
            place = np.array([prop.x, prop.y]) + rng.normal(0.0, away.spread, 2)
        low, high = away.height
        height = low + (high - low) * rng.random() ** 2
        yaw = np.arctan2(place[1], place[0]) + rng.normal(0.0, away.yaw)
        rotation = tool_down(float(yaw)) @ rotation_matrix(np.append(rng.normal(0.0, away.tilt, 2), 0.0))
        opening = float(rng.choice([0.0, 0.05, expert.profile.gripper_max_opening]))
        try:
            q = expert.kinematics.inverse(np.append(place, height), rotation, expert.kinematics.home)
        except IKError:
            continue
        if world.put_arm(q, opening):
            return


@dataclass(frozen=True)
class Lead:
    """A policy that drives first, so that the expert shows the way on from where a policy gets to (DAgger, Ross et
    al. 2011, with the expert in command afterwards).
    """

    checkpoint: str
    share: float = 0.7  # of the episodes
    seconds: tuple[float, float] = (1.0, 14.0)  # for which it drives
    latency: tuple[float, float] = (0.08, 0.4)  # [s] of its chunks; it gets elsewhere when it is late
    inpaint: float = 0.5  # share of the episodes in which it is given what is under way


class Leader:
    """The policy of a Lead, loaded. Raises FileNotFoundError or ValueError as Drive.load."""

    def __init__(self, lead: Lead, profile: RobotProfile) -> None:
        from vla_training.evaluate import Drive  # brings torch

        self.lead, self.profile = lead, profile
        self.policy = Drive(lead.checkpoint).load(profile)

    def leads(self, world: World, cameras: Cameras, seed: int) -> bool:
        """Drives the episode of this seed for a while and brings the arm to rest. False where the seed says that it
        does not drive, or where it did the task itself: then the episode has not begun.
        """
        rng = np.random.default_rng([seed, 4])
        if rng.random() >= self.lead.share:
            return False
        seconds, latency = rng.uniform(*self.lead.seconds), round(rng.uniform(*self.lead.latency), 2)
        inpaint = bool(rng.random() < self.lead.inpaint)
        period = math.ceil(max(latency, 0.2) * FPS - 1e-6) / FPS  # whole frames
        driver = PolicyDriver(self.policy, cameras, period, latency, inpaint)
        seams = Seams('inpaint' if inpaint else 'weighted', gripper_threshold=self.profile.gripper_max_opening / 2)
        run_episode(world, driver, ChunkExecutor(self.profile, seams=seams), seed, time_limit=seconds)
        world.set_target(world.joint_positions, np.zeros(self.profile.dof))
        world.step(REST)
        if done := world.success():
            world.reset(seed)
        return not done


class Disturbance:
    """The error of the set-points over time. `advance` is called once per control step."""

    def __init__(self, push: Push, rng: np.random.Generator, dof: int) -> None:
        self.push, self.rng, self.dof = push, rng, dof
        self.error, self._half = np.zeros(dof), np.zeros(dof)  # [rad]
        self._target = np.zeros(dof)
        self._left = 0  # control steps until the target changes
        if rng.random() < push.start_share:
            self._aim(push.start_size)

    def advance(self, height: float) -> np.ndarray:
        """(dof,) [rad] error of the next set-point. height [m] of the tool: near the table the arm is pushed less."""
        if self._left == 0:
            if self._target.any():
                self._target = np.zeros(self.dof)
                self._left = self._steps(self.push.rest)
            else:
                self._aim(self.push.size * float(np.clip(height / 0.15, 0.15, 1.0)))
        self._left -= 1
        share = TICK * 1e-3 / self.push.lag
        self._half = self._half + share * (self._target - self._half)
        self.error = self.error + share * (self._half - self.error)
        return self.error

    def _aim(self, size: float) -> None:
        self._target = self.rng.normal(0.0, size, self.dof)
        self._left = self._steps(self.push.hold)

    def _steps(self, span: tuple[float, float]) -> int:
        return max(1, round(self.rng.uniform(*span) * 1000 / TICK))


@dataclass
class Recording:
    """One episode, a row per frame."""

    task: str  # of the simulator
    seed: int
    instruction: str
    success: bool = False
    images: dict[str, list[np.ndarray]] = field(default_factory=lambda: {name: [] for name in CAMERAS})
    rows: list[dict[str, Any]] = field(default_factory=list)

    def columns(self) -> dict[str, Any]:
        """Per column an array (frames, ...), or a list of strings."""
        return columns_of(self.rows)


def record_episode(
    world: World,
    cameras: Cameras,
    expert: Expert,
    seed: int,
    push: Push | None = None,
    away: Away | None = None,
    tail: float = math.inf,
    time_limit: int = LONGEST,
    leader: Leader | None = None,
    depth_map: bool = False,
) -> Recording:
    """The expert does the world's task once. push None: undisturbed; away None: from home.

    leader: of what drives before the record begins. tail: [s] that are recorded after success, or until the expert is
    done and at rest. time_limit: control steps. depth_map: of the first camera.
    """
    world.reset(seed)
    led = leader is not None and leader.leads(world, cameras, seed)
    if not led and away is not None and (rng := np.random.default_rng([seed, 2])).random() < away.share:
        begin_away(world, expert, away, rng)
    expert.begin(world.task, world.instruction)
    drive = ChunkExecutor(expert.profile, ExecutorConfig(tracking_limit=PUSHED))
    drive.observe(world.joint_positions, world.time_ns)
    drive.activate(world.time_ns)
    recording = Recording(world.task, seed, world.instruction)
    disturbance = Disturbance(push, np.random.default_rng([seed, 1]), expert.profile.dof) if push else None
    plan: ExpertStep | None = None
    ends, tick, since = time_limit, 0, 0
    while tick <= ends:
        now = world.time_ns
        drive.observe(world.joint_positions, now)
        if tick % PLAN == 0 and ends == time_limit:
            try:
                plan = expert.plan(now, world.joint_positions, world.gripper_opening, world.objects())
            except IKError:
                break
            if plan.done:
                ends = min(tick + AFTER, time_limit)
            drive.ingest(_stamped(plan, now, drive.epoch, tick + 1, expert), now)
        set_point = drive.step(now)
        assert set_point is not None and plan is not None
        error = disturbance.advance(float(world.tool_pose()[0][2])) if disturbance else np.zeros(expert.profile.dof)
        opening = world.gripper_opening if set_point.gripper is None else set_point.gripper
        if tick % FRAME == 0:
            _record(recording, world, cameras, plan, np.append(set_point.positions, opening), error)
            if depth_map:
                recording.rows[-1][depth(CAMERAS[0])] = _depth(world, cameras)
        world.set_target(set_point.positions + error, set_point.velocities)
        world.set_gripper(opening)
        world.step(TICK)
        tick += 1
        since = since + 1 if world.success() else 0
        if since * TICK > tail * 1000:
            break
    recording.success = world.success()
    _finish(recording)
    return recording


def _stamped(plan: ExpertStep, now: int, epoch: int, sequence: int, expert: Expert) -> StampedChunk:
    return StampedChunk(
        t_ref=now,
        epoch=epoch,
        sequence=sequence,
        source='expert',
        joint_names=expert.profile.joint_names,
        dt=plan.chunk.dt,
        horizon=len(plan.chunk.positions),
        positions=plan.chunk.positions,
        gripper=plan.chunk.gripper,
    )


def _record(
    recording: Recording, world: World, cameras: Cameras, plan: ExpertStep, set_point: np.ndarray, error: np.ndarray
) -> None:
    snapshot = world.snapshot()
    for name, picture in cameras.render(snapshot).items():
        recording.images[name].append(picture)
    row = {
        STATE: np.append(world.joint_positions, world.gripper_opening).astype(np.float32),
        VELOCITY: world.joint_velocities.astype(np.float32),
        ACTION: set_point.astype(np.float32),  # becomes that of the next frame when the episode is over
        EXECUTED: (set_point + np.append(error, 0.0)).astype(np.float32),
        SUBTASK: plan.subtask,
        COMPLETED: join(plan.completed),
        REMAINING: join(plan.remaining),
        SUCCESS: world.success(),
        DONE: False,
    }
    row |= {ee_pixel(name): _pixel(world, name, world.tool_pose()[0]) for name in CAMERAS}
    row[POINTS] = json.dumps(places(world))
    recording.rows.append(row)


def _depth(world: World, cameras: Cameras) -> np.ndarray:
    """(DEPTH_SIDE * DEPTH_SIDE,) uint16 [mm], row by row."""
    metres = cameras.depth(world.snapshot(), CAMERAS[0])
    step = metres.shape[0] // DEPTH_SIDE
    millimetres = np.rint(metres[step // 2 :: step, step // 2 :: step] * 1000)
    return np.clip(millimetres, 0, 65535).astype(np.uint16).ravel()


def places(world: World) -> dict[str, dict[str, list[float]]]:
    """Camera -> name of a thing -> [x, y] in its image [px], which may lie outside. Of a button what gets pressed."""
    things = world.objects()
    return {
        camera: {
            p.name.replace('_', ' '): [
                round(float(x), 1) for x in _pixel(world, camera, things.get(f'{p.name}_cap', things[p.name])[0])
            ]
            for p in world.episode.placements
        }
        for camera in CAMERAS
    }


def _pixel(world: World, camera: str, place: np.ndarray) -> np.ndarray:
    """(2,) [px] where a place (3,) [m] is in the image, x right, y down; it may lie outside, far behind the camera."""
    position, quat = world.camera_pose(camera)
    w, x, y, z = quat
    rotation = np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip
    point = rotation.T @ (place - position)
    info = world.camera_info(camera)
    return (info.matrix @ point / max(point[2], 1e-3))[:2].astype(np.float32)


def _finish(recording: Recording) -> None:
    """An action is the set-point due one frame later; what follows the last frame is what it holds."""
    rows = recording.rows
    for name in (ACTION, EXECUTED):
        values = [row[name] for row in rows]
        for row, value in zip(rows, [*values[1:], *values[-1:]], strict=True):
            row[name] = value
    if rows:
        rows[-1][DONE] = True
        rows[-1][SUCCESS] = recording.success


# ---- many episodes


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

    An unfinished data set in `out` is gone on with. Failed episodes are left out: they show what not to do. Raises
    ValueError for seeds that are held out for evaluation.
    """
    if len(seeds) and max(seeds) >= HELD_OUT:
        raise ValueError(f'seeds from {HELD_OUT} on are held out for evaluation, got {max(seeds)}')
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
