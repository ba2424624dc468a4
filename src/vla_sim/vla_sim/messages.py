"""Converts the simulator's numpy arrays to ROS messages, with plain Python numbers, as rclpy checks fields.

MuJoCo is not imported here, as the node sets up its OpenGL platform first.
"""

import array
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import TransformStamped
from sensor_msgs.msg import CameraInfo, JointState

if TYPE_CHECKING:
    from vla_sim.rendering import cameras


def joint_state(
    stamp: Time, names: Sequence[str], positions: np.ndarray, velocities: np.ndarray, efforts: np.ndarray
) -> JointState:
    """Return a JointState. positions, velocities, efforts: (len(names),) [rad, rad/s, Nm; for fingers m, m/s, N]."""
    msg = JointState(name=list(names))
    msg.header.stamp = stamp
    msg.position, msg.velocity, msg.effort = (array.array('d', v) for v in (positions, velocities, efforts))
    return msg


def camera_info(stamp: Time, frame: str, info: 'cameras.CameraInfo') -> CameraInfo:
    """Return the CameraInfo of a pinhole camera without distortion and rectification."""
    msg = CameraInfo(width=info.width, height=info.height, distortion_model='plumb_bob', d=[0.0] * 5)
    msg.header.stamp, msg.header.frame_id = stamp, frame
    msg.k = info.matrix.ravel()
    msg.r = np.eye(3).ravel()
    msg.p = np.column_stack([info.matrix, np.zeros(3)]).ravel()
    return msg


def transform(stamp: Time, parent: str, child: str, pose: tuple[np.ndarray, np.ndarray]) -> TransformStamped:
    """Return a transform. pose: position (3,) [m] and orientation (4,) wxyz of child in parent."""
    msg = TransformStamped(child_frame_id=child)
    msg.header.stamp, msg.header.frame_id = stamp, parent
    (x, y, z), (qw, qx, qy, qz) = pose[0].tolist(), pose[1].tolist()
    msg.transform.translation.x, msg.transform.translation.y, msg.transform.translation.z = x, y, z
    rotation = msg.transform.rotation
    rotation.w, rotation.x, rotation.y, rotation.z = qw, qx, qy, qz
    return msg
