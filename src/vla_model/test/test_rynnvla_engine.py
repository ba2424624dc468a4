"""Engines of RynnVLA-002's continuous chunk."""

from dataclasses import replace

import pytest
import torch

from vla_model.config import NetworkConfig
from vla_model.engines import openvino_graph
from vla_model.families.rynnvla import engine as engines
from vla_model.families.rynnvla.action_head import ActionHead
from vla_model.loading import LoadOptions, load
from vla_model.network import Network

from .rynnvla_folder import LIBERO, write

pytestmark = pytest.mark.native


@pytest.fixture(scope='module')
def eager():
    torch.manual_seed(0)
    shape = NetworkConfig(32, 2, 4, 2, 48, 1e4, 1e-5, 256, causal=True, qk_norm='layer')
    made = engines.Eager(Network(shape), ActionHead(32, 3, 4)).eval()
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return made


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp('folder'), LIBERO, 5, 7)


@torch.inference_mode()
@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_a_graph_of_openvino_gives_the_chunk_of_eager(eager, precision):
    openvino = pytest.importorskip('openvino')
    if precision == 'bfloat16' and 'BF16' not in openvino.Core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES'):
        pytest.skip('the processor has no bfloat16')
    made = engines.make(f'openvino-{precision}', eager)
    for length in (7, 50):
        ids = torch.randint(0, 256, (1, length))
        torch.testing.assert_close(made(ids), eager(ids), atol={'float32': 1e-4, 'bfloat16': 0.1}[precision], rtol=0)


@torch.inference_mode()
def test_a_graph_that_differs_from_eager_is_refused(eager, monkeypatch):
    pytest.importorskip('openvino')
    monkeypatch.setitem(engines.LIMITS, 'float32', -1)
    with pytest.raises(ValueError, match=r"differs from eager by .*: take 'eager'"):
        engines.make('openvino-float32', eager)
    monkeypatch.setattr(engines, 'LARGEST', 1e3)
    monkeypatch.setattr(openvino_graph, 'convert', None)
    with pytest.raises(ValueError, match='runs networks of up to'):
        engines.make('openvino-float32', eager)


@torch.inference_mode()
def test_each_length_of_a_prompt_is_captured_once_and_compared(eager):
    captured = []

    def capture(run):
        captured.append(1)
        return run

    made = engines.make('cuda-graph', eager, capture)
    for length in (9, 12, 9, 9):
        ids = torch.randint(0, 256, (1, length))
        torch.testing.assert_close(made(ids), eager(ids))
    assert len(captured) == 2
    with pytest.raises(ValueError, match="'cuda-graph' differs from eager"):
        engines.make('cuda-graph', eager, lambda run: lambda: run() + 1)(torch.zeros(1, 5, dtype=torch.long))


def test_captured_graphs_are_made_when_an_instruction_comes(folder):
    policy = load(folder, LoadOptions(threads=1))
    captured = []
    policy.engine = engines.make(
        'cuda-graph', engines.Eager(policy.network, policy.head), lambda run: captured.append(1) or run
    )
    policy.prepare('lift the cup')
    assert len(captured) == 2
    seen = replace(policy.example(), instruction='lift the cup')
    policy.act(seen)
    policy.act(replace(seen, before=seen.images))
    assert len(captured) == 2


@pytest.mark.parametrize(
    ('options', 'named'),
    [
        ({'engine': 'tensorrt'}, "engine 'tensorrt' does not run RynnVLA-002"),
        ({'engine': 'openvino-int8'}, "engine 'openvino-int8' does not run RynnVLA-002"),
        ({'engine': 'cuda-graph'}, 'runs on cuda, not on cpu'),
        ({'engine': 'openvino-float32', 'dtype': 'bfloat16'}, 'from weights in float32'),
        ({'kv_reuse': 2}, 'kv_reuse 1'),
        ({'device': 'tpu'}, "device must be 'cpu' or 'cuda'"),
        ({'dtype': 'int3'}, "dtype must be 'auto'"),
    ],
)
def test_what_does_not_run_this_family_is_refused_by_name(folder, options, named):
    with pytest.raises(ValueError, match=named):
        load(folder, LoadOptions(threads=1, **options))
