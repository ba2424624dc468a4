"""Tool poses to joint positions: damped differential inverse kinematics along a chunk. No ROS.

The method is Levenberg-Marquardt with the damping of Sugihara (2011, "Solvability-unconcerned inverse kinematics").
The damping falls to zero with the error. So reachable poses are reached exactly, and others approached without a jerk.
"""

from collections.abc import Callable

import numpy as np

# (dof,) joint positions [rad] -> tool position (3,) [m], rotation (3, 3), Jacobian (6, dof): linear velocity of the
# tool and angular velocity, both in the base frame.
Kinematics = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]

POSITION_TOLERANCE, ROTATION_TOLERANCE = 1e-3, 5e-3  # [m], [rad] largest errors of a pose that is reached
ENOUGH = 1e-5  # [m], [rad] error below which iterations end
_STEP = 0.3  # [rad] largest step of a joint per iteration: the Jacobian is valid nearby only


def rotation_matrix(vector: np.ndarray) -> np.ndarray:
    """Return the rotation matrix (3, 3) of a rotation vector (3,) [rad] (Rodrigues)."""
    angle = float(np.linalg.norm(vector))
    cross = _cross(vector)
    # sin(x)/x and (1 - cos x)/x^2, the latter as 2 (sin(x/2)/x)^2, which does not cancel for small x.
    a, b = np.sinc(angle / np.pi), 0.5 * np.sinc(angle / (2 * np.pi)) ** 2
    return np.eye(3) + a * cross + b * cross @ cross


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """Return axis times angle (3,) [rad], the angle at most pi, of a rotation matrix (3, 3)."""
    axis = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    sine, cosine = float(np.linalg.norm(axis)) / 2, (float(np.trace(rotation)) - 1) / 2
    angle = float(np.arctan2(sine, cosine))
    if sine > 1e-6:
        return axis * (angle / (2 * sine))
    if cosine > 0:
        return axis / 2
    # Half a turn: the axis is the longest column of R + I; its sign does not matter.
    columns = rotation + np.eye(3)
    longest = columns[:, int(np.argmax(np.linalg.norm(columns, axis=0)))]
    return angle * longest / np.linalg.norm(longest)


def quaternion_matrix(quaternion: np.ndarray) -> np.ndarray:
    """Return the rotation matrix (3, 3) of a quaternion (w, x, y, z) of any length; ValueError near length 0."""
    length = float(np.linalg.norm(quaternion))
    if length < 0.1:
        raise ValueError(f'quaternion {np.round(quaternion, 3).tolist()} is almost zero: it is no rotation')
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
    """Return joint positions (dof,) [rad] within [lower, upper] near `start`, and the remaining errors [m] and [rad].

    position (3,) [m] and rotation (3, 3) are of the tool in the base frame. Redundant joints are drawn towards `rest`
    (dof,). enough: error [m], [rad] at which it ends; 0: it ends only when no joint moves any more.
    """
    q = np.clip(start, lower, upper)
    for iteration in range(iterations + 1):
        at, turned, jacobian = kinematics(q)
        error = np.concatenate([position - at, rotation_vector(rotation @ turned.T)])
        if iteration == iterations:
            break
        move = _move(jacobian, error, np.clip(rest, lower, upper) - q)
        beyond = (q + move < lower) | (q + move > upper)
        if beyond.any():  # these joints stop at their limits, and the others take over
            stopped = np.where(beyond, np.clip(q + move, lower, upper) - q, 0.0)
            null = np.where(beyond, 0.0, np.clip(rest, lower, upper) - q)
            move = stopped + _move(jacobian * ~beyond, error - jacobian @ stopped, null)
        step = np.clip(q + np.clip(move, -_STEP, _STEP), lower, upper) - q
        if (np.abs(error).max() < enough and np.abs(step).max() < 1e-3) or np.abs(step).max() < 1e-7:
            break
        q = q + step
    return q, float(np.linalg.norm(error[:3])), float(np.linalg.norm(error[3:]))


class Unreachable(ValueError):
    """Raised for a pose of the tool that the arm does not reach."""


def follow(
    kinematics: Kinematics,
    positions: np.ndarray,
    rotations: np.ndarray,
    start: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
) -> np.ndarray:
    """Return joint positions (n, dof) [rad] that move the tool through the poses in order, from `start` (dof,).

    positions (n, 3) [m], rotations (n, 3, 3): in the base frame. lower, upper: (dof,) limits [rad], widened to a start
    outside. Redundant joints stay near the posture of the start. Raises Unreachable naming the first step that is not
    reached, and its errors.
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
    """Return the step (dof,) that removes the error (6,), plus the part of `null` (dof,) that does not affect it."""
    damped = jacobian @ jacobian.T + (0.5 * float(error @ error) + 1e-9) * np.eye(6)
    return jacobian.T @ np.linalg.solve(damped, error - jacobian @ null) + null


def _cross(v: np.ndarray) -> np.ndarray:
    return np.array([[0.0, -v[2], v[1]], [v[2], 0.0, -v[0]], [-v[1], v[0], 0.0]])
