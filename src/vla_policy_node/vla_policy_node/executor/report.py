"""Status and diagnostics of the executor node."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node

from vla_core.motion.chunk import Verdict
from vla_core.motion.executor import ChunkExecutor
from vla_core.motion.states import Hold, State
from vla_core.stats import Window
from vla_msgs.msg import ExecutorStatus
from vla_policy_node.ros import qos

STATUS_EVERY = 0.1  # [s] at least
NEWEST = 1000  # control steps, and chunks, whose times are in the diagnostics
PERIOD, STEP, INGEST = (f'{what}: p50, p95, p99, max [ms]' for what in ('period of set-points', 'step', 'ingest'))
# A requested stop, or an idle arm, is no fault; the other holds are warnings.
_FINE = (Hold.NONE, Hold.IDLE, Hold.STOP_REQUESTED, Hold.DEACTIVATED)


class ExecutorReport:
    """Publishers of `~/status`, on change and at 10 Hz, and `/diagnostics`.

    clock_fault, input_fault, gripper_fault: what is wrong with simulated time, inputs, the gripper; '' or one sentence.
    """

    def __init__(self, node: Node, core: ChunkExecutor) -> None:
        self._node, self._core = node, core
        self._status = node.create_publisher(ExecutorStatus, '~/status', qos.LATCHED)
        self._diagnostics = node.create_publisher(DiagnosticArray, '/diagnostics', qos.STATUS)
        self.clock_fault = self.input_fault = self.gripper_fault = ''
        self.hint: Callable[[], str] = lambda: ''  # to be put behind a message about joint states that do not come
        self._times = {name: Window(NEWEST) for name in (PERIOD, STEP, INGEST)}  # [s] of wall time
        self._stepped = math.nan
        self._shown: tuple = ()
        self._ticks = 0

    def close(self) -> None:
        self._node.destroy_publisher(self._status)
        self._node.destroy_publisher(self._diagnostics)

    def ingested(self, took: float) -> None:
        """A chunk was taken or refused, in so many seconds."""
        self._times[INGEST].add(took)

    def tick(self, began: float, took: float) -> None:
        """At every control step, which began at a time of time.perf_counter and took so many seconds."""
        if not math.isnan(self._stepped):
            self._times[PERIOD].add(began - self._stepped)
        self._stepped = began
        self._times[STEP].add(took)
        self._ticks += 1
        if self._facts() != self._shown or self._ticks * self._core.config.period >= STATUS_EVERY:
            self.publish()

    def publish(self) -> None:
        core, clock = self._core, self._node.get_clock()
        now = clock.now()
        self._ticks = 0
        shown = self._facts()
        if shown[:2] != self._shown[:2] and self._shown:
            text = f'{core.state.name.lower()}, {core.hold.name.lower()}, epoch {core.epoch}. {self._message()}'
            if core.hold in _FINE:  # rclpy refuses another severity from the same line
                self._node.get_logger().info(text)
            else:
                self._node.get_logger().warning(text)
        self._shown = shown
        msg = ExecutorStatus(
            state=int(core.state),
            hold_reason=int(core.hold),
            last_verdict=int(core.verdict),
            verdict_counts=np.array(core.verdict_counts, np.uint32),
            epoch=core.epoch,
            source=core.source,
            sequence=core.sequence,
            message=self._message(),
            horizon_left=float(core.horizon_left()),
            chunk_age=float(core.chunk_age(now.nanoseconds)),
            seam_position=float(core.seam_position),
            seam_velocity=float(core.seam_velocity),
            speed_scale=float(core.rate),
            tracking_error=float(core.tracking_error()),
            joint_state_age=float(core.joint_state_age(now.nanoseconds)),
            limit_margin=float(core.limit_margin()),
        )
        msg.header.stamp = now.to_msg()
        msg.header.frame_id = core.profile.base_frame
        self._status.publish(msg)

    def diagnose(self, more: dict[str, Any]) -> None:
        """At 1 Hz. more: further facts."""
        core, now = self._core, self._node.get_clock().now()
        fine = core.hold in _FINE and not (self.clock_fault or self._input_fault() or self.gripper_fault)
        facts = {
            'state': core.state.name,
            'hold': core.hold.name,
            'epoch': core.epoch,
            'source': core.source,
            'joint state age [s]': f'{core.joint_state_age(now.nanoseconds):.3f}',
            'tracking error [rad]': f'{core.tracking_error():.4f}',
            **more,
            **{name: _spread(window) for name, window in self._times.items() if len(window)},
            **{f'chunks {v.name}': n for v, n in zip(Verdict, core.verdict_counts, strict=True) if n},
        }
        status = DiagnosticStatus(
            level=DiagnosticStatus.OK if fine else DiagnosticStatus.WARN,
            name=f'{self._node.get_fully_qualified_name()}: set-points',
            hardware_id=core.profile.name,
            message=self._message() or core.state.name.lower(),
            values=[KeyValue(key=k, value=str(v)) for k, v in facts.items()],
        )
        array = DiagnosticArray(status=[status])
        array.header.stamp = now.to_msg()
        self._diagnostics.publish(array)

    def _input_fault(self) -> str:
        return self.input_fault or self._core.joint_state_problem

    def _message(self) -> str:
        if self.clock_fault:  # all else may be as it was when the clock ran
            return self.clock_fault
        if self._core.state is State.INACTIVE:  # the reasons against activation have more facts than the state
            return self._input_fault() or self._core.message
        message = self._core.message or self._input_fault() or self.gripper_fault
        return message + self.hint() if self._core.hold is Hold.JOINT_STATE_STALE else message

    def _facts(self) -> tuple:
        core = self._core
        return core.state, core.hold, core.epoch, core.source


def _spread(times: Window) -> str:
    p = times.percentiles()
    return ', '.join(f'{1e3 * x:.3f}' for x in (p.p50, p.p95, p.p99, p.largest))
