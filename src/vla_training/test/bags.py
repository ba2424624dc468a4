"""Small bags of a made-up robot, for tests: what is in a frame tells when it was."""

import functools
from pathlib import Path

import numpy as np
from backports import zstd
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

NS = 10**9
JOINTS = ['a', 'b']
MSGS = Path(__file__).parents[2] / 'vla_msgs' / 'msg'
PROFILE = """
/**:
  ros__parameters:
    robot:
      name: toy
      base_frame: base
      tool_frame: tool
      joint_names: [a, b]
      position_lower: [-100.0, -100.0]
      position_upper: [100.0, 100.0]
      velocity: [2.0, 2.0]
      acceleration: [10.0, 10.0]
      jerk: [5000.0, 5000.0]
      tool_speed: 1.0
      home: [0.0, 0.0]
      gripper_joint_names: [f]
      gripper_max_opening: 0.08
    topics:
      joint_states: joint_states
      gripper_joint_states: joint_states
      joint_command: target_joint
      gripper_command: gripper
    cameras: [front, wrist]
    camera_topics: [front/image_raw, wrist/image_raw]
"""


def _store(own: bool = True):
    store = get_typestore(Stores.ROS2_JAZZY)
    if own:
        for name in ('Episode', 'TaskProgress'):
            store.register(get_types_from_msg((MSGS / f'{name}.msg').read_text(), f'vla_msgs/msg/{name}'))
    return store


STORE = _store()
TYPES = STORE.types


def stamp(time: float):
    nanoseconds = round(time * NS)
    return TYPES['builtin_interfaces/msg/Time'](sec=nanoseconds // NS, nanosec=nanoseconds % NS)


def header(time: float):
    return TYPES['std_msgs/msg/Header'](stamp=stamp(time), frame_id='')


def image(time: float, level: int, side: int = 16):
    pixels = np.full(side * side * 3, level, np.uint8)
    return TYPES['sensor_msgs/msg/Image'](
        header=header(time), height=side, width=side, encoding='rgb8', is_bigendian=0, step=side * 3, data=pixels
    )


def joints(time: float, names=(*JOINTS, 'f'), values=None, velocities=True):
    values = np.array([time, -time, 0.04] if values is None else values, float)
    speed = np.array([1.0, -1.0, 0.0][: len(values)]) if velocities else np.zeros(0)
    return TYPES['sensor_msgs/msg/JointState'](
        header=header(time), name=list(names), position=values, velocity=speed, effort=np.zeros(0)
    )


def text(words: str):
    return TYPES['std_msgs/msg/String'](data=words)


def numbers(*values: float):
    layout = TYPES['std_msgs/msg/MultiArrayLayout'](dim=[], data_offset=0)
    return TYPES['std_msgs/msg/Float64MultiArray'](layout=layout, data=np.array(values))


def trajectory(time: float, times, positions, names=JOINTS):
    def point(t, q):
        since = TYPES['builtin_interfaces/msg/Duration'](sec=int(t), nanosec=round(t % 1 * NS))
        none = np.zeros(0)
        kind = TYPES['trajectory_msgs/msg/JointTrajectoryPoint']
        return kind(np.array(q, float), velocities=none, accelerations=none, effort=none, time_from_start=since)

    points = [point(t, q) for t, q in zip(times, positions, strict=True)]
    return TYPES['trajectory_msgs/msg/JointTrajectory'](header=header(time), joint_names=list(names), points=points)


def clock(time: float):
    return TYPES['rosgraph_msgs/msg/Clock'](clock=stamp(time))


def truth(value: bool):
    return TYPES['std_msgs/msg/Bool'](data=value)


def episode(time: float, task: str, seed: int, instruction: str):
    return TYPES['vla_msgs/msg/Episode'](header=header(time), index=seed, task=task, seed=seed, instruction=instruction)


def progress(time: float, completed: list[str], current: str, remaining: list[str]):
    return TYPES['vla_msgs/msg/TaskProgress'](
        header=header(time), instruction='', current=current, completed=completed, remaining=remaining
    )


def level(number: int) -> int:
    """Grey level of image number n: far enough from its neighbours to be told apart after the video's coding."""
    return 20 + 6 * (number % 36)


def recording(count: int = 30, start: float = 100.0) -> list[tuple[str, object, float]]:
    """(topic, message, bag time): cameras at 10 Hz, joints and set-points at 50 Hz; joint a is the time itself."""
    found: list[tuple[str, object, float]] = [('/policy/instruction', text('take it'), start - 0.05)]
    for k in range(count * 5 + 20):
        time = start + k * 0.02 - 0.1
        found.append(('/joint_states', joints(time), time + 0.001))
        target = joints(time, JOINTS, [time + 0.5, -time], velocities=False)
        found.append(('/target_joint', target, time + 0.001))
        found.append(('/gripper', numbers(0.5), time + 0.001))
    for k in range(count):
        time = start + k * 0.1
        for camera in ('front', 'wrist'):
            found.append((f'/{camera}/image_raw', image(time, level(k)), time + 0.02))
    return sorted(found, key=lambda entry: entry[2])


def write(path: Path, entries: list[tuple[str, object, float]], storage: str = 'mcap', *, chunk: int = 4000) -> Path:
    """A bag; MCAP with a chunk per `chunk` bytes, each with a checksum. Returns the storage file."""
    plugin = StoragePlugin.MCAP if storage == 'mcap' else StoragePlugin.SQLITE3
    with Writer(path, version=8, storage_plugin=plugin) as writer:
        if storage == 'mcap':
            writer.storage.compression = 'zstd'
            checked = {int(zstd.CompressionParameter.checksum_flag): 1}
            writer.storage.compressor = functools.partial(zstd.compress, options=checked)
        connections: dict = {}
        for topic, message, time in entries:
            kind = message.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=STORE)
            writer.write(connections[topic], round(time * NS), STORE.serialize_cdr(message, kind))
            if storage == 'mcap' and writer.storage.chunk.bio.tell() > chunk:
                writer.storage.close_chunk()
    return next(p for p in path.iterdir() if p.suffix in ('.mcap', '.db3'))
