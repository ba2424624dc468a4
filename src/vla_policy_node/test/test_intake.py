"""Messages in, usable sets out; and which sets are acted on."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_core.observe.cadence import Cadence
from vla_core.observe.streams import GRIPPER, JOINTS, NS
from vla_msgs.msg import PolicyStatus as S
from vla_policy_node.policy.intake import Fault, Intake

PROFILE = SimpleNamespace(joint_names=('a', 'b'), gripper_joint_names=('f',))


def header(time):
    return SimpleNamespace(stamp=SimpleNamespace(sec=int(time), nanosec=round(time % 1 * NS)), frame_id='eye')


def image(time, encoding='rgb8'):
    data = np.zeros(12, np.uint8)
    return SimpleNamespace(header=header(time), encoding=encoding, width=2, height=2, step=6, data=data)


def joints(time, names=('a', 'b', 'f'), position=(1.0, 2.0, 0.04)):
    return SimpleNamespace(header=header(time), name=list(names), position=position, velocity=[0.0] * len(names))


@pytest.fixture
def intake():
    reported = []
    made = Intake(
        PROFILE, {'front': '/image'}, '/joints', '/joints', report=lambda stream, message: reported.append(stream)
    )
    made.reported = reported
    return made


def test_one_message_fills_both_streams_of_its_topic(intake):
    stored = intake.take('/joints', joints(1.0), NS)
    assert [name for name, _ in stored] == [JOINTS, GRIPPER]
    assert intake.take('/image', image(1.0), NS)[0][0] == 'front'
    assert intake.frames == {'front': 'eye'}
    found = intake.observe(NS)
    assert found.t_ref == NS
    assert found.values[GRIPPER] == pytest.approx(0.04)
    assert intake.take('/elsewhere', joints(1.0), NS) == []


def test_a_stream_is_unusable_until_its_next_good_message(intake):
    intake.take('/joints', joints(1.0), NS)
    intake.take('/image', image(1.0), NS)
    assert intake.take('/image', image(1.1, '32FC1'), round(1.1 * NS)) == []
    found = intake.observe(round(1.1 * NS))
    assert isinstance(found, Fault)
    assert found.code == S.CAMERA_BAD
    assert intake.reported == ['front']
    intake.take('/image', image(1.2), round(1.2 * NS))
    intake.take('/joints', joints(1.2), round(1.2 * NS))
    assert intake.observe(round(1.2 * NS)).t_ref == round(1.2 * NS)


def test_joints_of_another_robot_are_reported_only_while_there_are_none_of_ours(intake):
    intake.take('/joints', joints(1.0, ('x', 'y', 'z')), NS)
    assert intake.reported == [JOINTS, GRIPPER]
    intake.take('/joints', joints(1.0), NS)
    intake.take('/joints', joints(1.1, ('x', 'y', 'z')), round(1.1 * NS))
    assert intake.reported == [JOINTS, GRIPPER]
    intake.take('/image', image(2.0), 2 * NS)
    assert "have the joints ['x', 'y', 'z']" in intake.observe(2 * NS).message


def test_an_image_from_the_future_is_not_handed_on_and_makes_its_camera_bad_while_such_come(intake):
    for i in range(5):
        now = round((1 + 0.2 * i) * NS)
        intake.take('/joints', joints(now / NS), now)
        ahead = 0.28 if 1 <= i < 4 else 0.0
        assert bool(intake.take('/image', image(now / NS + ahead), now)) is not bool(ahead)
        for later in (0, 0.05, 0.15):  # by then its stamp is no longer ahead of the clock
            found = intake.observe(now + round(later * NS) if later < 0.1 else now)
            if ahead:
                assert found.code == S.CAMERA_BAD
                assert 'front on /image is stamped 0.280 s ahead of the clock: synchronise the clocks' in found.message
            else:
                assert found.t_ref == now
    assert intake.reported == ['front'] * 3


def test_a_slow_gripper_has_a_limit_of_its_own_and_the_message_names_it():
    intake = Intake(PROFILE, {'front': '/image'}, '/joints', '/hand')
    arm = ('a', 'b'), (1.0, 2.0)
    for i in range(200):  # 10 ms each
        now = NS + i * NS // 100
        intake.take('/joints', joints(now / NS, *arm), now)
        if i % 10 == 0 and i <= 150:
            intake.take('/hand', joints(now / NS, ('f',), (0.04,)), now)
        if i % 4 == 0:
            intake.take('/image', image(now / NS), now)
            found = intake.observe(now)
            assert isinstance(found, Fault) == (i > 180)
    assert found.code == S.JOINTS_STALE
    assert 'no gripper on /hand' in found.message
    assert 'limit gripper_max_age, 0.3 s, it comes at 10.0 Hz' in found.message


@given(st.lists(st.integers(0, 10 * NS), min_size=1, max_size=50), st.floats(0.5, 50))
def test_cadence_acts_once_per_set_and_not_above_its_rate(times, rate):
    cadence, acted = Cadence(rate), []
    for t in sorted(times):
        if cadence.due(t):
            cadence.last = t
            acted.append(t)
        assert not cadence.due(t)
    assert acted[0] == min(times)
    assert (np.diff(acted) >= 0.9 / rate * NS - 1).all()
    assert cadence.due(cadence.last - 1)  # the clock went back
    cadence.restart()
    assert cadence.due(times[0])
