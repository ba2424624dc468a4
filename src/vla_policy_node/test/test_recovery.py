"""The way back after a fault of the robot, the way home by MoveIt, and waiting for other nodes.

franka_msgs, controller_manager_msgs and moveit_msgs are not among our dependencies: their servers are played, by small
classes or, where the wire matters, with types that we have.
"""

import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from action_msgs.msg import GoalStatus
from rclpy.action import ActionClient, ActionServer, GoalResponse
from rclpy.task import Future
from std_msgs.msg import UInt8
from std_srvs.srv import Trigger

from vla_core.motion.executor import ChunkExecutor
from vla_core.motion.states import Hold, State
from vla_core.profile import RobotProfile
from vla_msgs.action import ExecuteInstruction
from vla_policy_node.executor.watchdogs import Watchdogs
from vla_policy_node.integrations import franka, moveit
from vla_policy_node.integrations.controller_manager import PATIENCE, Controller, ControllerManager
from vla_policy_node.integrations.franka import FrankaState
from vla_policy_node.integrations.moveit import MoveItHome
from vla_policy_node.integrations.needed_controllers import NeededControllers
from vla_policy_node.ros.waiting import StepFailed, act, call, finished

PROFILE = RobotProfile.load(Path(__file__).parents[2] / 'vla_bringup' / 'config' / 'robots' / 'sim_panda.yaml')


# ---- waiting


def test_a_service_answers_or_is_missed(ros):
    node, other = ros.add('executor'), ros.add('other')

    def answer(request, response):
        response.message = 'done'
        return response

    other.create_service(Trigger, 'do', answer)
    done, undone = (node.create_client(Trigger, name) for name in ('do', 'undone'))
    assert ros.run(call(node, done, Trigger.Request(), 10.0)).message == 'done'
    with pytest.raises(StepFailed, match=r'service /undone did not come within 0.1 s'):
        ros.run(call(node, undone, Trigger.Request(), 0.1))


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
    client = ActionClient(node, ExecuteInstruction, 'act')
    if accepts:
        answer = ros.run(act(node, client, 'act', ExecuteInstruction.Goal(), 10.0))
        assert (answer.status, answer.result.message) == (GoalStatus.STATUS_SUCCEEDED, 'done')
    else:
        with pytest.raises(StepFailed, match='action /act refused the goal'):
            ros.run(act(node, client, 'act', ExecuteInstruction.Goal(), 10.0))
    client.destroy()
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


def test_a_robot_that_publishes_nothing_any_more(ros, robot_state, monkeypatch):
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


# ---- controllers. Recovery itself, beside a manager over DDS: tests/test_ros2_control.py


class Manager:
    """What the controller manager /arm/controller_manager is known to have: the name and state of its controllers."""

    name = '/arm/controller_manager'
    find, has_no = ControllerManager.find, ControllerManager.has_no

    def __init__(self, **states):
        self.answers, self.asked = 1, []
        self.known = {name: Controller(name, state, name == 'arm') for name, state in states.items()}

    def look(self, soon):
        self.asked.append(soon)

    def ask(self):
        self.asked.append('now')


def needed(manager, readers, publishers=(), controller_node='', recovers=False):
    def publishers_of(topic):
        ends = (p.rpartition('/') for p in publishers)
        return [SimpleNamespace(node_namespace=space or '/', node_name=name) for space, _, name in ends]

    return NeededControllers(
        SimpleNamespace(get_publishers_info_by_topic=publishers_of),
        manager,
        SimpleNamespace(listeners=lambda: list(readers)),
        controller_node=controller_node,
        topics=['/arm/joint_states'],
        recovers=recovers,
    )


@pytest.mark.parametrize(
    ('state', 'remedy'),
    [
        ('inactive', 'ros2 control switch_controllers -c /arm/controller_manager --activate arm'),
        ('unconfigured', 'ros2 run controller_manager spawner -c /arm/controller_manager arm'),
    ],
)
def test_a_reader_that_is_not_active_is_named_with_the_command_that_switches_it_on(state, remedy):
    controllers = needed(Manager(arm=state), ['/arm/arm'])
    assert controllers.activation_problems() == [f'arm is {state}: switch it on ({remedy})']
    assert controllers.motion_problem() == f'arm is {state}: switch it on ({remedy}) and call ~/resume'
    assert needed(Manager(arm='active'), ['/arm/arm']).motion_problem() == ''


@pytest.mark.parametrize(
    ('manager', 'readers'),
    [
        (None, ['/arm/arm']),
        (Manager(), ['/arm/arm']),  # it has not answered, or not for long
        (Manager(arm='inactive'), ['/sim']),  # the reader is no controller of this manager
        (Manager(arm='inactive'), ['/other/arm']),
        (Manager(arm='inactive', second='active'), ['/arm/arm', '/arm/second']),
    ],
)
def test_what_is_not_known_to_be_inactive_is_never_a_problem(manager, readers):
    controllers = needed(manager, readers)
    assert not (controllers.activation_problems() or controllers.motion_problem() or controllers.silence())


