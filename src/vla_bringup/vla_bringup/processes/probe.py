"""Observes a running system with one node, which is spun only while it waits."""

import math
import time
from collections.abc import Callable
from typing import Any

import rclpy
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.action import ActionClient
from rclpy.client import Client
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

LOST = 5.0  # [s] after which the result of a transition is checked
RETRY = 0.5  # [s] between two attempts to activate a node
MATCH = 0.1  # [s] a server may discover the client later than the client it; an earlier response is lost
BRING_UP = 300.0  # [s] for the start of nodes and the motion of the arm; a dead node ends the wait
ASK_AGAIN = 1.0  # [s] without a response to a request for a state


class TransitionFailed(RuntimeError):
    """A lifecycle node refused a transition. node: its full name."""

    def __init__(self, node: str, text: str) -> None:
        super().__init__(text)
        self.node = node


class Probe:
    """A node with its own context and executor, for a with statement.

    check: called while waiting; it raises to end the wait, for example when a process ended.
    """

    def __init__(self, name: str, namespace: str = '', domain_id: int | None = None) -> None:
        self.context = rclpy.Context()
        # rclpy's signal handling is off: it would invalidate the context before the nodes are stopped.
        rclpy.init(context=self.context, domain_id=domain_id, signal_handler_options=SignalHandlerOptions.NO)
        self.node = rclpy.create_node(
            name,
            namespace=namespace,
            context=self.context,
            start_parameter_services=False,
        )
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.check: Callable[[], None] = lambda: None
        self._clients: dict[tuple[type, str], Client] = {}

    def __enter__(self) -> 'Probe':
        return self

    def __exit__(self, *_: object) -> None:
        self.executor.shutdown(timeout_sec=2.0)
        for waitable in [w for w in self.node.waitables if isinstance(w, ActionClient)]:
            waitable.destroy()  # without it the participant would stay in the domain until it is collected
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)

    def spin(self, seconds: float) -> None:
        """Process messages for this wall time [s]."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.check()
            self.executor.spin_once(timeout_sec=min(left, 0.05))

    def wait(
        self, condition: Callable[[], Any], timeout: float, what: str, each: Callable[[], None] | None = None
    ) -> Any:
        """Spin until condition() is true and return its value. each is called in every turn (20 Hz or more).

        Raises TimeoutError with the text `what` after timeout [s of wall time].
        """
        end = time.monotonic() + timeout
        while not (result := condition()):
            self.check()
            if time.monotonic() > end:
                raise TimeoutError(f'not within {timeout:.0f} s: {what}')
            if each is not None:
                each()
            self.executor.spin_once(timeout_sec=0.05)
        return result

    def call(self, kind: type, service: str, request: Any, timeout: float = 10.0, repeat: float = math.inf) -> Any:
        """Call a service and return the response. Raises TimeoutError with the name of the service.

        repeat: time without a response [s] after which the request is sent again; only for harmless repetitions.
        """
        end = time.monotonic() + timeout
        client = self._clients.get((kind, service))
        if client is None:
            client = self._clients[kind, service] = self.node.create_client(kind, service)
            self.wait(client.service_is_ready, timeout, f'service {client.srv_name} appears')
            self.spin(MATCH)
        while True:
            future = client.call_async(request)
            left = end - time.monotonic()
            try:
                self.wait(future.done, min(left, repeat), f'{client.srv_name} answers')
                return future.result()
            except TimeoutError:
                client.remove_pending_request(future)
                if left <= repeat:
                    raise

    def lifecycle_state(self, name: str, timeout: float = 5.0) -> str:
        """Return the state of a lifecycle node: unconfigured, inactive, active or finalized. name: full node name."""
        return self._state(name, timeout).label

    def _state(self, name: str, timeout: float) -> State:
        return self.call(GetState, f'{name}/get_state', GetState.Request(), timeout, ASK_AGAIN).current_state

    def transition(self, name: str, transition: int, timeout: float = 60.0) -> None:
        """Request one Transition.TRANSITION_* of a lifecycle node. Raises TransitionFailed when it refuses."""
        request = ChangeState.Request(transition=Transition(id=transition))
        end = time.monotonic() + timeout
        before = self._state(name, timeout).id
        while True:
            try:
                done = self.call(ChangeState, f'{name}/change_state', request, LOST).success
                break
            except TimeoutError:  # lost in discovery, or the node is still busy with the transition
                if self._state(name, max(end - time.monotonic(), ASK_AGAIN)).id != before:
                    return
                if time.monotonic() > end:
                    raise
        if not done:
            verb = _VERBS.get(transition, f'make transition {transition}')
            raise TransitionFailed(
                name, f'{name} could not {verb} and is {self.lifecycle_state(name)}; its log has the reason'
            )

    def bring_up(self, name: str, timeout: float = 60.0) -> None:
        """Configure and activate a lifecycle node from any state, within timeout [s].

        A node that refuses the activation, for example without a joint state, is activated again until the timeout.
        Raises TransitionFailed, or TimeoutError when the node does not respond.
        """
        end = time.monotonic() + timeout
        state = self._state(name, timeout)
        if state.id == State.PRIMARY_STATE_UNCONFIGURED:
            self.transition(name, Transition.TRANSITION_CONFIGURE, timeout)
        elif state.id not in (State.PRIMARY_STATE_INACTIVE, State.PRIMARY_STATE_ACTIVE):
            raise TransitionFailed(name, f'{name} is {state.label}: it cannot be activated from there')
        while state.id != State.PRIMARY_STATE_ACTIVE:
            try:
                return self.transition(name, Transition.TRANSITION_ACTIVATE, timeout)
            except TransitionFailed:
                if time.monotonic() > end:
                    raise
                self.spin(RETRY)


_VERBS = {
    Transition.TRANSITION_CONFIGURE: 'be configured',
    Transition.TRANSITION_ACTIVATE: 'be activated',
    Transition.TRANSITION_DEACTIVATE: 'be deactivated',
    Transition.TRANSITION_CLEANUP: 'be cleaned up',
}
