"""Ears of the doctor: what comes on a topic, how often, how old, and its newest message."""

import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, JointState

from vla_bringup.doctor_wiring import Wiring
from vla_bringup.probe import Probe
from vla_msgs.msg import ExecutorStatus, PolicyStatus
from vla_policy_node.ros import qos
from vla_policy_node.ros.chunk_msg import to_ns


@dataclass
class Heard:
    """Of one topic. Ages are receive time minus stamp [s], on the clock of the robot."""

    came: list[float] = field(default_factory=list)  # [s] monotonic
    ages: list[float] = field(default_factory=list)
    unstamped: bool = False
    newest: Any = None

    @property
    def rate(self) -> float:
        """Messages per second of wall time; 0 with fewer than three."""
        return (len(self.came) - 1) / (self.came[-1] - self.came[0]) if len(self.came) > 2 else 0.0

    @property
    def age(self) -> float:
        """Median [s]; NaN where nothing could be told."""
        return float(np.median(self.ages)) if self.ages else float('nan')


class Listener:
    """Subscribes to what a wiring names, and to the statuses of its namespace. Only listens: never publishes."""

    def __init__(self, probe: Probe, wirings: list[Wiring], statuses: dict[str, type], sim_time: bool) -> None:
        self.topics: dict[str, Heard] = {}
        self.clock: list[tuple[float, int]] = []  # (monotonic [s], simulated [ns])
        self._sim_time = sim_time
        self._node = probe.node
        if sim_time:
            self._node.create_subscription(Clock, '/clock', self._on_clock, qos.SENSOR)
        for w in wirings:
            self._subscribe(JointState, w.joint_topic, qos.SENSOR)
            for topic in w.cameras.values():
                self._subscribe(Image, topic, qos.SENSOR)
                self._subscribe(CameraInfo, info_topic(topic), qos.SENSOR)
        for topic, kind in statuses.items():
            self._subscribe(kind, topic, qos.LATCHED if kind is ExecutorStatus else qos.STATUS)

    def _subscribe(self, kind: type, topic: str, profile) -> None:
        if topic not in self.topics:
            self.topics[topic] = Heard()
            self._node.create_subscription(kind, topic, partial(self._on, self.topics[topic], kind), profile)

    def _on_clock(self, msg: Clock) -> None:
        self.clock.append((time.monotonic(), to_ns(msg.clock)))

    def _on(self, heard: Heard, kind: type, msg: Any) -> None:
        heard.came.append(time.monotonic())
        heard.newest = msg
        stamp = to_ns(msg.header.stamp)
        heard.unstamped |= stamp == 0
        now = (self.clock[-1][1] if self.clock else 0) if self._sim_time else time.time_ns()
        if now and stamp and kind is not PolicyStatus:
            heard.ages.append((now - stamp) * 1e-9)


def info_topic(image_topic: str) -> str:
    """Where a camera driver publishes CameraInfo: beside the image."""
    return f'{image_topic.rpartition("/")[0]}/camera_info'
