"""Measures the images that a model predicts for given actions, in held-out scenes of the simulator.

The expert does the task. At frames of its motion the model gets the images and the set-points of the next
steps. Its images are compared with the camera's later ones. Two references are measured, too: the reconstruction by the
image tokenizer, which is a bound for codes, and 'the image before', which assumes that nothing moves. The pixels of
the arm are those that show the robot in the image that came.
"""

from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from vla_core.motion.executor import ChunkExecutor, SetPoint
from vla_core.profile import RobotProfile
from vla_model.image_tokenizer import ImageTokenizer, preprocess
from vla_model.policy import WORLD, Policy, WorldOptions, finish
from vla_model.types import Chunk, Observation
from vla_sim.expert import Expert
from vla_sim.rendering.cameras import Cameras
from vla_sim.rollout import FRAME, TICK, ExpertDriver, run_episode
from vla_sim.tasks import TASKS
from vla_sim.world import World
from vla_training.collect.scenes import HELD_OUT
from vla_training.evaluate.offline import Sums
from vla_training.image_tokenizer.metrics import psnr, ssim

FIRST_SEED = HELD_OUT + 600_000
AFTER = (2, 4, 8)  # steps after which images are predicted, as far as the chunk goes


@dataclass(frozen=True)
class Shot:
    """One frame of an episode."""

    observation: Observation
    sent: np.ndarray  # (dof + 1,) set-point and opening that were in force
    arm: np.ndarray  # (size, size) bool, of the first camera's image


class Recorder(ChunkExecutor):
    """An executor that keeps its newest set-point."""

    sent: SetPoint | None = None

    def step(self, now: int, elapsed: float | None = None) -> SetPoint | None:
        self.sent = super().step(now, elapsed)
        return self.sent


def record(world: World, cameras: Cameras, expert: Expert, seed: int, camera: str) -> list[Shot]:
    """Return the frames of an episode that the expert does; camera: that of the arm's pixels."""
    executor, shots, tick = Recorder(expert.profile), list[Shot](), 0

    def watch(world: World, _: str) -> None:
        nonlocal tick
        if tick % FRAME == 0:
            snapshot, sent = world.snapshot(), executor.sent
            arm = world.joint_positions if sent is None else sent.positions
            opening = world.gripper_opening if sent is None or sent.gripper is None else sent.gripper
            seen = Observation(
                t_ref=world.time_ns,
                images=cameras.render(snapshot),
                positions=world.joint_positions,
                velocities=world.joint_velocities,
                gripper=world.gripper_opening,
                instruction=world.instruction,
            )
            shots.append(Shot(seen, np.append(arm, opening), cameras.robot_mask(snapshot, camera)))
        tick += 1

    run_episode(world, ExpertDriver(expert), executor, seed, watch=watch)
    return shots


def evaluate_world(
    policy: Policy, profile: RobotProfile, scenes: int, frames: int = 6, console: Console | None = None,
    tokenizer: ImageTokenizer | None = None, tasks: tuple[str, ...] = TASKS,
) -> dict[str, float | int]:  # fmt: skip
    """Return measures by name, means over `frames` frames of each of `scenes` held-out scenes per task.

    tokenizer: of the model, for the reference of its reconstruction. Raises ValueError for a model without WORLD.
    """
    info = policy.info
    if WORLD not in info.outputs:
        raise ValueError(f'model {info.model_id} predicts no images for given actions: it was trained without them')
    after = [k for k in AFTER if k <= info.horizon]
    stride = round(info.dt * 1000 / (TICK * FRAME))
    sums, count = Sums(), 0
    with Progress(console=console, transient=True) as bar:
        line = bar.add_task('images after given actions', total=len(tasks) * scenes)
        for task in tasks:
            world = World(task)
            cameras, expert = world.cameras(), Expert(profile)
            for seed in range(FIRST_SEED, FIRST_SEED + scenes):
                shots = record(world, cameras, expert, seed, info.cameras[0])
                usable = len(shots) - stride * info.horizon
                for at in np.linspace(0, usable - 1, min(frames, usable)).round().astype(int) if usable > 0 else ():
                    _measure(policy, shots[at:][::stride], after, sums, tokenizer)
                    count += 1
                bar.advance(line)
            cameras.close()
    return {'frames': count, **sums.means()}


def _measure(policy: Policy, shots: list[Shot], after: list[int], sums: Sums, tokenizer: ImageTokenizer | None) -> None:
    """Add the measures of the first shot; the others follow it a step apart each."""
    info, seen = policy.info, shots[0].observation
    steps = np.array([shot.sent for shot in shots[1 : info.horizon + 1]])
    chunk = Chunk(steps[:, : info.dof], steps[:, info.dof] if info.gripper else np.zeros(0), info.dt)
    for k in after:
        found, then = finish(policy.start(WORLD, seen, WorldOptions(chunk, k))), shots[k]
        seconds = f'{k * info.dt:g} s'
        for camera in info.cameras:
            predicted = found.images[camera]
            side = len(predicted)
            true, before = (pixels(shot.observation.images[camera], side) for shot in (then, shots[0]))
            pictures = {'predicted': _unit(predicted), 'the image before': before}
            if tokenizer is not None:
                pictures['tokenizer'] = _best(tokenizer, then.observation.images[camera])
            for name, picture in pictures.items():
                sums.add(f'{camera}, {seconds}: {name} PSNR [dB]', float(psnr(picture, true)))
                sums.add(f'{camera}, {seconds}: {name} SSIM', float(ssim(picture, true)))
                if camera == info.cameras[0] and then.arm.any():
                    arm = pixels(np.repeat(then.arm[..., None] * np.uint8(255), 3, 2), side)[0, 0] > 0.5
                    error = (picture - true)[0, :, arm].square().mean().clamp(min=1e-6)
                    sums.add(f'{camera}, {seconds}: {name} PSNR on the arm [dB]', float(-10 * error.log10()))


def pixels(picture: np.ndarray, side: int) -> Tensor:
    """Return the preprocessed picture (1, 3, side, side) in [0, 1]."""
    return preprocess(picture, side)[None] / 2 + 0.5


def _unit(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255


@torch.inference_mode()
def _best(tokenizer: ImageTokenizer, picture: np.ndarray) -> Tensor:
    codes = tokenizer.encode(preprocess(picture, tokenizer.config.resolution)[None])
    return (tokenizer.decode(codes) / 2 + 0.5).clamp(0, 1)
