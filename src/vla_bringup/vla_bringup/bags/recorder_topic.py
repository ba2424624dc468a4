"""One topic of the recorder: a subscription for each QoS that its publishers offer, and each message once."""

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
ENDS = 2.0  # [s] a subscription stays when no publisher offers its QoS any more, but others publish

Asked = tuple[ReliabilityPolicy, DurabilityPolicy]


class Topic:
    """Follows the publishers of a topic that come and go, whatever QoS they offer.

    A subscription gets the most from a publisher when it asks for what that one offers: reliable where it is, and what
    a latched one published before. A stricter one gets nothing at all. So there is one for each QoS that is offered.
    """

    def __init__(self, node: Node, name: str, kind: str, take: Callable[[bytes], None]) -> None:
        """kind: type of the messages. take: is given each serialized message. Raises ValueError for a type that is
        not installed."""
        self.name, self.kind = name, kind
        self._node, self._class, self._take = node, message_class(kind), take
        self._subscriptions: dict[Asked, Subscription] = {}
        self._needed: dict[Asked, float] = {}  # when a publisher offered it last, s of time.monotonic()
        self._lost: Counter[Asked] = Counter()
        self._once = Once()

    @property
    def lost(self) -> int:
        """Messages that came and could not wait."""
        return self._lost.total()

    @property
    def asked(self) -> str:
        """What the subscriptions ask for, in words."""
        return ' and '.join(_words(asked) for asked in self._subscriptions)

    def follow(self, publishers: Sequence[TopicEndpointInfo]) -> None:
        """Subscribe to those of our type that no subscription fits yet."""
        now, more = time.monotonic(), bool(self._subscriptions)
        for p in publishers:
            if p.topic_type != self.kind:
                continue
            profile = qos.matching([p.qos_profile], DEPTH)
            asked = (profile.reliability, profile.durability)
            self._needed[asked] = now
            if asked not in self._subscriptions:
                self._subscriptions[asked] = self._subscribe(asked, profile)
                if more:
                    who = name_or(p, 'another publisher')
                    text = f'{self.name}: {who} offers another QoS, {_words(asked)}: recorded as well'
                    self._node.get_logger().warning(text)

    def drop_unneeded(self) -> None:
        """End the subscriptions whose publishers are gone while there are others. Not from one of their callbacks."""
        newest = max(self._needed.values(), default=0.0)
        for asked in [a for a in self._subscriptions if newest - self._needed[a] > ENDS]:
            self._node.destroy_subscription(self._subscriptions.pop(asked))

    def _subscribe(self, asked: Asked, profile: QoSProfile) -> Subscription:
        events = qos.events(
            message_lost=functools.partial(self._on_lost, asked),
            # At once, not at the next look: what is published meanwhile is missed.
            incompatible_qos=lambda info: self.follow(self._node.get_publishers_info_by_topic(self.name)),
        )
        came = functools.partial(self._came, asked)
        return self._node.create_subscription(self._class, self.name, came, profile, raw=True, event_callbacks=events)

    def _on_lost(self, asked: Asked, info: Any) -> None:
        self._lost[asked] = int(info.total_count)

    def _came(self, asked: Asked, data: bytes) -> None:
        key = (len(data), data[:256], data[-256:])  # with the stamp of a message that has a header
        if self._once.first(asked, key, time.monotonic()):
            self._take(data)


def _words(asked: Asked) -> str:
    return ', '.join(policy.name.lower() for policy in asked)
