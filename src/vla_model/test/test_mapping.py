"""The mapping of a robot to a policy server: keys, images, units, and the meaning of actions."""

import numpy as np
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from vla_model.families.rynnvla.constants import LIBERO_INPUT, LIBERO_TOOL
from vla_model.families.rynnvla.robot import KINDS, RobotFile
from vla_model.remote.mapping import FOLDER, load_mapping, parse_mapping, shipped
from vla_model.remote.pictures import picture
from vla_model.remote.reply import chunk_of
from vla_model.remote.request import request_of
from vla_model.remote.rotations import FORMS, of_matrix, to_matrix
from vla_model.types import Observation

RNG = np.random.default_rng(0)
IMAGES = {camera: RNG.integers(0, 256, (48, 64, 3), dtype=np.uint8) for camera in ('front', 'wrist')}


def seen(positions, gripper=0.02, tool=None):
    q = np.array(positions, float)
    return Observation(0, IMAGES, q, 0.1 * q, gripper, 'fold the towel', None if tool is None else np.array(tool))


def chunk(mapping, actions, observation):
    rows = np.tile(np.array(actions, float), (mapping.steps, 1)) if np.ndim(actions) == 1 else np.array(actions, float)
    return chunk_of(mapping, {'actions': rows}, observation)


def changed(name, change):
    """A shipped mapping with a change of its parsed file."""
    content = yaml.safe_load((FOLDER / f'{name}.yaml').read_text())
    change(content)
    return parse_mapping(content, 'mapping x.yaml')


def test_the_shipped_mappings_are_read():
    assert shipped() == ['aloha', 'droid', 'droid_position', 'libero', 'oft_libero', 'so100', 'so101']
    assert all(load_mapping(name).name == name for name in shipped())


def test_droid_velocities_are_added_up_from_the_measured_joints():
    mapping, here = load_mapping('droid'), seen(np.linspace(-0.3, 0.3, 7), gripper=0.06)
    request = request_of(mapping, here)
    assert request['observation/exterior_image_1_left'].shape == (224, 224, 3)
    np.testing.assert_allclose(request['observation/gripper_position'], [0.25])  # 0 is open
    assert request['observation/joint_position'].dtype == np.float32
    found = chunk(mapping, [0.1, 0, 0, 0, 0, 0, -0.2, 0.6], here)
    steps = np.arange(1, 9)[:, None] * 0.2 * np.array([0.1, 0, 0, 0, 0, 0, -0.2])  # DROID: 0.2 rad per step and number
    np.testing.assert_allclose(found.positions, here.positions + steps, rtol=1e-5)
    assert (found.gripper == 0).all() and chunk(mapping, [0] * 7 + [0.4], here).gripper[0] == 0.08
    fast = chunk(mapping, [5, 5, 0, 0, 0, 0, 0, 0], here).positions[0] - here.positions
    np.testing.assert_allclose(fast[:2], 0.2 / np.sqrt(2), rtol=1e-5)  # clipped to 1, then the norm to 1


def test_libero_has_the_numbers_of_the_released_checkpoints():
    mapping = load_mapping('libero')
    tool = np.array([0.45, 0.1, 0.3, -3.0, 0.2, 0.1])
    here = seen(np.zeros(7), gripper=0.05, tool=tool)
    robot = RobotFile('libero', ('front', 'wrist'), 0.05, 0.08, 0.0)
    np.testing.assert_allclose(
        request_of(mapping, here)['observation/state'], KINDS['libero'].state_of(robot, here), rtol=1e-6
    )
    assert mapping.actions.scale == tuple(LIBERO_INPUT) and mapping.state[0].parts[0].along == LIBERO_TOOL
    found = chunk(mapping, [1, -2, 0.5, 0.1, 0, 0, -1], here)
    np.testing.assert_allclose(found.positions[0], [0.05, -0.05, 0.025, 0.05, 0, 0])
    assert (found.space, found.gripper[0]) == ('tool', 0.08)
    assert chunk(mapping, [0] * 6 + [0.01], here).gripper[0] == 0.0
    image = request_of(mapping, here)['observation/image']
    assert np.array_equal(image[:, ::-1][28:196], picture(IMAGES['front'], mapping.cameras[0])[28:196, ::-1])
    plain = changed('libero', lambda c: c['cameras'][0].pop('flip'))
    assert np.array_equal(image, picture(IMAGES['front'][:, ::-1], plain.cameras[0]))


