"""What `replay.launch.py` lets `ros2 bag play` play reaches the policy node: names after remapping, QoS, namespaces."""

import pytest
import yaml
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message, serialize_message
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState
from std_msgs.msg import String
from tf2_msgs.msg import TFMessage

from vla_bringup.bags.bag import Bag
from vla_bringup.bags.message_types import MessageTypes, message_class
from vla_bringup.bags.writer import BagWriter
from vla_bringup.processes.nodes import policy_nodes
from vla_bringup.replay.player import INSTRUCTION, playback
from vla_model.loading import LoadOptions, load
from vla_msgs.msg import ActionChunk, Episode
from vla_policy_node.policy.policy_node import PolicyNode
from vla_policy_node.ros import qos

DEFAULT = QoSProfile(depth=10)
SECOND = 1_000_000_000


def write(path, entries):
    """A bag of (topic, message, time [s], QoS that was offered)."""
    types, bag, connections = MessageTypes(), BagWriter(path), {}
    for topic, message, time, offered in entries:
        kind = f'{type(message).__module__.split(".")[0]}/msg/{type(message).__name__}'
        if topic not in connections:
            text, digest = types.full_definition(kind), types.type_hash(kind)
            connections[topic] = bag.add(topic, kind, text, digest, [offered])
        bag.write(connections[topic], round(time * SECOND), serialize_message(message))
    bag.close()
    return path


def demo(path, namespace='', words='sim/task'):
    """As ./vla demo and the recorder leave it; two_arms.launch.py has clock and transforms in the namespace."""
    own = namespace
    entries = [
        (f'{own}/robot_description', String(data='<robot name="first"/>'), 1.0, qos.LATCHED),
        (f'{own}/tf_static', TFMessage(), 1.0, qos.LATCHED),
        (f'{own}/tf_static', TFMessage(), 1.0, qos.LATCHED),
        (f'{own}/sim/episode', Episode(instruction='red'), 1.0, qos.LATCHED),
        (f'{own}/{words}', String(data='red'), 1.0, qos.LATCHED),
        (f'{own}/{words}', String(data='blue'), 3.0, qos.LATCHED),
        (f'{own}/{INSTRUCTION}', String(data='other'), 3.5, DEFAULT),
    ]
    for time in (1.0, 2.0, 4.0, 5.0):
        entries += [
            (f'{own}/clock', Clock(), time, qos.SENSOR_OUT),
            (f'{own}/tf', TFMessage(), time, qos.STATUS),
            (f'{own}/joint_states', JointState(), time, qos.SENSOR_OUT),
            (f'{own}/action_chunk', ActionChunk(), time, qos.CHUNK),
            (f'{own}/target_joint', JointState(), time, qos.COMMAND),
        ]
        for camera in ('front', 'wrist'):
            entries += [(f'{own}/{camera}/image_raw', Image(), time, qos.SENSOR_OUT)]
            entries += [(f'{own}/{camera}/camera_info', CameraInfo(), time, qos.SENSOR_OUT)]
    return write(path, entries)


def robot(path, namespace=''):
    """An FR3 with drivers of best effort, jpeg images, and words from the command line."""
    entries = [(f'{namespace}/{INSTRUCTION}', String(data='take it'), 2.0, DEFAULT)]
    for time in (1.0, 3.0):
        entries += [(f'{namespace}/{c}/color/image_raw/compressed', CompressedImage(), time, qos.SENSOR)
                    for c in ('front', 'wrist')]  # fmt: skip
        entries += [(f'{namespace}/{t}/joint_states', JointState(), time, qos.SENSOR)
                    for t in ('franka', 'franka_gripper')]  # fmt: skip
    return write(path, entries)


def test_the_bag_of_a_demo_is_played_under_the_names_of_the_nodes(tmp_path):
    plan = playback(demo(tmp_path / 'bag'), 'sim_panda', '', rate=0.5)
    changed = {old: new for old, new in plan.topics.items() if old != new}
    assert changed == {'/sim/task': '/policy/instruction'}
    assert not {'/action_chunk', '/target_joint', '/policy/instruction', '/sim/episode'} & set(plan.topics)
    words = plan.command(tmp_path / 'qos.yaml', paused=True)
    assert words[:6] == ['ros2', 'bag', 'play', str(tmp_path / 'bag'), '--rate', '0.5']
    assert words[-2:] == ['--remap', '/sim/task:=/policy/instruction']
    assert '--start-paused' in words and '--clock' not in words  # the bag has its own
    assert plan.description == '<robot name="first"/>' and not plan.before and plan.instruction


def test_a_bag_in_a_namespace_and_goals_of_an_action(tmp_path):
    plan = playback(demo(tmp_path / 'bag', '/left', 'policy/instruction_in_force'), 'sim_panda', '/left')
    assert {old: new for old, new in plan.topics.items() if old != new} == {
        '/left/policy/instruction_in_force': '/left/policy/instruction',
        '/left/clock': '/clock',
        '/left/tf': '/tf',
        '/left/tf_static': '/tf_static',
    }


