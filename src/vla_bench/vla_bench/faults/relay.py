"""A relay between simulator, executor and source of chunks, which can disturb their messages."""

import math
import threading
import time
from typing import Any

import rclpy
from rclpy.clock import Clock as RosClock
from rclpy.clock import ClockType
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState

from vla_msgs.msg import ActionChunk
from vla_policy_node.ros import qos
from vla_policy_node.ros.chunk_msg import to_ns, to_time

RAW = 'raw'  # namespace of the remapped topics: raw/joint_states, ...
SIM = (('joint_states', f'{RAW}/joint_states'), ('target_joint', f'{RAW}/target_joint'), ('/clock', f'{RAW}/clock'))
SOURCE = (('action_chunk', f'{RAW}/action_chunk'),)
_RELEASE = 0.005  # [s] between two checks of delayed chunks


class Relay:
    """Relays messages in its own thread, inside a with statement. Attributes may be set from any thread.

    frozen: drop joint states. nan: set a joint position to NaN. offset: added to the clock and the stamps of joint
    states [ns]. delay: of chunks, in wall time [s].
    """

    def __init__(self) -> None:
        self.frozen = self.nan = False
        self.offset, self.delay = 0, 0.0
        self._joint_offset = self._clock_offset = 0  # [ns] in force
        self._held: list[tuple[float, ActionChunk]] = []
        self._context = rclpy.Context()
        rclpy.init(context=self._context, signal_handler_options=SignalHandlerOptions.NO)
        node = self._node = rclpy.create_node('relay', context=self._context, start_parameter_services=False)
        self._joints = node.create_publisher(JointState, 'joint_states', qos.SENSOR_OUT)
        self._clock = node.create_publisher(Clock, '/clock', qos.SENSOR_OUT)
        self._target = node.create_publisher(JointState, f'{RAW}/target_joint', qos.COMMAND)
        self._chunks = node.create_publisher(ActionChunk, 'action_chunk', qos.CHUNK)
        node.create_subscription(JointState, f'{RAW}/joint_states', self._on_joints, qos.SENSOR)
        node.create_subscription(Clock, f'{RAW}/clock', self._on_clock, qos.SENSOR)
        node.create_subscription(ActionChunk, f'{RAW}/action_chunk', self._on_chunk, qos.CHUNK)
        self._controller: Any = node.create_subscription(JointState, 'target_joint', self._target.publish, qos.COMMAND)
        node.create_timer(_RELEASE, self._release, clock=RosClock(clock_type=ClockType.STEADY_TIME))
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(node)
        self._thread = threading.Thread(target=self._executor.spin, name='relay', daemon=True)
        self._thread.start()

    def __enter__(self) -> 'Relay':
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(timeout_sec=5.0)
        self._thread.join(5.0)
        self._node.destroy_node()
        rclpy.shutdown(context=self._context)

    def remove_controller(self) -> None:
        """End the subscription to target_joint; the simulator keeps its last set-point."""
        self._executor.create_task(lambda: self._node.destroy_subscription(self._controller))

    def _on_joints(self, msg: JointState) -> None:
        if self.frozen:
            return
        if self.nan:
            msg.position[0] = math.nan
        if self.offset > self._joint_offset or self._clock_offset == self.offset:
            self._joint_offset = self.offset
        msg.header.stamp = to_time(to_ns(msg.header.stamp) + self._joint_offset)
        self._joints.publish(msg)

    def _on_clock(self, msg: Clock) -> None:
        # Stamps jump ahead before the clock and back after it, so joint states are never stale through the jump.
        if self.offset < self._clock_offset or self._joint_offset == self.offset:
            self._clock_offset = self.offset
        self._clock.publish(Clock(clock=to_time(to_ns(msg.clock) + self._clock_offset)))

    def _on_chunk(self, msg: ActionChunk) -> None:
        self._held.append((time.monotonic() + self.delay, msg))
        self._release()

    def _release(self) -> None:
        while self._held and self._held[0][0] <= time.monotonic():
            self._chunks.publish(self._held.pop(0)[1])
