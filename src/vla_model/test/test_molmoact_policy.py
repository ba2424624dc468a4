"""Released MolmoAct folders as policies: tiny ones with random weights, under the released names."""

import json
import logging
import shutil
import sys
import weakref
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from vla_model import decode
from vla_model.checkpoints import checkpoint
from vla_model.families.molmoact import policy as policy_module
from vla_model.families.molmoact import trace as traces
from vla_model.families.molmoact import weights
from vla_model.families.molmoact.decode import answer
from vla_model.families.molmoact.depth import DepthConfig, DepthTokenizer, to_unit
from vla_model.families.molmoact.grammar import REASONED_MANY, REASONED_ONE, STEERED, Grammar, action_words
from vla_model.families.molmoact.tokens import ACTIONS_END, ADDED, BINS, DEPTH_START, END, VOCABULARY
from vla_model.families.molmoact.vision import VisionConfig, VisionTower
from vla_model.families.rynnvla.constants import LIBERO_INPUT
from vla_model.loading import LoadOptions, describe, load
from vla_model.network import Network
from vla_model.policy import DEPTH, PLAN, TRACE
from vla_model.tokens.text_tokenizer import TextTokenizer
from vla_model.types import TOOL, Chunk, Trace

ONE = LoadOptions(threads=1)
REAL = Path(__file__).resolve().parents[4] / 'shared' / 'parity' / 'molmoact' / 'tokenizer' / 'tokenizer.json'
KEY = 'libero_spatial_no_noops_modified'
RANGES = {'q01': [-0.2] * 6 + [0.0], 'q99': [0.3] * 6 + [1.0], 'mask': [True] * 6 + [False]}
ROBOT = {
    'cameras': ['front', 'wrist'], 'dt': 0.05, 'actions': 2, 'action_space': 'osc_delta', 'gripper_open': 0.08,
    'gripper_closed': 0.0, 'statistics': KEY, 'crop': 0.9,
}  # fmt: skip
CONFIG = {
    'model_type': 'molmoact',
    'vit_config': {
        'hidden_size': 16, 'intermediate_size': 24, 'num_hidden_layers': 4, 'num_attention_heads': 2,
        'hidden_act': 'gelu_pytorch_tanh', 'layer_norm_eps': 1e-6, 'image_num_pos': 729, 'use_cls_token': False,
        'patch_bias': True, 'pre_layernorm': False,
    },
    'adapter_config': {
        'vit_layers': [-2, -3], 'hidden_size': 16, 'num_attention_heads': 2, 'intermediate_size': 24,
        'text_hidden_size': 16, 'image_padding_embed': None,
    },
    'llm_config': {
        'hidden_size': 16, 'num_attention_heads': 2, 'num_key_value_heads': 1, 'head_dim': 8, 'vocab_size': VOCABULARY,
        'additional_vocab_size': ADDED, 'qkv_bias': True, 'num_hidden_layers': 2, 'intermediate_size': 24,
        'hidden_act': 'silu', 'rope_theta': 1e6, 'layer_norm_eps': 1e-6, 'max_position_embeddings': 4096,
    },
    'norm_stats': {KEY: {'action': RANGES}, 'short': {'action': {'q01': [0.0] * 3, 'q99': [1.0] * 3}}},
}  # fmt: skip


