"""Messages of openpi's policy servers: msgpack, with arrays as maps of the keys below. Nothing is unpickled."""

from typing import Any

import msgpack
import numpy as np

_ARRAY, _SCALAR, _DATA, _DTYPE, _SHAPE = b'__ndarray__', b'__npgeneric__', b'data', b'dtype', b'shape'
_KINDS = 'biufSU'  # kinds of numpy's dtypes that are sent: numbers and texts. Objects, records and complex are not.


def pack(message: Any) -> bytes:
    """Return a message of dicts, lists, texts, numbers and arrays as bytes. Raises ValueError for other types."""
    try:
        return msgpack.packb(message, default=_encode, use_bin_type=True)
    except TypeError as error:
        raise ValueError(f'this message cannot be sent: {error}') from None


def unpack(data: bytes) -> Any:
    """Return the message in bytes. Its arrays are read-only views. Raises ValueError for malformed bytes."""
    try:
        return msgpack.unpackb(data, object_hook=_decode)
    except (ValueError, TypeError, KeyError, RecursionError, msgpack.UnpackException) as error:
        raise ValueError(f'a message of {len(data)} bytes is not msgpack with arrays ({error!r})') from None


def _encode(value: Any) -> dict[bytes, Any]:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind not in _KINDS:
        raise TypeError(f'arrays of {value.dtype}')
    if isinstance(value, np.ndarray):
        return {_ARRAY: True, _DATA: value.tobytes(), _DTYPE: value.dtype.str, _SHAPE: list(value.shape)}
    if isinstance(value, np.generic):
        return {_SCALAR: True, _DATA: value.item(), _DTYPE: value.dtype.str}
    raise TypeError(f'values of {type(value).__name__}')


def _decode(value: dict) -> Any:
    if _ARRAY not in value and _SCALAR not in value:
        return value
    dtype = np.dtype(value[_DTYPE])
    if dtype.kind not in _KINDS:
        raise ValueError(f'arrays of {dtype}')
    if _SCALAR in value:
        return dtype.type(value[_DATA])
    return np.frombuffer(value[_DATA], dtype).reshape(value[_SHAPE])
