"""Released RynnVLA-002 folders as policies: tiny ones with random weights, under the released names."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from vla_model.families.rynnvla import preprocess, weights
from vla_model.families.rynnvla.action_head import ActionHead
from vla_model.families.rynnvla.constants import LIBERO_ACTION, LIBERO_INPUT, LIBERO_STATE, SO100_ACTION
from vla_model.families.rynnvla.vqgan import Vqgan
from vla_model.loading import LoadOptions, describe, load
from vla_model.network import Network
from vla_model.policy import IMAGE, PLAN, finish
from vla_model.types import JOINTS, TOOL, Chunk

ONE = LoadOptions(threads=1)
VQGAN = {
    'ddconfig': {'ch': 32, 'ch_mult': [1, 1, 1, 1, 1], 'num_res_blocks': 1, 'z_channels': 8},
    'n_embed': 8192, 'embed_dim': 8,
}  # fmt: skip
LIBERO = {
    'constants': 'libero', 'cameras': ['front', 'wrist'], 'dt': 0.05, 'gripper_low': 0.08, 'gripper_high': 0.0,
    'history': 2,
}  # fmt: skip
SO100 = {'constants': 'so100', 'cameras': ['front'], 'dt': 0.033, 'gripper_low': 0.0, 'gripper_high': 0.09}


def write(folder, robot, horizon, dims):
    config = {
        'model_type': 'chameleon', 'hidden_size': 32, 'num_hidden_layers': 2, 'num_attention_heads': 4,
        'intermediate_size': 48, 'rope_theta': 1e4, 'rms_norm_eps': 1e-5, 'vocab_size': 65536,
        'time_horizon': horizon, 'action_dim': dims,
    }  # fmt: skip
    torch.manual_seed(0)
    network, head = Network(weights.network_config(config)), ActionHead(32, horizon, dims)
    vqgan = Vqgan(weights.vqgan_config(VQGAN))
    for module in (network, head, vqgan):
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    tensors = {weights.released_name(n): t for n, t in network.state_dict().items()}
    tensors |= {f'action_head.{n}': t for n, t in head.state_dict().items()}
    save_file({n: t.bfloat16().contiguous() for n, t in tensors.items()}, folder / 'model.safetensors')
    (folder / 'config.json').write_text(json.dumps(config))
    (folder / 'robot.json').write_text(json.dumps(robot))
    (folder / 'vqgan').mkdir()
    extra = {'loss.discriminator.main.0.weight': torch.zeros(2)}
    save_file(vqgan.state_dict() | extra, folder / 'vqgan' / 'model.safetensors')
    (folder / 'vqgan' / 'config.json').write_text(json.dumps(VQGAN))
    words = Tokenizer(models.WordLevel({'[UNK]': 17000}, unk_token='[UNK]'))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(folder / 'tokenizer.json'))
    return folder


@pytest.fixture(scope='module')
def libero_folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp('libero'), LIBERO, 5, 7)


@pytest.fixture(scope='module')
def libero(libero_folder):
    return load(libero_folder, ONE)


def test_a_released_folder_is_described_without_its_weights_and_loaded(libero_folder, libero):
    info = describe(libero_folder)
    assert (info.cameras, info.horizon, info.dt, info.dof) == (('front', 'wrist'), 5, 0.05, 7)
    assert (info.action_space, info.needs_tool, info.takes_prefix, info.outputs) == ('osc_delta', True, False, {IMAGE})
    assert replace(libero.info, model_id='') == replace(info, model_id='')
    assert libero.info.model_id.startswith(libero_folder.name + '-')


def test_a_chunk_of_libero_is_the_inputs_of_its_controller(libero):
    libero.prepare('lift the cup')
    seen = libero.example()
    chunk = libero.act(seen).chunk
    assert (chunk.space, chunk.positions.shape, chunk.gripper.shape) == (TOOL, (5, 6), (5,))
    assert set(chunk.gripper) <= {0.0, 0.04, 0.08}
    most = LIBERO_INPUT * np.maximum(-LIBERO_ACTION.low, LIBERO_ACTION.high)[:6]
    assert (np.abs(chunk.positions) <= most + 1e-9).all()
    assert np.ptp(chunk.positions) > 1e-4
    again = libero.act(seen).chunk  # now the prompt has an observation before it
    assert not np.array_equal(again.positions, chunk.positions)
    libero.prepare('another instruction')
    fresh = libero.act(seen).chunk
    np.testing.assert_array_equal(fresh.positions, chunk.positions)


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


def test_the_world_model_imagines_the_image_after_an_action(libero, monkeypatch):
    monkeypatch.setattr(preprocess, 'TRAINED', 64)
    monkeypatch.setattr(preprocess, 'squash', lambda image: image[:64, :64])
    libero.warm_up()
    seen = libero.example()
    with pytest.raises(ValueError, match='ask for a chunk first'):
        libero.start(IMAGE, seen)
    libero.act(seen)
    found = finish(libero.start(IMAGE, replace(seen, t_ref=5)))
    assert found.image.shape == (64, 64, 3)
    assert (found.t_ref, found.due) == (5, 5 + 50_000_000)
    with pytest.raises(ValueError, match="no output 'plan'"):
        libero.start(PLAN, seen)


def test_it_takes_no_prefix(libero):
    with pytest.raises(ValueError, match='no prefix'):
        libero.act(libero.example(), Chunk(np.zeros((1, 6)), np.zeros(1), 0.05, space=TOOL))


@pytest.mark.parametrize(
    ('spoil', 'error', 'named'),
    [
        (lambda f: (f / 'robot.json').unlink(), FileNotFoundError, 'robot.json is missing'),
        (lambda f: (f / 'vqgan' / 'config.json').unlink(), FileNotFoundError, 'vqgan/config.json is missing'),
        (lambda f: (f / 'vqgan' / 'model.safetensors').unlink(), FileNotFoundError, 'no .*safetensors'),
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


def drop(folder, name):
    path = folder / 'model.safetensors'
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors, path)


def test_the_state_of_the_example_is_within_the_ranges_of_training(libero):
    state = libero.robot.kind.state_of(libero.robot, libero.example())
    assert state.shape == LIBERO_STATE.low.shape
