"""QoS profiles by meaning. Nodes name the purpose of a topic; no profile is written elsewhere."""

from collections.abc import Callable, Sequence
from typing import Any

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

__all__ = ['PublisherEventCallbacks', 'SubscriptionEventCallbacks']  # where they are depends on the distribution

try:
    from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import (  # type: ignore[import-not-found, no-redef]
        PublisherEventCallbacks,
        SubscriptionEventCallbacks,
    )

_LAST = HistoryPolicy.KEEP_LAST

SENSOR = QoSProfile(history=_LAST, depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
"""Images, joint states, clouds: the newest counts, a lost one is not sent again. Matches reliable publishers too."""

HISTORY = QoSProfile(history=_LAST, depth=200, reliability=ReliabilityPolicy.BEST_EFFORT)
"""Joint states that are read as of an image: those of a moment ago count, too, whatever kept the reader."""

SENSOR_OUT = QoSProfile(history=_LAST, depth=5, reliability=ReliabilityPolicy.RELIABLE)
"""For publishers of sensor data that reliable subscribers (RViz, bag recorders) should be able to match."""

COMMAND = QoSProfile(history=_LAST, depth=1, reliability=ReliabilityPolicy.RELIABLE)
"""Set-points to a controller: only the newest, and it must arrive (crisp_controllers' contract)."""

CHUNK = QoSProfile(history=_LAST, depth=5, reliability=ReliabilityPolicy.RELIABLE)
"""Action chunks: none lost, and a short burst (a stop right after a chunk) kept in order."""

LATCHED = QoSProfile(
    history=_LAST, depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)
"""State that a late joiner needs: instruction, episode, plan text, executor status."""

STATUS = QoSProfile(history=_LAST, depth=10, reliability=ReliabilityPolicy.RELIABLE)
"""Reports that are read by people and recorders."""

CHANGES = QoSProfile(history=_LAST, depth=100, reliability=ReliabilityPolicy.RELIABLE)
"""Changes of something that we keep a copy of: none may be missed."""

LATCHED_BY_MANY = QoSProfile(
    history=_LAST, depth=100, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)
"""For subscribers of a latched topic that several publish, as /tf_static: the last word of each of them."""

ANY = (
    LATCHED_BY_MANY,
    QoSProfile(history=_LAST, depth=100, reliability=ReliabilityPolicy.RELIABLE),
    QoSProfile(history=_LAST, depth=100, reliability=ReliabilityPolicy.BEST_EFFORT),
)
"""Subscriptions that together receive from each publisher the most that it offers: see EveryPublisher."""


def fits(offered: QoSProfile, requested: QoSProfile) -> bool:
    """Whether a subscription that requests this receives from a publisher that offers that.

    rclpy's qos_check_compatible takes the deadline that the graph gives for a demand; nothing here has one.
    """
    reliable = requested.reliability is not ReliabilityPolicy.RELIABLE or offered.reliability is requested.reliability
    latched = requested.durability is not DurabilityPolicy.TRANSIENT_LOCAL or offered.durability is requested.durability
    return reliable and latched


def in_words(q: QoSProfile) -> str:
    """Reliability and durability of a profile, as the logs and the graph print them."""
    words = ['reliable' if q.reliability is ReliabilityPolicy.RELIABLE else 'best effort']
    if q.durability is DurabilityPolicy.TRANSIENT_LOCAL:
        words.append('latched')
    return ' '.join(words)


def matching(offered: Sequence[QoSProfile], depth: int = 100) -> QoSProfile:
    """The strictest profile for a subscription that every one of these publishers satisfies.

    For one publisher it is what gets the most from it: reliable where it is, and what a latched one published before.
    """
    reliable = all(q.reliability is ReliabilityPolicy.RELIABLE for q in offered)
    latched = all(q.durability is DurabilityPolicy.TRANSIENT_LOCAL for q in offered)
    return QoSProfile(
        history=_LAST,
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )


def events(**callbacks: Callable[[Any], None]) -> SubscriptionEventCallbacks:
    """For create_subscription's event_callbacks: message_lost or incompatible_qos, and no line of rclpy's own."""
    return SubscriptionEventCallbacks(**callbacks, use_default_callbacks=False)
