"""The executor as a lifecycle node: action chunks in, a steady stream of set-points to the controller out."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from rclpy.clock import Clock, ClockType, ROSClock
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.time import Time
from sensor_msgs.msg import JointState

from vla_core.clocks import NO_CLOCK, SimulatedClock
from vla_core.motion.chunk import Verdict
from vla_core.motion.executor import ChunkExecutor
from vla_core.motion.states import Hold, State, renewed
from vla_msgs.msg import ActionChunk
from vla_policy_node.executor.operator_services import OperatorServices
from vla_policy_node.executor.parameters import ExecutorParameters
from vla_policy_node.executor.report import ExecutorReport
from vla_policy_node.executor.watchdogs import Watchdogs
from vla_policy_node.integrations.controller_manager import ControllerManager
from vla_policy_node.integrations.franka import FrankaState, Recovery, recovery
from vla_policy_node.integrations.needed_controllers import NeededControllers
from vla_policy_node.integrations.planning_scene import PlanningScene, planning_scene
from vla_policy_node.ros import qos
from vla_policy_node.ros.chunk_msg import stamped_chunk, to_ns
from vla_policy_node.ros.joints import decode_joints
from vla_policy_node.ros.lifecycle import SafeLifecycleNode
from vla_policy_node.ros.run import run
from vla_policy_node.ros.waiting import StepFailed, appeared

LOOK_EVERY = 0.05  # [s] between two looks of the watchdogs
APPEARS = 1.0  # [s] after it was configured, within which the node discovers the others; and that an answer may take


class ExecutorNode(SafeLifecycleNode):
    """Everything happens in one thread: subscriptions store or ingest, one timer steps the core and sends."""

    def __init__(self, name: str = 'executor', **kwargs) -> None:
        super().__init__(name, **kwargs)
        self._core: ChunkExecutor | None = None
        self._made: list[tuple[Callable, Any]] = []  # what set_up made, with how to undo it; the last is undone first
        self._resting = threading.Event()
        self._resting.set()
        self._ending = threading.Event()

    # ---- lifecycle

    def set_up(self) -> None:
        self._resting.set()
        p = self._settings = ExecutorParameters.of(self)
        core = self._core = ChunkExecutor(p.profile, p.config, p.monitor, p.blending)
        self._report = self._keep(ExecutorReport(self, core), ExecutorReport.close)
        self._scene = planning_scene(self, p.monitor, p.profile)
        if self._scene is not None:
            self._keep(self._scene, PlanningScene.close)
        self._controller = p.make_controller(self, core)
        self._made.append((type(self._controller).close, self._controller))
        self._gripper = p.make_gripper(self)
        if self._gripper is not None:
            self._made.append((type(self._gripper).close, self._gripper))
        self._robot = self._keep(FrankaState(self, p.robot_state), FrankaState.close) if p.robot_state else None
        self._needed, way_back = self._ros2_control(p, core)
        self._report.hint = self._hint
        self._watchdogs = Watchdogs(
            core,
            self._controller.topic,
            self._controller.joints,
            require_controller=p.require_controller,
            chunk_max_age=p.chunk_max_age,
            robot_problem=self._robot_problem,
            controller_problem=self._needed.motion_problem,
        )
        self._operator = self._keep(
            OperatorServices(self, core, self._watchdogs, self._report, way_back), OperatorServices.close
        )
        for kind, topic, callback, profile in (
            (JointState, p.joint_topic, self._on_joints, qos.SENSOR),
            (ActionChunk, 'action_chunk', self._on_chunk, qos.CHUNK),
        ):
            self._keep(self.create_subscription(kind, topic, callback, profile), self.destroy_subscription)
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # who is there does not depend on simulated time
        # Nor do control steps wait when the clock of a robot is set back. In simulation they count simulated time.
        control = self.get_clock() if self._simulated else steady
        self._stepped: int | None = None  # [ns] of the monotonic clock
        self._simulated_clock = SimulatedClock() if self._simulated else None
        self._seen_hold = core.hold
        for timer in (
            self.create_timer(p.config.period, self._tick, clock=control),
            self.create_timer(LOOK_EVERY, self._look, clock=steady),
            self.create_timer(1.0, self._diagnose, clock=steady),
        ):
            self._keep(timer, self.destroy_timer)
        self._configured_at = time.monotonic()
        self._report.publish()

    def _ros2_control(self, p: ExecutorParameters, core: ChunkExecutor) -> tuple[NeededControllers, Recovery | None]:
        manager: ControllerManager | None = (
            ControllerManager(self, p.controller_manager, '~/recover')
            if p.robot_state
            else ControllerManager.find_or_none(self, p.controller_manager)
        )
        if manager is not None:
            self._keep(manager, ControllerManager.close)
        topics = (p.joint_topic, p.robot_state)
        needed = NeededControllers(
            self,
            manager,
            self._controller.topic,
            controller_node=p.controller_node,
            topics=[self.resolve_topic_name(topic) for topic in topics if topic],
            recovers=self._robot is not None,
        )
        made = recovery(self, core, self._robot, manager, needed)
        if made is not None:
            self._keep(made, Recovery.close)
        return needed, made

    def _keep(self, entity: Any, undo: Callable) -> Any:
        self._made.append((undo, entity))
        return entity

    async def before_start(self) -> None:
        with suppress(StepFailed):  # `start` names what is missing
            await appeared(self, lambda: not self._may_appear(), APPEARS, '')
        with suppress(StepFailed):  # states that are not known are no reason to refuse
            await self._needed.refresh()

    def _may_appear(self) -> bool:
        """Return whether a reason against activation may be gone after discovery, or after an outstanding answer."""
        core = self._core
        if core is None or core.state is not State.INACTIVE or self._operator.problems():
            return False
        self._controller.joints.ask()
        if self._controller.joints.wrong():
            return False
        if time.monotonic() - self._configured_at < APPEARS:
            return not (core.has_joint_state and self._needed.known) or bool(self._reader_problems())
        return bool(self._controller.joints.outstanding())

    def _reader_problems(self) -> list[str]:
        """Return the reasons against activation by the readers of set-points, one sentence each."""
        problems = self._controller.check(self._settings.require_controller)
        if self._settings.require_controller:
            problems += self._needed.activation_problems()
            problems += self._gripper.check() if self._gripper is not None else []
        return problems

    def start(self) -> None:
        assert self._core is not None
        problems = [NO_CLOCK] if self._simulated and self._now() == 0 else []
        problems += self._operator.problems() + self._watchdogs.robot_problems()
        problems += self._reader_problems()
        problems += self._scene.problems() if self._scene is not None else []
        if problems:
            raise ValueError('; '.join(problems))
        self._watchdogs.forget()
        try:
            self._core.activate(self._now())
        except ValueError as error:
            raise ValueError(f'{error}{self._hint()}') from None
        self._operator.forget()
        self._needed.remember()
        self._resting.clear()
        self.get_logger().info(f'active, epoch {self._core.epoch}: holding where the arm is')

    def stop(self) -> None:
        """Become inactive at once; the timer still sends set-points until the arm is at rest."""
        assert self._core is not None
        self._core.deactivate()

    def tear_down(self) -> None:
        for undo, entity in reversed(self._made):
            undo(entity)
        self._made = []
        self._core = None
        self._resting.set()

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        if self._core is not None and not self._core.at_rest:
            self.get_logger().error('cannot clean up: the arm is still braking; try again in a moment')
            return TransitionCallbackReturn.FAILURE
        return super().on_cleanup(state)

    def come_to_rest(self) -> threading.Event:
        """Asks for a brake; the event is set when the arm stands still. Called from the main thread at shut-down."""
        self._ending.set()
        return self._resting

    # ---- callbacks, all in one thread

    def _now(self) -> int:
        return self.get_clock().now().nanoseconds

    def _times(self) -> tuple[Time, float | None]:
        """The clock's time, and [s] since it was asked last by a monotonic clock; None in simulation, and at first."""
        for _ in range(10):
            began, now = time.monotonic_ns(), self.get_clock().now()
            if time.monotonic_ns() - began < 1_000_000:  # else it would look like a clock that was set
                break
        before, self._stepped = self._stepped, began
        return now, None if before is None or self._simulated else (began - before) * 1e-9

    @property
    def _simulated(self) -> bool:
        """Whether time comes from /clock."""
        clock = self.get_clock()
        return isinstance(clock, ROSClock) and clock.ros_time_is_active

    def _on_joints(self, msg: JointState) -> None:
        assert self._core is not None
        names, topic = self._settings.profile.joint_names, self._settings.joint_topic
        if self._core.has_joint_state and not set(names) & set(msg.name):
            return  # of another sender on a shared topic, the gripper's for example
        try:
            positions, _ = decode_joints(msg, names, topic)
        except ValueError as error:
            self._report.input_fault = str(error)
            self.get_logger().error(f'joint state ignored: {error}', throttle_duration_sec=5.0)
            return
        self._report.input_fault = ''
        self._core.observe(positions, to_ns(msg.header.stamp), self._now())

    def _on_chunk(self, msg: ActionChunk) -> None:
        assert self._core is not None
        chunk, now = stamped_chunk(msg), self._now()
        self._watchdogs.chunk_came(chunk.t_ref, now)
        began = time.perf_counter()
        verdict = self._core.ingest(chunk, now)
        self._report.ingested(time.perf_counter() - began)
        if verdict not in (Verdict.ACCEPTED, Verdict.SHADOW):
            self.get_logger().warning(
                f'chunk {msg.sequence} of {msg.source} refused, {verdict.name}: {self._core.message}',
                throttle_duration_sec=1.0,
            )
            self._report.publish()

    def _robot_problem(self) -> str:
        """What the robot's mode has against motion, with the controllers that are to report it; '' if nothing."""
        if self._robot is None or not (problem := self._robot.problem()):
            return ''
        hint = self._needed.silence() if self._robot.silent else ''
        return f'{problem}; {hint}' if hint else problem

    def _hint(self) -> str:
        """To be put behind a message about joint states: the controllers that are to publish them and are off."""
        return f'; {off}' if (off := self._needed.silence()) else ''

    def _look(self) -> None:
        assert self._core is not None
        if self._core.hold is not self._seen_hold:
            self._seen_hold = self._core.hold
            self._needed.ask()  # its cause may be there
        self._needed.look()
        now = self._now()
        self._watchdogs.look(now)
        if self._simulated_clock is not None:  # control steps, which publish the status, stand still with /clock
            fault = renewed(self._report.clock_fault, self._simulated_clock.look(now, time.monotonic()))
            if fault != self._report.clock_fault:
                if fault:
                    self.get_logger().warning(fault)
                self._report.clock_fault = fault
                self._report.publish()

    def _tick(self) -> None:
        core = self._core
        assert core is not None
        if self._ending.is_set():
            core.deactivate()
        now, elapsed = self._times()
        core.muted = self._watchdogs.silent or self._operator.arm_lent
        if self._simulated_clock is not None and not self._controller.sends_ahead:
            # A controller that has the motion ahead follows it; with the others it advances by two periods at most.
            self._simulated_clock.stepped(now.nanoseconds, 2 * core.config.period)
        began = time.perf_counter()
        point = core.step(now.nanoseconds, elapsed)
        took = time.perf_counter() - began
        free = not self._watchdogs.silent and not self._operator.arm_lent
        if point is not None and free:
            self._controller.send(now, point.positions, point.velocities)
            if self._gripper is not None and point.gripper is not None and core.hold is not Hold.EMERGENCY_STOP:
                self._gripper.send(point.gripper, driven=core.hold is Hold.NONE)
                self._report.gripper_fault = self._gripper.problem
        if not free:
            self._offer(now)
        if core.state is State.INACTIVE and not self._resting.is_set():
            if free:  # the last word stands for ever: it must say that the arm stands still
                self._controller.send(now, core.planned_positions, np.zeros(core.profile.dof))
            self._resting.set()
        self._report.tick(began, took)

    def _offer(self, now: Time) -> None:
        """Send an inactive controller where the arm is, if it would go to an older set-point once it is activated."""
        core = self._core
        assert core is not None
        topic = self._controller.topic
        if not self._controller.takes_while_inactive or not self._needed.reader_off or topic.competing_publishers():
            return
        fresh = core.joint_state_age(now.nanoseconds) <= core.config.joint_state_max_age
        if core.measured is not None and fresh and not core.joint_state_problem:
            self._controller.send(now, core.measured, np.zeros(core.profile.dof))

    def _diagnose(self) -> None:
        self._report.diagnose({'controllers listening': ', '.join(self._controller.topic.listeners()) or 'none'})


def main(args: list[str] | None = None) -> None:
    run(ExecutorNode, args)


if __name__ == '__main__':
    main()
