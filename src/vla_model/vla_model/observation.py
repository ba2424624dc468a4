"""Checks observations and prefixes before a model gets them; each error names the wrong item."""

import numpy as np

from vla_model.config import RobotInterface
from vla_model.policy import PolicyInfo
from vla_model.types import Chunk, Observation, Trace

MIN_SIDE, MAX_SIDE = 32, 8192  # [px]


def check_image(camera: str, images: dict[str, np.ndarray], cameras: tuple[str, ...]) -> np.ndarray:
    """Return the image of a camera, (height, width, 3) uint8 RGB. Raises ValueError naming the camera."""
    image = images.get(camera)
    if image is None:
        raise ValueError(f'camera {camera!r} is missing: the model needs {list(cameras)}, got {sorted(images)}')
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f'image of camera {camera!r} must be (height, width, 3) uint8 RGB, got {image.shape} {image.dtype}'
        )
    if not (min(image.shape[:2]) >= MIN_SIDE and max(image.shape[:2]) <= MAX_SIDE):
        raise ValueError(
            f'image of camera {camera!r} is {image.shape[1]} x {image.shape[0]} px: '
            f'sides must be {MIN_SIDE} to {MAX_SIDE} px'
        )
    return image


def state_of(robot: RobotInterface, observation: Observation) -> np.ndarray:
    """Return (dof + gripper,) float64: joints [rad], opening [m]. Raises ValueError on a wrong number of joints."""
    if np.shape(observation.positions) != (robot.dof,):
        raise ValueError(f'the model needs {robot.dof} joint positions, got shape {np.shape(observation.positions)}')
    return np.append(observation.positions, observation.gripper)[: robot.dof + robot.gripper].astype(np.float64)


def check_state(robot: RobotInterface, state: np.ndarray) -> None:
    """Raise ValueError if a number of state (state_dim,) is not finite or cannot be in the model's units."""
    if state.shape != (robot.state_dim,):
        raise ValueError(f'the model needs a state of {robot.state_dim} numbers, got shape {state.shape}')
    limits = robot.limits('state')
    for i, (value, n) in enumerate(zip(state, limits.normalize(state), strict=True)):
        name = f'position of joint {i + 1}' if robot.joints else f'number {i + 1} of the state'
        if robot.gripper and i == len(state) - 1:
            name = 'gripper opening'
        if not np.isfinite(value):
            raise ValueError(f'the {name} is not finite: {value}')
        if abs(n) > 2:  # beyond sensor noise and limits of another arm: wrong units or wrong joint order
            raise ValueError(
                f'the {name} is {value:g}, far outside the range of the model '
                f'[{limits.low[i]:g}, {limits.high[i]:g}]: check its unit and the joint order'
            )


def prefix_steps(info: PolicyInfo, prefix: Chunk) -> np.ndarray:
    """Return the steps of a prefix, (d, arm_dim + gripper), robot units. Raises ValueError naming a wrong part."""
    return chunk_steps(info, prefix, 'prefix', info.horizon - 1)


def chunk_steps(info: PolicyInfo, chunk: Chunk, name: str, most: int) -> np.ndarray:
    """Return the steps of a chunk, (n <= most, arm_dim + gripper), robot units.

    name: of the chunk in errors. Raises ValueError naming a wrong part.
    """
    n = len(chunk.positions)
    if chunk.space != info.space:
        raise ValueError(f'the {name} is in the space {chunk.space!r}, the model works in {info.space!r}')
    if chunk.positions.shape != (n, info.arm_dim) or not n <= most:
        raise ValueError(
            f'{name} positions must be (n, {info.arm_dim}) with n at most {most}, got {chunk.positions.shape}'
        )
    if abs(chunk.dt - info.dt) > 1e-9:
        raise ValueError(f'{name}.dt is {chunk.dt} s, the model works with {info.dt} s: resample the {name}')
    if info.gripper and chunk.gripper.shape != (n,):
        raise ValueError(f'{name}.gripper must have {n} openings, one per step, got shape {chunk.gripper.shape}')
    columns = [chunk.positions, chunk.gripper[:, None]] if info.gripper else [chunk.positions]
    steps = np.concatenate(columns, 1).astype(np.float64)
    if not np.isfinite(steps).all():
        raise ValueError(f'the {name} has numbers that are not finite')
    return steps


def squared(places: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return places (..., 2), x and y [px] of an image, as shares of the edge of the padded square.

    `image_tokenizer.preprocess` pads images to this square.
    """
    side = max(height, width)
    return (np.asarray(places, np.float64) + 0.5 + [(side - width) // 2, (side - height) // 2]) / side


def unsquared(places: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return x and y [px] of the image for places (..., 2) in shares of the padded square: the inverse of `squared`."""
    side = max(height, width)
    return np.asarray(places, np.float64) * side - 0.5 - [(side - width) // 2, (side - height) // 2]


def along(points: np.ndarray, count: int) -> np.ndarray:
    """Return `count` points (count, 2) at equal distances along the line through `points` (n, 2), ends included.

    A line without length, or of one point, is repeated.
    """
    points = np.asarray(points, np.float64)
    way = np.concatenate([[0.0], np.linalg.norm(np.diff(points, axis=0), axis=1).cumsum()])
    at = np.linspace(0, way[-1], count)
    return np.column_stack([np.interp(at, way, column) for column in points.T])


def check_trace(trace: Trace, camera: str) -> np.ndarray:
    """Return the points (n, 2) [px] of a trace in the image of `camera`.

    Raises ValueError for a trace of another camera, outside its image, not finite, or with fewer than two points.
    """
    points = np.asarray(trace.points, np.float64)
    if trace.camera != camera:
        raise ValueError(f'the trace is of camera {trace.camera!r}, the model follows traces in that of {camera!r}')
    if points.ndim != 2 or points.shape[1:] != (2,) or len(points) < 2:
        raise ValueError(f'a trace needs two or more points (n, 2), got shape {points.shape}')
    if not np.isfinite(points).all():
        raise ValueError(f'the trace has numbers that are not finite: {points.tolist()}')
    outside = ((points < -0.5) | (points > [trace.width - 0.5, trace.height - 0.5])).any(1)
    if outside.any():
        u, v = points[outside][0]
        raise ValueError(f'point ({u:g}, {v:g}) of the trace is outside the image of {trace.width} x {trace.height} px')
    return points
