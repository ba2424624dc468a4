"""The executor beside a controller manager: controllers that are not active, hardware errors, and the way back.

The manager and its controllers are a stand-in (controller_manager.py), the executor is a process.
"""

import os

import numpy as np
import pytest
import rclpy
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger

from vla_core.profile import RobotProfile
from vla_msgs.msg import ActionChunk, ExecutorStatus

from .conftest import ROBOT
from .controller_manager import MESSAGES, Controller, ControllerManager, FrankaRobotState
from .test_executor_process import LATCHED, chunk

PROFILE = RobotProfile.load(ROBOT)
ARM, JOINTS, STATE = 'joint_controller', 'joint_state_broadcaster', 'franka_robot_state_broadcaster'
PARAMETERS = {
    'collision_monitor.enabled': 'false',  # there is no robot description
    'gripper': 'none',
    'controller_node': ARM,
    'topics.robot_state': f'{STATE}/robot_state',
    'recovery.timeout': '3.0',
}
E = ExecutorStatus


class Robot:
    """An arm with three controllers. Encoders without noise: an arm that stands has the same bits."""

    def __init__(self, graph, **manager):
        self.graph, self.nodes, self.sequence, self.got = graph, [], 0, []
        self.q = PROFILE.home.copy()
        self.was_active, self.snapped_by = True, 0.0  # [rad] between the arm and the set-point at its activation
        effort = tuple(f'{name}/effort' for name in PROFILE.joint_names)
        controllers = {
            JOINTS: Controller('joint_state_broadcaster/JointStateBroadcaster', state='active'),
            STATE: Controller('franka_robot_state_broadcaster/FrankaRobotStateBroadcaster', state='active'),
            ARM: Controller('crisp_controllers/CartesianController', effort, 'active', effort),
            'other_controller': Controller('effort_controllers/JointGroupEffortController', effort),
        }
        self.manager = ControllerManager(self.add, controllers, **manager)
        arm, joints, state = (self.add(name) for name in (ARM, JOINTS, STATE))
        # As long as they are configured controllers keep their subscriptions and publishers.
        arm.create_subscription(JointState, 'target_joint', self.on_target, 1)
        self.joints = joints.create_publisher(JointState, 'joint_states', 5)
        self.state = state.create_publisher(FrankaRobotState, f'{STATE}/robot_state', 1)
        joints.create_timer(0.01, self.publish)
        self.chunks = graph.node.create_publisher(ActionChunk, 'action_chunk', 5)
        self.statuses = graph.latest(ExecutorStatus, 'executor/status', LATCHED)

    def add(self, name):
        node = rclpy.create_node(name, context=self.graph.probe.context)
        self.graph.probe.executor.add_node(node)
        self.nodes.append(node)
        return node

    def close(self):
        self.manager.close()
        for node in self.nodes:
            node.destroy_node()

    def on_target(self, msg):
        """As crisp_controllers main of 2025-08-19, cartesian_controller.cpp: on_activate keeps what came before it."""
        self.got.append(np.array(msg.position))
        if self.manager.active(ARM):
            self.q = self.got[-1]

    def publish(self):
        if self.manager.active(ARM) and not self.was_active:
            self.snapped_by = float(np.abs(self.got[-1] - self.q).max()) if self.got else 0.0
        self.was_active = self.manager.active(ARM)
        if self.manager.active(JOINTS):
            msg = JointState(name=list(PROFILE.joint_names), position=list(self.q), velocity=[0.0] * PROFILE.dof)
            msg.header.stamp = self.graph.node.get_clock().now().to_msg()
            self.joints.publish(msg)
        if self.manager.active(STATE):
            self.state.publish(FrankaRobotState(data=self.manager.mode))

    @property
    def status(self):
        return self.graph.wait(lambda: self.statuses and self.statuses[-1], what='executor status')

    def until(self, condition, what):
        self.graph.wait(lambda: condition(self.status), what=what)
        return self.status

    def call(self, name):
        return self.graph.call(Trigger, f'executor/{name}')

    def move(self, speed=0.3):
        self.graph.wait(self.chunks.get_subscription_count, what='the executor listens')
        self.until(lambda s: s.hold_reason in (E.HOLD_IDLE, E.HOLD_CHUNKS_STOPPED), 'ready')
        self.sequence += 1
        self.chunks.publish(chunk(self.graph.node, self.q, self.status.epoch, self.sequence, speed))
        self.until(lambda s: s.state == E.STATE_EXECUTING, 'moving')
        start = self.q
        self.graph.wait(lambda: np.abs(self.q - start).max() > 0.02, what='motion')


@pytest.fixture
def start(graph):
    """Start the executor beside a robot, configured only. Returns the robot and the process."""
    robots = []

    def begin(parameters=None, **manager):
        path = os.pathsep.join([str(MESSAGES), *filter(None, [os.environ.get('PYTHONPATH')])])
        robots.append(Robot(graph, **manager))
        p = graph.start(
            'vla_policy_node', 'executor_node', params={**PARAMETERS, **(parameters or {})}, PYTHONPATH=path
        )
        assert graph.transition('executor', graph.CONFIGURE)
        return robots[-1], p

    yield begin
    for robot in robots:
        robot.close()


def activate(graph):
    graph.wait(lambda: graph.transition('executor', graph.ACTIVATE), what='activation')


