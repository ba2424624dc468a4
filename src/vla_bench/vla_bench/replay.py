"""./vla bench replay: speed of decoding and aligning a bag, without a model; and the writer of synthetic bags."""

import io
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.table import Table
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from vla_bringup.console import make_console
from vla_bringup.machine import facts
from vla_bringup.replay.feed import Feed, load_setup
from vla_bringup.replay.offline import run_offline
from vla_bringup.replay.session import Due, Session
from vla_core.observe.streams import NS
from vla_core.profile import profile_parameters

ROBOT = 'sim_panda'
SIDE, IMAGE_RATE, JOINT_RATE = 256, 30, 100  # [pixel], [Hz], [Hz]
WANTED = 20.0  # times real time
SCENES = 8  # number of different images


@dataclass(frozen=True)
class Speed:
    """Numbers of one reading of a bag."""

    kind: str
    size: float  # [MB] of the bag
    sets: int  # complete sets that were due
    cpu: float  # [s] of this process
    wall: float  # [s]
    p50: float  # [s] per message, with decoding, storing and aligning
    p99: float


def bench_replay(seconds: float) -> bool:
    """Print the table; return whether both bags are read at WANTED times real time, by CPU time on one core.

    seconds: length of the bags.
    """
    console = make_console()
    speeds = []
    for kind in ('raw', 'jpeg'):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / kind
            console.print(f'writing {seconds:g} s with two {SIDE} x {SIDE} cameras at {IMAGE_RATE} Hz, {kind} ...')
            write_bag(path, seconds, compressed=kind == 'jpeg')
            speeds.append(read_speed(path, kind))
    table = Table('images', 'bag', 'sets', 'x real time (CPU)', 'x real time (wall)', 'per message p50', 'p99')
    for s in speeds:
        table.add_row(
            s.kind,
            f'{s.size:.0f} MB',
            str(s.sets),
            f'{seconds / s.cpu:.1f}',
            f'{seconds / s.wall:.1f}',
            f'{1e3 * s.p50:.3f} ms',
            f'{1e3 * s.p99:.3f} ms',
        )
    console.print(table)
    about = facts()
    console.print(', '.join(f'{key} {about[key]}' for key in ('processor', 'Python', 'numpy', 'rosbags')), markup=False)
    good = all(seconds / s.cpu >= WANTED for s in speeds)
    console.print(f'wanted: {WANTED:g} x real time on one core: {"reached" if good else "NOT reached"}')
    return good


def read_speed(path: Path, kind: str) -> Speed:
    """Read a bag through feed, decode and alignment; count the sets that are due at 10 Hz."""
    feed = Feed(path, load_setup(ROBOT, ''))
    session, sets = Session(feed, rate=10.0, instruction='go on'), list[int]()
    moments: list[float] = []

    def ask(due: Due) -> None:
        sets.append(due.aligned.t_ref)

    def timed() -> Any:
        for entry in Feed.__iter__(feed):
            yield entry
            moments.append(time.perf_counter())

    wall, cpu = time.perf_counter(), time.process_time()
    run_offline(timed(), session, ask)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    p50, p99 = np.percentile(np.diff(moments), [50, 99])
    size = sum(f.stat().st_size for f in path.iterdir()) / 1e6
    return Speed(kind, size, len(sets), cpu, wall, float(p50), float(p99))


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
