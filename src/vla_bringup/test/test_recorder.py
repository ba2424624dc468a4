"""The recorder against real publishers, its bag read back; QoS and message definitions."""

import errno
import itertools
import os
import shutil
import signal
from types import SimpleNamespace

import domain_coordinator
import numpy as np
import pytest
import rclpy
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String

from vla_bringup.bags.bag import Bag
from vla_bringup.bags.message_types import MessageTypes, message_class, parts
from vla_bringup.bags.recorder_node import RecorderNode
from vla_bringup.bags.writer import bag_qos
from vla_bringup.processes.probe import Probe
from vla_msgs.msg import ActionChunk
from vla_policy_node.ros import qos
from vla_policy_node.ros.chunk_msg import to_ns
from vla_policy_node.ros.images import decode_image
from vla_policy_node.ros.once import TWICE, Once
from vla_training.bag import Damage, messages


@pytest.fixture
def probe(monkeypatch):
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    with domain_coordinator.domain_id() as domain, Probe('robot', '/arm', int(domain)) as probe:
        yield probe


def recorder(probe, path, **parameters):
    overrides = [Parameter(name, value=value) for name, value in {'path': str(path), **parameters}.items()]
    node = RecorderNode(context=probe.context, namespace='/arm', parameter_overrides=overrides)
    probe.executor.add_node(node)
    return node


def close(probe, node):
    probe.executor.remove_node(node)
    node.destroy_node()


def chunk():
    msg = ActionChunk(epoch=3, sequence=7, source='/arm/expert', joint_names=['a', 'b'], dt=0.05, horizon=2)
    msg.positions, msg.gripper, msg.confidence = [0.1, 0.2, 0.3, 0.4], [0.08, 0.0], [0.5, 1.0]
    return msg


def test_what_was_published_is_read_back(probe, tmp_path):
    node = recorder(probe, tmp_path / 'bag')
    latched = probe.node.create_publisher(String, 'sim/task', qos.LATCHED)
    latched.publish(String(data='press the red button'))  # before the recorder knows of it
    image = probe.node.create_publisher(Image, 'front/image_raw', qos.SENSOR_OUT)
    lossy = probe.node.create_publisher(JointState, 'joint_states', qos.SENSOR)
    chunks = probe.node.create_publisher(ActionChunk, 'action_chunk', qos.CHUNK)
    other = probe.node.create_publisher(String, 'not/recorded', qos.LATCHED)
    other.publish(String(data='x'))
    live = (image, lossy, chunks)
    probe.wait(lambda: all(p.get_subscription_count() for p in live), 20, 'the recorder subscribes')
    assert other.get_subscription_count() == 0
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    picture = Image(height=4, width=6, encoding='rgb8', step=18, data=pixels.tobytes())
    picture.header.stamp.sec = 5

    def publish():  # matching is not symmetric: the first messages may still be lost
        image.publish(picture)
        lossy.publish(JointState(name=['a'], position=[1.5]))
        chunks.publish(chunk())

    wanted = {p.topic_name for p in (latched, *live)}

    def written():
        counts = {topic: node._bag.count(c) for topic, c in node._recorded.items() if topic in wanted}
        return counts.keys() == wanted and all(counts.values())

    probe.wait(written, 20, 'all are written', publish)
    hashes = {
        t: str(probe.node.get_publishers_info_by_topic(t)[0].topic_type_hash)
        for t in ('/arm/action_chunk', '/arm/front/image_raw')
    }
    close(probe, node)

    with Bag(tmp_path / 'bag') as bag:
        assert {t: kind for t, kind in bag.topics.items() if t != '/rosout'} == {
            '/arm/sim/task': 'std_msgs/msg/String',
            '/arm/front/image_raw': 'sensor_msgs/msg/Image',
            '/arm/joint_states': 'sensor_msgs/msg/JointState',
            '/arm/action_chunk': 'vla_msgs/msg/ActionChunk',
        }
        messages = list(bag.messages())
        assert len(messages) == sum(bag.counts.values())
        assert [m.time for m in messages] == sorted(m.time for m in messages)
        newest = {m.topic: m.data for m in messages}
        assert [m.data.data for m in bag.messages(['/arm/sim/task'])] == ['press the red button']
        assert list(bag.messages(['/arm/nothing'])) == []
        if os.environ.get('ROS_DISTRO') != 'humble':  # discovery carries type hashes
            digests = {c.topic: c.digest for c in bag._reader.connections}
            for topic, live_hash in hashes.items():
                assert digests[topic].removeprefix('RIHS01_') in live_hash.replace(' ', '').lower()
    assert np.array_equal(newest['/arm/front/image_raw'].data, pixels.ravel())
    assert to_ns(newest['/arm/front/image_raw'].header.stamp) == 5_000_000_000
    read = newest['/arm/action_chunk']
    assert (read.sequence, read.source, list(read.joint_names)) == (7, '/arm/expert', ['a', 'b'])
    assert read.positions.tolist() == [0.1, 0.2, 0.3, 0.4]


