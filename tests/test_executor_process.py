"""The executor as a process: lifecycle, refusals, stops, and what the controller receives."""

import array
import math
import signal

import numpy as np
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Float64MultiArray
from std_srvs.srv import Trigger

from vla_core.profile import RobotProfile
from vla_msgs.msg import ActionChunk, ExecutorStatus
from vla_policy_node.ros.chunk_msg import to_ns

from .conftest import ROBOT

PROFILE = RobotProfile.load(ROBOT)
GRIPPER = 'gripper/gripper_position_controller/commands'
UNMONITORED = {'collision_monitor.enabled': 'false'}  # there is no robot description
LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def chunk(node, start, epoch, sequence, speed=0.2, horizon=40, **changes):
    """A chunk of /tester that moves every joint at `speed` [rad/s] from `start` (dof,) [rad], stamped now."""
    steps = start + speed * 0.05 * np.arange(1, horizon + 1)[:, None]
    fields = {
        'epoch': epoch,
        'sequence': sequence,
        'source': '/tester',
        'joint_names': list(PROFILE.joint_names),
        'dt': 0.05,
        'horizon': horizon,
        'positions': array.array('d', steps.ravel()),
        **changes,
    }
    msg = ActionChunk(**fields)
    msg.header.stamp = node.get_clock().now().to_msg()
    return msg


class Robot:
    """The rest of the robot, played by the test: joint states out at every wait, set-points in."""

    def __init__(self, graph):
        self.graph = graph
        self.joints = graph.node.create_publisher(JointState, 'joint_states', 5)
        self.chunks = graph.node.create_publisher(ActionChunk, 'action_chunk', 5)
        self.targets = []
        self.listen()
        graph.latest(Float64MultiArray, GRIPPER, 1)
        self.statuses = graph.latest(ExecutorStatus, 'executor/status', LATCHED)
        self.home = PROFILE.home.copy()
        self.silent = False
        self.blocked = {}  # joint index -> where it stays [rad]
        self.spoil = lambda msg: None  # what the driver makes of a joint state
        self.sequence = 0
        graph.node.create_timer(0.01, self.publish_joints)

    def listen(self):
        self.controller = self.graph.node.create_subscription(JointState, 'target_joint', self.targets.append, 1)

    @property
    def status(self):
        return self.graph.wait(lambda: self.statuses and self.statuses[-1], what='executor status')

    def publish_joints(self):
        if self.silent:
            return
        if self.targets:
            self.home = np.array(self.targets[-1].position)
        for joint, position in self.blocked.items():
            self.home[joint] = position
        still = array.array('d', [0.0] * PROFILE.dof)
        msg = JointState(name=list(PROFILE.joint_names), position=array.array('d', self.home), velocity=still)
        msg.header.stamp = self.graph.node.get_clock().now().to_msg()
        self.spoil(msg)
        self.joints.publish(msg)

    def send(self, speed=0.2, horizon=40, **changes):
        """A chunk that moves every joint at `speed` [rad/s] from where it is."""
        self.sequence += 1
        epoch = changes.pop('epoch', self.status.epoch)
        self.chunks.publish(chunk(self.graph.node, self.home, epoch, self.sequence, speed, horizon, **changes))

    def until(self, condition, what, **kwargs):
        return self.graph.wait(lambda: condition(self.status), what=what, **kwargs)

    def ready(self):
        self.graph.bring_up('executor')
        self.graph.wait(lambda: self.chunks.get_subscription_count() > 0, what='executor listening')
        self.until(lambda s: s.state == ExecutorStatus.STATE_HOLDING, 'holding')
        self.graph.wait(lambda: self.targets, what='set-points')

    def moving(self, **kwargs):
        self.until(
            lambda s: s.state == ExecutorStatus.STATE_HOLDING and s.hold_reason != s.HOLD_OPERATOR_STOP, 'ready to move'
        )
        self.send(**kwargs)
        self.until(lambda s: s.state == ExecutorStatus.STATE_EXECUTING, 'executing')
        start = np.array(self.targets[-1].position)
        self.graph.wait(lambda: np.abs(np.array(self.targets[-1].position) - start).max() > 0.02, what='motion')


