"""Outputs that are published only while they have a subscriber, each at its own rate."""

from collections.abc import Callable
from typing import Any

from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSProfile

from vla_policy_node.ros.parameters import declare
from vla_policy_node.show.sources import Source

LOOK_EVERY = 0.2  # [s] between two looks at who subscribes


class Output:
    """One topic. Its sources are open, and `make` is called, while it has a subscriber; `rate` 0: there is no topic.

    make: the next message, or None where there is nothing new to show. forget: called when the last subscriber left.
    """

    def __init__(
        self,
        node: Node,
        name: str,
        kind: Any,
        profile: QoSProfile,
        rate: float,
        about: str,
        make: Callable[[], Any],
        sources: list[Source],
        forget: Callable[[], None] = lambda: None,
    ) -> None:
        rate = declare(
            node,
            f'rates.{name}',
            rate,
            f'~/{name}, {about}: most messages per second of wall time [Hz]; 0: none',
            low=0.0,
            high=60.0,
            read_only=True,
        )
        self._node, self._make, self._sources, self._forget = node, make, sources, forget
        self._period = 1 / rate if rate > 0 else 0.0
        self._publisher = node.create_publisher(kind, f'~/{name}', profile) if rate > 0 else None
        self._timer: Any = None

    def look(self) -> None:
        """Who is there."""
        wanted = self._publisher is not None and self._publisher.get_subscription_count() > 0
        if wanted and self._timer is None:
            for source in self._sources:
                source.open()
            # Of wall time: people look at a paused simulation, too, and no faster at one that runs ahead.
            self._timer = self._node.create_timer(
                self._period, self._tick, clock=Clock(clock_type=ClockType.STEADY_TIME)
            )
        elif not wanted and self._timer is not None:
            self._node.destroy_timer(self._timer)
            self._timer = None
            for source in self._sources:
                source.close()
            self._forget()

    def _tick(self) -> None:
        message = self._make()
        if message is not None and self._publisher is not None:
            self._publisher.publish(message)
