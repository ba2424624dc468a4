"""The reply of a policy server as a chunk, by its mapping."""

from typing import Any

import numpy as np

from vla_model.remote.mapping import VELOCITY, Key, Mapping, path_of
from vla_model.remote.rotations import FORMS
from vla_model.types import JOINTS, TOOL, Chunk, Observation


def chunk_of(mapping: Mapping, reply: Any, observation: Observation) -> Chunk:
    """Return the chunk of a reply to an observation: mapping.steps steps, JOINTS or TOOL as the mapping says.

    Raises RuntimeError naming what is missing, of another shape or not finite in the reply.
    """
    raw = numbers_of(mapping, reply)[: mapping.steps]
    try:
        arm = _arm(mapping, raw[:, list(mapping.columns)], observation)
    except ValueError as error:  # a rotation that is none
        raise RuntimeError(f'actions of the policy server: {error}') from None
    return Chunk(arm, _openings(mapping, raw), mapping.dt, space=JOINTS if mapping.actions.joints else TOOL)


def numbers_of(mapping: Mapping, reply: Any) -> np.ndarray:
    """Return the actions of a reply, (steps of the server, numbers) float64. Raises RuntimeError as chunk_of."""
    actions = mapping.actions
    raw = get(reply, actions.key)
    if not isinstance(raw, np.ndarray) or raw.dtype.kind not in 'fiu':
        has = ', '.join(map(str, reply)) if isinstance(reply, dict) else type(reply).__name__
        raise RuntimeError(f'the policy server sent no array of numbers {actions.key!r}, it sent: {has}')
    if raw.ndim == 3 and len(raw) == 1:
        raw = raw[0]
    fits = raw.ndim == 2 and (raw.shape[1] == actions.width if actions.width else raw.shape[1] >= mapping.width)
    if not fits or len(raw) < mapping.steps:
        width = str(actions.width or f'{mapping.width} or more')
        raise RuntimeError(
            f'the policy server sent actions of shape {raw.shape}, mapping {mapping.name} needs '
            f'({mapping.steps} or more, {width}): correct steps and columns of the mapping, or take another one'
        )
    if not np.isfinite(raw).all():
        raise RuntimeError('the policy server sent actions with NaN or infinity: none of them is used')
    return raw.astype(np.float64)


def get(reply: Any, key: Key) -> Any:
    """Return the entry of a key, which may be of dicts inside each other; None where there is none."""
    for name in path_of(key):
        reply = reply.get(name) if isinstance(reply, dict) else None
    return reply


def _arm(mapping: Mapping, numbers: np.ndarray, observation: Observation) -> np.ndarray:
    """Return (n, joints) [rad], absolute, or (n, 6 or 7) of the tool, see Chunk.positions."""
    actions = mapping.actions
    factor, bias = mapping.joints.line
    if actions.space == 'joint_position':
        return (numbers - bias) / factor
    if actions.clip is not None:
        numbers = numbers.clip(-actions.clip, actions.clip)
    if actions.norm is not None:
        sizes = np.linalg.norm(numbers, axis=1, keepdims=True)
        numbers = numbers / np.maximum(sizes / actions.norm, 1.0)
    scaled = numbers * np.array(actions.scale)
    if actions.joints:
        moves = scaled / factor
        if actions.space == VELOCITY:
            moves = np.cumsum(moves * mapping.dt, axis=0)
        return observation.positions + moves
    if actions.space == 'ee_position':
        scaled[:, :3] -= actions.offset
        if actions.form == 'quaternion_wxyz':  # the chunk's own second form, see end_effector.py
            return scaled
    to_vector = FORMS[actions.form][2]
    return np.hstack([scaled[:, :3], np.array([to_vector(row) for row in scaled[:, 3:]])])


def _openings(mapping: Mapping, raw: np.ndarray) -> np.ndarray:
    """Return (n,) openings [m]; (0,) without a gripper."""
    numbers, robot = mapping.actions.gripper, mapping.gripper
    if numbers is None or robot is None:
        return np.zeros(0)
    if robot.open is None:
        return raw[:, numbers.column]
    share = (raw[:, numbers.column] - numbers.closed) / (numbers.open - numbers.closed)
    if numbers.threshold is not None:
        limit = (numbers.threshold - numbers.closed) / (numbers.open - numbers.closed)
        share = (share > limit).astype(np.float64)
    return robot.closed + np.clip(share, 0, 1) * (robot.open - robot.closed)
