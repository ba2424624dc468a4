"""A policy whose network runs in a policy server: observations become requests, replies become chunks."""

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import numpy as np

from vla_model.observation import prefix_steps
from vla_model.policy import Options, Policy, PolicyInfo, Prediction, no_output
from vla_model.remote.mapping import Mapping
from vla_model.remote.reply import chunk_of
from vla_model.remote.request import put, request_of
from vla_model.types import Chunk, Observation

PREPARED = 30.0  # [s] for a server of ours to prepare an instruction
WARM_UP = 600.0  # [s] for each request until the warm-up has ended: a server may compile in its first one
TOOL_AT_REST = np.array([0.4, 0.0, 0.4, np.pi, 0.0, 0.0])  # [m], rotation vector [rad], of the first request
# Keys of the requests to servers of ours, and of what they reply beside actions.
PREPARE, PREFIX, PREFIX_GRIPPER = 'prepare', 'prefix/positions', 'prefix/gripper'
CONFIDENCE, POINTS = 'confidence', 'points'


class Link(Protocol):
    """The connection of one protocol."""

    url: str
    metadata: dict[str, Any]  # what the server sent of itself

    def infer(self, request: dict[str, Any], deadline: float) -> dict[str, Any]:
        """Return the reply to a request within deadline [s]. Raises OSError or RuntimeError; later calls recover."""

    def close(self) -> None:
        """End the connection."""


class RemotePolicy:
    """The policy of a server, see `Policy`. Its chunk has the steps of the mapping; it has no other outputs.

    A reply after the deadline is never used: its connection is dropped. `act` raises until the server replies again.
    """

    def __init__(self, link: Link, mapping: Mapping, info: PolicyInfo, deadline: float, prepares: bool = False) -> None:
        """deadline: [s] of a request, from when the warm-up has ended. prepares: the server is one of ours."""
        self.info, self.mapping, self.link = info, mapping, link
        self._deadline, self._warm, self._prepares = deadline, False, prepares

    def prepare(self, instruction: str) -> None:
        """See `Policy.prepare`. A server of others is prepared by its first request."""
        if not instruction.strip():
            raise ValueError('the instruction is empty: give a task for the robot')
        if self._prepares:  # a request of its own, as the first chunk could miss its deadline
            self.link.infer({PREPARE: instruction}, PREPARED)

    def act(self, observation: Observation, prefix: Chunk | None = None) -> Prediction:
        """See `Policy.act`."""
        request = request_of(self.mapping, observation)
        steps = None
        if prefix is not None and len(prefix.positions):
            if not self.info.takes_prefix:
                raise ValueError(f'the policy server {self.link.url} takes no prefix')
            steps = prefix_steps(self.info, prefix)
            put(request, PREFIX, steps[:, : self.info.arm_dim])
            put(request, PREFIX_GRIPPER, steps[:, self.info.arm_dim :])
        begun = time.perf_counter()
        reply = self.link.infer(request, self._deadline if self._warm else WARM_UP)
        taken = time.perf_counter() - begun
        chunk = chunk_of(self.mapping, reply, observation)
        if steps is not None:
            chunk = replace(chunk, frozen=len(steps))
        return _with_extras(chunk, reply, self.info, {'round trip': taken, **_server_time(reply)})

    def start(self, output: str, observation: Observation, options: Options | None = None) -> NoReturn:
        """Raise ValueError: a server has no outputs beside the chunk."""
        raise no_output(self.info, output)

    def warm_up(self) -> None:
        """Send requests of a grey scene until the server has compiled; raises as `act`."""
        for grey in (128, 129):
            self.act(self.example(grey))
        self._warm = True

    def example(self, grey: int = 128) -> Observation:
        """Return an observation with grey images and the arm at the rest pose of the mapping."""
        mapping = self.mapping
        opening = mapping.gripper.open if mapping.gripper is not None else None
        return Observation(
            t_ref=0,
            images={camera: np.full((256, 256, 3), grey, np.uint8) for camera in mapping.camera_names},
            positions=mapping.rest,
            velocities=np.zeros(mapping.joints.count),
            gripper=opening or 0.0,
            instruction='warm up',
            tool=TOOL_AT_REST.copy() if self.info.needs_tool else None,
        )

    def close(self) -> None:
        """End the connection."""
        self.link.close()


if TYPE_CHECKING:
    _keeps_the_contract: type[Policy] = RemotePolicy


def _with_extras(chunk: Chunk, reply: dict[str, Any], info: PolicyInfo, timings: dict[str, float]) -> Prediction:
    """Return the prediction with confidence and grounding points, where a server of ours sent them."""
    confidence = _numbers(reply.get(CONFIDENCE), (len(chunk.positions),))
    if confidence is not None:
        chunk = replace(chunk, confidence=confidence)
    points = _numbers(reply.get(POINTS), (len(info.cameras), info.points, 2))
    if points is None:
        return Prediction(chunk, timings=timings)
    return Prediction(chunk, points, timings=timings)


def _numbers(value: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return a value that is an array of numbers of this shape; else None."""
    fits = isinstance(value, np.ndarray) and value.shape == shape and value.dtype.kind == 'f'
    return value if fits else None


def _server_time(reply: dict[str, Any]) -> dict[str, float]:
    timing = reply.get('server_timing')
    value = timing.get('infer_ms') if isinstance(timing, dict) else None
    return {'server': float(value) / 1e3} if isinstance(value, int | float | np.number) else {}
