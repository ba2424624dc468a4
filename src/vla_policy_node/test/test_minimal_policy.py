"""A policy that was written from the contract alone: the node loads it by its family and publishes its chunks."""

import array
import json
from pathlib import Path

import numpy as np
import pytest
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String

from vla_core.profile import RobotProfile
from vla_model import loading
from vla_msgs.msg import ActionChunk
from vla_policy_node.policy.policy_node import PolicyNode
from vla_policy_node.ros import qos

ROOT = Path(__file__).parents[3]
PROFILE = ROOT / 'src' / 'vla_bringup' / 'config' / 'robots' / 'sim_panda.yaml'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A checkpoint folder of the family of examples/minimal_policy.py, which is in the table of families."""
    monkeypatch.syspath_prepend(str(ROOT / 'examples'))
    monkeypatch.setitem(loading.FAMILIES, 'hold', 'minimal_policy')
    (tmp_path / 'model').mkdir()
    (tmp_path / 'model' / 'config.json').write_text(json.dumps({'family': 'hold'}))
    return tmp_path / 'model'


def test_the_node_serves_a_policy_that_only_acts(ros, folder, monkeypatch):
    parameters = {'model': str(folder), 'drive': True, 'rate': 20.0, 'robot.gripper_joint_names': ['']}
    node = ros.add(
        'policy',
        PolicyNode,
        cli_args=['--ros-args', '--params-file', str(PROFILE)],
        parameter_overrides=[Parameter(name, value=value) for name, value in parameters.items()],
    )
    robot = ros.add('robot')
    profile, chunks = RobotProfile.load(PROFILE), []
    joints = robot.create_publisher(JointState, 'joint_states', qos.SENSOR_OUT)
    images = {c: robot.create_publisher(Image, f'{c}/image_raw', qos.SENSOR_OUT) for c in ('front', 'wrist')}
    instruction = robot.create_publisher(String, 'policy/instruction', qos.LATCHED)
    robot.create_subscription(ActionChunk, 'action_chunk', chunks.append, qos.CHUNK)

    def publish():
        stamp = robot.get_clock().now().to_msg()
        state = JointState(name=list(profile.joint_names), position=list(profile.home), velocity=[0.0] * 7)
        state.header.stamp = stamp
        joints.publish(state)
        for publisher in images.values():
            image = Image(width=8, height=6, encoding='rgb8', step=24, data=array.array('B', bytes(144)))
            image.header.stamp = stamp
            publisher.publish(image)

    robot.create_timer(0.03, publish)
    logged = []
    monkeypatch.setattr(node.get_logger(), 'info', logged.append)
    assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    without = [text for text in logged if 'has no effect' in text]
    assert len(without) == 3 and 'plan_rate 0.5 Hz' in without[0] and 'imagine_rate 0.5 Hz' in without[1]
    assert node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    instruction.publish(String(data='hold the arm'))
    ros.wait(lambda: len(chunks) > 2, 'chunks')
    newest = chunks[-1]
    assert (newest.model_id, newest.instruction, newest.shadow, newest.horizon) == ('hold-1', 'hold the arm', False, 8)
    np.testing.assert_allclose(np.reshape(newest.positions, (8, 7)), np.tile(profile.home, (8, 1)))
    topics = dict(robot.get_topic_names_and_types())
    assert not {'/policy/plan_text', '/policy/predicted_image', '/policy/pointed'} & set(topics)


@pytest.mark.parametrize(
    ('reference', 'says'),
    [
        (
            'tcp://robot',
            r'tcp://robot: the scheme tcp: is not known \(known are: ws:, wss:, act:\); give the folder of',
        ),
        ('other', r"the family 'pi9' of its config.json is not known, only .*'hold'"),
    ],
)
def test_what_no_loader_is_for_is_refused_by_name(folder, monkeypatch, reference, says):
    monkeypatch.chdir(folder.parent)
    Path('other').mkdir()
    Path('other', 'config.json').write_text(json.dumps({'family': 'pi9'}))
    with pytest.raises(ValueError, match=says):
        loading.load(reference)
    with pytest.raises(ValueError, match=says):
        loading.describe(reference)


def test_a_policy_is_described_by_its_family_or_by_itself(folder):
    assert loading.describe(folder) == loading.load(folder).info
    assert not loading.describe('random-nano').trained and loading.describe('nano').trained


def test_a_scheme_is_a_line_of_a_table(folder, monkeypatch):
    monkeypatch.setitem(loading.SCHEMES, 'hold', 'minimal_policy')
    assert loading.load('hold://anywhere').info.model_id == 'hold-1'
