"""MolmoAct: parity with the public reference, where its numbers are beside the checkout, and the rules behind it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from vla_model import decode
from vla_model.bench import parity
from vla_model.config import NetworkConfig
from vla_model.families.molmoact import answer, preprocess, tokens, trace
from vla_model.families.molmoact.decode import WithPictures
from vla_model.families.molmoact.tokens import ActionStatistics
from vla_model.families.molmoact.vision import VisionConfig, VisionTower
from vla_model.families.molmoact.weights import put, released_shapes
from vla_model.network import Network

FOLDER = Path(__file__).resolve().parents[4] / 'shared' / 'parity' / 'molmoact'
WORDS = {chr(0x100 + i): i for i in range(1, 257)}


@pytest.mark.skipif(not FOLDER.is_dir(), reason=f'no parity data at {FOLDER}')
def test_every_tensor_and_text_of_the_reference():
    torch.set_num_threads(1)
    rows = parity.check_folder(FOLDER)
    names = sorted(n for f in FOLDER.glob('*.safetensors') for n in load_file(f))
    assert [row.name for row in rows[: len(names)]] == names
    assert sum(row.name.startswith('text ') for row in rows) >= 52
    assert [str(row) for row in rows if not row.passed] == []


def written(bins):
    words = {i: w for w, i in WORDS.items()}
    return '[' + ', '.join('[' + ', '.join(words[b] for b in row) + ']' for row in bins) + ']'


def test_an_answer_is_read():
    depth = '<DEPTH_START>' + ''.join(f'<DEPTH_{n % 128}>' for n in range(100)) + '<DEPTH_END>'
    text = f'The depth map of the first image is {depth}. The trajectory is [[1, 2], [30, 40]]. The action is '
    found = answer.read(text + written([[1, 128, 256], [2, 3, 4]]) + '.', WORDS, 3, steps=2)
    np.testing.assert_allclose(found.actions[0], [-0.99608, 0, 0.99608], atol=1e-5)
    assert found.depth.tolist() == [n % 128 for n in range(100)]
    assert found.trace.tolist() == [[1, 2], [30, 40]]


GOOD = written([[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize(
    ('text', 'named'),
    [
        ('', 'there is no action'),
        (GOOD[:-1], 'a bracket is not closed'),
        (GOOD.replace(', ' + chr(0x102), ''), 'an action has 2 numbers'),
        (GOOD.replace(chr(0x102), 'Hello'), "'Hello' is no action word"),
        (GOOD.replace(chr(0x102), ''), "'' is no action word"),
        (written([[1, 2, 3]]), '1 actions, 2 are needed'),
        ('<DEPTH_START><DEPTH_1><DEPTH_END> ' + GOOD, 'the depth map has 1 codes'),
        ('<DEPTH_START><DEPTH_1> ' + GOOD, 'the depth map is not closed'),
        ('[[1, 2], [300, 4]] ' + GOOD, 'is not up to 5 points'),
    ],
)
def test_a_malformed_answer_is_refused_with_its_text_and_is_no_motion(text, named):
    with pytest.raises(ValueError, match=named) as caught:
        answer.read(text, WORDS, 3, steps=2)
    assert repr(text) in str(caught.value)


def test_bins_give_back_what_they_were_given_within_half_a_cell():
    values = np.random.default_rng(0).uniform(-1, 1, 500)
    assert np.abs(tokens.bin_values(tokens.bins_of(values)) - values).max() <= 1 / 255 + 1e-9
    with pytest.raises(ValueError, match='NaN'):
        tokens.bins_of(np.array([0.0, np.nan]))


def test_statistics_are_chosen_by_name():
    stats = {'a': {'action': {'q01': [0, 0], 'q99': [2, 1]}}, 'b': {'action': {'q01': [0, 0], 'q99': [1, 1]}}}
    found = ActionStatistics.read(stats, 'a')
    np.testing.assert_allclose(found.denormalize(np.array([0.0, 0.5])), [1.0, 0.5])
    for key in (None, 'c'):
        with pytest.raises(ValueError, match=r"the keys \['a', 'b'\]"):
            ActionStatistics.read(stats, key)


def test_points_of_a_trace():
    assert trace.to_pixels(np.array([[0, 0], [255, 255], [300, -4]]), 240, 320).tolist() == [
        [0, 0],
        [319, 239],
        [319, 0],
    ]
    assert trace.subsample([None, [1, 2], None], [9, 9]) == [[1, 2]]
    assert len(trace.subsample([[i, i] for i in range(20)], [9, 9])) == 5


@pytest.mark.parametrize(
    ('size', 'crops', 'count'),
    [((378, 378), 2, 392), ((379, 379), 5, 725), ((720, 1280), 9, 1162), ((96, 128), 2, 392)],
)
def test_pictures_above_378_pixels_cost_more_tokens(size, crops, count):
    found = preprocess.views([np.zeros((*size, 3), np.uint8)])
    assert len(found.patches) == crops * 729
    assert len(found.pooled) == count


VISION = VisionConfig(32, 48, 2, (1, 0), 1e-6, 24, 2, 40, 32)


@torch.inference_mode()
def test_the_same_picture_is_encoded_once():
    torch.manual_seed(0)
    tower = VisionTower(VISION).eval()
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    found = preprocess.views([picture])
    pixels = torch.from_numpy(preprocess.pixels(found.patches))
    encoded = []
    tower.image_vit.register_forward_hook(lambda m, given, out: encoded.append(len(given[0])))
    once = tower(pixels, torch.from_numpy(found.pooled))
    assert encoded == [1]
    every = torch.cat([tower.image_vit(crop[None])[0] for crop in pixels.view(2, 729, -1)])
    assert torch.allclose(once, tower.tokens(every, torch.from_numpy(found.pooled)), atol=1e-5)


@torch.inference_mode()
def test_pictures_condition_the_answer_and_keys_and_values_are_kept():
    torch.manual_seed(0)
    config = NetworkConfig(32, 2, 4, 2, 48, 1e4, 1e-6, tokens.VOCABULARY + 8, causal=True, qkv_bias=True, head_dim=8)
    network = Network(config).eval()
    for name, shape in released_shapes(config, 8).items():
        put(network, name, torch.randn(shape) * 0.3)
    ids = torch.tensor([[tokens.END, *[tokens.IMAGE_PATCH] * 4, 100, 200]])
    features = torch.randn(4, 32) * 3
    seen = WithPictures(network, features)
    found = decode.run(decode.autoregressive(seen, tokens.VOCABULARY, ids, frozenset(), 6))[0]
    whole = ids.clone()
    for _ in range(6):
        n = whole.shape[1]
        logits = seen(whole, slice(n - 1, n), slice(0, tokens.VOCABULARY))
        whole = torch.cat((whole, logits[0].argmax(-1)[None]), 1)
    assert whole[0, ids.shape[1] :].tolist() == found.tolist()
    blind = WithPictures(network, torch.zeros(4, 32))
    assert (
        decode.run(decode.autoregressive(blind, tokens.VOCABULARY, ids, frozenset(), 6))[0].tolist() != found.tolist()
    )
