"""Messages of cameras and joints in, the newest usable set out. One for the live node and for replayed bags."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vla_core.observe.streams import (
    CAMERA_MAX_AGE,
    GRIPPER,
    GRIPPER_MAX_AGE,
    JOINT_MAX_AGE,
    JOINTS,
    Aligned,
    Missing,
    Reason,
    Streams,
    StreamSpec,
)
from vla_core.profile import RobotProfile
from vla_msgs.msg import PolicyStatus as S
from vla_policy_node.ros.chunk_msg import to_ns
from vla_policy_node.ros.images import decode_image
from vla_policy_node.ros.joints import decode_gripper, decode_joints

# [s] that images wait for joint states of their time, which another connection may deliver a moment later.
SETTLES = 0.05
_CAMERA = {Reason.MISSING: S.CAMERA_MISSING, Reason.STALE: S.CAMERA_STALE, Reason.FUTURE: S.CAMERA_BAD}
_JOINTS = {Reason.MISSING: S.JOINTS_MISSING, Reason.STALE: S.JOINTS_STALE, Reason.FUTURE: S.JOINTS_BAD}


@dataclass(frozen=True)
class Fault:
    """Why there is no usable observation: a PolicyStatus code and one sentence, what is wrong and what to do."""

    code: int
    message: str


class Intake:
    """Decodes and stores messages. A stream whose newest message could not be read is not usable.

    cameras: name -> topic. Messages may be those of rclpy or of rosbags. report: takes the stream and the sentence of
    each message that cannot be used, and of each clock that was set back. real_time, clock: as of Streams.
    """

    def __init__(
        self,
        profile: RobotProfile,
        cameras: Mapping[str, str],
        joint_topic: str,
        gripper_topic: str,
        *,
        camera_max_age: float = CAMERA_MAX_AGE,
        joint_max_age: float = JOINT_MAX_AGE,
        gripper_max_age: float = GRIPPER_MAX_AGE,
        real_time: bool = False,
        clock: str = 'this machine',
        width: int = 0,
        height: int = 0,
        report: Callable[[str, str], None] = lambda stream, message: None,
    ) -> None:
        self._report = report
        self.frames: dict[str, str] = {}  # camera -> frame_id of its newest image
        self._faults: dict[str, Fault] = {}  # stream name -> what is wrong with its newest message
        self._received: set[str] = set()  # streams that had a good message
        self._others: dict[str, list[str]] = {}  # stream -> joints of a message that had none of its own
        ages = {'camera_max_age': camera_max_age, 'joint_max_age': joint_max_age, 'gripper_max_age': gripper_max_age}
        self.streams = Streams(
            stream_specs(profile, cameras, joint_topic, gripper_topic, settles=SETTLES, **ages),
            real_time=real_time,
            clock=clock,
        )
        self.cameras = {
            topic: (name, functools.partial(decode_image, topic=topic, width=width, height=height))
            for name, topic in cameras.items()
        }  # topic -> (stream, decode)
        arm = functools.partial(decode_joints, joint_names=profile.joint_names, topic=joint_topic)
        # topic -> (stream, decode, joints); arm and fingers may be on one topic
        self.joints: dict[str, list[tuple[str, Callable, set[str]]]] = {
            joint_topic: [(JOINTS, arm, set(profile.joint_names))]
        }
        if GRIPPER in self.streams.specs:
            fingers = profile.gripper_joint_names
            opening = functools.partial(decode_gripper, gripper_joint_names=fingers, topic=gripper_topic)
            self.joints.setdefault(gripper_topic, []).append((GRIPPER, opening, set(fingers)))

    def take(self, topic: str, msg: Any, received: int) -> list[tuple[str, Any]]:
        """(stream, value) of what was stored of a message; empty: none of it could be used.

        received: when it came, on the reader's clock [ns]; 0: no clock runs yet.
        """
        stored = []
        if topic in self.cameras:
            camera, decode = self.cameras[topic]
            stored = self._store(camera, decode, msg, received, S.CAMERA_BAD)
            if stored:
                self.frames[camera] = msg.header.frame_id
        for stream, read, joints in self.joints.get(topic, ()):
            # A message without any of our joints is another sender's on a shared topic. Before the first other
            # message it is reported: the robot profile may be of another robot.
            if stream not in self._received or not joints.isdisjoint(msg.name):
                stored += self._store(stream, read, msg, received, S.JOINTS_BAD)
            else:
                self._others[stream] = list(msg.name)
        return stored

    def observe(self, now: int) -> Aligned | Fault:
        """The newest usable set at time now [ns]."""
        for fault in list(self._faults.values()):
            return fault
        found = self.streams.align(now)
        if isinstance(found, Missing):
            codes = _CAMERA if self.streams.specs[found.stream].leads else _JOINTS
            others = self._others.get(found.stream)
            hint = f'; messages on its topic now have the joints {others}' if others else ''
            return Fault(codes[found.reason], found.message + hint)
        return found

    def _store(
        self, stream: str, read: Callable[[Any], Any], msg: Any, received: int, code: int
    ) -> list[tuple[str, Any]]:
        try:
            value = read(msg)
        except ValueError as error:
            self._faults[stream] = Fault(code, str(error))
            self._report(stream, str(error))
            return []
        # Stored first: a reader in another thread must not see the old value without its fault.
        try:
            note, stored = self.streams.put(stream, to_ns(msg.header.stamp), value, received), [(stream, value)]
        except ValueError as error:  # it is stamped ahead of the clock
            note, stored = str(error), []
        self._faults.pop(stream, None)
        self._received.add(stream)
        self._others.pop(stream, None)
        if note:
            self._report(stream, note)
        return stored


def stream_specs(
    profile: RobotProfile,
    cameras: Mapping[str, str],
    joint_topic: str,
    gripper_topic: str,
    *,
    camera_max_age: float = CAMERA_MAX_AGE,
    joint_max_age: float = JOINT_MAX_AGE,
    gripper_max_age: float = GRIPPER_MAX_AGE,
    settles: float = 0.0,
) -> list[StreamSpec]:
    """The streams of a robot: each camera (name -> topic), the joints, and the gripper where it has one. Ages in s.

    settles: [s] that a set waits for the joints, see StreamSpec. A gripper with a slow topic of its own delays no set.
    """
    specs = [StreamSpec(name, topic, camera_max_age, True, 'camera_max_age') for name, topic in cameras.items()]
    specs.append(StreamSpec(JOINTS, joint_topic, joint_max_age, limit='joint_max_age', settles=settles))
    if profile.gripper_joint_names:
        waits = settles if gripper_topic == joint_topic else 0.0
        specs.append(StreamSpec(GRIPPER, gripper_topic, gripper_max_age, limit='gripper_max_age', settles=waits))
    return specs
