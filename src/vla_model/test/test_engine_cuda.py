"""The CUDA engine on a CPU: its arithmetic, what it captures and when, and what it never asks the GPU for."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vla_model import decode
from vla_model.checkpoints.nano import init_weights
from vla_model.config import NetworkConfig, Quantization
from vla_model.engines import kernels, matmuls
from vla_model.engines.base import Act
from vla_model.engines.cuda_graph import STEP, CudaGraphs
from vla_model.engines.fused import FusedNetwork
from vla_model.families.mmact import loading
from vla_model.loading import LoadOptions
from vla_model.network import KeyValues, Network
from vla_model.policy import IMAGE, PLAN, ImageOptions, PlanOptions
from vla_model.quantized import put_layers, round_weight

BINS = slice(200, 300)


def small(n_kv_heads=2, schemes=()):
    """A network, with the layers of each block stored in `schemes`, in turns."""
    network = Network(NetworkConfig(64, 2, 4, n_kv_heads, 96, 10000.0, 1e-5, 300))
    init_weights(network, 0)
    network.model['transformer'].wte.weight.data *= 20  # or the context would hardly count
    if schemes:
        names = [n for n, m in network.named_modules() if isinstance(m, torch.nn.Linear) and '.blocks.' in n]
        layers = {name: schemes[i % len(schemes)] for i, name in enumerate(names)}
        weights = {name: network.get_submodule(name).weight.detach() for name in names}
        group = 32 if 'int4' in schemes else 0
        put_layers(network, Quantization('mixed', group, 'token' if 'int8' in schemes else 'none', layers, 'x', {}))
        for name, scheme in layers.items():
            layer = network.get_submodule(name)
            for stored, value in zip(
                (layer.weight, layer.scale), round_weight(weights[name], scheme, group), strict=True
            ):
                stored.copy_(value)
    return network.eval()


@pytest.fixture
def act():
    generator = torch.Generator().manual_seed(1)
    prompts = tuple(torch.randint(0, 300, (1, 40), generator=generator) for _ in range(4))
    return Act(prompts, slice(30, 38), BINS, longest=70)


class Recorder:
    """Stands in for what captures graphs; counts, and replays what it was given."""

    def __init__(self):
        self.captured = 0

    def __call__(self, run):
        self.captured += 1
        return run


@pytest.fixture
def tokenizer():
    return loading.load('random-nano', LoadOptions(threads=1)).image_tokenizer


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


@pytest.mark.parametrize('kv_heads', [4, 2, 1])
@pytest.mark.parametrize('tail', [0, 9])
def test_the_fused_network_computes_the_same_and_sees_nothing_behind_the_prompt(act, kv_heads, tail):
    network, ids = small(kv_heads), act.prompts[0]
    exact = network(ids, act.block, BINS)[0]
    fused = FusedNetwork(network, 80)
    padded = torch.cat((ids[0], torch.randint(0, 300, (tail,))))
    length = torch.tensor([40], dtype=torch.int32)
    rows = torch.arange(30, 38)
    assert torch.allclose(fused(padded, length, rows, BINS), exact, atol=1e-5)
    assert torch.allclose(network(ids, act.block, BINS)[0], exact, atol=1e-6), 'its weights are views of the fused ones'
    assert fused.blocks[0].qkv[0].weight.data_ptr() == network.model['transformer'].blocks[0].q_proj.weight.data_ptr()


@pytest.mark.parametrize('schemes', [('int8',), ('fp8',), ('int4',), ('int8-weight',), ('int8', 'fp8', '')])
def test_quantized_layers_give_what_they_give_in_eager(act, schemes):
    network = small(schemes=tuple(s for s in schemes if s))
    exact = network(act.prompts[0], act.block, BINS)[0]
    fused = FusedNetwork(network, 40)
    ours = fused(act.prompts[0][0], torch.tensor([40], dtype=torch.int32), torch.arange(30, 38), BINS)
    limit = {('int4',): 1e-5, ('int8-weight',): 1e-5, ('int8',): 0.03}.get(
        schemes, 0.1
    )  # a rounding may go the other way
    assert (ours - exact).norm() / exact.norm() < limit


@pytest.mark.parametrize(('scheme', 'limit'), [('int8', 1e-5), ('fp8', 4e-3), ('int4', 1e-5), ('int8-weight', 1e-5)])
def test_a_matmul_is_that_of_its_quantized_layer(scheme, limit):
    layer = small(schemes=(scheme,)).model['transformer'].blocks[0].attn_out
    x = torch.randn(40, 64)
    matmul = matmuls.Matmul([layer])
    inputs = kernels.quantize(x, matmul.rounding, matmul.input_scale) if matmul.rounding else x
    exact = layer(x)
    assert (matmul(inputs, torch.float32) - exact).norm() / exact.norm() < limit  # fp8 gives bfloat16 on the way


def test_one_capture_serves_every_length_and_nothing_is_captured_once_sealed(act, tokenizer):
    network, recorder = small(), Recorder()
    engine = CudaGraphs(network, tokenizer, act, recorder)
    assert engine.error < 1e-4 and engine.fixed_shapes
    assert recorder.captured == 2  # 40 tokens: 64 and 96, which is the longest
    for length in (30 + 9, 41, 64, 77):
        ids = torch.randint(0, 300, (1, length))
        block = slice(length - 10, length - 2)
        assert torch.allclose(engine(ids, block, BINS), network(ids, block, BINS), atol=1e-4)
    assert recorder.captured == 2
    engine.seal()
    engine(act.prompts[0], act.block, BINS)
    for rows, part in ((slice(30, 37), BINS), (act.block, slice(0, 300))):
        with pytest.raises(ValueError, match=r'no graph was captured for a block of . tokens .* run this request once'):
            engine(act.prompts[0], rows, part)
    with pytest.raises(ValueError, match='no graph was captured for images'):
        engine.encode(torch.zeros(1, 3, 128, 128))
    with pytest.raises(ValueError, match='the prompt has 97 tokens, the graphs take up to 96'):
        engine(torch.zeros(1, 97, dtype=torch.int64), slice(80, 88), BINS)
    assert recorder.captured == 2


def test_results_outlive_the_next_call(act, tokenizer):
    engine = CudaGraphs(small(), tokenizer, act, Recorder())
    first = engine(act.prompts[0], act.block, BINS)
    kept = first.clone()
    engine(act.prompts[1], act.block, BINS)
    assert torch.equal(first, kept)


def test_a_prefix_cache_is_that_of_eager_and_belongs_to_one_decode(act, tokenizer):
    network = small()
    engine, ids = CudaGraphs(network, tokenizer, act, Recorder()), act.prompts[0].clone()
    ours, theirs = KeyValues(30), KeyValues(30)
    for token in (299, 7, 8):  # the first forward fills the cache
        ids[0, 33] = token
        a, b = engine(ids, act.block, BINS, cache=ours), network(ids, act.block, BINS, cache=theirs)
        assert torch.allclose(a, b, atol=1e-4)
    engine(act.prompts[1], act.block, BINS, cache=KeyValues(30))
    with pytest.raises(ValueError, match='another decode of this request type has started'):
        engine(ids, act.block, BINS, cache=ours)


def test_what_has_no_fixed_shape_is_left_to_eager(act, tokenizer):
    network, recorder = small(), Recorder()
    engine, ids = CudaGraphs(network, tokenizer, act, recorder), act.prompts[0]
    before = recorder.captured
    rows, valid = torch.tensor([3, 17]), torch.ones_like(ids, dtype=torch.bool)
    assert torch.equal(engine(ids, rows, BINS), network(ids, rows, BINS))
    assert torch.equal(engine(ids, act.block, BINS, valid), network(ids, act.block, BINS, valid))
    assert recorder.captured == before


def test_an_engine_that_computes_something_else_is_refused(act, tokenizer, monkeypatch):
    monkeypatch.setattr(FusedNetwork, '__call__', lambda self, ids, length, rows, part, *rest: torch.ones(8, 100))
    with pytest.raises(ValueError, match=r"differs from eager by .* take engine 'eager'"):
        CudaGraphs(small(), tokenizer, act, Recorder())


class NoHostReads(TorchDispatchMode):
    """Raises where the host would wait for a number of the GPU: what CUDA's own check does, on a CPU."""

    WAITS = (
        '_local_scalar_dense',
        'nonzero',
        'masked_select',
        'is_nonzero',
        'equal',
        'item',
        'unique',
        'index.Tensor(',
    )

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        waits = any(name.startswith(f'aten.{w}') for w in self.WAITS)
        by_mask = name.startswith(('aten.index', 'aten._index_put')) and any(
            isinstance(i, torch.Tensor) and i.dtype == torch.bool
            for a in args
            if isinstance(a, (list, tuple))
            for i in a
        )
        if waits or by_mask:
            raise AssertionError(f'the host waits for {name}')
        return function(*args, **(kwargs or {}))


