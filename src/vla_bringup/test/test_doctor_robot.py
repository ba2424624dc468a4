"""The doctor's verdicts on a robot, from graphs and messages made by hand."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from rclpy.duration import Duration
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, Image, JointState

from vla_bringup.doctor.check import Check, Verdict
from vla_bringup.doctor.listen import Heard, Listener
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

OK, WARN, BAD = Verdict.OK, Verdict.WARN, Verdict.BAD
WIRING = Wiring('test', {'front': '/front/image_raw'}, '/joint_states', ('j1', 'j2'), '/target_joint')


def verdicts(checks):
    return [c.verdict for c in ([checks] if isinstance(checks, Check) else checks)]


def topic(kind, publishers=('/sim',), subscribers=('/policy',), rate=100.0):
    stamps = [i / rate for i in range(10)] if rate else []
    return Topic([kind], list(publishers), list(subscribers), 'reliable', stamps)


def heard(newest=None, rate=100.0, age=0.01, **more):
    came = [i / rate for i in range(10)] if newest is not None else []
    return Heard(came=came, ages=[age] * len(came), newest=newest, **more)


def joints(names=('j1', 'j2'), velocity=(0.0, 0.0)):
    return JointState(name=list(names), position=[0.0] * len(names), velocity=list(velocity))


@pytest.mark.parametrize(
    ('state', 'verdict', 'text'),
    [
        (heard(joints()), OK, '2 joints'),
        (heard(joints(), rate=30.0), WARN, '30 Hz'),
        (heard(joints(), age=0.5), BAD, '500 ms'),
        (heard(), BAD, 'nothing comes'),
        (heard(joints(names=('k1', 'k2'))), BAD, 'j1'),
        (heard(joints(velocity=())), BAD, 'velocities'),
    ],
)
def test_joint_states(state, verdict, text):
    graph = Graph({}, {'/joint_states': topic('sensor_msgs/msg/JointState')}, {}, {})
    checks = list(joint_checks(graph, WIRING, state))
    assert verdicts(checks) == [verdict]
    assert text in checks[0].fact
    assert bool(checks[0].remedy) is (verdict is not OK)


def test_no_joint_states_at_all_is_bad():
    assert verdicts(joint_checks(Graph({}, {}, {}, {}), WIRING, heard())) == [BAD]


def image(encoding='rgb8', width=4, height=3):
    size = {'rgb8': 3, '32FC1': 4}[encoding]
    return Image(
        width=width, height=height, encoding=encoding, step=width * size, data=np.zeros(width * height * size, np.uint8)
    )


def info(width=4, focal=1.0):
    return CameraInfo(width=width, height=3, k=np.array([focal, 0, 0, 0, focal, 0, 0, 0, 1], float))


@pytest.mark.parametrize(
    ('pictures', 'told', 'expected'),
    [
        (heard(image(), 10.0), heard(info()), [OK]),
        (heard(image(), 2.0), heard(info()), [WARN]),
        (heard(image(), 10.0, age=0.5), heard(info()), [BAD]),
        (heard(), heard(), [BAD]),
        (heard(image('32FC1'), 10.0), heard(info()), [BAD]),
        (heard(image(), 10.0), heard(), [OK, WARN]),
        (heard(image(), 10.0), heard(info(width=8)), [OK, WARN]),
        (heard(image(), 10.0), heard(info(focal=0.0)), [OK, WARN]),
    ],
)
def test_cameras(pictures, told, expected):
    graph = Graph({}, {'/front/image_raw': topic('sensor_msgs/msg/Image')}, {}, {})
    assert verdicts(camera_checks(graph, 'front', '/front/image_raw', pictures, told, 0.3)) == expected


def test_a_camera_that_nobody_publishes_is_bad():
    assert verdicts(camera_checks(Graph({}, {}, {}, {}), 'front', '/front', heard(), heard(), 0.3)) == [BAD]


def endpoint(name, kind='sensor_msgs/msg/JointState', **qos):
    profile = QoSProfile(depth=1, **qos)
    return SimpleNamespace(node_name=name, node_namespace='/', topic_type=kind, qos_profile=profile)


@pytest.mark.parametrize(
    ('readers', 'writers', 'joints', 'expected'),
    [
        (['controller'], ['executor'], ['j1', 'j2'], [OK, OK]),
        (['controller'], ['executor'], [], [OK, OK]),
        (['controller'], ['executor'], ['j1', 'k2'], [BAD, OK]),
        ([], [], [], [BAD]),
        (['rosbag2_recorder'], ['executor'], [], [BAD, OK]),
        (['controller'], ['executor', 'teleop'], [], [OK, BAD]),
        ([endpoint('c', 'trajectory_msgs/msg/JointTrajectory')], [], [], [BAD]),
        ([endpoint('c', durability=DurabilityPolicy.TRANSIENT_LOCAL)], [], [], [BAD]),
        ([endpoint('c', deadline=Duration(seconds=1))], [], [], [BAD]),
    ],
)
def test_the_controller_and_who_commands_it(readers, writers, joints, expected):
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
        (heard(fingers(), rate=50.0), OK, '50.0 Hz, at most 0.02 s apart, limit 0.3 s, opening 0 mm, 10 ms old'),
        (heard(fingers(), rate=10.0), OK, '10.0 Hz'),
        (heard(fingers(), rate=5.0), WARN, '5.0 Hz'),
        (heard(fingers(), rate=2.0), BAD, '2.0 Hz, at most 0.50 s apart, limit 0.3 s'),
        (heard(fingers(), rate=20.0, age=0.5), BAD, '500 ms old'),
        (heard(fingers(('g1', 'g2')), rate=20.0), BAD, 'f1'),
        (heard(), BAD, 'nothing comes'),
    ],
)
def test_the_gripper(state, verdict, text):
    graph = Graph({}, {'/hand/joint_states': topic('sensor_msgs/msg/JointState')}, {}, {})
    check = gripper_check(graph, HAND, state)
    assert (check.verdict, bool(check.remedy)) == (verdict, verdict is not OK)
    assert text in check.fact


def test_a_gripper_on_another_topic_is_pointed_to_and_an_arm_without_one_has_a_line():
    check = gripper_check(Graph({}, {}, {}, {}), HAND, heard())
    assert check.verdict is BAD
    assert check.fact == 'nothing on /hand/joint_states: the policy will not start'
    assert 'check topics.gripper_joint_states of the profile (franka_ros2 has called it fr3_gripper' in check.remedy
    graph = Graph({}, {'/fr3_gripper/joint_states': topic('sensor_msgs/msg/JointState')}, {}, {})
    assert 'there is /fr3_gripper/joint_states' in gripper_check(graph, HAND, heard()).remedy
    assert gripper_check(graph, WIRING, heard()).fact == 'none: robot.gripper_joint_names is empty'


def test_arm_and_fingers_of_different_senders_on_one_topic_are_told_apart(monkeypatch):
    wiring = replace(HAND, gripper_topic='/joint_states', cameras={})
    callbacks = []
    node = SimpleNamespace(create_subscription=lambda kind, topic, take, profile: callbacks.append(take))
    ears = Listener(SimpleNamespace(node=node), [wiring], {}, sim_time=False)
    assert set(ears.topics) == {'/joint_states', '/joint_states (fingers)'} == {wiring.joint_topic, wiring.fingers}
    for names in [('x',), ('f1', 'f2'), ('j1', 'j2'), ('f1', 'f2'), ('j1', 'j2'), ('x',)]:
        for take in callbacks:
            take(joints(names, [0.0] * len(names)))
    for name, own in (('/joint_states', ['j1', 'j2']), ('/joint_states (fingers)', ['f1', 'f2'])):
        assert (ears.topics[name].newest.name, len(ears.topics[name].came)) == (own, 2)


@pytest.mark.parametrize('where', ['sender', 'machine'])
def test_a_clock_that_is_set_back_while_the_doctor_listens_is_named_once(monkeypatch, where):
    callbacks, ns = [], 1_000_000_000
    node = SimpleNamespace(create_subscription=lambda kind, topic, take, profile: callbacks.append(take))
    ears = Listener(SimpleNamespace(node=node), [replace(WIRING, cameras={})], {}, sim_time=False)
    for i in range(20):
        wall = 1000 * ns + i * ns // 100
        stamp = wall - ns // 4 if i >= 10 else wall
        now = stamp if where == 'machine' else wall
        monkeypatch.setattr('vla_bringup.doctor.listen.time.time_ns', lambda now=now: now)
        monkeypatch.setattr('vla_bringup.doctor.listen.time.monotonic_ns', lambda i=i: i * ns // 100)
        msg = joints()
        msg.header.stamp = to_time(stamp)
        callbacks[0](msg)
    told = [c for c in clock_checks(Graph({}, {}, {}, {}), [WIRING], ears) if c.verdict is BAD]
    whose = 'this machine' if where == 'machine' else '/joint_states'
    assert [(c.fact, c.remedy) for c in told] == [
        (f'the clock of {whose} was set back by 0.250 s', 'synchronise the clocks before the arm is driven')
    ]


def listener(topics, clock=()):
    return SimpleNamespace(topics=topics, clock=list(clock), back=0.0)


def test_stamps_against_our_clock():
    graph = Graph({}, {}, {}, {})
    assert verdicts(clock_checks(graph, [WIRING], listener({'/a': heard(joints())}))) == [OK]
    ahead = list(clock_checks(graph, [WIRING], listener({'/a': heard(joints(), age=-0.2)})))
    assert ahead[0].verdict is BAD
    assert ahead[0].fact == '/a is stamped 0.200 s ahead of the clock: it is not used'
    assert verdicts(clock_checks(graph, [WIRING], listener({'/a': heard(joints(), age=-0.05)}))) == [WARN, OK]
    assert BAD in verdicts(clock_checks(graph, [WIRING], listener({'/a': heard(joints(), unstamped=True)})))


def test_simulated_time_must_run_and_be_used_by_all():
    graph = Graph({}, {'/clock': topic('rosgraph_msgs/msg/Clock')}, {}, {})
    runs = [(0.01 * i, 5_000_000 * i) for i in range(10)]
    first = list(clock_checks(graph, [WIRING], listener({}, runs)))
    assert verdicts(first) == [OK]
    assert '0.50 times' in first[0].fact
    assert verdicts(clock_checks(graph, [WIRING], listener({}))) == [BAD]
    other = Wiring(**{**vars(WIRING), 'uses_sim_time': {'/policy': False}})
    assert verdicts(clock_checks(graph, [other], listener({}, runs))) == [OK, BAD]


def status(**values):
    return ExecutorStatus(
        state=ExecutorStatus.STATE_HOLDING, verdict_counts=np.zeros(ExecutorStatus.REJECT_COUNT, np.uint32), **values
    )


@pytest.mark.parametrize(
    ('msg', 'lifecycle', 'expected'),
    [
        (status(), 'active', OK),
        (status(), 'inactive', WARN),
        (None, 'unconfigured', BAD),
        (status(hold_reason=ExecutorStatus.HOLD_JOINT_STATE_STALE), 'active', BAD),
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
        (None, 'unconfigured', BAD),
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


def test_markdown_has_a_row_for_everything():
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
