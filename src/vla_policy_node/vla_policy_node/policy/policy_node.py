"""The policy as a lifecycle node: cameras and joints in, action chunks out."""

import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
from rclpy.clock import Clock, ClockType, JumpThreshold, TimeJump
from rclpy.duration import Duration
from std_msgs.msg import String

from vla_core.clocks import SimulatedClock
from vla_core.kinematics.ik import Unreachable
from vla_core.observe.action_prefix import takes_prefix
from vla_model.loading import LoadOptions, load
from vla_model.policy import Policy
from vla_model.types import Observation, Trace
from vla_msgs.msg import ActionChunk, ExecutorStatus, VisualTrace
from vla_policy_node.policy.adapt_to_robot import adapt_to_robot
from vla_policy_node.policy.goals import Goals, Result
from vla_policy_node.policy.inference import Inference
from vla_policy_node.policy.inference_report import InferenceReport
from vla_policy_node.policy.instruction_in_force import InstructionInForce
from vla_policy_node.policy.instructions import Instructions
from vla_policy_node.policy.lockstep import INSTRUCTION, Lockstep
from vla_policy_node.policy.observer import Observer
from vla_policy_node.policy.outputs.base import Context
from vla_policy_node.policy.outputs.collection import Outputs
from vla_policy_node.policy.parameters import PolicyParameters, declare_drive
from vla_policy_node.policy.report import PolicyReport
from vla_policy_node.policy.session import Outgoing, Session
from vla_policy_node.policy.steering import SteeringTraces
from vla_policy_node.ros import qos
from vla_policy_node.ros.chunk_msg import chunk_msg
from vla_policy_node.ros.lifecycle import SafeLifecycleNode
from vla_policy_node.ros.log import NodeHandler
from vla_policy_node.ros.qos_mismatch import EveryPublisher
from vla_policy_node.ros.robot_description import read_description
from vla_policy_node.ros.run import run
from vla_policy_node.ros.trace_msg import trace_msg

TICK, FEEDBACK_EVERY, STATUS_EVERY = 0.05, 5, 20  # [s]; in ticks


