"""Simulated scenes for training: held-out seeds, start poses of the arm, and pixels of the objects in the images."""

from dataclasses import dataclass

import numpy as np

from vla_core.kinematics.ik import rotation_matrix
from vla_sim.expert import Expert
from vla_sim.kinematics import IKError, tool_down
from vla_sim.scene import CAMERAS
from vla_sim.tasks import X_RANGE, Y_RANGE, parse_instruction
from vla_sim.world import World

HELD_OUT = 2_000_000  # first seed for evaluation


def check_seeds(seeds: range) -> None:
    """Raise ValueError for seeds that are held out for evaluation."""
    if len(seeds) and max(seeds) >= HELD_OUT:
        raise ValueError(f'seeds from {HELD_OUT} on are held out for evaluation, got {max(seeds)}')


@dataclass(frozen=True)
class StartPose:
    """Distribution of the arm's start pose (initial-state randomisation).

    From home, the arm's pose shows where the object is. A model then learns from the joints, not from the images.
    """

    share: float = 0.6  # of the episodes that do not start at home
    near: float = 0.5  # share of those that start over one of the props, not anywhere over the table
    spread: float = 0.08  # [m] from the prop, standard deviation of each axis
    height: tuple[float, float] = (0.06, 0.42)  # [m] of the tool above the table; low ones are likelier
    yaw: float = 0.5  # [rad] standard deviation, from where the tool faces away from the base
    tilt: float = 0.08  # [rad] standard deviation about each axis
    instructed: bool = False  # near starts are over the object that the instruction names first, not over any prop

    @classmethod
    def near_object(cls) -> 'StartPose':
        """Return the distribution of poses close above the object to grip, with the hand turned at random.

        The expert turns its hand long before it reaches the object. A model that sees only that learns that a hand near
        an object needs no turn.
        """
        return cls(share=1.0, near=1.0, spread=0.025, height=(0.045, 0.3), yaw=1.0, instructed=True)


def randomise_start(world: World, expert: Expert, start: StartPose, rng: np.random.Generator) -> None:
    """Put the arm at a pose drawn from `start`. It stays where it is when 20 draws give none within reach."""
    goal = parse_instruction(world.instruction)
    for _ in range(20):
        place = rng.uniform((X_RANGE[0] - 0.05, Y_RANGE[0]), (X_RANGE[1], Y_RANGE[1]))
        if rng.random() < start.near:
            props = [p for p in world.episode.placements if not start.instructed or p.name == goal.object]
            prop = props[rng.integers(len(props))]
            place = np.array([prop.x, prop.y]) + rng.normal(0.0, start.spread, 2)
        low, high = start.height
        height = low + (high - low) * rng.random() ** 2
        yaw = np.arctan2(place[1], place[0]) + rng.normal(0.0, start.yaw)
        rotation = tool_down(float(yaw)) @ rotation_matrix(np.append(rng.normal(0.0, start.tilt, 2), 0.0))
        opening = float(rng.choice([0.0, 0.05, expert.profile.gripper_max_opening]))
        try:
            q = expert.kinematics.inverse(np.append(place, height), rotation, expert.kinematics.home)
        except IKError:
            continue
        if world.put_arm(q, opening):
            return


def object_pixels(world: World) -> dict[str, dict[str, list[float]]]:
    """Return camera -> object name -> [x, y] in the image [px], possibly outside it. A button's point is its cap."""
    poses = world.objects()
    return {
        camera: {
            p.name.replace('_', ' '): [
                round(float(x), 1) for x in pixel(world, camera, poses.get(f'{p.name}_cap', poses[p.name])[0])
            ]
            for p in world.episode.placements
        }
        for camera in CAMERAS
    }


def pixel(world: World, camera: str, place: np.ndarray) -> np.ndarray:
    """Return the pixel (2,) of a point (3,) [m] in the world frame: x right, y down, possibly outside the image."""
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
