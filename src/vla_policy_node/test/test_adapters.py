"""What the adapters send, and what they find wrong with who is on the topic."""

import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from action_msgs.msg import GoalStatus
from rclpy.client import Client
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.task import Future
from rclpy.time import Time
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray, String
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from vla_core.motion.config import ExecutorConfig
from vla_core.motion.course import Course
from vla_core.motion.path import ChunkPath
from vla_core.profile import RobotProfile
from vla_policy_node.adapters import controller_joints, gripper_action
from vla_policy_node.adapters.gripper_position import GripperPosition
from vla_policy_node.adapters.joint_controller import Target
from vla_policy_node.adapters.joint_trajectory import LEAD, points
from vla_policy_node.adapters.table import ADAPTERS, adapter_of
from vla_policy_node.ros import qos
from vla_policy_node.ros.chunk_msg import to_ns

NAMES = ('a', 'b', 'c')
Q, V = np.array([0.1, -0.2, 0.3]), np.array([0.0, 1.0, -0.5])
PROFILE = RobotProfile(
    name='test', base_frame='base', tool_frame='tool', joint_names=NAMES, position_lower=np.full(3, -20.0),
    position_upper=np.full(3, 20.0), velocity=np.full(3, 4.0), acceleration=np.array([10.0, 10.0, 2.5]),
    jerk=np.full(3, 5000.0), home=np.zeros(3), gripper_joint_names=(), gripper_max_opening=0.0, tool_speed=2.0,
)  # fmt: skip


def moving(steps=40):
    """A motion from Q at speeds up to V, well under way."""
    course = Course(PROFILE, ExecutorConfig(), None)
    course.stand_at(Q)
    course.join(ChunkPath(Q + 0.1 * np.arange(1, steps + 1)[:, None] * V, 0.1), 0.0)
    course.buffer.advance(1.5)
    return course


def make(node, kind, topic='command', reader='', rate=200.0):
    return ADAPTERS[kind].load()(node, Target(topic, NAMES, rate, moving(), reader))


TYPES = {'crisp': JointState, 'joint_trajectory': JointTrajectory, 'forward_command': Float64MultiArray}


def test_the_table_names_the_message_that_each_adapter_sends():
    assert set(TYPES) == set(ADAPTERS)
    for kind, adapter in ADAPTERS.items():
        message = adapter.load().message
        assert message is TYPES[kind]
        assert adapter.message == f'{message.__module__.split(".")[0]}/msg/{message.__name__}'
        assert adapter_of(adapter.message) is adapter
    with pytest.raises(ValueError, match='no controller takes set-points as std_msgs/msg/String: the types are sensor'):
        adapter_of('std_msgs/msg/String')


def test_the_adapter_in_the_documentation_sends_set_points(ros):
    page = Path(__file__).parents[3] / 'docs/how-to/add-a-controller.md'
    code = textwrap.dedent('   ' + page.read_text().split('```python\n   ')[1].split('```')[0])
    assert len(code.strip().splitlines()) <= 30
    space: dict = {}
    exec(code, space)
    got = []
    ros.add('controller', start_parameter_services=False).create_subscription(
        JointTrajectoryPoint, 'command', got.append, 1
    )
    node = ros.add('executor')
    adapter = space['AdmittanceController'](node, Target('command', NAMES, 200.0, moving()))
    ros.wait(lambda: not adapter.check(True), 'the controller is seen')
    adapter.send(node.get_clock().now(), Q, V)
    m = ros.wait(lambda: got and got[0], 'the command')
    assert (list(m.positions), list(m.velocities)) == (list(Q), list(V))


