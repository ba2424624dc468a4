"""The launch files make the nodes of the node list, with the parameters that their arguments give."""

import importlib
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from vla_bringup.processes.franka_arm import franka_nodes
from vla_bringup.processes.nodes import policy_nodes, recorder_node, share, sim_nodes
from vla_bringup.replay import player as replay_player
from vla_bringup.replay.player import Playback
from vla_core.profile import RobotProfile, profile_path
from vla_policy_node.adapters.table import ADAPTERS

FILES = sorted(path.name for path in share('launch').glob('*.launch.py'))
PARAMETERS = {'executor_parameters', 'params_file', 'policy_parameters', 'velocity_fraction'}


@pytest.mark.parametrize('name', FILES)
def test_every_launch_file_takes_parameters_on_top_of_the_profile(name, load):
    given = load.arguments(name)
    wanted = {'rviz.launch.py': {'params_file'}, 'replay.launch.py': {'params_file', 'policy_parameters'}}
    if name == 'two_arms.launch.py':
        assert {f'{side}_{name}' for side in ('left', 'right') for name in PARAMETERS} <= given
    else:
        assert wanted.get(name, PARAMETERS) == given & PARAMETERS


@pytest.mark.parametrize(('driver', 'expert'), [('expert', True), ('none', False), ('policy', False)])
def test_sim_launch_makes_the_nodes_of_the_list(driver, expert, load):
    specs = [*sim_nodes(expert=expert), *policy_nodes('sim_panda', use_sim_time=True)]
    assert load.executables('sim.launch.py', driver=driver) == [(s.package, s.executable) for s in specs]


def test_policy_launch_makes_the_nodes_of_the_list(load):
    assert load.executables('policy.launch.py', robot='fr3', namespace='/arm') == [
        (s.package, s.executable) for s in policy_nodes('fr3')
    ]


@pytest.mark.parametrize('name', ['policy', 'executor'])
def test_one_machine_may_run_one_of_the_two(name, load):
    assert load.executables('policy.launch.py', nodes=name) == [('vla_policy_node', f'{name}_node')]


def test_without_autostart_nothing_changes_states(load):
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


def test_franka_launch_brings_up_robot_controller_and_our_nodes(franka_bringup, load):
    from launch.actions import IncludeLaunchDescription

    given = {'robot_ip': '172.16.0.3', 'namespace': '/arm', 'controller': 'joint_trajectory'}
    ours = [(s.package, s.executable) for s in policy_nodes('fr3')]
    assert load.executables('franka.launch.py', **given) == [('controller_manager', 'spawner'), *ours]
    actions = load('franka.launch.py', **given)
    (include,) = [a for a in actions if isinstance(a, IncludeLaunchDescription)]
    handed = dict(include.launch_arguments)
    assert (handed['robot_ip'], handed['namespace'], handed['load_gripper']) == ('172.16.0.3', '/arm', 'true')
    assert Path(handed['controllers_yaml']).name == 'fr3.yaml'


@pytest.mark.parametrize('gripper', ['franka', 'none'])
@pytest.mark.parametrize('controller', ['auto', 'joint_trajectory', 'forward_command'])
def test_fake_hardware_is_moved_by_positions_and_its_hand_by_nothing(controller, gripper, franka_bringup, load):
    from launch.actions import IncludeLaunchDescription

    actions = load('franka.launch.py', use_fake_hardware='true', controller=controller, gripper=gripper)
    (include,) = [a for a in actions if isinstance(a, IncludeLaunchDescription)]
    handed = dict(include.launch_arguments)
    assert (handed['use_fake_hardware'], handed['load_gripper']) == ('true', str(gripper == 'franka').lower())
    executor, policy = load.specs
    chosen = ADAPTERS[executor.parameters['controller']]
    assert executor.parameters['controller'] == ('joint_trajectory' if controller == 'auto' else controller)
    known = yaml.safe_load(Path(handed['controllers_yaml']).read_text())['/**']
    own = known[chosen.controller]['ros__parameters']
    assert chosen.controller in known['controller_manager']['ros__parameters']
    assert [own.get('interface_name'), *own.get('command_interfaces', [])] in (['position'], [None, 'position'])
    # Fingers of the fake hand are published, and there is nothing to send them anything by.
    assert (executor.parameters['gripper'], executor.parameters['topics.robot_state']) == ('none', '')
    assert bool(policy.parameters['robot.gripper_joint_names']) == (gripper == 'franka')


