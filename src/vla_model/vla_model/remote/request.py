"""An observation as the request of a policy server, by its mapping."""

from typing import Any

import numpy as np

from vla_model.observation import check_image
from vla_model.remote.mapping import Key, Mapping, Part, path_of
from vla_model.remote.pictures import picture
from vla_model.remote.rotations import FORMS, to_matrix
from vla_model.types import Observation


def request_of(mapping: Mapping, observation: Observation) -> dict[str, Any]:
    """Return the request. Raises ValueError naming what the observation lacks, or what is not finite."""
    if not observation.instruction.strip():
        raise ValueError('the instruction is empty: give a task for the robot')
    if np.shape(observation.positions) != (mapping.joints.count,):
        raise ValueError(
            f'mapping {mapping.name} is for {mapping.joints.count} joints, got {np.shape(observation.positions)}'
        )
    request: dict[str, Any] = dict(mapping.constants)
    put(request, mapping.prompt, observation.instruction)
    for how in mapping.cameras:
        put(request, how.key, picture(check_image(how.camera, observation.images, mapping.camera_names), how))
    for state in mapping.state:
        numbers = np.concatenate([_numbers(mapping, part, observation) for part in state.parts])
        if not np.isfinite(numbers).all():
            raise ValueError(f'the state {state.key!r} is not finite: {numbers.tolist()}')
        put(request, state.key, numbers.astype(state.dtype))
    return request


def put(request: dict[str, Any], key: Key, value: Any) -> None:
    """Set the entry of a key, which may be of dicts inside each other."""
    *outer, last = path_of(key)
    for name in outer:
        request = request.setdefault(name, {})
    request[last] = value


def _numbers(mapping: Mapping, part: Part, observation: Observation) -> np.ndarray:
    """Return the numbers of a part of the state, float64."""
    if part.part == 'constant':
        return np.array(part.values)
    if part.part == 'gripper':
        robot = mapping.gripper
        if robot is None or robot.open is None:
            return np.array([observation.gripper])
        share = (observation.gripper - robot.closed) / (robot.open - robot.closed)
        return np.array([part.closed + share * (part.open - part.closed)])
    if part.part in ('joints', 'velocities'):
        factor, bias = mapping.joints.line
        rates = part.part == 'velocities'
        found = factor * observation.velocities if rates else factor * observation.positions + bias
        return found[list(part.columns)] if part.columns else found
    if observation.tool is None:
        raise ValueError('the mapping needs the pose of the tool: give the robot description')
    at, turn = observation.tool[:3], observation.tool[3:]
    if part.part == 'tool_position':
        return at + np.array(part.offset) + part.along * to_matrix(turn)[:, 2]
    return FORMS[part.form][1](turn)
