"""The way back after a fault of the robot, the way home by MoveIt, and waiting for other nodes.

franka_msgs, controller_manager_msgs and moveit_msgs are not among our dependencies: their servers are played, by small
classes or, where the wire matters, with types that we have.
"""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from action_msgs.msg import GoalStatus
from rclpy.action import ActionServer, GoalResponse
from std_msgs.msg import UInt8
from std_srvs.srv import Trigger

from vla_msgs.action import ExecuteInstruction
from vla_policy_node import franka, moveit
from vla_policy_node.core.profile import RobotProfile
from vla_policy_node.core.states import Hold, State
from vla_policy_node.franka import FrankaState, Recovery
from vla_policy_node.moveit import MoveItHome
from vla_policy_node.ros.waiting import StepFailed, act, call, finished
from vla_policy_node.watchdogs import Watchdogs

PROFILE = RobotProfile.load(Path(__file__).parents[2] / 'vla_bringup' / 'config' / 'robots' / 'sim_panda.yaml')


# ---- waiting


def test_a_service_answers_or_is_missed(ros):
    node, other = ros.add('executor'), ros.add('other')

    def answer(request, response):
        response.message = 'done'
        return response

    other.create_service(Trigger, 'do', answer)
    assert ros.run(call(node, Trigger, 'do', Trigger.Request(), 10.0)).message == 'done'
    with pytest.raises(StepFailed, match=r'service /undone did not come within 0.1 s'):
        ros.run(call(node, Trigger, 'undone', Trigger.Request(), 0.1))


def test_a_future_that_does_not_come(ros):
    node = ros.add('executor')
    client = node.create_client(Trigger, 'do')
    with pytest.raises(StepFailed, match=r'it did not answer within 0.05 s'):
        ros.run(finished(node, client.call_async(Trigger.Request()), 0.05, 'it'))


@pytest.mark.parametrize('accepts', [True, False])
def test_an_action_ends_or_is_refused(ros, accepts):
    node, other = ros.add('executor'), ros.add('other')

    def execute(handle):
        handle.succeed()
        return ExecuteInstruction.Result(message='done')

    server = ActionServer(
        other,
        ExecuteInstruction,
        'act',
        execute,
        goal_callback=lambda _: GoalResponse.ACCEPT if accepts else GoalResponse.REJECT,
    )
    if accepts:
        answer = ros.run(act(node, ExecuteInstruction, 'act', ExecuteInstruction.Goal(), 10.0))
        assert (answer.status, answer.result.message) == (GoalStatus.STATUS_SUCCEEDED, 'done')
    else:
        with pytest.raises(StepFailed, match='action /act refused the goal'):
            ros.run(act(node, ExecuteInstruction, 'act', ExecuteInstruction.Goal(), 10.0))
    server.destroy()


# ---- the robot's mode


@pytest.fixture
def robot_state(monkeypatch):
    """FrankaRobotState, played by a message that we have."""
    monkeypatch.setattr(UInt8, 'robot_mode', property(lambda message: message.data), raising=False)
    monkeypatch.setitem(sys.modules, 'franka_msgs', SimpleNamespace())
    monkeypatch.setitem(sys.modules, 'franka_msgs.msg', SimpleNamespace(FrankaRobotState=UInt8))


@pytest.mark.parametrize(
    ('mode', 'says'), [(2, ''), (4, 'in mode REFLEX: .*~/recover'), (5, 'USER_STOPPED: release'), (9, 'number 9')]
)
def test_only_two_modes_allow_motion(ros, robot_state, mode, says):
    robot = FrankaState(ros.add('executor'), 'robot_state')
    assert 'no robot state on /robot_state' in robot.problem()
    publisher = ros.add('broadcaster').create_publisher(UInt8, 'robot_state', 1)
    ros.wait(publisher.get_subscription_count, 'the executor listens')
    publisher.publish(UInt8(data=1))  # an older one
    publisher.publish(UInt8(data=mode))
    if says:
        problem = ros.wait(lambda: 'mode' in robot.problem() and robot.problem(), 'the mode')
        assert re.search(says, problem)
    else:
        ros.wait(lambda: not robot.problem(), 'the mode')


def test_a_robot_that_tells_nothing_any_more(ros, robot_state, monkeypatch):
    robot = FrankaState(ros.add('executor'), 'robot_state')
    publisher = ros.add('broadcaster').create_publisher(UInt8, 'robot_state', 1)
    ros.wait(publisher.get_subscription_count, 'the executor listens')
    publisher.publish(UInt8(data=2))
    ros.wait(lambda: not robot.problem(), 'the mode')
    monkeypatch.setattr(franka, 'SILENT', -1.0)
    assert 'is franka_robot_state_broadcaster active?' in robot.problem()