@pytest.mark.parametrize('kind', TYPES)
def test_a_set_point_reaches_the_controller(ros, kind):
    got = []
    ros.add('controller', start_parameter_services=False).create_subscription(TYPES[kind], 'command', got.append, 1)
    node = ros.add('executor')
    adapter = make(node, kind)
    ros.wait(lambda: not adapter.check(True), 'the controller is seen')
    now = node.get_clock().now()
    adapter.send(now, Q, V)
    m = ros.wait(lambda: got and got[0], 'the command')
    times, positions = ADAPTERS[kind].decode(m, NAMES, 'command')
    assert positions.shape == (len(times), 3) and times[0] == 0
    if not adapter.sends_ahead:
        assert list(positions[0]) == list(Q)
    if kind == 'crisp':
        assert (tuple(m.name), list(m.position), list(m.velocity)) == (NAMES, list(Q), list(V))
        assert to_ns(m.header.stamp) == now.nanoseconds
    elif kind == 'forward_command':
        assert list(m.data) == list(Q)
    else:
        assert tuple(m.joint_names) == NAMES
        assert to_ns(m.header.stamp) == now.nanoseconds
        times = [to_ns(p.time_from_start) for p in m.points]
        assert times[0] == 0  # the controller has nothing to fill in before it
        assert (np.diff(times) > 0).all()
        assert list(m.points[-1].velocities) == [0.0] * 3

        def later(ms):
            return Time(nanoseconds=now.nanoseconds + ms * 1_000_000, clock_type=now.clock_type)

        adapter._clock = SimpleNamespace(now=lambda: later(0))
        adapter.send(later(30), Q, V)
        adapter.send(later(50), Q, V)
        ros.wait(lambda: len(got) > 1, 'the next message')
        assert to_ns(got[1].header.stamp) == later(50).nanoseconds
        adapter._course.brake()  # a brake, a new chunk, an arm that is let go: the old plan shall not be followed
        adapter._clock = SimpleNamespace(now=lambda: later(76))
        adapter.send(later(60), Q, V)  # it took long: the controller is not on the way any more that this begins on
        adapter._clock = SimpleNamespace(now=lambda: later(70))
        adapter.send(later(70), Q, V)
        ros.wait(lambda: len(got) > 2, 'the new plan, at once')
        assert to_ns(got[2].header.stamp) == later(70).nanoseconds
    with pytest.raises(ValueError, match='not finite'):
        adapter.send(now, Q * np.nan, V)
    adapter.close()


def arrays(promise):
    made = points(promise)
    times = np.array([to_ns(p.time_from_start) for p in made]) * 1e-9
    return times, np.array([p.positions for p in made]), np.array([p.velocities for p in made])


def test_the_brake_behind_a_trajectory_keeps_to_the_path_and_to_its_limits():
    course = moving()
    times, q, v = arrays(course.promise(LEAD))
    plan = course.buffer.sample(times[times <= LEAD])
    np.testing.assert_allclose(q[times <= LEAD], plan[0], atol=1e-9)
    np.testing.assert_allclose((q - q[0])[:, [0, 2]] * V[1], (q - q[0])[:, [1]] * V[[0, 2]], atol=1e-9)  # one line
    assert (v[-1] == 0).all()
    # Between points the controller interpolates with cubics through positions and velocities.
    accelerations = []
    for k in range(len(times) - 1):
        h, rise = times[k + 1] - times[k], q[k + 1] - q[k]
        accelerations.append((6 * rise / h - 4 * v[k] - 2 * v[k + 1]) / h)
        accelerations.append((-6 * rise / h + 2 * v[k] + 4 * v[k + 1]) / h)
    most = np.abs(accelerations).max(axis=0)
    assert (most <= PROFILE.acceleration).all()
    np.testing.assert_allclose(most[2], PROFILE.acceleration[2], rtol=0.05)  # as hard as it may


@pytest.mark.parametrize('steps', [1, 16, 17, 18])
def test_a_plan_that_comes_to_rest_needs_no_brake_and_lasts_until_it_has_arrived(steps):
    course = moving(max(steps, 2))
    if steps == 1:
        course.stand_at(Q)
    times, q, v = arrays(course.promise(LEAD))
    assert times[-1] >= LEAD - 1e-9
    assert (np.diff(times) > 1e-6).all()
    assert (v[-1] == 0).all()
    if steps == 1:
        np.testing.assert_allclose(q, np.tile(Q, (len(q), 1)))


def test_no_subscriber_or_a_recorder_alone(ros):
    adapter = make(ros.add('executor'), 'crisp')
    for name in ('recorder', '_ros2cli_123'):
        ros.add(name).create_subscription(JointState, 'command', print, 1)
    ros.wait(lambda: adapter.topic._publisher.get_subscription_count() == 2, 'the recorders')
    (problem,) = adapter.check(True)
    assert 'a controller does not subscribe to /command: start the controller' in problem
    assert not adapter.check(False)


