"""Topics that are subscribed to only while somebody needs them. They store bytes; what is looked at is decoded then."""

import struct
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.serialization import deserialize_message

LOOK = 8  # messages that are looked at in search of one that fits, and kept decoded
MOST = 64_000_000  # [bytes] of messages that a source keeps


def stamp_of(data: bytes) -> int:
    """[ns] of a serialized message that begins with a std_msgs/Header, read without decoding the message.

    XCDR: four bytes of which the second says the byte order, then sec (int32) and nanosec (uint32).
    """
    sec, nanosec = struct.unpack_from('<iI' if data[1] & 1 else '>iI', data, 4)
    return sec * 1_000_000_000 + nanosec


class Source:
    """One topic. keep: how many of its newest messages, fewer where they would be more than 64 MB; stamped: they begin
    with a header, whose stamp is wanted.

    Joint states come a thousand times a second, images with megabytes: none of them is decoded before it is needed.
    """

    def __init__(
        self, node: Node, kind: Any, topic: str, profile: QoSProfile, *, keep: int = 1, stamped: bool = False
    ) -> None:
        self.topic = topic
        self._node, self._kind, self._profile, self._stamped, self._keep = node, kind, profile, stamped, keep
        self._raw: deque[tuple[int, bytes]] = deque()  # stamp [ns], or 0; as they came
        self._size = 0  # [bytes] of all that
        self._users = 0
        self._subscription: Any = None
        self._decoded: dict[int, Any] = {}  # id of the bytes -> message; of the last few that were looked at

    def open(self) -> None:
        """One user more."""
        self._users += 1
        if self._subscription is None:
            self._subscription = self._node.create_subscription(
                self._kind, self.topic, self._store, self._profile, raw=True
            )

    def close(self) -> None:
        """One user less; with the last one the subscription ends, and what was stored is forgotten."""
        self._users -= 1
        if self._users == 0:
            self._node.destroy_subscription(self._subscription)
            self._subscription = None
            self._forget()

    def _forget(self) -> None:
        self._raw.clear()
        self._decoded.clear()
        self._size = 0

    def _store(self, data: bytes) -> None:
        stamp = stamp_of(data) if self._stamped else 0
        if self._raw and stamp < self._raw[-1][0] - 1_000_000_000:
            self._forget()  # the sender's clock went back
        self._raw.append((stamp, data))
        self._size += len(data)
        while len(self._raw) > self._keep or (self._size > MOST and len(self._raw) > 1):
            self._size -= len(self._raw.popleft()[1])

    @property
    def newest(self) -> Any:
        """The message that came last; None: none yet."""
        return self._decode(self._raw[-1][1]) if self._raw else None

    @property
    def stamps(self) -> list[int]:
        """[ns] of what is kept, as they came."""
        return [stamp for stamp, _ in self._raw]

    def nearest(self, time: int) -> Any:
        """The kept message whose stamp is closest to time [ns]; None: none yet."""
        if not self._raw:
            return None
        return self._decode(min(self._raw, key=lambda item: abs(item[0] - time))[1])

    def as_of(self, time: int, fits: Callable[[Any], bool]) -> Any:
        """The newest that is not newer than time [ns] and that fits, of the last few before it; None: none."""
        items = list(self._raw)
        end = bisect_right([stamp for stamp, _ in items], time)
        for _, data in reversed(items[max(end - LOOK, 0) : end]):
            message = self._decode(data)
            if fits(message):
                return message
        return None

    def _decode(self, data: bytes) -> Any:
        key = id(data)
        found = self._decoded.get(key)
        if found is None or found[0] is not data:
            while len(self._decoded) >= LOOK:
                del self._decoded[next(iter(self._decoded))]
            found = self._decoded[key] = data, deserialize_message(data, self._kind)
        return found[1]