def test_franka_msgs_is_asked_for_by_name(ros, monkeypatch):
    monkeypatch.setitem(sys.modules, 'franka_msgs.msg', None)
    with pytest.raises(ValueError, match=r'topics.robot_state needs franka_msgs/msg/FrankaRobotState'):
        FrankaState(ros.add('executor'), 'robot_state')


# ---- recovery


class Robot:
    """What stands behind the steps of a recovery. fails: the step that does not go well."""

    def __init__(self, fails=''):
        self.fails, self.did, self.mode = fails, [], 'REFLEX'

    def problem(self):
        return '' if self.mode == 'IDLE' else f'mode {self.mode}'

    async def act(self, node, kind, name, goal, seconds):
        self.did.append(name)
        good = self.fails != 'error recovery'
        return SimpleNamespace(status=GoalStatus.STATUS_SUCCEEDED if good else GoalStatus.STATUS_ABORTED)

    async def call(self, node, kind, name, request, seconds):
        self.did.append(name.removeprefix('controller_manager/'))
        if name.endswith('list_controllers'):
            state = SimpleNamespace(name='arm', state='inactive'), SimpleNamespace(name='state', state='active')
            return SimpleNamespace(controller=state)
        if name.endswith('switch_controller'):
            self.did.append(request.activate_controllers)
            if self.fails != 'mode':
                self.mode = 'IDLE'
            return SimpleNamespace(ok=self.fails != 'controllers')
        assert (request.name, request.target_state.label) == ('Hardware', 'active')
        return SimpleNamespace(ok=self.fails != 'hardware')

    async def appeared(self, node, ready, seconds, what):
        if not ready():
            raise StepFailed(what)


class Request(SimpleNamespace):
    STRICT = 2


def service():
    def make(**fields):
        return Request(target_state=SimpleNamespace(), **fields)

    make.STRICT = 2
    return SimpleNamespace(Request=make)


@pytest.fixture
def packages(monkeypatch):
    services = ('SetHardwareComponentState', 'SwitchController', 'ListControllers')
    for name, content in {
        'franka_msgs': {},
        'franka_msgs.action': {'ErrorRecovery': SimpleNamespace(Goal=SimpleNamespace)},
        'controller_manager_msgs': {},
        'controller_manager_msgs.srv': {n: service() for n in services},
    }.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**content))


def recovery(robot, monkeypatch):
    for name in ('act', 'call', 'appeared'):
        monkeypatch.setattr(franka, name, getattr(robot, name))
    return Recovery(
        SimpleNamespace(), robot, action='error_recovery', hardware='Hardware', controllers=['arm', 'state', ''],
        seconds=1.0,
    )  # fmt: skip


def test_recovery_goes_through_its_steps(ros, packages, monkeypatch):
    robot = Robot()
    ros.add('executor')
    ros.run(recovery(robot, monkeypatch).run())
    steps = ['error_recovery', 'set_hardware_component_state', 'list_controllers', 'switch_controller', ['arm']]
    assert robot.did == steps


@pytest.mark.parametrize(
    ('fails', 'says'),
    [
        ('error recovery', 'error recovery ended with status 6: is the stop button released'),
        ('hardware', 'hardware component Hardware could not be activated'),
        ('controllers', 'arm could not be switched on'),
        ('mode', 'a mode of the robot in which it may move'),
    ],
)
def test_the_step_that_fails_is_told(ros, packages, monkeypatch, fails, says):
    ros.add('executor')
    with pytest.raises(StepFailed, match=says):
        ros.run(recovery(Robot(fails), monkeypatch).run())


# ---- MoveIt


def test_home_is_the_goal_and_its_error_is_told(ros, monkeypatch):
    goal = SimpleNamespace(request=SimpleNamespace(start_state=SimpleNamespace()), planning_options=SimpleNamespace())
    message = {'Constraints': SimpleNamespace, 'JointConstraint': SimpleNamespace}
    for name, content in {
        'moveit_msgs': {},
        'moveit_msgs.action': {'MoveGroup': SimpleNamespace(Goal=lambda: goal)},
        'moveit_msgs.msg': {**message, 'MoveItErrorCodes': SimpleNamespace(SUCCESS=1)},
    }.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**content))
    node = ros.add('executor')
    home = MoveItHome(node, PROFILE, group='arm', speed=0.1, seconds=5.0)
    joints = home.goal().request.goal_constraints[0].joint_constraints
    assert [j.joint_name for j in joints] == list(PROFILE.joint_names)
    assert [j.position for j in joints] == list(PROFILE.home)
    codes = [1, 99999]

    async def answer(*_):
        return SimpleNamespace(result=SimpleNamespace(error_code=SimpleNamespace(val=codes.pop(0))))

    monkeypatch.setattr(moveit, 'act', answer)
    ros.run(home.run(None))
    with pytest.raises(StepFailed, match='error code 99999'):
        ros.run(home.run(None))


