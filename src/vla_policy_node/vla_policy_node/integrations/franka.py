"""franka_ros2: what mode the robot is in, and the way back after it stopped itself."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from action_msgs.msg import GoalStatus
from rclpy.action import ActionClient
from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node

from vla_core.clocks import NS
from vla_core.motion.executor import ChunkExecutor
from vla_policy_node.integrations.controller_manager import ControllerManager
from vla_policy_node.integrations.needed_controllers import NeededControllers
from vla_policy_node.ros import qos
from vla_policy_node.ros.optional import message_type
from vla_policy_node.ros.parameters import declare
from vla_policy_node.ros.waiting import StepFailed, act, appeared, pause

MODES = ('OTHER', 'IDLE', 'MOVE', 'GUIDING', 'REFLEX', 'USER_STOPPED', 'AUTOMATIC_ERROR_RECOVERY')
MAY_MOVE = ('IDLE', 'MOVE')
_ADVICE = {
    'REFLEX': 'it hit something or a limit: look, then call ~/recover',
    'USER_STOPPED': 'release the stop button, then call ~/recover',
    'GUIDING': 'it is guided by hand: when done, call ~/resume',
}
SILENT = 0.5  # [s] of wall time without a state, after which the state of the robot is unknown


# [s] between fresh joint states and the arm's controller: an inactive one is sent meanwhile where the arm is.
SETTLED = 0.05


class _Polled(CallbackGroup):
    """Its subscriptions are never served by the executor, only read when a caller asks.

    The state comes 1000 times a second: waking up for each would cost a fifth of a core.
    """

    def can_execute(self, entity: Any) -> bool:
        return False

    def beginning_execution(self, entity: Any) -> bool:
        return False

    def ending_execution(self, entity: Any) -> None:
        pass


class FrankaState:
    """The robot's mode from franka_robot_state_broadcaster. Raises ValueError without franka_msgs."""

    def __init__(self, node: Node, topic: str) -> None:
        kind = message_type('franka_msgs', 'msg', 'FrankaRobotState', 'topics.robot_state')
        self._node = node
        self._subscription = node.create_subscription(kind, topic, lambda _: None, qos.SENSOR, callback_group=_Polled())
        self._mode = ''
        self._heard = time.monotonic()

    @property
    def silent(self) -> bool:
        """Whether no state came for longer than SILENT, as `problem` took them."""
        return time.monotonic() - self._heard > SILENT

    def problem(self) -> str:
        """One sentence when the robot's mode forbids motion, or is not known; '' when it may move."""
        while taken := self._subscription.handle.take_message(self._subscription.msg_type, False):
            number = int(taken[0].robot_mode)
            self._mode = MODES[number] if number < len(MODES) else f'number {number}'
            self._heard = time.monotonic()
        topic = self._subscription.topic_name
        if self.silent:
            return f'no robot state on {topic} for {SILENT} s: is franka_robot_state_broadcaster active?'
        if not self._mode:
            return f'no robot state on {topic} yet'
        if self._mode in MAY_MOVE:
            return ''
        return f'the robot is in mode {self._mode}: {_ADVICE.get(self._mode, "when it is over, call ~/recover")}'

    def close(self) -> None:
        self._node.destroy_subscription(self._subscription)


