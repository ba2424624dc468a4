"""The policy as a lifecycle node: cameras and joints in, action chunks out."""

import math
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
from rclpy.clock import Clock, ClockType, JumpThreshold, TimeJump
from rclpy.duration import Duration
from std_msgs.msg import String

from vla_model.observation import state_of
from vla_model.prompt_texts import progress
from vla_model.types import Chunk
from vla_msgs.msg import ActionChunk, ExecutorStatus, PolicyStatus
from vla_policy_node.core.clocks import SimulatedClock
from vla_policy_node.executor_watch import ExecutorWatch
from vla_policy_node.fitting import fit
from vla_policy_node.foresight import Foresight
from vla_policy_node.goals import Feedback, Goals, Result
from vla_policy_node.inference import Answer, Assignment, Inference, Policy
from vla_policy_node.instruction_in_force import InstructionInForce
from vla_policy_node.lockstep import INSTRUCTION, Lockstep
from vla_policy_node.observe.action_prefix import takes_prefix
from vla_policy_node.observe.committed import CommittedActions
from vla_policy_node.observe.stall import StallDetector
from vla_policy_node.observe.streams import Aligned
from vla_policy_node.observer import Fault, Observer
from vla_policy_node.policy_parameters import NEW_EPOCH, SUPERSEDE, PolicyParameters, declare_drive
from vla_policy_node.policy_report import PolicyReport
from vla_policy_node.ros import qos
from vla_policy_node.ros.chunk_msg import chunk_msg, to_time
from vla_policy_node.ros.lifecycle import SafeLifecycleNode
from vla_policy_node.ros.log import NodeHandler
from vla_policy_node.ros.qos_mismatch import EveryPublisher
from vla_policy_node.ros.robot_description import read_description
from vla_policy_node.ros.run import run

S = PolicyStatus
TICK, FEEDBACK_EVERY, STATUS_EVERY = 0.05, 5, 20  # [s]; in ticks
REFUSAL_SHOWN = 5.0  # [s] of wall time in which a refused instruction is told beside the one in force
HEARD = 0.1  # [s] of wall time after which the executor's status tells what a stop request did


