"""The scripted expert as a ROS 2 node: publishes chunks like the policy, from the simulator's object poses."""

import threading
import time
from collections import deque

import numpy as np
from rclpy.duration import Duration
from sensor_msgs.msg import JointState
from tf2_msgs.msg import TFMessage

from vla_model.types import Chunk
from vla_msgs.msg import ActionChunk, Episode, ExecutorStatus, TaskProgress
from vla_policy_node.ros import qos
from vla_policy_node.ros.chunk_msg import chunk_msg, to_ns, to_time
from vla_policy_node.ros.joints import decode_gripper, decode_joints
from vla_policy_node.ros.parameters import declare, declare_profile
from vla_policy_node.ros.qos_mismatch import ReportsQosMismatch
from vla_policy_node.ros.run import run
from vla_sim.expert import Expert, ExpertStep, Objects

_KEEP = 100  # number of joint states, more than between two sim/objects messages
_ENGAGE = 0.1  # [rad] largest distance of set-point and arm at the start of a task
_DEAF = {  # reasons why an executor refuses chunks
    ExecutorStatus.HOLD_OPERATOR_STOP: 'it was stopped by the operator: call executor/resume',
    ExecutorStatus.HOLD_BLOCKED: 'the arm was blocked: call executor/resume',
    ExecutorStatus.HOLD_DEACTIVATED: 'it is not active: activate it',
    ExecutorStatus.HOLD_JOINT_STATE_STALE: 'its joint state is stale',
    ExecutorStatus.HOLD_JOINT_STATE_FROZEN: 'its joint states are frozen: restart the driver, call executor/resume',
}


