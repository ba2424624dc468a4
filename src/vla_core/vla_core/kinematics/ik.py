"""Tool poses to joint positions: damped differential inverse kinematics along a chunk. No ROS.

Levenberg-Marquardt with the damping of Sugihara (2011, "Solvability-unconcerned inverse kinematics"): it falls to zero
with the error, so that what can be reached is reached exactly and what cannot is approached without a jerk.
"""

from collections.abc import Callable

import numpy as np

# (dof,) joint positions [rad] -> tool position (3,) [m], rotation (3, 3), Jacobian (6, dof): linear velocity of the
# tool and angular velocity, both in the base frame.
Kinematics = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]

POSITION_TOLERANCE, ROTATION_TOLERANCE = 1e-3, 5e-3  # [m], [rad] left over: more is not reached
ENOUGH = 1e-5  # [m], [rad] below this an iteration more gains nothing
_STEP = 0.3  # [rad] a joint moves at most per iteration: the Jacobian holds nearby only


def rotation_matrix(vector: np.ndarray) -> np.ndarray:
    """(3, 3) rotation of a (3,) rotation vector [rad] (Rodrigues)."""
    angle = float(np.linalg.norm(vector))
    cross = _cross(vector)
    # sin(x)/x and (1 - cos x)/x^2, the latter as 2 (sin(x/2)/x)^2, which does not cancel for small x.
    a, b = np.sinc(angle / np.pi), 0.5 * np.sinc(angle / (2 * np.pi)) ** 2
    return np.eye(3) + a * cross + b * cross @ cross


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """(3,) axis times angle [rad], the angle at most pi, of a (3, 3) rotation matrix."""
    axis = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    sine, cosine = float(np.linalg.norm(axis)) / 2, (float(np.trace(rotation)) - 1) / 2
    angle = float(np.arctan2(sine, cosine))
    if sine > 1e-6:
        return axis * (angle / (2 * sine))
    if cosine > 0:
        return axis / 2
    # Half a turn: the axis is the column of R + I that is longest; its sign does not matter.
    columns = rotation + np.eye(3)
    longest = columns[:, int(np.argmax(np.linalg.norm(columns, axis=0)))]
    return angle * longest / np.linalg.norm(longest)


def quaternion_matrix(quaternion: np.ndarray) -> np.ndarray:
    """(3, 3) rotation of a quaternion (w, x, y, z), of any length. Raises ValueError near length 0."""
    length = float(np.linalg.norm(quaternion))
    if length < 0.1:
        raise ValueError(f'quaternion {np.round(quaternion, 3).tolist()} is almost zero: it names no rotation')
    w, v = quaternion[0] / length, quaternion[1:] / length
    return np.eye(3) + 2 * w * _cross(v) + 2 * _cross(v) @ _cross(v)


def solve(
    kinematics: Kinematics,
    position: np.ndarray,
    rotation: np.ndarray,
    start: np.ndarray,
    rest: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    iterations: int = 30,
    enough: float = ENOUGH,
) -> tuple[np.ndarray, float, float]:
    """Joint positions (dof,) [rad] within [lower, upper], near `start`, and what is left: [m] and [rad].

    position (3,) [m] and rotation (3, 3) are of the tool in the base frame. Where the arm has joints to spare they are
    drawn towards `rest` (dof,). enough: error [m], [rad] below which it ends; 0: only where no joint moves any more.
    """
    q = np.clip(start, lower, upper)
    for iteration in range(iterations + 1):
        at, turned, jacobian = kinematics(q)
        error = np.concatenate([position - at, rotation_vector(rotation @ turned.T)])
        if iteration == iterations:
            break
        move = _move(jacobian, error, np.clip(rest, lower, upper) - q)
        beyond = (q + move < lower) | (q + move > upper)
        if beyond.any():  # those stop at their limits, the others do their work
            stopped = np.where(beyond, np.clip(q + move, lower, upper) - q, 0.0)
            null = np.where(beyond, 0.0, np.clip(rest, lower, upper) - q)
            move = stopped + _move(jacobian * ~beyond, error - jacobian @ stopped, null)
        step = np.clip(q + np.clip(move, -_STEP, _STEP), lower, upper) - q
        if (np.abs(error).max() < enough and np.abs(step).max() < 1e-3) or np.abs(step).max() < 1e-7:
            break
        q = q + step
    return q, float(np.linalg.norm(error[:3])), float(np.linalg.norm(error[3:]))


class Unreachable(ValueError):
    """A pose of the tool that the arm does not reach."""


def follow(
    kinematics: Kinematics,
    positions: np.ndarray,
    rotations: np.ndarray,
    start: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
) -> np.ndarray:
    """Joint positions (n, dof) [rad] that take the tool through the poses, one after the other from `start` (dof,).

    positions (n, 3) [m], rotations (n, 3, 3): in the base frame. lower, upper: (dof,) limits [rad]; an arm that starts
    outside is let back in. Spare joints keep to the posture of the start. Raises Unreachable naming the first step that
    is not reached, and by how much.
    """
    lower, upper = np.minimum(lower, start), np.maximum(upper, start)
    found = np.empty((len(positions), len(start)))
    q = start
    for i, (position, rotation) in enumerate(zip(positions, rotations, strict=True)):
        q, off, tilt = solve(kinematics, position, rotation, q, start, lower, upper)
        if off > POSITION_TOLERANCE or tilt > ROTATION_TOLERANCE:
            raise Unreachable(
                f'step {i} asks for the tool at {np.round(position, 3).tolist()} m, which the arm does not reach: '
                f'{off * 1e3:.1f} mm and {np.degrees(tilt):.1f} degrees are left within the joint limits'
            )
        found[i] = q
    return found


def _move(jacobian: np.ndarray, error: np.ndarray, null: np.ndarray) -> np.ndarray:
    """The step (dof,) that works off the error (6,), and of `null` what does not disturb that."""
    damped = jacobian @ jacobian.T + (0.5 * float(error @ error) + 1e-9) * np.eye(6)
    return jacobian.T @ np.linalg.solve(damped, error - jacobian @ null) + null


def _cross(v: np.ndarray) -> np.ndarray:
    return np.array([[0.0, -v[2], v[1]], [v[2], 0.0, -v[0]], [-v[1], v[0], 0.0]])
