"""Each option of the network against an independent restatement in float64, and its cache against full forwards."""

import json
import math
from dataclasses import replace

import pytest
import torch

from vla_model import decode
from vla_model.checkpoints import memory, nano
from vla_model.checkpoints.nano import init_weights
from vla_model.config import ModelConfig, NetworkConfig
from vla_model.engines.fused import FusedNetwork
from vla_model.engines.select import auto_candidates
from vla_model.network import KeyValues, Network
from vla_model.quantization.quantize import plan_layers

SIZE = 90
PLAIN = NetworkConfig(32, 3, 4, 2, 48, 10000.0, 1e-6, SIZE)
EVERYTHING = slice(0, SIZE)
OPTIONS = [
    {},
    {'causal': True},
    {'qk_norm': 'rms'},
    {'qk_norm': 'layer'},
    {'qkv_bias': True},
    {'head_dim': 12},
    {'causal': True, 'qk_norm': 'layer'},  # RynnVLA-002
    {'causal': True, 'qkv_bias': True, 'head_dim': 6},  # MolmoAct
]


def made(**options):
    network = Network(replace(PLAIN, **options))
    init_weights(network, 0)
    generator = torch.Generator().manual_seed(5)
    for name, p in network.named_parameters():  # no gain is 1 and no bias 0, or an option could be missing unnoticed
        if 'norm' in name or name.endswith('bias'):
            p.data.add_(0.5 * torch.randn(p.shape, generator=generator))
    network.model['transformer'].wte.weight.data *= 20  # or the context would hardly count
    return network.eval()


