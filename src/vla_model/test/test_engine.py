"""Engines compute what eager computes, and say plainly where they cannot."""

import functools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from vla_model.config import NetworkConfig
from vla_model.engines import openvino_graph as export
from vla_model.engines import select as engines
from vla_model.engines.base import Act, Engine
from vla_model.families.mmact import loading
from vla_model.loading import LoadOptions
from vla_model.network import Network
from vla_model.types import Chunk, Observation

openvino = pytest.importorskip('openvino')
pytestmark = pytest.mark.native
EXPORTS = ['openvino-float32', 'openvino-int8']
if 'BF16' in openvino.Core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES'):
    EXPORTS.append('openvino-bfloat16')


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp('cache')
    patch.setenv('XDG_CACHE_HOME', str(folder))
    yield folder / 'vla_model'
    patch.undo()


@pytest.fixture(scope='module')
def nano(cache):
    return loading.load('random-nano', LoadOptions(threads=1))


@pytest.fixture
def act(nano):
    template = nano.prompts.action('put the banana in the red bowl')
    return Act.of(template, nano.config.vocabulary, nano.prompts.max_tokens)


@pytest.fixture
def observation():
    rng = np.random.default_rng(3)
    return Observation(
        t_ref=0,
        images={name: rng.integers(0, 256, (256, 256, 3), dtype=np.uint8) for name in ('front', 'wrist')},
        positions=np.array([0.0, -0.78, 0.0, -2.35, 0.0, 1.57, 0.78]),
        velocities=np.zeros(7),
        gripper=0.04,
        instruction='put the banana in the red bowl',
    )


def small(n_kv_heads=2, **options):
    """A network of another shape, and what to ask of it."""
    torch.manual_seed(5)
    network = Network(NetworkConfig(64, 2, 4, n_kv_heads, 96, 10000.0, 1e-5, 300, **options)).eval()
    generator = torch.Generator().manual_seed(1)
    prompts = tuple(torch.randint(0, 300, (1, 40), generator=generator) for _ in range(12))
    return network, Act(prompts, slice(30, 38), slice(200, 300), longest=64)


@pytest.mark.parametrize('name', EXPORTS)
def test_an_exported_graph_gives_the_logits_of_eager_at_any_length(nano, act, name):
    made = engines.make(name, nano.network, nano.image_tokenizer, act, nano.model_id)
    limit = export.LIMITS[name.removeprefix('openvino-')]
    assert made.name == name and made.error <= limit
    for instruction in ('go', 'put the banana in the red bowl and then go back to where you were'):
        other = Act.of(nano.prompts.action(instruction), nano.config.vocabulary, nano.prompts.max_tokens, prompts=1)
        with torch.inference_mode():
            ours = made(other.prompts[0], other.block, other.vocabulary)
            eager = nano.network(other.prompts[0], other.block, other.vocabulary)
        assert ours.shape == eager.shape
        assert (ours - eager).norm() / eager.norm() <= limit


@pytest.mark.parametrize('name', EXPORTS)
def test_a_graph_for_one_length_gives_the_logits_of_that_for_any(cache, name):
    network, act = small()
    made = engines.make(name, network, _tokenizer(), act, 'one-length')
    rows, generator = slice(20, 28), torch.Generator().manual_seed(2)
    prompts = {n: torch.randint(0, 300, (1, n), generator=generator) for n in range(28, 34)}
    with torch.inference_mode():
        before = {n: made(ids, rows, act.vocabulary) for n, ids in prompts.items()}
        for n, ids in prompts.items():
            made.prepare(n)
            assert n in made._of_length and len(made._of_length) <= 4
            after = made(ids, rows, act.vocabulary)
            assert (after - before[n]).norm() <= export.LIMITS[name.removeprefix('openvino-')] * before[n].norm()
            assert torch.equal(made(ids, rows, act.vocabulary), after)
    kept = dict(made._of_length)
    made.prepare(33)  # is there
    made.prepare(65)  # is more than any prompt has, which a call says
    assert made._of_length == kept


def test_a_graph_for_one_length_that_computes_something_else_is_not_used(cache, caplog):
    network, act = small()
    made = engines.make('openvino-float32', network, _tokenizer(), act, 'one-length')
    other = engines.make('openvino-float32', small(n_kv_heads=1)[0], _tokenizer(), act, 'another')
    made._model = other._model
    ids, rows = act.prompts[0][:, :30], slice(20, 28)
    with torch.inference_mode():
        before = made(ids, rows, act.vocabulary)
        made.prepare(30)
        assert torch.equal(made(ids, rows, act.vocabulary), before)
    assert 'the graph for 30 tokens differs from that for any length' in caplog.text


