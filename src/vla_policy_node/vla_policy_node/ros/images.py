"""sensor_msgs/Image and CompressedImage to arrays: one decode for the live node and for bags (no ROS import here)."""

import io
from typing import Any

import numpy as np
from PIL import Image

from vla_policy_node.ros.encodings import KNOWN, ORDERS, UNSPECIFIED, layout, specified

COMPRESSED = '/compressed'  # ends the topic of a CompressedImage: image_transport's convention


def decode_image(msg: Any, topic: str, *, width: int = 0, height: int = 0, order: str = '') -> np.ndarray:
    """(H, W, 3) uint8 RGB of a sensor_msgs/Image or CompressedImage.

    Of RGB, BGR and grey encodings it is a view, of which nothing is copied: it keeps the message's buffer alive and is
    contiguous for rgb8 without row padding only; use np.ascontiguousarray where that matters. width, height [pixel]:
    what is expected, 0 for any. order: rgb8 or bgr8, the colours of encodings that do not give them; empty: unknown.
    Raises ValueError naming the topic, what is wrong and the remedy.
    """
    if not hasattr(msg, 'encoding'):
        pixels = _decompress(msg, topic)
        _check_size(pixels.shape[1], pixels.shape[0], width, height, topic)
        return pixels
    if order and msg.encoding in UNSPECIFIED:
        msg = _Specified(msg, specified(msg.encoding, order))
    found = layout(msg.encoding)
    if found is None:
        raise ValueError(f'image on {topic} has encoding {msg.encoding!r}, {_remedy(msg.encoding)}')
    if msg.width == 0 or msg.height == 0:
        raise ValueError(f'image on {topic} is empty ({msg.width} x {msg.height}): check the camera driver')
    _check_size(msg.width, msg.height, width, height, topic)
    if (found.even[0] and msg.width % 2) or (found.even[1] and msg.height % 2):
        raise ValueError(
            f'image on {topic} is {msg.width} x {msg.height}, and {msg.encoding} needs even sizes: '
            'the camera driver is broken'
        )
    if msg.step < msg.width * found.pixel:
        raise ValueError(
            f'image on {topic} has step {msg.step}, but {msg.width} pixels of {msg.encoding} need at least '
            f'{msg.width * found.pixel}: the camera driver is broken'
        )
    data = np.frombuffer(msg.data, np.uint8)
    if data.size != msg.step * msg.height * found.rows:
        raise ValueError(
            f'image on {topic} has {data.size} bytes, its step, height and encoding {msg.encoding} need '
            f'{msg.step * msg.height * found.rows:g}: the camera driver is broken'
        )
    return found.decode(msg, data)


class _Specified:
    """An image message with another encoding."""

    def __init__(self, msg: Any, encoding: str) -> None:
        self._msg, self.encoding = msg, encoding

    def __getattr__(self, name: str) -> Any:
        return getattr(self._msg, name)


def _remedy(encoding: str) -> str:
    if encoding in UNSPECIFIED:
        return (
            f'which does not give the order of the colours: set the camera driver to {" or ".join(ORDERS)}; '
            f'a recorded bag can be converted with --encoding {" or ".join(ORDERS)} (bgr8 is the order of OpenCV)'
        )
    return f'which is not read: set the camera driver to one of {", ".join(KNOWN)}'


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