def make_tokenizer(path):
    """Of bytes, with merges across words and commas, and words that others begin with, as the real one has them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate(alphabet)}
    merges = ['Â ®', 'Â® ,', '] ,', '] ]', ']] .', 'Ġ [', 'Ġ[ [', 'Ã ¢', 'Ġ Ã', 'ĠÃ ¢']
    for merge in merges:
        vocabulary[merge.replace(' ', '')] = len(vocabulary)
    letters = [c for c in alphabet if not c.isascii() and c not in '®']
    words = [f'â{c}' for c in letters] + [f'ã{c}®' for c in letters[:60]] + [f'â{letters[0]}{c}' for c in letters]
    vocabulary |= {words[n - 1]: ACTIONS_END - n for n in range(1, BINS + 1)}
    depths = ['<DEPTH_START>', '<DEPTH_END>', *(f'<DEPTH_{n}>' for n in range(128))]
    vocabulary |= {name: DEPTH_START + i for i, name in enumerate(depths)} | {'<|endoftext|>': END}
    made = Tokenizer(models.BPE(vocabulary, [tuple(m.split(' ')) for m in merges]))
    made.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(
            Regex(r'[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'), 'isolated'
        ),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    made.decoder = decoders.ByteLevel()
    made.add_tokens([AddedToken(d, special=False, normalized=False) for d in depths])
    made.add_special_tokens(['<|endoftext|>'])
    made.save(str(path))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp('molmoact')
    torch.manual_seed(0)
    shapes = weights.released_shapes(weights.network_config(CONFIG), ADDED)
    shapes |= {weights.VISION + n: t.shape for n, t in VisionTower(VisionConfig.read(CONFIG)).state_dict().items()}
    tensors = {name: (torch.randn(tuple(shape)) * 0.3).bfloat16() for name, shape in shapes.items()}
    names = sorted(tensors)
    save_file({n: tensors[n] for n in names[::2]}, place / 'model-00001-of-00002.safetensors')
    save_file({n: tensors[n] for n in names[1::2]}, place / 'model-00002-of-00002.safetensors')
    (place / 'config.json').write_text(json.dumps(CONFIG))
    (place / 'robot.json').write_text(json.dumps(ROBOT))
    make_tokenizer(place / 'tokenizer.json')
    return place


@pytest.fixture(scope='module')
def text(folder):
    return TextTokenizer.load(folder / 'tokenizer.json')


@pytest.fixture(scope='module')
def policy(folder):
    return load(folder, ONE)


def drawn(grammar, steps, points, seed=0):
    rng = np.random.default_rng(seed)
    bins = rng.integers(1, BINS + 1, (steps, 7))
    return grammar.write(bins, rng.integers(0, 128, 100), rng.integers(0, 256, (points, 2)))


def decisions(grammar, ids):
    """Positions of an answer at which more than one id is allowed; what is written must be allowed everywhere."""
    follow, found = grammar.allowed(), 0
    for i, token in enumerate(ids):
        some = follow(ids[:i])
        some = range(some.start, some.stop) if isinstance(some, slice) else some.tolist()
        assert token in some
        found += len(some) > 1
    return found


@pytest.mark.parametrize('points', [1, 2, 5])
def test_every_answer_of_the_template_is_in_the_grammar_as_the_tokenizer_writes_it(text, points):
    for wording in (REASONED_MANY, REASONED_ONE, STEERED):
        grammar = Grammar(text, wording, 8, 7)
        for seed in range(4):
            written = drawn(grammar, 8, points, seed)
            ids = [*text.encode(written), END]
            assert decisions(grammar, ids) < len(ids) <= grammar.longest
            steps = grammar.steps_of(ids)
            assert all(b - a in (0, 1) for a, b in pairwise(steps[steps >= 0]))
            assert set(steps.tolist()) == {-1, *range(8)}


def test_words_merge_with_commas_and_begin_other_words(text):
    words = list(action_words(text))
    assert any(text.encode(f' {w},') != text.encode(f' {w}') + text.encode(',') for w in words)
    pieces = [text.encode(f' {w}') for w in words]
    assert any(a != b and b[: len(a)] == a for a in pieces for b in pieces)


@pytest.mark.skipif(not REAL.is_file(), reason=f'no tokenizer at {REAL}')
@pytest.mark.parametrize(
    ('wording', 'steps', 'length', 'forwards'),
    [(REASONED_MANY, 8, 464, 313), (REASONED_ONE, 1, 213, 153), (STEERED, 8, 291, 184)],
)
def test_answers_of_the_real_tokenizer_take_so_many_forwards(wording, steps, length, forwards):
    real = TextTokenizer.load(REAL)
    grammar = Grammar(real, wording, steps, 7)
    answers = [[*real.encode(drawn(grammar, steps, 5, seed)), END] for seed in range(20)]
    assert np.mean([len(ids) for ids in answers]) == pytest.approx(length, abs=5)
    assert np.mean([decisions(grammar, ids) for ids in answers]) == pytest.approx(forwards, abs=5)


@torch.inference_mode()
def test_a_constrained_answer_is_the_free_one_where_that_is_well_formed(policy, text):
    grammar = Grammar(text, REASONED_ONE, 2, 7)
    prompt = torch.tensor([[END, *text.encode('User: lift the cup Assistant:')]])
    n, calls = prompt.shape[1], []

    def biased(ids, rows, vocabulary, cache=None):
        """The network, made to prefer what is well-formed."""
        calls.append(ids.shape[1])
        logits = policy.network(ids, rows, slice(0, VOCABULARY), cache=cache).clone()
        some = grammar.allowed()(ids[0, n:].tolist())
        logits[0, -1, some] += 1000
        return logits[..., vocabulary]

    steps = decode.autoregressive(biased, VOCABULARY, prompt, frozenset({END}), grammar.longest)
    free, count = decode.run(steps)[0].tolist(), len(calls)
    calls.clear()
    constrained, probability = decode.run(answer(biased, prompt, grammar))
    assert constrained.tolist() == free
    written = text.decode(free)
    assert text.encode(written) == free[:-1]
    assert len(calls) == decisions(grammar, free) == int((probability < 1).sum())
    assert len(calls) < 0.8 * count


def test_a_released_folder_is_described_without_its_weights_and_loaded(folder, policy):
    info = describe(folder)
    assert (info.cameras, info.horizon, info.dt, info.dof) == (('front', 'wrist'), 2, 0.05, 7)
    assert (info.action_space, info.needs_tool, info.takes_prefix, info.steers) == ('osc_delta', False, False, True)
    assert info.outputs == info.predicted == {TRACE, DEPTH}
    assert replace(policy.info, model_id='') == replace(info, model_id='')
    assert policy.info.model_id.startswith(folder.name + '-')


def test_tensors_are_split_as_they_are_read_and_any_weight_is_in_the_model_id(folder, policy, tmp_path):
    stored = {k: v for f in folder.glob('*.safetensors') for k, v in load_file(f).items()}
    state = policy.network.state_dict()
    block = 'model.transformer.blocks.1.'
    fused = stored[f'{block}self_attn.att_proj.weight'].float()
    ours = torch.cat([state[f'{block}{p}_proj.weight'] for p in 'qkv'])
    assert torch.equal(ours, fused)
    up, gate = stored[f'{block}mlp.ff_proj.weight'].float().chunk(2)
    assert torch.equal(state[f'{block}up_proj.weight'], up)
    assert torch.equal(state[f'{block}ff_proj.weight'], gate)
    assert torch.equal(state['model.transformer.wte.weight'][VOCABULARY:].bfloat16(),
                       stored['model.transformer.wte.new_embedding'])  # fmt: skip
    assert not state['model.transformer.ff_out.weight'][VOCABULARY:].any()
    other = copy(folder, tmp_path)
    change(other, 'model.transformer.ln_f.weight', lambda t: t + 1)
    assert load(other, ONE).info.model_id.split('-')[-1] != policy.info.model_id.split('-')[-1]


def test_an_observation_gives_a_chunk_of_inputs_of_the_controller(policy):
    seen = policy.example()
    policy.prepare('lift the cup')
    chunk = policy.act(seen).chunk
    assert (chunk.space, chunk.positions.shape, chunk.gripper.shape) == (TOOL, (2, 6), (2,))
    assert set(chunk.gripper) <= {0.0, 0.08}
    assert (chunk.positions >= -0.2 * LIBERO_INPUT - 1e-9).all()
    assert (chunk.positions <= 0.3 * LIBERO_INPUT + 1e-9).all()
    assert ((chunk.confidence > 0) & (chunk.confidence <= 1)).all()
    np.testing.assert_array_equal(policy.act(seen).chunk.positions, chunk.positions)
    for refused, named in (
        (replace(seen, instruction=' '), 'the instruction is empty'),
        (replace(seen, images={'front': seen.images['front']}), "camera 'wrist' is missing"),
        (replace(seen, instruction='word ' * 3000), 'the checkpoint has 4096 positions'),
    ):
        with pytest.raises(ValueError, match=named):
            policy.act(refused)
    with pytest.raises(ValueError, match='no prefix'):
        policy.act(seen, Chunk(np.zeros((1, 6)), np.zeros(1), 0.05, space=TOOL))
    with pytest.raises(ValueError, match="no output 'plan'"):
        policy.start(PLAN, seen)


def test_the_gripper_opens_where_an_answer_is_above_a_half(policy):
    values = np.zeros((4, 7))
    values[:, -1] = [-1, 0.49, 0.51, 1]
    assert policy.robot.set_points(values)[1].tolist() == [0.0, 0.0, 0.08, 0.08]


def test_pictures_are_turned_and_squared_and_cropped_as_robot_json_asks(policy):
    image = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    plain = replace(policy.robot, crop=1.0)
    np.testing.assert_array_equal(plain.picture(image), image)
    np.testing.assert_array_equal(replace(plain, upside_down=True).picture(image), image[::-1, ::-1])
    assert replace(plain, side=64, crop=0.9).picture(image).shape == (64, 64, 3)


@pytest.mark.parametrize('spoilt', ['an answer of words', 'is [[x, y, z, 1, 2, 3, 4]].'])
def test_a_malformed_answer_is_refused_with_its_text(policy, monkeypatch, spoilt):
    monkeypatch.setattr(policy.text, 'decode', lambda ids: spoilt)
    with pytest.raises(ValueError, match='cannot be executed') as caught:
        policy.act(policy.example())
    assert repr(spoilt) in str(caught.value)


def test_numbers_of_the_network_that_are_not_finite_are_no_motion(policy, monkeypatch):
    head = Network.head
    monkeypatch.setattr(Network, 'head', lambda self, h, rows: head(self, h * torch.nan, rows))
    with pytest.raises(ValueError, match='not finite'):
        policy.act(policy.example())


def test_a_large_picture_is_allowed_and_logged_once_with_its_tokens(policy, caplog):
    seen = policy.example()
    images = {**seen.images, 'front': np.zeros((480, 640, 3), np.uint8)}
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            policy.act(replace(seen, images=images))
    (message,) = [r.getMessage() for r in caplog.records if 'tokens' in r.getMessage()]
    assert message.startswith('front: 640 x 480 px are 766 tokens, up to 378 px are 424')


def line(*points, camera='front', width=256, height=256):
    return Trace(camera, np.array(points, float), width, height)


def test_trace_and_depth_of_an_answer_are_in_the_image_of_the_first_camera(policy, monkeypatch):
    seen = policy.example()
    images = {**seen.images, 'front': np.full((120, 160, 3), 128, np.uint8)}
    written = policy._reasoned.write(np.full((2, 7), 128), np.arange(100), [[0, 255], [255, 0], [51, 51]])
    ids = [*policy.text.encode(written), END]
    monkeypatch.setattr(policy, 'answer', lambda *args: (ids, np.ones(len(ids), np.float32)))
    found = policy.act(replace(seen, images=images, t_ref=7))
    assert (found.trace.camera, found.trace.width, found.trace.height) == ('front', 160, 120)
    np.testing.assert_allclose(found.trace.points, [[0, 119], [159, 0], [31.8, 23.8]])
    assert (found.depth.t_ref, found.depth.camera, found.depth.depth) == (7, 'front', None)
    np.testing.assert_array_equal(found.depth.codes, np.arange(100).reshape(10, 10))
    monkeypatch.setattr(policy, 'robot', replace(policy.robot, upside_down=True))
    turned = policy.act(replace(seen, images=images))
    np.testing.assert_allclose(turned.trace.points[0], [159, 0])
    np.testing.assert_array_equal(turned.depth.codes, np.arange(100)[::-1].reshape(10, 10))


def test_a_depth_tokenizer_beside_the_checkpoint_gives_the_depth_image(folder, tmp_path):
    other, config = copy(folder, tmp_path), DepthConfig(channels=2, blocks=1, width=4)
    torch.manual_seed(0)
    made = DepthTokenizer(config)
    made._vq_vae._embedding.normal_()
    (other / 'depth').mkdir()
    save_file(made.state_dict(), other / 'depth' / 'model.safetensors')
    found = load(other, ONE).act(load(other, ONE).example()).depth
    whole = 1 - to_unit(made.decode(torch.from_numpy(found.codes)[None]))[0].detach().numpy()
    np.testing.assert_allclose(found.depth, whole, atol=1e-5)
    assert (found.depth.shape, found.depth.min(), found.depth.max(), found.metric) == ((320, 320), 0, 1, False)


def test_a_trace_is_drawn_on_the_first_picture_and_the_answer_has_actions_alone(policy, monkeypatch):
    pytest.importorskip('cv2')
    seen = policy.example()
    images = {**seen.images, 'front': np.full((240, 320, 3), 128, np.uint8)}
    monkeypatch.setattr(policy, 'robot', replace(policy.robot, crop=1.0))
    original, given = policy.answer, []
    monkeypatch.setattr(policy, 'answer', lambda *args: given.append(args) or original(*args))
    steered = replace(seen, images=images, steering=line((20, 200), (160, 120), (300, 20), width=640, height=480))
    found = policy.act(steered)
    assert (found.trace, found.depth) == (None, None)
    assert found.chunk.positions.shape == (2, 6)
    ((pictures, question, *_),) = given
    assert 'annotated on the first image' in question
    assert (pictures[1] == 128).all()
    changed = np.argwhere((pictures[0] != 128).any(-1))
    assert pictures[0][60, 80].tolist() == list(traces.CYAN)  # (160, 120) of an image of twice the size
    assert changed[:, 1].min() <= 10
    assert 150 <= changed[:, 1].max() <= 152


@pytest.mark.parametrize('points', [2, 5])
def test_a_trace_of_up_to_five_points_is_drawn_as_it_is(policy, points):
    drawn = line(*[(10 * i, 20 + i * i) for i in range(points)])
    np.testing.assert_array_equal(policy._steering(replace(policy.example(), steering=drawn)).points, drawn.points)


def test_a_longer_trace_keeps_five_points_at_equal_distances_along_it(policy):
    kept = policy._steering(replace(policy.example(), steering=line(*[(i * i, 100) for i in range(16)]))).points
    np.testing.assert_allclose(kept[:, 0], [0, 56.25, 112.5, 168.75, 225])


@pytest.mark.parametrize(
    ('drawn', 'named'),
    [
        (line((1, 1), (9, 9), camera='wrist'), "is of camera 'wrist'.*'front'"),
        (line((1, 1)), 'two or more points'),
        (line((1, 1), (300, 9)), 'is outside the image of 256 x 256 px'),
        (line((1, 1), (np.nan, 9)), 'not finite'),
    ],
)
def test_a_trace_that_cannot_be_followed_is_refused(policy, drawn, named):
    with pytest.raises(ValueError, match=named):
        policy.act(replace(policy.example(), steering=drawn))


def test_without_opencv_a_trace_is_refused_with_the_remedy(policy, monkeypatch):
    monkeypatch.setitem(sys.modules, 'cv2', None)
    with pytest.raises(RuntimeError, match='pip install opencv-python-headless'):
        policy.act(replace(policy.example(), steering=line((1, 1), (9, 9))))


def test_depth_and_trace_are_kept_while_the_picture_changes_little(folder, tmp_path, monkeypatch):
    other = copy(folder, tmp_path)
    robot(reasoning_answers=3)(other)
    policy, head, calls = load(other, ONE), Network.head, []
    monkeypatch.setattr(Network, 'head', lambda *args: calls.append(1) or head(*args))
    seen = policy.example()

    def forwards(observation):
        calls.clear()
        found = policy.act(observation)
        return len(calls), found

    count, first = forwards(seen)
    for _ in range(2):
        fewer, again = forwards(seen)
        assert fewer < count - 100
        np.testing.assert_array_equal(again.chunk.positions, first.chunk.positions)
        np.testing.assert_array_equal(again.trace.points, first.trace.points)
        np.testing.assert_array_equal(again.depth.codes, first.depth.codes)
    assert forwards(seen)[0] == count
    assert forwards(replace(seen, instruction='another'))[0] > fewer + 100
    changed = {**seen.images, 'front': np.zeros_like(seen.images['front'])}
    assert forwards(replace(seen, instruction='another', images=changed))[0] > fewer + 100


def test_a_checkpoint_that_words_its_answers_in_another_way_is_logged(policy, monkeypatch, caplog):
    for prefers, logged in ((lambda found: found, 0), (lambda found: torch.full_like(found, END), 1)):
        monkeypatch.setattr(policy_module, 'preferred', lambda network, ids, found, prefers=prefers: prefers(found))
        caplog.clear()
        policy.warm_up()
        assert sum('Set template in robot.json' in r.getMessage() for r in caplog.records) == logged


def copy(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / 'copy'))


def change(folder, name, make):
    for path in folder.glob('*.safetensors'):
        found = load_file(path)
        if name in found:
            tensor = make(found.pop(name))
            save_file(found if tensor is None else {**found, name: tensor}, path)


def robot(**fields):
    return lambda f: (f / 'robot.json').write_text(json.dumps({**ROBOT, **fields}))


def config(**fields):
    return lambda f: (f / 'config.json').write_text(json.dumps({**CONFIG, **fields}))


FUSED = 'model.transformer.blocks.0.self_attn.att_proj.weight'


@pytest.mark.parametrize(
    ('spoil', 'error', 'named'),
    [
        (lambda f: (f / 'robot.json').unlink(), FileNotFoundError, 'robot.json is missing'),
        (lambda f: (f / 'tokenizer.json').unlink(), FileNotFoundError, 'tokenizer.json is missing'),
        (robot(statistics=''), ValueError, rf"keys \['{KEY}', 'short'\]"),
        (robot(statistics='other'), ValueError, rf"keys \['{KEY}', 'short'\].*'other'"),
        (robot(statistics='short'), ValueError, 'an action has 3 numbers, 7 are needed'),
        (robot(action_space='ee_delta'), ValueError, "must be 'osc_delta'"),
        (robot(action_space='joint_delta'), ValueError, 'action_space must be one of'),
        (robot(upsidedown=True), ValueError, 'robot.json: field upsidedown is not known'),
        (robot(gripper_open=0.0), ValueError, 'two openings'),
        (robot(resize='area'), ValueError, 'area needs side'),
        (robot(reasoning_answers=0), ValueError, 'reasoning_answers must be 1 or more'),
        (robot(line=0), ValueError, 'line 1 to 32'),
        (robot(template='is {actions}'), ValueError, 'template must end with'),
        (config(norm_stats=None), ValueError, 'norm_stats is missing'),
        (config(norm_stats={KEY: {'action': {**RANGES, 'q99': [float('nan')] * 7}}}), ValueError, 'finite'),
        (config(llm_config={**CONFIG['llm_config'], 'use_qk_norm': True}), ValueError, 'use_qk_norm'),
        (config(llm_config={**CONFIG['llm_config'], 'vocab_size': 151936}), ValueError, '151936'),
        (config(llm_config={}), ValueError, 'config.json: field .hidden_size. is missing'),
        (lambda f: change(f, FUSED, lambda t: None), ValueError, FUSED),
        (lambda f: change(f, FUSED, lambda t: t[1:].contiguous()), ValueError, FUSED),
        (lambda f: change(f, FUSED, lambda t: t * torch.nan), ValueError, 'att_proj.weight is not finite'),
        (lambda f: change(f, 'lm_head.weight', lambda t: None), ValueError, 'lm_head.weight'),
        (
            lambda f: change(f, f'{weights.VISION}image_projector.w2.weight', lambda t: None), ValueError,
            'image_projector.w2.weight',
        ),
        (lambda f: (f / 'model-00002-of-00002.safetensors').unlink(), FileNotFoundError, '00002.* is missing'),
    ],
)  # fmt: skip
def test_a_folder_that_is_not_whole_is_refused_by_name(folder, tmp_path, spoil, error, named):
    other = copy(folder, tmp_path)
    spoil(other)
    with pytest.raises(error, match=named):
        load(other, ONE)


def test_a_fine_tuning_may_have_worded_its_answers_in_another_way(folder, tmp_path):
    other = copy(folder, tmp_path)
    robot(template='Left {depth}, right {trace}. And again {trace}. So do {actions}.')(other)
    policy = load(other, ONE)
    ids, _ = policy.answer([np.zeros((64, 64, 3), np.uint8)] * 2, 'lift')
    written = policy.text.decode(ids)
    assert written.startswith(' Left <DEPTH_START>')
    assert ' So do [[' in written


def test_a_tokenizer_of_another_model_is_refused(folder, tmp_path):
    other = copy(folder, tmp_path)
    content = json.loads((other / 'tokenizer.json').read_text())
    content['model']['vocab'] = {w: n for w, n in content['model']['vocab'].items() if n != ACTIONS_END - 7}
    (other / 'tokenizer.json').write_text(json.dumps(content))
    with pytest.raises(ValueError, match='lacks action words'):
        load(other, ONE)


def test_a_tensor_is_let_go_before_the_next_one_is_read(folder, monkeypatch):
    original, earlier = checkpoint.read_tensors, []

    def watched(stored):
        for name, tensor in original(stored):
            assert [r for r in earlier if r() is not None] == []
            earlier.append(weakref.ref(tensor))
            given = [(name, tensor)]
            del tensor
            yield given.pop()

    monkeypatch.setattr(checkpoint, 'read_tensors', watched)
    load(folder, ONE)
    assert len(earlier) > 40
