"""The benchmark runs, counts the work right, and its baseline computes what the model computes."""

import sys

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vla_model.bench import model as bench
from vla_model.bench.model_report import report
from vla_model.bench.parts import baseline_act, encoder_flops, forward_flops, padded_forward, size_of
from vla_model.bench.reference import time_reference
from vla_model.config import NetworkConfig
from vla_model.network import Network
from vla_model.tokens.prompt import PromptBuilder
from vla_model.tokens.text_tokenizer import NANO_FILE, TextTokenizer

pytestmark = pytest.mark.native


@pytest.mark.slow
def test_tiny_run_with_layers_left_out(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    result = bench.bench_model(
        'tiny', engines=('eager',), layers=1, seconds=0.0, threads=1, image_engines=('eager', 'openvino')
    )
    assert result['forward'].keys() == result['act'].keys() == {'baseline float32', 'eager float32'}
    assert result['layers'] == [1, 2] and result['extrapolated']['speedup'] > 0
    for row in (*result['forward'].values(), *result['act'].values(), *result['images'].values()):
        assert 0 < row['p50'] <= row['p95'] <= row['p99'] and row['runs'] >= 3
    assert result['image_agreement']['eager float32']['codes'] == 1
    assert {'eager float32', 'eager bfloat16', 'openvino float32'} <= result['images'].keys() | result[
        'image_left_out'
    ].keys()
    decoders = ('plan', 'imagine', 'plan, prefix cache', 'imagine, prefix cache')
    assert result['decoders'].keys() == {f'eager: {name}' for name in decoders}
    text = report(result)
    assert '1 of 2 layers' in text and 'extrapolated' in text and 'random weights' in text


@pytest.mark.slow
def test_an_engine_in_another_precision_gets_a_baseline_of_its_own(monkeypatch, tmp_path):
    pytest.importorskip('openvino')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    result = bench.bench_model(
        'tiny', engines=('openvino-float32', 'openvino-int8'), seconds=0.0, threads=1, image_engines=()
    )
    assert {'baseline float32', 'baseline bfloat16', 'openvino-float32', 'openvino-int8'} <= result['forward'].keys()
    assert result['forward']['openvino-int8']['error'] > result['forward']['openvino-float32']['error'] > 0
    assert 'extrapolated' not in result


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'size': 'huge'}, 'size must be one of'),
        ({'layers': 3}, 'layers must be 0 to 2 for tiny, got 3'),
        ({'dtype': 'int3'}, 'dtype must be'),
        ({'image_engines': ('warp',)}, "image_engine must be of .*got 'warp'"),
        ({'engines': ('cuda-graph',)}, 'runs on cuda, not on cpu'),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        bench.bench_model(**({'size': 'tiny'} | arguments))


@pytest.mark.parametrize('kv', [1, 4])
def test_the_formula_counts_what_torch_counts(kv):
    config = NetworkConfig(64, 3, 4, kv, 96, 10000.0, 1e-5, 300)
    network, ids = Network(config), torch.zeros(1, 40, dtype=torch.int64)
    for rows, vocabulary in ((slice(30, 38), slice(200, 300)), (slice(0, 40), slice(0, 300))):
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            network(ids, rows, vocabulary)
        counted = forward_flops(config, 40, rows.stop - rows.start, vocabulary.stop - vocabulary.start)
        assert counter.get_total_flops() == counted


def test_the_released_8b_needs_the_published_work():
    size = size_of('8b')
    assert forward_flops(size.network, 1024, 1024, 136704) == pytest.approx(16.0e12, rel=0.01)
    assert encoder_flops(size.image_tokenizer) == pytest.approx(0.36e12, rel=0.02)


def test_the_baseline_decodes_the_same_bins_from_the_same_logits():
    size = size_of('tiny')
    v = size.vocabulary
    network = bench._random(Network, size.network, torch.device('cpu'), torch.float32)
    builder = PromptBuilder(TextTokenizer.load(NANO_FILE), v, size.layout, torch.device('cpu'))
    template = builder.action(bench.INSTRUCTION)
    generator = torch.Generator().manual_seed(0)
    state = torch.randint(v.bins_offset, v.size, (8,), generator=generator)
    views = torch.randint(v.image_offset, v.image_offset + v.codes, (2, 16), generator=generator)
    ids = template.fill(state, views)
    with torch.inference_mode():
        short = network(ids, template.block, slice(v.bins_offset, v.size))[0]
        long = padded_forward(network, *template.padded(ids))[0]
        block = slice(template.left + template.block.start, template.left + template.block.stop)
        assert (long[block, v.bins_offset :] - short).abs().max() < 1e-4
        assert torch.equal(baseline_act(network, v, template, state, views), short.argmax(-1))
    assert len(short.argmax(-1).unique()) > 1


def test_a_checkout_that_is_none_or_does_not_run_is_named(tmp_path):
    with pytest.raises(ValueError, match=r'has no models/modeling_mmact.py: give a checkout'):
        time_reference(tmp_path, sys.executable, {})
    (tmp_path / 'models').mkdir()
    (tmp_path / 'models' / '__init__.py').write_text('import a_module_that_nobody_has')
    (tmp_path / 'models' / 'modeling_mmact.py').write_text('')
    with pytest.raises(ValueError, match=r"No module named 'a_module_that_nobody_has'.*--reference-python"):
        time_reference(tmp_path, sys.executable, {})
