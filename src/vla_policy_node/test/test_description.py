"""Limits from a robot description, and the profile made as narrow."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from std_msgs.msg import String

from vla_core.kinematics.description import joint_limits, narrowed
from vla_core.profile import RobotProfile
from vla_policy_node.ros import qos
from vla_policy_node.ros.robot_description import read_description

PROFILES = Path(__file__).parents[2] / 'vla_bringup' / 'config' / 'robots'
FR3 = RobotProfile.load(PROFILES / 'fr3.yaml')
PANDA = RobotProfile.load(PROFILES / 'sim_panda.yaml')
LAW = '<position_based_velocity_limits deceleration_limit="6.0" velocity_offset="0.3"/>'


def urdf(profile, law='', **changes):
    """A description with the limits of the profile; changes: attribute -> its text on every joint."""
    joints = ''
    for i, name in enumerate(profile.joint_names):
        limit = {
            'lower': profile.position_lower[i],
            'upper': profile.position_upper[i],
            'velocity': profile.velocity[i],
            'effort': 87.0,
        } | changes
        text = ' '.join(f'{k}="{v}"' for k, v in limit.items() if v is not None)
        joints += f'<joint name="{name}" type="revolute"><limit {text}/>{law}</joint>'
    return f'<robot name="arm">{joints}</robot>'


def test_limits_are_read_by_name_whatever_their_order():
    names = PANDA.joint_names[::-1]
    limits = joint_limits(urdf(PANDA), names)
    np.testing.assert_allclose(limits.position_upper, PANDA.position_upper[::-1])
    np.testing.assert_allclose(limits.velocity, PANDA.velocity[::-1])
    assert (limits.effort == 87).all()
    assert limits.deceleration is None
    limits = joint_limits(urdf(PANDA, LAW), names)
    assert (limits.deceleration == 6.0).all()
    assert (limits.velocity_offset == 0.3).all()


@pytest.mark.parametrize(
    ('text', 'says'),
    [
        ('<robot', 'is not XML'),
        ('<robot name="x"/>', "'x' has no joint panda_joint1"),
        (urdf(PANDA, velocity=None), 'joint panda_joint1 .* velocity is missing'),
        (urdf(PANDA, upper='far'), "joint panda_joint1 .*could not convert string to float: 'far'"),
        (urdf(PANDA, upper='nan'), 'upper is missing or not finite'),
        (urdf(PANDA, lower='3.0'), 'they allow no motion'),
        (urdf(PANDA, velocity='0'), 'they allow no motion'),
        (urdf(PANDA).replace('revolute', 'continuous', 1), 'panda_joint1 .* is continuous'),
        (urdf(PANDA).replace('</joint>', LAW + '</joint>', 1), '1 of 7 joints .* all or none'),
    ],
)
def test_what_is_missing_is_named(text, says):
    with pytest.raises(ValueError, match=says):
        joint_limits(text, PANDA.joint_names)


@given(st.text(max_size=200))
def test_any_text_is_a_description_or_an_error(text):
    with pytest.raises(ValueError, match='robot description'):
        joint_limits(text, PANDA.joint_names)


def test_the_narrower_limit_counts_and_disagreement_is_reported():
    wider = replace(PANDA, position_upper=PANDA.position_upper + 0.1, velocity=PANDA.velocity - 0.5)
    profile, notes = narrowed(PANDA, joint_limits(urdf(wider), PANDA.joint_names))
    np.testing.assert_allclose(profile.position_upper, PANDA.position_upper)
    np.testing.assert_allclose(profile.velocity, PANDA.velocity - 0.5)
    assert len(notes) == 14
    assert 'velocity of panda_joint1: robot profile 2.1750, robot description 1.6750; the narrower counts' in notes
    assert not narrowed(PANDA, joint_limits(urdf(PANDA), PANDA.joint_names))[1]


def test_velocity_limits_that_depend_on_the_position():
    taken, notes = narrowed(PANDA, joint_limits(urdf(PANDA, LAW), PANDA.joint_names))
    assert (taken.velocity_deceleration == 6.0).all()
    np.testing.assert_allclose(taken.velocity_end_upper, PANDA.position_upper)
    assert 'velocity_offset' in ' '.join(notes)
    both, _ = narrowed(FR3, joint_limits(urdf(FR3, LAW), FR3.joint_names))
    assert (both.velocity_deceleration <= FR3.velocity_deceleration).all()
    assert (both.velocity_offset >= FR3.velocity_offset).all()
    assert (both.velocity_end_upper <= FR3.velocity_end_upper).all()
    assert (both.velocity_end_lower >= FR3.velocity_end_lower).all()


def test_the_description_comes_from_the_topic_or_a_file_or_is_missed(ros, tmp_path):
    node = ros.add('a', allow_undeclared_parameters=True)
    node.declare_parameter('robot_description_timeout', 0.1)
    with pytest.raises(ValueError, match=r'limits need.* none came on /robot_description within 0.1 s'):
        read_description(node, 'limits need it, it')
    publisher = ros.add('state_publisher').create_publisher(String, 'robot_description', qos.LATCHED)
    publisher.publish(String(data=urdf(PANDA)))
    other = ros.add('b')
    other.declare_parameter('robot_description_timeout', 10.0)
    assert read_description(other, 'x') == urdf(PANDA)
    third = ros.add('c')
    third.declare_parameter('robot_description_file', str(tmp_path / 'none.urdf'))
    with pytest.raises(ValueError, match=r'robot_description_file: .*none.urdf'):
        read_description(third, 'x')
    (tmp_path / 'none.urdf').write_text('<robot/>')
    assert read_description(third, 'x') == '<robot/>'
