"""The topic `~/instruction_in_force`: what the policy follows, wherever it came from."""

from typing import Any

from rclpy.node import Node
from std_msgs.msg import String

from vla_policy_node.ros import qos


class InstructionInForce:
    """Publishes each instruction that comes into force, from `~/instruction` or a goal: a bag keeps no goals.

    The message is latched only while the instruction is in force. Then its publisher is destroyed, so that a recorder
    that starts later does not store it.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._publisher: Any = None

    def show(self, instruction: str) -> None:
        """instruction: '' where none is in force."""
        if instruction:
            if self._publisher is None:
                self._publisher = self._node.create_publisher(String, '~/instruction_in_force', qos.LATCHED)
            self._publisher.publish(String(data=instruction))
        elif self._publisher is not None:
            self._node.destroy_publisher(self._publisher)
            self._publisher = None