def test_aloha_takes_one_arm_of_two():
    mapping, here = load_mapping('aloha'), seen(np.arange(6) / 10, gripper=0.116)
    request = request_of(mapping, here)
    assert request['images']['cam_high'].shape == (3, 224, 224) and len(request['state']) == 14
    np.testing.assert_allclose(request['state'][:7], [*here.positions, 1.0], rtol=1e-6)
    found = chunk(mapping, np.arange(14) / 20, here)
    np.testing.assert_allclose(found.positions[-1], np.arange(6) / 20)
    np.testing.assert_allclose(found.gripper, 0.0369 + 0.3 * (0.116 - 0.0369))


@pytest.mark.parametrize('name', ['so100', 'so101'])
def test_degrees_of_both_calibrations_are_the_same_pose(name):
    mapping, here = load_mapping(name), seen(np.deg2rad([10, 20, 30, 40, 50]), gripper=0.045)
    state = request_of(mapping, here)['observation.state']
    expected = {'so101': [10, 20, 30, 40, 50, 50], 'so100': [10, 70, 120, 40, 50, 50]}[name]
    np.testing.assert_allclose(state, expected, rtol=1e-6)
    found = chunk(mapping, state, here)
    np.testing.assert_allclose(found.positions[3], here.positions, rtol=1e-6)
    np.testing.assert_allclose(found.gripper, 0.045, rtol=1e-6)


def test_percent_of_the_calibrated_range():
    ends = {'unit': 'percent', 'low': [-2.0] * 5, 'high': [1.0] * 5, 'count': 5}
    mapping, here = changed('so101', lambda c: c.update(joints=ends)), seen([-2, 1, -0.5, 0.25, 0])
    state = request_of(mapping, here)['observation.state']
    np.testing.assert_allclose(state[:5], [-100, 100, 0, 50, 100 / 3], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(chunk(mapping, state, here).positions[0], here.positions, atol=1e-6)


def test_deltas_count_from_the_observation():
    mapping = changed('so101', lambda c: c['actions'].update(space='joint_delta', scale=0.5))
    here = seen([0.1, 0.2, 0.3, 0.4, 0.5])
    found = chunk(mapping, [20, 0, 0, 0, -20, 0], here)
    np.testing.assert_allclose(found.positions[-1] - here.positions, np.deg2rad([10, 0, 0, 0, -10]), atol=1e-12)


@pytest.mark.parametrize('form', sorted(FORMS))
def test_poses_in_every_form_of_rotation_are_the_pose(form):
    offset = [0.1, 0.2, 0.3]
    size, to_form, _ = FORMS[form]
    mapping = changed(
        'libero',
        lambda c: (
            c['state'][0].update(
                parts=[{'part': 'tool_position', 'offset': offset}, {'part': 'tool_rotation', 'form': form}]
            ),
            c.update(actions={'space': 'ee_position', 'form': form, 'offset': offset}, gripper=None),
        ),
    )
    tool = np.array([0.4, 0.1, 0.3, 0.5, -1.2, 0.3])
    here = seen(np.zeros(7), tool=tool)
    state = request_of(mapping, here)['observation/state']
    np.testing.assert_allclose(state, [*(tool[:3] + offset), *to_form(tool[3:])], rtol=1e-6)
    found = chunk(mapping, state, here).positions[0]
    np.testing.assert_allclose(found[:3], tool[:3], atol=1e-6)
    kept = 'quaternion_wxyz'  # the one other form that chunks have
    np.testing.assert_allclose(found[3:], to_form(tool[3:]) if form == kept else tool[3:], atol=1e-6)
    assert len(found) == 3 + (size if form == kept else 3)


@example([-2.3e-16, 0.0, 0.0])
@given(st.lists(st.floats(-3.2, 3.2), min_size=3, max_size=3))
def test_a_rotation_comes_back_from_every_form(vector):
    matrix = to_matrix(np.array(vector))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(to_matrix(of_matrix(matrix)), matrix, atol=1e-7)
    for name, (size, to_form, of_form) in FORMS.items():
        numbers = to_form(np.array(vector))
        assert numbers.shape == (size,)
        np.testing.assert_allclose(to_matrix(of_form(numbers)), matrix, atol=1e-6, err_msg=name)


def test_a_rotation_that_is_none_is_no_chunk():
    mapping = changed('libero', lambda c: c['actions'].update(space='ee_position', form='columns', width=0, scale=1.0))
    with pytest.raises(RuntimeError, match='the two columns of a rotation are parallel or zero'):
        chunk(mapping, np.zeros(9), seen(np.zeros(7)))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            lambda c: c['cameras'][0].update(fit='crop'),
            "cameras.0.fit: Input should be 'letterbox' or 'stretch', got 'crop'",
        ),
        (lambda c: c['cameras'][0].update(keys='x'), 'cameras.0.keys: is not known: remove it'),
        (lambda c: c['cameras'][0].pop('key'), 'cameras.0.key: Field required'),
        (lambda c: c['cameras'][1].update(camera='front'), 'each camera may be named once'),
        (lambda c: c['cameras'][1].update(key='prompt'), "the key 'prompt' is used twice"),
        (lambda c: c['cameras'][1].update(key=['prompt', 'x']), "the key 'prompt/x' is used twice"),
        (lambda c: c.update(gripper=None), 'the state has a gripper: give gripper'),
        (lambda c: c['actions'].pop('gripper'), 'gripper and actions.gripper go together'),
        (lambda c: c['gripper'].update(closed=0.09), 'gripper: closed must be below open'),
        (lambda c: c['actions']['gripper'].update(open=1.0), 'actions.gripper: closed and open must differ'),
        (lambda c: c['actions'].update(scale=[1.0]), 'actions.scale: one number, or 7, got 1'),
        (lambda c: c['actions'].update(columns=[0]), 'actions.columns: joint_velocity needs 7, got 1'),
        (lambda c: c['actions'].update(width=3), 'actions.width 3: the columns need 8'),
        (
            lambda c: c['actions'].update(space='joint_position'),
            'clip, norm, scale of actions are not for joint_position',
        ),
        (lambda c: c['actions'].update(offset=[0, 0, 1]), 'actions.offset is for ee_position'),
        (lambda c: c['state'][0]['parts'][0].update(open=2), "state.0.parts.0: open is not for a part 'joints'"),
        (lambda c: c['gripper'].pop('open'), 'without gripper.open the numbers are openings [m]'),
        (lambda c: c['joints'].update(unit='percent'), 'joints: low and high are for unit percent'),
        (lambda c: c['joints'].update(sign=[1]), 'joints: sign needs 7 entries'),
        (lambda c: c['state'][0]['parts'][0].update(columns=[7]), 'the robot has 7 joints'),
        (lambda c: c.update(dt=0), 'dt: Input should be greater than 0'),
        (lambda c: c.update(steps=0), 'steps: Input should be greater than or equal to 1'),
        (lambda c: c.update(dt=float('nan')), 'dt: Input should be a finite number'),
    ],
)
def test_a_wrong_field_is_named(change, message):
    with pytest.raises(ValueError, match=r'mapping x\.yaml: ') as caught:
        changed('droid', change)
    assert message in str(caught.value)