@pytest.mark.parametrize('fake', ['true', 'false'])
def test_without_the_hand_of_franka_the_tool_frame_is_one_that_is_there(fake, franka_bringup, load, tmp_path):
    given = {'robot_ip': '172.16.0.3', 'use_fake_hardware': fake}

    def frames(**more):
        load('franka.launch.py', **given, **more)
        return {spec.parameters['robot.tool_frame'] for spec in load.specs}

    assert frames(gripper='franka') == {'fr3_hand_tcp'}
    assert frames(gripper='none') == {'fr3_link8'}
    with pytest.raises(ValueError, match=r'no fr3_hand_tcp without.*robot.tool_frame to fr3_link8.*robot.tool_offset'):
        frames(gripper='position')
    mine = tmp_path / 'mine.yaml'
    mine.write_text('/**: {ros__parameters: {robot: {tool_offset: [0.0, 0.0, 0.15, 0.0, 0.0, 0.0]}}}')
    with pytest.raises(ValueError, match=r'gripper none: .*no fr3_hand_tcp'):  # the offset counts from the hand
        frames(gripper='none', params_file=str(mine))
    mine.write_text(mine.read_text().replace('{tool_offset', '{tool_frame: fr3_link8, tool_offset'))
    for gripper in ('position', 'none'):
        assert frames(gripper=gripper, params_file=str(mine)) == {'fr3_link8'}


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        ({}, 'needs robot_ip'),
        ({'robot_ip': '1.2.3.4', 'controller': 'forward_command'}, 'every millisecond'),
        ({'use_fake_hardware': 'true', 'controller': 'crisp'}, 'does not integrate.*Take joint_trajectory'),
        ({'use_fake_hardware': 'true', 'controllers_yaml': '/none.yaml'}, 'controllers_yaml /none.yaml does not exist'),
        ({'robot_ip': '1.2.3.4', 'robot': 'fr4'}, "no robot profile 'fr4'"),
        ({'robot_ip': '1.2.3.4', 'namespace': 'arm'}, "'/cell/arm'"),
        ({'robot_ip': '1.2.3.4'}, 'franka_bringup is not installed'),
    ],
)
def test_what_cannot_work_is_one_sentence(arguments, says, load):
    with pytest.raises(ValueError, match=says):
        load('franka.launch.py', **arguments)


def test_the_recorder_subscribes_to_the_topics_that_the_launch_gave_the_executor(franka_bringup, load, tmp_path):
    bag = str(tmp_path / 'bag')
    load('franka.launch.py', robot_ip='172.16.0.3', controller='joint_trajectory', record=bag)
    wanted = {'topics.joint_command': ADAPTERS['joint_trajectory'].topic, 'topics.gripper_command': 'franka_gripper'}
    assert wanted.items() <= load.specs[-1].parameters.items()
    load('policy.launch.py', record=bag, executor_parameters='{topics.joint_command: mine/commands}')
    assert load.specs[-1].parameters['topics.joint_command'] == 'mine/commands'


def test_two_arms_share_no_name_and_no_clock(load):
    both = load.executables('two_arms.launch.py')
    assert len(both) == 8 and both[:4] == both[4:]
    with pytest.raises(ValueError, match='simulated arms only'):
        load('two_arms.launch.py', simulated='false')
    real = {'simulated': 'false', 'driver': 'none', 'left_robot': 'fr3', 'right_robot': 'fr3'}
    assert load.executables('two_arms.launch.py', **real) == 2 * [
        (s.package, s.executable) for s in policy_nodes('fr3')
    ]


@pytest.mark.parametrize(
    ('name', 'more'),
    [
        ('policy.launch.py', {}),
        ('sim.launch.py', {}),
        ('franka.launch.py', {'robot_ip': '1.2.3.4', 'model': 'nano'}),
        ('two_arms.launch.py', {}),
    ],
)
def test_the_first_motion_is_slowed_down_by_one_argument(name, more, load, franka_bringup, tmp_path):
    file = tmp_path / 'more.yaml'
    file.write_text('executor: {ros__parameters: {seam_time: 0.2}}\n/**: {ros__parameters: {velocity_fraction: 0.5}}\n')
    prefix = 'left_' if name == 'two_arms.launch.py' else ''
    if prefix:  # a file belongs to one arm, whose namespace its sections have
        file.write_text(file.read_text().replace('executor:', '/left/executor:'))
    given = {
        'params_file': str(file),
        'velocity_fraction': '0.2',
        'executor_parameters': '{tracking_limit: 0.05}',
        'policy_parameters': '{engine: eager, seed: 7}',
    }
    load(name, **more, **{prefix + key: value for key, value in given.items()})
    executor, policy = (next(s for s in load.specs if s.name == n) for n in ('executor', 'policy'))
    slow = [executor.parameters[n] for n in ('velocity_fraction', 'seam_time', 'tracking_limit')]
    assert slow == [0.2, 0.2, 0.05]
    assert (policy.parameters['engine'], policy.parameters['seed'], policy.parameters['drive']) == ('eager', 7, False)
    if prefix:
        other = [s for s in load.specs if s.full_name == '/right/executor']
        assert 'velocity_fraction' not in other[0].parameters


