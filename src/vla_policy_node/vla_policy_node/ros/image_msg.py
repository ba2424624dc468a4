"""Pixels to sensor_msgs/Image."""

import array

import numpy as np
from builtin_interfaces.msg import Time
from sensor_msgs.msg import Image

ENCODINGS = {(3, 'uint8'): 'rgb8', (2, 'uint8'): 'mono8', (2, 'float32'): '32FC1'}  # by dimensions and type


def image_msg(stamp: Time, frame_id: str, pixels: np.ndarray) -> Image:
    """pixels: (height, width, 3) uint8 RGB, (height, width) uint8, or (height, width) float32 [m]."""
    height, width = pixels.shape[:2]
    encoding = ENCODINGS[pixels.ndim, pixels.dtype.name]
    msg = Image(height=height, width=width, encoding=encoding, step=pixels.nbytes // height)
    msg.header.stamp, msg.header.frame_id = stamp, frame_id
    data = array.array('B')
    data.frombytes(pixels.tobytes())
    msg.data = data
    return msg
