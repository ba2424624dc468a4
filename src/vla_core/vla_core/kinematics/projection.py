"""Where a point in space is in a camera's picture. No ROS import."""

from typing import Any

import numpy as np

NEAR = 0.01  # [m] what is closer than this to the plane of the camera, or behind it, has no place in the picture


def project(points: np.ndarray, info: Any, *, rectified: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (n, 2), column u and row v, of points (n, 3) [m] in the optical frame (x right, y down, z forward), and
    which of them (n,) lie before the camera; pixels of the others mean nothing. Centres of pixels have whole numbers.

    info: sensor_msgs/CameraInfo. rectified: the picture is, so P counts and there is no distortion; else K and D.
    Models as in image_geometry and OpenCV: plumb_bob, rational_polynomial, equidistant. Raises ValueError when the
    camera is not calibrated, or its model is another one.
    """
    if info.k[0] <= 0 or (rectified and info.p[0] <= 0):
        raise ValueError('the camera is not calibrated (camera_info has no intrinsics): calibrate it')
    ahead = points[:, 2] > NEAR
    x, y = (points[:, :2] / np.where(ahead, points[:, 2], 1.0)[:, None]).T
    if rectified:
        matrix = np.reshape(info.p, (3, 4))[:, :3]
    else:
        matrix = np.reshape(info.k, (3, 3))
        x, y = distorted(x, y, info.distortion_model, np.array(info.d, float))
    u, v = matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2], matrix[1, 1] * y + matrix[1, 2]
    # K is that of the full sensor: what is sent may be a region of it, with pixels put together.
    across, down = max(info.binning_x, 1), max(info.binning_y, 1)
    u = (u - info.roi.x_offset + 0.5) / across - 0.5
    v = (v - info.roi.y_offset + 0.5) / down - 0.5
    return np.stack([u, v], 1), ahead


def distorted(x: np.ndarray, y: np.ndarray, model: str, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Normalised image coordinates as the lens shows them. Far outside of the picture, where these polynomials turn
    back, points are left where they would be without distortion."""
    if not d.any():
        return x, y
    if model == 'equidistant':
        r = np.hypot(x, y)
        angle = np.arctan(r)
        k1, k2, k3, k4 = np.pad(d, (0, max(4 - len(d), 0)))[:4]
        bent = angle * (1 + k1 * angle**2 + k2 * angle**4 + k3 * angle**6 + k4 * angle**8)
        scale = np.where(r > 1e-9, bent / np.maximum(r, 1e-9), 1.0)
        return x * scale, y * scale
    if model not in ('plumb_bob', 'rational_polynomial'):
        raise ValueError(
            f'camera_info has distortion model {model!r}; known are plumb_bob, rational_polynomial and equidistant: '
            'take the rectified images'
        )
    k1, k2, p1, p2, k3, k4, k5, k6 = np.pad(d, (0, max(8 - len(d), 0)))[:8]
    r2 = x * x + y * y
    radial = (1 + r2 * (k1 + r2 * (k2 + r2 * k3))) / (1 + r2 * (k4 + r2 * (k5 + r2 * k6)))
    inside = (r2 < 4.0) & (radial > 0.2) & (radial < 5.0)
    bent_x = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    bent_y = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    return np.where(inside, bent_x, x), np.where(inside, bent_y, y)
