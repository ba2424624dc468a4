"""The fast paths against a slow re-statement of what the released models compute.

It is written from the description of the reference alone: prompts as padded lists, an additive attention mask, logits
of the whole vocabulary, loops. It fills a parity folder, which the parity check then must pass.
"""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from vla_model.bench import parity
from vla_model.tokens import bins
from vla_model.tokens.text_tokenizer import NANO_FILE

TEXT, MASK, PAD, BOS, EOS = 126349, 126336, 126093, 126080, 126081
SOI, EOI, T2I, MMU, MM2A = 126084, 126085, 126088, 126089, 126097
SOA, EOA, DIM7, DIM14, SOSTATE, EOSTATE = 126098, 126099, 126100, 126101, 126102, 126103
BINS, SIZE, CODES = 134656, 136704, 8192
HEADS, KV_HEADS, WIDTH, MLP, LAYERS = 4, {'mha': 4, 'gqa': 2}, 64, 96, 2
# How many tokens the reference masks again after each step: n cos(pi r / 2), rounded down in fp32
MASKED = {
    (56, 1): [1],
    (56, 6): [54, 48, 39, 27, 14, 1],
    (256, 18): [255, 252, 247, 240, 232, 221, 209, 196, 181, 164, 146, 127, 108, 87, 66, 44, 22, 1],
}
TASK = 'press the red button'
WEIGHTS = """
import zlib
import numpy as np

def _normal(name, shape):
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(tuple(shape), np.float32)

def lm_tensor(name, shape):
    x = _normal(name, shape)
    return 1 + 0.1 * x if name.endswith(('norm.weight', 'ln_f.weight')) else 0.08 * x

def vq_tensor(name, shape):
    if len(shape) > 1:
        return _normal(name, shape) * np.float32((2 / np.prod(shape[1:])) ** 0.5)
    return np.float32('norm' in name and name.endswith('weight')) + 0.1 * _normal(name, shape)
"""


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# The re-statement: prompts


def prompt(text, mode, views, state, mark, block, previous=None):
    """The ids of a prompt, not padded, for views: lists of image ids, state and previous: lists of ids or None."""
    encode = lambda s: text.encode(s, add_special_tokens=False).ids  # noqa: E731
    names = ['third/head', 'wrist'] if len(views) == 2 else ['third/head', 'left wrist', 'right wrist']
    ids = [mode, BOS, *encode(TASK)]
    if state is not None:
        ids += [*encode('The current states of robot is:'), SOSTATE, *state, EOSTATE]
    for name, view in zip(names, views, strict=True):
        ids += [*encode(f'The {name} view of robot is:'), SOI, *view, EOI]
    ids += [*encode("Robot's action dim is:"), mark]
    if previous:
        ids += [*encode("Robot's previous actions are:"), SOA, *previous, EOA]
    return ids + block


def action_prompt(text, views, state, dim, previous=None):
    """(ids, mask, prompt_id) as lists: padded to 1024 for 7 dimensions, to 1120 for others."""
    n = 8 * dim
    place = 910 if dim == 7 else 1120 - n - 2
    ids = prompt(text, MM2A, views, state, DIM7 if dim == 7 else DIM14, [EOS], previous)
    pads, tail = place - len(ids), (8 * 7 if dim == 7 else 0)
    block = [SOA] + [MASK] * n + [EOA]
    return [PAD] * pads + ids + block + [PAD] * tail, [0] * pads + [1] * (len(ids) + n + 2) + [0] * tail, place


# The re-statement: network


