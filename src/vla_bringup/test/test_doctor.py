"""The doctor's verdicts: on this machine, and on graphs and settings made by hand."""

import numpy as np
import pytest

from vla_bringup import doctor, doctor_robot
from vla_bringup.doctor import Check, Verdict
from vla_bringup.doctor_robot import camera_checks, executor_checks, joint_checks
from vla_bringup.graph import Graph, Topic, to_markdown
from vla_msgs.msg import ExecutorStatus

OK, WARN, BAD = Verdict.OK, Verdict.WARN, Verdict.BAD


def verdicts(checks):
    return [c.verdict for c in checks]


@pytest.mark.parametrize(
    ('settings', 'verdict', 'text'),
    [
        ({'ROS_DOMAIN_ID': 'x'}, BAD, 'x'),
        ({'ROS_DOMAIN_ID': '233'}, BAD, '233'),
        ({'ROS_DOMAIN_ID': '150'}, WARN, '150'),
        ({'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCAL'}, BAD, 'LOCAL'),
        ({'ROS_LOCALHOST_ONLY': '1'}, WARN, 'ROS_LOCALHOST_ONLY'),
        ({'ROS_PYTHON_CHECK_FIELDS': '0'}, BAD, 'garbage'),
    ],
)
def test_bad_settings_are_found(monkeypatch, settings, verdict, text):
    for name in ('ROS_DOMAIN_ID', 'ROS_LOCALHOST_ONLY'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    monkeypatch.setenv('ROS_PYTHON_CHECK_FIELDS', '1')
    assert set(verdicts(doctor.check_discovery())) == {OK}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    found = [c for c in doctor.check_discovery() if c.verdict is not OK]
    assert [c.verdict for c in found] == [verdict]
    assert text in found[0].fact
    assert found[0].remedy


@pytest.mark.parametrize(
    ('content', 'reach', 'verdict'),
    [
        (None, 'LOCALHOST', WARN),
        ('', 'LOCALHOST', BAD),
        ('<dds/>', 'SUBNET', OK),
        ('<interfaceWhiteList/>', 'LOCALHOST', OK),
        ('<interfaceWhiteList/>', 'SUBNET', WARN),
    ],
)
def test_the_dds_profile_must_exist_and_fit_the_discovery_range(monkeypatch, tmp_path, content, reach, verdict):
    path = tmp_path / 'profile.xml'
    if content:
        path.write_text(content)
    monkeypatch.delenv('FASTDDS_DEFAULT_PROFILES_FILE', raising=False)
    monkeypatch.setenv('FASTRTPS_DEFAULT_PROFILES_FILE', '' if content is None else str(path))
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', reach)
    assert verdicts(doctor.check_rmw())[-1] is verdict


def test_rendering_that_fails_is_told_with_the_last_line_of_the_error(monkeypatch):
    monkeypatch.setattr(doctor, 'RENDER', 'raise OSError("no EGL")')
    check = doctor.check_rendering()
    assert check.verdict is BAD
    assert 'no EGL' in check.fact
    assert 'libegl1' in check.remedy


def test_a_bad_line_makes_the_exit_code(monkeypatch, capsys):
    monkeypatch.setattr(doctor_robot, 'check_robot', lambda: Check('robot', 'fine [really]'))
    monkeypatch.setattr(doctor, 'CHECKS', (lambda: doctor.warn('a', 'b', 'c'),))
    assert doctor.run_doctor()
    assert 'fine [really]' in capsys.readouterr().out
    monkeypatch.setattr(doctor, 'CHECKS', (lambda: doctor.bad('a', 'b', 'do this'),))
    assert not doctor.run_doctor()
    assert 'do this' in capsys.readouterr().out


def topic(kind, publishers=('/sim',), subscribers=('/policy',), rate=100.0):
    stamps = [i / rate for i in range(10)] if rate else []
    return Topic([kind], list(publishers), list(subscribers), 'reliable', stamps)


@pytest.mark.parametrize(
    ('rate', 'age', 'verdict'),
    [(100, 0.01, OK), (100, None, OK), (30, 0.01, WARN), (100, 0.5, BAD), (0, None, BAD)],
)
def test_joint_states(rate, age, verdict):
    graph = Graph({}, {'/joint_states': topic('sensor_msgs/msg/JointState', rate=rate)}, {}, {})
    ages = {} if age is None else {'/joint_states': age}
    assert verdicts(joint_checks(graph, ['/joint_states'], ages)) == [verdict]


def test_no_joint_states_at_all_is_bad():
    assert verdicts(joint_checks(Graph({}, {}, {}, {}), [], {})) == [BAD]


@pytest.mark.parametrize(('rate', 'verdict'), [(10, OK), (2, WARN), (0, BAD)])
def test_cameras(rate, verdict):
    graph = Graph({}, {'/front/image_raw': topic('sensor_msgs/msg/Image', rate=rate)}, {}, {})
    assert verdicts(camera_checks(graph)) == [verdict]


def status(**values):
    return ExecutorStatus(
        state=ExecutorStatus.STATE_HOLDING, verdict_counts=np.zeros(ExecutorStatus.REJECT_COUNT, np.uint32), **values
    )


@pytest.mark.parametrize(
    ('msg', 'lifecycle', 'publishers', 'subscribers', 'expected'),
    [
        (status(), 'active', ['/executor'], ['/controller'], [OK, OK]),
        (status(), 'inactive', ['/executor'], ['/controller'], [WARN, OK]),
        (None, 'unconfigured', ['/executor'], ['/controller'], [BAD, OK]),
        (status(hold_reason=ExecutorStatus.HOLD_JOINT_STATE_STALE), 'active', ['/executor'], ['/c'], [BAD, OK]),
        (status(hold_reason=ExecutorStatus.HOLD_OPERATOR_STOP), 'active', ['/executor'], ['/c'], [WARN, OK]),
        (status(), 'active', ['/executor', '/teleop'], ['/controller'], [OK, BAD]),
        (status(), 'active', ['/executor'], [], [OK, WARN]),
    ],
)
def test_the_executor_and_who_commands_the_robot(msg, lifecycle, publishers, subscribers, expected):
    topics = {'/target_joint': topic('sensor_msgs/msg/JointState', publishers, subscribers)}
    graph = Graph({'/executor': lifecycle}, topics, {}, {})
    assert verdicts(executor_checks(graph, '/executor/status', msg)) == expected


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