def test_moveit_is_asked_for_by_name(ros, monkeypatch):
    monkeypatch.setitem(sys.modules, 'moveit_msgs.action', None)
    with pytest.raises(ValueError, match=r'moveit.enabled needs moveit_msgs/action/MoveGroup'):
        MoveItHome(ros.add('executor'), PROFILE, group='arm', speed=0.1, seconds=5.0)


# ---- watchdogs


class Core:
    """Remembers what it is told."""

    def __init__(self):
        self.state, self.hold, self.at_rest, self.age, self.faults = State.EXECUTING, Hold.NONE, False, 0.1, {}

    def chunk_age(self, now):
        return self.age

    def fault(self, hold, message):
        self.faults[hold] = message

    def clear(self, hold):
        self.faults.pop(hold, None)


def watch(topic=None, problem=''):
    core = Core()
    topic = topic or SimpleNamespace(name='/command', there=['/controller'], others=[])
    topic.listeners, topic.rivals = lambda: topic.there, lambda: topic.others
    robot = SimpleNamespace(says=problem)
    topic.joints = SimpleNamespace(ask=lambda: topic.gone, wrong=lambda: topic.wrong, outstanding=lambda: topic.unknown)
    topic.wrong, topic.unknown, topic.gone = [], [], []
    dogs = Watchdogs(
        core, topic, topic.joints, require_controller=True, chunk_max_age=1.0, robot_problem=lambda: robot.says
    )
    return core, topic, robot, dogs


def test_faults_stay_until_released_when_their_cause_is_gone():
    core, topic, robot, dogs = watch()
    dogs.look(0)
    assert not core.faults
    topic.there, topic.others, robot.says = [], ['/teleop'], 'the robot is in mode GUIDING'
    dogs.look(0)
    assert set(core.faults) == {Hold.CONTROLLER_MISSING, Hold.COMPETING_PUBLISHER, Hold.ROBOT_FAULT}
    assert not dogs.silent  # it brakes first
    core.at_rest = True
    assert dogs.silent
    topic.there, topic.others = ['/controller'], []
    dogs.look(0)
    assert len(core.faults) == 3
    assert dogs.release() == ['the robot is in mode GUIDING']
    assert set(core.faults) == {Hold.ROBOT_FAULT}
    assert dogs.silent
    robot.says = ''
    assert not dogs.release()
    assert not dogs.silent
    assert not core.faults


def test_a_controller_that_came_back_with_other_joints_gets_no_set_points():
    core, topic, _, dogs = watch()
    topic.wrong = ['/controller moves the joints']
    dogs.look(0)
    assert core.faults == {Hold.CONTROLLER_MISSING: '/controller moves the joints, then call ~/resume'}
    core.at_rest = True
    topic.wrong, topic.unknown = [], ['/controller has not answered']
    assert dogs.release() == ['/controller has not answered']
    assert dogs.silent
    topic.unknown = []
    assert not dogs.release()
    assert not dogs.silent


def test_a_controller_that_ended_its_subscription_is_missed_though_another_node_reads():
    core, topic, _, dogs = watch()
    topic.gone = ['/controller']
    dogs.look(0)
    assert '/controller ended its subscription of /command' in core.faults[Hold.CONTROLLER_MISSING]
    topic.gone, core.at_rest = [], True
    dogs.look(0)
    assert dogs.silent
    assert not dogs.release()
    assert not dogs.silent


def test_an_old_observation_stops_the_arm_until_a_fresh_chunk_comes():
    core, _, _, dogs = watch()
    core.age = 1.1
    dogs.look(0)
    assert '1.10 s old, chunk_max_age is 1 s' in core.faults[Hold.CHUNK_STALE]
    core.hold, core.at_rest, core.age = Hold.CHUNK_STALE, True, 0.0
    now = 5_000_000_000
    dogs.chunk_came(now - 1_200_000_000, now)
    assert core.faults
    dogs.chunk_came(now - 100_000_000, now)
    assert not core.faults


def test_an_inactive_executor_watches_nothing():
    core, _, _, dogs = watch(problem='guided')
    core.state = State.INACTIVE
    asked = []
    dogs._robot_problem = lambda: asked.append(True)
    dogs.look(0)
    assert not core.faults
    assert asked  # old states of the robot are taken, so that none counts as new at activation


def test_a_chunk_from_the_future_is_no_fresh_one():
    core, _, _, dogs = watch()
    core.faults[Hold.CHUNK_STALE] = 'old'
    core.hold, core.at_rest = Hold.CHUNK_STALE, True
    dogs.chunk_came(3_600_000_000_000, 0)
    assert core.faults
