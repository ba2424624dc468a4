"""Whether a ros2_control controller moves our joints: asked of its own parameter `joints`."""

import time

from rcl_interfaces.srv import GetParameters
from rclpy.client import Client
from rclpy.node import Node, NodeNameNonExistentError
from rclpy.task import Future

from vla_policy_node.adapters.command_topic import CommandTopic
from vla_policy_node.ros.endpoints import UNKNOWN, full_name

APPEARS = 0.5  # [s] within which the parameter services of a node that was discovered are discovered, too
NAMED = 5.0  # [s] within which the name of a node is discovered after its subscription
REPEAT = 1.0  # [s] after which a request without an answer is sent again


class ControllerJoints:
    """Asks every node that reads the command topic for its joints, and compares.

    `ask` must be called often, also before the activation: the answers come while our node spins. A controller that is
    configured anew subscribes anew, and only then reads its joints anew: each subscription is asked for once. A reader
    without parameter services (not of ros2_control), or without this parameter, cannot be compared and is accepted.
    ordered: the order counts, too.
    """

    def __init__(self, node: Node, topic: CommandTopic, joint_names: tuple[str, ...], *, ordered: bool) -> None:
        self._node, self._topic, self._ours, self._ordered = node, topic, list(joint_names), ordered
        self._asked: dict[bytes, _Question] = {}  # by the subscription

    def ask(self) -> list[str]:
        """Ask the readers that are new. Returns the controllers that ended a subscription since the call before: they
        were cleaned up, and may come back with other joints."""
        readers = {bytes(e.endpoint_gid): full_name(e) for e in self._topic.hearing()}
        gone = [self._asked.pop(gid) for gid in self._asked.keys() - readers.keys()]
        for question in gone:
            question.close()
        for gid, reader in readers.items():
            if gid in self._asked and self._asked[gid].reader != reader:  # its name has come
                self._asked.pop(gid).close()
            if gid not in self._asked:
                self._asked[gid] = _Question(self._node, reader)
            self._asked[gid].ask()
        return [question.reader for question in gone if question.joints]

    def wrong(self) -> list[str]:
        """One sentence for each controller that is known to have other joints."""
        return [
            f'{question.reader} moves the joints {theirs}, the robot profile has {self._ours}'
            f'{" in this order" if self._ordered else ""}: set its parameter joints, or take another profile'
            for question in self._asked.values()
            if (theirs := question.joints) and not self._same(theirs)
        ]

    def outstanding(self) -> list[str]:
        """One sentence for each controller whose joints are not known yet."""
        return [
            f'{question.reader} has not answered yet which joints it moves: try again'
            for question in self._asked.values()
            if question.joints is None
        ]

    def problems(self) -> list[str]:
        """What speaks against activating: one sentence each."""
        self.ask()
        return self.wrong() + self.outstanding()

    def close(self) -> None:
        for question in self._asked.values():
            question.close()
        self._asked = {}

    def _same(self, theirs: list[str]) -> bool:
        return theirs == self._ours if self._ordered else sorted(theirs) == sorted(self._ours)


class _Question:
    """The parameter `joints` of one node. joints: None until it is known; [] where there is no such parameter."""

    def __init__(self, node: Node, reader: str) -> None:
        self.reader = reader
        self.joints: list[str] | None = None
        self._node, self._seen = node, time.monotonic()
        self._client: Client | None = None
        self._answer: Future | None = None
        self._sent = 0.0

    def ask(self) -> None:
        """Send the request when the service is there; again after REPEAT."""
        if self.joints is not None:
            return
        if self._client is None:
            if self._has_parameters():
                self._client = self._node.create_client(GetParameters, f'{self.reader}/get_parameters')
            elif time.monotonic() - self._seen > (NAMED if UNKNOWN in self.reader else APPEARS):
                self.joints = []
            return
        if self._answer is not None and time.monotonic() - self._sent > REPEAT:
            self._client.remove_pending_request(self._answer)
            self._answer = None
        if self._answer is None and self._client.service_is_ready():
            self._answer, self._sent = (
                self._client.call_async(GetParameters.Request(names=['joints'])),
                time.monotonic(),
            )
            self._answer.add_done_callback(self._on_answer)

    def close(self) -> None:
        if self._client is not None:
            self._node.destroy_client(self._client)
        self._client = None

    def _on_answer(self, answer: Future) -> None:
        response = answer.result()
        if response is not None:
            self.joints = list(response.values[0].string_array_value) if response.values else []

    def _has_parameters(self) -> bool:
        if UNKNOWN in self.reader:  # nothing can be asked about such a name
            return False
        namespace, _, name = self.reader.rpartition('/')
        try:
            services = self._node.get_service_names_and_types_by_node(name, namespace or '/')
        except NodeNameNonExistentError:  # its subscription was discovered before its name
            return False
        return any(service == f'{self.reader}/get_parameters' for service, _ in services)