def test_a_parameter_that_no_node_has_starts_nothing(load):
    with pytest.raises(ValueError, match='did you mean velocity_fraction'):
        load('policy.launch.py', executor_parameters='{velocity_fracton: 0.2}')
    with pytest.raises(ValueError, match='velocity_fraction of executor is 2: must be'):
        load('policy.launch.py', velocity_fraction='2')


@pytest.fixture
def played(monkeypatch, tmp_path):
    """Stands for the plan of a bag; a list with what it was asked for."""
    asked = []
    topics = {'/front/image_raw': '/front/image_raw', '/sim/task': '/policy/instruction'}
    plan = Playback(tmp_path, 0.5, 2.0, topics, ['/front/image_raw'], True, '', {}, False, '<robot/>')
    monkeypatch.setattr(replay_player, 'playback', lambda *args, **more: asked.append((args, more)) or plan)
    return asked


def test_a_bag_is_played_to_a_policy_without_an_arm(load, played, tmp_path):
    from launch.actions import ExecuteProcess

    given = {'engine': 'eager', 'threads': '2', 'seed': '7', 'rate': '0.5', 'start_offset': '2', 'instruction': 'go'}
    actions = load('replay.launch.py', bag=str(tmp_path), policy_parameters='{plan_rate: 0.0}', **given)
    assert played == [((tmp_path, 'sim_panda', ''), {'instruction': 'go', 'offset': 2.0, 'rate': 0.5})]
    (policy,) = load.specs
    p = policy.parameters
    assert (p['inpaint'], p['engine'], p['threads'], p['seed'], p['plan_rate']) == ('never', 'eager', 2, 7, 0.0)
    assert policy.name == 'policy' and p['drive'] is False
    assert Path(p['robot_description_file']).read_text() == '<robot/>'  # the player is paused when it is wanted
    (player,) = [a for a in actions if type(a) is ExecuteProcess]
    words = [w if isinstance(w, str) else w[0].text for w in player.cmd]
    assert '--start-paused' in words and words[-1] == '/sim/task:=/policy/instruction'


def test_two_values_of_one_parameter_start_no_replay(load, played, tmp_path):
    with pytest.raises(ValueError, match='two values of engine'):
        load('replay.launch.py', bag=str(tmp_path), engine='eager', policy_parameters='{engine: auto}')
    with pytest.raises(ValueError, match="rate is 'fast'"):
        load('replay.launch.py', bag=str(tmp_path), rate='fast')


class Player:
    """Stands for the launch's node and for the client of the player's service."""

    def __init__(self):
        self.publishers, self.ready, self.calls = 0, False, []

    def count_publishers(self, name):
        return self.publishers

    def service_is_ready(self):
        return self.ready

    def call_async(self, request):
        self.calls.append(request)


def test_the_player_is_resumed_when_it_is_there_with_its_topics(load, played, monkeypatch):
    launch_player = importlib.import_module('vla_bringup.replay.launch_player')
    player, plan = Player(), replay_player.playback()
    monkeypatch.setattr(launch_player, 'get_ros_node', lambda context: player)

    def step():
        (timer,) = launch_player._when_ready(None, plan, player, SimpleNamespace(Request=str))
        return timer.actions

    for player.ready, player.publishers in ((False, 0), (True, 0), (False, 1)):
        assert len(step()) == 1 and not player.calls  # looks again
    player.ready = True
    call = step()[-1]
    call.execute(None) if hasattr(call, 'execute') else call.function(None)  # the real launch, or its stand-in
    assert player.calls == ['']


