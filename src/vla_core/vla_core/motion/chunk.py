"""A chunk as it arrives at the executor, its verdict, and the checks of its content."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from vla_core.profile import RobotProfile

TOO_FAST = 2.0  # largest multiple of a velocity limit: faster steps are refused, not slowed down


class Verdict(IntEnum):
    """Why a chunk was refused. The numbers are those of vla_msgs/ExecutorStatus (a test compares them)."""

    ACCEPTED = 0
    OLD_EPOCH = 1
    DUPLICATE = 2
    OUT_OF_ORDER = 3
    WHOLLY_PAST = 4
    FROM_FUTURE = 5
    NOT_FINITE = 6
    WRONG_JOINTS = 7
    WRONG_SIZE = 8
    OUT_OF_LIMITS = 9
    SHADOW = 10
    OTHER_SOURCE = 11
    NOT_ACCEPTING = 12
    COLLISION = 13


@dataclass(frozen=True)
class StampedChunk:
    """A chunk with its source, epoch and times. Step i is due at t_ref + (i + 1) * dt; horizon 0 requests a stop."""

    t_ref: int  # [ns] time of the observation that it was computed from
    epoch: int
    sequence: int
    source: str
    joint_names: tuple[str, ...]
    dt: float  # [s]
    horizon: int
    positions: np.ndarray  # (horizon * joints,) or (horizon, joints) [rad], row-major
    gripper: np.ndarray  # (horizon,) [m]; (0,): untouched
    shadow: bool = False
    frozen: int = 0
    confidence: np.ndarray | None = None  # (horizon,) 0..1
    instruction: str = ''
    model_id: str = ''


@dataclass(frozen=True)
class Refusal(Exception):
    """The refusal of a chunk; its message names the fault and the remedy."""

    verdict: Verdict
    message: str


def ordered_positions(chunk: StampedChunk, joint_names: tuple[str, ...]) -> np.ndarray:
    """Return the chunk's set-points (horizon, dof) [rad] in the order of joint_names.

    Raises Refusal for wrong joint names, wrong sizes, and values that are not finite.
    """
    names = chunk.joint_names
    if sorted(names) != sorted(joint_names):
        raise Refusal(
            Verdict.WRONG_JOINTS,
            f'chunk has joints {list(names)}, the robot profile {list(joint_names)}: is it for this robot?',
        )
    if not (np.isfinite(chunk.dt) and 1e-3 <= chunk.dt <= 1.0):
        raise Refusal(Verdict.WRONG_SIZE, f'chunk has dt {chunk.dt} s, must be 0.001 to 1')
    if chunk.positions.size != chunk.horizon * len(names):
        raise Refusal(
            Verdict.WRONG_SIZE,
            f'chunk has {chunk.positions.size} positions, horizon {chunk.horizon} x {len(names)} joints needs '
            f'{chunk.horizon * len(names)}',
        )
    if chunk.gripper.size not in (0, chunk.horizon):
        raise Refusal(
            Verdict.WRONG_SIZE, f'chunk has {chunk.gripper.size} gripper values, must be none or {chunk.horizon}'
        )
    if not (np.isfinite(chunk.positions).all() and np.isfinite(chunk.gripper).all()):
        raise Refusal(Verdict.NOT_FINITE, 'chunk has NaN or infinity: the source is broken')
    positions = chunk.positions.reshape(chunk.horizon, len(names))
    return positions if names == joint_names else positions[:, [names.index(n) for n in joint_names]]


def checked_positions(chunk: StampedChunk, profile: RobotProfile) -> np.ndarray:
    """Return the chunk's set-points (horizon, dof) [rad] in the profile's joint order.

    Raises Refusal as ordered_positions, and for steps outside the limits. Nothing is clamped: a chunk beyond the hard
    position limits, or at a multiple of the hard velocity limits, was not made for this arm.
    """
    positions = ordered_positions(chunk, profile.joint_names)
    outside = np.maximum(profile.position_lower - positions, positions - profile.position_upper)
    if (outside > 0).any():
        step, joint = np.unravel_index(int(outside.argmax()), outside.shape)
        raise Refusal(
            Verdict.OUT_OF_LIMITS,
            f'chunk step {step} puts {profile.joint_names[joint]} at {positions[step, joint]:.4f} rad, outside '
            f'[{profile.position_lower[joint]:.4f}, {profile.position_upper[joint]:.4f}]',
        )
    speeds = np.abs(np.diff(positions, axis=0)) / chunk.dt
    if len(speeds) and (speeds > TOO_FAST * profile.velocity).any():
        step, joint = np.unravel_index(int((speeds / profile.velocity).argmax()), speeds.shape)
        raise Refusal(
            Verdict.OUT_OF_LIMITS,
            f'chunk asks {speeds[step, joint]:.1f} rad/s of {profile.joint_names[joint]} at step {step + 1}, more than '
            f'{TOO_FAST:g} times its limit of {profile.velocity[joint]:.2f}: the policy gives nonsense, or dt is wrong',
        )
    return positions