class Recovery:
    """The steps of franka_ros2 after a fault: error recovery, hardware active, controllers on, the robot ready.

    A reflex ends the control loop of libfranka. The controller manager then takes down the hardware and every
    controller that uses it, the broadcasters included: joint states and the robot's mode stop, too.

    action: of the ErrorRecovery. hardware: name of the ros2_control component. controllers: to be switched on in place
    of those that were active. seconds: for each step. Raises ValueError naming the package that is not installed.
    """

    def __init__(
        self,
        node: Node,
        core: ChunkExecutor,
        state: FrankaState,
        manager: ControllerManager,
        needed: NeededControllers,
        *,
        action: str,
        hardware: str,
        controllers: list[str],
        seconds: float,
    ) -> None:
        self._goal = message_type('franka_msgs', 'action', 'ErrorRecovery', '~/recover')
        self._node, self._core, self._state, self._manager, self._needed = node, core, state, manager, needed
        self._action, self._hardware, self._seconds = action, hardware, seconds
        self._controllers = list(controllers)
        self._client = ActionClient(node, self._goal, action)

    def close(self) -> None:
        self._client.destroy()

    async def run(self) -> str:
        """All steps in order. Returns what was switched on. Raises StepFailed naming the step that failed."""
        seconds = self._seconds
        with _step('error recovery'):
            await self._recover_errors()
        with _step('hardware'):
            await self._manager.activate_hardware(self._hardware, seconds)
        now = self._node.get_clock().now
        began = now()

        async def joint_states() -> None:
            fresh = lambda: self._fresh(now().nanoseconds, began.nanoseconds)  # noqa: E731
            with _step('joint states'):
                await self._until(fresh, lambda: self._no_joint_state(now().nanoseconds))
            await pause(self._node, SETTLED)

        with _step('controllers'):
            names = self._controllers or self._needed.to_recover()
            switched = await self._manager.switch_on(names, seconds, joint_states)
        await joint_states()
        with _step('mode'):
            await self._until(lambda: not self._state.problem(), self._state.problem)
        return f'recovered, switched on: {", ".join(switched) or "nothing, all were active"}'

    async def _recover_errors(self) -> None:
        answer = await act(self._node, self._client, self._action, self._goal.Goal(), self._seconds)
        if answer.status != GoalStatus.STATUS_SUCCEEDED:
            raise StepFailed(f'it ended with status {answer.status}: is the stop button released, the arm unlocked?')

    def _fresh(self, now: int, began: int) -> bool:
        """Whether the newest trusted joint state was stamped, and came, after `began`. Times in ns."""
        return self._core.joint_state_age(now) * NS < now - began and not self._core.joint_state_problem

    def _no_joint_state(self, now: int) -> str:
        age, hint = self._core.joint_state_age(now), self._core.joint_state_problem or self._needed.silence()
        return f'the newest that can be trusted is {age:.2f} s old' + (f': {hint}' if hint else '')

    async def _until(self, ready: Callable[[], bool], why_not: Callable[[], str]) -> None:
        """Wait. Raises StepFailed with what is wrong when the time of a step is over."""
        try:
            await appeared(self._node, ready, self._seconds, '')
        except StepFailed:
            raise StepFailed(f'after {self._seconds:g} s {why_not()}') from None


_STOPPED = 'recovery stopped at'


@contextmanager
def _step(name: str) -> Iterator[None]:
    """Name the step in a StepFailed."""
    try:
        yield
    except StepFailed as error:
        if str(error).startswith(_STOPPED):  # at a step inside this one
            raise
        raise StepFailed(f'{_STOPPED} "{name}": {error}') from None


# Parameters are declared also where nothing uses them: what there is to set does not depend on what is set.
def recovery(
    node: Node,
    core: ChunkExecutor,
    state: FrankaState | None,
    manager: ControllerManager | None,
    needed: NeededControllers,
) -> Recovery | None:
    """The recovery that the parameters `recovery.*` describe; None without a robot's mode. Raises as Recovery does."""
    settings: dict[str, Any] = {
        'action': declare(node, 'recovery.action', 'action_server/error_recovery', 'ErrorRecovery of franka_ros2'),
        'hardware': declare(node, 'recovery.hardware', 'FrankaHardwareInterface', 'component of ros2_control'),
        'controllers': declare(
            node, 'recovery.controllers', [''],
            'controllers to switch on; [] or [""]: those that were active when the executor was activated',
        ),
        'seconds': declare(node, 'recovery.timeout', 10.0, 'for each step [s]', low=0.1, high=120.0),
    }  # fmt: skip
    return None if state is None or manager is None else Recovery(node, core, state, manager, needed, **settings)