def test_a_hardware_error_is_recovered_with_one_call(graph, start):
    robot, p = start()
    activate(graph)
    robot.move()
    epoch = robot.status.epoch
    robot.manager.fail()
    off = ', '.join(f'{name} is inactive' for name in (JOINTS, STATE, ARM))
    robot.until(lambda s: s.hold_reason == E.HOLD_ROBOT_FAULT and s.state == E.STATE_HOLDING, 'the error is noticed')
    robot.until(lambda s: f'{off}: look at the arm, then call ~/recover' in s.message, 'what is off is named')
    stopped = robot.q = robot.q + 0.1  # somebody moves it out of the way
    answer = robot.call('recover')
    assert answer.success, answer.message
    assert answer.message == f'recovered, switched on: {JOINTS}, {STATE}, {ARM}'
    assert robot.snapped_by < 1e-9
    assert robot.manager.switches == [[JOINTS, STATE], [ARM]]
    assert robot.manager.controllers['other_controller'].state == 'inactive'
    robot.until(lambda s: s.epoch > epoch and s.hold_reason == E.HOLD_IDLE, 'a new epoch')
    np.testing.assert_allclose(robot.q, stopped, atol=1e-9)
    robot.move()
    assert graph.stop(p) == 0


def test_each_step_of_a_recovery_that_fails_is_named_and_can_be_tried_again(graph, start):
    robot, _ = start()
    manager = robot.manager
    manager.fail()
    manager.recovery_fails = True
    assert 'stopped at "error recovery": it ended with status 6: is the stop button' in robot.call('recover').message
    manager.recovery_fails, manager.activation_fails = False, True
    answer = robot.call('recover')
    assert 'at "hardware": hardware component FrankaHardwareInterface could not be' in answer.message
    assert 'is unconfigured: see the log of ros2_control' in answer.message
    manager.activation_fails, manager.controllers[STATE].state = False, 'finalized'
    answer = robot.call('recover')
    assert f'at "controllers": {STATE} (it is finalized) could not be switched on' in answer.message
    manager.controllers[STATE].state = 'inactive'
    manager.hardware = 'active'
    manager.switch(['other_controller'])
    answer = robot.call('recover')
    assert f'{ARM} (it is inactive) could not be switched on' in answer.message
    assert 'is currently claimed by another controller' in answer.message
    # The executor was never active: what it reads from and writes to is switched on.
    manager.switch(deactivate=['other_controller'])
    answer = robot.call('recover')
    assert answer.message == f'recovered, switched on: {ARM}'
    assert robot.status.state == E.STATE_INACTIVE
    activate(graph)
    robot.move()


def test_a_controller_that_is_loaded_but_not_active_is_named_at_activation(graph, start):
    robot, p = start()
    robot.manager.switch(deactivate=[ARM])
    command = f'{ARM} is inactive: switch it on (ros2 control switch_controllers --activate {ARM}), or call ~/recover'

    assert not graph.transition('executor', graph.ACTIVATE)
    assert command in graph.output(p)
    robot.manager.switch([ARM], [JOINTS])
    robot.until(lambda s: s.joint_state_age > 0.3, 'no joint state comes')
    assert not graph.transition('executor', graph.ACTIVATE)
    assert f'{JOINTS} is inactive: switch it on (' in graph.output(p)
    assert robot.manager.switch([JOINTS])[0]
    activate(graph)
    robot.move()


def test_a_name_that_no_controller_has_is_reported_with_those_that_there_are(graph, start):
    robot, p = start({'controller_node': 'jont_controller', 'recovery.controllers': '[arm_controller]'})

    def refused():
        assert not graph.transition('executor', graph.ACTIVATE)
        text = f'has no controller jont_controller, but {JOINTS}, {STATE}, {ARM}, other_controller'
        return f'/controller_manager {text}: load it, or check controller_node' in graph.output(p)

    graph.wait(refused, what='the name is told')
    answer = robot.call('recover')
    assert 'at "controllers": /controller_manager has no controller arm_controller, but' in answer.message


@pytest.mark.parametrize('tells', [True, False], ids=['activity', 'asked'])
def test_a_controller_switched_off_in_motion_stops_the_executor_and_is_named(graph, start, tells):
    robot, _ = start(publishes_activity=tells)
    activate(graph)
    robot.move()
    robot.manager.switch(deactivate=[ARM])
    left = robot.q
    status = robot.until(lambda s: s.hold_reason == E.HOLD_CONTROLLER_MISSING, 'it is noticed')
    assert f'{ARM} is inactive: switch it on (' in status.message and 'and call ~/resume' in status.message
    robot.until(lambda s: s.state == E.STATE_HOLDING, 'at rest')
    if tells:  # before set-points have gone so far that the arm counts as blocked, or its joint states as frozen
        assert not [s for s in robot.statuses if s.hold_reason in (E.HOLD_BLOCKED, E.HOLD_JOINT_STATE_FROZEN)]
    assert f'{ARM} is inactive' in robot.call('resume').message
    robot.got.clear()
    assert robot.manager.switch([ARM])[0]
    graph.wait(lambda: robot.call('resume').success, what='resumed')
    graph.wait(lambda: robot.got, what='set-points')
    np.testing.assert_allclose(robot.got, np.tile(left, (len(robot.got), 1)), atol=1e-9)
    robot.move()
