"""The topic `~/instruction`, whatever QoS its publishers offer."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSProfile
from std_msgs.msg import String

from vla_policy_node.ros import qos
from vla_policy_node.ros.once import Once


class Instructions:
    """Passes each message to `take` once.

    The subscription is latched: words from before the node came count. A publisher that is not latched, or best
    effort, sends nothing to it; from when one appears there is a second subscription.
    """

    def __init__(self, node: Node, take: Callable[[String], None]) -> None:
        self._node, self._take, self._once = node, take, Once()
        events = qos.events(incompatible_qos=self._open)
        self._subscriptions = [self._subscribe('latched', qos.LATCHED_BY_MANY, event_callbacks=events)]

    def close(self) -> None:
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)

    def _subscribe(self, name: str, profile: QoSProfile, **options: Any) -> Any:
        return self._node.create_subscription(String, '~/instruction', partial(self._came, name), profile, **options)

    def _open(self, info: Any) -> None:
        if len(self._subscriptions) == 1:
            self._node.get_logger().warning('a publisher of ~/instruction is not latched: only its new words count')
            self._subscriptions.append(self._subscribe('open', qos.SENSOR))

    def _came(self, subscription: str, msg: String) -> None:
        if self._once.first(subscription, msg.data, time.monotonic()):
            self._take(msg)