def test_a_file_that_is_no_mapping_is_named(tmp_path):
    path = tmp_path / 'm.yaml'
    path.write_text('{: [')
    with pytest.raises(ValueError, match=r'm\.yaml is not YAML'):
        load_mapping(path)
    path.write_text('- 1\n')
    with pytest.raises(ValueError, match=r'm\.yaml: Input should be a valid dictionary'):
        load_mapping(path)
    for name in ('nope', '../nope', tmp_path / 'none.yaml'):
        with pytest.raises(FileNotFoundError, match=r'there is no mapping .*: give a file, or one of aloha'):
            load_mapping(name)


def test_what_the_observation_lacks_is_named():
    mapping = load_mapping('libero')
    here = seen(np.zeros(7))
    with pytest.raises(ValueError, match='the mapping needs the pose of the tool'):
        request_of(mapping, here)
    with pytest.raises(ValueError, match="camera 'wrist' is missing"):
        request_of(
            load_mapping('droid'), Observation(0, {'front': IMAGES['front']}, np.zeros(7), np.zeros(7), 0.0, 'x')
        )
    with pytest.raises(ValueError, match='is for 7 joints'):
        request_of(load_mapping('droid'), seen(np.zeros(6)))
    with pytest.raises(ValueError, match='the instruction is empty'):
        request_of(load_mapping('droid'), Observation(0, IMAGES, np.zeros(7), np.zeros(7), 0.0, ' '))
    with pytest.raises(ValueError, match="the state 'observation/joint_position' is not finite"):
        request_of(load_mapping('droid'), seen([np.nan] * 7))
