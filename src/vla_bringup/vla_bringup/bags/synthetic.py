"""Writing a synthetic bag of a simulated robot: input of tests and of ./vla bench replay."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from vla_core.clocks import NS
from vla_core.profile import profile_parameters

ROBOT = 'sim_panda'
SIDE, IMAGE_RATE, JOINT_RATE = 256, 30, 100  # [pixel], [Hz], [Hz]
SCENES = 8  # number of different images


def write_bag(
    path: Path,
    seconds: float,
    *,
    compressed: bool,
    storage: str = 'mcap',
    side: int = SIDE,
    change: Callable[[str, int, Any], Any] = lambda topic, k, message: message,
    received: Callable[[int], int] = lambda ns: ns,
    clock: Callable[[int], int | None] | None = None,
) -> None:
    """Write a synthetic bag of the simulated robot: cameras at 30 Hz, joints at 100 Hz, images with noise.

    seconds: length of the bag. side: of the images [pixel]. change(topic, number, message) returns the message to
    write, or None for none. received(time [ns]) returns the time on the recorder's clock [ns]. clock(time [ns]) returns
    the time of a /clock at 100 Hz [ns], or None for no message; without clock the bag has no /clock.
    """
    store = get_typestore(Stores.ROS2_HUMBLE)
    types = store.types
    parameters = profile_parameters(ROBOT)
    robot = parameters['robot']
    names = [*robot['joint_names'], *robot['gripper_joint_names']]
    pictures = _pictures(side)

    def header(ns: int) -> Any:
        stamp = types['builtin_interfaces/msg/Time'](sec=ns // NS, nanosec=ns % NS)
        return types['std_msgs/msg/Header'](stamp=stamp, frame_id='camera')

    def image(ns: int, k: int) -> Any:
        if compressed:
            data = np.frombuffer(pictures[k % SCENES][1], np.uint8)
            return types['sensor_msgs/msg/CompressedImage'](header=header(ns), format='jpeg', data=data)
        return types['sensor_msgs/msg/Image'](
            header=header(ns), height=side, width=side, encoding='rgb8', is_bigendian=0, step=3 * side,
            data=pictures[k % SCENES][0].ravel(),
        )  # fmt: skip

    def joints(ns: int) -> Any:
        t = ns / NS
        q = np.array([*(np.array(robot['home']) + 0.3 * np.sin(t)), 0.02, 0.02])
        v = np.array([*np.full(len(robot['home']), 0.3 * np.cos(t)), 0.0, 0.0])
        return types['sensor_msgs/msg/JointState'](
            header=header(ns), name=names, position=q, velocity=v, effort=np.zeros(0)
        )

    topics = [f'/{t}/compressed' if compressed else f'/{t}' for t in parameters['camera_topics']]
    start = 100 * NS
    entries: list[tuple[int, str, int]] = [
        (start + k * NS // JOINT_RATE, '/joint_states', k) for k in range(int(seconds * JOINT_RATE))
    ]
    for k in range(int(seconds * IMAGE_RATE)):
        entries += [(start + k * NS // IMAGE_RATE, topic, k + i) for i, topic in enumerate(topics)]
    if clock is not None:
        entries += [(start - 1 + k * NS // JOINT_RATE, '/clock', k) for k in range(int(seconds * JOINT_RATE))]
    plugin = StoragePlugin.MCAP if storage == 'mcap' else StoragePlugin.SQLITE3
    with Writer(path, version=8, storage_plugin=plugin) as writer:
        connections: dict[str, Any] = {}
        for ns, topic, k in sorted(entries):
            if clock is not None and topic == '/clock':
                now = clock(ns)
                message = None if now is None else types['rosgraph_msgs/msg/Clock'](clock=header(now).stamp)
            else:
                message = change(topic, k, joints(ns) if topic == '/joint_states' else image(ns, k))
            if message is None:
                continue
            kind = message.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=store)
            writer.write(connections[topic], received(ns) + 1_000_000, store.serialize_cdr(message, kind))


def _pictures(side: int) -> list[tuple[np.ndarray, bytes]]:
    """Return pixels (side, side, 3) uint8 and JPEG of smooth images with the noise of a camera."""
    rng, found = np.random.default_rng(0), []
    for _ in range(SCENES):
        small = Image.fromarray(rng.integers(0, 256, (side // 16, side // 16, 3)).astype(np.uint8))
        smooth = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC)).astype(int)
        pixels = (smooth + rng.integers(-6, 7, smooth.shape)).clip(0, 255).astype(np.uint8)
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, 'JPEG', quality=90)
        found.append((pixels, data.getvalue()))
    return found
