"""The executor node in this process: what it does with faults of the robot, other controllers and bad settings."""

import array
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.action import ActionClient, ActionServer, CancelResponse
from rclpy.clock import Clock, ClockType
from rclpy.parameter import Parameter
from rclpy.time import Time
from rosgraph_msgs.msg import Clock as ClockMessage
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Float64MultiArray, String, UInt8
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from vla_core.clocks import CLOCK_STILL, NO_CLOCK
from vla_core.profile import RobotProfile
from vla_msgs.action import ExecuteInstruction
from vla_msgs.msg import ActionChunk, ExecutorStatus
from vla_policy_node.executor import executor_node
from vla_policy_node.executor.executor_node import ExecutorNode
from vla_policy_node.integrations.moveit import MoveItHome
from vla_policy_node.ros import qos
from vla_policy_node.ros.chunk_msg import to_ns
from vla_policy_node.ros.waiting import StepFailed, appeared, pause

FILE = Path(__file__).parents[2] / 'vla_bringup' / 'config' / 'robots' / 'sim_panda.yaml'
PROFILE = RobotProfile.load(FILE)
E = ExecutorStatus
TYPES = {'crisp': JointState, 'joint_trajectory': JointTrajectory, 'forward_command': Float64MultiArray}


def executor(ros, **parameters):
    """With the robot profile, but without its collision monitor: there is no robot description."""
    return ros.add(
        'executor',
        ExecutorNode,
        cli_args=['--ros-args', '--params-file', str(FILE)],
        parameter_overrides=[
            Parameter(k, value=v) for k, v in {'collision_monitor.enabled': False, **parameters}.items()
        ],
    )


class Robot:
    """The robot, its controller and a source of chunks; `node` is the executor."""

    def __init__(self, ros, controller='crisp', **parameters):
        self.ros, self.kind = ros, controller
        self.q, self.got, self.statuses, self.sequence, self.mode = PROFILE.home.copy(), [], [], 0, None
        self.node = executor(ros, controller=controller, **parameters)
        simulated = [Parameter('use_sim_time', value=True)] if parameters.get('use_sim_time') else []
        me = self.me = ros.add('robot', parameter_overrides=simulated)
        me.create_subscription(TYPES[controller], 'target_joint', self.got.append, 10)
        me.create_subscription(Float64MultiArray, 'gripper/gripper_position_controller/commands', print, 1)
        me.create_subscription(E, 'executor/status', self.statuses.append, qos.LATCHED)
        self.joints = me.create_publisher(JointState, 'joint_states', 5)
        self.modes = me.create_publisher(UInt8, 'robot_state', 5)
        self.chunks = me.create_publisher(ActionChunk, 'action_chunk', 5)
        self.change = me.create_client(ChangeState, 'executor/change_state')
        me.create_timer(0.01, self.publish)

    def publish(self):
        if self.got and self.kind == 'crisp':
            self.q = np.array(self.got[-1].position)
        elif self.got and self.kind == 'forward_command':
            self.q = np.array(self.got[-1].data)
        elif self.got and self.kind == 'joint_trajectory':
            self.q = np.array(self.got[-1].points[0].positions)
        msg = JointState(name=list(PROFILE.joint_names), position=list(self.q), velocity=[0.0] * 7)
        msg.header.stamp = self.me.get_clock().now().to_msg()
        self.joints.publish(msg)
        if self.mode is not None:
            self.modes.publish(UInt8(data=self.mode))

    def largest_step(self):
        """[rad] between two set-points."""
        sent = [m.data if self.kind == 'forward_command' else m.position for m in self.got]
        return np.abs(np.diff(sent, axis=0)).max() if len(sent) > 1 else 0.0

    def transition(self, number):
        self.ros.wait(self.change.service_is_ready, 'the executor')
        future = self.change.call_async(ChangeState.Request(transition=Transition(id=number)))
        self.ros.wait(future.done, 'the transition')
        return future.result().success

    def bring_up(self):
        assert self.transition(Transition.TRANSITION_CONFIGURE)
        self.ros.wait(lambda: self.transition(Transition.TRANSITION_ACTIVATE), 'activation')

    @property
    def status(self):
        return self.statuses[-1]

    def until(self, condition, what):
        return self.ros.wait(lambda: self.statuses and condition(self.status) and self.status, what)

    def call(self, name):
        client = self.me.create_client(Trigger, f'executor/{name}')
        self.ros.wait(client.service_is_ready, name)
        future = client.call_async(Trigger.Request())
        self.ros.wait(future.done, name)
        return future.result()

    def send(self, speed=0.2, horizon=40, gripper=None):
        self.sequence += 1
        steps = self.q + speed * 0.05 * np.arange(1, horizon + 1)[:, None]
        msg = ActionChunk(
            epoch=self.status.epoch, sequence=self.sequence, source='/tester', joint_names=list(PROFILE.joint_names),
            dt=0.05, horizon=horizon, positions=array.array('d', steps.ravel()),
            gripper=array.array('d', [] if gripper is None else [gripper] * horizon),
        )  # fmt: skip
        msg.header.stamp = self.me.get_clock().now().to_msg()
        self.chunks.publish(msg)

    def move(self, **chunk):
        self.ros.wait(self.chunks.get_subscription_count, 'the executor listens')
        self.until(lambda s: s.hold_reason in (E.HOLD_IDLE, E.HOLD_CHUNKS_STOPPED), 'ready')
        self.send(**chunk)
        self.until(lambda s: s.state == E.STATE_EXECUTING, 'moving')


