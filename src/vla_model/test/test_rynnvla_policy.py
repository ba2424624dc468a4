"""Released RynnVLA-002 folders as policies: tiny ones with random weights, under the released names."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vla_model import decode
from vla_model.families.rynnvla import preprocess
from vla_model.families.rynnvla.constants import LIBERO_ACTION, LIBERO_INPUT, LIBERO_STATE, SO100_ACTION
from vla_model.families.rynnvla.convert import convert_vqgan
from vla_model.families.rynnvla.robot import RobotFile
from vla_model.families.rynnvla.views import Views
from vla_model.loading import LoadOptions, describe, load
from vla_model.policy import IMAGE, PLAN, WORLD, WorldOptions, finish
from vla_model.types import JOINTS, TOOL, Chunk

from .rynnvla_folder import LIBERO, SO100, VQGAN, write

ONE = LoadOptions(threads=1)


@pytest.fixture(scope='module')
def libero_folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp('libero'), LIBERO, 5, 7)


@pytest.fixture(scope='module')
def libero(libero_folder):
    return load(libero_folder, ONE)


def test_a_released_folder_is_described_without_its_weights_and_loaded(libero_folder, libero):
    info = describe(libero_folder)
    assert (info.cameras, info.horizon, info.dt, info.dof) == (('front', 'wrist'), 5, 0.05, 7)
    assert (info.action_space, info.needs_tool, info.takes_prefix, info.outputs) == (
        'osc_delta',
        True,
        False,
        {IMAGE, WORLD},
    )
    assert replace(libero.info, model_id='') == replace(info, model_id='')
    assert libero.info.model_id.startswith(libero_folder.name + '-')


def test_a_chunk_of_libero_is_the_inputs_of_its_controller(libero):
    libero.prepare('lift the cup')
    chunk = libero.act(libero.example()).chunk
    assert (chunk.space, chunk.positions.shape, chunk.gripper.shape) == (TOOL, (5, 6), (5,))
    assert set(chunk.gripper) <= {0.0, 0.04, 0.08}
    most = LIBERO_INPUT * np.maximum(-LIBERO_ACTION.low, LIBERO_ACTION.high)[:6]
    assert (np.abs(chunk.positions) <= most + 1e-9).all()
    assert np.ptp(chunk.positions) > 1e-4


def test_a_prompt_has_the_images_of_one_step_before_but_for_the_first_of_an_assignment(libero):
    def act(**changes):
        return libero.act(replace(libero.example(), **changes)).chunk.positions

    libero.prepare('lift the cup')
    assert libero.info.history == 0.05
    first = act(t_ref=0)
    second = act(t_ref=50_000_000)  # one step later: the act before has its images
    assert not np.array_equal(second, first)
    np.testing.assert_array_equal(act(t_ref=400_000_000), first)  # longer ago than a step
    grey = libero.example()
    np.testing.assert_array_equal(act(t_ref=800_000_000, before=grey.images), second)
    assert not np.array_equal(act(t_ref=800_000_000, before=libero.example(200).images), second)
    libero.prepare('lift the cup')
    np.testing.assert_array_equal(act(t_ref=850_000_000, before=grey.images), first)
    with pytest.raises(ValueError, match="camera 'wrist' is missing"):
        act(before={'front': grey.images['front']})


def test_the_state_of_libero_is_the_pose_of_the_tool_and_the_fingers(libero):
    seen = replace(libero.example(), tool=np.array([0.5, 0.1, 0.2, -3.1, 0.2, 0.0]), gripper=0.06)
    state = libero.robot.kind.state_of(libero.robot, seen)
    np.testing.assert_allclose(state[:3], [0.5 - 0.66, 0.1, 0.2 + 0.912 + 0.0069], atol=2e-3)
    assert state[3] > 0  # the same rotation the other way round
    turn, other = seen.tool[3:], state[3:6]
    assert np.linalg.norm(turn) + np.linalg.norm(other) == pytest.approx(2 * np.pi)
    np.testing.assert_allclose(state[6:], [0.03, -0.03])
    with pytest.raises(ValueError, match='the pose of the tool'):
        libero.act(replace(seen, tool=None))
    with pytest.raises(ValueError, match='the state is not finite'):
        libero.act(replace(seen, gripper=np.nan))
    with pytest.raises(ValueError, match=r'number 1 of the state is .*, far outside the range of the model'):
        libero.act(replace(seen, tool=np.array([500.0, 0.1, 0.2, -3.1, 0.2, 0.0])))


def test_a_chunk_may_be_decided_by_discrete_tokens(libero_folder, tmp_path):
    folder = tmp_path / 'discrete'
    folder.mkdir()
    for path in libero_folder.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / 'robot.json').unlink()
    (folder / 'robot.json').write_text(json.dumps({**LIBERO, 'answer': 'discrete'}))
    policy = load(folder, ONE)
    chunk = policy.act(policy.example()).chunk
    assert chunk.positions.shape == (5, 6)
    assert ((chunk.confidence > 0) & (chunk.confidence <= 1)).all()


def test_what_acts_by_the_action_head_alone_needs_no_lm_head(libero_folder, libero, tmp_path):
    folder = tmp_path / 'continuous'
    shutil.copytree(libero_folder, folder)
    drop(folder, 'lm_head.weight')
    (folder / 'robot.json').write_text(json.dumps({**LIBERO, 'world': False}))
    policy = load(folder, ONE)
    assert policy.info.outputs == frozenset()
    assert sum(p.numel() for p in policy.network.parameters()) < 0.6 * sum(
        p.numel() for p in libero.network.parameters()
    )
    libero.prepare('anew')
    np.testing.assert_array_equal(
        policy.act(policy.example()).chunk.positions, libero.act(libero.example()).chunk.positions
    )


def test_joint_actions_of_so100_are_relative_to_the_state(tmp_path):
    policy = load(write(tmp_path, SO100, 4, 6), ONE)
    seen = policy.example()
    chunk = policy.act(seen).chunk
    assert (chunk.space, chunk.positions.shape) == (JOINTS, (4, 5))
    relative = np.rad2deg(chunk.positions - seen.positions)
    assert (relative >= SO100_ACTION.low[:5] - 1e-6).all()
    assert (relative <= SO100_ACTION.high[:5] + 1e-6).all()
    assert ((chunk.gripper >= 0) & (chunk.gripper <= 0.09)).all()


@pytest.fixture
def small(monkeypatch):
    """Pictures of 64 px, for speed."""
    monkeypatch.setattr(preprocess, 'TRAINED', 64)
    monkeypatch.setattr(preprocess, 'squash', lambda image: image[:64, :64])


def shown(film):
    return decode.Job(film).run()


def test_the_world_model_predicts_every_view_step_by_step(libero, small):
    libero.warm_up()
    seen = replace(libero.example(), t_ref=5)
    with pytest.raises(ValueError, match='ask for a chunk first'):
        libero.start(IMAGE, seen)
    chunk = libero.act(seen).chunk
    film = shown(libero.film(seen, chunk, after=2))
    assert [views.due for views in film] == [5 + 50_000_000, 5 + 100_000_000]
    assert [sorted(views.images) for views in film] == [['front', 'wrist']] * 2
    assert film[0].images['front'].shape == (64, 64, 3)
    assert not np.array_equal(film[0].images['front'], film[1].images['front'])
    # The second step is one step from what the first predicted, as the reference encodes its own pictures again.
    step = replace(chunk, positions=chunk.positions[1:2], gripper=chunk.gripper[1:2])
    again = shown(libero.film(replace(seen, images=film[0].images), step))
    np.testing.assert_array_equal(again[0].images['wrist'], film[1].images['wrist'])
    views = finish(libero.start(WORLD, seen, WorldOptions(chunk, after=2)))
    np.testing.assert_array_equal(views.images['wrist'], film[1].images['wrist'])
    with pytest.raises(ValueError, match="no output 'plan'"):
        libero.start(PLAN, seen)


def test_the_predicted_image_is_that_of_the_end_of_the_chunk(tmp_path, small):
    policy = load(write(tmp_path, SO100, 2, 6), ONE)
    seen = policy.example()
    chunk = policy.act(seen).chunk
    image = finish(policy.start(IMAGE, seen))
    assert image.due == seen.t_ref + round(2 * 0.033e9)
    np.testing.assert_array_equal(image.image, shown(policy.film(seen, chunk))[-1].images['front'])


@pytest.mark.parametrize(
    ('spoil', 'named'),
    [
        (lambda c: replace(c, positions=np.zeros((9, 6)), gripper=np.zeros(9)), 'n at most 5'),
        (lambda c: replace(c, positions=np.zeros((5, 7))), r'must be \(n, 6\)'),
        (lambda c: replace(c, positions=np.zeros((0, 6)), gripper=np.zeros(0)), 'the chunk has 0'),
        (lambda c: replace(c, positions=np.full((5, 6), np.nan)), 'not finite'),
        (lambda c: replace(c, positions=np.full((5, 6), 0.1)), 'number 1 of action 1 is 2, the bins .* from -0.9375'),
        (lambda c: replace(c, dt=0.1), 'chunk.dt is 0.1 s'),
        (lambda c: replace(c, space=JOINTS), "space 'joints'"),
    ],
)  # fmt: skip
def test_actions_that_the_world_model_does_not_know_are_refused(libero, spoil, named):
    seen = libero.example()
    chunk = Chunk(np.zeros((5, 6)), np.zeros(5), 0.05, space=TOOL)
    with pytest.raises(ValueError, match=named):
        libero.start(WORLD, seen, WorldOptions(spoil(chunk)))
    with pytest.raises(ValueError, match='images after 7 steps'):
        libero.start(WORLD, seen, WorldOptions(chunk, after=7))
    with pytest.raises(ValueError, match='must be WorldOptions'):
        libero.start(WORLD, seen)


def test_actions_of_so100_are_given_relative_to_the_step_before(tmp_path):
    robot = RobotFile(**{**SO100, 'cameras': ('front',)})
    steps = np.deg2rad(np.array([[1.0, 2, 3, 4, 5], [2.0, 2, 4, 4, 6]]))
    found = robot.kind.actions(robot, np.column_stack([steps, [0.0, 0.09]]), np.zeros(5))
    np.testing.assert_allclose(found[:, :5], [[1, 2, 3, 4, 5], [1, 0, 1, 0, 1]], atol=1e-9)
    np.testing.assert_allclose(found[:, 5], [SO100_ACTION.low[5], SO100_ACTION.high[5]])


def test_mirrored_pictures_are_swapped_for_the_model_and_back(libero, small):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (64, 64, 3), np.uint8)
    plain, mirrored = Views(libero.vqgan), Views(libero.vqgan, mirrored=True)
    np.testing.assert_array_equal(mirrored.block(image), plain.block(image[:, ::-1]))
    codes = torch.zeros(4, 4, dtype=torch.long)
    codes[0, 0] = 99
    np.testing.assert_array_equal(mirrored.picture(codes), plain.picture(codes)[:, ::-1])


def test_it_takes_no_prefix(libero):
    with pytest.raises(ValueError, match='no prefix'):
        libero.act(libero.example(), Chunk(np.zeros((1, 6)), np.zeros(1), 0.05, space=TOOL))


@pytest.mark.parametrize(
    ('spoil', 'error', 'named'),
    [
        (lambda f: (f / 'robot.json').unlink(), FileNotFoundError, 'robot.json is missing'),
        (lambda f: (f / 'vqgan' / 'config.json').unlink(), FileNotFoundError, 'vqgan/config.json is missing'),
        (lambda f: (f / 'vqgan' / 'model.safetensors').unlink(), FileNotFoundError, 'no .*safetensors.*convert-vqgan'),
        (lambda f: shutil.rmtree(f / 'vqgan'), FileNotFoundError, 'no .*safetensors.*convert-vqgan'),
        (lambda f: change(f / 'vqgan' / 'config.json', n_embed=1024), ValueError, 'n_embed 8192'),
        (lambda f: change(f / 'vqgan' / 'config.json', embed_dim=4), ValueError, 'tensor .* is .* says'),
        (lambda f: (f / 'vqgan' / 'config.json').write_text('{}'), ValueError, "field 'ddconfig' is missing"),
        (lambda f: change(f / 'config.json', vocab_size=32000), ValueError, 'vocab_size is 32000'),
        (lambda f: change(f / 'config.json', num_hidden_layers=3), ValueError, 'tensors 13 missing .*layers.2'),
        (lambda f: change(f / 'config.json', action_dim=None), ValueError, 'config.json: .*no action head'),
        (lambda f: drop(f, *heads(f)), ValueError, 'without an action head'),
        (lambda f: (f / 'robot.json').write_text(json.dumps({**LIBERO, 'constants': 'x'})), ValueError, 'constants'),
        (lambda f: (f / 'robot.json').write_text(json.dumps(SO100)), ValueError, 'for 6 dimensions, not 7'),
        (lambda f: drop(f, 'lm_head.weight'), ValueError, 'lm_head.weight'),
        (lambda f: drop(f, 'action_head.hidden_projection.bias'), ValueError, 'action_head.hidden_projection.bias'),
    ],
)  # fmt: skip
def test_a_folder_that_is_not_whole_is_refused_by_name(libero_folder, tmp_path, spoil, error, named):
    folder = tmp_path / 'spoilt'
    shutil.copytree(libero_folder, folder)
    spoil(folder)
    with pytest.raises(error, match=named):
        load(folder, ONE)


def heads(folder):
    return [n for n in load_file(folder / 'model.safetensors') if n.startswith('action_head.')]


def drop(folder, *names):
    path = folder / 'model.safetensors'
    tensors = load_file(path)
    for name in names:
        del tensors[name]
    save_file(tensors, path)


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_the_released_image_tokenizer_is_converted_without_running_its_code(libero_folder, tmp_path):
    tensors = load_file(libero_folder / 'vqgan' / 'model.safetensors')
    source = tmp_path / 'vqgan.ckpt'
    torch.save({'state_dict': tensors, 'epoch': 3}, source)
    settings = tmp_path / 'vqgan.yaml'
    with pytest.raises(FileNotFoundError, match=r'vqgan\.yaml is missing'):
        convert_vqgan(source, tmp_path / 'vqgan')
    settings.write_text(json.dumps({'model': {'target': 'any', 'params': {**VQGAN, 'lossconfig': {}}}}))
    made = convert_vqgan(source, tmp_path / 'vqgan')
    assert json.loads((made / 'config.json').read_text()) == VQGAN
    kept = load_file(made / 'model.safetensors')
    assert kept.keys() == {n for n in tensors if not n.startswith('loss.')}
    assert torch.equal(kept['quantize.embedding.weight'], tensors['quantize.embedding.weight'])
    with pytest.raises(ValueError, match='exists already'):
        convert_vqgan(source, made)
    torch.save({'state_dict': tensors, 'hook': Touch(tmp_path / 'ran')}, source)
    with pytest.raises(ValueError, match='holds more than tensors, which is not read'):
        convert_vqgan(source, tmp_path / 'other')
    assert not (tmp_path / 'ran').exists()
    torch.save({'state_dict': {'encoder.conv_in.weight': torch.zeros(2)}}, source)
    with pytest.raises(ValueError, match=r'tensor encoder\.conv_in\..* (is missing|is \(2,\))'):
        convert_vqgan(source, tmp_path / 'other')
    assert not (tmp_path / 'other').exists()


class Touch:
    """Code that a pickle runs when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return self.path.touch, ()


def test_the_state_of_the_example_is_within_the_ranges_of_training(libero):
    state = libero.robot.kind.state_of(libero.robot, libero.example())
    assert state.shape == LIBERO_STATE.low.shape
