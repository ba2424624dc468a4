"""Rotations as the numbers that policies use for them, from and to rotation vectors [rad]."""

from collections.abc import Callable

import numpy as np


def to_quaternion(vector: np.ndarray) -> np.ndarray:
    """Return (w, x, y, z) with w >= 0 of a rotation vector (3,)."""
    angle = float(np.linalg.norm(vector))
    q = np.append(np.cos(angle / 2), 0.5 * np.sinc(angle / (2 * np.pi)) * vector)
    return -q if q[0] < 0 else q


def of_quaternion(q: np.ndarray) -> np.ndarray:
    """Return the rotation vector (3,) of a quaternion (w, x, y, z) of any length. Raises ValueError for zero."""
    norm = float(np.linalg.norm(q))
    if not norm > 1e-9:
        raise ValueError('a quaternion of a rotation is zero')
    w, v = (q[0] / norm, q[1:] / norm) if q[0] >= 0 else (-q[0] / norm, -q[1:] / norm)
    sine = float(np.linalg.norm(v))
    return v * (2 * np.arctan2(sine, w) / sine if sine > 1e-12 else 2.0)


def to_matrix(vector: np.ndarray) -> np.ndarray:
    """Return the matrix (3, 3) of a rotation vector (3,)."""
    w, x, y, z = to_quaternion(vector)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def of_matrix(m: np.ndarray) -> np.ndarray:
    """Return the rotation vector (3,) of a matrix (3, 3)."""
    # The largest of the four squares keeps the division exact enough near half a turn.
    squares = np.array([1 + m.trace(), *(1 + 2 * m[i, i] - m.trace() for i in range(3))])
    k = int(squares.argmax())
    skew = m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]
    if k == 0:
        return of_quaternion(np.array([squares[0], *skew]))
    i, j, n = k - 1, k % 3, (k + 1) % 3
    q = np.zeros(4)
    q[0], q[1 + i], q[1 + j], q[1 + n] = skew[i], squares[k], m[j, i] + m[i, j], m[n, i] + m[i, n]
    return of_quaternion(q)


def to_euler(vector: np.ndarray) -> np.ndarray:
    """Return roll, pitch, yaw [rad] about fixed axes x, y, z of a rotation vector (3,)."""
    m = to_matrix(vector)
    pitch = np.arcsin(np.clip(-m[2, 0], -1, 1))
    if abs(m[2, 0]) > 1 - 1e-9:  # roll and yaw are one angle
        return np.array([np.arctan2(-m[1, 2], m[1, 1]), pitch, 0.0])
    return np.array([np.arctan2(m[2, 1], m[2, 2]), pitch, np.arctan2(m[1, 0], m[0, 0])])


def of_euler(angles: np.ndarray) -> np.ndarray:
    """Return the rotation vector (3,) of roll, pitch, yaw [rad] about fixed axes x, y, z."""
    x, y, z = (to_matrix(angle * axis) for angle, axis in zip(angles, np.eye(3), strict=True))
    return of_matrix(z @ y @ x)


def to_columns(vector: np.ndarray) -> np.ndarray:
    """Return the first two columns of the matrix, (6,), of a rotation vector (3,)."""
    return to_matrix(vector)[:, :2].T.flatten()


def of_columns(six: np.ndarray) -> np.ndarray:
    """Return the rotation vector (3,) of two columns (6,), made orthonormal. Raises ValueError if they are parallel."""
    a, b = six[:3], six[3:]
    x = a / max(float(np.linalg.norm(a)), 1e-9)
    y = b - (x @ b) * x
    size = float(np.linalg.norm(y))
    if not size > 1e-9 or not x.any():
        raise ValueError('the two columns of a rotation are parallel or zero')
    y /= size
    return of_matrix(np.stack([x, y, np.cross(x, y)], 1))


def turned_positive(vector: np.ndarray) -> np.ndarray:
    """Return the same rotation as a vector whose x is not below zero, by up to a whole turn: LIBERO's axis-angle."""
    angle = float(np.linalg.norm(vector))
    if vector[0] >= 0:
        return vector.copy()
    return vector * (1 - 2 * np.pi / angle) if angle > 1e-9 else np.zeros(3)


# Name in a mapping -> how many numbers, from a rotation vector, to a rotation vector.
FORMS: dict[str, tuple[int, Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]] = {
    'rotation_vector': (3, np.copy, np.copy),
    'rotation_vector_positive_x': (3, turned_positive, np.copy),
    'euler_xyz': (3, to_euler, of_euler),
    'quaternion_wxyz': (4, to_quaternion, of_quaternion),
    'quaternion_xyzw': (4, lambda v: np.roll(to_quaternion(v), -1), lambda q: of_quaternion(np.roll(q, 1))),
    'columns': (6, to_columns, of_columns),
}