def test_a_cycle_reads_nothing_back_before_its_end():
    p = loading.load('random-nano', LoadOptions(threads=1))
    act = Act.of(p.prompts.action('warm up'), p.config.vocabulary, p.prompts.max_tokens)
    p.engine = CudaGraphs(p.network, p.image_tokenizer, act, Recorder())
    p.warm_up()
    template, v = p.prompts.action('put it there'), p.config.vocabulary
    images = {name: np.random.default_rng(1).integers(0, 256, (96, 128, 3), np.uint8) for name in ('front', 'wrist')}
    decode.run(decode.action(p.network, v, template.ids[None], template.block, steps=3))  # remembers its schedule
    with NoHostReads():
        ids = template.fill(p.state_ids(np.array([0, 0, 0, -1, 0, 1, 0, 0.04])), p.view_ids(images))
        decode.run(decode.action(p.engine, v, ids, template.block, steps=3))
    with pytest.raises(AssertionError, match='the host waits'), NoHostReads():
        int(ids.sum())


def test_a_policy_plans_and_imagines_on_graphs_as_in_eager_and_then_captures_no_more():
    p, plain = (loading.load('random-nano', LoadOptions(threads=1)) for _ in range(2))
    act = Act.of(p.prompts.action('warm up'), p.config.vocabulary, p.prompts.max_tokens)
    recorder = Recorder()
    p.engine = CudaGraphs(p.network, p.image_tokenizer, act, recorder)
    seen = p.example()
    for cached in (False, True):
        ours, theirs = (x.start(PLAN, seen, PlanOptions(24, 6, cached=cached)).run() for x in (p, plain))
        assert ours.text == theirs.text and abs(ours.confidence - theirs.confidence) < 1e-4
        ours, theirs = (x.start(IMAGE, seen, ImageOptions(4, cached=cached)).run() for x in (p, plain))
        assert (ours.image == theirs.image).mean() > 0.99
    assert np.array_equal(p.act(seen).chunk.positions, plain.act(seen).chunk.positions)
    p.warm_up()
    count = recorder.captured
    p.start(PLAN, seen, PlanOptions(24, 6)).run()
    with pytest.raises(ValueError, match='no graph was captured for a block of 25 tokens'):
        p.start(PLAN, seen, PlanOptions(25, 6)).run()
    assert recorder.captured == count and STEP == 32


