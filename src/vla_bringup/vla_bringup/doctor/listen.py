"""Subscriptions of the doctor: rate, age and newest message of each topic."""

import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState

from vla_bringup.doctor.wiring import Wiring
from vla_bringup.processes.probe import Probe
from vla_core.clocks import NS, OVERTAKING, Stamps
from vla_msgs.msg import ExecutorStatus, PolicyStatus
from vla_policy_node.ros import qos
from vla_policy_node.ros.camera_info import camera_info_topic
from vla_policy_node.ros.chunk_msg import to_ns
from vla_policy_node.ros.images import COMPRESSED


@dataclass
class Received:
    """Messages received on one topic. Ages are receive time minus stamp [s], on the clock of the robot."""

    times: list[float] = field(default_factory=list)  # [s] of receipt, monotonic
    ages: list[float] = field(default_factory=list)
    unstamped: bool = False
    newest: Any = None
    stamps: Stamps = field(default_factory=Stamps)
    back: float = 0.0  # [s] largest step back of the publisher's clock

    @property
    def rate(self) -> float:
        """Messages per second of wall time; 0 with fewer than three."""
        return (len(self.times) - 1) / (self.times[-1] - self.times[0]) if len(self.times) > 2 else 0.0

    @property
    def wait(self) -> float:
        """Longest time between two messages [s]; 0 with fewer than two."""
        return float(np.diff(self.times).max()) if len(self.times) > 1 else 0.0

    @property
    def age(self) -> float:
        """Median age [s]; NaN without a stamp to judge."""
        return float(np.median(self.ages)) if self.ages else float('nan')

    def take(self, msg: Any, now: int, *, judged: bool) -> None:
        """Record a message at time now [ns] of the robot's clock; now is 0 while that clock stands still.

        judged: the stamp is the time of a measurement, so its age counts.
        """
        self.times.append(time.monotonic())
        self.newest = msg
        stamp = to_ns(msg.header.stamp)
        self.unstamped |= stamp == 0
        if now and stamp and judged:
            self.ages.append((now - stamp) * 1e-9)
            self.back = max(self.back, self.stamps.take(stamp, now))


class Listener:
    """Subscribes to the topics of wirings and to status topics. It publishes nothing."""

    def __init__(self, probe: Probe, wirings: list[Wiring], statuses: dict[str, type], sim_time: bool) -> None:
        self.topics: dict[str, Received] = {}
        self.clock: list[tuple[float, int]] = []  # (monotonic [s], simulated [ns])
        self.back = 0.0  # [s] largest step back of this machine's clock
        self._sim_time = sim_time
        self._offset: int | None = None  # [ns] largest difference of this machine's clock and the monotonic one
        self._node = probe.node
        if sim_time:
            self._node.create_subscription(Clock, '/clock', self._on_clock, qos.SENSOR)
        for w in wirings:
            self._subscribe_joints(w.joint_topic, w.joint_topic, w.joint_names)
            if w.gripper_names:
                self._subscribe_joints(w.gripper_topic, w.fingers, w.gripper_names)
            for topic in w.cameras.values():
                self._subscribe(CompressedImage if topic.endswith(COMPRESSED) else Image, topic, qos.SENSOR)
                self._subscribe(CameraInfo, camera_info_topic(topic), qos.SENSOR)
        for topic, kind in statuses.items():
            self._subscribe(kind, topic, qos.LATCHED if kind is ExecutorStatus else qos.STATUS)

    def _subscribe(self, kind: type, topic: str, profile) -> None:
        if topic not in self.topics:
            self.topics[topic] = Received()
            self._node.create_subscription(kind, topic, partial(self._on, self.topics[topic], kind), profile)

    def _subscribe_joints(self, topic: str, name: str, joints: tuple[str, ...]) -> None:
        """Subscribe to joint states of these joints; messages with other joints count until one of these comes."""
        if name not in self.topics:
            self.topics[name] = Received()
            take = partial(self._on_joints, self.topics[name], set(joints))
            self._node.create_subscription(JointState, topic, take, qos.SENSOR)

    def _on_joints(self, received: Received, joints: set[str], msg: JointState) -> None:
        ours = not joints.isdisjoint(msg.name)
        if received.newest is not None and joints.isdisjoint(received.newest.name):
            received.times.clear()  # of another publisher
            received.ages.clear()
        elif received.newest is not None and not ours:
            return
        self._on(received, JointState, msg)

    def _on_clock(self, msg: Clock) -> None:
        self.clock.append((time.monotonic(), to_ns(msg.clock)))

    def _on(self, received: Received, kind: type, msg: Any) -> None:
        received.take(msg, self._now(), judged=kind is not PolicyStatus)

    def _now(self) -> int:
        if self._sim_time:
            return self.clock[-1][1] if self.clock else 0
        now = time.time_ns()
        offset = now - time.monotonic_ns()
        if self._offset is not None and offset < self._offset - OVERTAKING * NS:
            self.back = max(self.back, (self._offset - offset) / NS)
            self._offset = offset
        self._offset = max(offset, self._offset or offset)
        return now
