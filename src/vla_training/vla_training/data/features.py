"""Defines the names and types of the columns of data sets.

Stock lerobot makes every column whose name starts with `observation` an input of a policy, and with `action` an output.
Columns for training alone therefore start with `truth.` (from the simulator), `executed.` or `annotation.`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vla_training.lerobot import Feature

FPS = 10  # frames per second of the simulator's data sets
PIXELS = 256  # side of the simulator's images; pixel coordinates refer to it
DEPTH_SIDE = 64

STATE = 'observation.state'  # measured joint positions [rad], gripper opening [m]
VELOCITY = 'observation.velocity'  # measured [rad/s]
ACTION = 'action'  # set-point due one frame later: joint positions [rad], gripper opening [m]
EXECUTED = 'executed.action'  # set-point that was sent for that time, with the added noise
EXECUTED_BEFORE = 'action.executed'  # name of EXECUTED in data sets of earlier versions
SUBTASK = 'annotation.subtask'  # current sub-task, in words; empty: none
COMPLETED = 'annotation.completed'  # finished sub-tasks, in order, joined by SEPARATOR
REMAINING = 'annotation.remaining'  # sub-tasks after the current one, joined by SEPARATOR
GROUNDING_POINTS = 'annotation.points'  # JSON: camera -> object name -> [x, y] in its image [px], possibly outside
SUCCESS = 'next.success'
DONE = 'next.done'  # true in the last frame of an episode
SEPARATOR = '; '


def image(camera: str) -> str:
    """Return the column of a camera's RGB images."""
    return f'observation.images.{camera}'


def depth(camera: str) -> str:
    """Return the column of a camera's depth map: distance along the optical axis [mm], row by row.

    The map is flat, because stock lerobot cannot edit columns of more dimensions.
    """
    return f'truth.depth.{camera}'


def sample_depth(metres: np.ndarray) -> np.ndarray:
    """Return a depth map (DEPTH_SIDE, DEPTH_SIDE) of one (side, side): every n-th pixel, from the middle of a cell.

    Depth codes depend on how a map was sampled, so all labels are made of such maps.
    """
    step = metres.shape[0] // DEPTH_SIDE
    return metres[step // 2 :: step, step // 2 :: step]


def ee_pixel(camera: str) -> str:
    """Return the column of the tool's pixel in a camera's image: x right, y down, possibly outside the image."""
    return f'truth.ee_pixel.{camera}'


def tool_pixel(camera: str) -> str:
    """Return the column of the same pixel, computed from a bag by kinematics and camera_info; NaN: unknown."""
    return f'annotation.tool_pixel.{camera}'


def tool_pixel_features(cameras: Iterable[str]) -> dict[str, Feature]:
    """Return the columns of the tool's pixels of a bag."""
    return {tool_pixel(name): Feature('float32', (2,), ['x', 'y']) for name in cameras}


def robot_features(
    joint_names: Sequence[str], cameras: Mapping[str, tuple[int, int]], *, gripper: bool = True
) -> dict[str, Feature]:
    """Return the columns that every data set of a robot has. cameras: name -> (height, width) [px]."""
    joints = list(joint_names)
    values = [*joints, 'gripper'] if gripper else joints
    return {
        **{image(name): video_feature(*size) for name, size in cameras.items()},
        STATE: Feature('float32', (len(values),), values),
        VELOCITY: Feature('float32', (len(joints),), joints),
        ACTION: Feature('float32', (len(values),), values),
        DONE: Feature('bool'),
    }


def subtask_features() -> dict[str, Feature]:
    """Return the columns of sub-tasks."""
    return {name: Feature('string') for name in (SUBTASK, COMPLETED, REMAINING)}


def executed(columns: Mapping[str, Any]) -> Any | None:
    """Return the column EXECUTED, also under its earlier name. None: the data set has none."""
    return columns.get(EXECUTED, columns.get(EXECUTED_BEFORE))


def simulator_features(
    joint_names: Sequence[str], cameras: Sequence[str], *, depth_map: bool = False
) -> dict[str, Feature]:
    """Return the columns of the simulator's data sets. depth_map: add that of the first camera."""
    robot = robot_features(joint_names, dict.fromkeys(cameras, (PIXELS, PIXELS)))
    depth_maps = {depth(cameras[0]): Feature('uint16', (DEPTH_SIDE * DEPTH_SIDE,))} if depth_map else {}
    return {
        **robot,
        **subtask_features(),
        EXECUTED: robot[ACTION],
        SUCCESS: Feature('bool'),
        GROUNDING_POINTS: Feature('string'),
        **depth_maps,
        **{ee_pixel(name): Feature('float32', (2,), ['x', 'y']) for name in cameras},
    }


def video_feature(height: int, width: int) -> Feature:
    return Feature('video', (height, width, 3), ['height', 'width', 'channels'])


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray | list[str]]:
    """Return T rows of the same names as columns: arrays (T, ...) or lists of T strings."""
    return {
        name: [row[name] for row in rows] if isinstance(value, str) else np.stack([row[name] for row in rows])
        for name, value in (rows[0] if rows else {}).items()
    }


def join(subtasks: Sequence[str]) -> str:
    return SEPARATOR.join(subtasks)


def split(text: str) -> list[str]:
    """Return the sub-tasks of a joined text."""
    return [part for part in text.split(SEPARATOR) if part]
