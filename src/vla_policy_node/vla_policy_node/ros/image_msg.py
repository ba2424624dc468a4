"""Pixels to sensor_msgs/Image."""

import array

import numpy as np
from builtin_interfaces.msg import Time
from sensor_msgs.msg import Image


def image_msg(stamp: Time, frame_id: str, pixels: np.ndarray) -> Image:
    """pixels: (height, width, 3) uint8 RGB."""
    height, width, _ = pixels.shape
    msg = Image(height=height, width=width, encoding='rgb8', step=3 * width)
    msg.header.stamp, msg.header.frame_id = stamp, frame_id
    data = array.array('B')
    data.frombytes(pixels.tobytes())
    msg.data = data
    return msg
