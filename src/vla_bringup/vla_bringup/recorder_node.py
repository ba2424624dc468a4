"""Writes a rosbag2 (MCAP) of the robot's topics: what `ros2 bag record` does, where there is no rosbag2."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from backports import zstd
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.topic_endpoint_info import TopicEndpointInfo
from rosbags.interfaces import Connection, Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

from vla_bringup.message_types import MessageTypes, message_class
from vla_policy_node.ros.parameters import declare
from vla_policy_node.ros.run import run

# Everything in docs/reference/interfaces.md whose name is not up to the robot profile.
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
    'policy/plan_text',
    'policy/predicted_image',
    'sim/episode',
    'sim/task',
    'sim/success',
    'sim/missed',
    'sim/wrong_object',
    'expert/progress',
)
PRIVILEGED_TOPICS = ('sim/objects',)
METADATA_VERSION: Literal[8] = 8  # the newest that both Humble and Jazzy read
DEPTH = 100  # messages per topic that may wait while the disk is busy
LOOK = 0.1  # [s] between two looks at the graph


class RecorderNode(Node):
    """Subscribes to each topic of its list as soon as somebody publishes it, and writes the bytes as they come.

    Bag time is the node's clock: simulation time with use_sim_time. The bag is complete once the node is destroyed.
    """

    def __init__(self, name: str = 'recorder', **kwargs) -> None:
        super().__init__(name, **kwargs)
        path = Path(declare(self, 'path', Parameter.Type.STRING, 'folder of the bag; must not exist', read_only=True))
        topics = declare(self, 'topics', self._robot_topics(), 'topics to record', read_only=True)
        if declare(self, 'privileged', False, 'record what only the simulator knows, too', read_only=True):
            topics = [*topics, *PRIVILEGED_TOPICS]
        self._wanted = {self.resolve_topic_name(topic) for topic in topics}
        self._types = MessageTypes()
        self._recorded: dict[str, Connection] = {}
        self._refused: set[str] = set()
        self._early: list[tuple[Connection, bytes]] = []  # what came before the clock ran
        self._count = 0
        if path.exists():
            raise ValueError(f'{path} exists already: choose another path for the bag, or move it away')
        self._writer = Writer(path, version=METADATA_VERSION, storage_plugin=StoragePlugin.MCAP)
        self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        self._writer.open()
        # Each chunk gets a checksum: damage is noticed when it is read. rosbags has no setting for it.
        storage: Any = self._writer.storage
        storage.compressor = functools.partial(zstd.compress, options={int(zstd.CompressionParameter.checksum_flag): 1})
        self._closed = False
        self._path = path
        # Not on the node's clock: simulation time may not run yet.
        self.create_timer(LOOK, self._look, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _robot_topics(self) -> list[str]:
        """The default list; names of the robot's own topics are the robot profile's."""
        joints = declare(self, 'topics.joint_states', 'joint_states', 'measured joints (JointState)')
        fingers = declare(self, 'topics.gripper_joint_states', joints, 'measured fingers (JointState)')
        command = declare(self, 'topics.joint_command', 'target_joint', 'input of the joint controller')
        gripper = declare(
            self,
            'topics.gripper_command',
            'gripper/gripper_position_controller/commands',
            'input of the gripper, 0 closed .. 1 open',
        )
        images = declare(self, 'camera_topics', ['front/image_raw', 'wrist/image_raw'], 'images, in order of cameras')
        infos = [image.rsplit('/', 1)[0] + '/camera_info' for image in images]
        return list(dict.fromkeys([joints, fingers, command, gripper, *images, *infos, *FIXED_TOPICS]))

    def _look(self) -> None:
        for topic in sorted(self._wanted - self._recorded.keys() - self._refused):
            publishers = self.get_publishers_info_by_topic(topic)
            if not publishers:
                continue
            try:
                self._record(topic, publishers)
            except ValueError as error:
                self._refused.add(topic)
                self.get_logger().error(f'{topic} is not recorded: {error}')

    def _record(self, topic: str, publishers: Sequence[TopicEndpointInfo]) -> None:
        kind, *others = {p.topic_type for p in publishers}
        if others:
            raise ValueError(f'it is published with several types: {kind}, {", ".join(others)}')
        offered = [p.qos_profile for p in publishers]
        definition, type_hash = self._types.full_definition(kind), self._types.type_hash(kind)
        connection = self._writer.add_connection(
            topic, kind, msgdef=definition, rihs01=type_hash, offered_qos_profiles=[bag_qos(q) for q in offered]
        )
        qos = matching_qos(offered)
        write = functools.partial(self._write, connection)
        self.create_subscription(message_class(kind), topic, write, qos, raw=True)
        self._recorded[topic] = connection
        self.get_logger().info(f'recording {topic} ({kind}, {qos.reliability.name.lower()})')

    def _write(self, connection: Connection, data: bytes) -> None:
        now = self.get_clock().now().nanoseconds
        self._early.append((connection, data))
        if now > 0:  # else use_sim_time is set and no /clock has come yet
            self._flush(now)

    def _flush(self, now: int) -> None:
        for connection, data in self._early:
            self._writer.write(connection, now, data)
        self._count += len(self._early)
        self._early.clear()

    def destroy_node(self) -> None:
        if not self._closed:
            self._closed = True
            self._flush(self.get_clock().now().nanoseconds)
            self._writer.close()
            missing = sorted(self._wanted - self._recorded.keys())
            self.get_logger().info(
                f'{self._path}: {self._count} messages of {len(self._recorded)} topics'
                + (f'; never published: {", ".join(missing)}' if missing else '')
            )
        super().destroy_node()


def matching_qos(offered: Sequence[QoSProfile]) -> QoSProfile:
    """The strictest profile that every publisher satisfies, so that nothing is lost and latched messages come."""
    reliable = all(q.reliability is ReliabilityPolicy.RELIABLE for q in offered)
    latched = all(q.durability is DurabilityPolicy.TRANSIENT_LOCAL for q in offered)
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=DEPTH,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )


def bag_qos(q: QoSProfile) -> Qos:
    """The same profile as the bag keeps it."""

    def time(duration: Duration) -> QosTime:
        return QosTime(*divmod(duration.nanoseconds, 1_000_000_000))

    return Qos(
        QosHistory(int(q.history)),
        q.depth,
        QosReliability(int(q.reliability)),
        QosDurability(int(q.durability)),
        time(q.deadline),
        time(q.lifespan),
        QosLiveliness(int(q.liveliness)),
        time(q.liveliness_lease_duration),
        q.avoid_ros_namespace_conventions,
    )


def main(args: list[str] | None = None) -> None:
    run(RecorderNode, args)


if __name__ == '__main__':
    main()
