"""The launch files: they compile everywhere; with launch_ros they make the nodes of the node list."""

import pytest

from vla_bringup.nodes import policy_nodes, share, sim_nodes

FILES = ('sim.launch.py', 'policy.launch.py')


@pytest.mark.parametrize('name', FILES)
def test_it_compiles_and_takes_its_nodes_from_the_list(name):
    text = share('launch', name).read_text()
    compile(text, name, 'exec')
    assert 'launch_actions(' in text
    assert 'policy_nodes(' in text
    assert 'executable=' not in text  # no node of its own


def load(name, **arguments):
    """Actions that the launch file makes, after its arguments were evaluated."""
    pytest.importorskip('launch_ros')
    from launch import LaunchContext
    from launch.actions import DeclareLaunchArgument
    from launch.launch_description_sources import get_launch_description_from_python_launch_file as read

    context = LaunchContext()
    context.launch_configurations.update(arguments)
    actions = []
    for entity in read(str(share('launch', name))).entities:
        if isinstance(entity, DeclareLaunchArgument):
            entity.execute(context)
            assert entity.description
        else:
            actions += entity.execute(context)
    return actions


def executables(actions):
    from launch_ros.actions import Node

    return [(a.node_package, a.node_executable) for a in actions if isinstance(a, Node)]


@pytest.mark.parametrize(('driver', 'expert'), [('expert', True), ('none', False), ('policy', False)])
def test_sim_launch_makes_the_nodes_of_the_list(driver, expert):
    actions = load('sim.launch.py', driver=driver)
    specs = [*sim_nodes(expert=expert), *policy_nodes('sim_panda', use_sim_time=True)]
    assert executables(actions) == [(s.package, s.executable) for s in specs]


def test_policy_launch_makes_the_nodes_of_the_list():
    actions = load('policy.launch.py', robot='fr3', namespace='/arm')
    assert executables(actions) == [(s.package, s.executable) for s in policy_nodes('fr3')]


@pytest.mark.parametrize('name', ['policy', 'executor'])
def test_one_machine_may_run_one_of_the_two(name):
    assert executables(load('policy.launch.py', nodes=name)) == [('vla_policy_node', f'{name}_node')]


def test_without_autostart_nothing_changes_states():
    pytest.importorskip('launch_ros')
    from launch.actions import EmitEvent, RegisterEventHandler

    kinds = {type(a) for a in load('policy.launch.py', autostart='false')}
    assert not kinds & {EmitEvent, RegisterEventHandler}
    assert {EmitEvent, RegisterEventHandler} <= {type(a) for a in load('policy.launch.py')}
