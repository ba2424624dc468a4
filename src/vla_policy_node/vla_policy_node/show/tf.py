"""Collect /tf and /tf_static in a tree, while an output needs it."""

from typing import Any

import numpy as np
from rclpy.node import Node
from tf2_msgs.msg import TFMessage

from vla_core.clocks import Arrivals
from vla_core.kinematics.frames import Frames
from vla_policy_node.ros import qos
from vla_policy_node.ros.chunk_msg import to_ns


class Tf:
    """Opened and closed as a Source."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._users = 0
        self._subscriptions: list[Any] = []
        self.frames, self._arrivals = Frames(), Arrivals()

    def open(self) -> None:
        self._users += 1
        if not self._subscriptions:
            self._subscriptions = [
                self._node.create_subscription(TFMessage, '/tf', self._on_moving, qos.CHANGES),
                self._node.create_subscription(TFMessage, '/tf_static', self._on_fixed, qos.LATCHED_BY_MANY),
            ]

    def close(self) -> None:
        self._users -= 1
        if self._users == 0:
            for subscription in self._subscriptions:
                self._node.destroy_subscription(subscription)
            self._subscriptions = []
            self.frames.clear()
            self._arrivals = Arrivals()

    def _on_moving(self, msg: TFMessage) -> None:
        if self._arrivals.take(self._node.get_clock().now().nanoseconds):
            self.frames.set_back()
        self._put(msg, fixed=False)

    def _on_fixed(self, msg: TFMessage) -> None:
        self._put(msg, fixed=True)

    def _put(self, msg: TFMessage, fixed: bool) -> None:
        now = self._node.get_clock().now().nanoseconds
        for transform in msg.transforms:
            t, q = transform.transform.translation, transform.transform.rotation
            try:
                self.frames.put(
                    transform.header.frame_id,
                    transform.child_frame_id,
                    now if fixed else to_ns(transform.header.stamp),
                    np.array([q.w, q.x, q.y, q.z]),
                    np.array([t.x, t.y, t.z]),
                    fixed,
                )
            except ValueError as error:
                self._node.get_logger().error(str(error), throttle_duration_sec=10.0)