@pytest.fixture
def robot_state(monkeypatch):
    """FrankaRobotState is played by a message that we have; the recovery and what it needs are played, too."""
    monkeypatch.setattr(UInt8, 'robot_mode', property(lambda message: message.data), raising=False)
    monkeypatch.setitem(sys.modules, 'franka_msgs', SimpleNamespace())
    monkeypatch.setitem(sys.modules, 'franka_msgs.msg', SimpleNamespace(FrankaRobotState=UInt8))
    monkeypatch.setattr(executor_node, 'ControllerManager', NoManager)


class NoManager:
    """A controller manager that never answers."""

    name, known, answers, available = '/controller_manager', {}, 0, False

    def __init__(self, *_, **__):
        pass

    look = ask = close = __init__


def test_a_reflex_is_recovered_from_where_the_arm_is(ros, robot_state, monkeypatch):
    failures = [StepFailed('error recovery ended with status 6')]

    class Recovery:
        async def run(self):
            if failures:
                raise failures.pop()
            robot.kind, robot.q = '', PROFILE.home + 0.2  # somebody moved it out of the way
            robot.mode = 2
            node = robot.node
            well = lambda: not node._robot.problem() and np.allclose(node._core.measured, robot.q)  # noqa: E731
            await appeared(node, well, 10.0, 'the robot is well')
            return 'recovered'

        def close(self):
            pass

    monkeypatch.setattr(executor_node, 'recovery', lambda *_: Recovery())
    monkeypatch.setattr(executor_node.Recovery, 'close', Recovery.close)
    robot = Robot(ros, **{'topics.robot_state': 'robot_state'})
    robot.mode = 2
    robot.bring_up()
    robot.move()
    robot.mode = 4
    status = robot.until(lambda s: s.hold_reason == E.HOLD_ROBOT_FAULT, 'the reflex is seen')
    assert 'mode REFLEX' in status.message
    robot.until(lambda s: s.state == E.STATE_HOLDING, 'at rest')
    assert 'mode REFLEX' in robot.call('resume').message
    assert robot.call('recover').message == 'error recovery ended with status 6'
    epoch = robot.status.epoch
    sent = len(robot.got)
    assert robot.call('recover').success
    robot.until(lambda s: s.epoch > epoch and s.hold_reason == E.HOLD_IDLE, 'a new epoch')
    robot.ros.wait(lambda: len(robot.got) > sent, 'set-points again')
    np.testing.assert_allclose(robot.got[sent].position, robot.q, atol=1e-9)


