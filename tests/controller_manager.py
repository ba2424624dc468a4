"""Stand-in for the controller manager of ros2_control with the controllers of a Franka.

It does what controller_manager 4.46.0 did with franka_msgs 3.4.0, as measured and as read in the files named below.
"""

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path

from lifecycle_msgs.msg import State
from rclpy.action import ActionServer
from rclpy.qos import DurabilityPolicy, QoSProfile

MESSAGES = Path(__file__).parent / 'ros2_control'


def _imported(*names):
    """Modules of MESSAGES, which no other test finds: elsewhere these packages are not installed."""
    sys.path.insert(0, str(MESSAGES))
    before = set(sys.modules)
    try:
        return [importlib.import_module(name) for name in names]
    finally:
        sys.path.remove(str(MESSAGES))
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], '__file__', '')).startswith(str(MESSAGES)):
                del sys.modules[name]


json_types, services, messages, franka, franka_actions = _imported(
    'json_types', 'controller_manager_msgs.srv', 'controller_manager_msgs.msg', 'franka_msgs.msg', 'franka_msgs.action'
)
SwitchController, FrankaRobotState = services.SwitchController, franka.FrankaRobotState
ErrorRecovery = franka_actions.ErrorRecovery
IDLE, MOVE, REFLEX = 1, 2, 4  # robot_mode of franka_msgs/FrankaRobotState 3.4.0
COMPONENT = 'FrankaHardwareInterface'  # franka_hardware/ros2_control/franka_arm.ros2_control.xacro, no prefix
IDS = {'unconfigured': State.PRIMARY_STATE_UNCONFIGURED, 'inactive': State.PRIMARY_STATE_INACTIVE}
IDS |= {'active': State.PRIMARY_STATE_ACTIVE, 'finalized': State.PRIMARY_STATE_FINALIZED}


@dataclass
class Controller:
    """Claimed interfaces are what the manager lists; they can be out of date."""

    kind: str
    commands: tuple[str, ...] = ()  # command interfaces that it requires
    state: str = 'inactive'
    claimed: tuple[str, ...] = ()


