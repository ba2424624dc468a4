"""The doctor's verdicts on a robot, from graphs and messages made by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
from rclpy.duration import Duration
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CameraInfo, Image, JointState

from vla_bringup.doctor_check import Check, Verdict
from vla_bringup.doctor_listen import Heard
from vla_bringup.doctor_robot import (
    camera_checks,
    clock_checks,
    controller_checks,
    executor_check,
    joint_checks,
    policy_check,
)
from vla_bringup.doctor_wiring import Wiring, of_profile
from vla_bringup.graph import Graph, Topic, to_markdown
from vla_msgs.msg import ExecutorStatus, PolicyStatus
from vla_policy_node.core.profile import profile_path

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
    size = {'rgb8': 3, 'yuv422': 2}[encoding]
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
        (heard(image('yuv422'), 10.0), heard(info()), [BAD]),
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


def listener(topics, clock=()):
    return SimpleNamespace(topics=topics, clock=list(clock))


def test_stamps_against_our_clock():
    graph = Graph({}, {}, {}, {})
    assert verdicts(clock_checks(graph, [WIRING], listener({'/a': heard(joints())}))) == [OK]
    ahead = list(clock_checks(graph, [WIRING], listener({'/a': heard(joints(), age=-0.2)})))
    assert ahead[0].verdict is BAD
    assert '200 ms ahead' in ahead[0].fact
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