class PolicyNode(SafeLifecycleNode):
    """Subscriptions only store; one worker thread runs the model; all else is the spin thread's.

    load(model, device=, dtype=, threads=, seed=, engine=, image_dtype=, ...) -> Policy is a parameter for tests.
    """

    read_at_activate = ('drive',)

    def __init__(self, name: str = 'policy', *, load: Callable[..., Policy] | None = None, **kwargs) -> None:
        super().__init__(name, **kwargs)
        self._load = load
        self._lock = threading.RLock()  # guards what the worker and the spin thread share: the next seven
        self._assignment: Assignment | None = None
        self._sequence = 0  # never starts again: within an epoch it must grow
        self._executor = ExecutorWatch(self.get_fully_qualified_name())
        self._committed = CommittedActions()
        self._failure = ''  # of the newest inference
        self._stopped: float | None = None  # when the arm was asked to stop (monotonic, s)
        self._report: PolicyReport | None = None
        self._foresight: Foresight | None = None

        self._active = self._drive = self._leaving = False
        self._policy: Policy | None = None
        self._inference: Inference | None = None
        self._observer: Observer | None = None
        self._lockstep: Lockstep | None = None
        self._made: list[tuple[Callable, Any]] = []  # what set_up made, with how to destroy it
        self._refused, self._refused_at = '', 0.0  # why and when (monotonic, s) the newest instruction was refused
        self._standing = ''  # ~/instruction received while not active
        self._note = 'not configured'
        self._rested: threading.Event | None = None
        self._told: tuple = ()  # of the newest status: what makes a change when it differs
        self._simulated_clock = SimulatedClock()
        self._ticks = 0

        self._model_log = NodeHandler(self, 'vla_model')
        # These live as long as the node, so that people can see its state and clients get their results always.
        self._goals = Goals(self, refusal=self._refusal, take=self._take, halt=self._halt, lock=self._lock)
        self._status = self.create_publisher(PolicyStatus, '~/status', qos.STATUS)
        self._in_force_topic = InstructionInForce(self)
        self._jumps = self.get_clock().create_jump_callback(
            JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=False),
            post_callback=self._on_jump,
        )
        # A wall clock timer: status must go out while the simulated clock stands still.
        self.create_timer(TICK, self._tick, clock=Clock(clock_type=ClockType.STEADY_TIME))

    # ---- lifecycle

    def set_up(self) -> None:
        try:
            self._configure()
        except Exception as error:
            self._note = f'configure failed: {error}'
            self._publish_status()
            raise
        self._note = ''
        self._publish_status()

    def _configure(self) -> None:
        p = self._settings = PolicyParameters.of(self)
        if self._load is None:
            from vla_model.loading import load  # torch is loaded here, not with the module

            self._load = load
        policy = self._policy = self._load(
            p.model,
            device=p.device,
            dtype=p.dtype,
            threads=p.threads,
            seed=p.seed,
            engine=p.engine,
            image_dtype=p.image_dtype,
            image_engine=p.image_engine,
            estimate=p.estimate,
            gripper=bool(p.profile.gripper_joint_names),
        )
        robot = policy.config.robot
        policy = self._policy = fit(
            policy, p.profile, p.cameras, p.model, lambda: self._description(robot.action_space)
        )
        foresight = Foresight(
            self, p, policy, lock=self._lock, in_force=self._in_force, frame=lambda: self._frame(robot.cameras[0])
        )
        with self._lock:
            self._report = PolicyReport(self, policy.model_id, robot, self._frame)
            self._failure, self._foresight = '', foresight
        # Not act: the arm need not reach what a grey scene makes a model say.
        foresight.schedule.warm_up(
            policy.example, lambda seen: policy.actions(seen.images, state_of(robot, seen), seen.instruction)
        )
        policy.warm_up()  # last: engines of graphs capture nothing afterwards
        self._chunks = self.create_publisher(ActionChunk, 'action_chunk', qos.CHUNK)
        self._committed = CommittedActions()
        self._inference = Inference(
            policy,
            p.profile.dof,
            observe=self._usable,
            assignment=self._in_force,
            deliver=self._deliver,
            failed=self._inference_failed,
            schedule=foresight.schedule,
            rate=p.rate,
            committed=self._committed,
            stall=StallDetector(self._committed, p.stagnation),
            inpaint=takes_prefix(p.inpaint, policy.config.inpaints),
            max_deviation=p.inpaint_away,
        )
        self._lockstep = Lockstep(self) if p.lockstep else None
        self._observer = Observer(self, p, self._on_image, self._lockstep)
        self._made = [
            (self.destroy_publisher, self._chunks),
            (self.destroy_subscription, self._listen(ExecutorStatus, 'executor/status', self._on_executor_status)),
        ]
        instructions = EveryPublisher(self, String, '~/instruction', self._on_instruction)
        self._made.append((EveryPublisher.close, instructions))
        self.get_logger().info(f'model {policy.model_id} loaded and warmed up')

    def _description(self, space: str) -> str:
        return read_description(self, f'a model with {space} actions')

    def _listen(self, kind: type, topic: str, callback: Callable) -> Any:
        return self.create_subscription(kind, topic, callback, qos.LATCHED)

    def start(self) -> None:
        drive = declare_drive(self)
        assert self._policy is not None
        if drive and not self._policy.config.trained and not self.get_parameter('use_sim_time').value:
            raise ValueError(
                f'model {self._policy.model_id} has random weights: it may drive nothing but the simulator '
                '(use_sim_time). Give a trained model, or set drive to false'
            )
        self._drive = drive
        self._committed.followed = drive  # in shadow the arm does something else
        self._active, self._refused = True, ''
        with self._lock:
            self._failure = ''
        if self._standing:
            self._take(self._standing)
        self.get_logger().info(
            f'active, {"driving the arm" if self._drive else "in shadow: chunks do not move the arm"}'
        )
        self._publish_status()

    def stop(self) -> None:
        self._halt()
        self._goals.end(Result.OUTCOME_DEACTIVATED, 'the node was deactivated')
        self._active, self._standing = False, ''
        self._publish_status()

    def tear_down(self) -> None:
        if self._active:
            self.stop()
        if self._inference is not None and not self._inference.close():
            self.get_logger().error('the model does not return: its thread is left behind, restart the node')
        close = getattr(self._policy, 'close', None)
        if close is not None:
            close()
        if self._observer is not None:
            self._observer.close()
        if self._lockstep is not None:
            self._lockstep.close()
            self._lockstep = None
        if self._report is not None:
            self._report.destroy()
        if self._foresight is not None:
            self._foresight.close()
        with self._lock:
            self._inference = self._policy = self._observer = self._report = self._foresight = None
            self._executor = ExecutorWatch(self.get_fully_qualified_name())
        for destroy, thing in self._made:
            destroy(thing)
        self._made = []
        self._standing = self._refused = ''
        self._note = self._note or 'not configured'

    def come_to_rest(self) -> threading.Event:
        """Ends the motion and the goal; the event is set when its result is sent. Called from the main thread."""
        rested = threading.Event()

        def leave() -> None:
            self._leaving = True
            self._halt()
            self._goals.end(Result.OUTCOME_DEACTIVATED, 'the node shuts down')
            self._rested = rested

        assert self.executor is not None
        self.executor.create_task(leave)
        return rested

    # ---- the world around

    def _on_executor_status(self, msg: ExecutorStatus) -> None:
        with self._lock:
            self._executor.hear(msg)
            self._committed.followed = self._drive and self._executor.follows
            self._committed.reported(msg.sequence, msg.last_verdict not in (msg.ACCEPTED, msg.REJECT_SHADOW))

    def _on_image(self, camera: str, stamp: int, pixels: np.ndarray) -> None:
        """Each good image; stamp in ns."""
        if self._foresight is not None:
            self._foresight.saw(camera, stamp, pixels)
        if self._inference is not None:
            self._inference.wake()

    def _on_jump(self, jump: TimeJump) -> None:
        self.get_logger().warning('the clock went back: observations are forgotten')
        if self._observer is not None:
            self._observer.streams.clear()
        if self._goals.following:
            self._halt()
            self._goals.end(Result.OUTCOME_FAILED, 'the clock went back: send the goal again')

    # ---- instructions

    def _refusal(self, instruction: str) -> str:
        """Why the instruction cannot be taken now; empty when it can. A bad one is remembered for the status."""
        if self._leaving or not self._active:
            return 'the policy node is not active: configure and activate it'
        bad = self._bad(instruction)
        if bad:
            self._refuse(bad)
        return bad

    def _refuse(self, bad: str) -> None:
        self._refused, self._refused_at = bad, time.monotonic()
        self._publish_status(S.BAD_INSTRUCTION, bad)

    def _bad(self, instruction: str) -> str:
        text = instruction.strip()
        if not text:
            return 'the instruction is empty: say what the robot shall do'
        longest = self._settings.instruction_max_length
        if len(text) > longest:
            return f'the instruction has {len(text)} characters, instruction_max_length is {longest}: shorten it'
        return ''

    def _on_instruction(self, msg: String) -> None:
        if self._leaving:
            return
        bad = self._bad(msg.data)
        if bad:
            self.get_logger().error(f'~/instruction refused: {bad}')
            self._refuse(bad)
        elif self._active:
            self._take(msg.data)
        else:
            self._standing = msg.data  # in force once the node is activated
        if self._lockstep is not None:
            self._lockstep.took(INSTRUCTION)

    def _take(self, instruction: str) -> str:
        """Put an instruction in force, as `instruction_change` says; the same words again change nothing."""
        text, how = instruction.strip(), self._settings.instruction_change
        self._refused = ''
        if how == SUPERSEDE:
            self._goals.end(Result.OUTCOME_SUPERSEDED, f'superseded by "{text}"')
        elif self._assignment is not None and self._assignment.instruction == text:
            return text
        with self._lock:
            if self._assignment is not None and how == NEW_EPOCH:
                self._request_stop()
            self._assign(Assignment(text))
        self._goals.changed(text)
        assert self._inference is not None
        self._inference.wake()
        self.get_logger().info(f'instruction: "{text}"')
        self._publish_status()
        return text

    def _halt(self) -> None:
        """No more chunks of what is in force; a stop chunk when this node drives the arm."""
        with self._lock:
            self._assign(None)
            self._request_stop()

    def _request_stop(self) -> None:
        """Under the lock: a stop chunk when this node drives the arm."""
        if self._active and self._drive:
            self._publish_chunk(None, self._now(), self._executor.epoch)
            self._stopped = time.monotonic()

    @property
    def _comes_to_rest(self) -> bool:
        """Under the lock: whether the arm is to rest before it follows what is in force, and does not yet."""
        if self._stopped is None or self._settings.instruction_change != NEW_EPOCH:
            return False
        # A status of before the stop arrived may still call an arm resting that was about to move.
        if time.monotonic() - self._stopped > HEARD and self._executor.rests:
            self._stopped = None
        return self._stopped is not None

    def _assign(self, assignment: Assignment | None) -> None:
        """Under the lock."""
        self._assignment, self._failure = assignment, ''
        self._in_force_topic.show(assignment.instruction if assignment is not None else '')
        if self._foresight is not None:
            self._foresight.forget()

    # ---- inference

    def _now(self) -> int:
        return self.get_clock().now().nanoseconds

    def _observe(self, now: int) -> Aligned | Fault:
        """What the streams hold at time now [ns]; a message that could not be read makes its stream unusable."""
        observer = self._observer
        if observer is None:
            return Fault(S.OK, self._note)
        if self.get_parameter('use_sim_time').value:
            problem = self._simulated_clock.look(now, time.monotonic())
            if problem and (now == 0 or self._lockstep is None):
                return Fault(S.CLOCK_NOT_RUNNING, problem)
        return observer.observe(now)

    def _in_force(self) -> tuple[Assignment | None, int]:
        with self._lock:
            return self._assignment if not self._comes_to_rest else None, self._executor.epoch

    def _usable(self) -> Aligned | None:
        found = self._observe(self._now())
        return found if isinstance(found, Aligned) else None

    def _frame(self, camera: str) -> str:
        return self._observer.frames.get(camera, '') if self._observer is not None else ''

    def _publish_chunk(
        self, chunk: Chunk | None, t_ref: int, epoch: int, instruction: str = '', inference_time: float = 0.0
    ) -> None:
        """Under the lock. None is a stop request."""
        assert self._policy is not None
        self._sequence += 1
        self._chunks.publish(
            chunk_msg(
                chunk,
                t_ref=t_ref,
                frame_id=self._settings.profile.base_frame,
                epoch=epoch,
                sequence=self._sequence,
                source=self.get_fully_qualified_name(),
                joint_names=self._settings.profile.joint_names,
                shadow=not self._drive,
                instruction=instruction,
                model_id=self._policy.model_id,
                inference_time=inference_time,
            )
        )

    def _deliver(self, answer: Answer) -> None:
        """In the worker thread."""
        with self._lock:
            assignment, report = answer.assignment, self._report
            if assignment is not self._assignment or report is None:
                return  # stopped or superseded while the model was thinking
            self._publish_chunk(
                answer.chunk, answer.aligned.t_ref, answer.epoch, assignment.instruction, answer.inference_time
            )
            latency = (self._now() - answer.aligned.t_ref) * 1e-9
            self._committed.add(self._sequence, answer.chunk, answer.aligned.t_ref, answer.epoch, latency)
            self._goals.answered(answer, latency)
            report.answered(answer, self._sequence, latency)
            self._failure = ''
        self._publish_status()

    def _inference_failed(self, assignment: Assignment, error: Exception) -> None:
        """In the worker thread."""
        with self._lock:
            if assignment is not self._assignment:
                return
            message = f'inference failed, trying again: {error}'
            if not self._failure:  # once; the status goes on telling the newest
                trace = ''.join(traceback.format_exception(error))
                self.get_logger().error(f'{message}\n{trace}')
            self._failure = message
        self._publish_status()

    # ---- reporting

    def _assess(self, now: int) -> tuple[int, int, str]:
        """State, code and message of PolicyStatus at time now [ns]."""
        if not self._active:
            return S.STATE_INACTIVE, S.BAD_INSTRUCTION if self._refused else S.OK, self._refused or self._note
        with self._lock:
            assignment, comes_to_rest = self._assignment, self._comes_to_rest
        if assignment is not None and comes_to_rest:
            why = self._executor.problem() or 'the arm comes to rest before it follows the new instruction'
            return S.STATE_WAITING, S.CHANGING, why
        found = self._observe(now)
        if isinstance(found, Fault) and (assignment is not None or found.code == S.CLOCK_NOT_RUNNING):
            return S.STATE_WAITING if assignment else S.STATE_IDLE, found.code, found.message
        if assignment is not None and self._failure:
            return S.STATE_WAITING, S.INFERENCE_FAILED, self._failure
        state = S.STATE_RUNNING if assignment is not None else S.STATE_IDLE
        if self._refused:
            return state, S.BAD_INSTRUCTION, self._refused
        if assignment is None:
            return state, S.NO_INSTRUCTION, 'publish to ~/instruction or send a goal to ~/execute_instruction'
        if self._drive and (problem := self._executor.problem()):
            return state, S.EXECUTOR_HOLDS, problem
        return state, S.OK, ''

    def _publish_status(self, code: int | None = None, message: str = '') -> None:
        """From any thread. code, message: tell this once, whatever else there is to tell."""
        with self._lock:
            now = self._now()
            state, code_now, message_now = self._assess(now)
            instruction = self._assignment.instruction if self._assignment is not None else ''
            self._told = (state, code_now, instruction, self._executor.epoch)
            if self._status.get_subscription_count() == 0:
                return  # its numbers cost more than the chunk
            msg = PolicyStatus(state=state, code=code_now, message=message_now)
            if code is not None:
                msg.code, msg.message = code, message
            msg.header.stamp = self.get_clock().now().to_msg()
            msg.drive, msg.epoch, msg.sequence = bool(self._drive), self._executor.epoch, self._sequence
            msg.instruction = instruction
            if self._report is not None and self._observer is not None:
                self._report.fill(msg, self._observer.streams.ages(now))
            stamp, msg.surprise = self._foresight.surprise if self._foresight is not None else (0, math.nan)
            msg.surprise_stamp = to_time(stamp)
            self._status.publish(msg)

    def _tick(self) -> None:
        """20 Hz of wall time in the spin thread."""
        if self._rested is not None and not self._goals.busy:
            self._rested.set()
            return  # from here on the main thread takes the node apart
        now = self._now()
        self._simulated_clock.look(now, time.monotonic())
        self._ticks += 1
        if self._foresight is not None:
            self._foresight.look()
        if self._refused and self._assignment is not None and time.monotonic() - self._refused_at > REFUSAL_SHOWN:
            self._refused = ''
        self._goals.tick(self._feedback if self._ticks % FEEDBACK_EVERY == 0 else None)
        if self._foresight is not None:
            self._foresight.asked = self._goals.wants_plans
        state, code, message = self._assess(now)
        with self._lock:
            instruction = self._assignment.instruction if self._assignment is not None else ''
            changed = (state, code, instruction, self._executor.epoch) != self._told
        if changed and state == S.STATE_WAITING and code not in (S.CAMERA_BAD, S.JOINTS_BAD, S.INFERENCE_FAILED):
            self.get_logger().warning(f'waiting: {message}', throttle_duration_sec=1.0)
        if changed:
            self._publish_status()
        if self._ticks % STATUS_EVERY == 0:
            self._publish_status()
            if self._report is not None and self._observer is not None and self._report.heard:
                ages, more = self._observer.streams.ages(now), self._foresight.diagnose() if self._foresight else []
                self._report.diagnose((state, code, message), ages, self._drive, more)

    def _feedback(self) -> Any:
        _, code, message = self._assess(self._now())
        with self._lock:
            plan = self._foresight.said if self._foresight is not None else ''
            horizon_left, limit_margin = self._executor.margins
            return Feedback(
                instruction=self._assignment.instruction if self._assignment is not None else '',
                plan_text=plan,
                progress=progress(plan),
                sequence=self._sequence,
                latency=self._report.latency if self._report is not None else math.nan,
                code=code,
                message=message,
                hold_reason=int(self._executor.hold),
                horizon_left=horizon_left,
                limit_margin=limit_margin,
            )

    def destroy_node(self) -> None:
        self._goals.destroy()
        self._model_log.remove()
        super().destroy_node()


def main() -> None:
    # A new image waits for Python's lock at most so long [s], and so does the worker that it wakes; 5 ms is usual.
    sys.setswitchinterval(0.5e-3)
    run(PolicyNode)
