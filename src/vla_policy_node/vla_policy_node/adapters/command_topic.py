"""A publisher to one controller, and who else is on its topic: the contract that every topic adapter checks."""

import numpy as np
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.topic_endpoint_info import TopicEndpointInfo

from vla_policy_node.ros.endpoints import full_name

# Nodes that read every topic of a robot and command nothing. (`ros2 topic echo` is a _ros2cli node.)
_IGNORED_SUBSCRIBERS = ('recorder', 'rosbag2', '_ros2cli', 'plotjuggler', 'foxglove_bridge', 'rosbridge')

LAST_WORD = 0.5  # [s] at most that readers are waited for at the end
_FOREVER = 2**62  # [ns] what DDS calls infinite is near 2^63


def check_finite(positions: np.ndarray, velocities: np.ndarray) -> None:
    """Raises ValueError: no controller is ever sent what is not finite."""
    if not (np.isfinite(positions).all() and np.isfinite(velocities).all()):
        raise ValueError('set-point is not finite: nothing was sent')


class CommandTopic:
    """Publishes commands of one type, and reports subscribers and competing publishers of its topic.

    controller_node: name of the node that must subscribe; empty: any node but recorders and introspection tools.
    """

    def __init__(self, node: Node, kind: type, topic: str, profile: QoSProfile, controller_node: str = '') -> None:
        self._node, self._profile, self._wanted = node, profile, controller_node
        package, name = kind.__module__.split('.')[0], kind.__name__
        self._type = f'{package}/msg/{name}'
        self._publisher = node.create_publisher(kind, topic, profile)
        self.name = self._publisher.topic_name
        self.publish = self._publisher.publish

    def listeners(self) -> list[str]:
        """Return the full names of the nodes whose subscriptions look like a controller's and match in type and QoS."""
        return [full_name(e) for e in self.hearing()]

    def hearing(self) -> list[TopicEndpointInfo]:
        """Return the subscriptions of these nodes."""
        return [e for e in self._readers() if not qos_mismatch(e, self._type)]

    def competing_publishers(self) -> list[str]:
        """Return the full names of the other nodes that publish on this topic.

        The own name is among them if a second node has it.
        """
        if self._node.count_publishers(self.name) < 2:
            return []
        names = [full_name(e) for e in self._node.get_publishers_info_by_topic(self.name)]
        ours = self._node.get_fully_qualified_name()
        if ours in names:
            names.remove(ours)
        return sorted(names)

    def problems(self, require_controller: bool) -> list[str]:
        """Return the problems that forbid sending: one sentence each, with the remedy."""
        found = []
        mismatched = [f'{full_name(e)} ({why})' for e in self._readers() if (why := qos_mismatch(e, self._type))]
        if require_controller and not self.listeners():
            controller = self._wanted or 'a controller'
            if mismatched:
                found.append(f'set-points on {self.name} do not reach {mismatched[0]}')
            else:
                found.append(
                    f'{controller} does not subscribe to {self.name}: start the controller, check topics.joint_command'
                    + (' and controller_node' if self._wanted else '')
                )
        if others := self.competing_publishers():
            found.append(f'{", ".join(others)} also publishes on {self.name}: stop all but one')
        return found

    def close(self) -> None:
        # The last message stands for ever: that the arm stands still. What a network lost can be sent again until here.
        self._publisher.wait_for_all_acked(Duration(seconds=LAST_WORD))
        self._node.destroy_publisher(self._publisher)

    def _readers(self) -> list[TopicEndpointInfo]:
        if self._node.count_subscribers(self.name) == 0:
            return []
        found = self._node.get_subscriptions_info_by_topic(self.name)
        return [e for e in found if is_controller(e, self._wanted)]


def is_controller(reader: TopicEndpointInfo, wanted: str = '') -> bool:
    """Return whether a subscriber may be the controller: the wanted node, else any that is not ignored."""
    if wanted:
        return wanted in (reader.node_name, full_name(reader))
    return not reader.node_name.startswith(_IGNORED_SUBSCRIBERS)


def qos_mismatch(reader: TopicEndpointInfo, kind: str) -> str:
    """Return why set-points of a type (pkg/msg/Type) do not reach a subscriber; empty: they do."""
    if reader.topic_type != kind:
        return f'it reads {reader.topic_type}, not {kind}: see the parameter controller'
    # Not rclpy's qos_check_compatible: it takes the deadline that the graph reports for a demand.
    if reader.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL:
        return 'its QoS asks for transient local durability: set-points are volatile'
    if 0 < reader.qos_profile.deadline.nanoseconds < _FOREVER:
        return 'its QoS asks for a deadline: set-points are offered without'
    return ''