def text_of(path, topic):
    with Bag(path) as bag:
        return [m.data.data for m in bag.messages([topic])]


def last_words(monkeypatch, node):
    """What the node logs at its end."""
    said = []
    monkeypatch.setattr(node, 'get_logger', lambda: SimpleNamespace(info=said.append))
    return said


@pytest.mark.parametrize(
    ('before', 'after'),
    [(qos.SENSOR_OUT, qos.SENSOR), (qos.LATCHED, qos.STATUS), (qos.SENSOR, qos.LATCHED), (qos.LATCHED, qos.SENSOR)],
)
def test_a_publisher_that_comes_back_with_another_qos_is_recorded_each_message_once(
    probe, tmp_path, monkeypatch, before, after
):
    monkeypatch.setattr('vla_bringup.bags.recorder_topic.ENDS', 0.2)
    monkeypatch.setattr('vla_bringup.bags.recorder_node.FLUSH', 0.1)
    node = recorder(probe, tmp_path / 'bag')
    topic = node._topics
    first = probe.node.create_publisher(String, 'sim/task', before)
    probe.wait(first.get_subscription_count, 20, 'the recorder subscribes')
    count = lambda: node._bag.count(node._recorded['/arm/sim/task'])  # noqa: E731
    number = itertools.count()
    probe.wait(lambda: count() >= 3, 20, 'it is written', lambda: first.publish(String(data=f'before {next(number)}')))
    second = probe.node.create_publisher(String, 'sim/task', after)  # both at once: each reaches two subscriptions
    second.publish(String(data='latched'))
    probe.wait(lambda: len(topic['/arm/sim/task']._subscriptions) == 2, 20, 'it subscribes in another way')
    probe.wait(second.get_subscription_count, 20, 'it matches')
    written = count()

    def both():
        first.publish(String(data=f'before {next(number)}'))
        second.publish(String(data=f'after {next(number)}'))

    probe.wait(lambda: count() >= written + 6, 20, 'both are written', both)
    probe.node.destroy_publisher(first)
    written = count()
    alone = lambda: second.publish(String(data=f'alone {next(number)}'))  # noqa: E731
    probe.wait(lambda: len(topic['/arm/sim/task']._subscriptions) == 1, 20, 'what is not needed ends', alone)
    assert count() > written
    words = last_words(monkeypatch, node)
    close(probe, node)
    assert 'none lost' in words[-1] and 'NOT' not in words[-1]
    read = text_of(tmp_path / 'bag', '/arm/sim/task')
    assert len(read) == len(set(read))
    assert {word.split()[0] for word in read} >= {'before', 'after', 'alone'}
    if after is qos.LATCHED:
        assert 'latched' in read


def test_a_topic_of_two_types_is_named_at_once_and_at_the_end(probe, tmp_path, monkeypatch):
    node = recorder(probe, tmp_path / 'bag')
    talk(probe, node)
    twice = probe.node.create_publisher(String, 'sim/success', qos.LATCHED)
    # A topic has one type within a process, as far as its DDS participant goes.
    with Probe('other', '/arm', probe.context.get_domain_id()) as process:
        for topic in ('sim/task', 'sim/success'):
            process.node.create_publisher(Image, topic, qos.SENSOR_OUT)
        probe.wait(lambda: len(node._refused) == 2, 20, 'they are refused')
    words = last_words(monkeypatch, node)
    close(probe, node)
    assert 'none lost' not in words[-1]
    assert (
        '/arm/sim/task, /arm/other publishes sensor_msgs/msg/Image there, only std_msgs/msg/String is recorded'
        in words[-1]
    )
    assert twice.topic_name in words[-1].partition('NOT RECORDED')[2]
    assert twice.topic_name not in words[-1].partition('without publisher')[2]


def test_a_message_that_comes_by_two_subscriptions_passes_once_and_equal_ones_as_often_as_sent():
    once = Once()
    assert once.first('strict', b'a', 0.0)
    assert not once.first('open', b'a', 0.1)
    assert once.first('open', b'a', 0.2)  # sent a second time
    assert once.first('open', b'a', 0.3)
    assert not once.first('strict', b'a', 0.4)
    assert not once.first('strict', b'a', 0.5)
    assert once.first('strict', b'b' * 1000, 0.5)
    assert not once.first('open', b'b' * 1000, 0.5)
    assert once.first('late', b'c', 1.0)
    assert once.first('open', b'c', 2.0 + TWICE)
    assert len(once._seen) == len(once._order) == 1


