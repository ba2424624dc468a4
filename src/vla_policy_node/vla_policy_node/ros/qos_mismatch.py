"""A publisher and a subscription whose QoS keeps them apart are reported, with the remedy; and a topic that takes all.

DDS connects the two only if the publisher offers what the subscription requests; else no message passes.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.topic_endpoint_info import TopicEndpointInfo

from vla_policy_node.ros import qos
from vla_policy_node.ros.endpoints import name_or
from vla_policy_node.ros.once import Once


class ReportsQosMismatch(Node):
    """A node that writes one log line for each endpoint that its topics do not fit, and what to change.

    It replaces rclpy's own line, which has neither a name nor a remedy.
    """

    def create_publisher(self, msg_type: Any, topic: str, qos_profile: Any, **options: Any) -> Any:
        if options.get('event_callbacks') is None and isinstance(qos_profile, QoSProfile):
            report = partial(self._report_subscriptions, topic, qos_profile)
            options['event_callbacks'] = qos.PublisherEventCallbacks(incompatible_qos=report)
        return super().create_publisher(msg_type, topic, qos_profile, **options)

    def create_subscription(self, msg_type: Any, topic: str, callback: Any, qos_profile: Any, **options: Any) -> Any:
        if options.get('event_callbacks') is None and isinstance(qos_profile, QoSProfile):
            report = partial(self._report_publishers, topic, qos_profile)
            options['event_callbacks'] = qos.SubscriptionEventCallbacks(incompatible_qos=report)
        return super().create_subscription(msg_type, topic, callback, qos_profile, **options)

    def _report_publishers(self, topic: str, requested: QoSProfile, _: Any) -> None:
        name = self.resolve_topic_name(topic)
        found = [e for e in self.get_publishers_info_by_topic(name) if not qos.fits(e.qos_profile, requested)]
        self._log_mismatch(
            f'{name}: nothing is received from {_names(found, "a publisher")}: publish it '
            f'{qos.in_words(requested)} (QoS)'
        )

    def _report_subscriptions(self, topic: str, offered: QoSProfile, _: Any) -> None:
        name = self.resolve_topic_name(topic)
        found = [e for e in self.get_subscriptions_info_by_topic(name) if not qos.fits(offered, e.qos_profile)]
        self._log_mismatch(
            f'{name}: nothing is sent to {_names(found, "a subscription")}: subscribe {qos.in_words(offered)} (QoS)'
        )

    def _log_mismatch(self, sentence: str) -> None:
        self.get_logger().warning(sentence)


def _names(endpoints: Sequence[TopicEndpointInfo], otherwise: str) -> str:
    words = {f'{name_or(e, otherwise)}, which is {qos.in_words(e.qos_profile)}' for e in endpoints}
    return ' and '.join(sorted(words)) or f'{otherwise} with another QoS'


class EveryPublisher:
    """A topic that people and programs of all kinds publish, whatever QoS they offer; each message once.

    One subscription cannot do it: a latched one refuses publishers that are not, a volatile one misses what a latched
    publisher sent before, a best effort one may lose what is sent once. So there is one for each, and a message that
    comes by several of them is recognised by the time at which it was sent.
    """

    def __init__(self, node: Node, kind: type, topic: str, take: Callable[[Any], None]) -> None:
        self._node, self._take, self._once = node, take, Once()
        # What one of them refuses another one takes.
        silent = qos.SubscriptionEventCallbacks(incompatible_qos=lambda _: None)
        self._subscriptions = [
            node.create_subscription(kind, topic, partial(self._came, number), profile, event_callbacks=silent)
            for number, profile in enumerate(qos.ANY)
        ]

    def close(self) -> None:
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)

    def _came(self, number: int, msg: Any, info: Any) -> None:
        if self._once.first(number, (str(msg), info['source_timestamp']), time.monotonic()):
            self._take(msg)
