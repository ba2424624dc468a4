"""franka_ros2: what mode the robot is in, and the way back after it stopped itself."""

import time
from typing import Any

from action_msgs.msg import GoalStatus
from lifecycle_msgs.msg import State
from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node

from vla_policy_node.ros import qos
from vla_policy_node.ros.optional import message_type
from vla_policy_node.ros.waiting import StepFailed, act, appeared, call

MODES = ('OTHER', 'IDLE', 'MOVE', 'GUIDING', 'REFLEX', 'USER_STOPPED', 'AUTOMATIC_ERROR_RECOVERY')
MAY_MOVE = ('IDLE', 'MOVE')
_ADVICE = {
    'REFLEX': 'it hit something or a limit: look, then call ~/recover',
    'USER_STOPPED': 'release the stop button, then call ~/recover',
    'GUIDING': 'it is guided by hand: when done, call ~/resume',
}
SILENT = 0.5  # [s] of wall time without a state, and nobody knows what the robot does


class _Polled(CallbackGroup):
    """Its subscriptions are never served by the executor, only read when somebody looks.

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

    def problem(self) -> str:
        """One sentence when the robot's mode forbids motion, or is not known; '' when it may move."""
        while taken := self._subscription.handle.take_message(self._subscription.msg_type, False):
            number = int(taken[0].robot_mode)
            self._mode = MODES[number] if number < len(MODES) else f'number {number}'
            self._heard = time.monotonic()
        topic = self._subscription.topic_name
        if time.monotonic() - self._heard > SILENT:
            return f'no robot state on {topic} for {SILENT} s: is franka_robot_state_broadcaster active?'
        if not self._mode:
            return f'no robot state on {topic} yet'
        if self._mode in MAY_MOVE:
            return ''
        return f'the robot is in mode {self._mode}: {_ADVICE.get(self._mode, "when it is over, call ~/recover")}'

    def close(self) -> None:
        self._node.destroy_subscription(self._subscription)


class Recovery:
    """The steps of franka_ros2 after a reflex: error recovery, hardware active, controllers on, robot ready.

    action: of the ErrorRecovery. hardware: name of the ros2_control component. controllers: to be switched on; empty
    names count for none. seconds: for each step. Raises ValueError naming the package that is not installed.
    """

    def __init__(
        self, node: Node, state: FrankaState, *, action: str, hardware: str, controllers: list[str], seconds: float
    ) -> None:
        wanted_by = '~/recover'
        self._error_recovery = message_type('franka_msgs', 'action', 'ErrorRecovery', wanted_by)
        package = 'controller_manager_msgs'
        self._set_hardware = message_type(package, 'srv', 'SetHardwareComponentState', wanted_by)
        self._switch = message_type(package, 'srv', 'SwitchController', wanted_by)
        self._list = message_type(package, 'srv', 'ListControllers', wanted_by)
        self._node, self._state, self._action = node, state, action
        self._hardware, self._seconds = hardware, seconds
        self._controllers = [name for name in controllers if name]

    async def run(self) -> None:
        """All steps, one after the other. Raises StepFailed naming the one that failed."""
        node, seconds = self._node, self._seconds
        answer = await act(node, self._error_recovery, self._action, self._error_recovery.Goal(), seconds)
        if answer.status != GoalStatus.STATUS_SUCCEEDED:
            raise StepFailed(
                f'error recovery ended with status {answer.status}: is the stop button released, the arm unlocked?'
            )
        request = self._set_hardware.Request(name=self._hardware)
        request.target_state.id, request.target_state.label = State.PRIMARY_STATE_ACTIVE, 'active'
        name = 'controller_manager/set_hardware_component_state'
        if not (await call(node, self._set_hardware, name, request, seconds)).ok:
            raise StepFailed(f'hardware component {self._hardware} could not be activated: see the log of ros2_control')
        await self._switch_on()
        await appeared(node, lambda: not self._state.problem(), seconds, 'a mode of the robot in which it may move')

    async def _switch_on(self) -> None:
        """Those of our controllers that are not active: to switch on an active one is an error."""
        node, seconds = self._node, self._seconds
        name = 'controller_manager/list_controllers'
        known = (await call(node, self._list, name, self._list.Request(), seconds)).controller
        active = [c.name for c in known if c.state == 'active']
        wanted = [name for name in self._controllers if name not in active]
        if not wanted:
            return
        request = self._switch.Request(activate_controllers=wanted, strictness=self._switch.Request.STRICT)
        name = 'controller_manager/switch_controller'
        if not (await call(node, self._switch, name, request, seconds)).ok:
            raise StepFailed(f'{", ".join(wanted)} could not be switched on: see the log of ros2_control')
