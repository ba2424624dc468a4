"""The executor as a lifecycle node: action chunks in, a steady stream of set-points to the controller out."""

import threading

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger

from vla_msgs.msg import ActionChunk, ExecutorStatus
from vla_policy_node.adapters.crisp import CrispJointController
from vla_policy_node.adapters.gripper_position import GripperPosition
from vla_policy_node.core.chunk import Verdict
from vla_policy_node.core.executor import ChunkExecutor, ExecutorConfig, Hold, State
from vla_policy_node.ros import qos
from vla_policy_node.ros.chunk_msg import stamped_chunk, to_ns
from vla_policy_node.ros.joints import decode_joints
from vla_policy_node.ros.lifecycle import SafeLifecycleNode
from vla_policy_node.ros.parameters import declare, declare_profile
from vla_policy_node.ros.run import run

# A stop that somebody asked for, or an idle arm, is no fault; the rest is worth a look.
_FINE = (Hold.NONE, Hold.IDLE, Hold.STOP_REQUESTED, Hold.DEACTIVATED)


class ExecutorNode(SafeLifecycleNode):
    """Everything happens in one thread: subscriptions store or ingest, one timer steps the core and sends."""

    def __init__(self, name: str = 'executor', **kwargs) -> None:
        super().__init__(name, **kwargs)
        self._core: ChunkExecutor | None = None
        self._made: list = []  # timers and subscriptions to destroy
        self._resting = threading.Event()
        self._resting.set()
        self._ending = threading.Event()
        self._last_shown: tuple = ()
        self._ticks = 0

    # ---- lifecycle

    def set_up(self) -> None:
        profile = declare_profile(self)
        rate = declare(self, 'rate', 100.0, 'set-points per second', low=20.0, high=1000.0)
        config = ExecutorConfig(
            period=1.0 / rate,
            interpolation=declare(
                self, 'interpolation', 'cubic', 'between the steps of a chunk', choices=('cubic', 'linear')
            ),
            velocity_fraction=declare(
                self, 'velocity_fraction', 0.8, 'largest speed, as a fraction of the limits', low=0.01, high=1.0
            ),
            acceleration_fraction=declare(
                self,
                'acceleration_fraction',
                0.5,
                'largest on a path, as a fraction of the limits',
                low=0.05,
                high=1.0,
            ),
            brake_fraction=declare(
                self, 'brake_fraction', 0.4, 'what a stop may add, as a fraction of the limits', low=0.05, high=1.0
            ),
            seam_time=declare(
                self,
                'seam_time',
                0.15,
                'shortest smoothing of a switch of chunks [s]',
                low=0.02,
                high=2.0,
            ),
            joint_state_max_age=declare(
                self,
                'joint_state_max_age',
                0.2,
                'an older joint state makes the arm hold [s]',
                low=0.01,
                high=5.0,
            ),
            tracking_limit=declare(
                self,
                'tracking_limit',
                0.25,
                'a joint further from its set-point is blocked or was moved: hold where it is [rad]',
                low=0.01,
                high=3.0,
            ),
            future_tolerance=declare(
                self, 'future_tolerance', 0.1, 'a chunk may be stamped this far ahead of now [s]', low=0.0, high=5.0
            ),
        )
        self._joint_topic = declare(self, 'topics.joint_states', 'joint_states', 'measured joints (JointState)')
        command = declare(self, 'topics.joint_command', 'target_joint', 'input of the joint controller')
        gripper = declare(
            self,
            'topics.gripper_command',
            'gripper/gripper_position_controller/commands',
            'input of the gripper, 0 closed .. 1 open',
        )
        declare(self, 'controller', 'crisp', 'adapter: what the controller understands', choices=('crisp',))

        self._profile = profile
        self._core = ChunkExecutor(profile, config)
        self._controller = CrispJointController(self, command, profile.joint_names)
        self._gripper = None
        if profile.gripper_joint_names:
            self._gripper = GripperPosition(self, gripper, profile.gripper_max_opening)
        self._status = self.create_publisher(ExecutorStatus, '~/status', qos.LATCHED)
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', qos.STATUS)
        self._joint_fault = ''
        joints = self.create_subscription(JointState, self._joint_topic, self._on_joints, qos.SENSOR)
        chunks = self.create_subscription(ActionChunk, 'action_chunk', self._on_chunk, qos.CHUNK)
        self._made = [
            (self.destroy_subscription, joints),
            (self.destroy_subscription, chunks),
            (self.destroy_service, self.create_service(Trigger, '~/stop', self._on_stop)),
            (self.destroy_service, self.create_service(Trigger, '~/resume', self._on_resume)),
            (self.destroy_timer, self.create_timer(config.period, self._tick)),
            (self.destroy_timer, self.create_timer(1.0, self._diagnose)),
            (self.destroy_publisher, self._status),
            (self.destroy_publisher, self._diagnostics),
        ]
        self._publish_status()

    def start(self) -> None:
        assert self._core is not None
        self._core.activate(self._now())
        self._resting.clear()
        self.get_logger().info(f'active, epoch {self._core.epoch}: holding where the arm is')

    def stop(self) -> None:
        """Inactive at once; the timer goes on sending set-points until the arm is at rest."""
        assert self._core is not None
        self._core.deactivate()

    def tear_down(self) -> None:
        for destroy, thing in self._made:
            destroy(thing)
        self._made = []
        if self._core is not None:
            self._controller.close()
            if self._gripper is not None:
                self._gripper.close()
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

    def _on_joints(self, msg: JointState) -> None:
        assert self._core is not None
        if self._core.has_joint_state and not set(self._profile.joint_names) & set(msg.name):
            return  # somebody else's on a shared topic, the gripper's for example
        try:
            positions, _ = decode_joints(msg, self._profile.joint_names, self._joint_topic)
        except ValueError as error:
            self._joint_fault = str(error)
            self.get_logger().error(f'joint state ignored: {error}', throttle_duration_sec=5.0)
            return
        self._joint_fault = ''
        self._core.observe(positions, to_ns(msg.header.stamp))

    def _on_chunk(self, msg: ActionChunk) -> None:
        assert self._core is not None
        verdict = self._core.ingest(stamped_chunk(msg), self._now())
        if verdict not in (Verdict.ACCEPTED, Verdict.SHADOW):
            self.get_logger().warning(
                f'chunk {msg.sequence} of {msg.source} refused, {verdict.name}: {self._core.message}',
                throttle_duration_sec=1.0,
            )
            self._publish_status()

    def _on_stop(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        assert self._core is not None
        self._core.operator_stop()
        response.success = self._core.hold is Hold.OPERATOR_STOP
        response.message = 'braking' if response.success else 'not active: nothing moves'
        self._publish_status()
        return response

    def _on_resume(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        assert self._core is not None
        response.success = self._core.resume()
        response.message = f'epoch {self._core.epoch}' if response.success else 'not stopped, or still braking'
        self._publish_status()
        return response

    def _tick(self) -> None:
        core = self._core
        assert core is not None
        if self._ending.is_set():
            core.deactivate()
        now = self.get_clock().now()
        point = core.step(now.nanoseconds)
        if point is not None:
            self._controller.send(now, point.positions, point.velocities)
            if self._gripper is not None and point.gripper is not None:
                self._gripper.send(point.gripper)
        if core.state is State.INACTIVE:
            self._resting.set()
        self._ticks += 1
        shown = (core.state, core.hold, core.epoch, core.source)
        if shown != self._last_shown or self._ticks * core.config.period >= 0.1:
            self._publish_status()

    # ---- reports

    def _publish_status(self) -> None:
        core = self._core
        assert core is not None
        now = self._now()
        self._ticks = 0
        shown = (core.state, core.hold, core.epoch, core.source)
        if shown[:2] != self._last_shown[:2] and self._last_shown:
            text = f'{core.state.name.lower()}, {core.hold.name.lower()}, epoch {core.epoch}. {core.message}'
            if core.hold in _FINE:  # rclpy refuses another severity from the same line
                self.get_logger().info(text)
            else:
                self.get_logger().warning(text)
        self._last_shown = shown
        age = core.joint_state_age(now)
        msg = ExecutorStatus(
            state=int(core.state),
            hold_reason=int(core.hold),
            last_verdict=int(core.verdict),
            verdict_counts=np.array(core.verdict_counts, np.uint32),
            epoch=core.epoch,
            source=core.source,
            sequence=core.sequence,
            message=core.message or self._joint_fault,
            horizon_left=float(core.horizon_left()),
            chunk_age=float(core.chunk_age(now)),
            seam_position=float(core.seam_position),
            seam_velocity=float(core.seam_velocity),
            speed_scale=float(core.rate),
            tracking_error=core.tracking_error(),
            joint_state_age=float(age),
        )
        msg.header.stamp = self.get_clock().now().to_msg()
        msg.header.frame_id = self._profile.base_frame
        self._status.publish(msg)

    def _diagnose(self) -> None:
        core = self._core
        assert core is not None
        now = self._now()
        ok = core.hold in _FINE and not self._joint_fault
        status = DiagnosticStatus(
            level=DiagnosticStatus.OK if ok else DiagnosticStatus.WARN,
            name=f'{self.get_fully_qualified_name()}: set-points',
            hardware_id=self._profile.name,
            message=core.message or self._joint_fault or core.state.name.lower(),
        )
        facts = {
            'state': core.state.name,
            'hold': core.hold.name,
            'epoch': core.epoch,
            'source': core.source,
            'joint state age [s]': f'{core.joint_state_age(now):.3f}',
            'tracking error [rad]': f'{core.tracking_error():.4f}',
            'controllers listening': self._controller.subscribers(),
            **{f'chunks {v.name}': n for v, n in zip(Verdict, core.verdict_counts, strict=True) if n},
        }
        status.values = [KeyValue(key=k, value=str(v)) for k, v in facts.items()]
        array = DiagnosticArray(status=[status])
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)


def main(args: list[str] | None = None) -> None:
    run(ExecutorNode, args)


if __name__ == '__main__':
    main()