@pytest.mark.parametrize('scheme', ['int8', 'fp8', 'int4', ''])
def test_the_fastest_way_that_runs_here_is_taken(scheme, monkeypatch):
    def broken(p, x, dtype):
        raise RuntimeError('no such kernel')

    def wrong_time(run):
        run()
        return clock.pop()

    network = small(schemes=(scheme,) if scheme else ())
    matmul = matmuls.Matmul([network.model['transformer'].blocks[0].attn_out])
    usual = matmuls.IMPLEMENTATIONS[scheme][0]
    monkeypatch.setitem(matmuls.IMPLEMENTATIONS, scheme, (broken, usual))
    clock = [0.5]
    assert matmul.measure(40, torch.float32, wrong_time) == {usual.__name__: 0.5} and matmul.implementation is usual
    monkeypatch.setitem(matmuls.IMPLEMENTATIONS, scheme, (broken,))
    with pytest.raises(ValueError, match='no implementation of a matmul'):
        matmul.measure(40, torch.float32, wrong_time)


def test_rounding_is_that_of_the_quantized_layers():
    x = torch.tensor([[0.5, -1.0, 127.0, 2.5], [0.0, 0.0, 0.0, 0.0]])
    q, scale = kernels.round_rows(x, 'int8')
    assert q[0].tolist() == [0, -1, 127, 2] and scale[0] == 1.0 and q[1].tolist() == [0] * 4  # halves to even
    q, scale = kernels.round_rows(x, 'int8', torch.tensor(0.5))
    assert q[0].tolist() == [1, -2, 127, 5] and scale.tolist() == [[0.5], [0.5]]
    q, scale = kernels.round_rows(x, 'fp8')
    assert q[0].float().max() == 448 and torch.isfinite(q.float()).all()
