"""Lock-step with a player of bags: the policy node acknowledges each message that it has taken."""

from builtin_interfaces.msg import Time
from rclpy.clock import JumpThreshold
from rclpy.duration import Duration
from rclpy.node import Node
from std_msgs.msg import Header

from vla_policy_node.ros import qos

ACK = '~/ack'
CLOCK, INSTRUCTION = 'clock', 'instruction'


class Lockstep:
    """Publishes on `~/ack`: frame_id is the topic as in the parameters, with the stamp of the message; or `clock` or
    `instruction`, with the node's time. Until then the player sends nothing else, so it knows all that the node knows.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._publisher = node.create_publisher(Header, ACK, qos.CHANGES)
        step = Duration(nanoseconds=1)
        self._jumps = node.get_clock().create_jump_callback(
            JumpThreshold(min_forward=step, min_backward=Duration(nanoseconds=-1), on_clock_change=False),
            post_callback=lambda _: self.took(CLOCK),
        )

    def took(self, what: str, stamp: Time | None = None) -> None:
        self._publisher.publish(Header(stamp=stamp or self._node.get_clock().now().to_msg(), frame_id=what))

    def close(self) -> None:
        self._jumps.unregister()
        self._node.destroy_publisher(self._publisher)