def test_lifecycle_round_trip_and_holding_still(graph):
    p = graph.start('vla_policy_node', 'executor_node', params=UNMONITORED)
    assert graph.transition('executor', graph.CONFIGURE)
    assert not graph.transition('executor', graph.ACTIVATE)
    for text in (
        'a controller does not subscribe to /target_joint: start the controller',
        f'nobody listens to /{GRIPPER}: start the gripper controller',
    ):
        assert text in graph.output(p)
    robot = Robot(graph)
    robot.silent = True
    graph.wait(lambda: robot.chunks.get_subscription_count() > 0, what='executor listening')

    def told():
        return not graph.transition('executor', graph.ACTIVATE) and 'no joint state received yet' in graph.output(p)

    graph.wait(told, what='the controller is seen, joint states are not')
    robot.silent = False
    assert graph.state('executor') == 'inactive'
    assert not graph.transition('executor', graph.CONFIGURE)  # not allowed now, and the node lives on
    assert graph.transition('executor', graph.CLEANUP)
    for _ in range(2):
        graph.bring_up('executor')
        robot.targets.clear()
        graph.wait(lambda: len(robot.targets) > 20, what='set-points')
        np.testing.assert_allclose(robot.targets[-1].position, PROFILE.home, atol=1e-9)
        assert list(robot.targets[-1].velocity) == [0.0] * 7
        assert graph.transition('executor', graph.DEACTIVATE)
        assert graph.transition('executor', graph.CLEANUP)
        assert graph.state('executor') == 'unconfigured'
    assert graph.stop(p, signal.SIGTERM) == 0


def test_configure_without_profile_or_with_a_bad_parameter_reports_it(graph):
    p = graph.start('vla_policy_node', 'executor_node', files=())
    assert not graph.transition('executor', graph.CONFIGURE)
    assert 'robot.name' in graph.output(p)
    q = graph.start('vla_policy_node', 'executor_node', params={'__node': 'x'}, files=())
    assert graph.stop(q) is not None
    graph.processes.remove(q)


def test_refusals_are_reported_and_the_arm_holds(graph):
    graph.start('vla_policy_node', 'executor_node', params=UNMONITORED)
    robot = Robot(graph)
    robot.ready()
    nan = array.array('d', [math.nan] * 280)
    cases = [
        ({'epoch': robot.status.epoch + 3}, ExecutorStatus.REJECT_OLD_EPOCH),
        ({'positions': nan}, ExecutorStatus.REJECT_NOT_FINITE),
        ({'joint_names': ['elbow'] * 7}, ExecutorStatus.REJECT_WRONG_JOINTS),
        ({'dt': 0.0}, ExecutorStatus.REJECT_WRONG_SIZE),
        ({'positions': array.array('d', [9.0] * 280)}, ExecutorStatus.REJECT_OUT_OF_LIMITS),
        ({'shadow': True}, ExecutorStatus.REJECT_SHADOW),
    ]
    for changes, verdict in cases:
        robot.send(**changes)
        status = robot.until(lambda s, v=verdict: s.verdict_counts[v] and s, f'verdict {verdict}')
        assert status.state == ExecutorStatus.STATE_HOLDING
    np.testing.assert_allclose(robot.targets[-1].position, PROFILE.home, atol=1e-9)


def test_moves_then_brakes_when_chunks_stop_and_the_epoch_grows(graph):
    graph.start('vla_policy_node', 'executor_node', params=UNMONITORED)
    robot = Robot(graph)
    robot.ready()
    epoch = robot.status.epoch
    robot.moving(horizon=10)
    status = robot.until(lambda s: s.state == ExecutorStatus.STATE_HOLDING and s, 'at rest')
    assert status.hold_reason == ExecutorStatus.HOLD_CHUNKS_STOPPED
    assert status.epoch == epoch + 1
    assert status.message
    speed = np.abs(np.diff([m.position for m in robot.targets], axis=0)).max() / 0.01
    assert speed < 1.0
    robot.send(epoch=epoch)
    robot.until(lambda s: s.verdict_counts[ExecutorStatus.REJECT_OLD_EPOCH], 'the old epoch is refused')