def test_an_offset_begins_with_what_was_latched_until_then(tmp_path):
    bag = demo(tmp_path / 'bag')

    def given(**settings):
        return {latched.topic: latched for latched in playback(bag, 'sim_panda', '', **settings).before}

    before = given(offset=1.5)
    assert set(before) == {'/robot_description', '/tf_static', '/policy/instruction'}
    assert len(before['/tf_static'].messages) == 2
    assert deserialize_message(before['/policy/instruction'].messages[0], String).data == 'red'
    (words,) = given(offset=2.5)['/policy/instruction'].messages
    assert deserialize_message(words, String).data == 'blue'
    own = given(instruction=' green ')['/policy/instruction']
    assert [deserialize_message(m, String).data for m in own.messages] == ['green']
    assert '/sim/task' not in playback(bag, 'sim_panda', '', instruction='green').topics


def test_a_robot_whose_images_are_compressed_has_no_clock_of_its_own(tmp_path):
    plan = playback(robot(tmp_path / 'bag'), 'fr3', '')
    assert plan.compressed and plan.cameras['front'] == '/front/color/image_raw/compressed'
    words = plan.command(tmp_path / 'qos.yaml', paused=False)
    assert words[words.index('--clock') + 1] == '100' and '--start-paused' not in words and '--remap' not in words


@pytest.mark.parametrize(
    ('settings', 'says'),
    [
        ({'namespace': '/right'}, 'no message on /right/front/image_raw.*give robot and namespace'),
        ({'offset': 9.0}, 'start_offset is 9 s, and the bag .* has 4.0 s'),
        ({'offset': -1.0}, 'must be 0 or more'),
        ({'rate': 0.0}, 'above 0'),
    ],
)
def test_what_cannot_be_played_is_one_sentence(tmp_path, settings, says):
    given = {'namespace': '', **settings}
    with pytest.raises(ValueError, match=says):
        playback(demo(tmp_path / 'bag'), 'sim_panda', **given)


def offers(plan, folder):
    """Topic as the nodes have it -> (message class, QoS) as the player publishes it."""
    overrides = yaml.safe_load(plan.write_qos(folder / 'qos.yaml').read_text())
    with Bag(plan.bag) as bag:
        kinds = bag.topics
        recorded = {c.topic: c.ext.offered_qos_profiles[0] for c in bag._reader.connections}
    found = {}
    for old, new in plan.topics.items():
        reliable, latched = (getattr(recorded[old], n).name for n in ('reliability', 'durability'))
        if old in overrides:
            reliable, latched = overrides[old]['reliability'].upper(), overrides[old]['durability'].upper()
        profile = QoSProfile(depth=1, reliability=ReliabilityPolicy[reliable], durability=DurabilityPolicy[latched])
        found[new] = message_class(kinds[old]), profile
    return found


def test_all_that_the_policy_subscribes_to_is_matched_by_the_player(graph, tmp_path):
    plans = {
        '': playback(demo(tmp_path / 'demo'), 'sim_panda', ''),
        '/left': playback(demo(tmp_path / 'left', '/left', INSTRUCTION), 'sim_panda', '/left'),
        '/cell/arm': playback(robot(tmp_path / 'robot', '/cell/arm'), 'fr3', '/cell/arm'),
    }
    model = load('random-nano', LoadOptions(engine='eager', image_engine='eager', threads=1))
    for namespace, plan in plans.items():
        parameters = {'plan_rate': 0.0, 'imagine_rate': 0.0}
        if plan.compressed:
            parameters |= {'cameras': list(plan.cameras), 'camera_topics': list(plan.cameras.values())}
        spec = policy_nodes(
            'fr3' if plan.compressed else 'sim_panda',
            namespace=namespace,
            use_sim_time=True,
            policy_parameters=parameters,
        )[-1]
        node = PolicyNode(
            load=lambda name, options: model,
            namespace=namespace,
            context=graph.node.context,
            use_global_arguments=False,
            cli_args=['--ros-args', '--params-file', str(spec.write_parameters(tmp_path))],
        )
        try:
            node.set_up()
            player = {
                topic: graph.node.create_publisher(kind, topic, profile)
                for topic, (kind, profile) in offers(plan, tmp_path).items()
            }
            player.setdefault('/clock', graph.node.create_publisher(Clock, '/clock', DEFAULT))  # the player's own
            wanted = [*plan.inputs, f'{namespace}/{INSTRUCTION}', '/clock']
            graph.wait(lambda w=wanted, p=player: all(p[t].get_subscription_count() for t in w), what=str(wanted))
        finally:
            node.tear_down()
            node.destroy_node()
