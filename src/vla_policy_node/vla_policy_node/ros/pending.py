"""The messages that wait in the queue of a subscription."""

from collections.abc import Iterator
from typing import Any

from rclpy.subscription import Subscription


def pending(subscription: Subscription) -> Iterator[Any]:
    """Take the messages that wait now, oldest first, as the executor of rclpy takes one.

    An executor takes one message per turn, and a turn of a busy node takes longer than the period of joint states: a
    long queue would be a long delay. At most one queue of messages is taken.
    """
    for _ in range(subscription.qos_profile.depth):
        with subscription.handle:
            taken = subscription.handle.take_message(subscription.msg_type, subscription.raw)
        if taken is None:
            return
        yield taken[0]
