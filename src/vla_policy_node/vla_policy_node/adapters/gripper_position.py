"""A gripper driven by a position topic, as crisp_controllers do: Float64MultiArray, one number, 0 closed, 1 open."""

import array

from rclpy.node import Node
from std_msgs.msg import Float64MultiArray

from vla_policy_node.ros import qos


class GripperPosition:
    """Publishes the opening when it changes, and again at every `repeat`-th call: a lost reader catches up."""

    def __init__(self, node: Node, topic: str, max_opening: float, repeat: int = 10) -> None:
        self._node = node
        self._max_opening = max_opening
        self._repeat = repeat
        self._publisher = node.create_publisher(Float64MultiArray, topic, qos.COMMAND)
        self._last: float | None = None
        self._calls = 0

    problem = ''  # a topic has no answers

    def send(self, opening: float, driven: bool) -> None:
        """opening: distance between the fingers [m]. driven: for grippers that answer."""
        self._calls += 1
        if opening == self._last and self._calls % self._repeat:
            return
        self._last = opening
        fraction = min(max(opening / self._max_opening, 0.0), 1.0)
        self._publisher.publish(Float64MultiArray(data=array.array('d', [fraction])))

    def check(self) -> list[str]:
        """One sentence when nobody listens."""
        if self._publisher.get_subscription_count():
            return []
        topic = self._publisher.topic_name
        return [f'nobody listens to {topic}: start the gripper controller, check topics.gripper_command']

    def close(self) -> None:
        self._node.destroy_publisher(self._publisher)
