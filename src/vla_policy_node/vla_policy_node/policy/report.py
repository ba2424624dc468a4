"""The state of the policy node: its PolicyStatus, its diagnostics, and the feedback of its goals."""

import math
import time
import traceback
from collections.abc import Callable
from typing import Any

from rclpy.node import Node

from vla_msgs.action import ExecuteInstruction
from vla_msgs.msg import PolicyStatus
from vla_policy_node.policy.inference_report import InferenceReport
from vla_policy_node.policy.intake import Fault
from vla_policy_node.policy.observer import Observer
from vla_policy_node.policy.outputs.collection import Outputs
from vla_policy_node.policy.session import Answer, Session
from vla_policy_node.ros import qos
from vla_policy_node.ros.chunk_msg import to_time

S = PolicyStatus
REFUSAL_SHOWN = 5.0  # [s] of wall time in which the status shows a refused instruction beside the one in force


class PolicyReport:
    """Publishes `~/status` as long as the node lives, and more while a model is configured.

    note: why there is no model, one sentence; '' while there is one. `publish` may be called from any thread, the rest
    from the spin thread.
    """

    def __init__(self, node: Node, session: Session) -> None:
        self._node, self._session = node, session
        self._status = node.create_publisher(PolicyStatus, '~/status', qos.STATUS)
        self.note = 'not configured'
        self._refused, self._refused_at = '', 0.0  # why and when [s] the newest instruction or trace was refused
        self._refused_code: int = S.BAD_INSTRUCTION
        self.steering: Callable[[], bool] = lambda: False  # whether a trace is in force
        self._published: tuple = ()  # state, code, instruction and epoch of the newest status
        self._observer: Observer | None = None
        self._inference: InferenceReport | None = None
        self._outputs: Outputs | None = None
        session.delivered.append(self._delivered)
        session.failed.append(self._failed)

    def begin(self, observer: Observer, inference: InferenceReport, outputs: Outputs) -> None:
        """A model is configured."""
        with self._session.lock:
            self._observer, self._inference, self._outputs, self.note = observer, inference, outputs, ''

    def end(self) -> None:
        """The model is gone."""
        with self._session.lock:
            if self._inference is not None:
                self._inference.destroy()
            self._observer = self._inference = self._outputs = None
            self.note, self._refused = self.note or 'not configured', ''

    # ---- events

    def refuse(self, why: str, code: int = S.BAD_INSTRUCTION) -> None:
        """An instruction or a trace was refused: the status shows it now and for some seconds."""
        self._refused, self._refused_code, self._refused_at = why, code, time.monotonic()
        self.publish(code, why)

    def accept(self) -> None:
        """An instruction was accepted: the refusal of an earlier one is no longer shown."""
        self._refused = ''

    def _delivered(self, answer: Answer, sequence: int, latency: float) -> None:
        if self._inference is not None:
            self._inference.delivered(answer, sequence, latency)
        self.publish()

    def _failed(self, message: str, error: Exception | None) -> None:
        if error is not None:
            self._node.get_logger().error(f'{message}\n{"".join(traceback.format_exception(error))}')
        self.publish()

    # ---- state

    def assess(self, now: int) -> tuple[int, int, str]:
        """State, code and message of PolicyStatus at time now [ns]."""
        session, observer = self._session, self._observer
        if not session.active or observer is None:
            return S.STATE_INACTIVE, self._refused_code if self._refused else S.OK, self._refused or self.note
        with session.lock:
            instruction, comes_to_rest = session.instruction, session.comes_to_rest
        if instruction and comes_to_rest:
            why = session.executor_monitor.problem() or 'the arm comes to rest before it follows the new instruction'
            return S.STATE_WAITING, S.CHANGING, why
        found = observer.observe(now)
        if isinstance(found, Fault) and (instruction or found.code == S.CLOCK_NOT_RUNNING):
            return S.STATE_WAITING if instruction else S.STATE_IDLE, found.code, found.message
        if instruction and session.failure:
            return S.STATE_WAITING, S.INFERENCE_FAILED, session.failure
        state = S.STATE_RUNNING if instruction else S.STATE_IDLE
        if self._refused:
            return state, self._refused_code, self._refused
        if not instruction:
            return state, S.NO_INSTRUCTION, 'publish to ~/instruction or send a goal to ~/execute_instruction'
        if session.drive and (problem := session.executor_monitor.problem()):
            return state, S.EXECUTOR_HOLDS, problem
        return state, S.OK, ''

    def publish(self, code: int | None = None, message: str = '') -> None:
        """Publish the status, from any thread. code, message: shown this once in place of what they are else."""
        session = self._session
        with session.lock:
            now = self._now()
            state, code_now, message_now = self.assess(now)
            epoch = session.executor_monitor.epoch
            self._published = (state, code_now, session.instruction, epoch)
            if self._status.get_subscription_count() == 0:
                return  # its numbers cost more than the chunk
            msg = PolicyStatus(state=state, code=code_now, message=message_now, surprise=math.nan)
            if code is not None:
                msg.code, msg.message = code, message
            msg.header.stamp = to_time(now)
            msg.drive, msg.epoch, msg.sequence = bool(session.drive), epoch, session.sequence
            msg.instruction, msg.steering = session.instruction, self.steering()
            if self._inference is not None and self._observer is not None:
                self._inference.fill(msg, self._observer.intake.streams.ages(now))
            if self._outputs is not None:
                self._outputs.fill(msg)
            self._status.publish(msg)

    def tick(self, now: int, newest: bool) -> None:
        """Publish the status where it changed by time now [ns]; newest: publish status and diagnostics in any case."""
        session = self._session
        if self._refused and session.instruction and time.monotonic() - self._refused_at > REFUSAL_SHOWN:
            self._refused = ''
        state, code, message = self.assess(now)
        with session.lock:
            changed = (state, code, session.instruction, session.executor_monitor.epoch) != self._published
        if changed and state == S.STATE_WAITING and code not in (S.CAMERA_BAD, S.JOINTS_BAD, S.INFERENCE_FAILED):
            self._node.get_logger().warning(f'waiting: {message}', throttle_duration_sec=1.0)
        if changed:
            self.publish()
        if newest:
            self.publish()
            if self._inference is not None and self._observer is not None and self._inference.wanted:
                ages, more = self._observer.intake.streams.ages(now), self._outputs.diagnose() if self._outputs else []
                self._inference.diagnose((state, code, message), ages, session.drive, more)

    def feedback(self) -> Any:
        """The feedback of the goals in force."""
        session = self._session
        _, code, message = self.assess(self._now())
        with session.lock:
            horizon_left, limit_margin = session.executor_monitor.margins
            msg = ExecuteInstruction.Feedback(
                instruction=session.instruction,
                progress=math.nan,
                sequence=session.sequence,
                latency=self._inference.latency if self._inference is not None else math.nan,
                code=code,
                message=message,
                hold_reason=int(session.executor_monitor.hold),
                horizon_left=horizon_left,
                limit_margin=limit_margin,
            )
            if self._outputs is not None:
                self._outputs.fill_feedback(msg)
            return msg

    def _now(self) -> int:
        return self._node.get_clock().now().nanoseconds
