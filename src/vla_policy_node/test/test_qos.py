"""QoS of what other programs publish and subscribe to."""

import pytest
from rclpy.qos import DurabilityPolicy, QoSCompatibility, QoSProfile, ReliabilityPolicy, qos_check_compatible
from std_msgs.msg import Bool, String

from vla_policy_node.ros import qos
from vla_policy_node.ros.pending import pending
from vla_policy_node.ros.qos_mismatch import EveryPublisher, ReportsQosMismatch

PROFILES = [QoSProfile(depth=10, reliability=r, durability=d) for r in list(ReliabilityPolicy)[1:3]
            for d in list(DurabilityPolicy)[1:3]]  # fmt: skip


class Reporter(ReportsQosMismatch):
    def __init__(self, name, **kwargs):
        self.reports = []
        super().__init__(name, **kwargs)

    def _log_mismatch(self, sentence):
        self.reports.append(sentence)


@pytest.mark.parametrize('offered', PROFILES, ids=qos.in_words)
@pytest.mark.parametrize('requested', PROFILES, ids=qos.in_words)
def test_what_fits_is_what_the_middleware_connects(offered, requested):
    assert qos.fits(offered, requested) == (qos_check_compatible(offered, requested)[0] != QoSCompatibility.ERROR)


@pytest.mark.parametrize('profile', PROFILES, ids=qos.in_words)
def test_each_message_of_every_publisher_counts_once(ros, profile):
    node, got = ros.add('node'), []
    other = ros.add('other').create_publisher(String, 'words', profile)
    other.publish(String(data='before'))
    every = EveryPublisher(node, String, 'words', lambda msg: got.append(msg.data))
    fitting = [p for p in qos.ANY if qos.fits(profile, p)]
    ros.wait(lambda: other.get_subscription_count() == len(fitting), 'matched')
    latched = [QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)]
    if qos.fits(profile, latched[0]):
        ros.wait(lambda: got == ['before'], 'what was published before')
    got.clear()
    expected = ['a', 'b', 'b', 'a']
    for count, words in enumerate(expected, 1):
        other.publish(String(data=words))
        ros.wait(lambda: len(got) >= count, 'it is received')  # noqa: B023
    copies = [s for s in every._subscriptions if qos.fits(profile, s.qos_profile)]
    assert len(copies) == len(fitting)
    mark = ros.add('third').create_publisher(String, 'words', 10)
    ros.wait(lambda: mark.get_subscription_count() == 2, 'matched')
    mark.publish(String(data='last'))
    ros.wait(lambda: 'last' in got, 'the last')
    assert got == [*expected, 'last']
    every.close()


def test_equal_words_of_two_publishers_count_twice_though_their_qos_differs(ros):
    node, got = ros.add('node'), []
    every = EveryPublisher(node, Bool, 'pressed', lambda msg: got.append(msg.data))
    makers = [ros.add(f'other{i}').create_publisher(Bool, 'pressed', p) for i, p in enumerate(PROFILES)]
    for maker, profile in zip(makers, PROFILES, strict=True):
        ros.wait(lambda m=maker, p=profile: m.get_subscription_count() == sum(qos.fits(p, q) for q in qos.ANY))
    for count, maker in enumerate(makers, 1):
        maker.publish(Bool(data=True))
        ros.wait(lambda: len(got) == count, 'it is received')  # noqa: B023
    every.close()


def test_a_publisher_that_is_not_received_is_named_with_the_remedy(ros):
    node = ros.add('node', Reporter)
    node.create_subscription(String, 'words', print, qos.LATCHED)
    ros.add('gui', namespace='/cell').create_publisher(String, '/words', qos.SENSOR)
    ros.wait(lambda: node.reports, 'a report')
    assert node.reports == [
        '/words: nothing is received from /cell/gui, which is best effort: publish it reliable latched (QoS)'
    ]


def test_a_subscription_that_gets_nothing_is_named_with_the_remedy(ros):
    node = ros.add('node', Reporter)
    node.create_publisher(String, 'words', qos.STATUS)
    ros.add('viewer').create_subscription(String, 'words', print, qos.LATCHED)
    ros.wait(lambda: node.reports, 'a report')
    assert node.reports == ['/words: nothing is sent to /viewer, which is reliable latched: subscribe reliable (QoS)']


def test_all_messages_that_wait_are_taken_in_one_turn_in_their_order(ros):
    turns = []
    node = ros.add('node')
    subscription = node.create_subscription(
        String, 'words', lambda msg: turns.append([m.data for m in (msg, *pending(subscription))]), qos.HISTORY
    )
    other = ros.add('other').create_publisher(String, 'words', 50)
    ros.wait(lambda: other.get_subscription_count() and subscription.get_publisher_count(), 'matched')
    words = [str(i) for i in range(50)]
    for word in words:
        other.publish(String(data=word))
    other.wait_for_all_acked()
    ros.wait(lambda: [word for turn in turns for word in turn] == words, 'every message')
    assert len(turns) < 10  # more than one only where messages came meanwhile
