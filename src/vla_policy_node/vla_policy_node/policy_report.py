"""What the policy node tells about its work: the numbers of PolicyStatus, the diagnostics, and where it points to."""

import array
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node

from vla_model.config import RobotInterface
from vla_model.observation import unsquared
from vla_msgs.msg import PolicyStatus, VisualTrace
from vla_policy_node.inference import Answer
from vla_policy_node.ros import qos
from vla_policy_node.ros.chunk_msg import to_time
from vla_policy_node.stats import Rate, Window

S = PolicyStatus
CODE_NAMES = {
    S.OK: 'OK',
    S.NO_INSTRUCTION: 'NO_INSTRUCTION',
    S.CAMERA_MISSING: 'CAMERA_MISSING',
    S.CAMERA_STALE: 'CAMERA_STALE',
    S.CAMERA_BAD: 'CAMERA_BAD',
    S.JOINTS_MISSING: 'JOINTS_MISSING',
    S.JOINTS_STALE: 'JOINTS_STALE',
    S.JOINTS_BAD: 'JOINTS_BAD',
    S.INFERENCE_FAILED: 'INFERENCE_FAILED',
    S.BAD_INSTRUCTION: 'BAD_INSTRUCTION',
    S.CLOCK_NOT_RUNNING: 'CLOCK_NOT_RUNNING',
    S.EXECUTOR_HOLDS: 'EXECUTOR_HOLDS',
    S.CHANGING: 'CHANGING',
}


class PolicyReport:
    """Counters and latencies of one configured model. The node's lock guards it."""

    def __init__(self, node: Node, model_id: str, robot: RobotInterface, frame: Callable[[str], str]) -> None:
        """frame: camera -> frame_id of its newest image."""
        self._node, self._model_id, self._robot, self._frame = node, model_id, robot, frame
        self._pointed = node.create_publisher(VisualTrace, '~/pointed', qos.STATUS) if robot.points else None
        self._publisher = node.create_publisher(DiagnosticArray, '/diagnostics', qos.STATUS)
        self._inference, self._latency, self._waited, self._rate = Window(200), Window(200), Window(200), Rate()
        self._chunks = self._skipped = self._sequence = self._t_ref = 0
        self._skew = math.nan
        self.latency = math.nan  # t_ref -> published, newest chunk [s]

    def answered(self, answer: Answer, sequence: int, latency: float) -> None:
        """Count a chunk that was just published; latency [s] from t_ref."""
        self._chunks += 1
        self._skipped += answer.skipped
        self._sequence, self._t_ref, self._skew = sequence, answer.aligned.t_ref, answer.aligned.skew
        self.latency = latency
        self._inference.add(answer.inference_time)
        self._latency.add(latency)
        self._waited.add(answer.waited)
        self._rate.mark(time.monotonic())
        if self._pointed is not None and self._pointed.get_subscription_count() > 0:
            for camera, places in zip(self._robot.cameras, answer.pointed, strict=True):
                self._point(answer.aligned.t_ref, camera, places, answer.aligned.values[camera].shape)

    def _point(self, t_ref: int, camera: str, places: np.ndarray, shape: tuple[int, ...]) -> None:
        """places: see Answer.pointed; shape: of the image."""
        assert self._pointed is not None
        height, width = shape[:2]
        msg = VisualTrace(kind=VisualTrace.NAMED, camera=camera, width=width, height=height)
        msg.header.stamp, msg.header.frame_id = to_time(t_ref), self._frame(camera)
        msg.u, msg.v = (array.array('f', column) for column in unsquared(places, height, width).T)
        self._pointed.publish(msg)

    def fill(self, msg: PolicyStatus, ages: dict[str, float]) -> None:
        """The fields of the status that are numbers; ages [s] by stream."""
        p = self._inference.percentiles()
        msg.model_id = self._model_id
        msg.sequence, msg.chunks, msg.skipped = self._sequence, self._chunks, self._skipped
        msg.t_ref, msg.latency, msg.skew = to_time(self._t_ref), self.latency, self._skew
        msg.inference_p50, msg.inference_p95, msg.inference_p99 = p.p50, p.p95, p.p99
        msg.streams, msg.stream_ages = list(ages), list(ages.values())

    @property
    def heard(self) -> bool:
        """Whether somebody subscribes to the diagnostics."""
        return self._publisher.get_subscription_count() > 0

    def diagnose(
        self, assessment: tuple[int, int, str], ages: dict[str, float], drive: bool, more: list[DiagnosticStatus]
    ) -> None:
        """Publish the diagnostics; assessment: state, code and message of PolicyStatus. more: what else there is."""
        state, code, message = assessment
        level = DiagnosticStatus.OK
        if code in (S.INFERENCE_FAILED, S.CAMERA_BAD, S.JOINTS_BAD):
            level = DiagnosticStatus.ERROR
        elif state == S.STATE_WAITING or code in (S.BAD_INSTRUCTION, S.CLOCK_NOT_RUNNING):
            level = DiagnosticStatus.WARN
        values: dict[str, Any] = {
            'code': CODE_NAMES[code],
            'model': self._model_id,
            'drive': str(drive).lower(),
            'rate [Hz]': f'{self._rate.value(time.monotonic()):.2f}',
            'chunks': self._chunks,
            'skipped': self._skipped,
            'inference p50/p95/p99 [ms]': _ms(self._inference),
            'latency p50/p95/p99 [ms]': _ms(self._latency),
            'wait for the model p50/p95/p99 [ms]': _ms(self._waited),
            **{f'age of {name} [s]': f'{age:.3f}' if age != -1 else 'nothing received' for name, age in ages.items()},
        }
        status = DiagnosticStatus(
            level=level,
            name=f'{self._node.get_fully_qualified_name()}: inference',
            message=message or 'OK',
            hardware_id=self._model_id,
            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
        )
        array = DiagnosticArray(status=[status, *more])
        array.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(array)

    def destroy(self) -> None:
        for publisher in (self._publisher, self._pointed):
            if publisher is not None:
                self._node.destroy_publisher(publisher)


def milliseconds(*seconds: float) -> str:
    """'12.3 / 45.6'; - where there is no value yet."""
    return ' / '.join('-' if math.isnan(v) else f'{v * 1e3:.1f}' for v in seconds)


def _ms(window: Window) -> str:
    p = window.percentiles()
    return milliseconds(p.p50, p.p95, p.p99)
