"""What a launch may set on top of a robot profile, and what is wrong with it, in one sentence."""

import pytest
import yaml

from vla_bringup.processes.franka_arm import franka_nodes
from vla_bringup.processes.nodes import policy_nodes, recorder_node, show_node, sim_nodes
from vla_bringup.processes.overrides import known, of_arguments, of_file
from vla_core.profile import profile_parameters, profile_path


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / 'more.yaml'
        path.write_text(text)
        return str(path)

    return write


def section(name, **values):
    return yaml.safe_dump({name: {'ros__parameters': values}})


def test_the_profile_is_what_a_node_gets_and_a_parameter_file_is_on_top(write):
    file = write(section('/**', velocity_fraction=0.3, camera_max_age=0.5, collision_monitor={'enabled': False}))
    executor, policy = policy_nodes('fr3', params_file=file)
    profile = profile_parameters('fr3')
    assert executor.parameters['robot.velocity'] == profile['robot']['velocity']
    assert executor.parameters['velocity_fraction'] == 0.3 and executor.parameters['collision_monitor.enabled'] is False
    assert policy.parameters['camera_max_age'] == 0.5 and policy.parameters['cameras'] == profile['cameras']
    assert 'velocity_fraction' not in policy_nodes('fr3')[0].parameters


@pytest.mark.parametrize('name', ['executor', '/executor', '/**/executor', '/*', '/arm/executor', '/arm/*', '**'])
def test_a_section_is_for_the_nodes_that_ros_would_give_it_to(write, name):
    namespace = '/arm' if 'arm' in name else ''
    executor, policy = policy_nodes('fr3', namespace=namespace, params_file=write(section(name, rate=50)))
    assert executor.parameters['rate'] == 50.0 and isinstance(executor.parameters['rate'], float)
    assert (policy.parameters['rate'] == 50.0) == ('executor' not in name)


def test_sections_may_be_nested_and_later_ones_win(write):
    text = 'arm: {executor: {ros__parameters: {rate: 50.0}}, policy: {ros__parameters: {rate: 2.5}}}\n'
    executor, policy = policy_nodes('fr3', namespace='/arm', params_file=write(text + section('/arm/*', rate=20.0)))
    assert executor.parameters['rate'] == policy.parameters['rate'] == 20.0


def test_parameters_that_are_given_by_themselves_come_last(write):
    file = write(section('executor', velocity_fraction=0.3, seam_time=0.2))
    own = '{engine: eager, seed: 3}'
    found = of_arguments({'params_file': file, 'velocity_fraction': '0.2', 'policy_parameters': own})
    executor, policy = policy_nodes('fr3', rate=4.0, **found)
    assert (executor.parameters['velocity_fraction'], executor.parameters['seam_time']) == (0.2, 0.2)
    assert (policy.parameters['engine'], policy.parameters['seed'], policy.parameters['rate']) == ('eager', 3, 4.0)


def test_what_the_launch_does_not_say_is_as_the_file_has_it(write):
    file = write(section('policy', model='/some/where', rate=7.0))
    policy = policy_nodes('fr3', params_file=file)[1]
    assert (policy.parameters['model'], policy.parameters['rate']) == ('/some/where', 7.0)
    assert policy_nodes('fr3')[1].parameters['model'] == 'random-nano'


def test_the_other_nodes_take_the_file_as_well(write, tmp_path):
    file = write(section('/**', seed=5, text_height=0.05, keep_free=2.0))
    assert sim_nodes(params_file=file, seed=5)[0].parameters['seed'] == 5
    assert show_node('fr3', params_file=file).parameters['text_height'] == 0.05
    assert recorder_node('fr3', tmp_path / 'bag', keep_free=2.0, params_file=file).parameters['keep_free'] == 2.0
    with pytest.raises(ValueError, match='sets seed of sim to 5, but seed is an argument of its own, and that is 0'):
        sim_nodes(params_file=file)


@pytest.mark.parametrize(
    ('text', 'wrong'),
    [
        (
            section('/**', velocity_fracton=0.2),
            'no node has a parameter velocity_fracton: did you mean velocity_f',
        ),
        (section('executor', engine='eager'), 'executor has no parameter engine'),
        (
            section('executer', rate=50.0),
            'section /executer is for none of the nodes: give /[*][*] or',
        ),
        (section('/left/executor', rate=50.0), 'section /left/executor is for none of the nodes'),
        (section('executor', velocity_fraction=2.0), 'velocity_fraction of executor is 2: must be 0.01 to 1'),
        (section('executor', velocity_fraction='fast'), "is 'fast': must be float"),
        (section('executor', blending='best'), "is 'best': must be one of latest, inpaint"),
        (section('policy', threads=True), 'is True: must be int'),
        (section('executor', collision_monitor={'planes': [0.0, 'a']}), 'must be a float list'),
        (section('policy', drive=True), 'sets drive of policy to True, but drive is an argument of its own'),
        ('rate: 50.0', 'is no ROS parameter file'),
        ('a: [', 'is not YAML'),
    ],
)
def test_what_a_file_must_not_say_is_refused(write, text, wrong):
    with pytest.raises(ValueError, match=wrong):
        policy_nodes('fr3', params_file=write(text))


def test_a_file_that_is_not_there_and_a_profile_that_is_misspelt_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r'nowhere[.]yaml cannot be read'):
        policy_nodes('fr3', params_file='nowhere.yaml')
    profile = yaml.safe_load(open(profile_path('fr3')))  # noqa: PTH123, SIM115
    profile['/**']['ros__parameters']['tracking_limt'] = 0.2
    (tmp_path / 'mine.yaml').write_text(yaml.safe_dump(profile))
    with pytest.raises(ValueError, match=r'mine[.]yaml.*tracking_limt: did you mean tracking_limit'):
        policy_nodes(str(tmp_path / 'mine.yaml'))


@pytest.mark.parametrize(
    ('arguments', 'wrong'),
    [
        ({'executor_parameters': 'rate=50'}, 'executor_parameters is .*must be a YAML mapping'),
        (
            {'policy_parameters': '{engin: eager}'},
            'policy has no parameter engin: did you mean engine',
        ),
        ({'velocity_fraction': 'slow'}, "velocity_fraction of executor is 'slow'"),
        ({'velocity_fraction': '0.2', 'executor_parameters': '{velocity_fraction: 0.3}'}, 'two values'),
    ],
)
def test_what_an_argument_must_not_say_is_refused(arguments, wrong):
    with pytest.raises(ValueError, match=wrong):
        of_arguments(arguments)
    with pytest.raises(ValueError, match='left_' + wrong if 'must' in wrong else wrong):
        of_arguments({f'left_{name}': value for name, value in arguments.items()}, 'left_')


def test_what_the_launch_of_a_franka_decides_is_not_changed_by_a_parameter():
    with pytest.raises(ValueError, match=r'gripper of executor to .none.*argument of its own'):
        franka_nodes('fr3', controller='crisp', gripper='franka', fake=False, executor_parameters={'gripper': 'none'})


def test_numbers_that_only_ros_takes_for_such_and_empty_lists_arrive(write):
    file = write('executor: {ros__parameters: {seam_time: 1e-1, robot: {gripper_joint_names: []}}}')
    assert of_file(file, 'executor', '') == {'seam_time': 0.1, 'robot.gripper_joint_names': []}


def test_every_entry_of_the_shipped_profiles_is_known():
    assert 'velocity_fraction' in known()['executor']
    for robot in ('fr3', 'sim_panda'):
        assert policy_nodes(robot)
