"""The policy node's ears and eyes: subscriptions that only store, and the newest usable set of what they stored."""

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rclpy.node import Node
from sensor_msgs.msg import Image, JointState

from vla_msgs.msg import PolicyStatus as S
from vla_policy_node.core.streams import GRIPPER, JOINTS, Aligned, Missing, Reason, Streams, StreamSpec
from vla_policy_node.policy_parameters import PolicyParameters
from vla_policy_node.ros import qos
from vla_policy_node.ros.chunk_msg import to_ns
from vla_policy_node.ros.images import decode_image
from vla_policy_node.ros.joints import decode_gripper, decode_joints

LOG_EVERY = 5.0  # [s] per stream: bad messages may come at the rate of the sensor
_CAMERA = {Reason.MISSING: S.CAMERA_MISSING, Reason.STALE: S.CAMERA_STALE, Reason.FUTURE: S.CAMERA_BAD}
_JOINTS = {Reason.MISSING: S.JOINTS_MISSING, Reason.STALE: S.JOINTS_STALE, Reason.FUTURE: S.JOINTS_BAD}


@dataclass(frozen=True)
class Fault:
    """Why there is no usable observation: a PolicyStatus code and one sentence, what is wrong and what to do."""

    code: int
    message: str


class Observer:
    """Subscribes to the cameras and joints. on_image is called after each good image, in the spin thread."""

    def __init__(self, node: Node, parameters: PolicyParameters, on_image: Callable[[], None]) -> None:
        p, profile = parameters, parameters.profile
        self._node, self._on_image = node, on_image
        self.frames: dict[str, str] = {}  # camera -> frame_id of its newest image
        self._faults: dict[str, Fault] = {}  # stream name -> what is wrong with its newest message
        self._heard: set[str] = set()  # streams that had a good message
        self._logged: dict[str, float] = {}  # stream -> when a fault of it was logged last (monotonic, s)
        self._others: dict[str, list[str]] = {}  # stream -> joints of a message that had none of its own
        specs = [StreamSpec(name, topic, p.camera_max_age, leads=True) for name, topic in p.cameras.items()]
        specs.append(StreamSpec(JOINTS, p.joint_topic, p.joint_max_age))
        if profile.gripper_joint_names:
            specs.append(StreamSpec(GRIPPER, p.gripper_topic, p.joint_max_age))
        self.streams = Streams(specs)

        self._subscriptions = []
        for name, topic in p.cameras.items():
            read = functools.partial(decode_image, topic=topic, width=p.image_width, height=p.image_height)
            store = functools.partial(self._on_camera, name, read)
            self._subscriptions.append(node.create_subscription(Image, topic, store, qos.SENSOR))
        arm = functools.partial(decode_joints, joint_names=profile.joint_names, topic=p.joint_topic)
        parts: dict[str, list] = {p.joint_topic: [(JOINTS, arm, set(profile.joint_names))]}
        if GRIPPER in self.streams.specs:
            fingers = profile.gripper_joint_names
            opening = functools.partial(decode_gripper, gripper_joint_names=fingers, topic=p.gripper_topic)
            parts.setdefault(p.gripper_topic, []).append((GRIPPER, opening, set(fingers)))
        for topic, wanted in parts.items():  # arm and fingers on one topic: one subscription
            store = functools.partial(self._on_joints, wanted)
            self._subscriptions.append(node.create_subscription(JointState, topic, store, qos.SENSOR))

    def observe(self, now: int) -> Aligned | Fault:
        """The newest usable set at time now [ns]. A stream whose newest message could not be read is not usable."""
        for fault in list(self._faults.values()):
            return fault
        found = self.streams.align(now)
        if isinstance(found, Missing):
            codes = _CAMERA if self.streams.specs[found.stream].leads else _JOINTS
            others = self._others.get(found.stream)
            hint = f'; messages on its topic now have the joints {others}' if others else ''
            return Fault(codes[found.reason], found.message + hint)
        return found

    def close(self) -> None:
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)

    def _on_camera(self, stream: str, read: Callable[[Any], Any], msg: Image) -> None:
        if self._store(stream, read, msg, S.CAMERA_BAD):
            self.frames[stream] = msg.header.frame_id
            self._on_image()

    def _on_joints(self, wanted: list, msg: JointState) -> None:
        names = set(msg.name)
        for stream, read, joints in wanted:
            # A message without any of our joints is another sender's on a shared topic. While nothing else has
            # come it is told: the robot profile may be of another robot.
            if joints & names or stream not in self._heard:
                self._store(stream, read, msg, S.JOINTS_BAD)
            else:
                self._others[stream] = list(msg.name)

    def _store(self, stream: str, read: Callable[[Any], Any], msg: Any, code: int) -> bool:
        try:
            value = read(msg)
        except ValueError as error:
            self._faults[stream] = Fault(code, str(error))
            if time.monotonic() - self._logged.get(stream, -math.inf) > LOG_EVERY:
                self._logged[stream] = time.monotonic()
                self._node.get_logger().error(str(error))
            return False
        self._faults.pop(stream, None)
        self._heard.add(stream)
        self._others.pop(stream, None)
        self.streams.put(stream, to_ns(msg.header.stamp), value)
        return True
