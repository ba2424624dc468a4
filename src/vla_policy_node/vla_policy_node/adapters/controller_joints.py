"""Whether a ros2_control controller moves our joints: asked of its own parameter `joints`."""

from rcl_interfaces.srv import GetParameters
from rclpy.client import Client
from rclpy.node import Node
from rclpy.task import Future

from vla_policy_node.adapters.command_topic import CommandTopic


class ControllerJoints:
    """Asks the node that reads the command topic for its joints, once, and compares.

    The answer comes while our node spins: an activation that is refused for want of it succeeds when tried again. A
    controller without parameter services (not of ros2_control) cannot be compared and is not held up for it.
    ordered: the order counts, too.
    """

    def __init__(self, node: Node, topic: CommandTopic, joint_names: tuple[str, ...], *, ordered: bool) -> None:
        self._node, self._topic, self._ours, self._ordered = node, topic, list(joint_names), ordered
        self._controller = ''
        self._client: Client | None = None
        self._answer: Future | None = None

    def problems(self) -> list[str]:
        """One sentence when the controller has other joints, or has not answered yet."""
        listeners = self._topic.listeners()
        if not listeners or not self._can_tell(listeners[0]):
            return []
        controller = listeners[0]
        if controller != self._controller:
            self.close()
            self._controller = controller
            self._client = self._node.create_client(GetParameters, f'{controller}/get_parameters')
        if self._answer is None and self._client is not None and self._client.service_is_ready():
            self._answer = self._client.call_async(GetParameters.Request(names=['joints']))
        if self._answer is None or not self._answer.done():
            return [f'{controller} has not said yet which joints it moves: activate again']
        response = self._answer.result()
        theirs = list(response.values[0].string_array_value) if response is not None and response.values else []
        same = theirs == self._ours if self._ordered else sorted(theirs) == sorted(self._ours)
        if not theirs or same:
            return []
        return [
            f'{controller} moves the joints {theirs}, the robot profile has {self._ours}'
            f'{" in this order" if self._ordered else ""}: set its parameter joints, or take another profile'
        ]

    def close(self) -> None:
        if self._client is not None:
            self._node.destroy_client(self._client)
        self._client = self._answer = None
        self._controller = ''

    def _can_tell(self, controller: str) -> bool:
        namespace, _, name = controller.rpartition('/')
        services = self._node.get_service_names_and_types_by_node(name, namespace or '/')
        return any(service == f'{controller}/get_parameters' for service, _ in services)
