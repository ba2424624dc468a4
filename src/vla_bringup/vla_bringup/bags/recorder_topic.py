"""One topic of the recorder: a subscription for each offered QoS; each message is delivered once."""

import functools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from rclpy.topic_endpoint_info import TopicEndpointInfo

from vla_bringup.bags.message_types import message_class
from vla_policy_node.ros import qos
from vla_policy_node.ros.endpoints import name_or
from vla_policy_node.ros.once import Once

DEPTH = 100  # messages per subscription that may wait while the disk is busy
ENDS = 2.0  # [s] a subscription stays after the last publisher of its QoS ended, while others publish

Requested = tuple[ReliabilityPolicy, DurabilityPolicy]


class Topic:
    """Follows the publishers of a topic, which may start, end and offer different QoS.

    A subscription with the QoS of a publisher receives the most: reliable messages, and earlier latched ones. A
    stricter subscription receives no message. So there is one subscription for each offered QoS.
    """

    def __init__(self, node: Node, name: str, kind: str, take: Callable[[bytes], None]) -> None:
        """kind: message type. take is called with each serialized message.

        Raises ValueError for a type that is not installed.
        """
        self.name, self.kind = name, kind
        self._node, self._class, self._take = node, message_class(kind), take
        self._subscriptions: dict[Requested, Subscription] = {}
        self._needed: dict[Requested, float] = {}  # [s] of time.monotonic() at which a publisher offered it last
        self._lost: Counter[Requested] = Counter()
        self._once = Once()

    @property
    def lost(self) -> int:
        """Number of messages that were lost before they could be written."""
        return self._lost.total()

    @property
    def requested(self) -> str:
        """QoS of the subscriptions, as text."""
        return ' and '.join(_words(requested) for requested in self._subscriptions)

    def follow(self, publishers: Sequence[TopicEndpointInfo]) -> None:
        """Subscribe to the publishers of the recorded type that no subscription matches yet."""
        now, more = time.monotonic(), bool(self._subscriptions)
        for p in publishers:
            if p.topic_type != self.kind:
                continue
            profile = qos.matching([p.qos_profile], DEPTH)
            requested = (profile.reliability, profile.durability)
            self._needed[requested] = now
            if requested not in self._subscriptions:
                self._subscriptions[requested] = self._subscribe(requested, profile)
                if more:
                    publisher = name_or(p, 'another publisher')
                    text = f'{self.name}: {publisher} offers another QoS, {_words(requested)}: recorded as well'
                    self._node.get_logger().warning(text)

    def drop_unneeded(self) -> None:
        """End subscriptions without a publisher while other publishers exist. Must not be called in their callbacks."""
        newest = max(self._needed.values(), default=0.0)
        for requested in [a for a in self._subscriptions if newest - self._needed[a] > ENDS]:
            self._node.destroy_subscription(self._subscriptions.pop(requested))

    def _subscribe(self, requested: Requested, profile: QoSProfile) -> Subscription:
        events = qos.events(
            message_lost=functools.partial(self._on_lost, requested),
            # At once, as messages until the next search would be lost.
            incompatible_qos=lambda info: self.follow(self._node.get_publishers_info_by_topic(self.name)),
        )
        take = functools.partial(self._receive, requested)
        return self._node.create_subscription(self._class, self.name, take, profile, raw=True, event_callbacks=events)

    def _on_lost(self, requested: Requested, info: Any) -> None:
        self._lost[requested] = int(info.total_count)

    def _receive(self, requested: Requested, data: bytes) -> None:
        key = (len(data), data[:256], data[-256:])  # the first bytes have the stamp of a header
        if self._once.first(requested, key, time.monotonic()):
            self._take(data)


def _words(requested: Requested) -> str:
    return ', '.join(policy.name.lower() for policy in requested)
