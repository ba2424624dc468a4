"""The controller manager of ros2_control: which of its controllers are active, and how they are activated again.

Its answers arrive while the node spins; no control step waits for one. Without controller_manager_msgs, without the
service or without an answer the states are unknown, and nothing is refused for that.
"""

import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from builtin_interfaces.msg import Duration
from lifecycle_msgs.msg import State
from rclpy.node import Node
from rclpy.task import Future

from vla_policy_node.ros import qos
from vla_policy_node.ros.optional import message_type
from vla_policy_node.ros.waiting import StepFailed, call

ACTIVE = 'active'
EVERY = 1.0  # [s] between two requests. A hardware error changes states without a message on ~/activity
SOON = 0.2  # [s] the same while a controller that is needed is not active
PATIENCE = 3.0  # [s] an older answer does not count: the manager hangs or is gone
_PACKAGE = 'controller_manager_msgs'


@dataclass(frozen=True)
class Controller:
    """A loaded controller. state: unconfigured, inactive, active or finalized."""

    name: str
    state: str
    commands: bool  # it needs command interfaces; a broadcaster needs none

    @property
    def active(self) -> bool:
        return self.state == ACTIVE


class ControllerManager:
    """Client of the manager called `name` (relative, or absolute).

    Raises ValueError without controller_manager_msgs; wanted_by: the user's name of what asks for it.
    """

    def __init__(self, node: Node, name: str, wanted_by: str = 'controller_manager') -> None:
        self.known: dict[str, Controller] = {}  # of the newest answer; empty while there is none
        self.answers = 0  # that were received
        self._node, self._again = node, False
        self._answer: Future | None = None  # that is awaited
        self._asked = self._answered = -PATIENCE  # [s] monotonic

        def client(kind: str, service: str) -> Any:
            return node.create_client(message_type(_PACKAGE, 'srv', kind, wanted_by), f'{name}/{service}')

        self._list = client('ListControllers', 'list_controllers')
        self._switch = client('SwitchController', 'switch_controller')
        self._hardware = client('SetHardwareComponentState', 'set_hardware_component_state')
        self.name = node.resolve_service_name(f'{name}/list_controllers').removesuffix('/list_controllers')
        try:
            changed = message_type(_PACKAGE, 'msg', 'ControllerManagerActivity', wanted_by)
        except ValueError:  # ros2_control before 4.28
            self._activity = None
        else:
            self._activity = node.create_subscription(changed, f'{name}/activity', lambda _: self.ask(), qos.LATCHED)

    @classmethod
    def find_or_none(cls, node: Node, name: str) -> 'ControllerManager | None':
        """None where controller_manager_msgs is not installed."""
        try:
            return cls(node, name)
        except ValueError:
            return None

    def close(self) -> None:
        for client in (self._list, self._switch, self._hardware):
            self._node.destroy_client(client)
        if self._activity is not None:
            self._node.destroy_subscription(self._activity)

    # ---- states, without waiting

    def ask(self) -> None:
        """Request the states now. While an answer is awaited, request them once more after it."""
        if self._answer is not None:
            self._again = True
            return
        self._asked = time.monotonic()
        if self._list.service_is_ready():
            self._answer = self._list.call_async(self._list.srv_type.Request())
            self._answer.add_done_callback(self._on_answer)

    def look(self, soon: bool) -> None:
        """Request the states when that is due. Called about every 50 ms. soon: something is not as it should be."""
        waited = time.monotonic() - self._asked
        if self._answer is not None and waited > PATIENCE:
            self._list.remove_pending_request(self._answer)
            self._answer = None
        if time.monotonic() - self._answered > PATIENCE:
            self.known = {}
        if waited >= (SOON if soon else EVERY) and self._answer is None:
            self.ask()

    def find(self, node_name: str) -> Controller | None:
        """The controller that is this node (full name); None if the manager has none, or is not known."""
        namespace, _, name = node_name.rpartition('/')
        return self.known.get(name) if namespace == self.name.rpartition('/')[0] else None

    @property
    def available(self) -> bool:
        """Whether there is a manager of this name."""
        return self._list.service_is_ready()

    # ---- with waiting

    async def refresh(self, seconds: float) -> None:
        """Request the states and wait for them. Raises StepFailed."""
        self._take(await call(self._node, self._list, self._list.srv_type.Request(), seconds))

    async def activate_hardware(self, component: str, seconds: float) -> None:
        """Configure and activate a hardware component, unless it is active. Raises StepFailed."""
        target = State(id=State.PRIMARY_STATE_ACTIVE, label=ACTIVE)
        request = self._hardware.srv_type.Request(name=component, target_state=target)
        answer = await call(self._node, self._hardware, request, seconds)
        if answer.ok:
            return
        if not answer.state.label:
            raise StepFailed(
                f'{self.name} has no hardware component {component}: set recovery.hardware to one of '
                '`ros2 control list_hardware_components`'
            )
        remedy = 'see the log of ros2_control, then call ~/recover again'
        if answer.state.id == State.PRIMARY_STATE_FINALIZED:
            remedy = 'only a new start of ros2_control brings it back'
        raise StepFailed(f'hardware component {component} could not be activated and is {answer.state.label}: {remedy}')

    async def switch_on(
        self, names: Iterable[str], seconds: float, before_commands: Callable[[], Awaitable[None]]
    ) -> list[str]:
        """Activate those that are not active: first those without command interfaces, then the others.

        before_commands: awaited between the two. Returns their names. Raises StepFailed naming those that are not
        loaded, or not active afterwards.
        """
        await self.refresh(seconds)
        names = list(names)
        if missing := [name for name in names if name not in self.known]:
            raise StepFailed(f'{self.has_no(missing)}: load and configure it, or set recovery.controllers')
        off = [c for name in names if not (c := self.known[name]).active]
        for commands in (False, True):
            if group := [c.name for c in off if c.commands is commands]:
                if commands:
                    await before_commands()
                await self._switch_on(group, seconds)
        return [c.name for c in off]

    def has_no(self, names: Iterable[str]) -> str:
        """The sentence that the manager has no controllers of these names, and which it has."""
        return f'{self.name} has no controller {", ".join(names)}, but {", ".join(self.known) or "none"}'

    # ---- inside

    async def _switch_on(self, names: list[str], seconds: float) -> None:
        # Best effort: one that another client activated meanwhile is no failure. The list afterwards decides.
        kind = self._switch.srv_type.Request
        request = kind(
            activate_controllers=names, strictness=kind.BEST_EFFORT, timeout=Duration(sec=max(1, int(seconds)))
        )
        answer = await call(self._node, self._switch, request, seconds)
        await self.refresh(seconds)
        states = {name: self.known[name].state if name in self.known else 'not loaded' for name in names}
        if still := [f'{name} (it is {state})' for name, state in states.items() if state != ACTIVE]:
            why = ' '.join(getattr(answer, 'message', '').split())
            raise StepFailed(
                f'{", ".join(still)} could not be switched on' + (f', {why}' if why else '') + ': see the log of '
                'ros2_control, then call ~/recover again'
            )

    def _on_answer(self, answer: Future) -> None:
        if answer is not self._answer:
            return
        self._answer = None
        if answer.result() is not None:
            self._take(answer.result())
        if self._again:
            self._again = False
            self.ask()

    def _take(self, response: Any) -> None:
        self.answers, self._answered = self.answers + 1, time.monotonic()
        # Claimed interfaces would show less: those of a controller that a hardware error took down are not renewed.
        self.known = {
            c.name: Controller(c.name, c.state, bool(c.required_command_interfaces)) for c in response.controller
        }
