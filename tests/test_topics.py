"""Every topic of the running nodes connects with programs of any QoS, or the exception is named here.

A new topic is found in the graph by itself.
"""

from pathlib import Path

import yaml
from lifecycle_msgs.msg import Transition
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

from vla_bringup.bags.message_types import message_class
from vla_bringup.graph import HOUSEKEEPING, UNKNOWN
from vla_bringup.processes.nodes import policy_nodes, rviz_path, show_node, sim_nodes
from vla_policy_node.ros import qos

DEFAULT = QoSProfile(depth=10)  # reliable, volatile: `ros2 topic pub`, most GUIs and bridges, RViz
LOSSY = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
# Set-points and chunks that may be lost, and state that a late joiner would not get, are refused: the log has a line.
REFUSES_DEFAULT = {
    'executor/status', 'policy/plan_text', 'robot_description', 'sim/episode', '/tf_static',
}  # fmt: skip
REFUSES_LOSSY = REFUSES_DEFAULT | {
    'action_chunk', 'target_joint', 'gripper/gripper_position_controller/commands', 'policy/status', 'policy/pointed',
    '/tf',
}  # fmt: skip


def rviz_requests(robot):
    """(topic, QoS) of each topic display of a configuration of RViz."""
    policies = {'Reliable': ReliabilityPolicy.RELIABLE, 'Best Effort': ReliabilityPolicy.BEST_EFFORT}
    for display in yaml.safe_load(Path(rviz_path(robot)).read_text())['Visualization Manager']['Displays']:
        for key in ('Topic', 'Description Topic'):
            if key in display:
                asked = display[key]
                latched = asked.get('Durability Policy', 'Volatile') == 'Transient Local'
                durability = DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE
                reliability = policies[asked.get('Reliability Policy', 'Reliable')]
                yield f'/{asked["Value"]}', QoSProfile(depth=5, reliability=reliability, durability=durability)


def test_publishers_and_subscriptions_with_default_qos_connect_with_every_topic(graph, tmp_path):
    specs = [*sim_nodes(), *policy_nodes('sim_panda', use_sim_time=True), show_node('sim_panda', use_sim_time=True)]
    for spec in specs:
        graph.start(spec.package, spec.executable, files=[spec.write_parameters(tmp_path)])
    for name in ('policy', 'executor'):
        assert graph.transition(name, Transition.TRANSITION_CONFIGURE), graph.outputs()
    node, ours = graph.node, {spec.name for spec in specs}

    def ends(find, topic):
        return [e for e in find(topic) if e.node_name in ours]

    def publishers():
        names = [name for name, _ in node.get_topic_names_and_types()]
        return {name: found for name in names if (found := ends(node.get_publishers_info_by_topic, name))}

    shown = graph.wait(lambda: [t for t in publishers() if t.startswith('/show/')], what='show')
    for topic in shown:  # only then it subscribes to its inputs
        (kind,) = {e.topic_type for e in publishers()[topic]}
        graph.latest(message_class(kind), topic)
    wanted = {'/policy/instruction', '/executor/emergency_stop', '/policy/plan_text', '/target_joint', '/tf_static'}

    def subscriptions():
        names = [name for name, _ in node.get_topic_names_and_types()]
        return {name: found for name in names if (found := ends(node.get_subscriptions_info_by_topic, name))}

    graph.wait(lambda: wanted <= set(subscriptions()) and UNKNOWN not in str(subscriptions()), what='all subscriptions')

    for topic, found in publishers().items():
        for requested in (DEFAULT, LOSSY):
            assert all(qos.fits(e.qos_profile, requested) for e in found), (topic, qos.in_words(requested))
    refused = {qos.in_words(DEFAULT): set(), qos.in_words(LOSSY): set()}
    for topic, found in subscriptions().items():
        for offered in (DEFAULT, LOSSY):
            by_node = [[e for e in found if e.node_name == name] for name in {e.node_name for e in found}]
            if topic not in HOUSEKEEPING and not all(
                any(qos.fits(offered, e.qos_profile) for e in each) for each in by_node
            ):
                refused[qos.in_words(offered)].add(topic)
    absolute = {name if name.startswith('/') else f'/{name}' for name in REFUSES_DEFAULT}
    assert refused[qos.in_words(DEFAULT)] == absolute
    assert refused[qos.in_words(LOSSY)] == {n if n.startswith('/') else f'/{n}' for n in REFUSES_LOSSY}

    offered = publishers()
    requests = list(rviz_requests('sim_panda'))
    assert len(requests) >= 8
    for topic, requested in requests:
        assert all(qos.fits(e.qos_profile, requested) for e in offered[topic]), topic
