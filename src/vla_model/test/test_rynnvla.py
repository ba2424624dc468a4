"""RynnVLA-002: parity with the public reference, where its numbers are beside the checkout, and its rules."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from vla_model import decode
from vla_model.bench import parity
from vla_model.config import NetworkConfig
from vla_model.families.rynnvla import decode as answers
from vla_model.families.rynnvla import preprocess, tokens, weights
from vla_model.families.rynnvla.action_head import ActionHead
from vla_model.families.rynnvla.constants import LIBERO_ACTION, LIBERO_STATE, SO100_ACTION
from vla_model.families.rynnvla.mask import chunk_mask
from vla_model.families.rynnvla.tokens import ACTION, STATE
from vla_model.families.rynnvla.vqgan import Vqgan, VqganConfig
from vla_model.network import Network

SHARED = Path(__file__).resolve().parents[4] / 'shared'
FOLDER, FACTS = SHARED / 'parity' / 'rynnvla_002', SHARED / 'facts'


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f'no parity data at {FOLDER}')
def test_every_tensor_of_the_reference():
    torch.set_num_threads(1)
    rows = parity.check_folder(FOLDER)
    assert [row.name for row in rows] == sorted(n for f in FOLDER.glob('*.safetensors') for n in load_file(f))
    assert [str(row) for row in rows if not row.passed] == []


def listed(file):
    """Names and shapes of a list of released tensors."""
    found = {}
    for line in file.read_text().splitlines():
        if m := re.fullmatch(r'(\S+) \(([\d, ]*)\)', line):
            found[m[1]] = tuple(int(n) for n in m[2].split(',') if n.strip())
    return found


@pytest.mark.skipif(not FACTS.is_dir(), reason=f'no lists of released names at {FACTS}')
def test_the_modules_have_the_released_names_and_shapes():
    config = {
        'model_type': 'chameleon', 'hidden_size': 4096, 'num_hidden_layers': 32, 'num_attention_heads': 32,
        'intermediate_size': 11008, 'rope_theta': 10000.0, 'rms_norm_eps': 1e-5, 'vocab_size': tokens.VOCABULARY,
    }  # fmt: skip
    with torch.device('meta'):
        network, head, vqgan = Network(weights.network_config(config)), ActionHead(4096, 5, 7), Vqgan(VqganConfig())
    ours = {weights.released_name(n): tuple(t.shape) for n, t in network.state_dict().items()}
    ours |= {f'action_head.{n}': tuple(t.shape) for n, t in head.state_dict().items()}
    assert ours == listed(FACTS / 'rynnvla_002_keys.txt')
    assert {n: tuple(t.shape) for n, t in vqgan.state_dict().items()} == listed(FACTS / 'chameleon_vqgan_keys.txt')


def network(n_kv_heads):
    torch.manual_seed(3)
    config = NetworkConfig(32, 2, 4, n_kv_heads, 64, 1e4, 1e-5, tokens.VOCABULARY, causal=True, qk_norm='layer')
    made = Network(config).eval()
    torch.nn.init.normal_(made.model['transformer'].ff_out.weight, std=0.5)
    return made


def token_by_token(model, ids, horizon, dims):
    """The answer of a decoder that computes everything anew for each token, under the chunk mask."""
    ids = ids.clone()
    for _ in range(horizon):
        for _ in range(dims + 1):
            last = ids[0, -1]
            if last in (tokens.TURN_END, ACTION.end):
                token = torch.tensor(ACTION.start)
            else:
                mask = chunk_mask(ids[0].numpy())[None, None]
                n = ids.shape[1]
                h = model.hidden(model.embed(ids), slice(n - 1, n), n, mask)
                token = model.head(h, ACTION.bins)[0, 0].argmax() + ACTION.bins.start
            ids = torch.cat((ids, token.view(1, 1)), 1)
        ids = torch.cat((ids, torch.tensor([[ACTION.end]])), 1)
    return torch.cat((ids[0], torch.tensor([tokens.TURN_END])))


@torch.inference_mode()
@pytest.mark.parametrize(('n_kv_heads', 'horizon', 'dims'), [(4, 5, 7), (2, 6, 6), (1, 1, 3)])
def test_blocks_decoded_together_are_those_of_decoding_token_by_token(n_kv_heads, horizon, dims):
    model, rng = network(n_kv_heads), np.random.default_rng(5)
    image = tokens.image_ids(rng.integers(0, tokens.CODES, (4, 6)))
    state = tokens.block_ids(rng.uniform(-1, 1, 6), STATE)
    ids = torch.from_numpy(np.concatenate([[tokens.BOS, 17000, 18000], state, image, [tokens.TURN_END]])).long()[None]
    forwards = []
    hidden = model.hidden
    model.hidden = lambda *a: forwards.append(1) or hidden(*a)
    found, probability = decode.run(answers.chunk(model, ids, horizon, dims))
    assert len(forwards) == 1 + dims
    model.hidden = hidden
    assert torch.equal(found, token_by_token(model, ids, horizon, dims)[ids.shape[1] :])
    assert ((probability > 0) & (probability <= 1)).all()


@torch.inference_mode()
def test_imagined_images_follow_the_grammar():
    model = network(4)
    found = decode.run(answers.images(model, torch.tensor([[0, 17000, tokens.TURN_END]]), [(2, 4), (4, 2)]))[0]
    first, second = tokens.codes_of(found.numpy())
    assert (first.shape, second.shape) == ((2, 4), (4, 2))
    assert found[-1] == tokens.TURN_END
    assert len(found) == tokens.image_length(2, 4) + tokens.image_length(4, 2) + 1


@pytest.mark.parametrize('scale', [LIBERO_ACTION, LIBERO_STATE, SO100_ACTION])
def test_bins_give_back_what_they_were_given_within_half_a_cell(scale):
    rng = np.random.default_rng(0)
    values = rng.uniform(scale.low, scale.high, (500, len(scale.low)))
    ids = tokens.bin_ids(scale.normalize(values), ACTION)
    assert ids.min() >= ACTION.bins.start
    assert ids.max() < ACTION.bins.stop
    back = scale.denormalize(tokens.bin_values(ids, ACTION))
    assert (np.abs(back - values) <= (scale.high - scale.low) / 255 / 2 + 1e-6).all()


def test_a_nan_is_refused_and_not_read_as_the_largest_value():
    with pytest.raises(ValueError, match='the action has a NaN'):
        tokens.block_ids(LIBERO_ACTION.normalize(np.array([0, 0, np.nan, 0, 0, 0, 1.0])), ACTION)


def test_an_image_that_is_cut_short_is_named():
    ids = tokens.image_ids(np.zeros((2, 2), int))
    with pytest.raises(ValueError, match='the image at token 0 has no end'):
        tokens.codes_of(ids[:-1])
    with pytest.raises(ValueError, match='no image codes'):
        tokens.codes_of(np.where(ids == tokens.FIRST_CODE, 9000, ids))
    with pytest.raises(ValueError, match='48 x 32 px'):
        tokens.image_ids(np.zeros((2, 3), int))


def test_pictures_are_squashed_as_in_training():
    picture = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    assert preprocess.squash(picture).shape == (256, 256, 3)
    assert preprocess.crop_size(640, 480, 256) == (288, 224)
    assert preprocess.crop_size(1280, 720, 512) == (672, 384)


def test_padding_does_not_change_the_action_head():
    torch.manual_seed(0)
    head = ActionHead(32, 3, 2).eval()
    context = torch.randn(1, 5, 32)
    padded, valid = torch.cat((context, torch.zeros(1, 4, 32)), 1), torch.arange(9)[None] < 5
    assert torch.allclose(head(padded, valid), head(context), atol=1e-6)
    assert not torch.allclose(head(padded), head(context), atol=1e-3)


@pytest.mark.parametrize(
    ('change', 'named'),
    [
        ({'model_type': 'llama'}, 'model_type'),
        ({'swin_norm': True}, 'swin_norm'),
        ({'hidden_size': None}, 'hidden_size'),
    ],
)
def test_a_config_of_another_network_is_refused_by_the_name_of_the_field(change, named):
    config = {
        'model_type': 'chameleon', 'hidden_size': 64, 'num_hidden_layers': 3, 'num_attention_heads': 4,
        'intermediate_size': 160, 'rope_theta': 1e4, 'rms_norm_eps': 1e-5, 'vocab_size': 65536,
    } | change  # fmt: skip
    if config['hidden_size'] is None:
        del config['hidden_size']
    with pytest.raises(ValueError, match=named):
        weights.network_config(config)