def test_the_named_controller_must_be_the_one(ros):
    ros.add('other').create_subscription(JointState, 'command', print, 1)
    node = ros.add('executor')
    any_one, named = make(node, 'crisp'), make(node, 'crisp', 'command2', 'mine')
    ros.wait(lambda: not any_one.check(True), 'a listener')
    assert 'mine does not subscribe' in named.check(True)[0]
    ros.add('mine', namespace='/arm').create_subscription(JointState, '/command2', print, 1)
    ros.wait(lambda: not named.check(True), 'the named one')
    assert named.topic.listeners() == ['/arm/mine']


def test_a_controller_that_cannot_hear_or_reads_another_type(ros):
    deaf = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=qos.LATCHED.durability)
    ros.add('deaf').create_subscription(JointState, 'command', print, deaf)
    elsewhere = type(ros)(ros.domain)  # a context of its own: in one, a topic has one type
    elsewhere.add('wrong').create_subscription(String, 'other', print, 1)
    node = ros.add('executor')
    first, second = make(node, 'crisp'), make(node, 'crisp', 'other')
    problem = ros.wait(lambda: [p for p in first.check(True) if 'deaf' in p], 'the deaf one is seen')[0]
    assert 'asks for transient local' in problem
    problem = ros.wait(lambda: [p for p in second.check(True) if 'wrong' in p], 'the other type is seen')[0]
    assert 'reads std_msgs/msg/String, not sensor_msgs/msg/JointState' in problem
    elsewhere.close()


def test_a_second_publisher_is_named(ros):
    adapter = make(ros.add('executor'), 'crisp')
    other = ros.add('teleop', namespace='/cell')
    publisher = other.create_publisher(JointState, '/command', 1)
    ros.wait(adapter.topic.competing_publishers, 'the competing publisher')
    assert adapter.topic.competing_publishers() == ['/cell/teleop']
    assert '/cell/teleop also publishes on /command: stop all but one' in adapter.check(False)[0]
    other.destroy_publisher(publisher)
    twin = ros.add('executor')  # a second executor, started by mistake
    twin.create_publisher(JointState, '/command', 1)
    ros.wait(lambda: adapter.topic.competing_publishers() == ['/executor'], 'the twin')


class Controller:
    """A controller as ros2_control's are: it reads its parameter `joints` and subscribes when it is configured.

    Seen in joint_trajectory_controller and forward_command_controller 4.42.1 (on_configure) and in crisp_controllers'
    CartesianController, which ignores the names in a message as the stand-in does.
    """

    def __init__(self, ros, kind, joints, name='controller'):
        self.kind, self.node = kind, ros.add(name)
        self.node.declare_parameter('joints', joints)
        self.configure()

    def configure(self, joints=None):
        if joints is not None:
            self.node.destroy_subscription(self.reader)
            self.node.set_parameters([Parameter('joints', value=joints)])
        self.reader = self.node.create_subscription(TYPES[self.kind], 'command', print, 1)


OURS, TURNED, OTHERS = ['a', 'b', 'c'], ['c', 'b', 'a'], ['a', 'b', 'elbow']


@pytest.mark.parametrize(
    ('kind', 'joints', 'fits'),
    [
        ('joint_trajectory', TURNED, True),
        ('joint_trajectory', OTHERS, False),
        ('forward_command', OURS, True),
        ('forward_command', TURNED, False),
        ('crisp', OURS, True),
        ('crisp', TURNED, False),
    ],
)
def test_joints_of_the_controller_are_compared(ros, kind, joints, fits):
    Controller(ros, kind, joints)
    adapter = make(ros.add('executor'), kind)
    ros.wait(adapter.topic.listeners, 'the controller is seen')
    assert adapter.check(True)  # until it has answered
    if fits:
        ros.wait(lambda: not adapter.check(True), 'the joints agree')
    else:
        told = ros.wait(lambda: [p for p in adapter.check(True) if 'moves the joints' in p], 'other joints')
        assert str(joints) in told[0]
    adapter.close()


def test_each_controller_is_asked_and_one_that_is_configured_anew_is_asked_again(ros):
    right, other = Controller(ros, 'crisp', OURS), Controller(ros, 'crisp', OURS, 'other')
    adapter = make(ros.add('executor'), 'crisp')
    ros.wait(lambda: len(adapter.topic.listeners()) == 2 and not adapter.check(True), 'both are right')
    other.configure(TURNED)
    assert ros.wait(adapter.joints.ask, 'it was configured anew') == ['/other']
    told = ros.wait(lambda: adapter.joints.ask() or adapter.joints.wrong(), 'the other one')
    assert told[0].startswith('/other moves the joints')
    other.configure(OURS)
    ros.wait(lambda: not adapter.check(True), 'both are right again')
    ros.executor.remove_node(right.node)
    right.node.destroy_node()
    ros.nodes.remove(right.node)
    ros.wait(lambda: adapter.topic.listeners() == ['/other'] and not adapter.check(True), 'one is gone')
    adapter.close()