def test_moveit_has_the_arm_until_a_stop(ros, monkeypatch):
    """The MoveGroup action is played by one that we have; its goal goes on until it is cancelled."""
    cancelled = []

    async def execute(handle):
        while not handle.is_cancel_requested:
            await pause(server_node, 0.01)
        cancelled.append(True)
        handle.canceled()
        return ExecuteInstruction.Result()

    def prepare(self, node, profile, **_):
        self._node, self._seconds = node, 10.0
        self._client = ActionClient(node, ExecuteInstruction, 'move_action')

    server_node = ros.add('move_group')
    server = ActionServer(
        server_node, ExecuteInstruction, 'move_action', execute, cancel_callback=lambda _: CancelResponse.ACCEPT
    )
    monkeypatch.setattr(MoveItHome, '__init__', prepare)
    monkeypatch.setattr(MoveItHome, 'goal', lambda self: ExecuteInstruction.Goal())
    robot = Robot(ros, **{'moveit.enabled': True})
    robot.bring_up()
    client = robot.me.create_client(Trigger, 'executor/go_home')
    ros.wait(client.service_is_ready, 'go_home')
    home = client.call_async(Trigger.Request())
    ros.wait(lambda: robot.node._operator.arm_lent, 'MoveIt has the arm')
    robot.until(lambda s: s.hold_reason == E.HOLD_OPERATOR_STOP, 'nobody else moves it')
    assert 'MoveIt moves the arm home' in robot.call('resume').message
    sent = len(robot.got)
    assert robot.call('stop').success
    ros.wait(home.done, 'it lets go')
    assert home.result().message == 'action /move_action was stopped'
    ros.wait(lambda: cancelled, 'the goal is cancelled')
    assert len(robot.got) <= sent + 1
    assert robot.call('resume').success
    robot.until(lambda s: s.hold_reason == E.HOLD_IDLE, 'ready')
    server.destroy()


def test_the_arm_goes_to_its_start_on_request(ros):
    robot = Robot(ros, start_fraction=0.5)
    robot.q = PROFILE.home + 0.3
    robot.bring_up()
    robot.move()
    assert 'the arm is moving' in robot.call('go_to_start').message
    assert robot.call('stop').success
    robot.until(lambda s: s.state == E.STATE_HOLDING, 'at rest')
    assert robot.call('go_to_start').message.startswith('OPERATOR_STOP')
    assert robot.call('resume').success
    answer = robot.call('go_to_start')
    assert answer.success
    assert answer.message.startswith('on the way')
    epoch = robot.until(lambda s: s.source == 'executor', 'it goes').epoch
    robot.send()
    robot.until(lambda s: s.last_verdict == E.REJECT_NOT_ACCEPTING, 'chunks wait')
    status = robot.until(lambda s: s.epoch > epoch, 'there')
    assert (status.state, status.hold_reason, status.source) == (E.STATE_HOLDING, E.HOLD_IDLE, '')
    ros.wait(lambda: np.allclose(robot.q, PROFILE.home, atol=1e-6), 'it is where it was sent')


def test_a_trajectory_controller_gets_the_plan_and_a_brake(ros):
    robot = Robot(ros, 'joint_trajectory')
    robot.bring_up()
    robot.move()
    newest = robot.ros.wait(
        lambda: next((m for m in robot.got if np.abs(m.points[0].velocities).max() > 0.1), None), 'a moving plan'
    )
    assert tuple(newest.joint_names) == PROFILE.joint_names
    times = np.array([to_ns(p.time_from_start) for p in newest.points]) * 1e-9
    v = np.array([p.velocities for p in newest.points])
    q = np.array([p.positions for p in newest.points])
    assert (v[-1] == 0).all()
    np.testing.assert_allclose(np.diff(q, axis=0) / np.diff(times)[:, None], (v[1:] + v[:-1]) / 2, atol=0.02)
    assert (np.diff(q, axis=0) > -1e-6).all()  # it never turns back
    assert robot.call('stop').success
    robot.until(lambda s: s.state == E.STATE_HOLDING, 'at rest')
    count = len(robot.got)
    robot.ros.wait(lambda: len(robot.got) > count + 1, 'it goes on telling')
    assert np.abs([p.velocities for p in robot.got[-1].points]).max() < 1e-9


def test_a_forward_controller_gets_positions(ros):
    robot = Robot(ros, 'forward_command')
    robot.bring_up()
    robot.ros.wait(lambda: robot.got, 'set-points')
    np.testing.assert_allclose(robot.got[-1].data, PROFILE.home)


@pytest.mark.parametrize('controller', TYPES)
def test_the_first_activation_waits_for_what_is_only_not_known_yet(ros, controller):
    """The robot, its controller and the gripper are there, but nothing of them was discovered before configure."""
    joints = list(PROFILE.joint_names)
    robot = Robot(ros, controller)
    robot.me.declare_parameter('joints', joints[::-1] if controller == 'joint_trajectory' else joints)
    assert robot.transition(Transition.TRANSITION_CONFIGURE)
    assert robot.transition(Transition.TRANSITION_ACTIVATE)


