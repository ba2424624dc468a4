"""Verdicts of the doctor on a robot, from synthetic graphs and messages."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from rclpy.duration import Duration
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, Image, JointState

from vla_bringup.doctor.check import Check, Verdict
from vla_bringup.doctor.listen import Listener, Received
from vla_bringup.doctor.robot import (
    camera_checks,
    clock_checks,
    controller_checks,
    executor_check,
    gripper_check,
    joint_checks,
    policy_check,
)
from vla_bringup.doctor.wiring import Wiring, of_profile
from vla_bringup.graph import Graph, Topic, to_markdown
from vla_core.profile import profile_path
from vla_msgs.msg import ExecutorStatus, PolicyStatus
from vla_policy_node.ros.chunk_msg import to_time

OK, WARN, FAIL = Verdict.OK, Verdict.WARN, Verdict.FAIL
WIRING = Wiring('test', {'front': '/front/image_raw'}, '/joint_states', ('j1', 'j2'), '/target_joint')


def verdicts(checks):
    return [c.verdict for c in ([checks] if isinstance(checks, Check) else checks)]


def topic(kind, publishers=('/sim',), subscribers=('/policy',), rate=100.0):
    stamps = [i / rate for i in range(10)] if rate else []
    return Topic([kind], list(publishers), list(subscribers), 'reliable', stamps)


def received(newest=None, rate=100.0, age=0.01, **more):
    times = [i / rate for i in range(10)] if newest is not None else []
    return Received(times=times, ages=[age] * len(times), newest=newest, **more)


def joints(names=('j1', 'j2'), velocity=(0.0, 0.0)):
    return JointState(name=list(names), position=[0.0] * len(names), velocity=list(velocity))


@pytest.mark.parametrize(
    ('state', 'verdict', 'text'),
    [
        (received(joints()), OK, '2 joints'),
        (received(joints(), rate=30.0), WARN, '30 Hz'),
        (received(joints(), age=0.5), FAIL, '500 ms'),
        (received(), FAIL, 'no message is received'),
        (received(joints(names=('k1', 'k2'))), FAIL, 'j1'),
        (received(joints(velocity=())), FAIL, 'velocities'),
    ],
)
def test_joint_states(state, verdict, text):
    graph = Graph({}, {'/joint_states': topic('sensor_msgs/msg/JointState')}, {}, {})
    checks = list(joint_checks(graph, WIRING, state))
    assert verdicts(checks) == [verdict]
    assert text in checks[0].fact
    assert bool(checks[0].remedy) is (verdict is not OK)


def test_joint_states_without_publisher_fail():
    assert verdicts(joint_checks(Graph({}, {}, {}, {}), WIRING, received())) == [FAIL]


def image(encoding='rgb8', width=4, height=3):
    size = {'rgb8': 3, '32FC1': 4}[encoding]
    return Image(
        width=width, height=height, encoding=encoding, step=width * size, data=np.zeros(width * height * size, np.uint8)
    )


def info(width=4, focal=1.0):
    return CameraInfo(width=width, height=3, k=np.array([focal, 0, 0, 0, focal, 0, 0, 0, 1], float))


@pytest.mark.parametrize(
    ('images', 'infos', 'expected'),
    [
        (received(image(), 10.0), received(info()), [OK]),
        (received(image(), 2.0), received(info()), [WARN]),
        (received(image(), 10.0, age=0.5), received(info()), [FAIL]),
        (received(), received(), [FAIL]),
        (received(image('32FC1'), 10.0), received(info()), [FAIL]),
        (received(image(), 10.0), received(), [OK, WARN]),
        (received(image(), 10.0), received(info(width=8)), [OK, WARN]),
        (received(image(), 10.0), received(info(focal=0.0)), [OK, WARN]),
    ],
)
def test_cameras(images, infos, expected):
    graph = Graph({}, {'/front/image_raw': topic('sensor_msgs/msg/Image')}, {}, {})
    assert verdicts(camera_checks(graph, 'front', '/front/image_raw', images, infos, 0.3)) == expected


def test_a_camera_without_publisher_fails():
    assert verdicts(camera_checks(Graph({}, {}, {}, {}), 'front', '/front', received(), received(), 0.3)) == [FAIL]


def endpoint(name, kind='sensor_msgs/msg/JointState', **qos):
    profile = QoSProfile(depth=1, **qos)
    return SimpleNamespace(node_name=name, node_namespace='/', topic_type=kind, qos_profile=profile)


@pytest.mark.parametrize(
    ('readers', 'writers', 'joints', 'expected'),
    [
        (['controller'], ['executor'], ['j1', 'j2'], [OK, OK]),
        (['controller'], ['executor'], [], [OK, OK]),
        (['controller'], ['executor'], ['j1', 'k2'], [FAIL, OK]),
        ([], [], [], [FAIL]),
        (['rosbag2_recorder'], ['executor'], [], [FAIL, OK]),
        (['controller'], ['executor', 'teleop'], [], [OK, FAIL]),
        ([endpoint('c', 'trajectory_msgs/msg/JointTrajectory')], [], [], [FAIL]),
        ([endpoint('c', durability=DurabilityPolicy.TRANSIENT_LOCAL)], [], [], [FAIL]),
        ([endpoint('c', deadline=Duration(seconds=1))], [], [], [FAIL]),
    ],
)
def test_subscribers_and_publishers_of_the_command_topic(readers, writers, joints, expected):
    node = SimpleNamespace(
        get_subscriptions_info_by_topic=lambda _: [endpoint(r) if isinstance(r, str) else r for r in readers],
        get_publishers_info_by_topic=lambda _: [endpoint(w) for w in writers],
    )
    assert verdicts(controller_checks(node, WIRING, lambda _: {'joints': joints})) == expected


HAND = replace(WIRING, gripper_names=('f1', 'f2'), gripper_topic='/hand/joint_states')


def fingers(names=('f1', 'f2')):
    return joints(names, [0.0] * len(names))


@pytest.mark.parametrize(
    ('state', 'verdict', 'text'),
    [
        (received(fingers(), rate=50.0), OK, '50.0 Hz, at most 0.02 s apart, limit 0.3 s, opening 0 mm, 10 ms old'),
        (received(fingers(), rate=10.0), OK, '10.0 Hz'),
        (received(fingers(), rate=5.0), WARN, '5.0 Hz'),
        (received(fingers(), rate=2.0), FAIL, '2.0 Hz, at most 0.50 s apart, limit 0.3 s'),
        (received(fingers(), rate=20.0, age=0.5), FAIL, '500 ms old'),
        (received(fingers(('g1', 'g2')), rate=20.0), FAIL, 'f1'),
        (received(), FAIL, 'no message is received'),
    ],
)
def test_the_gripper(state, verdict, text):
    graph = Graph({}, {'/hand/joint_states': topic('sensor_msgs/msg/JointState')}, {}, {})
    check = gripper_check(graph, HAND, state)
    assert (check.verdict, bool(check.remedy)) == (verdict, verdict is not OK)
    assert text in check.fact


def test_a_gripper_on_another_topic_is_named_and_an_arm_without_gripper_has_a_check():
    check = gripper_check(Graph({}, {}, {}, {}), HAND, received())
    assert check.verdict is FAIL
    assert check.fact == '/hand/joint_states has no publisher: the policy will not start'
    assert 'check topics.gripper_joint_states of the profile (franka_ros2 has called it fr3_gripper' in check.remedy
    graph = Graph({}, {'/fr3_gripper/joint_states': topic('sensor_msgs/msg/JointState')}, {}, {})
    assert 'there is /fr3_gripper/joint_states' in gripper_check(graph, HAND, received()).remedy
    assert gripper_check(graph, WIRING, received()).fact == 'none: robot.gripper_joint_names is empty'


def test_arm_and_fingers_of_two_publishers_on_one_topic_are_separated(monkeypatch):
    wiring = replace(HAND, gripper_topic='/joint_states', cameras={})
    callbacks = []
    node = SimpleNamespace(create_subscription=lambda kind, topic, take, profile: callbacks.append(take))
    subscriptions = Listener(SimpleNamespace(node=node), [wiring], {}, sim_time=False)
    assert (
        set(subscriptions.topics)
        == {'/joint_states', '/joint_states (fingers)'}
        == {wiring.joint_topic, wiring.fingers}
    )
    for names in [('x',), ('f1', 'f2'), ('j1', 'j2'), ('f1', 'f2'), ('j1', 'j2'), ('x',)]:
        for take in callbacks:
            take(joints(names, [0.0] * len(names)))
    for name, own in (('/joint_states', ['j1', 'j2']), ('/joint_states (fingers)', ['f1', 'f2'])):
        assert (subscriptions.topics[name].newest.name, len(subscriptions.topics[name].times)) == (own, 2)


@pytest.mark.parametrize('where', ['sender', 'machine'])
def test_a_clock_that_is_set_back_while_the_doctor_listens_is_named_once(monkeypatch, where):
    callbacks, ns = [], 1_000_000_000
    node = SimpleNamespace(create_subscription=lambda kind, topic, take, profile: callbacks.append(take))
    subscriptions = Listener(SimpleNamespace(node=node), [replace(WIRING, cameras={})], {}, sim_time=False)
    for i in range(20):
        wall = 1000 * ns + i * ns // 100
        stamp = wall - ns // 4 if i >= 10 else wall
        now = stamp if where == 'machine' else wall
        monkeypatch.setattr('vla_bringup.doctor.listen.time.time_ns', lambda now=now: now)
        monkeypatch.setattr('vla_bringup.doctor.listen.time.monotonic_ns', lambda i=i: i * ns // 100)
        msg = joints()
        msg.header.stamp = to_time(stamp)
        callbacks[0](msg)
    found = [c for c in clock_checks(Graph({}, {}, {}, {}), [WIRING], subscriptions) if c.verdict is FAIL]
    whose = 'this machine' if where == 'machine' else '/joint_states'
    assert [(c.fact, c.remedy) for c in found] == [
        (f'the clock of {whose} was set back by 0.250 s', 'synchronise the clocks before the arm is driven')
    ]


def listener(topics, clock=()):
    return SimpleNamespace(topics=topics, clock=list(clock), back=0.0)


def test_stamps_are_compared_with_the_clock():
    graph = Graph({}, {}, {}, {})
    assert verdicts(clock_checks(graph, [WIRING], listener({'/a': received(joints())}))) == [OK]
    ahead = list(clock_checks(graph, [WIRING], listener({'/a': received(joints(), age=-0.2)})))
    assert ahead[0].verdict is FAIL
    assert ahead[0].fact == '/a is stamped 0.200 s ahead of the clock: it is not used'
    assert verdicts(clock_checks(graph, [WIRING], listener({'/a': received(joints(), age=-0.05)}))) == [WARN, OK]
    assert FAIL in verdicts(clock_checks(graph, [WIRING], listener({'/a': received(joints(), unstamped=True)})))


def test_simulated_time_must_run_and_be_used_by_all():
    graph = Graph({}, {'/clock': topic('rosgraph_msgs/msg/Clock')}, {}, {})
    runs = [(0.01 * i, 5_000_000 * i) for i in range(10)]
    first = list(clock_checks(graph, [WIRING], listener({}, runs)))
    assert verdicts(first) == [OK]
    assert '0.50 times' in first[0].fact
    assert verdicts(clock_checks(graph, [WIRING], listener({}))) == [FAIL]
    other = Wiring(**{**vars(WIRING), 'uses_sim_time': {'/policy': False}})
    assert verdicts(clock_checks(graph, [other], listener({}, runs))) == [OK, FAIL]


def status(**values):
    return ExecutorStatus(
        state=ExecutorStatus.STATE_HOLDING, verdict_counts=np.zeros(ExecutorStatus.REJECT_COUNT, np.uint32), **values
    )


@pytest.mark.parametrize(
    ('msg', 'lifecycle', 'expected'),
    [
        (status(), 'active', OK),
        (status(), 'inactive', WARN),
        (None, 'unconfigured', FAIL),
        (status(hold_reason=ExecutorStatus.HOLD_JOINT_STATE_STALE), 'active', FAIL),
        (status(hold_reason=ExecutorStatus.HOLD_OPERATOR_STOP), 'active', WARN),
    ],
)
def test_the_executor(msg, lifecycle, expected):
    assert executor_check('/executor', Graph({'/executor': lifecycle}, {}, {}, {}), msg).verdict is expected


@pytest.mark.parametrize(
    ('msg', 'lifecycle', 'expected'),
    [
        (PolicyStatus(), 'active', OK),
        (PolicyStatus(code=PolicyStatus.NO_INSTRUCTION), 'active', OK),
        (PolicyStatus(code=PolicyStatus.CAMERA_STALE, message='x'), 'active', WARN),
        (PolicyStatus(), 'inactive', WARN),
        (None, 'unconfigured', FAIL),
    ],
)
def test_the_policy(msg, lifecycle, expected):
    assert policy_check('/policy', Graph({'/policy': lifecycle}, {}, {}, {}), msg).verdict is expected


def test_topics_of_a_profile_move_with_the_namespace(tmp_path):
    wiring = of_profile(profile_path('fr3'), '/left')
    assert wiring.joint_topic == '/left/franka/joint_states'
    assert wiring.cameras['wrist'] == '/left/wrist/color/image_raw'
    (tmp_path / 'x.yaml').write_text('{}')
    with pytest.raises(ValueError, match='no robot profile'):
        of_profile(str(tmp_path / 'x.yaml'), '')


def test_markdown_has_a_row_for_every_node_topic_service_and_action():
    graph = Graph(
        {'/sim': '', '/policy': 'active'},
        {'/a': topic('std_msgs/msg/Bool', rate=10.0), '/b': topic('std_msgs/msg/Bool', rate=0), '/rosout': topic('x')},
        {'/sim/reset': 'vla_msgs/srv/ResetEpisode'},
        {'/policy/execute_instruction': 'vla_msgs/action/ExecuteInstruction'},
    )
    text = to_markdown(graph)
    assert '| `/policy` | active |' in text
    assert '| `/sim` | no lifecycle |' in text
    assert '| `/a` | std_msgs/msg/Bool | `/sim` | reliable | 10.0 Hz | `/policy` |' in text
    assert '| `/b` | std_msgs/msg/Bool | `/sim` | reliable | - | `/policy` |' in text
    assert '/rosout' not in text
    assert '`/sim/reset`' in text and '`/policy/execute_instruction`' in text