def test_a_controller_that_is_discovered_before_its_name_is_asked_when_the_name_comes(ros, monkeypatch):
    nameless = '_NODE_NAMESPACE_UNKNOWN_/_NODE_NAME_UNKNOWN_'
    Controller(ros, 'crisp', TURNED)
    adapter = make(ros.add('executor'), 'crisp')
    ros.wait(adapter.topic.listeners, 'the controller is seen')
    with monkeypatch.context() as early:
        early.setattr(controller_joints, 'full_name', lambda _: nameless)
        assert adapter.joints.problems() == [f'{nameless} has not answered yet which joints it moves: try again']
        early.setattr(controller_joints, 'NAMED', 0.0)
        assert not adapter.joints.problems()  # no node of ROS
    told = ros.wait(lambda: adapter.joints.ask() or adapter.joints.wrong(), 'the other joints')
    assert told[0].startswith('/controller moves the joints')
    adapter.close()


def test_a_controller_whose_answer_is_lost_is_asked_again(ros, monkeypatch):
    monkeypatch.setattr(controller_joints, 'REPEAT', 0.1)
    lost, real = [], Client.call_async
    monkeypatch.setattr(Client, 'call_async', lambda c, r: real(c, r) if lost else lost.append(Future()) or lost[0])
    Controller(ros, 'crisp', TURNED)
    adapter = make(ros.add('executor'), 'crisp')
    adapter.joints.problems()
    monkeypatch.setattr(Client, 'remove_pending_request', lambda *_: None)
    ros.wait(lambda: adapter.joints.ask() or adapter.joints.wrong(), 'the second answer')
    adapter.close()


def test_a_controller_without_interpolation_needs_a_high_rate(ros):
    with pytest.raises(ValueError, match=r'rate is 50: .* needs 100'):
        make(ros.add('executor'), 'forward_command', rate=50.0)


def test_the_gripper_position_is_a_fraction(ros):
    got = []
    node = ros.add('executor')
    gripper = GripperPosition(node, 'grip', 0.08)
    assert 'nobody listens to /grip' in gripper.check()[0]
    ros.add('gripper').create_subscription(Float64MultiArray, 'grip', got.append, 1)
    ros.wait(lambda: not gripper.check(), 'the gripper')
    gripper.send(0.02, driven=True)
    assert list(ros.wait(lambda: got, 'the command')[0].data) == [0.25]


# ---- grippers with actions; their messages are not among our dependencies, so the client is played


OVER = {'succeeded': GoalStatus.STATUS_SUCCEEDED, 'aborted': GoalStatus.STATUS_ABORTED}


class FakeClient:
    """A client of franka_gripper's servers (franka_ros2 3.4.0, gripper_action_server.cpp), or of a GripperCommand.

    They accept every goal, answer a cancel at once, and end a goal that was cancelled as canceled. A server that
    refuses is one of other drivers.
    """

    ready = True

    def __init__(self, node, kind, name):
        self.name, self.goals, self.cancelled = name, [], 0
        node.clients[name] = self

    def server_is_ready(self):
        return self.ready

    def send_goal_async(self, goal):
        self.goals.append(goal)
        self.answer, self.result = Future(), Future()
        return self.answer

    def accept(self, accepted=True):
        self.answer.set_result(
            SimpleNamespace(
                accepted=accepted, get_result_async=lambda: self.result, cancel_goal_async=self._cancel
            )
        )  # fmt: skip

    def end(self, how='succeeded', **result):
        self.result.set_result(SimpleNamespace(status=OVER[how], result=SimpleNamespace(**result)))

    def abort(self, **result):
        self.accept()
        self.end('aborted', **result)

    def _cancel(self):
        self.cancelled += 1

    def end_cancelled(self):
        self.result.set_result(SimpleNamespace(status=GoalStatus.STATUS_CANCELED, result=SimpleNamespace()))

    def destroy(self):
        pass


