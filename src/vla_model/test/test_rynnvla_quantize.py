"""Memory of RynnVLA-002 folders: while they are loaded, as planned, and with quantized weights."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from vla_model.checkpoints.memory import size_of
from vla_model.families.rynnvla import loading, memory
from vla_model.families.rynnvla.quantize import memory_table, quantize
from vla_model.loading import LoadOptions, load
from vla_model.quantized import QuantizedLinear

from .rynnvla_folder import LIBERO, write

ONE = LoadOptions(threads=1)
CHILD = """
import re, sys
from pathlib import Path
from vla_model.loading import LoadOptions, load

def memory(field):
    return 1024 * int(re.search(field + r':\\s+(\\d+)', Path('/proc/self/status').read_text())[1])

load(sys.argv[2], LoadOptions(threads=1, dtype='bfloat16'))  # imports all that is needed
Path('/proc/self/clear_refs').write_text('5')  # the peak starts anew
before = memory('VmRSS')
policy = load(sys.argv[1], LoadOptions(threads=1, dtype='bfloat16'))
modules = policy.network, policy.head, policy.vqgan
kept = sum(t.numel() * t.element_size() for m in modules for t in m.state_dict().values())
print(memory('VmHWM') - before - kept)
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp('small'), LIBERO, 5, 7, std=0.05, intermediate_size=64)


def test_loading_takes_less_than_the_largest_shard_and_a_fifth_beside_the_model(folder, tmp_path):
    small = folder
    alone = {**LIBERO, 'world': False}
    folder = write(tmp_path, alone, 5, 7, hidden_size=256, num_hidden_layers=4, intermediate_size=512)
    tensors = load_file(folder / 'model.safetensors')
    (folder / 'model.safetensors').unlink()
    names, where = sorted(tensors, key=lambda n: tensors[n].numel(), reverse=True), {}
    for i, some in enumerate((names[:1], names[1:2], names[2:])):
        file = f'model-{i + 1:05d}-of-00003.safetensors'
        save_file({n: tensors[n] for n in some}, folder / file)
        where |= dict.fromkeys(some, file)
    (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': where}))
    largest = max(p.stat().st_size for p in folder.glob('*.safetensors'))
    command = [sys.executable, '-c', CHILD, str(folder), str(small)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1.2 * largest


def test_the_plan_of_memory_has_the_weights_that_are_loaded(folder):
    content, robot = loading.files(folder)
    image = loading.read_vqgan_config(folder / loading.VQGAN)
    policy = load(folder, ONE)
    found = loading.memory_plan(folder, torch.float32, 'cpu')
    assert found.weights == size_of(policy.network) + size_of(policy.head)
    assert found.image_tokenizer == size_of(policy.vqgan)
    assert found.keys_values > 0
    alone = memory.plan(content, replace(robot, world=False), image, None, torch.float32, 'cpu')
    assert alone.keys_values == 0
    assert found.weights - alone.weights == 4 * 65536 * 32
    assert 'Orin 64 GB' in memory_table(folder)


@pytest.mark.parametrize('scheme', ['int8', 'fp8', 'int4'])
def test_a_quantized_folder_acts_nearly_as_the_original(folder, tmp_path, scheme):
    pictures = tmp_path / 'pictures'
    pictures.mkdir()
    for i in range(3):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (48, 64, 3), np.uint8)).save(pictures / f'{i}.png')
    result = quantize(folder, tmp_path / scheme, scheme, pictures=pictures, prompts=2, checks=1)
    assert result.failed == []
    assert result.gate['calibration'] == '3 pictures of pictures'
    exact, policy = load(folder, ONE), load(result.folder, ONE)
    assert isinstance(policy.network.get_submodule('model.transformer.blocks.0.q_proj'), QuantizedLinear)
    a, b = (p.act(p.example()).chunk.positions for p in (exact, policy))
    assert not np.array_equal(a, b)
    np.testing.assert_allclose(a, b, atol=0.2 * np.abs(a).max())
    weights = [sum(p.stat().st_size for p in f.glob('*.safetensors')) for f in (folder, result.folder)]
    assert weights[1] < 0.7 * weights[0]
    with pytest.raises(ValueError, match='is quantized already'):
        quantize(result.folder, tmp_path / 'again', scheme)


def test_what_cannot_be_quantized_is_refused_by_name(folder, tmp_path):
    with pytest.raises(ValueError, match=r"scheme must be one of .* got 'mixed'"):
        quantize(folder, tmp_path / 'out', 'mixed')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match='has no pictures'):
        quantize(folder, tmp_path / 'out', 'int8', pictures=tmp_path / 'empty')
    with pytest.raises(ValueError, match='exists already'):
        quantize(folder, tmp_path / 'empty', 'int8')
