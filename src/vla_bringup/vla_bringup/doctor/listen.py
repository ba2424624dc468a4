"""Ears of the doctor: what comes on a topic, how often, how old, and its newest message."""

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
class Heard:
    """Of one topic. Ages are receive time minus stamp [s], on the clock of the robot."""

    came: list[float] = field(default_factory=list)  # [s] monotonic
    ages: list[float] = field(default_factory=list)
    unstamped: bool = False
    newest: Any = None
    stamps: Stamps = field(default_factory=Stamps)
    back: float = 0.0  # [s] largest step by which the sender's clock was set back while we listened

    @property
    def rate(self) -> float:
        """Messages per second of wall time; 0 with fewer than three."""
        return (len(self.came) - 1) / (self.came[-1] - self.came[0]) if len(self.came) > 2 else 0.0

    @property
    def wait(self) -> float:
        """Longest time between two messages [s]; 0 with fewer than two."""
        return float(np.diff(self.came).max()) if len(self.came) > 1 else 0.0

    @property
    def age(self) -> float:
        """Median [s]; NaN where nothing could be told."""
        return float(np.median(self.ages)) if self.ages else float('nan')

    def take(self, msg: Any, now: int, *, judged: bool) -> None:
        """A message at time now [ns] of the robot's clock, 0: it does not run. judged: its stamp is of a sensor."""
        self.came.append(time.monotonic())
        self.newest = msg
        stamp = to_ns(msg.header.stamp)
        self.unstamped |= stamp == 0
        if now and stamp and judged:
            self.ages.append((now - stamp) * 1e-9)
            self.back = max(self.back, self.stamps.take(stamp, now))


class Listener:
    """Subscribes to what a wiring names, and to the statuses of its namespace. Only listens: never publishes."""

    def __init__(self, probe: Probe, wirings: list[Wiring], statuses: dict[str, type], sim_time: bool) -> None:
        self.topics: dict[str, Heard] = {}
        self.clock: list[tuple[float, int]] = []  # (monotonic [s], simulated [ns])
        self.back = 0.0  # [s] by which the clock of this machine was set back while we listened
        self._sim_time = sim_time
        self._offset: int | None = None  # [ns] largest time of this machine's clock minus that of a steady one
        self._node = probe.node
        if sim_time:
            self._node.create_subscription(Clock, '/clock', self._on_clock, qos.SENSOR)
        for w in wirings:
            self._hear_joints(w.joint_topic, w.joint_topic, w.joint_names)
            if w.gripper_names:
                self._hear_joints(w.gripper_topic, w.fingers, w.gripper_names)
            for topic in w.cameras.values():
                self._subscribe(CompressedImage if topic.endswith(COMPRESSED) else Image, topic, qos.SENSOR)
                self._subscribe(CameraInfo, camera_info_topic(topic), qos.SENSOR)
        for topic, kind in statuses.items():
            self._subscribe(kind, topic, qos.LATCHED if kind is ExecutorStatus else qos.STATUS)

    def _subscribe(self, kind: type, topic: str, profile) -> None:
        if topic not in self.topics:
            self.topics[topic] = Heard()
            self._node.create_subscription(kind, topic, partial(self._on, self.topics[topic], kind), profile)

    def _hear_joints(self, topic: str, name: str, joints: tuple[str, ...]) -> None:
        """Joint states of these joints; those of others only while there are none of these."""
        if name not in self.topics:
            self.topics[name] = Heard()
            take = partial(self._on_joints, self.topics[name], set(joints))
            self._node.create_subscription(JointState, topic, take, qos.SENSOR)

    def _on_joints(self, heard: Heard, joints: set[str], msg: JointState) -> None:
        ours = not joints.isdisjoint(msg.name)
        if heard.newest is not None and joints.isdisjoint(heard.newest.name):
            heard.came.clear()  # they were of another sender
            heard.ages.clear()
        elif heard.newest is not None and not ours:
            return
        self._on(heard, JointState, msg)

    def _on_clock(self, msg: Clock) -> None:
        self.clock.append((time.monotonic(), to_ns(msg.clock)))

    def _on(self, heard: Heard, kind: type, msg: Any) -> None:
        heard.take(msg, self._now(), judged=kind is not PolicyStatus)

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