class Logger:
    def __init__(self):
        self.errors, self.warnings = [], []

    def error(self, text, **_):
        self.errors.append(text)

    def warning(self, text, **_):
        self.warnings.append(text)


@pytest.fixture
def node(monkeypatch):
    monkeypatch.setattr(gripper_action, 'ActionClient', FakeClient)
    logger = Logger()
    return SimpleNamespace(clients={}, get_logger=lambda: logger)


def message(**fields):
    return SimpleNamespace(Goal=lambda: SimpleNamespace(**{k: v() for k, v in fields.items()}))


@pytest.fixture
def packages(monkeypatch):
    """Stand-ins for control_msgs and franka_msgs."""
    command = message(command=SimpleNamespace)
    grasp, move = message(epsilon=SimpleNamespace), message()
    monkeypatch.setitem(sys.modules, 'control_msgs', SimpleNamespace())
    monkeypatch.setitem(sys.modules, 'control_msgs.action', SimpleNamespace(GripperCommand=command))
    monkeypatch.setitem(sys.modules, 'franka_msgs', SimpleNamespace())
    monkeypatch.setitem(sys.modules, 'franka_msgs.action', SimpleNamespace(Grasp=grasp, Move=move))


@pytest.fixture
def clock(monkeypatch):
    """Seconds of the monotonic clock, set by the test."""
    now = SimpleNamespace(s=100.0)
    monkeypatch.setattr(gripper_action.time, 'monotonic', lambda: now.s)
    return now


def hand(node):
    gripper = gripper_action.franka_hand(node, 'hand', 0.08, 0.1, 30.0)
    return gripper, node.clients['hand/grasp'], node.clients['hand/move']


def command(node):
    gripper = gripper_action.gripper_command(node, 'grip', 0.08, 0.5, 20.0)
    return gripper, node.clients['grip']


def test_one_goal_for_each_change_whatever_the_chunks_say(node, packages):
    gripper, grasp, move = hand(node)
    for opening in (0.08, 0.07, 0.06, 0.045, 0.035):  # half open is not closed
        gripper.send(opening, driven=True)
    assert len(move.goals) == 1
    assert (move.goals[0].width, move.goals[0].speed) == (0.08, 0.1)
    move.accept()
    move.end()
    for opening in (0.03, 0.0, 0.04, 0.02):
        gripper.send(opening, driven=True)
    assert len(grasp.goals) == 1
    assert (grasp.goals[0].width, grasp.goals[0].force) == (0.0, 30.0)
    assert grasp.goals[0].epsilon.inner >= 0.08  # whatever is between the fingers is held
    grasp.accept()
    gripper.send(0.08, driven=True)  # a change of mind while the fingers close: that motion is ended first
    gripper.send(0.08, driven=True)
    assert (grasp.cancelled, len(move.goals)) == (1, 1)
    grasp.end_cancelled()
    gripper.send(0.08, driven=True)
    assert len(move.goals) == 2


def test_a_goal_that_was_cancelled_and_is_wanted_again_is_sent_again(node, packages):
    gripper, grasp, move = hand(node)
    gripper.send(0.0, driven=True)
    grasp.accept()
    gripper.send(0.08, driven=True)
    gripper.send(0.0, driven=True)  # before the cancel has had an effect
    grasp.end_cancelled()
    gripper.send(0.0, driven=True)
    assert (len(grasp.goals), len(move.goals)) == (2, 0)


def test_a_refused_goal_is_repeated_while_it_is_wanted_and_the_arm_is_driven(node, packages, clock):
    gripper, client = command(node)
    gripper.send(0.08, driven=True)
    assert (client.goals[0].command.position, client.goals[0].command.max_effort) == (0.04, 20.0)
    client.accept(False)
    assert 'did not open: it refused the goal' in node.get_logger().errors[0]
    clock.s += 0.9
    gripper.send(0.08, driven=True)
    assert len(client.goals) == 1
    clock.s += 0.2
    gripper.send(0.08, driven=False)  # a hold stands
    assert len(client.goals) == 1
    for count in (2, 3, 4, 5):
        gripper.send(0.08, driven=True)
        gripper.send(0.08, driven=True)
        assert len(client.goals) == count
        client.accept(False)
        assert bool(gripper.problem) == (count >= 3)
        clock.s += 1.1
    assert 'did not open' in gripper.problem
    assert len(node.get_logger().errors) == 2  # the first, and when it counts as a fault
    gripper.send(0.0, driven=True)  # the policy changes its mind
    assert client.goals[-1].command.position == 0.0
    assert not gripper.problem
    client.accept()
    client.end()
    clock.s += 1.1
    gripper.send(0.0, driven=True)
    assert len(client.goals) == 6


