"""The probe and the graph against nodes in another thread; the command line."""

import threading

import domain_coordinator
import pytest
from lifecycle_msgs.msg import Transition
from rclpy.action import ActionClient
from rclpy.executors import SingleThreadedExecutor
from std_msgs.msg import Bool
from typer.testing import CliRunner

from vla_bringup.cli import app
from vla_bringup.demo.demo import prepare_folder
from vla_bringup.graph import capture
from vla_bringup.processes.probe import Probe, TransitionFailed
from vla_msgs.action import ExecuteInstruction
from vla_policy_node.ros import qos
from vla_policy_node.ros.lifecycle import SafeLifecycleNode


class Arm(SafeLifecycleNode):
    """Can be activated at the third attempt only; publishes at 20 Hz."""

    attempts = 0
    model = 'good'

    def __init__(self, **kwargs):
        super().__init__('arm', namespace='/cell', **kwargs)
        self.out = self.create_publisher(Bool, '~/beat', qos.STATUS)
        self.create_timer(0.05, lambda: self.out.publish(Bool(data=True)))

    def set_up(self):
        if self.model != 'good':
            raise ValueError('no such model')

    def start(self):
        self.attempts += 1
        if self.attempts < 3:
            raise ValueError('no joint state yet')


@pytest.fixture
def system(monkeypatch):
    """A probe, and a lifecycle node that spins in a thread of its own."""
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    with domain_coordinator.domain_id() as domain, Probe('test', domain_id=int(domain)) as probe:
        node = Arm(context=probe.context)
        executor = SingleThreadedExecutor(context=probe.context)
        executor.add_node(node)
        thread = threading.Thread(target=executor.spin)
        thread.start()
        yield probe, node
        executor.shutdown()
        thread.join()
        node.destroy_node()


def test_bring_up_asks_again_until_the_node_can_be_activated(system, monkeypatch):
    monkeypatch.setattr('vla_bringup.processes.probe.RETRY', 0.05)
    probe, node = system
    probe.bring_up('/cell/arm')
    assert node.attempts == 3
    assert probe.lifecycle_state('/cell/arm') == 'active'
    probe.bring_up('/cell/arm')  # active already: nothing to do
    assert node.attempts == 3
    probe.transition('/cell/arm', Transition.TRANSITION_DEACTIVATE)
    assert probe.lifecycle_state('/cell/arm') == 'inactive'


def test_a_refused_configure_is_reported(system):
    probe, node = system
    node.model = 'bad'
    with pytest.raises(TransitionFailed, match='/cell/arm could not be configured and is unconfigured') as caught:
        probe.bring_up('/cell/arm')
    assert caught.value.node == '/cell/arm'


def test_a_probe_leaves_the_domain_with_its_clients_of_actions(system):
    probe, _ = system
    names = probe.node.get_node_names
    with Probe('guest', domain_id=probe.context.get_domain_id()) as guest:
        client = ActionClient(guest.node, ExecuteInstruction, 'do')
        probe.wait(lambda: 'guest' in names(), 10.0, 'the guest is seen')
    probe.wait(lambda: 'guest' not in names(), 10.0, 'the guest is gone')
    assert client is not None  # whoever still holds on to it


def test_waiting_ends_with_the_time_or_with_the_check(system):
    probe, _ = system
    with pytest.raises(TimeoutError, match='service /nobody/get_state appears'):
        probe.lifecycle_state('/nobody', timeout=0.1)

    def fail():
        raise RuntimeError('a node ended')

    probe.check = fail
    with pytest.raises(RuntimeError, match='a node ended'):
        probe.wait(lambda: False, 20, 'never')


def test_the_graph_shows_nodes_states_topics_and_rates(system):
    probe, _ = system
    graph = capture(probe, seconds=0.6, settle=0.4)
    assert graph.nodes == {'/cell/arm': 'unconfigured'}
    beat = graph.topics['/cell/arm/beat']
    assert (beat.types, beat.publishers, beat.subscribers) == (['std_msgs/msg/Bool'], ['/cell/arm'], [])
    assert beat.qos == 'reliable'
    assert 10 < beat.rate < 30
    assert graph.services['/cell/arm/change_state'] == 'lifecycle_msgs/srv/ChangeState'
    assert not any('parameter' in name for name in graph.services)


def test_help_names_the_commands_of_the_shell_script_too():
    text = CliRunner().invoke(app, ['--help']).output
    for word in ('demo', 'doctor', 'graph', 'bench', 'build', 'test', 'shell'):
        assert word in text


def test_an_unknown_task_is_one_line_and_exit_code_1():
    result = CliRunner().invoke(app, ['demo', '--tasks', 'juggle'])
    assert result.exit_code == 1
    assert "unknown task 'juggle'" in result.output
    assert 'Traceback' not in result.output


def test_the_demo_empties_no_folder_but_its_own(tmp_path):
    (tmp_path / 'thesis.tex').write_text('years')
    with pytest.raises(ValueError, match='not from an earlier demo'):
        prepare_folder(tmp_path)
    assert (tmp_path / 'thesis.tex').exists()
    ours = tmp_path / 'demo'
    (ours / 'logs').mkdir(parents=True)
    (ours / 'summary.md').write_text('old')
    prepare_folder(ours)
    assert list(ours.iterdir()) == []
