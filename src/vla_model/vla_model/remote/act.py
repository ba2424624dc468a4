"""The client of the `/act` servers of OpenVLA and OpenVLA-OFT: a JSON body by HTTP, with arrays as json-numpy has them.

The servers have no metadata, and reply to every failure with the text "error".
"""

import base64
import json
import socket
import time
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from vla_model.remote.openpi import CONNECT, LARGEST

PORT = 8777  # of OpenVLA-OFT; OpenVLA: 8000
_ARRAY = '__numpy__'


class ActLink:
    """A server at act://host:port. Each request has a connection of its own, so no late reply answers another one."""

    def __init__(self, url: str) -> None:
        """Look whether the port is open. Raises ConnectionError naming the remedy."""
        parts = urlsplit(url)
        self.url, self.metadata = url, dict[str, Any]()
        self._host, self._port, self._path = parts.hostname or '', parts.port or PORT, parts.path or '/act'
        try:
            socket.create_connection((self._host, self._port), CONNECT).close()
        except OSError as error:
            raise ConnectionError(
                f'{url} cannot be reached ({error.strerror or error}): start the policy server, or correct the URL'
            ) from None

    def infer(self, request: dict[str, Any], deadline: float) -> dict[str, Any]:
        """Return {'actions': (steps, numbers)}, see `Link.infer`."""
        end = time.monotonic() + deadline
        connection = HTTPConnection(self._host, self._port, timeout=deadline)
        try:
            connection.request('POST', self._path, json.dumps(_encoded(request)), {'Content-Type': 'application/json'})
            response = connection.getresponse()
            data = bytearray()
            while part := response.read1(2**16):
                data += part
                if time.monotonic() > end:
                    raise TimeoutError
                if len(data) > LARGEST:
                    raise RuntimeError(f'{self.url} sent a reply of more than {LARGEST} bytes')
        except TimeoutError:
            raise TimeoutError(f'{self.url} did not reply within {deadline:.2f} s') from None
        except (OSError, HTTPException) as error:
            raise ConnectionError(f'{self.url} did not answer ({error or type(error).__name__}): see its log') from None
        finally:
            connection.close()
        if response.status != 200:
            raise RuntimeError(f'the policy server failed with HTTP {response.status}: {bytes(data[:200])!r}')
        return {'actions': _actions(bytes(data), self.url)}

    def close(self) -> None:
        """Do nothing: no connection is kept."""


def _actions(data: bytes, url: str) -> np.ndarray:
    """Return the actions of a reply: an array, or a list of one per step."""
    try:
        reply = json.loads(data, object_hook=_decoded)
        if isinstance(reply, str) and reply != 'error':  # double-encoded
            reply = json.loads(reply, object_hook=_decoded)
        if isinstance(reply, str | dict):
            raise RuntimeError(f'the policy server failed: {str(reply)[:200]}; the reason is in its log')
        return np.atleast_2d(np.asarray(reply, np.float64))
    except (ValueError, TypeError, KeyError) as error:
        raise RuntimeError(f'{url} sent no actions as json-numpy has them ({error})') from None


def _encoded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _encoded(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray):
        data = base64.b64encode(value.tobytes()).decode()
        return {_ARRAY: data, 'dtype': value.dtype.str, 'shape': list(value.shape)}
    return value


def _decoded(value: dict[str, Any]) -> Any:
    if _ARRAY not in value:
        return value
    dtype = np.dtype(value['dtype'])
    if dtype.kind not in 'fiu':
        raise ValueError(f'arrays of {dtype}')
    return np.frombuffer(base64.b64decode(value[_ARRAY]), dtype).reshape(value['shape'])
