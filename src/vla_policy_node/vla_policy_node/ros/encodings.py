"""Encodings of sensor_msgs/Image (sensor_msgs/image_encodings.hpp) to RGB: views where bytes suffice, else swscale."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

UNSPECIFIED = ('8UC3', '8UC4')  # how many bytes a pixel has, and not which colours they are
ORDERS = ('rgb8', 'bgr8')  # orders of the colour channels that a caller may name

# encoding -> (channels, bytes per channel, order of the channels); of two bytes the higher one is taken
_PLAIN = {
    'rgb8': (3, 1, 'rgb'),
    'bgr8': (3, 1, 'bgr'),
    'rgba8': (4, 1, 'rgb'),
    'bgra8': (4, 1, 'bgr'),
    'mono8': (1, 1, 'mono'),
    '8UC1': (1, 1, 'mono'),
    'rgb16': (3, 2, 'rgb'),
    'bgr16': (3, 2, 'bgr'),
    'rgba16': (4, 2, 'rgb'),
    'bgra16': (4, 2, 'bgr'),
    'mono16': (1, 2, 'mono'),
}
_YUV = {
    'yuyv': 'yuyv422',
    'yuv422_yuy2': 'yuyv422',
    'uyvy': 'uyvy422',
    'yuv422': 'uyvy422',
    'nv12': 'nv12',
    'nv21': 'nv21',
    'nv24': 'nv24',
}  # encoding -> name in FFmpeg
_BAYER = {f'bayer_{order}{bits}': order for order in ('rggb', 'bggr', 'gbrg', 'grbg') for bits in (8, 16)}
KNOWN = (*_PLAIN, *_YUV, *_BAYER)


@dataclass(frozen=True)
class Layout:
    """How the bytes of an encoding lie, and what makes RGB of them."""

    pixel: int  # [byte] per pixel of the first plane
    rows: float  # rows of `step` bytes in all planes, per row of pixels
    even: tuple[bool, bool]  # width and height must be even
    decode: Callable[[Any, np.ndarray], np.ndarray]  # (message, bytes) -> (H, W, 3) uint8


def layout(encoding: str) -> Layout | None:
    """The layout of an encoding; None: it is not known."""
    if encoding in _PLAIN:
        channels, size, _ = _PLAIN[encoding]
        return Layout(channels * size, 1, (False, False), _plain)
    if encoding in _YUV:
        planar = encoding.startswith('nv')
        halved = encoding in ('nv12', 'nv21')
        rows = 1.5 if halved else 3 if planar else 1
        return Layout(1 if planar else 2, rows, (not planar or halved, halved), _converted)
    if encoding in _BAYER:
        return Layout(2 if encoding.endswith('16') else 1, 1, (True, True), _converted)
    return None


def specified(encoding: str, order: str) -> str:
    """The encoding, where it is one of UNSPECIFIED with this order (of ORDERS; '' leaves it)."""
    if encoding not in UNSPECIFIED or not order:
        return encoding
    return order if encoding == '8UC3' else order.replace('8', 'a8')


def _plain(msg: Any, data: np.ndarray) -> np.ndarray:
    """View of the message's bytes: strides skip the padding behind each row."""
    channels, size, order = _PLAIN[msg.encoding]
    higher = 0 if size == 1 or msg.is_bigendian else size - 1
    shape, strides = (msg.height, msg.width, channels), (msg.step, channels * size, size)
    pixels = np.ndarray(shape, np.uint8, data, offset=higher, strides=strides)
    if order == 'mono':
        return np.broadcast_to(pixels, (msg.height, msg.width, 3))
    return pixels[..., :3] if order == 'rgb' else pixels[..., 2::-1]


def _converted(msg: Any, data: np.ndarray) -> np.ndarray:
    """RGB by swscale: YUV is BT.601 of limited range, as cv_bridge and OpenCV take it; Bayer is interpolated."""
    try:
        import av  # only where a camera needs it
        from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
    except ImportError as error:
        raise ValueError(f'images of encoding {msg.encoding!r} need PyAV: pip install av') from error
    name = _YUV.get(msg.encoding)
    if name is None:
        depth = '8' if msg.encoding.endswith('8') else '16be' if msg.is_bigendian else '16le'
        name = f'bayer_{_BAYER[msg.encoding]}{depth}'
    frame, at = av.VideoFrame(msg.width, msg.height, name), 0
    for number, plane in enumerate(frame.planes):
        step = 2 * msg.step if name == 'nv24' and number else msg.step
        rows = data[at : at + step * plane.height].reshape(plane.height, step)
        used = min(step, plane.line_size)
        np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, :used] = rows[:, :used]  # type: ignore[call-overload]
        at += step * plane.height
    return (
        VideoReformatter()
        .reformat(
            frame,
            format='rgb24',
            src_colorspace=Colorspace.ITU601,
            src_color_range=ColorRange.MPEG,
            dst_color_range=ColorRange.JPEG,
            # Without these swscale's white is 253.
            interpolation=Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT,
            threads=1,
        )
        .to_ndarray()
    )