def test_every_chunk_has_a_checksum(probe, tmp_path):
    node = recorder(probe, tmp_path / 'bag')
    task = probe.node.create_publisher(String, 'sim/task', qos.LATCHED)
    task.publish(String(data='press the red button'))
    probe.wait(lambda: '/arm/sim/task' in {c.topic for c in node._recorded.values()}, 20, 'it is recorded')
    probe.wait(lambda: node._bag.messages > 0, 20, 'it is written')
    close(probe, node)
    content = (tmp_path / 'bag' / 'bag_0.mcap').read_bytes()
    frame = content.index(b'\x04\x00\x00\x00zstd') + 16
    assert content[frame : frame + 4] == b'\x28\xb5\x2f\xfd' and content[frame + 4] & 4  # RFC 8878, 3.1.1.1.1


def test_bag_time_is_simulation_time_and_nothing_before_the_clock_is_lost(probe, tmp_path):
    node = recorder(probe, tmp_path / 'bag', use_sim_time=True)
    early = probe.node.create_publisher(String, 'sim/task', qos.LATCHED)
    early.publish(String(data='early'))
    probe.wait(lambda: '/arm/sim/task' in {c.topic for c, _ in node._early}, 20, 'it comes before the clock')
    clock = probe.node.create_publisher(Clock, '/clock', 10)
    tick = Clock()
    tick.clock.sec = 1000
    probe.wait(lambda: node.get_clock().now().nanoseconds, 20, 'the clock runs', lambda: clock.publish(tick))
    close(probe, node)
    with Bag(tmp_path / 'bag') as bag:
        assert {m.time for m in bag.messages(['/arm/sim/task'])} == {1000 * 10**9}


def test_privileged_topics_only_when_asked(probe, tmp_path):
    plain, nosy = recorder(probe, tmp_path / 'a'), recorder(probe, tmp_path / 'b', privileged=True)
    assert '/arm/sim/objects' not in plain._wanted
    assert '/arm/sim/objects' in nosy._wanted
    close(probe, plain)
    close(probe, nosy)


def test_a_path_that_exists_is_refused_and_nothing_touched(probe, tmp_path):
    (tmp_path / 'bag').mkdir()
    with pytest.raises(ValueError, match='exists already'):
        recorder(probe, tmp_path / 'bag')
    assert list((tmp_path / 'bag').iterdir()) == []


def test_a_file_that_is_no_bag_is_reported(tmp_path):
    with pytest.raises(ValueError, match='there is no bag'):
        Bag(tmp_path / 'nothing')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match='no complete bag'):
        Bag(tmp_path / 'empty')


@pytest.mark.parametrize(
    ('offered', 'reliable', 'latched'),
    [
        ([qos.SENSOR], False, False),
        ([qos.SENSOR_OUT], True, False),
        ([qos.LATCHED], True, True),
        ([qos.LATCHED, qos.STATUS], True, False),
        ([qos.LATCHED, qos.SENSOR], False, False),
    ],
)
def test_the_subscription_matches_every_publisher(offered, reliable, latched):
    profile = qos.matching(offered)
    assert (profile.reliability is ReliabilityPolicy.RELIABLE) == reliable
    assert (profile.durability is DurabilityPolicy.TRANSIENT_LOCAL) == latched
    for publisher in offered:
        assert rclpy.qos.qos_check_compatible(publisher, profile)[0] is not rclpy.qos.QoSCompatibility.ERROR


def test_the_bag_keeps_the_offered_qos():
    kept = bag_qos(QoSProfile(depth=7, reliability=ReliabilityPolicy.BEST_EFFORT))
    assert (kept.depth, kept.reliability.name, kept.durability.name) == (7, 'BEST_EFFORT', 'VOLATILE')


def test_definitions_name_their_parts():
    lines = [
        'uint8 A=1  # std_msgs/Header x',
        'std_msgs/Header header',
        'Point[3] points',
        '# Point q',
        'float64 x 1.0',
    ]
    assert parts('\n'.join([*lines, 'string<=5[] names']), 'geometry_msgs') == [
        'std_msgs/msg/Header',
        'geometry_msgs/msg/Point',
    ]


def test_the_full_definition_holds_every_part_once_with_its_comments():
    text = MessageTypes().full_definition('vla_msgs/msg/ActionChunk')
    assert text.count('MSG: builtin_interfaces/Time\n') == 1
    assert text.count('MSG: std_msgs/Header\n') == 1
    assert '# A chunk of joint set-points' in text


