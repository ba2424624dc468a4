"""Traces that a person draws for the model to follow, from `~/steer` and from goals. No ROS node.

A trace ends when the tool has passed it, when another one or an empty one comes, when the instruction that it was
drawn for is no longer in force, and when the image that it was drawn on is too old.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from vla_core.observe.steering import MOST, Steering
from vla_core.observe.streams import NS
from vla_model.observation import along, check_trace
from vla_model.policy import PolicyInfo
from vla_model.types import Trace
from vla_msgs.msg import PolicyStatus, VisualTrace
from vla_policy_node.policy.report import PolicyReport
from vla_policy_node.policy.session import Answer, Session
from vla_policy_node.ros.chunk_msg import to_ns
from vla_policy_node.ros.trace_msg import trace_of

AHEAD = 0.5  # [s] that the stamp of an image may be ahead of this node's clock
ASPECT = 0.02  # by which the aspect ratio of a trace's image may differ from that of the camera's


class SteeringTraces:
    """Refuses bad traces, and has the one in force.

    `current` is called in the worker's thread, the listeners to the session in either, all else in the spin thread.
    What they share is under the lock of the session.
    """

    def __init__(self, session: Session, report: PolicyReport, log: Any, now: Callable[[], int]) -> None:
        """log: has info(text) and error(text). now: gives the time of the node's clock [ns]."""
        self._session, self._report, self._log, self._now = session, report, log, now
        self.shown: Callable[[Trace | None], None] = lambda _: None  # is given what is in force, when that changed
        self._info: PolicyInfo | None = None
        self._steering: Steering | None = None
        self._stamp = 0  # [ns] of the image that it was drawn on
        self._instruction = ''  # for which it was drawn; '': none was in force yet
        session.changed.append(self._changed)
        session.delivered.append(self._delivered)

    def open(self, info: PolicyInfo, max_age: float, size: Callable[[str], tuple[int, ...] | None]) -> None:
        """Start with a model. max_age: of a trace's image [s]. size: height and width of a camera's newest image."""
        self._info, self._max_age, self._size = info, round(max_age * NS), size

    def close(self) -> None:
        """Forget the model and the trace."""
        self.clear('the node is no longer configured')
        self._info, self.shown = None, lambda _: None

    @property
    def in_force(self) -> bool:
        """Whether the model follows a trace."""
        return self._steering is not None

    def refusal(self, msg: VisualTrace) -> str:
        """Return why a trace cannot be taken now, one sentence; '' where it can, or has no points."""
        info = self._info
        if info is None or not self._session.active:
            return 'the policy node is not active: configure and activate it'
        if not len(msg.u) and not len(msg.v):
            return ''
        if not info.steers:
            return f'model {info.model_id} does not follow traces: give an instruction, or load another model'
        if msg.kind != VisualTrace.STEERING:
            return f'the trace has kind {msg.kind}, must be {VisualTrace.STEERING} (STEERING)'
        if late := self._too_old(to_ns(msg.header.stamp)):
            return late
        try:
            return self._misfit(trace_of(msg), info.cameras[0])
        except ValueError as error:
            return str(error)

    def receive(self, msg: VisualTrace) -> None:
        """Take a trace of the topic, or refuse it."""
        if bad := self.refusal(msg):
            self._log.error(f'~/steer refused: {bad}')
            self._report.refuse(bad, PolicyStatus.BAD_TRACE)
        else:
            self.take(msg)

    def take(self, msg: VisualTrace) -> None:
        """Put a trace that was not refused in force. One without points ends the one in force."""
        if not len(msg.u):
            self.clear('it was cleared')
            return
        trace = trace_of(msg)
        points = trace.points if len(trace.points) <= MOST else along(trace.points, MOST)
        with self._session.lock:
            self._steering = Steering(Trace(trace.camera, points, trace.width, trace.height))
            self._stamp, self._instruction = to_ns(msg.header.stamp), self._session.instruction
            self.shown(self._steering.trace)
        self._log.info(f'a trace of {len(points)} points steers the model')
        self._report.accept()
        self._report.publish()

    def clear(self, why: str) -> None:
        """End the trace in force. why: the reason, for the log."""
        with self._session.lock:
            if self._steering is None:
                return
            self._steering = None
            self.shown(None)
        self._log.info(f'the trace no longer steers the model: {why}')

    def current(self) -> Trace | None:
        """Return what is left of the trace in force; None: none is, or it has just ended."""
        with self._session.lock:
            if self._steering is None:
                return None
            if late := self._too_old(self._stamp):
                self.clear(late)
                return None
            return self._steering.left(None)

    def _delivered(self, answer: Answer, sequence: int, latency: float) -> None:
        """Cut off what the tool has passed: the trace that the model predicts begins where it sees the tool."""
        seen = answer.prediction.trace
        if self._steering is None or seen is None or not len(seen.points):
            return
        trace = self._steering.trace
        if seen.camera != trace.camera:
            return
        scale = np.array([trace.width / seen.width, trace.height / seen.height])
        left = self._steering.left((np.asarray(seen.points[0]) + 0.5) * scale - 0.5)
        if left is None:
            self.clear('the tool has passed it')
        else:
            self.shown(left)

    def _changed(self, instruction: str) -> None:
        if self._instruction and instruction != self._instruction:
            self.clear('the instruction that it was drawn for is no longer in force')
        self._instruction = instruction if self._steering is not None else ''

    def _too_old(self, stamp: int) -> str:
        age = self._now() - stamp
        if stamp == 0:
            return 'the trace has no stamp: give that of the image that it was drawn on'
        if age < -AHEAD * NS:
            return f'the trace is stamped {-age / NS:.1f} s ahead of the clock: give the stamp of its image'
        if age > self._max_age:
            return (
                f'the image that the trace was drawn on is {age / NS:.1f} s old, steer_max_age is '
                f'{self._max_age / NS:g} s: draw it on a new image'
            )
        return ''

    def _misfit(self, trace: Trace, camera: str) -> str:
        """Return why a trace does not fit the image of the camera. Raises ValueError, too."""
        check_trace(trace, camera)
        size = self._size(camera)
        if size is not None and abs(trace.width * size[0] / (trace.height * size[1]) - 1) > ASPECT:
            return (
                f'the trace is of an image of {trace.width} x {trace.height} px, camera {camera!r} has '
                f'{size[1]} x {size[0]} px: draw it on an image of this camera'
            )
        if Steering(trace).done:
            return 'the trace is too short to be followed: draw it longer'
        return ''
