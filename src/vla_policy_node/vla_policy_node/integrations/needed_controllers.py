"""The controllers that the executor needs: which of them are not active, and what a person does about it."""

from collections.abc import Iterable

from rclpy.node import Node

from vla_policy_node.adapters.command_topic import CommandTopic, full_name
from vla_policy_node.integrations.controller_manager import Controller, ControllerManager

ANSWER = 0.5  # [s] that an activation waits for the states


class NeededControllers:
    """The reader of the set-points, and the publishers of what the executor reads from the robot.

    manager: None: no state is known, and nothing is reported. controller_node: the reader, where it is named. topics:
    of joint states and of the robot's mode. recovers: whether ~/recover is offered.
    """

    def __init__(
        self,
        node: Node,
        manager: ControllerManager | None,
        command: CommandTopic,
        *,
        controller_node: str,
        topics: Iterable[str],
        recovers: bool,
    ) -> None:
        self._node, self._manager, self._command = node, manager, command
        self._wanted, self._topics, self._recovers = controller_node, list(topics), recovers
        self._remembered: list[str] = []  # active when the executor was activated
        self._remember_until = -1  # which answer of the manager

    def look(self) -> None:
        """Called about every 50 ms: keeps the states fresh."""
        if self._manager is None:
            return
        off = bool(self._off_readers())
        if self._manager.known and not off and self._remember_until >= 0:
            self._remembered = [c.name for c in self._manager.known.values() if c.active]
            if self._manager.answers >= self._remember_until:
                self._remember_until = -1
        self._manager.look(soon=off)

    def ask(self) -> None:
        """Request the states now."""
        if self._manager is not None:
            self._manager.ask()

    @property
    def known(self) -> bool:
        """Whether the states are known, or cannot be."""
        return self._manager is None or bool(self._manager.known)

    @property
    def reader_off(self) -> bool:
        """Whether the controller that reads the set-points is known not to be active."""
        return bool(self._off_readers())

    async def refresh(self) -> None:
        """Request the states and wait for them, where there is a manager. Raises StepFailed when it does not answer."""
        if self._manager is not None and self._manager.available:
            await self._manager.refresh(ANSWER)

    def remember(self) -> None:
        """At activation: the controllers that are active now are those that a recovery activates again."""
        if self._manager is not None:
            self._remember_until = self._manager.answers + 1  # the newest answer may be a second old
            self._manager.ask()
            self.look()

    def to_recover(self) -> list[str]:
        """Names of the controllers that were active at the last activation. Before the first: those that we need."""
        return self._remembered or [c.name for c in (*self._readers(), *self._publishers())]

    # ---- what is wrong; '' or nothing if all is well, or not known

    def activation_problems(self) -> list[str]:
        """Why no controller will carry the set-points out: it is not active, or none has the name that is wanted."""
        if off := self._off_readers():
            return [self._sentence(off)]
        manager, name = self._manager, self._wanted.rpartition('/')[2]
        if manager is None or not self._wanted or not manager.known or self._command.listeners():
            return []
        if name not in manager.known:
            return [f'{manager.has_no([name])}: load it, or check controller_node']
        found = manager.known[name]
        return [] if found.active else [self._sentence([found])]

    def motion_problem(self) -> str:
        """Why the controller of an active executor does not carry the set-points out."""
        off = self._off_readers()
        return self._sentence(off, ' and call ~/resume') if off else ''

    def silence(self) -> str:
        """Which controllers that publish what we read from the robot are not active."""
        off = [c for c in self._publishers() if not c.active]
        if off and self._recovers and (readers := self._off_readers()):  # a hardware error takes down both
            return f'{_states(list(dict.fromkeys(off + readers)))}: look at the arm, then call ~/recover'
        return self._sentence(off) if off else ''

    # ---- inside

    def _off_readers(self) -> list[Controller]:
        readers = self._readers()
        return [] if any(c.active for c in readers) else readers

    def _readers(self) -> list[Controller]:
        if self._manager is None or not self._manager.known:
            return []
        return self._controllers(self._command.listeners())

    def _publishers(self) -> list[Controller]:
        if self._manager is None or not self._manager.known:
            return []
        names = (full_name(e) for topic in self._topics for e in self._node.get_publishers_info_by_topic(topic))
        return self._controllers(names)

    def _controllers(self, nodes: Iterable[str]) -> list[Controller]:
        assert self._manager is not None
        found = (self._manager.find(node) for node in nodes)
        return list(dict.fromkeys(c for c in found if c is not None))

    def _sentence(self, off: list[Controller], then: str = '') -> str:
        assert self._manager is not None
        at = '' if self._manager.name == '/controller_manager' else f' -c {self._manager.name}'
        names = [c.name for c in off]
        command = f'ros2 control switch_controllers{at} --activate {" ".join(names)}'
        if any(c.state != 'inactive' for c in off):
            command = f'ros2 run controller_manager spawner{at} {" ".join(names)}'
        recover = ', or call ~/recover' if self._recovers else ''
        return f'{_states(off)}: switch {"it" if len(off) == 1 else "them"} on ({command}){then}{recover}'


def _states(controllers: list[Controller]) -> str:
    return ', '.join(f'{c.name} is {c.state}' for c in controllers)