class ExpertNode(ReportsQosMismatch):
    """Plans in one timer; the subscriptions only store messages. All callbacks run in one thread."""

    def __init__(self, name: str = 'expert', **kwargs) -> None:
        super().__init__(name, **kwargs)
        self._profile = declare_profile(self)
        rate = declare(self, 'rate', 5.0, 'chunks per second', low=4.0, high=20.0, read_only=True)
        declare(self, 'enabled', True, 'false: stop the arm and publish no chunks; may be changed at any time')
        self._max_age = declare(
            self, 'max_age', 0.5, 'largest age of joint states and objects [s]', low=0.05, high=5.0, read_only=True
        )
        self._joint_topic = declare(
            self, 'topics.joint_states', 'joint_states', 'measured joints (robot profile)', read_only=True
        )
        self._expert = Expert(self._profile)
        self._sequence = 0  # never reset, as it must increase within an epoch
        self._joints: deque[tuple[int, np.ndarray, float]] = deque(maxlen=_KEEP)  # stamp [ns], positions, opening
        self._objects: tuple[int, Objects] | None = None  # stamp [ns], poses
        self._episode: Episode | None = None
        self._status: ExecutorStatus | None = None
        self._driving = False  # chunks were sent since the last stop
        self._engaged = False  # the executor's set-point is at the arm's position
        self._finished = True  # idle until the next episode
        self._shown: tuple | None = None
        self._chunks = self.create_publisher(ActionChunk, 'action_chunk', qos.CHUNK)
        self._progress = self.create_publisher(TaskProgress, '~/progress', qos.LATCHED)
        self.create_subscription(JointState, self._joint_topic, self._on_joints, qos.SENSOR)
        self.create_subscription(TFMessage, 'sim/objects', self._on_objects, qos.SENSOR)
        self.create_subscription(Episode, 'sim/episode', self._on_episode, qos.LATCHED)
        self.create_subscription(ExecutorStatus, 'executor/status', self._on_status, qos.LATCHED)
        self.create_timer(1.0 / rate, self._tick)

    def come_to_rest(self) -> threading.Event:
        """Ask the executor to stop the arm if this node moves it. Called from the main thread at shut-down."""
        resting = threading.Event()
        self._finished = True
        self._stop()
        self._chunks.wait_for_all_acked(Duration(seconds=1))
        resting.set()
        return resting

    # ---- what arrives is stored

    def _on_joints(self, msg: JointState) -> None:
        try:
            positions, _ = decode_joints(msg, self._profile.joint_names, self._joint_topic)
            opening = decode_gripper(msg, self._profile.gripper_joint_names, self._joint_topic)
        except ValueError as error:
            self.get_logger().error(str(error), throttle_duration_sec=5.0)
            return
        self._joints.append((to_ns(msg.header.stamp), positions, opening))

    def _on_objects(self, msg: TFMessage) -> None:
        if not msg.transforms:
            return
        if strangers := {t.header.frame_id for t in msg.transforms} - {self._profile.base_frame}:
            text = f'sim/objects is in frame {", ".join(strangers)}, must be in {self._profile.base_frame}: ignored'
            self.get_logger().error(text, throttle_duration_sec=5.0)
            return
        poses = {}
        for t in msg.transforms:
            at, turned = t.transform.translation, t.transform.rotation
            poses[t.child_frame_id] = (
                np.array([at.x, at.y, at.z]),
                np.array([turned.w, turned.x, turned.y, turned.z]),
            )
        self._objects = (to_ns(msg.transforms[0].header.stamp), poses)

    def _on_episode(self, msg: Episode) -> None:
        self._stop()
        self._episode, self._engaged, self._finished = msg, False, False
        try:
            self._expert.begin(msg.task, msg.instruction)
        except ValueError as error:
            self._finished = True
            self.get_logger().error(f'cannot do episode {msg.index}: {error}')

    def _on_status(self, msg: ExecutorStatus) -> None:
        if self._status is not None and msg.epoch != self._status.epoch:
            self._restart()  # the motion ended: continue from the present position of the arm
        self._status = msg

    def _restart(self) -> None:
        self._expert.restart()
        self._engaged = False

    # ---- the cycle

    def _tick(self) -> None:
        if not self.get_parameter('enabled').value:
            if self._driving:
                self._stop()
                self._restart()
            return
        if self._finished or self._episode is None or not self._usable():
            return
        began = time.monotonic()
        observation = self._observation()
        if isinstance(observation, str):
            self.get_logger().warning(f'no chunk: {observation}', throttle_duration_sec=2.0)
            return
        t_ref, positions, opening, objects = observation
        assert self._status is not None
        if not self._engaged:
            self._engaged = self._status.tracking_error <= _ENGAGE
        if not self._engaged:
            # A reset moved the arm: move the set-point to the arm before any motion.
            still = Chunk(np.tile(positions, (self._expert.horizon, 1)), np.zeros(0), self._expert.dt)
            self._send(still, t_ref, time.monotonic() - began)
            return
        try:
            step = self._expert.plan(t_ref, positions, opening, objects)
        except ValueError as error:
            self.get_logger().error(f'gave up: {error}')
            self._finished = True
            self._stop()
            return
        self._send(step.chunk, t_ref, time.monotonic() - began)
        self._report(step, t_ref)
        if step.done:
            self._finished = True
            self._stop()

    def _usable(self) -> bool:
        """Return whether the executor accepts chunks of this node; the expert restarts once it does."""
        status, why = self._status, ''
        if status is None:
            why = 'no executor/status received: is the executor running and configured?'
        elif status.state == ExecutorStatus.STATE_INACTIVE:
            why = f'the executor takes none, {_DEAF[ExecutorStatus.HOLD_DEACTIVATED]}'
        elif status.hold_reason in _DEAF:
            why = f'the executor takes none, {_DEAF[status.hold_reason]}'
        elif status.source not in ('', self.get_fully_qualified_name()):
            why = f'{status.source} drives the executor: stop it'
        if why:
            self.get_logger().warning(f'no chunk: {why}', throttle_duration_sec=5.0)
            self._restart()
        return not why

    def _observation(self) -> tuple[int, np.ndarray, float, Objects] | str:
        """Return stamp [ns], positions, opening and poses at the newest sim/objects; or the reason why not."""
        assert self._episode is not None
        now, begin = self.get_clock().now().nanoseconds, to_ns(self._episode.header.stamp)
        if self._objects is None or self._objects[0] < begin:
            return 'no sim/objects of this episode received: is the simulator running?'
        stamp, objects = self._objects
        if (now - stamp) * 1e-9 > self._max_age:
            return f'sim/objects are {(now - stamp) * 1e-9:.2f} s old, limit {self._max_age} s'
        joints = next((joints for joints in reversed(self._joints) if joints[0] <= stamp), None)
        if joints is None or joints[0] < begin:
            return f'no usable joint state of this episode received on {self._joint_topic}'
        if (now - joints[0]) * 1e-9 > self._max_age:
            return f'{self._joint_topic} is {(now - joints[0]) * 1e-9:.2f} s old, limit {self._max_age} s'
        return *joints, objects

    # ---- what is sent

    def _send(self, chunk: Chunk | None, t_ref: int, seconds: float) -> None:
        self._sequence += 1
        self._chunks.publish(
            chunk_msg(
                chunk,
                t_ref=t_ref,
                frame_id=self._profile.base_frame,
                epoch=self._status.epoch if self._status is not None else 0,
                sequence=self._sequence,
                source=self.get_fully_qualified_name(),
                joint_names=self._profile.joint_names,
                instruction=self._episode.instruction if self._episode is not None else '',
                model_id='expert',
                inference_time=seconds,
            )
        )
        self._driving = chunk is not None

    def _stop(self) -> None:
        if self._driving:
            self._send(None, self.get_clock().now().nanoseconds, 0.0)

    def _report(self, step: ExpertStep, t_ref: int) -> None:
        """Publish the progress when it changed, and log trouble once."""
        assert self._episode is not None
        shown = (self._episode.index, step.subtask, step.completed, step.message)
        if shown == self._shown:
            return
        if step.message and (self._shown is None or step.message != self._shown[-1]):
            self.get_logger().warning(step.message)
        self._shown = shown
        msg = TaskProgress(
            instruction=self._episode.instruction,
            current=step.subtask,
            completed=list(step.completed),
            remaining=list(step.remaining),
        )
        msg.header.stamp, msg.header.frame_id = to_time(t_ref), self._profile.base_frame
        self._progress.publish(msg)


def main(args: list[str] | None = None) -> None:
    run(ExpertNode, args)


if __name__ == '__main__':
    main()