class ControllerManager:
    """make_node(name): the nodes it needs. controllers: by name. All use one hardware component."""

    def __init__(self, make_node, controllers, publishes_activity=True):
        self.controllers, self.hardware, self.mode = controllers, 'active', IDLE
        self.switches, self.recoveries = [], 0  # what was asked of it
        self.recovery_fails = self.activation_fails = False
        node = self.node = make_node('controller_manager')
        node.create_service(services.ListControllers, '~/list_controllers', self._list)
        node.create_service(SwitchController, '~/switch_controller', self._on_switch)
        node.create_service(services.SetHardwareComponentState, '~/set_hardware_component_state', self._on_hardware)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        # controller_manager.cpp, init_controller_manager. Before 4.28 there is no such topic.
        self._activity = None
        if publishes_activity:
            self._activity = node.create_publisher(messages.ControllerManagerActivity, '~/activity', latched)
        # franka_action_server.cpp: a node of the hardware component, alive while the component is not active
        self._actions = make_node('action_server')
        self._server = ActionServer(self._actions, ErrorRecovery, '~/error_recovery', self._recover)
        self.publish_activity()

    def close(self):
        self._server.destroy()

    def active(self, name):
        return self.controllers[name].state == 'active'

    def publish_activity(self):
        if self._activity is not None:
            self._activity.publish(messages.ControllerManagerActivity())

    # ---- what happens to it

    def fail(self, mode=REFLEX):
        """One read() of the hardware fails.

        franka_hardware_interface.cpp, read: ERROR on a ControlException. controller_manager.cpp, read: the controllers
        that use it are deactivated, broadcasters included; nothing is published on ~/activity, and the claimed
        interfaces stay listed. hardware_component.cpp, error, with LifecycleNodeInterface::on_error: unconfigured.
        """
        self.mode, self.hardware = mode, 'unconfigured'
        for controller in self.controllers.values():
            if controller.state == 'active':
                controller.state = 'inactive'

    def switch(self, activate=(), deactivate=(), strictness=SwitchController.Request.STRICT):
        """controller_manager.cpp, switch_controller_cb: whether it went well, and the message."""
        strict = strictness == SwitchController.Request.STRICT
        wanted = {'activate': [], 'deactivate': []}
        for action, names in (('deactivate', deactivate), ('activate', activate)):
            good = True
            for name in names:
                if name in self.controllers:
                    wanted[action].append(name)
                    good = True
                else:
                    good = not strict and bool(wanted[action])
                    problem = f"Could not {action} controller with name '{name}' because no controller with this name"
                    if strict:
                        break
            if not good:
                return False, f'{problem} exists'
        for name in list(wanted['activate']):
            state = self.controllers[name].state
            if state == 'inactive' or (state == 'active' and name in wanted['deactivate']):
                continue
            why = 'already active' if state == 'active' else f'in {state!r} state'
            if strict:
                return False, f"Controller with name '{name}' is {why}."
            wanted['activate'].remove(name)
        for name in list(wanted['deactivate']):
            if self.controllers[name].state != 'active':
                if strict:
                    return False, f"Controller with name '{name}' can not be deactivated since it is not active."
                wanted['deactivate'].remove(name)
        if not wanted['activate'] and not wanted['deactivate']:
            return True, 'After checking the controllers, no controllers need to be activated or deactivated.'
        # check_for_interfaces_availability_to_activate: an error whatever the strictness
        taken = {
            i for n, c in self.controllers.items() if c.state == 'active' and n not in wanted['deactivate']
            for i in c.commands
        }  # fmt: skip
        for name in wanted['activate']:
            if self.hardware != 'active':
                return False, f"Unable to activate controller '{name}' since the state interface is not available."
            if both := taken & set(self.controllers[name].commands):
                return False, (
                    f"Unable to activate controller '{name}' since the command interface '{min(both)}' is currently "
                    'claimed by another controller.'
                )
        for name in wanted['deactivate']:
            self.controllers[name].state = 'inactive'
        for name in wanted['activate']:
            self.controllers[name].state = 'active'
        for controller in self.controllers.values():  # evaluate_switch_result
            controller.claimed = controller.commands if controller.state == 'active' else ()
        self.publish_activity()
        return True, 'Successfully switched controllers!'

    # ---- services

    def _list(self, request, response):
        return json_types.answer(
            response,
            controller=[
                {
                    'name': name,
                    'type': c.kind,
                    'state': c.state,
                    'claimed_interfaces': list(c.claimed),
                    'required_command_interfaces': list(c.commands) if c.state in ('active', 'inactive') else [],
                }
                for name, c in self.controllers.items()
            ],
        )

    def _on_switch(self, request, response):
        asked = json_types.fields_of(request)
        self.switches.append(asked.activate_controllers)
        ok, message = self.switch(asked.activate_controllers, asked.deactivate_controllers, asked.strictness)
        return json_types.answer(response, ok=ok, message=message)

    def _on_hardware(self, request, response):
        """resource_manager.cpp, set_component_state; controller_manager.cpp, set_hardware_component_state_srv_cb."""
        asked = json_types.fields_of(request)
        if asked.name != COMPONENT:
            return json_types.answer(response, ok=False, state={'id': 0, 'label': ''})
        good = self.hardware != 'finalized' and not self.activation_fails
        if good:
            self.hardware = asked.target_state.label
        self.publish_activity()
        return json_types.answer(response, ok=good, state={'id': IDS[self.hardware], 'label': self.hardware})

    def _recover(self, goal):
        """franka_action_server.cpp, errorRecoveryAction."""
        self.recoveries += 1
        if self.recovery_fails:
            goal.abort()
        else:
            self.mode = IDLE
            goal.succeed()
        return ErrorRecovery.Result()