@pytest.mark.parametrize(
    'options', [{'causal': True, 'qk_norm': 'layer'}, {'qkv_bias': True, 'qk_norm': 'rms'}], ids=str
)
def test_a_graph_computes_the_options_of_the_network_for_any_length(cache, options):
    network, act = small(**options)
    made = engines.make('openvino-float32', network, _tokenizer(), act, str(options))
    with torch.inference_mode():
        for length in (40, 33):
            ids, rows = act.prompts[0][:, :length], slice(length - 10, length - 2)
            expected = network(ids, rows, act.vocabulary)
            assert torch.allclose(made(ids, rows, act.vocabulary), expected, atol=1e-4)


@pytest.mark.parametrize('name', EXPORTS)
def test_act_on_an_engine(observation, cache, nano, name):
    fast = loading.load('random-nano', LoadOptions(threads=1))
    fast.use(name)
    prefix = Chunk(observation.positions + np.linspace(0, 0.1, 4)[:, None], np.full(4, 0.05), dt=0.2)
    for given in (None, prefix):
        ours, eager = fast.act(observation, given).chunk, nano.act(observation, given).chunk
        assert ours.frozen == eager.frozen
        assert np.abs(ours.confidence - eager.confidence).max() < 0.02
        if name == 'openvino-float32':
            assert np.array_equal(ours.positions, eager.positions)
    assert np.array_equal(ours.positions[:4], prefix.positions)


def test_a_result_outlives_the_next_call(nano, act, cache):
    made = engines.make('openvino-float32', nano.network, nano.image_tokenizer, act, nano.model_id)
    first = made(act.prompts[0], act.block, act.vocabulary)
    kept = first.clone()
    made(act.prompts[1], act.block, act.vocabulary)
    assert torch.equal(first, kept)


def test_what_a_graph_was_not_made_for_is_left_to_eager(nano, act, cache):
    made = engines.make('openvino-float32', nano.network, nano.image_tokenizer, act, nano.model_id)
    ids, everything = act.prompts[0], slice(0, nano.config.vocabulary.size)
    with torch.inference_mode():
        for rows, vocabulary in ((slice(3, 7), act.vocabulary), (act.block, everything)):
            assert torch.equal(made(ids, rows, vocabulary), nano.network(ids, rows, vocabulary))
        valid = torch.ones_like(ids, dtype=torch.bool)
        valid[:, :5] = False
        padded = made(ids, act.block, act.vocabulary, valid=valid)
        assert torch.equal(padded, nano.network(ids, act.block, act.vocabulary, valid=valid))


def test_the_check_is_kept_beside_the_graph_and_read_again(cache):
    network, act = small(n_kv_heads=1)
    for _ in range(2):  # the second one reads what the first one wrote
        made = engines.make('openvino-int8', network, _tokenizer(), act, 'small')
        report = json.loads(next(made.folder.glob('check-int8-*.json')).read_text())
        assert (made.folder / 'network-int8.bin').is_file()
        assert made.error == report['relative_error'] and 0 < made.error < export.LIMITS['int8']
        assert report['prompts'] == 4 and 0 <= report['equal_argmax'] <= 1
        assert made.folder.parent == cache and not list(made.folder.glob('tmp*'))
    (made.folder / 'network-int8.xml').write_text('<broken')
    again = engines.make('openvino-int8', network, _tokenizer(), act, 'small')
    with torch.inference_mode():
        assert torch.equal(
            again(act.prompts[0], act.block, act.vocabulary), made(act.prompts[0], act.block, act.vocabulary)
        )


def test_int8_rounds_every_linear_layer_of_the_blocks():
    network, act = small()
    model = export.to_openvino(network, act)
    assert export.quantize(model, network, act) == 2 * 7
    assert sum(op.get_type_name() == 'FakeQuantize' for op in model.get_ops()) == 2 * 2 * 7


def test_a_graph_that_computes_something_else_is_refused(tmp_path):
    network, act = small()

    def wrong(ids, rows):
        return network(ids, rows, act.vocabulary) + 1

    with pytest.raises(ValueError, match=r"differs from eager by .* take engine 'eager'"):
        export.check(wrong, 'float32', network, act, tmp_path / 'check.json')
    assert json.loads((tmp_path / 'check.json').read_text())['relative_error'] > export.LIMITS['float32']


