"""Against numbers of the public reference, where the parity folder lies beside the checkout."""

import importlib.util
import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from vla_model import bins
from vla_model.config import ImageTokenizerConfig, NetworkConfig
from vla_model.image_tokenizer import ImageTokenizer, preprocess
from vla_model.network import Network
from vla_model.prompt import PromptBuilder
from vla_model.text_tokenizer import TextTokenizer
from vla_model.vocabulary import Vocabulary

FOLDER = Path(__file__).resolve().parents[4] / 'shared' / 'parity'
KEYS = FOLDER.parent / 'facts' / 'magvit_v2_keys.txt'
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f'no parity data at {FOLDER}')
V = Vocabulary.released()
TASK = 'pick up the black bowl and place it on the plate'
STATE = [0.1, -0.2, 0.3, -0.46, 0.002, 0.38, 0.7, 0.04]


@pytest.fixture(scope='module')
def case():
    return load_file(FOLDER / 'mm_act_tiny.safetensors')


@pytest.fixture(scope='module')
def weights():
    spec = importlib.util.spec_from_file_location('det_weights', FOLDER / 'det_weights.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fill(module, make, skip=()):
    state = {name: torch.from_numpy(make(name, t.shape)) for name, t in module.state_dict().items() if name not in skip}
    module.load_state_dict(state, strict=False)
    return module.eval()


@pytest.fixture(scope='module')
def network(weights):
    content = json.loads((FOLDER / 'config.json').read_text())
    config = NetworkConfig(**{f.name: content[f.name] for f in fields(NetworkConfig)})
    return fill(Network(config), weights.lm_tensor)


@pytest.fixture(scope='module')
def stripped(case):
    return case['libero_ids'][case['libero_mask'] == 1]


def test_prompt_ids(case, stripped):
    text = TextTokenizer.load(FOLDER / 'tokenizer' / 'tokenizer.json')
    assert text.size == V.image_offset
    builder = PromptBuilder(
        text, V, views=2, view_tokens=256, state_dim=8, action_dim=7, horizon=8, max_prompt_tokens=910, device='cpu'
    )
    codes = stripped[(stripped >= V.image_offset) & (stripped < V.image_offset + V.codes)].reshape(2, 256)
    state = bins.quantize(np.array(STATE), V.bins) + V.bins_offset
    ids = builder.action(TASK).fill(torch.from_numpy(state), torch.from_numpy(codes))
    assert ids[0].tolist() == stripped.tolist()


def test_action_logits_with_and_without_padding(case, network, stripped):
    expected = torch.from_numpy(case['mha_libero_action_logits'])
    bins_ids = slice(V.bins_offset, V.size)
    start = int(case['libero_prompt_id'][0]) + 1
    with torch.inference_mode():
        padded = network(
            torch.from_numpy(case['libero_ids']),
            slice(start, start + 56),
            bins_ids,
            valid=torch.from_numpy(case['libero_mask'] == 1),
        )
        end = len(stripped) - 1
        short = network(torch.from_numpy(stripped)[None], slice(end - 56, end), bins_ids)
    assert (padded - expected).abs().max() < 2e-5
    assert (short - expected).abs().max() < 2e-5


def test_bins(case):
    assert np.array_equal(bins.quantize(case['q_in'].astype(np.float32), 2048), case['q_action_out'])
    assert np.array_equal(bins.quantize(case['q_in'].astype(np.float64), 2048), case['q_state_out'])
    assert np.array_equal(bins.dequantize(np.arange(2048), 2048), case['dq_all'])


def test_image_tokenizer(case, weights):
    config = ImageTokenizerConfig(256, 32, 32, 13, (1, 2, 2, 4, 4), (4, 3, 4, 3, 4), (1, 1, 2, 2, 4), (4, 4, 3, 4, 3))
    tokenizer = fill(ImageTokenizer(config), weights.vq_tensor, skip=('quantize.embedding', 'quantize.power_vals'))
    assert len(tokenizer.state_dict()) == 382
    pixels = preprocess(case['img0_uint8_hwc'], 256)[None]
    assert np.array_equal(pixels.numpy(), case['vq_pix'])
    with torch.inference_mode():
        z = tokenizer.encoder(pixels)
        assert np.abs(z.numpy() - case['vq_z']).max() < 1e-3
        codes = tokenizer.encode(pixels)
        assert np.array_equal(codes.numpy(), case['vq_codes'])
        assert np.abs(tokenizer.decode(codes).numpy() - case['vq_rec']).max() < 1e-3


@pytest.mark.skipif(not KEYS.is_file(), reason=f'no list of released names at {KEYS}')
def test_image_tokenizer_has_the_released_names_and_shapes():
    released = {}
    for line in KEYS.read_text().splitlines():
        name, rest = line.split(' ', 1)
        released[name] = tuple(int(n) for n in rest[1 : rest.index(')')].split(',') if n.strip())
    with torch.device('meta'):
        config = ImageTokenizerConfig(
            256, 128, 32, 13, (1, 2, 2, 4, 4), (4, 3, 4, 3, 4), (1, 1, 2, 2, 4), (4, 4, 3, 4, 3)
        )
        ours = {name: tuple(t.shape) for name, t in ImageTokenizer(config).state_dict().items()}
    assert ours == released