def test_a_blocked_arm_is_let_go_and_stays_until_an_operator_resumes(graph):
    graph.start('vla_policy_node', 'executor_node', params=UNMONITORED)
    robot = Robot(graph)
    robot.ready()
    robot.blocked = {3: robot.home[3]}
    robot.send(speed=0.3)
    status = robot.until(lambda s: s.hold_reason == ExecutorStatus.HOLD_BLOCKED and s, 'blocked')
    assert 'panda_joint4' in status.message
    graph.wait(lambda: abs(robot.targets[-1].position[3] - robot.blocked[3]) < 1e-9, what='it pushes no more')
    robot.until(lambda s: s.state == ExecutorStatus.STATE_HOLDING, 'at rest')
    refused = ExecutorStatus.REJECT_NOT_ACCEPTING
    robot.send()
    status = robot.until(lambda s: s.verdict_counts[refused] and s, 'no chunk is taken')
    assert status.hold_reason == ExecutorStatus.HOLD_BLOCKED
    robot.blocked = {}
    assert graph.call(Trigger, 'executor/resume').success
    robot.until(lambda s: s.hold_reason == ExecutorStatus.HOLD_IDLE, 'it takes chunks again')
    robot.moving()


def test_operator_stop_and_resume(graph):
    graph.start('vla_policy_node', 'executor_node', params=UNMONITORED)
    robot = Robot(graph)
    robot.ready()
    robot.moving()
    assert graph.call(Trigger, 'executor/stop').success
    robot.until(lambda s: s.state == ExecutorStatus.STATE_HOLDING, 'at rest')
    robot.send()
    robot.until(lambda s: s.verdict_counts[ExecutorStatus.REJECT_NOT_ACCEPTING], 'refused while stopped')
    assert graph.call(Trigger, 'executor/resume').success
    robot.moving()


def test_emergency_stop_holds_until_it_is_released_and_resumed(graph):
    graph.start('vla_policy_node', 'executor_node', params=UNMONITORED)
    robot = Robot(graph)
    robot.ready()
    robot.moving()
    stop = graph.node.create_publisher(Bool, 'executor/emergency_stop', LATCHED)
    stop.publish(Bool(data=True))
    status = robot.until(lambda s: s.state == ExecutorStatus.STATE_HOLDING and s, 'at rest')
    assert status.hold_reason == ExecutorStatus.HOLD_EMERGENCY_STOP
    assert 'publish false on ~/emergency_stop' in graph.call(Trigger, 'executor/resume').message
    assert graph.transition('executor', graph.DEACTIVATE)  # does not help to get round it
    assert not graph.transition('executor', graph.ACTIVATE)
    stop.publish(Bool(data=False))
    graph.wait(lambda: graph.call(Trigger, 'executor/resume').success, what='released')
    assert graph.transition('executor', graph.ACTIVATE)
    robot.moving()


def test_two_masters_are_none(graph):
    graph.start('vla_policy_node', 'executor_node', params=UNMONITORED)
    robot = Robot(graph)
    robot.ready()
    robot.moving()
    rival = graph.node.create_publisher(JointState, 'target_joint', 1)
    status = robot.until(lambda s: s.hold_reason == ExecutorStatus.HOLD_COMPETING_PUBLISHER and s, 'the rival is seen')
    assert '/test also publishes on /target_joint' in status.message
    robot.until(lambda s: s.state == ExecutorStatus.STATE_HOLDING, 'at rest')
    for _ in range(2):  # what was under way when the arm came to rest arrives in the first round
        robot.targets.clear()
        seen = len(robot.statuses)
        graph.wait(lambda n=seen: len(robot.statuses) > n + 2, what='statuses')
    assert not robot.targets
    assert not graph.call(Trigger, 'executor/resume').success
    graph.node.destroy_publisher(rival)
    graph.wait(lambda: graph.call(Trigger, 'executor/resume').success, what='the rival is gone')
    robot.moving()


