"""Writes a rosbag2 (MCAP) of the robot's topics, as `ros2 bag record` does; needs no rosbag2."""

import functools
import io
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image as Pillow
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.serialization import deserialize_message, serialize_message
from rclpy.topic_endpoint_info import TopicEndpointInfo
from rosbags.interfaces import Connection
from sensor_msgs.msg import CompressedImage, Image

from vla_bringup.bags.message_types import MessageTypes
from vla_bringup.bags.recorder_topic import Topic
from vla_bringup.bags.writer import GB, BagWriter
from vla_policy_node.ros.camera_info import camera_info_topic
from vla_policy_node.ros.endpoints import full_name
from vla_policy_node.ros.images import COMPRESSED, decode_image
from vla_policy_node.ros.parameters import declare
from vla_policy_node.ros.run import run

# Topics of docs/reference/interfaces.md that have a fixed name; the robot profile has the others.
FIXED_TOPICS = (
    '/tf',
    '/tf_static',
    '/clock',
    '/rosout',
    '/diagnostics',
    'robot_description',
    'action_chunk',
    'executor/status',
    'policy/status',
    'policy/instruction',
    'policy/instruction_in_force',
    'policy/plan_text',
    'policy/pointed',
    'policy/predicted_image',
    'policy/camera_info',
    'sim/episode',
    'sim/task',
    'sim/success',
    'sim/missed',
    'sim/wrong_object',
    'expert/progress',
)
PRIVILEGED_TOPICS = ('sim/objects',)
IMAGE = 'sensor_msgs/msg/Image'
LOOK = 0.1  # [s] between two searches for topics that are not recorded yet
FLUSH, REPORT = 1.0, 10.0  # [s] between two flushes, and between two lines in the log


