"""One episode of the expert in the simulator, recorded frame by frame: no ROS, but the executor and the controller of
the robot.
"""

import json
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vla_core.motion.chunk import StampedChunk
from vla_core.motion.executor import ChunkExecutor, ExecutorConfig
from vla_sim.expert import Expert, ExpertStep
from vla_sim.kinematics import IKError
from vla_sim.rendering.cameras import Cameras
from vla_sim.rollout import AFTER, FRAME, PLAN, TICK
from vla_sim.scene import CAMERAS
from vla_sim.world import World
from vla_training.collect.dagger import Leader
from vla_training.collect.dart import Disturbance, Push
from vla_training.collect.scenes import Away, begin_away, pixel, places
from vla_training.data.features import (
    ACTION,
    COMPLETED,
    DEPTH_SIDE,
    DONE,
    EXECUTED,
    POINTS,
    REMAINING,
    STATE,
    SUBTASK,
    SUCCESS,
    VELOCITY,
    columns_of,
    depth,
    ee_pixel,
    join,
)

PUSHED = 0.25  # [rad] that a joint may be from where the executor sent it; on the robot less: there nobody pushes
LONGEST = 4000  # control steps; then the episode has failed


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
    row |= {ee_pixel(name): pixel(world, name, world.tool_pose()[0]) for name in CAMERAS}
    row[POINTS] = json.dumps(places(world))
    recording.rows.append(row)


def _depth(world: World, cameras: Cameras) -> np.ndarray:
    """(DEPTH_SIDE * DEPTH_SIDE,) uint16 [mm], row by row."""
    metres = cameras.depth(world.snapshot(), CAMERAS[0])
    step = metres.shape[0] // DEPTH_SIDE
    millimetres = np.rint(metres[step // 2 :: step, step // 2 :: step] * 1000)
    return np.clip(millimetres, 0, 65535).astype(np.uint16).ravel()


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