def test_a_controller_that_is_configured_anew_with_other_joints_moves_nothing(ros):
    robot = Robot(ros)
    robot.me.declare_parameter('joints', list(PROFILE.joint_names))
    robot.bring_up()
    robot.move()
    reader = next(s for s in robot.me.subscriptions if s.topic_name == '/target_joint')
    robot.me.destroy_subscription(reader)  # as controllers of ros2_control do when they are cleaned up and configured
    robot.me.set_parameters([Parameter('joints', value=list(PROFILE.joint_names)[::-1])])
    robot.me.create_subscription(JointState, 'target_joint', robot.got.append, 10)
    status = robot.until(
        lambda s: s.hold_reason == E.HOLD_CONTROLLER_MISSING and 'moves the joints' in s.message, 'other joints'
    )
    assert 'in this order' in status.message
    robot.until(lambda s: s.state == E.STATE_HOLDING, 'at rest')
    assert 'moves the joints' in robot.call('resume').message


def test_an_arm_without_a_gripper_moves_and_nothing_is_commanded_to_one(ros):
    robot = Robot(ros, **{'robot.gripper_joint_names': ['']})
    robot.bring_up()
    robot.move()
    assert not [
        name
        for name, _ in robot.node.get_topic_names_and_types()
        if robot.me.count_publishers(name) and 'gripper' in name
    ]


def test_a_gripper_gets_whether_the_arm_is_driven_and_its_fault_is_in_the_status(ros):
    robot, calls = Robot(ros), []
    robot.bring_up()

    def send(opening, driven):
        calls.append((opening, driven))

    robot.node._gripper = SimpleNamespace(send=send, problem='the gripper did not open')
    robot.move(gripper=0.02)
    robot.until(lambda s: s.message == 'the gripper did not open', 'it is told')
    assert calls[-1] == (pytest.approx(0.02), True)
    assert robot.call('stop').success
    robot.until(lambda s: s.state == E.STATE_HOLDING, 'at rest')
    robot.ros.wait(lambda: calls[-1] == (pytest.approx(0.02), False), 'a hold stands')
    assert robot.status.message.startswith('stopped by the operator')


def test_control_steps_go_by_the_monotonic_clock_and_tell_that_the_other_was_set(ros, monkeypatch):
    offset = [0]
    monkeypatch.setattr(executor_node.time, 'monotonic_ns', lambda real=time.monotonic_ns: real() + offset[0])
    robot = Robot(ros)
    robot.bring_up()
    assert {timer.clock.clock_type for timer in robot.node.timers} == {ClockType.STEADY_TIME}
    robot.move()
    offset[0] = 300_000_000  # as if the clock had been set back by 0.3 s
    status = robot.until(lambda s: s.hold_reason == E.HOLD_CLOCK_JUMP, 'the jump is seen')
    assert 'the clock jumped by -0.' in status.message


def test_in_simulation_control_steps_go_by_the_simulated_clock(ros):
    robot = Robot(ros, use_sim_time=True)
    assert robot.transition(Transition.TRANSITION_CONFIGURE)
    kinds = [timer.clock.clock_type for timer in robot.node.timers]
    assert kinds.count(ClockType.ROS_TIME) == 1  # control steps; diagnostics come while it stands still
    assert robot.node._times()[1] is None
    assert robot.node._times()[1] is None


