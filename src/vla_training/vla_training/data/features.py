"""The columns of our data sets: their names and types in one place.

Stock lerobot makes every column whose name begins with `observation` an input of a policy, and with `action` an output.
What only training may know has other names: `truth.` of the simulator, `executed.`, `annotation.`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vla_training.lerobot import Feature

FPS = 10  # frames per second of the simulator's data sets
PIXELS = 256  # side of the simulator's images; pixel coordinates refer to it
DEPTH_SIDE = 64

STATE = 'observation.state'  # measured joint positions [rad], gripper opening [m]
VELOCITY = 'observation.velocity'  # measured [rad/s]
ACTION = 'action'  # set-point due one frame later: joint positions [rad], gripper opening [m]
EXECUTED = 'executed.action'  # the set-point that was sent for that time, with the noise that was added
EXECUTED_BEFORE = 'action.executed'  # its name in data sets of earlier versions
SUBTASK = 'annotation.subtask'  # what is being done, in words; empty: nothing
COMPLETED = 'annotation.completed'  # sub-tasks done, in order, joined by SEPARATOR
REMAINING = 'annotation.remaining'  # sub-tasks to come, without the current one, joined by SEPARATOR
POINTS = 'annotation.points'  # JSON: camera -> name of a thing -> [x, y] in its image [px]; may lie outside
SUCCESS = 'next.success'
DONE = 'next.done'  # true in the last frame of an episode
SEPARATOR = '; '


def image(camera: str) -> str:
    """RGB."""
    return f'observation.images.{camera}'


def depth(camera: str) -> str:
    """Distance along the optical axis [mm], row by row; flat: stock lerobot cannot edit columns of more dimensions."""
    return f'truth.depth.{camera}'


def ee_pixel(camera: str) -> str:
    """Where the tool is in the camera's image [px]: x to the right, y down; may lie outside."""
    return f'truth.ee_pixel.{camera}'


def robot_features(
    joint_names: Sequence[str], cameras: Mapping[str, tuple[int, int]], *, gripper: bool = True
) -> dict[str, Feature]:
    """What every robot's data set has. cameras: (height, width) [px] by name."""
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
    """What there is besides, where somebody said which sub-task was being done."""
    return {name: Feature('string') for name in (SUBTASK, COMPLETED, REMAINING)}


def executed(columns: Mapping[str, Any]) -> Any | None:
    """The column EXECUTED, also of a data set of an earlier version; None: it has none."""
    return columns.get(EXECUTED, columns.get(EXECUTED_BEFORE))


def simulator_features(
    joint_names: Sequence[str], cameras: Sequence[str], *, depth_map: bool = False
) -> dict[str, Feature]:
    """What the simulator's data sets have. depth_map: of the first camera."""
    robot = robot_features(joint_names, dict.fromkeys(cameras, (PIXELS, PIXELS)))
    depth_maps = {depth(cameras[0]): Feature('uint16', (DEPTH_SIDE * DEPTH_SIDE,))} if depth_map else {}
    return {
        **robot,
        **subtask_features(),
        EXECUTED: robot[ACTION],
        SUCCESS: Feature('bool'),
        POINTS: Feature('string'),
        **depth_maps,
        **{ee_pixel(name): Feature('float32', (2,), ['x', 'y']) for name in cameras},
    }


def video_feature(height: int, width: int) -> Feature:
    return Feature('video', (height, width, 3), ['height', 'width', 'channels'])


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray | list[str]]:
    """Rows, one per frame, as columns: arrays (T, ...), lists of strings. All rows have the same names."""
    return {
        name: [row[name] for row in rows] if isinstance(value, str) else np.stack([row[name] for row in rows])
        for name, value in (rows[0] if rows else {}).items()
    }


def join(subtasks: Sequence[str]) -> str:
    return SEPARATOR.join(subtasks)


def split(text: str) -> list[str]:
    """The sub-tasks of a column whose values are joined."""
    return [part for part in text.split(SEPARATOR) if part]