@pytest.fixture
def ids():
    return torch.randint(0, SIZE, (2, 11), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def inference():
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield


def restated(network, ids):
    """Logits (B, T, vocabulary) in float64, position by position and head by head, from the definition."""
    c, w = network.config, {n: p.double() for n, p in network.named_parameters()}
    size, group = c.head_dim or c.d_model // c.n_heads, c.n_heads // c.n_kv_heads

    def rms(x, gain):
        return x / (x.square().mean(-1, keepdim=True) + c.rms_norm_eps).sqrt() * gain

    def normed(x, name):
        if c.qk_norm == 'rms':
            return rms(x, w[f'{name}.weight'])
        if c.qk_norm == 'layer':
            x = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()
            return x * w[f'{name}.weight'][0] + w[f'{name}.bias'][0]
        return x

    def turned(x, position):
        out = x.clone()
        for i in range(size // 2):
            angle = position * c.rope_theta ** (-2 * i / size)
            a, b = x[i], x[i + size // 2]
            out[i] = a * math.cos(angle) - b * math.sin(angle)
            out[i + size // 2] = b * math.cos(angle) + a * math.sin(angle)
        return out

    results = []
    for row in ids:
        h = w['model.transformer.wte.weight'][row]
        for layer in range(c.n_layers):
            block = f'model.transformer.blocks.{layer}'

            def linear(x, name, block=block):
                bias = w.get(f'{block}.{name}.bias')
                return x @ w[f'{block}.{name}.weight'].T + (0 if bias is None else bias)

            n = rms(h, w[f'{block}.attn_norm.weight'])
            q, k, v = (linear(n, f'{x}_proj').unflatten(-1, (-1, size)) for x in 'qkv')
            mixed = torch.zeros(len(row), c.n_heads, size, dtype=torch.float64)
            for head in range(c.n_heads):
                kv = head // group
                keys = [turned(normed(k[t, kv], f'{block}.k_norm'), t) for t in range(len(row))]
                for t in range(len(row)):
                    query = turned(normed(q[t, head], f'{block}.q_norm'), t)
                    seen = range(t + 1) if c.causal else range(len(row))
                    share = torch.stack([query @ keys[s] / math.sqrt(size) for s in seen]).softmax(0)
                    mixed[t, head] = sum(a * v[s, kv] for a, s in zip(share, seen, strict=True))
            h = h + linear(mixed.flatten(1), 'attn_out')
            m = rms(h, w[f'{block}.ff_norm.weight'])
            gate = linear(m, 'ff_proj')
            h = h + linear(gate * gate.sigmoid() * linear(m, 'up_proj'), 'ff_out')
        results.append(rms(h, w['model.transformer.ln_f.weight']) @ w['model.transformer.ff_out.weight'].T)
    return torch.stack(results)


@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_the_network_computes_what_its_options_say(options, ids):
    network = made(**options)
    expected = restated(network, ids)
    assert torch.allclose(network(ids, slice(0, 11), EVERYTHING).double(), expected, atol=2e-4)
    some = torch.tensor([2, 7])
    assert torch.allclose(network(ids, some, slice(5, 50)).double(), expected[:, some, 5:50], atol=2e-4)


def test_no_option_is_without_effect(ids):
    network = made()
    plain = network(ids, slice(0, 11), EVERYTHING)
    for options in OPTIONS[1:]:
        other = made(**options)
        assert (other(ids, slice(0, 11), EVERYTHING) - plain).abs().max() > 1e-2, options


@pytest.mark.parametrize('options', OPTIONS, ids=str)
def test_embed_hidden_and_head_are_the_forward(options, ids):
    network = made(**options)
    hidden = network.hidden(network.embed(ids), slice(4, 9), 11)
    assert torch.equal(network.head(hidden, slice(3, 30)), network(ids, slice(4, 9), slice(3, 30)))


def test_a_mask_is_data(ids):
    causal, free = made(causal=True), made()
    lower = torch.ones(11, 11, dtype=torch.bool).tril()[None, None]
    hidden = free.hidden(free.embed(ids), slice(3, 9), 11, lower)
    expected = causal.hidden(causal.embed(ids), slice(3, 9), 11)
    assert torch.allclose(hidden, expected, atol=1e-5)
    blind = lower & (torch.arange(11) != 2)  # nobody sees position 2
    other = ids.clone()
    other[:, 2] = (ids[:, 2] + 1) % SIZE
    a, b = (causal.hidden(causal.embed(x), slice(3, 11), 11, blind) for x in (ids, other))
    assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize('pieces', [[11], [1] * 11, [4, 1, 3, 2, 1]])
def test_a_causal_network_with_a_cache_equals_the_full_forward(ids, pieces):
    network = made(causal=True, qk_norm='layer', qkv_bias=True)
    expected = network(ids, slice(0, 11), EVERYTHING)
    cache, seen = KeyValues(0, capacity=11), 0
    for n in pieces:
        cache.positions, end = slice(seen, None), seen + n
        logits = network(ids[:, :end], slice(seen, end), EVERYTHING, cache=cache)
        assert torch.allclose(logits, expected[:, seen:end], atol=1e-4)
        seen = end


def test_the_cache_holds_the_heads_of_keys_and_values_alone_as_the_memory_plan_counts_them(ids):
    network, cache = made(), KeyValues(5)
    network(ids[:1], slice(5, 11), EVERYTHING, cache=cache)
    stored = sum(kept.nbytes for kept in cache.layers)
    assert all(kept.shape == (2, 1, PLAIN.n_kv_heads, 11, 8) for kept in cache.layers)
    base = nano.config(40)
    robot = replace(base.robot, max_prompt_tokens=11 - 2 - base.robot.block_tokens)
    config = ModelConfig('x', False, replace(PLAIN, vocab_size=base.vocabulary.size), base.vocabulary,
                         base.image_tokenizer, robot)  # fmt: skip
    assert memory.plan(config, torch.float32, device='cpu').keys_values == stored


def test_a_cache_that_is_full_reports_how_much_room_there_is(ids):
    network, cache = made(causal=True), KeyValues(0, capacity=6)
    network(ids[:, :6], slice(5, 6), EVERYTHING, cache=cache)
    cache.positions = slice(6, None)
    with pytest.raises(ValueError, match='the prompt has 7 tokens, the key/value cache has room for 6'):
        network(ids[:, :7], slice(6, 7), EVERYTHING, cache=cache)


# ---- token by token


def naive(network, ids, longest, stop=(), allowed=None):
    """Greedy, by a full forward for every token."""
    tokens = []
    while len(tokens) < longest and not (tokens and tokens[-1] in stop):
        logits = network(ids, slice(ids.shape[1] - 1, ids.shape[1]), EVERYTHING)[0, 0]
        if allowed is not None:
            keep = torch.zeros(SIZE, dtype=torch.bool)
            keep[allowed(tokens)] = True
            logits = logits.masked_fill(~keep, -torch.inf)
        tokens.append(int(logits.argmax()))
        ids = torch.cat((ids, torch.tensor([[tokens[-1]]])), 1)
    return tokens


class Counting:
    def __init__(self, network):
        self.network, self.positions = network, []

    def __call__(self, ids, rows, vocabulary, valid=None, cache=None):
        self.positions.append(ids.shape[1] - cache.positions.start)
        return self.network(ids, rows, vocabulary, valid, cache)


def test_token_by_token_is_greedy_and_computes_every_position_once(ids):
    network = made(causal=True, qk_norm='layer')
    counting = Counting(network)
    tokens, probability = decode.run(decode.autoregressive(counting, SIZE, ids[:1], frozenset(), 8))
    assert tokens.tolist() == naive(network, ids[:1], 8) and counting.positions == [11] + [1] * 7
    assert ((probability > 0) & (probability <= 1)).all()


def test_an_answer_ends_with_the_first_stop(ids):
    network = made(causal=True)
    free = naive(network, ids[:1], 8)
    stop = frozenset({free[3]})
    tokens, _ = decode.run(decode.autoregressive(network, SIZE, ids[:1], stop, 8))
    assert tokens.tolist() == free[: free.index(free[3]) + 1]
    tokens, probability = decode.run(decode.autoregressive(network, SIZE, ids[:1], stop, 0))
    assert len(tokens) == len(probability) == 0


def test_a_grammar_is_kept_and_what_it_leaves_no_choice_of_takes_no_forward(ids):
    network = made(causal=True)

    def allowed(tokens):
        return [slice(20, 40), slice(7, 8), slice(8, 9), torch.tensor([3, 60, 61]), slice(70, 90)][len(tokens)]

    counting = Counting(network)
    tokens, probability = decode.run(decode.autoregressive(counting, SIZE, ids[:1], frozenset(), 5, allowed))
    assert tokens.tolist() == naive(network, ids[:1], 5, allowed=allowed)
    assert counting.positions == [11, 3, 1] and probability[1:3].tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match='no token is allowed to follow'):
        decode.run(decode.autoregressive(network, SIZE, ids[:1], frozenset(), 5, lambda tokens: slice(3, 3)))


def test_a_job_makes_one_forward_a_step(ids):
    counting = Counting(made(causal=True))
    job = decode.Job(decode.autoregressive(counting, SIZE, ids[:1], frozenset(), 4))
    for forward in range(1, 5):
        assert job.step() == (forward == 4) and len(counting.positions) == forward


# ---- who does not compute an option


@pytest.mark.parametrize('options', OPTIONS[1:], ids=str)
def test_what_does_not_compute_an_option_refuses_it_by_name(options, ids):
    network = made(**options)
    other = sorted(set(options) - {'head_dim'})
    if other:
        with pytest.raises(ValueError, match=f"fused matmuls does not compute networks with .*{other[0]}.*'eager'"):
            FusedNetwork(network, 20)
    else:
        length, rows = torch.tensor([11], dtype=torch.int32), torch.arange(4, 9)
        fused = FusedNetwork(network, 20)(ids[0], length, rows, EVERYTHING)
        assert torch.allclose(fused, network(ids[:1], slice(4, 9), EVERYTHING)[0], atol=1e-4)
    with pytest.raises(ValueError, match='quantization does not compute networks with'):
        plan_layers(network.config, 'int8', None)
    assert auto_candidates('cuda', 'bfloat16', 7e9, tuple(options))[0] == (() if other else ('cuda-graph',))


def test_a_configuration_writes_its_options_and_no_defaults():
    base = nano.config(40)
    assert not {'causal', 'qk_norm', 'qkv_bias', 'head_dim'} & set(json.loads(base.to_json()))
    options = {'causal': True, 'qk_norm': 'rms', 'qkv_bias': True, 'head_dim': 40}
    config = replace(base, network=replace(base.network, **options))
    content = json.loads(config.to_json())
    assert {name: content[name] for name in options} == options
    assert ModelConfig.of_json(content, None) == config
    with pytest.raises(ValueError, match=r"qk_norm must be one of .*, got 'batch'"):
        replace(PLAIN, qk_norm='batch')
    with pytest.raises(ValueError, match='head_dim must be even'):
        replace(PLAIN, head_dim=7)
