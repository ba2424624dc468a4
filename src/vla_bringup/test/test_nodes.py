"""The node list and the profiles that it hands to the nodes."""

import pytest
import yaml

from vla_bringup.options import task_of
from vla_bringup.processes.nodes import NodeSpec, policy_nodes, recorder_node, share, sim_nodes
from vla_bringup.processes.supervisor import command
from vla_core.profile import RobotProfile, profile_names, profile_path
from vla_model.checkpoints import shipped


@pytest.mark.parametrize('namespace', ['arm', '/arm/', '/', '/1arm', '/arm/../x'])
def test_a_namespace_that_ros_would_refuse_is_refused(namespace):
    with pytest.raises(ValueError, match='namespace'):
        NodeSpec('p', 'e', 'n', namespace)


def test_a_parameter_of_another_type_is_refused(tmp_path):
    with pytest.raises(ValueError, match='parameter path of n'):
        NodeSpec('p', 'e', 'n', parameters={'path': tmp_path})


def test_profiles_are_found_by_name_and_by_path_and_are_sound():
    assert {'fr3', 'sim_panda'} <= set(profile_names())
    for name in profile_names():
        path = profile_path(name)
        assert profile_path(path) == path
        assert RobotProfile.load(path).dof == 7
        parameters = yaml.safe_load(open(path))['/**']['ros__parameters']  # noqa: PTH123, SIM115
        assert len(parameters['cameras']) == len(parameters['camera_topics']) == len(parameters['camera_frames'])
    with pytest.raises(ValueError, match=r"'ur5'.*sim_panda"):
        profile_path('ur5')


def test_every_node_of_the_list_is_installed(tmp_path):
    specs = [*sim_nodes(), *policy_nodes('fr3'), recorder_node('fr3', tmp_path / 'bag')]
    for spec in specs:
        words = command(spec, tmp_path)
        assert words[0].endswith(f'lib/{spec.package}/{spec.executable}')
    assert [s.name for s in specs if s.lifecycle] == ['executor', 'policy']


def test_a_namespace_reaches_every_node(tmp_path):
    specs = [
        *sim_nodes(namespace='/cell/arm'),
        *policy_nodes('sim_panda', namespace='/cell/arm'),
        recorder_node('sim_panda', tmp_path, namespace='/cell/arm'),
    ]
    assert {s.full_name for s in specs} == {
        f'/cell/arm/{n}' for n in ('sim', 'expert', 'executor', 'policy', 'recorder')
    }
    assert specs[0].file_stem == 'cell.arm.sim'


def test_the_profile_of_a_robot_network_leaves_this_machine():
    loopback, robot = (share('config', f'fastdds_{n}.xml').read_text() for n in ('loopback', 'robot'))
    assert '<interfaceWhiteList>' in loopback
    assert '<interfaceWhiteList>' not in robot


def test_a_policy_drives_where_it_is_asked_to():
    shadow, driving = policy_nodes('sim_panda')[1], policy_nodes('sim_panda', model='x', drive=True, rate=5.0)[1]
    assert shadow.parameters['drive'] is False and shadow.parameters['model'] == 'random-nano'
    assert driving.parameters['drive'] is True and driving.parameters['rate'] == 5.0
    assert [spec.name for spec in sim_nodes(expert=False)] == ['sim']


def test_the_default_model_is_the_shipped_one_once_it_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, 'FOLDER', tmp_path)
    assert shipped.default_model() == 'random-nano'
    (tmp_path / 'config.json').write_text('{}')
    assert shipped.default_model() == str(tmp_path)


def test_an_instruction_belongs_to_one_task():
    assert task_of('put the tomato in the blue bowl', '') == ('fill_bowl',)
    assert task_of('press the red button', 'press_button') == ('press_button',)
    with pytest.raises(ValueError, match='leave --tasks out'):
        task_of('press the red button', 'stack_block')
    with pytest.raises(ValueError, match='no task has the instruction'):
        task_of('make tea', '')
