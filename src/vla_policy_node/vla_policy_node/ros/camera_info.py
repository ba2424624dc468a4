"""sensor_msgs/CameraInfo: where it is published, and that of an image made from another one."""

import numpy as np
from sensor_msgs.msg import CameraInfo

from vla_policy_node.ros.images import COMPRESSED


def camera_info_topic(image_topic: str) -> str:
    """The convention of image_transport: camera_info beside the image."""
    return '/'.join([*image_topic.removesuffix(COMPRESSED).split('/')[:-1], 'camera_info'])


def squared(info: CameraInfo, side: int) -> CameraInfo:
    """Of the image with black bars that make it square, scaled to side x side pixels, as a model sees and imagines it.

    Distortion, which is in units of the focal length, stays; stamp and frame are the caller's. Raises ValueError when
    the message has no calibration.
    """
    if info.width == 0 or info.height == 0 or info.k[0] <= 0:
        raise ValueError('the camera is not calibrated (camera_info without k): calibrate it')
    edge = max(info.width, info.height)
    scale, left, top = side / edge, (edge - info.width) // 2, (edge - info.height) // 2
    # Centres of pixels have whole coordinates: u' + 1/2 = (u + left + 1/2) scale.
    shift = np.array([[scale, 0, (left + 0.5) * scale - 0.5], [0, scale, (top + 0.5) * scale - 0.5], [0, 0, 1]])
    msg = CameraInfo(width=side, height=side, distortion_model=info.distortion_model, d=list(info.d), r=info.r)
    msg.k = (shift @ np.reshape(info.k, (3, 3))).ravel()
    msg.p = (shift @ np.reshape(info.p, (3, 4))).ravel()
    return msg
