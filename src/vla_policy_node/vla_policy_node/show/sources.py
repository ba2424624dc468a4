"""Topics that are subscribed to only while an output needs them. They store bytes, decoded when read."""

import math
import struct
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.serialization import deserialize_message

from vla_core.clocks import NS, Arrivals, Stamps

LOOK = 8  # messages that are looked at in search of one that fits, and kept decoded
MOST = 64_000_000  # [bytes] of messages that a source keeps


def stamp_of(data: bytes) -> int:
    """[ns] of a serialized message that begins with a std_msgs/Header, read without decoding the message.

    XCDR: four bytes of which the second says the byte order, then sec (int32) and nanosec (uint32).
    """
    sec, nanosec = struct.unpack_from('<iI' if data[1] & 1 else '>iI', data, 4)
    return sec * NS + nanosec


class Source:
    """One topic. keep: how many of its newest messages, fewer where they would be more than 64 MB; stamped: they begin
    with a header, whose stamp is wanted; shared: several senders publish there, each by stamps of its own.

    Stamped messages from before a clock was set back are forgotten: the clock of the node, or that of the only sender.
    Joint states come a thousand times a second, images with megabytes: none of them is decoded before it is needed.
    """

    def __init__(
        self, node: Node, kind: Any, topic: str, profile: QoSProfile,
        *, keep: int = 1, stamped: bool = False, shared: bool = False,
    ) -> None:  # fmt: skip
        self.topic = topic
        self._node, self._kind, self._profile = node, kind, profile
        self._keep, self._stamped, self._shared = keep, stamped, shared
        self._arrivals, self._sent = Arrivals(), Stamps()
        self._raw: deque[tuple[int, bytes]] = deque()  # stamp [ns], or 0; as they came
        self._size = 0  # [bytes] of all that
        self._came = math.inf  # the newest, by the monotonic clock [s]; inf: none yet
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
        self._arrivals, self._sent = Arrivals(), Stamps()
        self._raw.clear()
        self._decoded.clear()
        self._size = 0
        self._came = math.inf

    def _store(self, data: bytes) -> None:
        self._came = time.monotonic()
        stamp = stamp_of(data) if self._stamped else 0
        if self._stamped and self._set_back(stamp, self._node.get_clock().now().nanoseconds):
            self._forget()
        self._raw.append((stamp, data))
        self._size += len(data)
        while len(self._raw) > self._keep or (self._size > MOST and len(self._raw) > 1):
            self._size -= len(self._raw.popleft()[1])

    def _set_back(self, stamp: int, received: int) -> bool:
        """Whether a clock was set back before the message with this stamp and arrival [ns]."""
        ours = self._arrivals.take(received)
        # What is stamped ahead is shown as well: a picture moves no arm.
        theirs = 0.0 if self._shared else self._sent.take(stamp, received, math.inf)
        return ours > 0 or theirs > 0

    @property
    def newest(self) -> Any:
        """The message that came last; None: none yet."""
        return self._decode(self._raw[-1][1]) if self._raw else None

    @property
    def age(self) -> float:
        """[s] of wall time since the newest message came; 0: none yet."""
        return max(0.0, time.monotonic() - self._came)

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
        """The last that came of those that are not newer than time [ns] and fit, among a few of them; None: none."""
        old_enough = (data for stamp, data in reversed(self._raw) if stamp <= time)
        for data in islice(old_enough, LOOK):
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