def test_a_player_that_fails_is_reported_by_the_exit_code(load):
    launch_player = importlib.import_module('vla_bringup.replay.launch_player')
    running = SimpleNamespace(is_shutdown=False)
    with pytest.raises(RuntimeError, match='exit code 2'):
        launch_player.over(SimpleNamespace(returncode=2), running)
    assert len(launch_player.over(SimpleNamespace(returncode=0), running)) == 1
    ending = SimpleNamespace(is_shutdown=True)
    assert launch_player.over(SimpleNamespace(returncode=-2), ending) == []
    with pytest.raises(RuntimeError, match='could not be configured'):
        launch_player.failed(running)
    launch_player.failed(ending)


def test_rviz_gets_the_node_that_shows(load, tmp_path):
    (tmp_path / 'show.yaml').write_text('show: {ros__parameters: {text_height: 0.05}}')
    assert load.executables('rviz.launch.py', params_file=str(tmp_path / 'show.yaml')) == [
        ('rviz2', 'rviz2'),
        ('vla_policy_node', 'show'),
    ]
    assert load.specs[0].parameters['text_height'] == 0.05


def test_rviz_beside_one_of_two_arms_has_the_clock_and_the_transforms_of_that_arm(load):
    load('two_arms.launch.py')
    of_arms = load.specs[0].remappings
    assert ('/clock', 'clock') in of_arms
    rviz = load('rviz.launch.py', namespace='/left', own_clock='true')[0]
    assert load.specs[0].remappings == getattr(rviz, 'remappings', of_arms) == of_arms
    load('rviz.launch.py', namespace='/left')
    assert load.specs[0].remappings == ()


def test_a_recorder_that_ends_stops_no_other_node(load):
    from vla_bringup.processes.launching import launch_actions

    recorder = recorder_node('sim_panda', '/nowhere')
    assert not recorder.essential and all(spec.essential for spec in policy_nodes('sim_panda'))
    *_, action = launch_actions([recorder])
    assert not getattr(action, '_ExecuteLocal__on_exit', None)


def test_a_second_shutdown_does_not_turn_a_clean_end_into_an_error(load, monkeypatch):
    """As launch_ros 0.26.6: its adapter raises when it is shut down twice, and franka_bringup's launch asks for it."""
    from vla_bringup.processes import launching

    class Adapter:
        running = True

        def shutdown(self):
            if not self.running:
                raise RuntimeError('Cannot shutdown a ROS adapter that is not running')
            self.running = False

    adapter = Adapter()
    monkeypatch.setattr(launching, 'get_ros_adapter', lambda context: adapter)
    for _ in range(2):  # two arms in one launch
        launching._shut_down_once(None)
    adapter.shutdown()
    assert not adapter.running
    adapter.shutdown()


def test_the_executor_waits_for_controller_and_joint_states():
    executor, policy = policy_nodes('fr3')
    assert executor.waits_for == (('reader', 'target_joint'), ('writer', 'franka/joint_states'))
    assert policy.waits_for == ()


@pytest.mark.parametrize('controller', ADAPTERS)
def test_the_executor_speaks_the_language_of_the_controller(controller):
    fake = controller == 'forward_command'
    executor, _ = franka_nodes('fr3', controller=controller, gripper='franka', fake=fake)
    p = executor.parameters
    assert (p['controller'], p['topics.gripper_command']) == (controller, 'franka_gripper')
    assert p['gripper'] == ('none' if fake else 'franka')
    assert executor.waits_for[0] == ('reader', ADAPTERS[controller].topic)
    known = yaml.safe_load(share('config', 'controllers', 'fr3.yaml').read_text())['/**']
    name, manager = ADAPTERS[controller].controller, known['controller_manager']['ros__parameters']
    assert p['controller_node'] == name and manager[name]['type'] == ADAPTERS[controller].controller_type
    profile = RobotProfile.load('fr3')
    assert tuple(known[name]['ros__parameters']['joints']) == profile.joint_names


def test_without_a_gripper_neither_node_waits_for_one():
    for spec in franka_nodes('fr3', controller='auto', gripper='none', fake=True):
        assert spec.parameters['robot.gripper_joint_names'] == []


def test_the_gains_of_the_profile_are_those_of_the_controller():
    own = yaml.safe_load(Path(profile_path('fr3')).read_text())['/**']['ros__parameters']['gains']
    known = yaml.safe_load(share('config', 'controllers', 'fr3.yaml').read_text())['/**']
    nullspace = known['joint_controller']['ros__parameters']['nullspace']
    weights = list(nullspace['weights'].values())
    assert [nullspace['stiffness'] * w for w in weights] == own['stiffness']
    assert [nullspace['damping'] * w for w in weights] == own['damping']