def test_a_controller_that_goes_takes_over_from_where_the_arm_is(graph):
    graph.start('vla_policy_node', 'executor_node', params=UNMONITORED)
    robot = Robot(graph)
    robot.ready()
    robot.moving()
    graph.node.destroy_subscription(robot.controller)
    robot.until(lambda s: s.state == ExecutorStatus.STATE_HOLDING, 'at rest')
    assert robot.status.hold_reason == ExecutorStatus.HOLD_CONTROLLER_MISSING
    assert not graph.call(Trigger, 'executor/resume').success
    robot.targets.clear()
    robot.home = robot.home - 0.05  # the arm sagged meanwhile
    robot.until(lambda s: s.tracking_error > 0.04, 'the executor has heard of it')
    robot.listen()
    graph.wait(lambda: graph.call(Trigger, 'executor/resume').success, what='the controller is back')
    graph.wait(lambda: robot.targets, what='set-points')
    np.testing.assert_allclose(robot.targets[0].position, robot.home, atol=1e-9)


def test_frozen_joint_states_stop_the_arm(graph):
    graph.start('vla_policy_node', 'executor_node', params=UNMONITORED)
    robot = Robot(graph)
    robot.ready()
    robot.moving()
    robot.silent = True
    status = robot.until(lambda s: s.state == ExecutorStatus.STATE_HOLDING and s, 'at rest')
    assert status.hold_reason == ExecutorStatus.HOLD_JOINT_STATE_STALE
    robot.silent = False
    robot.until(lambda s: s.hold_reason == ExecutorStatus.HOLD_IDLE, 'idle again')


def test_joint_states_that_cannot_be_trusted_are_refused_with_the_reason(graph):
    p = graph.start('vla_policy_node', 'executor_node', params=UNMONITORED)
    robot = Robot(graph)

    def ahead(msg):
        msg.header.stamp.sec += 3600

    def degrees(msg):
        msg.position = array.array('d', np.rad2deg(msg.position))

    robot.spoil = ahead  # from the first on
    assert graph.transition('executor', graph.CONFIGURE)
    for spoil, says in (
        (ahead, 's ahead of the clock: synchronise the clocks'),
        (degrees, 'degrees instead of radians'),
    ):
        robot.spoil = spoil

        def refused(says=says):
            return not graph.transition('executor', graph.ACTIVATE) and says in graph.output(p)

        graph.wait(refused, what=says)
        robot.until(lambda s, says=says: says in s.message, 'the status has it, too')
    assert not robot.targets
    robot.spoil = lambda msg: None
    robot.ready()
    robot.moving()
    robot.spoil = ahead
    status = robot.until(lambda s: s.state == ExecutorStatus.STATE_HOLDING and s, 'at rest')
    assert status.hold_reason == ExecutorStatus.HOLD_JOINT_STATE_STALE
    assert 'ahead of the clock' in status.message
    assert status.joint_state_age > 0.2


def test_values_that_stand_still_in_motion_are_reported_as_frozen(graph):
    graph.start('vla_policy_node', 'executor_node', params=UNMONITORED)
    robot = Robot(graph)
    robot.ready()
    robot.moving()
    old = array.array('d', robot.home)

    def repeat(msg):
        msg.position = old

    robot.spoil = repeat
    status = robot.until(lambda s: s.state == ExecutorStatus.STATE_HOLDING and s, 'at rest')
    assert status.hold_reason == ExecutorStatus.HOLD_JOINT_STATE_FROZEN
    assert 'the driver repeats old values' in status.message
    assert np.abs(np.array(robot.targets[-1].position) - old).max() > 0.04  # not let go to the old reading
    assert 'repeats old values' in graph.call(Trigger, 'executor/resume').message
    robot.spoil = lambda msg: None
    graph.wait(lambda: graph.call(Trigger, 'executor/resume').success, what='the values move again')
    robot.moving()


def test_a_signal_in_motion_brakes_before_the_process_ends(graph):
    p = graph.start('vla_policy_node', 'executor_node', params=UNMONITORED)
    robot = Robot(graph)
    robot.ready()
    robot.moving(speed=0.4)
    p.send_signal(signal.SIGINT)
    graph.wait(lambda: p.poll() is not None, what='the executor ends')
    assert p.returncode == 0
    robot.graph.wait(lambda: list(robot.targets[-1].velocity) == [0.0] * 7, what='the last set-point stands still')
    last = robot.targets[-60:]
    speeds = np.array([np.abs(m.velocity).max() for m in last])
    times = np.array([to_ns(m.header.stamp) for m in last]) * 1e-9
    assert speeds.max() > 0.2
    assert (np.diff(speeds) / np.diff(times)).min() > -7.5  # it slowed down within the limits, it did not stop dead
