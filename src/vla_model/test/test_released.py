"""Folders as released: a flat config.json, shards with an index, the image tokenizer apart."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vla_model.checkpoints import nano
from vla_model.config import ImageTokenizerConfig, NetworkConfig, RobotInterface
from vla_model.families.mmact import loading
from vla_model.families.mmact.released import VARIANT, check_config
from vla_model.image_tokenizer import ImageTokenizer
from vla_model.loading import LoadOptions
from vla_model.network import Network
from vla_model.tokens.text_tokenizer import NANO_FILE
from vla_model.tokens.vocabulary import Vocabulary
from vla_model.types import Chunk, Observation

V = Vocabulary.released()
SHAPE = NetworkConfig(32, 2, 4, 4, 64, 500000.0, 1e-5, V.size)
FLAT = {f.name: getattr(SHAPE, f.name) for f in fields(SHAPE)} | {name: values[0] for name, values in VARIANT.items()}
FLAT |= {'model_type': 'mmact', 'llm_vocab_size': 126464, 'action_vocab_size': 2048, 'codebook_size': 8192}
FLAT |= {'embedding_size': V.size, 'mask_token_id': V.mask, 'eos_token_id': V.eos}
INDEX = 'model.safetensors.index.json'


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp('released')
    (folder / 'config.json').write_text(json.dumps(FLAT))
    tokenizer = json.loads(NANO_FILE.read_text())
    entries = tokenizer['model']['vocab']
    entries |= {f'<filler {i}>': i for i in range(len(entries), V.text)}
    (folder / 'tokenizer.json').write_text(json.dumps(tokenizer))
    robot = asdict(nano.config(512).robot) | {'max_prompt_tokens': 910, 'horizon': 8}
    (folder / 'robot.json').write_text(json.dumps(robot))

    network, image = Network(SHAPE), ImageTokenizer(ImageTokenizerConfig.released(32))
    nano.init_weights(network, 0)
    nano.init_weights(image, 0)
    tensors = {name: t.contiguous() for name, t in network.state_dict().items()}
    names = sorted(tensors)
    weight_map = {}
    for i in range(2):
        file = f'model-0000{i + 1}-of-00002.safetensors'
        save_file({n: tensors[n] for n in names[i::2]}, folder / file)
        weight_map |= dict.fromkeys(names[i::2], file)
    (folder / INDEX).write_text(json.dumps({'metadata': {}, 'weight_map': weight_map}))
    (folder / 'image_tokenizer').mkdir()
    save_file(image.state_dict(), folder / 'image_tokenizer' / 'pytorch_model.safetensors')
    return folder, network, image


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made[0], tmp_path / 'copy')


def an_observation():
    images = {name: np.full((64, 64, 3), i, np.uint8) for i, name in enumerate(('front', 'wrist'))}
    joints = np.array([0.0, -0.78, 0.0, -2.35, 0.0, 1.57, 0.78])
    return Observation(0, images, joints, np.zeros(7), 0.04, 'press the red button')


def test_a_released_folder_is_read(made):
    folder, network, image = made
    loaded = loading.load(folder, LoadOptions(threads=1))
    assert loaded.config.vocabulary == V
    assert loaded.config.trained and loaded.config.network == SHAPE
    for ours, theirs in ((loaded.network, network), (loaded.image_tokenizer, image)):
        theirs = theirs.state_dict()
        assert all(torch.equal(t, theirs[name]) for name, t in ours.state_dict().items())
    assert loaded.act(an_observation()).chunk.positions.shape == (8, 7)
    assert loaded.prompts.max_tokens == 910 + 2 + 64


def test_precision_and_the_place_of_the_image_tokenizer_are_the_callers(folder, tmp_path):
    (folder / 'image_tokenizer').rename(tmp_path / 'magvitv2')
    loaded = loading.load(folder, LoadOptions(dtype='bfloat16', image_tokenizer=tmp_path / 'magvitv2', threads=1))
    assert {p.dtype for p in loaded.network.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in loaded.image_tokenizer.parameters()} == {torch.float32}
    with pytest.raises(FileNotFoundError, match=r'image_tokenizer has no \*.safetensors: put pytorch_model'):
        loading.load(folder)


def test_what_was_read_is_saved_in_one_piece(made, tmp_path):
    first = loading.load(made[0], LoadOptions(threads=1))
    loading.save(first, tmp_path / 'again')
    second = loading.load(tmp_path / 'again', LoadOptions(threads=1))
    assert second.config == first.config
    assert np.array_equal(first.act(an_observation()).chunk.positions, second.act(an_observation()).chunk.positions)


@pytest.mark.parametrize('name', [*sorted(VARIANT), 'd_model', 'n_kv_heads', 'vocab_size'])
def test_a_missing_field_is_named(name):
    with pytest.raises(ValueError, match=f'field {name} is missing'):
        check_config({k: v for k, v in FLAT.items() if k != name})


@pytest.mark.parametrize('name', ['rope', 'codebook_size', 'action_vocab_size'])
def test_the_file_of_a_missing_field_is_named(folder, name):
    edit(folder / 'config.json', lambda c: c.pop(name))
    with pytest.raises(ValueError, match=f'config.json: field {name} '):
        loading.load(folder)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'block_type': 'sequential'}, "field block_type is 'sequential', only 'llama' is supported"),
        ({'alibi': True}, 'field alibi is True, only False'),
        ({'weight_tying': True}, 'field weight_tying'),
        ({'embedding_size': 5}, 'embedding_size 5 is not vocab_size'),
        ({'action_vocab_size': 20000}, 'overlap'),
        ({'d_model': 64}, r'attn_norm.weight is \(32,\) .* config.json says \(64,\)'),
        ({'n_layers': 3}, r'9 missing \(model.transformer.blocks.2.attn_norm'),
        ({'n_layers': 1}, r'9 unexpected \(model.transformer.blocks.1.attn_norm'),
    ],
)
def test_another_network_is_refused(folder, change, message):
    edit(folder / 'config.json', lambda c: c.update(change))
    with pytest.raises(ValueError, match=message):
        loading.load(folder)


def test_kv_heads_that_are_not_given_are_as_many(made):
    assert check_config(FLAT | {'n_kv_heads': None}) == SHAPE
    assert check_config(FLAT | {'n_kv_heads': 2}) == replace(SHAPE, n_kv_heads=2)


def test_a_tokenizer_of_another_length(folder):
    edit(folder / 'tokenizer.json', lambda c: c['model']['vocab'].pop('<filler 126348>'))
    with pytest.raises(ValueError, match='tokenizer has 126348 tokens, the released ones have 126349'):
        loading.load(folder)


def test_the_robot_must_be_given(folder):
    edit(folder / 'robot.json', lambda c: c.pop('dt'))
    with pytest.raises(ValueError, match=r'robot.json: field dt is missing'):
        loading.load(folder)
    (folder / 'robot.json').unlink()
    names = ', '.join(f.name for f in fields(RobotInterface))
    with pytest.raises(FileNotFoundError, match=f'robot.json is missing: .* write {names}'):
        loading.load(folder)


def test_end_effector_actions_come_in_the_units_of_the_model_only(folder):
    def change(c):
        c.update(action_space='ee_delta', action_low=[-1.0] * 7, action_high=[1.0] * 7)

    edit(folder / 'robot.json', change)
    loaded = loading.load(folder, LoadOptions(threads=1))
    o = an_observation()
    values, probability = loaded.actions(o.images, np.append(o.positions, 0.04), o.instruction)
    assert values.shape == probability.shape == (8, 7) and (np.abs(values) <= 1).all()
    chunk = loaded.act(o).chunk
    assert (chunk.space, chunk.positions.shape, loaded.info.joints) == ('tool', (8, 6), False)
    assert np.array_equal(np.column_stack([chunk.positions, chunk.gripper]), values)
    given = Chunk(values[:2, :6], values[:2, 6], chunk.dt, space='tool')
    assert np.array_equal(loaded.act(o, given).chunk.positions[:2], given.positions)
    with pytest.raises(ValueError, match="space 'joints', the model works in 'tool'"):
        loaded.act(o, Chunk(np.zeros((2, 7)), np.zeros(2), chunk.dt))
    with pytest.raises(ValueError, match=r'state of 8 numbers, got shape \(7,\)'):
        loaded.actions(o.images, o.positions, o.instruction)


def test_a_shard_that_is_not_there(folder):
    (folder / 'model-00002-of-00002.safetensors').unlink()
    with pytest.raises(FileNotFoundError, match=f'00002-of-00002.safetensors is missing: {INDEX} names it, copy it'):
        loading.load(folder)


def test_a_tensor_that_is_not_where_the_index_has_it(folder):
    path = folder / 'model-00002-of-00002.safetensors'
    tensors = load_file(path)
    lost = min(tensors)
    del tensors[lost]
    save_file(tensors, path)
    with pytest.raises(ValueError, match=f'{lost} not in the file that'):
        loading.load(folder)


@pytest.mark.parametrize('content', ['{', '{}', '{"weight_map": {}}', '{"weight_map": {"a": "../b.safetensors"}}'])
def test_a_wrong_index(folder, content):
    (folder / INDEX).write_text(content)
    with pytest.raises(ValueError, match=r"index.json must hold 'weight_map'"):
        loading.load(folder)


def test_files_that_the_index_does_not_name_are_left_alone(folder):
    save_file({'old': torch.zeros(3)}, folder / 'old.safetensors')
    loading.load(folder, LoadOptions(threads=1))


def test_other_weights_as_image_tokenizer(folder):
    save_file({'a': torch.zeros(3)}, folder / 'image_tokenizer' / 'pytorch_model.safetensors')
    with pytest.raises(ValueError, match='these are not the weights of an image tokenizer'):
        loading.load(folder)


MEMORY = """
import sys
from pathlib import Path
import torch
from vla_model.checkpoints import checkpoint

