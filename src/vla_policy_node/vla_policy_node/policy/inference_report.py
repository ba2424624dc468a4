"""Counters and latencies of one configured model: numbers of PolicyStatus, and the diagnostics."""

import math
import time
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node

from vla_core.stats import Rate, Window
from vla_msgs.msg import PolicyStatus
from vla_policy_node.policy.session import Answer
from vla_policy_node.ros import qos
from vla_policy_node.ros.chunk_msg import to_time

S = PolicyStatus
SLOW_AFTER = 3  # chunks: the first ones of a model may take longer
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
    S.BAD_TRACE: 'BAD_TRACE',
}


class InferenceReport:
    """Counts the chunks of one model. Guarded by the lock of the session."""

    def __init__(self, node: Node, model_id: str) -> None:
        self._node, self._model_id = node, model_id
        self._publisher = node.create_publisher(DiagnosticArray, '/diagnostics', qos.STATUS)
        self._inference, self._latency, self._waited, self._rate = Window(200), Window(200), Window(200), Rate()
        self._chunks = self._skipped = self._sequence = self._t_ref = 0
        self._skew = math.nan
        self.latency = math.nan  # [s] t_ref -> published, of the newest chunk

    def delivered(self, answer: Answer, sequence: int, latency: float) -> None:
        """Count a chunk that was just sent; latency [s] from t_ref."""
        self._chunks += 1
        self._skipped += answer.skipped
        self._sequence, self._t_ref, self._skew = sequence, answer.aligned.t_ref, answer.aligned.skew
        self.latency = latency
        self._inference.add(answer.inference_time)
        self._latency.add(latency)
        self._waited.add(answer.waited)
        self._rate.mark(time.monotonic())
        self._log_slow(answer)

    def _log_slow(self, answer: Answer) -> None:
        """Log once where chunks are over before the next ones come."""
        if self._chunks != SLOW_AFTER:
            return
        usual, covered = self._inference.percentiles().p50, len(answer.chunk.positions) * answer.chunk.dt
        if usual <= covered:
            return
        self._node.get_logger().warning(
            f'a chunk of {self._model_id} covers {covered:.2f} s ({len(answer.chunk.positions)} set-points), its '
            f'inference takes {usual:.2f} s: {len(answer.chunk.positions) / usual:.1f} set-points per second. The '
            f'executor brings the arm to rest between chunks, so that it moves {covered / usual:.0%} of the time at '
            'most: take a checkpoint with longer chunks, a faster device or smaller weights'
        )

    def fill(self, msg: PolicyStatus, ages: dict[str, float]) -> None:
        """Write the numbers of the status; ages [s] by stream."""
        p = self._inference.percentiles()
        msg.model_id = self._model_id
        msg.sequence, msg.chunks, msg.skipped = self._sequence, self._chunks, self._skipped
        msg.t_ref, msg.latency, msg.skew = to_time(self._t_ref), self.latency, self._skew
        msg.inference_p50, msg.inference_p95, msg.inference_p99 = p.p50, p.p95, p.p99
        msg.streams, msg.stream_ages = list(ages), list(ages.values())

    @property
    def wanted(self) -> bool:
        """Whether the diagnostics have a subscriber."""
        return self._publisher.get_subscription_count() > 0

    def diagnose(
        self, assessment: tuple[int, int, str], ages: dict[str, float], drive: bool, more: list[DiagnosticStatus]
    ) -> None:
        """Publish the diagnostics.

        assessment: state, code and message of PolicyStatus. ages: [s] by stream. more: those of the outputs.
        """
        state, code, message = assessment
        level = DiagnosticStatus.OK
        if code in (S.INFERENCE_FAILED, S.CAMERA_BAD, S.JOINTS_BAD):
            level = DiagnosticStatus.ERROR
        elif state == S.STATE_WAITING or code in (S.BAD_INSTRUCTION, S.BAD_TRACE, S.CLOCK_NOT_RUNNING):
            level = DiagnosticStatus.WARN
        values: dict[str, Any] = {
            'code': CODE_NAMES[code],
            'model': self._model_id,
            'drive': str(drive).lower(),
            'rate [Hz]': f'{self._rate.value(time.monotonic()):.2f}',
            'chunks': self._chunks,
            'skipped': self._skipped,
            'inference p50/p95/p99 [ms]': _percentiles(self._inference),
            'latency p50/p95/p99 [ms]': _percentiles(self._latency),
            'wait for the model p50/p95/p99 [ms]': _percentiles(self._waited),
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
        self._node.destroy_publisher(self._publisher)


def milliseconds(*seconds: float) -> str:
    """'12.3 / 45.6'; - for NaN."""
    return ' / '.join('-' if math.isnan(v) else f'{v * 1e3:.1f}' for v in seconds)


def _percentiles(window: Window) -> str:
    p = window.percentiles()
    return milliseconds(p.p50, p.p95, p.p99)