class RecorderNode(Node):
    """Subscribes to each topic of its list as soon as it has a publisher, and writes the serialized messages.

    Publishers may start, end and return with another QoS: see Topic. A topic that cannot be recorded is reported at
    once and at the end.

    Bag time is the node's clock: simulation time with use_sim_time. The bag is complete once the node is destroyed. A
    node that is killed loses the last second and the index. When the disk fails or is full the node ends with one
    line; no other node depends on it.
    """

    def __init__(self, name: str = 'recorder', **kwargs) -> None:
        super().__init__(name, **kwargs)
        path = Path(declare(self, 'path', Parameter.Type.STRING, 'folder of the bag; must not exist', read_only=True))
        topics = declare(self, 'topics', self._robot_topics(), 'topics to record', read_only=True)
        if not topics:
            raise ValueError('parameter topics is empty: name the topics, or leave it out for the topics of the robot')
        if declare(self, 'privileged', False, 'also record the privileged topics of the simulator', read_only=True):
            topics = [*topics, *PRIVILEGED_TOPICS]
        self._quality = declare(
            self, 'jpeg_quality', 0, 'JPEG quality of images, on <topic>/compressed; 0: raw images',
            low=0, high=100, read_only=True,
        )  # fmt: skip
        minutes = declare(
            self, 'minutes', 0.0, 'duration of the recording in wall time [min]; 0: until it is stopped',
            low=0.0, high=1e5, read_only=True,
        )  # fmt: skip
        free = declare(
            self, 'keep_free', 1.0, 'the recording ends when the disk has less free space [GB]', low=0.0, high=1e5,
            read_only=True,
        )  # fmt: skip
        self._wanted = {self.resolve_topic_name(topic) for topic in topics}
        self._types = MessageTypes()
        self._recorded: dict[str, Connection] = {}
        self._topics: dict[str, Topic] = {}  # of the recorded topics
        self._refused: dict[str, str] = {}  # topic -> reason why it, or a part of it, is not recorded
        self._early: list[tuple[Connection, bytes]] = []  # received before the clock ran
        self._unreadable: Counter[str] = Counter()  # topic -> number of images that JPEG cannot have
        self._bag = BagWriter(path, free * GB)
        self._closed = False
        self._flushed = self._reported = time.monotonic()
        self._end = self._reported + 60.0 * minutes if minutes else None
        # Not on the node's clock: simulation time may not run yet.
        self.create_timer(LOOK, self._look, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _robot_topics(self) -> list[str]:
        """Declare the topics of the robot profile, and return the default list of topics."""
        joints = declare(self, 'topics.joint_states', 'joint_states', 'measured joints (JointState)')
        fingers = declare(self, 'topics.gripper_joint_states', joints, 'measured fingers (JointState)')
        command = declare(self, 'topics.joint_command', 'target_joint', 'input of the joint controller')
        gripper = declare(
            self,
            'topics.gripper_command',
            'gripper/gripper_position_controller/commands',
            'input of the gripper, 0 closed .. 1 open',
        )
        state = declare(self, 'topics.robot_state', '', 'FrankaRobotState; empty: none')
        images = declare(self, 'camera_topics', ['front/image_raw', 'wrist/image_raw'], 'images, in order of cameras')
        infos = [camera_info_topic(image) for image in images]
        own = [joints, fingers, command, gripper, *([state] if state else []), *images, *infos]
        return list(dict.fromkeys([*own, *FIXED_TOPICS]))

    def _look(self) -> None:
        for topic in sorted(self._wanted - self._recorded.keys()):
            if publishers := self.get_publishers_info_by_topic(topic):
                self._begin(topic, publishers)
        self._keep(self._housekeeping)

    def _follow_publishers(self) -> None:
        """Subscribe to new publishers of the recorded topics."""
        for name, topic in self._topics.items():
            publishers = self.get_publishers_info_by_topic(name)
            for p in publishers:
                if p.topic_type != topic.kind:
                    self._refuse(name, f'{full_name(p)} publishes {p.topic_type} there, only {topic.kind} is recorded')
            topic.follow(publishers)
            topic.drop_unneeded()

    def _refuse(self, topic: str, why: str) -> None:
        if self._refused.get(topic) != why:
            self._refused[topic] = why
            self.get_logger().error(f'{topic} is not recorded: {why}')

    def _housekeeping(self) -> None:
        now = time.monotonic()
        if now - self._flushed >= FLUSH:
            self._flushed = now
            self._follow_publishers()
            self._bag.flush()
            self._bag.check_space()
        if now - self._reported >= REPORT:
            self._reported = now
            self.get_logger().info(f'{self._bag.summary}{self._losses}')
        if self._end is not None and now >= self._end:
            self._end = None
            os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C does

    def _begin(self, topic: str, publishers: Sequence[TopicEndpointInfo]) -> None:
        kinds = sorted({p.topic_type for p in publishers})
        if len(kinds) > 1:
            self._refuse(topic, f'its publishers have several types: {", ".join(kinds)}')
            return
        jpeg = self._quality > 0 and kinds[0] == IMAGE
        written = ('sensor_msgs/msg/CompressedImage', topic + COMPRESSED) if jpeg else (kinds[0], topic)
        take: Callable[[bytes], None] = functools.partial(self._write_jpeg if jpeg else self._write, topic)
        try:
            definition, type_hash = self._types.full_definition(written[0]), self._types.type_hash(written[0])
            found = Topic(self, topic, kinds[0], take)
        except ValueError as error:
            self._refuse(topic, str(error))
            return
        offered = [p.qos_profile for p in publishers]
        self._recorded[topic] = self._bag.add(written[1], written[0], definition, type_hash, offered)
        self._topics[topic] = found
        self._refused.pop(topic, None)
        found.follow(publishers)
        self.get_logger().info(f'recording {written[1]} ({written[0]}; {found.requested})')

    @property
    def _losses(self) -> str:
        lost = {name: topic.lost for name, topic in sorted(self._topics.items()) if topic.lost}
        parts = [
            ('LOST before they could be written: ', [f'{n} of {name}' for name, n in lost.items()]),
            ('NOT READABLE: ', [f'{n} of {name}' for name, n in sorted(self._unreadable.items())]),
            ('NOT RECORDED: ', [f'{name}, {why}' for name, why in sorted(self._refused.items())]),
        ]
        return ''.join(f'; {what}{", ".join(which)}' for what, which in parts if which) or ', none lost'

    def _write_jpeg(self, topic: str, data: bytes) -> None:
        msg = deserialize_message(data, Image)
        try:
            pixels = decode_image(msg, topic)
        except ValueError as error:
            self._unreadable[topic] += 1
            self.get_logger().error(f'not recorded: {error}', throttle_duration_sec=5.0)
            return
        jpeg = io.BytesIO()
        Pillow.fromarray(pixels).save(jpeg, 'JPEG', quality=self._quality)
        # The format of image_transport's plugin: encoding of the raw image, and that of the JPEG for OpenCV.
        out = CompressedImage(header=msg.header, format=f'{msg.encoding}; jpeg compressed bgr8', data=jpeg.getvalue())
        self._write(topic, serialize_message(out))

    def _write(self, topic: str, data: bytes) -> None:
        if self._closed:
            return
        now = self.get_clock().now().nanoseconds
        self._early.append((self._recorded[topic], data))
        if now > 0:  # 0 before the first /clock with use_sim_time
            self._keep(functools.partial(self._flush_early, now))

    def _flush_early(self, now: int) -> None:
        for connection, data in self._early:
            self._bag.write(connection, now, data)
        self._early.clear()

    def _keep(self, action: Callable[[], None]) -> None:
        """Run an action on the bag. Raises SystemExit with one line if the disk refuses it."""
        if self._closed:
            return
        try:
            action()
        except OSError as error:
            self._closed = True
            unfinished = self._bag.close()
            rest = 'it can be read, without index' if unfinished else 'it is complete up to here'
            raise SystemExit(
                f'recording ended: {error.strerror or error}. {self._bag.path}: {self._bag.summary}; {rest}. '
                'Free space and start another recording; the arm is not affected'
            ) from None

    def destroy_node(self) -> None:
        if not self._closed:
            self._keep(functools.partial(self._flush_early, self.get_clock().now().nanoseconds))
            self._closed = True
            trouble = self._bag.close()
            missing = sorted(self._wanted - self._recorded.keys() - self._refused.keys())
            self.get_logger().info(
                f'{self._bag.path}: {self._bag.summary} of {len(self._recorded)} topics{self._losses}'
                + (f'; without publisher: {", ".join(missing)}' if missing else '')
                + (f'; NOT complete: {trouble}' if trouble else '')
            )
        super().destroy_node()


def main(args: list[str] | None = None) -> None:
    run(RecorderNode, args)


if __name__ == '__main__':
    main()
