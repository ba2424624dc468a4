"""sensor_msgs/Image to arrays: one decode for the live node and for recorded bags (no ROS import here)."""

from typing import Any

import numpy as np

# encoding -> (bytes per pixel, order of the channels)
_ENCODINGS = {'rgb8': (3, 'rgb'), 'bgr8': (3, 'bgr'), 'rgba8': (4, 'rgb'), 'bgra8': (4, 'bgr'), 'mono8': (1, 'mono')}


def decode_image(msg: Any, topic: str, *, width: int = 0, height: int = 0) -> np.ndarray:
    """(H, W, 3) uint8 RGB view of a sensor_msgs/Image; nothing is copied.

    The view keeps the message's buffer alive and is contiguous for rgb8 without row padding only: use
    np.ascontiguousarray where that matters. width, height [pixel]: what is expected, 0 for any.
    Raises ValueError naming the topic, what is wrong and the remedy.
    """
    if msg.encoding not in _ENCODINGS:
        raise ValueError(
            f'image on {topic} has encoding {msg.encoding!r}: set the camera driver to one of {", ".join(_ENCODINGS)}'
        )
    size, order = _ENCODINGS[msg.encoding]
    if msg.width == 0 or msg.height == 0:
        raise ValueError(f'image on {topic} is empty ({msg.width} x {msg.height}): check the camera driver')
    if (width and msg.width != width) or (height and msg.height != height):
        raise ValueError(
            f'image on {topic} is {msg.width} x {msg.height}, expected {width or "any"} x {height or "any"}: '
            'set the camera driver, or image_width and image_height'
        )
    if msg.step < msg.width * size:
        raise ValueError(
            f'image on {topic} has step {msg.step}, but {msg.width} pixels of {msg.encoding} need at least '
            f'{msg.width * size}: the camera driver is broken'
        )
    data = np.frombuffer(msg.data, np.uint8)
    if data.size != msg.step * msg.height:
        raise ValueError(
            f'image on {topic} has {data.size} bytes, step x height is {msg.step * msg.height}: '
            'the camera driver is broken'
        )
    # Strides skip the padding behind each row.
    pixels = np.ndarray((msg.height, msg.width, size), np.uint8, data, strides=(msg.step, size, 1))
    if order == 'mono':
        return np.broadcast_to(pixels, (msg.height, msg.width, 3))
    return pixels[..., :3] if order == 'rgb' else pixels[..., 2::-1]
