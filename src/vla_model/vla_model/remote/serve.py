"""A server of a policy of this suite in openpi's websocket format: any client of that format can drive the model."""

import asyncio
import hmac
import ipaddress
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any

import numpy as np
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.protocol import State

from vla_model.observation import check_image
from vla_model.policy import Policy, PolicyInfo, Prediction
from vla_model.remote.described import GRIPPER, IMAGE, POSITIONS, PROMPT, TOOL, VELOCITIES, metadata_of
from vla_model.remote.numpy_msgpack import pack, unpack
from vla_model.remote.openpi import KEY
from vla_model.remote.policy import CONFIDENCE, POINTS, PREFIX, PREFIX_GRIPPER, PREPARE
from vla_model.types import Chunk, Observation

PORT = 8000
LARGEST = 2**25  # [byte] of a request
_PING = 10.0  # [s] between pings, and until a client without a pong is dropped
_LONGEST = 1000  # characters of an instruction
_log = logging.getLogger(__name__)


def check_address(host: str, key: str) -> None:
    """Raise ValueError for an address that other machines reach, without a key."""
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == 'localhost'
    if not local and not key:
        raise ValueError(
            f'other machines reach {host}: set the environment variable {KEY} to a key of your choice, here and at '
            'the client, or serve on 127.0.0.1'
        )