def test_unknown_types_are_reported():
    with pytest.raises(ValueError, match='no_msgs/msg/X'):
        MessageTypes().full_definition('no_msgs/msg/X')
    with pytest.raises(ValueError, match='std_msgs/msg/X'):
        message_class('std_msgs/msg/X')


def talk(probe, node, topic='sim/task'):
    """Publishes until a message of the topic is in the bag."""
    publisher = probe.node.create_publisher(String, topic, qos.LATCHED)
    publisher.publish(String(data='press the red button'))
    probe.wait(lambda: node._bag.messages > 0, 20, 'it is written')
    return publisher


def test_a_recorder_that_is_killed_leaves_what_was_flushed(probe, tmp_path):
    node = recorder(probe, tmp_path / 'bag')
    talk(probe, node)
    probe.wait(lambda: not node._bag._storage.chunk.msgs, 20, 'it is flushed')
    shutil.copytree(tmp_path / 'bag', tmp_path / 'killed')  # what a process killed now would leave
    close(probe, node)
    damage = Damage()
    found = list(messages(tmp_path / 'killed', ['/arm/sim/task'], damage, lambda read: None))
    assert [m.data.data for m in found] == ['press the red button']


def test_a_full_disk_ends_the_recording_in_one_line_and_what_was_flushed_stays(probe, tmp_path):
    node = recorder(probe, tmp_path / 'bag')
    publisher = talk(probe, node)
    probe.wait(lambda: not node._bag._storage.chunk.msgs, 20, 'it is flushed')

    class Full:
        def __init__(self, file):
            self.tell, self.close = file.tell, file.close

        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def flush(self):
            pass

    node._bag._storage.bio = Full(node._bag._storage.bio)
    with pytest.raises(SystemExit, match=r'No space left on device.*the arm is not affected'):
        probe.wait(lambda: False, 20, 'never', lambda: publisher.publish(String(data='more')))
    close(probe, node)  # no further message
    found = list(messages(tmp_path / 'bag', ['/arm/sim/task'], Damage(), lambda read: None))
    assert [m.data.data for m in found] == ['press the red button']


def test_it_ends_with_a_complete_bag_while_there_is_room_left(probe, tmp_path, monkeypatch):
    node = recorder(probe, tmp_path / 'bag', keep_free=1.0)
    talk(probe, node)
    usage = SimpleNamespace(free=0.9e9)
    monkeypatch.setattr('vla_bringup.bags.writer.shutil.disk_usage', lambda path: usage)
    with pytest.raises(SystemExit, match=r'only 0.90 GB are free.*complete up to here'):
        probe.wait(lambda: False, 20, 'never')
    close(probe, node)
    with Bag(tmp_path / 'bag') as bag:
        assert bag.counts['/arm/sim/task'] == 1
    with pytest.raises(ValueError, match='Choose a folder with room'):
        recorder(probe, tmp_path / 'other', keep_free=1.0)
    assert not (tmp_path / 'other').exists()


def test_a_folder_that_cannot_be_made_is_reported(probe, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(ValueError, match=r'cannot write a bag to .*Not a directory'):
        recorder(probe, tmp_path / 'file' / 'bag')


def test_images_become_jpeg_where_that_is_asked_for(probe, tmp_path):
    node = recorder(probe, tmp_path / 'bag', jpeg_quality=90)
    camera = probe.node.create_publisher(Image, 'front/image_raw', qos.SENSOR_OUT)
    probe.wait(camera.get_subscription_count, 20, 'the recorder subscribes')
    pixels = np.full((32, 48, 3), (200, 50, 10), np.uint8)
    picture = Image(height=32, width=48, encoding='rgb8', step=144, data=pixels.tobytes())
    picture.header.stamp.sec = 5
    probe.wait(lambda: node._bag.messages > 0, 20, 'it is written', lambda: camera.publish(picture))
    close(probe, node)
    with Bag(tmp_path / 'bag') as bag:
        assert '/arm/front/image_raw' not in bag.topics
        read = next(iter(bag.messages(['/arm/front/image_raw/compressed']))).data
    assert read.format == 'rgb8; jpeg compressed bgr8'
    assert to_ns(read.header.stamp) == 5_000_000_000
    assert np.abs(decode_image(read, 'front').astype(int) - pixels).max() < 8
    assert len(read.data) < pixels.size / 2


def test_it_ends_by_itself_when_its_time_is_over(probe, tmp_path, monkeypatch):
    ended = []
    monkeypatch.setattr('vla_bringup.bags.recorder_node.os.kill', lambda pid, number: ended.append(number))
    node = recorder(probe, tmp_path / 'bag', minutes=1e-4)
    probe.wait(lambda: ended == [signal.SIGINT], 20, 'it ends')
    close(probe, node)