def rms(x, weight):
    return x * (x.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * weight


def rope(x):
    """Pairs (i, i + half) of x (heads, T, d) turned as complex numbers."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[1])[:, None] * 500000.0 ** (-2 * torch.arange(half) / x.shape[-1])
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((turned.real, turned.imag), -1)


def forward(w, ids, mask, heads, rows):
    """Logits (rows, whole vocabulary)."""
    kv = KV_HEADS[heads]
    valid = torch.tensor(mask).bool()
    bias = torch.where(valid[:, None] & valid, 1.0, torch.finfo(torch.float32).min)
    h = w('wte.weight', SIZE, WIDTH)[torch.tensor(ids)]
    for i in range(LAYERS):
        of = lambda name, *shape, i=i: w(f'blocks.{i}.{name}.weight', *shape)  # noqa: E731
        n = rms(h, of('attn_norm', WIDTH))
        split = lambda x, count: x.view(len(ids), count, WIDTH // HEADS).transpose(0, 1)  # noqa: E731
        q = rope(split(n @ of('q_proj', WIDTH, WIDTH).T, HEADS))
        k = rope(split(n @ of('k_proj', WIDTH // HEADS * kv, WIDTH).T, kv))
        v = split(n @ of('v_proj', WIDTH // HEADS * kv, WIDTH).T, kv)
        out = []
        for head in range(HEADS):
            other = head // (HEADS // kv)
            scores = q[head] @ k[other].T / math.sqrt(WIDTH // HEADS) + bias
            out.append(scores.softmax(-1) @ v[other])
        h = h + torch.cat(out, -1) @ of('attn_out', WIDTH, WIDTH).T
        m = rms(h, of('ff_norm', WIDTH))
        gate = m @ of('ff_proj', MLP, WIDTH).T
        h = h + (gate * gate.sigmoid() * (m @ of('up_proj', MLP, WIDTH).T)) @ of('ff_out', WIDTH, MLP).T
    return rms(h, w('ln_f.weight', WIDTH))[rows] @ w('ff_out.weight', SIZE, WIDTH).T


# The re-statement: decoders


def remask(w, ids, mask, block, offset, size, steps, temperature, seed, cumulative):
    ids, n = list(ids), block.stop - block.start
    generator = torch.Generator().manual_seed(seed)
    tau = temperature
    for k in range(steps):
        p = forward(w, ids, mask, 'mha', block)[:, offset : offset + size].softmax(-1)
        drawn = torch.multinomial(p, 1, generator=generator)[:, 0].tolist()
        u = torch.zeros(1, n).uniform_(0, 1, generator=generator)[0]
        unknown = [x == MASK for x in ids[block]]
        tokens = [d if free else x - offset for d, free, x in zip(drawn, unknown, ids[block], strict=True)]
        r = (k + 1) / steps
        tau = tau * (1 - r) if cumulative else temperature * (1 - r)
        confidence = []
        for i in range(n):
            chance = p[i, tokens[i]] if unknown[i] else torch.tensor(torch.finfo(torch.float32).max)
            noise = -torch.log((-torch.log(u[i].clamp(min=1e-20))).clamp(min=1e-20))
            confidence.append(float(torch.log(chance.clamp(min=1e-20)) + tau * noise))
        m = max(1, min(sum(unknown) - 1, MASKED[n, steps][k]))
        cut = sorted(confidence)[m]
        ids[block] = [MASK if c < cut else t + offset for c, t in zip(confidence, tokens, strict=True)]
    return tokens


def write_text(w, prefix, length, steps):
    ids = prefix + [MASK] * length
    for step in range(steps):
        logits = forward(w, ids, [1] * len(ids), 'mha', slice(len(prefix), len(ids)))
        best = logits.argmax(-1)
        p = logits.double().softmax(-1).gather(1, best[:, None])[:, 0]
        free = [i for i in range(length) if ids[len(prefix) + i] == MASK]
        quota = length // steps + (1 if step < length % steps else 0)
        for i in sorted(free, key=lambda i: -float(p[i]))[:quota]:
            ids[len(prefix) + i] = int(best[i])
    return ids[len(prefix) :]


# A parity folder of it


def make_tokenizer():
    """As long as the released one: that of the nano configuration, then filler."""
    content = json.loads(NANO_FILE.read_text())
    entries = content['model']['vocab']
    entries |= {f'<filler {i}>': i for i in range(len(entries), TEXT)}
    return Tokenizer.from_str(json.dumps(content))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('parity')
    text = make_tokenizer()
    (folder / 'tokenizer').mkdir()
    text.save(str(folder / 'tokenizer' / 'tokenizer.json'))
    (folder / 'det_weights.py').write_text(WEIGHTS)
    shape = {'d_model': WIDTH, 'n_layers': LAYERS, 'n_heads': HEADS, 'n_kv_heads': HEADS, 'mlp_hidden_size': MLP}
    ids = {'vocab_size': SIZE, 'action_vocab_size': 2048, 'codebook_size': CODES}
    ids |= {'mask_token_id': MASK, 'eos_token_id': EOS}
    (folder / 'config.json').write_text(json.dumps(shape | ids | {'rope_theta': 500000.0, 'rms_norm_eps': 1e-5}))

    made = {}
    scope = {}
    exec(WEIGHTS, scope)

    def w(name, *shape):
        key = (name, shape)
        if key not in made:
            made[key] = torch.from_numpy(scope['lm_tensor'](f'model.transformer.{name}', shape))
        return made[key]

    rng = np.random.default_rng(0)
    views = lambda n: [list(map(int, rng.integers(0, CODES, 256) + TEXT)) for _ in range(n)]  # noqa: E731
    bin_ids = lambda n: list(map(int, rng.integers(0, 2048, n) + BINS))  # noqa: E731
    out = {}
    with torch.inference_mode():
        layouts = {
            'libero': action_prompt(text, views(2), bin_ids(8), 7),
            'robotwin': action_prompt(text, views(3), bin_ids(16), 16),
            'joints': action_prompt(text, views(3), bin_ids(14), 14, previous=bin_ids(28)),
        }
        for layout, (ids, mask, place) in layouts.items():
            dim = {'libero': 7, 'robotwin': 16, 'joints': 14}[layout]
            out |= {f'{layout}_ids': [ids], f'{layout}_mask': [mask], f'{layout}_prompt_id': [place]}
            for heads in ('mha', 'gqa'):
                logits = forward(w, ids, mask, heads, slice(place + 1, place + 1 + 8 * dim))
                out[f'{heads}_{layout}_action_logits'] = logits[None, :, BINS:].numpy()
        ids, mask, place = layouts['libero']
        block = slice(place + 1, place + 57)
        for steps, temperature in ((1, 0.0), (6, 0.0), (6, 1.0)):
            tokens = remask(w, ids, mask, block, BINS, 2048, steps, temperature, 123, False)
            out[f'action_tokens_steps{steps}_temp{temperature}'] = [tokens]
        out['actions_dequant'] = (np.array(out['action_tokens_steps1_temp0.0']).reshape(8, 7) / 2047 * 2 - 1).astype(
            'f'
        )

        ids = prompt(text, T2I, views(3), None, DIM14, [EOS, SOI] + [MASK] * 256 + [EOI])
        mask, ids = [0] * (1120 - len(ids)) + [1] * len(ids), [PAD] * (1120 - len(ids)) + ids
        block = slice(1120 - 257, 1119)
        logits = forward(w, ids, mask, 'mha', slice(block.start, block.start + 8))
        out |= {'t2i_ids': [ids], 't2i_mask': [mask]}
        out['t2i_logits_first8'] = logits[None, :, TEXT : TEXT + CODES].numpy()
        for temperature in (0.0, 1.0):
            codes = remask(w, ids, mask, block, TEXT, CODES, 18, temperature, 7, True)
            out[f't2i_codes_18_temp{temperature}'] = [codes]

        prefix = prompt(text, MMU, views(2), None, DIM7, [])
        whole = prefix + [MASK] * 48
        out |= {'mmu_gen_prefix': [prefix], 'mmu_gen_48_16': [write_text(w, prefix, 48, 16)]}
        logits = forward(w, whole, [1] * len(whole), 'mha', slice(len(prefix), len(prefix) + 4))
        out['mmu_logits_first4'] = logits[None].numpy()
    values = rng.uniform(-1.2, 1.2, 500).astype(np.float32)
    out |= {'q_in': values, 'dq_all': (np.arange(2048) / 2047 * 2 - 1).astype(np.float32)}
    out['q_state_out'] = [round((min(max(float(x), -1), 1) + 1) / 2 * 2047) for x in values]
    out['q_action_out'] = bins.quantize(values, 2048)
    tensors = {k: v if isinstance(v, np.ndarray) else np.array(v, np.int64) for k, v in out.items()}
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / 'case.safetensors')
    return folder


@pytest.mark.slow
def test_everything_passes(folder):
    rows = parity.check_folder(folder)
    assert [row.name for row in rows] == sorted(load_file(folder / 'case.safetensors'))
    assert [str(row) for row in rows if not row.passed] == []
    assert parity.report(rows)


def broken(folder, tmp_path, change):
    """Rows of a copy of the folder, by name, after `change` of its tensors; only the quick ones are kept."""
    copy = shutil.copytree(folder, tmp_path / 'copy')
    slow = ('temp', 'mmu_gen_48', 'gqa', 'robotwin', 'joints')
    tensors = load_file(copy / 'case.safetensors')
    tensors = {name: t for name, t in tensors.items() if not any(s in name for s in slow)}
    change(tensors)
    save_file(tensors, copy / 'case.safetensors')
    rows = parity.check_folder(copy)
    assert not parity.report(rows)
    return {row.name: row for row in rows}


def test_what_is_wrong_fails_and_is_named(folder, tmp_path):
    def change(t):
        t['libero_ids'][0, 500] += 1  # an image code: any will do
        t['libero_mask'][0, 0] = 1
        t['q_action_out'][3] += 1
        t['dq_all'] = t['dq_all'] + np.float32(1e-5)
        t['t2i_logits_first8'][0, 0, 0] = np.nan
        t['mmu_logits_first4'] = t['mmu_logits_first4'][:, :3]
        t['surprise'] = np.zeros(1, np.float32)
        t['vq_z'] = np.zeros(1, np.float32)

    rows = broken(folder, tmp_path, change)
    failed = {name for name, row in rows.items() if not row.passed}
    assert failed >= {'q_action_out', 'dq_all', 't2i_logits_first8', 'mmu_logits_first4', 'surprise', 'vq_z'}
    assert failed >= {'libero_mask', 'mha_libero_action_logits'}
    assert rows['q_action_out'].value == 499 / 500
    assert rows['surprise'].note == 'cannot be checked: unknown tensor name'
    assert rows['vq_z'].note == 'cannot be checked: tensor img0_uint8_hwc is missing'
    assert 'shape (1, 3, 136704)' in rows['mmu_logits_first4'].note
    assert 'FAIL  surprise' in str(rows['surprise'])


def test_a_mask_that_is_not_there_is_not_needed(folder, tmp_path):
    def change(t):
        del t['libero_mask']
        t['surprise'] = np.zeros(1, np.float32)

    rows = broken(folder, tmp_path, change)
    failed = {name for name, row in rows.items() if not row.passed}
    assert failed == {'surprise', 'actions_dequant'}, 'the tokens that the actions come from are not in the copy'


def test_a_wrong_prompt_fails(folder, tmp_path):
    def change(t):
        t['libero_ids'][0, 910 - 2] = DIM14  # the mark of other dimensions
        t['mmu_gen_prefix'] = t['mmu_gen_prefix'][:, 1:]

    rows = broken(folder, tmp_path, change)
    assert not rows['libero_ids'].passed and rows['libero_ids'].value == 1023 / 1024
    assert not rows['mmu_gen_prefix'].passed


@pytest.mark.parametrize('name', ['config.json', 'det_weights.py', 'tokenizer/tokenizer.json'])
def test_a_folder_that_is_not_whole(folder, tmp_path, name):
    copy = shutil.copytree(folder, tmp_path / 'copy')
    (copy / name).unlink()
    with pytest.raises(FileNotFoundError, match=f'{name} is missing'):
        parity.check_folder(copy)


def test_a_folder_without_or_with_damaged_tensors(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / 'copy')
    (copy / 'case.safetensors').write_bytes(b'no tensors')
    with pytest.raises(ValueError, match='is damaged'):
        parity.check_folder(copy)
    (copy / 'case.safetensors').unlink()
    with pytest.raises(FileNotFoundError, match='nothing to compare'):
        parity.check_folder(copy)
