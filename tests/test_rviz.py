"""The RViz configurations name only topics that the running nodes have, with the types that RViz expects there."""

from pathlib import Path

import pytest
import yaml
from lifecycle_msgs.msg import Transition

from vla_bringup.bags.message_types import message_class
from vla_bringup.processes.nodes import policy_nodes, rviz_path, show_node, sim_nodes

TYPES = {
    'Image': 'sensor_msgs/msg/Image',
    'Marker': 'visualization_msgs/msg/Marker',
    'MarkerArray': 'visualization_msgs/msg/MarkerArray',
    'Path': 'nav_msgs/msg/Path',
    'RobotModel': 'std_msgs/msg/String',
}


def named(robot):
    """Topic -> type of everything that the configuration subscribes to, in no namespace."""
    with Path(rviz_path(robot)).open() as file:
        displays = yaml.safe_load(file)['Visualization Manager']['Displays']
    found = {'/tf': 'tf2_msgs/msg/TFMessage'} if any(d['Class'].endswith('/TF') for d in displays) else {}
    for display in displays:
        for key in ('Topic', 'Description Topic'):
            if key in display:
                assert not display[key]['Value'].startswith('/')  # it must move with the namespace
                found['/' + display[key]['Value']] = TYPES[display['Class'].rsplit('/', 1)[-1]]
    return found


@pytest.mark.slow
@pytest.mark.parametrize('robot', ['sim_panda', 'fr3'])
def test_every_topic_is_one_of_the_running_graph(graph, tmp_path, robot):
    simulated = robot == 'sim_panda'
    specs = [*policy_nodes(robot, use_sim_time=simulated)[1:], show_node(robot, use_sim_time=simulated)]
    for spec in [*specs, *(sim_nodes(expert=False) if simulated else [])]:
        graph.start(spec.package, spec.executable, files=[spec.write_parameters(tmp_path)])
    node = graph.node
    graph.transition('policy', Transition.TRANSITION_CONFIGURE)  # cameras are subscribed to from here on

    def shown():
        try:
            return dict(node.get_publisher_names_and_types_by_node('show', '/'))
        except Exception:  # it is not known yet
            return {}

    outputs = graph.wait(lambda: {t: k[0] for t, k in shown().items() if t.startswith('/show/')}, what='show')
    for topic, kind in outputs.items():  # only then it listens to all that it needs
        graph.latest(message_class(kind), topic)

    def others():
        """What somebody else than this test publishes or subscribes to."""
        found = set()
        for topic, kinds in node.get_topic_names_and_types():
            ends = [*node.get_publishers_info_by_topic(topic), *node.get_subscriptions_info_by_topic(topic)]
            if any(end.node_name != node.get_name() for end in ends):
                found |= {(topic, kind) for kind in kinds}
        return found

    wanted = set(named(robot).items())
    assert len(wanted) >= 9
    try:
        graph.wait(lambda: wanted <= others(), timeout=20.0, what='all topics')
    except AssertionError:
        assert sorted(wanted - others()) == []