def test_one_thread_keeps_gated_layers_out_of_a_node_that_divides_by_half_the_threads():
    network, act = small()
    model, threads = export.to_openvino(network, act), torch.get_num_threads()

    def inputs():
        return [n.get_input_size() for n in model.get_ordered_ops() if n.get_type_name() == 'Swish']

    try:
        torch.set_num_threads(2)
        plain = export.compile_for_cpu(model, 'float32')
        assert inputs() == [1, 1]  # layers of small()
        torch.set_num_threads(1)
        for _ in range(2):
            apart = export.compile_for_cpu(model, 'float32')
            assert inputs() == [2, 2]
    finally:
        torch.set_num_threads(threads)
    feeds = {0: act.prompts[0].numpy(), 1: export.rows_of(act.block).numpy()}
    ours, theirs = (next(iter(request.infer(feeds).values())) for request in (apart, plain))
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


def test_auto_is_for_who_chooses():
    network, act = small()
    with pytest.raises(ValueError, match="'auto' stands for several"):
        engines.make('auto', network, _tokenizer(), act, 'auto')


def test_measured_times_are_of_every_engine(nano, act):
    times = engines.measure({'eager': Engine(nano.network, nano.image_tokenizer)}, act, rounds=1)
    assert times.keys() == {'eager'} and times['eager'] > 0


def test_a_cache_folder_that_cannot_be_written_costs_nothing_else(monkeypatch, tmp_path):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    network, act = small()
    made = engines.make('openvino-float32', network, _tokenizer(), act, 'small')
    assert 0 < made.error < export.LIMITS['float32']


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'engine': 'warp-drive'}, r"engine must be one of \['auto', 'eager', .*got 'warp-drive'"),
        ({'engine': 'cuda-graph'}, "'cuda-graph' runs on cuda, not on cpu: there, take one of .*'eager'"),
        ({'engine': 'openvino-int8', 'dtype': 'bfloat16'}, 'takes a network in float32, not bfloat16'),
        ({'dtype': 'float16'}, 'on cpu takes a network in float32 or bfloat16, not float16'),
        ({'engine': 'auto', 'dtype': 'float16'}, 'on cpu takes a network in float32 or bfloat16, not float16'),
        ({'image_dtype': 'float16'}, 'image_dtype on cpu must be one of'),
    ],
)
def test_unsupported_pairs_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        loading.load('random-nano', LoadOptions(**arguments))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(engines.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match='pip install openvino'):
        engines.check('openvino-int8', 'cpu', 'float32')
    assert engines.auto_candidates('cpu', 'float32', 7e6) == ((), ())


@pytest.mark.skipif(torch.cuda.is_available(), reason='this machine has a GPU')
def test_cuda_graphs_without_a_gpu_are_an_error():
    from vla_model.engines.cuda_graph import CudaGraphs

    with pytest.raises(ValueError, match="needs a GPU that torch can use: take 'eager'"):
        CudaGraphs(small()[0], _tokenizer(), small()[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_cuda_graphs_give_the_logits_of_eager(observation):
    graphs = loading.load('random-nano', LoadOptions(device='cuda', engine='cuda-graph'))
    eager = loading.load('random-nano', LoadOptions(device='cuda'))
    assert graphs.engine.name == 'cuda-graph'
    for instruction in ('go', 'put the banana in the bowl', 'go'):
        o = replace(observation, instruction=instruction)
        ours, theirs = graphs.act(o).chunk, eager.act(o).chunk
        assert np.abs(ours.confidence - theirs.confidence).max() < 0.02
        again = graphs.act(o).chunk
        assert np.array_equal(ours.positions, again.positions)


def test_a_half_precision_image_encoder_agrees_on_most_codes(nano, observation):
    half = loading.load('random-nano', LoadOptions(threads=1))
    half.use('eager', 'bfloat16')
    codes, exact = half.view_ids(observation.images), nano.view_ids(observation.images)
    assert half.engine.encoder.encoder is not half.image_tokenizer.encoder
    assert 0.7 < (codes == exact).float().mean() < 1


@functools.cache
def _tokenizer():
    return loading.load('random-nano', LoadOptions(threads=1)).image_tokenizer