def test_a_named_controller_that_does_not_listen_is_looked_up():
    (problem,) = needed(Manager(arm='unconfigured'), [], controller_node='/arm/arm').activation_problems()
    assert 'arm is unconfigured' in problem
    (problem,) = needed(Manager(arm='active'), [], controller_node='am').activation_problems()
    assert problem == '/arm/controller_manager has no controller am, but arm: load it, or check controller_node'


def test_broadcasters_that_are_off_explain_why_nothing_comes():
    manager = Manager(arm='active', joints='inactive')
    controllers = needed(manager, ['/arm/arm'], ['/arm/joints', '/gripper'], recovers=True)
    assert controllers.silence().endswith('--activate joints), or call ~/recover')
    assert controllers.motion_problem() == ''


def test_those_that_were_active_at_activation_are_remembered():
    manager = Manager(arm='active', joints='active', torques='active', other='inactive')
    controllers = needed(manager, ['/arm/arm'], ['/arm/joints'])
    assert controllers.to_recover() == ['arm', 'joints']  # never activated: those that we need
    manager.known.pop('torques')
    controllers.remember()
    manager.known['torques'] = Controller('torques', 'active', False)
    manager.answers += 1
    controllers.look()  # the answer that was older than the activation is replaced by the next one
    assert controllers.to_recover() == ['arm', 'joints', 'torques']
    manager.known = {name: Controller(name, 'inactive', False) for name in manager.known}
    manager.answers += 1
    controllers.look()
    assert controllers.to_recover() == ['arm', 'joints', 'torques']
    assert manager.asked[-1] is True  # asked more often while it is off


def test_without_answers_the_states_are_not_known_any_more(monkeypatch):
    manager = ControllerManager.__new__(ControllerManager)
    waiting = Future()
    removed = []
    manager.known, manager._answer = {'arm': Controller('arm', 'inactive', True)}, waiting
    manager._again, manager._asked, manager._answered = False, time.monotonic(), time.monotonic()
    manager._list = SimpleNamespace(remove_pending_request=removed.append, service_is_ready=lambda: False)
    manager.look(False)
    assert manager.known and not removed
    manager._asked = manager._answered = time.monotonic() - PATIENCE - 0.1
    manager.look(False)
    assert (manager.known, removed) == ({}, [waiting])


def test_controller_manager_msgs_is_asked_for_by_name(ros, monkeypatch):
    monkeypatch.setitem(sys.modules, 'controller_manager_msgs.srv', None)
    node = ros.add('executor')
    assert ControllerManager.find_or_none(node, 'controller_manager') is None
    with pytest.raises(ValueError, match=r'~/recover needs controller_manager_msgs/srv/ListControllers'):
        ControllerManager(node, 'controller_manager', '~/recover')


def test_an_arm_whose_controller_was_off_starts_again_though_its_joint_states_stood_still():
    core = ChunkExecutor(PROFILE)
    tracking, q = core._tracking, PROFILE.home
    core.observe(q, 0, 0)
    tracking.begin(q)
    for step in range(100):
        tracking.elapse(core.config.period)
        tracking.sent(q + 0.002 * step, 0.2 + 0.0 * q)
        tracking.measured(q, False)
        tracking.check()
    assert core.frozen
    with pytest.raises(ValueError, match='repeat the same values'):
        core.activate(0)
    core.forget_tracking()
    core.activate(0)
    assert core.state is State.HOLDING


# ---- MoveIt


def test_home_is_the_goal_and_its_error_is_reported(ros, monkeypatch):
    goal = SimpleNamespace(request=SimpleNamespace(start_state=SimpleNamespace()), planning_options=SimpleNamespace())
    message = {'Constraints': SimpleNamespace, 'JointConstraint': SimpleNamespace}
    for name, content in {
        'moveit_msgs': {},
        'moveit_msgs.action': {'MoveGroup': SimpleNamespace(Goal=lambda: goal)},
        'moveit_msgs.msg': {**message, 'MoveItErrorCodes': SimpleNamespace(SUCCESS=1)},
    }.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**content))
    node = ros.add('executor')
    monkeypatch.setattr(moveit, 'ActionClient', lambda *_: None)
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

    def forget_tracking(self):
        self.forgiven = True


def watch(topic=None, problem=''):
    core = Core()
    topic = topic or SimpleNamespace(name='/command', there=['/controller'], others=[])
    topic.listeners, topic.competing_publishers = lambda: topic.there, lambda: topic.others
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
    assert core.forgiven  # no controller listened for a while
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
