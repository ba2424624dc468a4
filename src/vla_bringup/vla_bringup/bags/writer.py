"""Writes a rosbag2 (MCAP) whose flushed chunks can be read after a crash."""

import functools
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from backports import zstd
from rclpy.duration import Duration
from rclpy.qos import QoSProfile
from rosbags.interfaces import Connection, Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.rosbag2.errors import WriterError

from vla_core.clocks import NS

METADATA_VERSION: Literal[8] = 8  # the newest that both Humble and Jazzy read
GB = 1e9


class BagWriter:
    """A new bag. Methods except close raise OSError when the disk refuses to write."""

    def __init__(self, path: Path, keep_free: float = 0.0) -> None:
        """path: folder to make. keep_free: limit of `check_space` [byte].

        Raises ValueError when the folder exists or cannot be made.
        """
        self.path, self._keep_free = path, keep_free
        if path.exists():
            raise ValueError(f'{path} exists already: choose another path for the bag, or move it away')
        self._writer = Writer(path, version=METADATA_VERSION, storage_plugin=StoragePlugin.MCAP)
        self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        try:
            self._writer.open()
            self.check_space()
        except (OSError, WriterError) as error:
            if path.is_dir():
                shutil.rmtree(path)  # made here
            why = getattr(error, 'strerror', None) or error
            raise ValueError(f'cannot write a bag to {path}: {why}. Choose a folder with room to write') from error
        # Each chunk has a checksum, so a reader notices damage. rosbags has no setting for it.
        storage: Any = self._writer.storage
        checked = {int(zstd.CompressionParameter.checksum_flag): 1}
        storage.compressor = functools.partial(zstd.compress, options=checked)
        # The name that rosbag2 gives: `ros2 bag reindex` takes no other.
        storage.path = storage.path.rename(path / f'{path.name}_0.mcap')
        self._storage = storage
        self._open = True
        self._began = time.monotonic()
        self.messages = self.received = 0  # received: bytes of messages, before compression

    def add(self, topic: str, kind: str, definition: str, type_hash: str, offered: Sequence[QoSProfile]) -> Connection:
        """Add a topic before its first message, and return its connection. offered: QoS of its publishers."""
        return self._writer.add_connection(
            topic, kind, msgdef=definition, rihs01=type_hash, offered_qos_profiles=[bag_qos(q) for q in offered]
        )

    def write(self, connection: Connection, now: int, data: bytes) -> None:
        """Write a serialized message at bag time now [ns]."""
        self._writer.write(connection, now, data)
        self.messages += 1
        self.received += len(data)

    def flush(self) -> None:
        """End the chunk and hand it to the system, which writes it even if the process is killed."""
        if self._storage.chunk.msgs:
            self._storage.close_chunk()
        self._storage.bio.flush()

    def check_space(self) -> None:
        """Raise OSError when the disk has less free space than keep_free."""
        free = shutil.disk_usage(self.path).free
        if free < self._keep_free:
            raise OSError(f'only {free / GB:.2f} GB are free on its disk, keep_free is {self._keep_free / GB:g} GB')

    def count(self, connection: Connection) -> int:
        """Return the number of messages of a topic."""
        return self._writer.counts[connection.id]

    @property
    def summary(self) -> str:
        """Messages, bytes and rates since the bag was opened, as text."""
        size = sum(f.stat().st_size for f in self.path.iterdir()) if self.path.is_dir() else 0
        seconds = max(time.monotonic() - self._began, 1e-3)
        return (
            f'{self.messages} messages, {self.received / 1e6:.1f} MB ({self.received / 1e6 / seconds:.2f} MB/s), '
            f'{size / 1e6:.1f} MB on disk ({size / 1e6 / seconds:.2f} MB/s)'
        )

    def close(self) -> str:
        """Write index and metadata. Return '' or the reason of a failure, after which flushed chunks can be read."""
        if not self._open:
            return ''
        self._open = False
        try:
            self._writer.close()
        except OSError as error:
            try:
                self._storage.bio.close()
            except OSError:  # the disk has no space for the buffer either
                pass
            return str(error.strerror or error)
        return ''


def bag_qos(q: QoSProfile) -> Qos:
    """Return the profile in the form of the bag's metadata."""

    def time_of(duration: Duration) -> QosTime:
        return QosTime(*divmod(duration.nanoseconds, NS))

    return Qos(
        QosHistory(int(q.history)),
        q.depth,
        QosReliability(int(q.reliability)),
        QosDurability(int(q.durability)),
        time_of(q.deadline),
        time_of(q.lifespan),
        QosLiveliness(int(q.liveliness)),
        time_of(q.liveliness_lease_duration),
        q.avoid_ros_namespace_conventions,
    )
