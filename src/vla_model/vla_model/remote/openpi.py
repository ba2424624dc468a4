"""The client of openpi's policy servers: websocket frames of msgpack, metadata first, then a reply to each request.

A text frame is the traceback of an error, after which the server closes the connection. Requests have no numbers, so a
reply that is not there in time can never be told from the reply to the next request: the connection is dropped with it.
"""

import os
import struct
import time
from contextlib import ExitStack, suppress
from socket import SO_SNDTIMEO, SOL_SOCKET
from typing import Any, NoReturn

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus, InvalidURI
from websockets.sync.client import ClientConnection, connect

from vla_model.remote.numpy_msgpack import pack, unpack

KEY = 'VLA_SERVER_KEY'  # environment variable with the key that the server asks for; not in a URL, which logs have
CONNECT = 3.0  # [s] for the connection, and again for the metadata
LARGEST = 2**26  # [byte] of a frame
_BACK_OFF = 0.5, 5.0  # [s] wait after the first failed connection, which doubles, and its limit


class OpenpiLink:
    """A connection to one server, made anew after failures. One thread at a time uses it.

    metadata: what the server sent on the first connection.
    """

    def __init__(self, url: str) -> None:
        """Connect. url: ws://host:port. Raises ConnectionError or TimeoutError naming the remedy."""
        self.url = url
        self._socket: ClientConnection | None = None
        self._closing = ExitStack()  # closes the socket
        self._identity: bytes | None = None  # the metadata as bytes
        self._failed, self._next, self._why = 0, 0.0, ''  # connections failed in a row; time of the next; the reason
        self.metadata = self._connect()

    def infer(self, request: dict[str, Any], deadline: float) -> dict[str, Any]:
        """Return the reply to a request. deadline: [s] for it, beside that of a new connection.

        Raises ConnectionError, TimeoutError or RuntimeError. The connection is dropped with each of them, and made anew
        by a later call, so that no reply of it can answer another request.
        """
        data = pack(request)
        if self._socket is None:
            self._connect()
        socket = self._socket
        assert socket is not None
        try:
            with suppress(TimeoutError):
                socket.recv(timeout=0)
                raise RuntimeError(f'{self.url} sent a frame that was not asked for: its replies cannot be matched')
            # A server that stands still reads nothing, and a large request would wait for it without this.
            socket.socket.setsockopt(SOL_SOCKET, SO_SNDTIMEO, struct.pack('ll', *_timeval(deadline)))
            socket.send(data)
            return self._message(socket, deadline)
        except (OSError, RuntimeError, ConnectionClosed) as error:
            self._drop()
            if isinstance(error, TimeoutError):
                raise TimeoutError(f'{self.url} did not reply within {deadline:.2f} s') from None
            if isinstance(error, ConnectionClosed):
                raise ConnectionError(f'{self.url} closed the connection ({error}): see its log') from None
            raise

    def close(self) -> None:
        """End the connection."""
        self._drop()

    def _drop(self) -> None:
        self._socket = None
        with suppress(Exception):
            self._closing.close()

    def _connect(self) -> dict[str, Any]:
        """Connect and return the metadata, unless a failure was just before. Raises as infer."""
        wait = self._next - time.monotonic()
        if wait > 0:
            raise ConnectionError(f'{self._why}; the next connection is tried in {wait:.1f} s')
        try:
            metadata = self._handshake()
        except (OSError, RuntimeError) as error:
            self._drop()
            self._failed, self._why = self._failed + 1, str(error)
            first, limit = _BACK_OFF
            self._next = time.monotonic() + min(first * 2 ** (self._failed - 1), limit)
            raise
        self._failed = 0
        return metadata

    def _handshake(self) -> dict[str, Any]:
        key = os.environ.get(KEY)
        try:
            # No pings: a stock server does not reply to them while it computes, and the deadline does their work.
            opening = connect(
                self.url,
                compression=None,
                max_size=LARGEST,
                ping_interval=None,
                open_timeout=CONNECT,
                close_timeout=0.2,
                additional_headers={'Authorization': f'Api-Key {key}'} if key else None,
            )
            self._socket = self._closing.enter_context(opening)
        except (OSError, InvalidHandshake, InvalidMessage, InvalidURI) as error:
            self._refused(error)
        try:
            data = self._socket.recv(timeout=CONNECT)
        except (OSError, ConnectionClosed) as error:
            text = f'no metadata within {CONNECT:.0f} s' if isinstance(error, TimeoutError) else str(error)
            raise ConnectionError(f'{self.url} is a websocket, but no policy server: {text}') from None
        if isinstance(data, str):
            raise RuntimeError(f'{self.url} refused the connection: {last_line(data)}')
        try:
            metadata = unpack(data)
        except ValueError as error:
            metadata = error
        if not isinstance(metadata, dict):
            raise RuntimeError(
                f"{self.url} sent no metadata of openpi's format: correct the port, or update the server"
            )
        if self._identity is not None and data != self._identity:
            raise RuntimeError(
                f'{self.url} has other metadata than when it was configured: another policy may be served there. '
                'Configure the policy node again to use it'
            )
        self._identity = data
        return metadata

    def _refused(self, error: Exception) -> NoReturn:
        if isinstance(error, InvalidStatus) and error.response.status_code in (401, 403):
            raise ConnectionError(f'{self.url} asks for a key: set {KEY}') from None
        if isinstance(error, TimeoutError):
            raise TimeoutError(
                f'{self.url} did not open within {CONNECT:.0f} s: check host, port and firewall'
            ) from None
        if isinstance(error, OSError):
            raise ConnectionError(
                f'{self.url} cannot be reached ({error.strerror or error}): start the policy server, or correct the URL'
            ) from None
        raise ConnectionError(f'{self.url} is no websocket ({error}): correct the port') from None

    def _message(self, socket: ClientConnection, deadline: float) -> dict[str, Any]:
        data = socket.recv(timeout=deadline)
        if isinstance(data, str):
            raise RuntimeError(f'the policy server failed: {last_line(data)}')
        try:
            reply = unpack(data)
        except ValueError as error:
            raise RuntimeError(f'{self.url}: {error}') from None
        if not isinstance(reply, dict):
            raise RuntimeError(f'{self.url} sent a {type(reply).__name__}, no dict with actions')
        return reply


def _timeval(seconds: float) -> tuple[int, int]:
    """Return whole seconds and microseconds."""
    return divmod(round(1e6 * seconds), 1_000_000)


def last_line(text: str) -> str:
    """Return the line of a traceback that names the error, at most 300 characters."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else 'no reason given'
