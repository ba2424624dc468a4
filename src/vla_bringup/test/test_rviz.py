"""The RViz configurations and the file that launches them. That their topics exist: tests/test_rviz.py."""

from pathlib import Path

import pytest
import yaml

from vla_bringup.processes.nodes import rviz_path
from vla_core.profile import profile_path

# The displays, tools and view of rviz_default_plugins that a configuration of ours may name, and rviz_common's panels.
KNOWN = {
    f'rviz_default_plugins/{name}'
    for name in (
        'Camera', 'Grid', 'Image', 'Marker', 'MarkerArray', 'Path', 'RobotModel', 'TF',
        'FocusCamera', 'Measure', 'MoveCamera', 'Select', 'Orbit',
    )
} | {f'rviz_common/{name}' for name in ('Displays', 'Time', 'Views')}  # fmt: skip
ROBOTS = ('sim_panda', 'fr3')


def config(robot):
    with Path(rviz_path(robot)).open() as file:
        return yaml.safe_load(file)


def classes(node):
    if isinstance(node, dict):
        return {node['Class'] for _ in '1' if node.get('Class')} | {c for v in node.values() for c in classes(v)}
    return {c for v in node for c in classes(v)} if isinstance(node, list) else set()


def parameters(robot):
    with Path(profile_path(robot)).open() as file:
        return yaml.safe_load(file)['/**']['ros__parameters']


@pytest.mark.parametrize('robot', ROBOTS)
def test_rviz_has_all_that_is_named(robot):
    named = classes(config(robot))
    assert named <= KNOWN
    assert {
        f'rviz_default_plugins/{n}' for n in ('RobotModel', 'TF', 'Image', 'Path', 'MarkerArray', 'Marker')
    } <= named


@pytest.mark.parametrize('robot', ROBOTS)
def test_it_stands_on_the_base_of_its_robot(robot):
    c = config(robot)['Visualization Manager']
    assert c['Global Options']['Fixed Frame'] == parameters(robot)['robot']['base_frame']
    topics = [d['Topic']['Value'] for d in c['Displays'] if d['Class'].endswith('/Image')]
    assert set(parameters(robot)['camera_topics']) <= set(topics)


@pytest.mark.parametrize('robot', ROBOTS)
def test_what_is_closed_is_not_enabled_and_computes_nothing(robot):
    """RViz enables an image display whose pane the saved window shows, whatever `Enabled` says."""
    c = config(robot)
    state = bytes.fromhex(c['Window Geometry']['QMainWindow State'])
    shown = {}
    for display in c['Visualization Manager']['Displays']:
        if display['Class'].endswith('/Image'):
            name = display['Name'].encode('utf-16-be')
            entry = b'\xfb' + len(name).to_bytes(4, 'big') + name  # a dock of QMainWindow::saveState
            assert state.count(entry) == 1
            visible = state[state.index(entry) + len(entry)] & 1
            assert display['Enabled'] == display['Value'] == bool(visible)
            shown[display['Name']] = display['Enabled']
    assert {name for name, on in shown.items() if on} == {'Trace', 'Predicted and observed'}


def test_a_configuration_may_be_a_file(tmp_path):
    own = tmp_path / 'own.rviz'
    own.write_text('{}')
    assert rviz_path(str(own)) == str(own)
    with pytest.raises(ValueError, match='fr3, sim_panda'):
        rviz_path('ur5')


@pytest.mark.parametrize(('show', 'count'), [('true', 2), ('false', 1)])
def test_it_launches_rviz_and_the_node_that_shows(show, count, load):
    found = load.executables('rviz.launch.py', robot='fr3', namespace='/arm', show=show)
    assert found == [('rviz2', 'rviz2'), ('vla_policy_node', 'show')][:count]
