"""Joint states and set-points to arrays: one decode for the live node and for bags (no ROS import here)."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from vla_core.clocks import NS


def decode_joints(msg: Any, joint_names: Sequence[str], topic: str) -> tuple[np.ndarray, np.ndarray]:
    """Positions (dof,) [rad] and velocities (dof,) [rad/s] of a sensor_msgs/JointState, in the order of joint_names.

    Raises ValueError naming the topic, the joint and the remedy: a name missing or doubled, lengths that do not
    fit, values that are not finite.
    """
    index = _indices(tuple(msg.name), tuple(joint_names), topic)
    if len(msg.velocity) == 0:
        raise ValueError(f'joint state on {topic} has no velocities: set the driver to publish them')
    return (
        _take(msg.position, msg, index, joint_names, topic, 'position'),
        _take(msg.velocity, msg, index, joint_names, topic, 'velocity'),
    )


def decode_gripper(msg: Any, gripper_joint_names: Sequence[str], topic: str) -> float:
    """Opening of the gripper [m]: the sum of its finger joints. Errors as decode_joints."""
    return float(decode_positions(msg, gripper_joint_names, topic).sum())


def decode_positions(msg: Any, joint_names: Sequence[str], topic: str) -> np.ndarray:
    """Positions (dof,) [rad] alone: of set-points, which need no velocities. Errors as decode_joints."""
    index = _indices(tuple(msg.name), tuple(joint_names), topic)
    return _take(msg.position, msg, index, joint_names, topic, 'position')


def decode_set_point(msg: Any, joint_names: Sequence[str], topic: str) -> tuple[list[int], np.ndarray]:
    """Return times (1,) [ns since its stamp] and positions (1, dof) [rad] of a JointState that is a set-point.

    Errors as decode_joints.
    """
    return [0], decode_positions(msg, joint_names, topic)[None]


def decode_trajectory(msg: Any, joint_names: Sequence[str], topic: str) -> tuple[list[int], np.ndarray]:
    """Times (n,) [ns since its stamp] and positions (n, dof) [rad] of a trajectory_msgs/JointTrajectory. Raises
    ValueError as decode_joints does, and where it has no points."""
    index = _indices(tuple(msg.joint_names), tuple(joint_names), topic)
    if not msg.points or any(len(p.positions) != len(msg.joint_names) for p in msg.points):
        raise ValueError(f'trajectory on {topic} has no points, or one without a position for each joint')
    positions = np.array([p.positions for p in msg.points], float)[:, index]
    _check_finite(positions, f'trajectory on {topic}')
    return [p.time_from_start.sec * NS + p.time_from_start.nanosec for p in msg.points], positions


def decode_array(msg: Any, joint_names: Sequence[str], topic: str) -> tuple[list[int], np.ndarray]:
    """Return times (1,) [ns since it was received] and positions (1, dof) [rad] of a std_msgs/Float64MultiArray.

    Its order is that of joint_names. Raises ValueError for another number of joints, or for what is not finite.
    """
    positions = np.array(msg.data, float)
    if positions.shape != (len(joint_names),):
        raise ValueError(
            f'set-point on {topic} has {positions.size} numbers, the robot profile {len(joint_names)} joints'
        )
    _check_finite(positions, f'set-point on {topic}')
    return [0], positions[None]


def _check_finite(positions: np.ndarray, what: str) -> None:
    if not np.isfinite(positions).all():
        raise ValueError(f'{what} has a position that is not finite: its sender is broken')


@functools.lru_cache(maxsize=64)
def _indices(there: tuple[str, ...], wanted: tuple[str, ...], topic: str) -> list[int]:
    """Places of the wanted names, which a sender has in the same order each time. Raises ValueError."""
    names = list(there)
    where = {name: i for i, name in enumerate(names)}
    missing = [n for n in wanted if n not in where]
    if missing:
        raise ValueError(
            f'joint state on {topic} lacks {missing}, it has {names}: is the robot profile the one of this robot?'
        )
    if len(where) != len(names):
        doubled = sorted({n for n in names if names.count(n) > 1})
        raise ValueError(f'joint state on {topic} names {doubled} more than once: which one counts? Mend the driver')
    return [where[n] for n in wanted]


def _take(values: Any, msg: Any, index: list[int], names: Sequence[str], topic: str, what: str) -> np.ndarray:
    if len(values) != len(msg.name):
        raise ValueError(
            f'joint state on {topic} has {len(msg.name)} names and {len(values)} {what} values: mend the driver'
        )
    taken = np.array([values[i] for i in index], float)
    if not np.isfinite(taken).all():
        bad = [n for n, v in zip(names, taken, strict=True) if not np.isfinite(v)]
        raise ValueError(f'joint state on {topic} has a {what} that is not finite for {bad}: the driver is broken')
    return taken
