"""sensor_msgs/Image and CompressedImage to arrays: one decode for the live node and for bags (no ROS import here)."""

import io
from typing import Any

import numpy as np
from PIL import Image

COMPRESSED = '/compressed'  # ends the topic of a CompressedImage: image_transport's convention

# encoding -> (bytes per pixel, order of the channels)
_ENCODINGS = {'rgb8': (3, 'rgb'), 'bgr8': (3, 'bgr'), 'rgba8': (4, 'rgb'), 'bgra8': (4, 'bgr'), 'mono8': (1, 'mono')}


def decode_image(msg: Any, topic: str, *, width: int = 0, height: int = 0) -> np.ndarray:
    """(H, W, 3) uint8 RGB view of a sensor_msgs/Image, of which nothing is copied; or of a CompressedImage.

    The view keeps the message's buffer alive and is contiguous for rgb8 without row padding only: use
    np.ascontiguousarray where that matters. width, height [pixel]: what is expected, 0 for any.
    Raises ValueError naming the topic, what is wrong and the remedy.
    """
    if not hasattr(msg, 'encoding'):
        pixels = _decompress(msg, topic)
        _check_size(pixels.shape[1], pixels.shape[0], width, height, topic)
        return pixels
    if msg.encoding not in _ENCODINGS:
        raise ValueError(
            f'image on {topic} has encoding {msg.encoding!r}: set the camera driver to one of {", ".join(_ENCODINGS)}'
        )
    size, order = _ENCODINGS[msg.encoding]
    if msg.width == 0 or msg.height == 0:
        raise ValueError(f'image on {topic} is empty ({msg.width} x {msg.height}): check the camera driver')
    _check_size(msg.width, msg.height, width, height, topic)
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


def _check_size(width: int, height: int, wanted_width: int, wanted_height: int, topic: str) -> None:
    if (wanted_width and width != wanted_width) or (wanted_height and height != wanted_height):
        raise ValueError(
            f'image on {topic} is {width} x {height}, expected {wanted_width or "any"} x {wanted_height or "any"}: '
            'set the camera driver, or image_width and image_height'
        )


def _decompress(msg: Any, topic: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a sensor_msgs/CompressedImage with JPEG or PNG."""
    try:
        # JPEG and PNG alone: Pillow's other readers have no business with what comes over a network.
        with Image.open(io.BytesIO(msg.data), formats=('JPEG', 'PNG')) as image:
            if image.mode not in ('RGB', 'RGBA', 'L'):
                raise ValueError(f'its pixels are {image.mode}, not 8 bit colour or grey')
            return np.asarray(image if image.mode == 'RGB' else image.convert('RGB'))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f'compressed image on {topic} (format {msg.format!r}) cannot be decoded ({error}): '
            'set the camera driver to jpeg or png'
        ) from error