class Simulator:
    """Publishes /clock every 5 ms of wall time; a test lets it stand still, step or run slowly.

    As a simulator of ros2_control has it: the robot's joint states come by its clock (joint_state_broadcaster 4.42.1 is
    updated in the loop of ros2_control_node 4.46.0, which sleeps until the next step of /clock).
    """

    def __init__(self, ros, now=50.0):
        self.now, self.every, self.count = now, 1, 0
        node = ros.add('simulator')
        self.publisher = node.create_publisher(ClockMessage, '/clock', 1)
        node.create_timer(0.005, self.step, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def step(self):
        if self.every:
            self.now += 0.005
            self.count += 1
            if self.count % self.every == 0:
                self.publisher.publish(ClockMessage(clock=Time(nanoseconds=round(self.now * 1e9)).to_msg()))


def test_without_a_clock_nothing_is_activated(ros):
    robot = Robot(ros, use_sim_time=True)
    assert robot.transition(Transition.TRANSITION_CONFIGURE)
    assert not robot.transition(Transition.TRANSITION_ACTIVATE)
    robot.until(lambda s: s.message == NO_CLOCK, 'the reason')


@pytest.mark.parametrize('step', [-0.1, -40.0, 0.8, 3600.0])
@pytest.mark.parametrize('controller', ['crisp', 'forward_command'])
def test_a_step_of_the_simulated_clock_is_a_hold_and_no_step_of_set_points(ros, controller, step):
    simulator, robot = Simulator(ros), Robot(ros, controller, use_sim_time=True)
    robot.bring_up()
    robot.move()
    robot.ros.wait(lambda: robot.largest_step() > 0.001, 'in motion')
    epoch = robot.status.epoch
    simulator.now += step
    status = robot.until(lambda s: s.hold_reason == E.HOLD_CLOCK_JUMP, 'it is told')
    assert float(re.search(r'the clock jumped by (\S+) s', status.message)[1]) == pytest.approx(step, abs=0.09)
    robot.until(lambda s: s.state == E.STATE_HOLDING, 'at rest')
    assert robot.largest_step() < 2 * 0.01 * 0.25  # two periods at a quarter above its speed
    assert robot.status.epoch > epoch
    robot.send()
    robot.until(lambda s: s.state == E.STATE_EXECUTING, 'it goes on with a chunk of the new epoch')


def test_while_the_simulated_clock_stands_still_the_status_has_that_and_the_motion_waits(ros):
    simulator, robot = Simulator(ros), Robot(ros, use_sim_time=True)
    robot.bring_up()
    robot.move()
    robot.ros.wait(lambda: robot.largest_step() > 0.001, 'in motion')
    simulator.every = 0
    robot.until(lambda s: s.message == CLOCK_STILL, 'it is told')
    sent = len(robot.got)
    simulator.every = 1
    robot.until(lambda s: not s.message and s.state == E.STATE_EXECUTING, 'it goes on')
    robot.ros.wait(lambda: len(robot.got) > sent + 5, 'set-points')
    assert robot.largest_step() < 2 * 0.01 * 0.25


def test_a_clock_that_comes_too_seldom_is_reported(ros):
    simulator, robot = Simulator(ros), Robot(ros, use_sim_time=True)
    simulator.every = 10
    robot.bring_up()
    robot.until(lambda s: 'control steps come every 50 ms of simulated time' in s.message, 'it is told')
    simulator.every = 1
    robot.until(lambda s: not s.message, 'it is well')


def test_limits_of_the_robot_description_count_and_its_absence_is_reported(ros):
    robot = Robot(ros, limits_from='robot_description', robot_description_timeout=0.1)
    assert not robot.transition(Transition.TRANSITION_CONFIGURE)
    slow = ''.join(
        f'<joint name="{n}" type="revolute"><limit lower="-3" upper="4" velocity="0.1" effort="1"/></joint>'
        for n in PROFILE.joint_names
    )
    robot.me.create_publisher(String, 'robot_description', qos.LATCHED).publish(
        String(data=f'<robot name="slow">{slow}</robot>')
    )
    robot.ros.wait(lambda: robot.transition(Transition.TRANSITION_CONFIGURE), 'it came')
    assert (robot.node._core.profile.velocity == 0.1).all()


def test_the_collision_monitor_stops_before_a_wall(ros, panda_urdf):
    wall = [0.0, 0.0, 1.0, 0.4]  # the tool is at 0.49 m
    robot = Robot(
        ros,
        **{
            'collision_monitor.enabled': True,
            'collision_monitor.planes': wall,
            'robot_description_file': str(panda_urdf),
        },
    )
    robot.bring_up()
    robot.ros.wait(robot.chunks.get_subscription_count, 'the executor listens')
    robot.until(lambda s: s.hold_reason == E.HOLD_IDLE, 'ready')

    def stopped():  # on a busy machine something else may hold the arm before
        if robot.status.hold_reason == E.HOLD_WORKSPACE:
            return robot.status
        if robot.status.state == E.STATE_HOLDING:
            robot.send(speed=np.array([0, 0.3, 0, 0, 0, 0, 0]))
        return None

    status = robot.ros.wait(stopped, 'the wall')
    assert 'plane [0.0, 0.0, 1.0, 0.4]' in status.message
    robot.until(lambda s: s.state == E.STATE_HOLDING, 'at rest')
    assert robot.q[1] > PROFILE.home[1] + 0.02
    assert robot.node._settings.monitor.tool_positions(robot.q[None])[0, 2] > 0.4


def test_an_emergency_stop_that_was_pressed_before(ros):
    robot = Robot(ros)
    stop = robot.me.create_publisher(Bool, 'executor/emergency_stop', qos.STATUS)  # does not latch
    assert robot.transition(Transition.TRANSITION_CONFIGURE)
    robot.ros.wait(lambda: stop.get_subscription_count() == 2, 'the executor listens')
    stop.publish(Bool(data=True))
    robot.ros.wait(robot.node._operator.problems, 'it is heard')
    robot.ros.wait(lambda: robot.node._core.has_joint_state and robot.node._controller.topic.listeners(), 'all else')
    assert not robot.transition(Transition.TRANSITION_ACTIVATE)
    stop.publish(Bool(data=False))
    robot.ros.wait(lambda: robot.call('resume').success, 'released')
    robot.ros.wait(lambda: robot.transition(Transition.TRANSITION_ACTIVATE), 'active')


def test_while_the_planning_scene_is_not_known_the_arm_is_not_activated(ros, monkeypatch):
    wrong = ['the planning scene is not known yet']
    monkeypatch.setattr(executor_node, 'planning_scene', lambda *_: SimpleNamespace(problems=lambda: wrong))
    monkeypatch.setattr(executor_node.PlanningScene, 'close', lambda _: None)
    robot = Robot(ros)
    assert robot.transition(Transition.TRANSITION_CONFIGURE)
    robot.ros.wait(lambda: robot.node._core.has_joint_state and robot.node._controller.topic.listeners(), 'all else')
    assert not robot.transition(Transition.TRANSITION_ACTIVATE)
    wrong.clear()
    robot.ros.wait(lambda: robot.transition(Transition.TRANSITION_ACTIVATE), 'active')


@pytest.mark.parametrize(
    ('parameters', 'says'),
    [
        ({'controller': 'crips'}, "controller is 'crips', must be one of: crisp, joint_trajectory"),
        ({'controller': 'forward_command', 'rate': 50.0}, 'rate is 50'),
        ({'guard.planes': [0.0] * 4}, 'parameter guard.planes is called collision_monitor.planes now'),
        ({'seams': 'latest'}, 'parameter seams is called blending now'),
        ({'gripper': 'franka'}, 'install the ROS package franka_msgs'),
        ({'moveit.enabled': True}, 'install the ROS package moveit_msgs'),
        ({'moveit.obstacles': True}, r'moveit.obstacles is set, but collision_monitor.enabled is not'),
        ({'topics.robot_state': 'robot_state'}, 'install the ROS package franka_msgs'),
        (
            {'collision_monitor.enabled': True, 'robot_description_timeout': 0.1},
            r'collision_monitor.enabled needs the robot description',
        ),
        (
            {'collision_monitor.enabled': True, 'limits_from': 'robot_description', 'robot_description_timeout': 0.1},
            r'limits_from and collision_monitor.enabled need the robot description',
        ),
        ({'collision_monitor.enabled': True, 'robot_description_file': str(FILE)}, 'robot description'),
        ({'robot.velocities': [1.0]}, r'there is no parameter robot.velocities; .* velocity, '),
    ],
)
def test_what_cannot_be_is_reported_when_configured(ros, parameters, says):
    node = executor(ros, **parameters)
    with pytest.raises(ValueError, match=says):
        node.set_up()
    node.tear_down()


def test_a_misspelt_limit_of_the_collision_monitor_is_reported(ros, panda_urdf):
    monitor = {
        'collision_monitor.enabled': True,
        'robot_description_file': str(panda_urdf),
        'collision_monitor.tool_box': [0.0] * 6,
    }
    node = executor(ros, **monitor)
    with pytest.raises(ValueError, match=r'there is no parameter collision_monitor.tool_box; .* link_box, '):
        node.set_up()
    node.tear_down()


def test_a_lifecycle_leaves_no_publisher_subscription_timer_or_service_behind(ros, panda_urdf):
    robot = Robot(ros, **{'collision_monitor.enabled': True, 'limits_from': 'profile', 'require_controller': False})
    description = robot.me.create_publisher(String, 'robot_description', qos.LATCHED)
    description.publish(String(data=panda_urdf.read_text()))
    node = robot.node

    def entities():
        kinds = node.publishers, node.subscriptions, node.timers, node.services, node.clients, node.waitables
        return [len(list(kind)) for kind in kinds]

    before, seen = entities(), []
    for _ in range(5):
        robot.bring_up()
        seen.append(entities())
        assert robot.transition(Transition.TRANSITION_DEACTIVATE)
        ros.wait(lambda: robot.transition(Transition.TRANSITION_CLEANUP), 'the arm rests')
        assert entities() == before
    assert seen == [seen[0]] * 5 and seen[0] > before