@pytest.mark.parametrize('error', ['', 'libfranka gripper: Command failed!'])
def test_an_aborted_opening_is_repeated(node, packages, clock, error):
    gripper, _, move = hand(node)
    for count in range(1, 7):
        gripper.send(0.08, driven=True)
        assert len(move.goals) == count
        move.abort(success=False, error=error)
        clock.s += 1.1
    assert 'it aborted the goal' in gripper.problem
    assert error in gripper.problem


def test_a_grasp_with_an_error_is_repeated_and_one_without_only_a_few_times(node, packages, clock):
    """executeCommand of franka_gripper aborts with the text of the exception, or without one if `grasp` gave false."""
    gripper, grasp, _ = hand(node)
    for count in range(1, 7):
        gripper.send(0.0, driven=True)
        assert len(grasp.goals) == count
        grasp.abort(success=False, error='libfranka gripper: Command failed!')
        clock.s += 1.1
    gripper, grasp, _ = hand(node)
    for count in (1, 2, 3, 3, 3):
        gripper.send(0.0, driven=True)
        assert len(grasp.goals) == count
        if not grasp.answer.done():
            grasp.abort(success=False, error='')
        clock.s += 1.1
    assert 'did not close' in gripper.problem


@pytest.mark.parametrize(
    ('result', 'again'),
    [
        # ros2_controllers 4.42.1, check_for_success: aborted with stalled, unless allow_stalling
        ({'stalled': True, 'position': 0.02}, False),
        # franka_gripper, executeGripperCommand: the width between the fingers, never stalled
        ({'stalled': False, 'position': 0.03}, False),
        ({'stalled': False, 'position': 0.0}, True),
    ],
)
def test_a_closing_goal_that_was_aborted_on_an_object_is_not_repeated(node, packages, clock, result, again):
    gripper, client = command(node)
    gripper.send(0.0, driven=True)
    client.abort(**result)
    clock.s += 1.1
    gripper.send(0.0, driven=True)
    assert len(client.goals) == (2 if again else 1)
    assert bool(node.get_logger().errors) == again
    assert bool(node.get_logger().warnings) == (not again and not result['stalled'])


def test_a_goal_whose_server_was_restarted_is_sent_again(node, packages, clock, monkeypatch):
    gripper, client = command(node)
    gripper.send(0.08, driven=True)
    client.accept()
    lost = client.result
    monkeypatch.setattr(FakeClient, 'ready', False)
    gripper.send(0.08, driven=True)
    assert 'action server grip has gone' in node.get_logger().errors[0]
    monkeypatch.setattr(FakeClient, 'ready', True)
    clock.s += 1.1
    gripper.send(0.08, driven=True)
    assert len(client.goals) == 2
    lost.set_result(None)
    client.accept()
    client.end()
    assert gripper.problem == ''


def test_no_server_no_goal(node, packages, monkeypatch):
    monkeypatch.setattr(FakeClient, 'ready', False)
    gripper = gripper_action.gripper_command(node, 'grip', 0.08, 0.5, 20.0)
    assert gripper.check() == ['there is no action server grip: start the gripper driver, check topics.gripper_command']
    gripper.send(0.08, driven=True)
    assert not node.clients['grip'].goals
    monkeypatch.setattr(FakeClient, 'ready', True)
    gripper.send(0.08, driven=True)
    assert len(node.clients['grip'].goals) == 1


@pytest.mark.parametrize(
    ('make', 'package'),
    [
        (lambda n: gripper_action.gripper_command(n, 'grip', 0.08, 0.5, 20.0), 'control_msgs'),
        (lambda n: gripper_action.franka_hand(n, 'hand', 0.08, 0.1, 30.0), 'franka_msgs'),
    ],
)
def test_a_message_package_that_is_missing_is_named(node, monkeypatch, make, package):
    monkeypatch.setitem(sys.modules, f'{package}.action', None)
    with pytest.raises(ValueError, match=f'needs {package}/action.* install the ROS package {package}'):
        make(node)