class PolicyNode(SafeLifecycleNode):
    """Wires the session to its subscriptions, its publishers, the model and the goals.

    Subscriptions only store. One worker thread runs the model, see Inference; all else is the spin thread's. What the
    two share is in the Session, whose docstring has the rules.
    load: a parameter for tests, as `loading.load`.
    """

    read_at_activate = ('drive',)

    def __init__(self, name: str = 'policy', *, load: Callable[[str, LoadOptions], Policy] = load, **kwargs) -> None:
        super().__init__(name, **kwargs)
        self._load = load
        self._policy: Policy | None = None
        self._inference: Inference | None = None
        self._observer: Observer | None = None
        self._outputs: Outputs | None = None
        self._lockstep: Lockstep | None = None
        self._made: list[tuple[Callable, Any]] = []  # what set_up made, with the function that destroys it
        self._rested: threading.Event | None = None
        self._simulated_clock = SimulatedClock()
        self._ticks = 0

        self._model_log = NodeHandler(self, 'vla_model')
        # These live as long as the node: its state is always visible, and clients always get their results.
        self._session = Session(self.get_fully_qualified_name(), self._now)
        self._session.changed.append(InstructionInForce(self).show)
        self._session.changed.append(self._wake)
        self._report = PolicyReport(self, self._session)
        self._instructions = Instructions(self._session, self._report, self.get_logger())
        self._traces = SteeringTraces(self._session, self._report, self.get_logger(), self._now)
        self._report.steering = lambda: self._traces.in_force
        self._goals = Goals(self, self._session, self._instructions, self._traces)
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
            self._report.note = f'configure failed: {error}'
            self._report.publish()
            raise
        self._report.publish()

    def _configure(self) -> None:
        p = self._settings = PolicyParameters.of(self)
        self._instructions.longest = p.instruction_max_length
        policy = self._load_policy(p)
        info = policy.info
        self._lockstep = Lockstep(self) if p.lockstep else None
        observer = self._observer = Observer(self, p, self._simulated_clock, self._lockstep)
        observer.intake.streams.remember(info.history)
        outputs = self._outputs = Outputs(
            Context(self, policy, self._session, p.cameras, observer.intake.frames), p.outputs
        )
        outputs.scheduler.warm_up(policy.example, lambda seen: self._rehearse(policy, seen))
        policy.warm_up()  # last: engines of graphs capture nothing afterwards
        self._chunks = self.create_publisher(ActionChunk, 'action_chunk', qos.CHUNK)
        continues = info.takes_prefix and takes_prefix(p.inpaint, info.learned_prefix)
        self._session.open(
            self._send,
            change=p.instruction_change,
            max_deviation=p.prefix_max_deviation if continues else None,
            stall_fraction=p.stall_fraction,
        )
        self._traces.open(info, p.steer_max_age, observer.image_size)
        self._inference = Inference(
            policy,
            p.profile.dof,
            self._session,
            observe=observer.usable,
            scheduler=outputs.scheduler,
            rate=p.rate,
            steering=self._traces.current,
        )
        self._report.begin(observer, InferenceReport(self, info.model_id), outputs)
        observer.subscribe(self._on_image, self._wake)
        self._made = [
            (self.destroy_publisher, self._chunks),
            (self.destroy_subscription, self._listen(ExecutorStatus, 'executor/status', self._session.record)),
        ]
        instructions = EveryPublisher(self, String, '~/instruction', self._on_instruction)
        traces = EveryPublisher(self, VisualTrace, '~/steer', self._traces.receive)
        self._made += [(EveryPublisher.close, instructions), (EveryPublisher.close, traces)]
        in_force = self.create_publisher(VisualTrace, '~/steering_in_force', qos.LATCHED)
        self._made.append((self.destroy_publisher, in_force))
        self._traces.shown = partial(self._show_trace, in_force, info.cameras[0])
        self.get_logger().info(f'model {info.model_id} loaded and warmed up')

    def _load_policy(self, p: PolicyParameters) -> Policy:
        policy = self._policy = self._load(p.model, p.load_options)
        space = policy.info.action_space
        self._policy = adapt_to_robot(policy, p.profile, p.cameras, p.model, lambda: self._description(space))
        return self._policy

    @staticmethod
    def _rehearse(policy: Policy, seen: Observation) -> None:
        """An action that is for nothing: the arm need not reach what a grey scene makes a model predict."""
        with suppress(Unreachable):
            policy.act(seen)

    def _description(self, space: str) -> str:
        return read_description(self, f'a model with {space} actions')

    def _listen(self, kind: type, topic: str, callback: Callable) -> Any:
        return self.create_subscription(kind, topic, callback, qos.LATCHED)

    def start(self) -> None:
        drive = declare_drive(self)
        assert self._policy is not None
        if drive and not self._policy.info.trained and not self.get_parameter('use_sim_time').value:
            raise ValueError(
                f'model {self._policy.info.model_id} has random weights: it may drive nothing but the simulator '
                '(use_sim_time). Give a trained model, or set drive to false'
            )
        self._report.accept()
        self._session.activate(drive)
        self._instructions.activate()
        self.get_logger().info(f'active, {"driving the arm" if drive else "in shadow: chunks do not move the arm"}')
        self._report.publish()

    def stop(self) -> None:
        self._session.halt()
        self._goals.end(Result.OUTCOME_DEACTIVATED, 'the node was deactivated')
        self._session.deactivate()
        self._instructions.clear()
        self._report.publish()

    def tear_down(self) -> None:
        if self._session.active:
            self.stop()
        if self._inference is not None and not self._inference.close():
            self.get_logger().error('the model does not return: its thread is left behind, restart the node')
        self._traces.close()
        for part in (self._policy, self._observer, self._lockstep, self._outputs):
            if part is not None:
                part.close()
        self._inference = self._policy = self._observer = self._lockstep = self._outputs = None
        self._report.end()
        self._session.close()
        for destroy, entity in self._made:
            destroy(entity)
        self._made = []
        self._instructions.clear()

    def come_to_rest(self) -> threading.Event:
        """Ends the motion and the goal; the event is set when its result is sent. Called from the main thread."""
        rested = threading.Event()

        def leave() -> None:
            self._instructions.leaving = True
            self._session.halt()
            self._goals.end(Result.OUTCOME_DEACTIVATED, 'the node shuts down')
            self._rested = rested

        assert self.executor is not None
        self.executor.create_task(leave)
        return rested

    # ---- events, in the spin thread

    def _on_image(self, camera: str, stamp: int, pixels: np.ndarray) -> None:
        """Each good image; stamp in ns."""
        if self._outputs is not None:
            self._outputs.image(camera, stamp, pixels)
        self._wake()

    def _on_instruction(self, msg: String) -> None:
        self._instructions.receive(msg.data)
        if self._lockstep is not None and not self._instructions.leaving:
            self._lockstep.took(INSTRUCTION)

    def _show_trace(self, publisher: Any, camera: str, trace: Trace | None) -> None:
        """Publish what is in force of a trace, from both threads; no points: none."""
        frame = self._observer.intake.frames.get(camera, '') if self._observer is not None else ''
        shown = trace or Trace(camera, np.zeros((0, 2)), 0, 0)
        stamp = self.get_clock().now().to_msg()
        publisher.publish(trace_msg(stamp, frame, VisualTrace.STEERING, shown))

    def _on_jump(self, jump: TimeJump) -> None:
        self.get_logger().warning('the clock went back: observations are forgotten')
        if self._observer is not None:
            self._observer.intake.streams.clear()
        if self._goals.following:
            self._session.halt()
            self._goals.clock_set_back()

    def _tick(self) -> None:
        """20 Hz of wall time in the spin thread."""
        if self._rested is not None and not self._goals.busy:
            self._rested.set()
            return  # from here on the main thread takes the node apart
        now = self._now()
        self._simulated_clock.look(now, time.monotonic())
        self._ticks += 1
        if self._outputs is not None:
            self._outputs.tick()
        self._goals.tick(self._report.feedback if self._ticks % FEEDBACK_EVERY == 0 else None)
        self._report.tick(now, newest=self._ticks % STATUS_EVERY == 0)

    # ---- for the session

    def _now(self) -> int:
        return self.get_clock().now().nanoseconds

    def _wake(self, *_: Any) -> None:
        if self._inference is not None:
            self._inference.wake()

    def _send(self, out: Outgoing) -> None:
        """Publish a chunk or a stop request, from both threads."""
        assert self._policy is not None
        self._chunks.publish(
            chunk_msg(
                out.chunk,
                t_ref=out.t_ref,
                frame_id=self._settings.profile.base_frame,
                epoch=out.epoch,
                sequence=out.sequence,
                source=self.get_fully_qualified_name(),
                joint_names=self._settings.profile.joint_names,
                shadow=out.shadow,
                instruction=out.instruction,
                model_id=self._policy.info.model_id,
                inference_time=out.inference_time,
            )
        )

    def destroy_node(self) -> None:
        self._goals.destroy()
        self._model_log.remove()
        super().destroy_node()


def main() -> None:
    # A new image waits for Python's lock at most so long [s], and so does the worker that it wakes; 5 ms is usual.
    sys.setswitchinterval(0.5e-3)
    run(PolicyNode)