folder, tensors, shard = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
with torch.device('meta'):
    tiny, model = torch.nn.Module(), torch.nn.Module()
    tiny.w = torch.nn.Parameter(torch.empty(8))
    model.w = torch.nn.ParameterList(torch.empty(1 << 20) for _ in range(tensors))

def load(module, place):
    checkpoint.load_into(module, checkpoint.list_tensors(place), torch.device('cpu'), torch.bfloat16, place)

def memory(line):  # [bytes]
    status = Path('/proc/self/status').read_text()
    return int(status.split(line + ':')[1].split()[0]) * 1024

load(tiny, folder / 'tiny')  # what the libraries set up once
before = memory('VmRSS')
Path('/proc/self/clear_refs').write_text('5')  # the peak counts from here; ru_maxrss would be that of the parent
load(model, folder)
assert float(model.w[2][5]) == 2.0
print((memory('VmHWM') - before - tensors * (2 << 20)) / shard)
"""


def test_beside_the_model_a_load_needs_less_than_one_shard_and_a_fifth(tmp_path):
    shards, rows = 3, 12
    (tmp_path / 'tiny').mkdir()
    save_file({'w': torch.ones(8)}, tmp_path / 'tiny' / 't.safetensors')
    for s in range(shards):
        tensors = {f'w.{i}': torch.full((1 << 20,), float(i)) for i in range(s, shards * rows, shards)}
        save_file(tensors, tmp_path / f'{s}.safetensors')
    command = [sys.executable, '-c', MEMORY, str(tmp_path), str(shards * rows), str(rows * (4 << 20))]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    assert 0.5 < float(run.stdout) < 1.2