class PolicyServer:
    """Serves one policy in openpi's format. One worker thread runs the model; the event loop never waits for it.

    clients: largest number of connections. A policy may remember earlier observations, so more than one is only right
    for policies that do not.
    """

    def __init__(self, policy: Policy, key: str = '', clients: int = 1) -> None:
        self._policy, self._info, self._key, self._clients = policy, policy.info, key, clients
        self._metadata = pack(metadata_of(policy.info, policy.example()))
        self._worker = ThreadPoolExecutor(1, 'model')
        self._prepared: tuple[ServerConnection | None, str] = (None, '')
        self._open: set[ServerConnection] = set()

    async def start(self, host: str = '127.0.0.1', port: int = PORT) -> Server:
        """Return the running server. port: 0 is any. Raises ValueError without a key for other machines, or OSError."""
        check_address(host, self._key)
        return await serve(
            self._handle, host, port, compression=None, max_size=LARGEST, process_request=self._admit,
            ping_interval=_PING, ping_timeout=_PING,
        )  # fmt: skip

    def close(self) -> None:
        """Wait for the computation under way, and free the worker. Close the server before."""
        self._worker.shutdown(cancel_futures=True)

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer health checks, and refuse clients without the key."""
        if request.path == '/healthz':
            return connection.respond(HTTPStatus.OK, 'OK\n')
        given = request.headers.get('Authorization', '')
        if self._key and not hmac.compare_digest(given.encode(), f'Api-Key {self._key}'.encode()):
            return connection.respond(HTTPStatus.UNAUTHORIZED, f'wrong or missing key: set {KEY}\n')
        return None

    async def _handle(self, connection: ServerConnection) -> None:
        if sum(other.state is State.OPEN for other in self._open) >= self._clients:
            return await self._refuse(connection, f'{self._clients} clients are connected already: end one of them')
        self._open.add(connection)
        _log.info('client %s connected', connection.remote_address)
        try:
            await connection.send(self._metadata)
            async for message in connection:
                await connection.send(await self._reply(connection, message))
        except ConnectionClosed:
            pass
        except Exception as error:
            _log.warning('request of %s failed: %s', connection.remote_address, error)
            await self._refuse(connection, f'{type(error).__name__}: {error}')
        finally:
            self._open.discard(connection)
            _log.info('client %s left', connection.remote_address)
        return None

    @staticmethod
    async def _refuse(connection: ServerConnection, why: str) -> None:
        """Send the reason as a text frame, as openpi does, and close."""
        try:
            await connection.send(why)
            await connection.close(1011, 'the reason is in the frame before')
        except ConnectionClosed:
            pass

    async def _reply(self, connection: ServerConnection, message: str | bytes) -> bytes:
        if isinstance(message, str):
            raise ValueError('requests are binary frames of msgpack, got a text frame')
        loop, begun, request = asyncio.get_running_loop(), time.perf_counter(), unpack(message)
        if isinstance(request, dict) and PREPARE in request:
            await loop.run_in_executor(self._worker, self._prepare, connection, _instruction(request, PREPARE))
            return pack({PREPARE: True})
        observation, prefix = observation_of(self._info, request)
        prediction, taken = await loop.run_in_executor(self._worker, self._act, connection, observation, prefix)
        timing = {'infer_ms': 1e3 * taken, 'total_ms': 1e3 * (time.perf_counter() - begun)}
        return pack(reply_of(prediction) | {'server_timing': timing})

    def _prepare(self, connection: ServerConnection, instruction: str) -> None:
        """Prepare the policy for the instruction of a client, once; in the worker thread."""
        if self._prepared != (connection, instruction):
            self._policy.prepare(instruction)
            self._prepared = connection, instruction

    def _act(
        self, connection: ServerConnection, observation: Observation, prefix: Chunk | None
    ) -> tuple[Prediction, float]:
        """Return the prediction and its time [s]; in the worker thread."""
        if connection.state is not State.OPEN:
            raise ConnectionError('the client left before its turn')
        begun = time.perf_counter()
        self._prepare(connection, observation.instruction)
        prediction = self._policy.act(observation, prefix)
        return prediction, time.perf_counter() - begun


def _instruction(request: dict[str, Any], key: str) -> str:
    """Return the instruction of a request. Raises ValueError naming its key."""
    text = request.get(key)
    if not isinstance(text, str) or not 0 < len(text.strip()) <= _LONGEST:
        raise ValueError(f'{key} must be an instruction of 1 to {_LONGEST} characters, got {str(text)[:50]!r}')
    return text


def observation_of(info: PolicyInfo, request: Any) -> tuple[Observation, Chunk | None]:
    """Return the observation and the prefix of a request. Raises ValueError naming the wrong entry."""
    if not isinstance(request, dict):
        raise ValueError(f'a request is a dict, got a {type(request).__name__}')
    prompt = _instruction(request, PROMPT)
    keys = {camera: IMAGE.format(camera) for camera in info.cameras}
    if missing := [
        key for key in (*keys.values(), POSITIONS, *([GRIPPER] if info.gripper else [])) if key not in request
    ]:
        raise ValueError(f'the request lacks {", ".join(missing)}; it has {", ".join(map(str, request))}')
    images = {camera: request[key] for camera, key in keys.items()}
    for camera in info.cameras:
        if not isinstance(images[camera], np.ndarray):
            raise ValueError(f'{keys[camera]} must be an array, got a {type(images[camera]).__name__}')
        images[camera] = check_image(camera, images, info.cameras)
    rates = _row(request, VELOCITIES, info.dof) if VELOCITIES in request else np.zeros(info.dof)
    gripper = float(_row(request, GRIPPER, 1)[0]) if info.gripper else 0.0
    tool = _row(request, TOOL, 6) if info.needs_tool else None
    observation = Observation(0, images, _row(request, POSITIONS, info.dof), rates, gripper, prompt, tool)
    return observation, _prefix(info, request) if PREFIX in request else None


def _row(request: dict[str, Any], key: str, size: int) -> np.ndarray:
    value = np.asarray(request.get(key, ()))
    if value.dtype.kind not in 'fiu' or value.size != size or not np.isfinite(value).all():
        raise ValueError(f'{key} must be {size} finite numbers, got {value.dtype} of shape {value.shape}')
    return value.astype(np.float64).reshape(size)


def _prefix(info: PolicyInfo, request: dict[str, Any]) -> Chunk | None:
    """Return the action prefix. The policy checks its shape."""
    positions = np.asarray(request[PREFIX], np.float64)
    opening = np.asarray(request.get(PREFIX_GRIPPER, ()), np.float64).reshape(-1)
    return Chunk(positions, opening, info.dt, space=info.space) if info.takes_prefix and len(positions) else None


def reply_of(prediction: Prediction) -> dict[str, Any]:
    """Return the reply: actions (horizon, numbers), and where there are any confidence and grounding points."""
    chunk = prediction.chunk
    actions = np.hstack([chunk.positions, chunk.gripper[:, None]]) if len(chunk.gripper) else chunk.positions
    reply: dict[str, Any] = {'actions': np.ascontiguousarray(actions, np.float64)}
    if len(chunk.confidence):
        reply[CONFIDENCE] = chunk.confidence
    if prediction.points.size:
        reply[POINTS] = prediction.points
    return reply


def run(policy: Policy, host: str, port: int, clients: int, tell: Callable[[str], None]) -> None:
    """Serve until interrupted. tell: is given one line when the server is ready. Raises ValueError naming the fault."""

    async def main() -> None:
        server = PolicyServer(policy, os.environ.get(KEY, ''), clients)
        try:
            try:
                running = await server.start(host, port)
            except OSError as error:
                raise ValueError(f'{host}:{port} cannot be served ({error.strerror}): give another --port') from None
            async with running:
                tell(f'{policy.info.model_id} is served on ws://{host}:{port}; Ctrl-C ends it')
                await running.wait_closed()
        finally:
            server.close()

    asyncio.run(main())
