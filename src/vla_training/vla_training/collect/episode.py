"""Records an episode of the expert in the simulator, frame by frame.

The executor and the controller are those of the robot. No ROS is in the loop.
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
from vla_training.collect.dagger import RolloutPolicy
from vla_training.collect.dart import Disturbance, Push
from vla_training.collect.scenes import StartPose, object_pixels, pixel, randomise_start
from vla_training.data.features import (
    ACTION,
    COMPLETED,
    DONE,
    EXECUTED,
    GROUNDING_POINTS,
    REMAINING,
    STATE,
    SUBTASK,
    SUCCESS,
    VELOCITY,
    columns_of,
    depth,
    ee_pixel,
    join,
    sample_depth,
)

PUSHED = 0.25  # [rad] limit of the tracking error; larger than on the robot, because pushes add to it
LONGEST = 4000  # [control step] after which the episode has failed


@dataclass
class Recording:
    """One episode with a row per frame."""

    task: str  # of the simulator
    seed: int
    instruction: str
    success: bool = False
    images: dict[str, list[np.ndarray]] = field(default_factory=lambda: {name: [] for name in CAMERAS})
    rows: list[dict[str, Any]] = field(default_factory=list)

    def columns(self) -> dict[str, Any]:
        """Return an array (frames, ...) or a list of strings per column."""
        return columns_of(self.rows)


def record_episode(
    world: World,
    cameras: Cameras,
    expert: Expert,
    seed: int,
    push: Push | None = None,
    start: StartPose | None = None,
    tail: float = math.inf,
    time_limit: int = LONGEST,
    rollout_policy: RolloutPolicy | None = None,
    depth_map: bool = False,
) -> Recording:
    """Record how the expert does the world's task once.

    push: None leaves the set-points undisturbed. start: None starts at home. tail: recording ends so long after
    success [s], or when the expert is done and at rest. time_limit [control step]. rollout_policy: drives before the
    recording starts. depth_map: also record that of the first camera.
    """
    world.reset(seed)
    driven = rollout_policy is not None and rollout_policy.drive(world, cameras, seed)
    if not driven and start is not None and (rng := np.random.default_rng([seed, 2])).random() < start.share:
        randomise_start(world, expert, start, rng)
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
        ACTION: set_point.astype(np.float32),  # _finish replaces it by that of the next frame
        EXECUTED: (set_point + np.append(error, 0.0)).astype(np.float32),
        SUBTASK: plan.subtask,
        COMPLETED: join(plan.completed),
        REMAINING: join(plan.remaining),
        SUCCESS: world.success(),
        DONE: False,
    }
    row |= {ee_pixel(name): pixel(world, name, world.tool_pose()[0]) for name in CAMERAS}
    row[GROUNDING_POINTS] = json.dumps(object_pixels(world))
    recording.rows.append(row)


def _depth(world: World, cameras: Cameras) -> np.ndarray:
    """Return the depth map of the first camera, (DEPTH_SIDE * DEPTH_SIDE,) uint16 [mm], row by row."""
    millimetres = np.rint(sample_depth(cameras.depth(world.snapshot(), CAMERAS[0])) * 1000)
    return np.clip(millimetres, 0, 65535).astype(np.uint16).ravel()


def _finish(recording: Recording) -> None:
    """Make each frame's action the set-point of the next frame. The last frame keeps its own."""
    rows = recording.rows
    for name in (ACTION, EXECUTED):
        values = [row[name] for row in rows]
        for row, value in zip(rows, [*values[1:], *values[-1:]], strict=True):
            row[name] = value
    if rows:
        rows[-1][DONE] = True
        rows[-1][SUCCESS] = recording.success
