"""The launch files: they compile everywhere; with launch_ros they make the nodes of the node list."""

import os
from pathlib import Path

import pytest
import yaml

from vla_bringup.nodes import CONTROLLERS, franka_nodes, policy_nodes, recorder_node, share, sim_nodes
from vla_policy_node.core.profile import RobotProfile, profile_path

FILES = ('sim.launch.py', 'policy.launch.py', 'franka.launch.py', 'two_arms.launch.py')


@pytest.mark.parametrize('name', FILES)
def test_it_compiles_and_takes_its_nodes_from_the_list(name):
    text = share('launch', name).read_text()
    compile(text, name, 'exec')
    assert 'launch_actions(' in text
    assert '_nodes(' in text
    assert text.count('executable=') == (name == 'franka.launch.py')  # no node of its own but the spawner


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


@pytest.fixture
def franka_bringup(tmp_path, monkeypatch):
    """A package of this name; its launch file declares what ours hands over."""
    share = tmp_path / 'share'
    (share / 'ament_index/resource_index/packages').mkdir(parents=True)
    (share / 'ament_index/resource_index/packages/franka_bringup').write_text('')
    (share / 'franka_bringup/launch').mkdir(parents=True)
    names = 'robot_type arm_prefix namespace robot_ip load_gripper use_fake_hardware fake_sensor_commands'
    (share / 'franka_bringup/launch/franka.launch.py').write_text(
        'from launch import LaunchDescription\nfrom launch.actions import DeclareLaunchArgument\n'
        f'NAMES = "{names} controllers_yaml"\n'
        'def generate_launch_description():\n'
        '    return LaunchDescription([DeclareLaunchArgument(n) for n in NAMES.split()])\n'
    )
    monkeypatch.setenv('AMENT_PREFIX_PATH', f'{tmp_path}:{os.environ["AMENT_PREFIX_PATH"]}')


def test_franka_launch_brings_up_robot_controller_and_our_nodes(franka_bringup):
    pytest.importorskip('launch_ros')
    from launch.actions import IncludeLaunchDescription

    actions = load('franka.launch.py', robot_ip='172.16.0.3', namespace='/arm', controller='joint_trajectory')
    ours = [(s.package, s.executable) for s in policy_nodes('fr3')]
    assert executables(actions) == [('controller_manager', 'spawner'), *ours]
    (include,) = [a for a in actions if isinstance(a, IncludeLaunchDescription)]
    handed = dict(include.launch_arguments)
    assert (handed['robot_ip'], handed['namespace'], handed['load_gripper']) == ('172.16.0.3', '/arm', 'true')
    assert Path(handed['controllers_yaml']).is_file()


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        ({}, 'needs robot_ip'),
        ({'robot_ip': '1.2.3.4', 'controller': 'forward_command'}, 'every millisecond'),
        ({'robot_ip': '1.2.3.4', 'robot': 'fr4'}, "no robot profile 'fr4'"),
        ({'robot_ip': '1.2.3.4', 'namespace': 'arm'}, "'/cell/arm'"),
        ({'robot_ip': '1.2.3.4'}, 'franka_bringup is not installed'),
    ],
)
def test_what_cannot_work_is_one_sentence(arguments, says):
    with pytest.raises(ValueError, match=says):
        load('franka.launch.py', **arguments)


def test_two_arms_share_no_name_and_no_clock():
    actions = load('two_arms.launch.py')
    both = executables(actions)
    assert len(both) == 8 and both[:4] == both[4:]
    with pytest.raises(ValueError, match='simulated arms only'):
        load('two_arms.launch.py', simulated='false')
    alone = load('two_arms.launch.py', simulated='false', driver='none', left_robot='fr3', right_robot='fr3')
    assert executables(alone) == [(s.package, s.executable) for s in policy_nodes('fr3')] * 2


def test_a_recorder_that_ends_stops_nobody():
    pytest.importorskip('launch_ros')
    from vla_bringup.launching import launch_actions

    recorder = recorder_node('sim_panda', '/nowhere')
    assert not recorder.essential and all(spec.essential for spec in policy_nodes('sim_panda'))
    (action,) = launch_actions([recorder])
    assert not getattr(action, '_ExecuteLocal__on_exit', None)


def test_the_executor_waits_for_controller_and_joint_states():
    executor, policy = policy_nodes('fr3')
    assert executor.waits_for == (('reader', 'target_joint'), ('writer', 'franka/joint_states'))
    assert policy.waits_for == ()


@pytest.mark.parametrize('controller', CONTROLLERS)
def test_the_executor_speaks_the_language_of_the_controller(controller):
    executor, _ = franka_nodes('fr3', controller=controller, gripper='franka', fake=True)
    p = executor.parameters
    assert (p['controller'], p['topics.gripper_command']) == (controller, 'franka_gripper')
    assert executor.waits_for[0] == ('reader', CONTROLLERS[controller].topic)
    known = yaml.safe_load(share('config', 'controllers', 'fr3.yaml').read_text())['/**']
    name = CONTROLLERS[controller].name
    assert p['controller_node'] == name and 'type' in known['controller_manager']['ros__parameters'][name]
    profile = RobotProfile.load('fr3')
    assert tuple(known[name]['ros__parameters']['joints']) == profile.joint_names


def test_without_a_gripper_neither_node_waits_for_one():
    for spec in franka_nodes('fr3', controller='crisp', gripper='none', fake=True):
        assert spec.parameters['robot.gripper_joint_names'] == ['']  # rcl drops []


def test_the_gains_of_the_profile_are_those_of_the_controller():
    own = yaml.safe_load(Path(profile_path('fr3')).read_text())['/**']['ros__parameters']['gains']
    known = yaml.safe_load(share('config', 'controllers', 'fr3.yaml').read_text())['/**']
    nullspace = known['joint_controller']['ros__parameters']['nullspace']
    weights = list(nullspace['weights'].values())
    assert [nullspace['stiffness'] * w for w in weights] == own['stiffness']
    assert [nullspace['damping'] * w for w in weights] == own['damping']
