"""ONNX graphs against torch, and all of the TensorRT path with ONNX Runtime in the place of TensorRT."""

import ctypes
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vla_model.config import Quantization
from vla_model.engines import cuda_graph as engine_cuda
from vla_model.engines import onnx_manifest, tensorrt_runtime
from vla_model.engines import tensorrt as engine_tensorrt
from vla_model.engines.base import Act
from vla_model.export import onnx_export, tensorrt_build, tensorrt_verify
from vla_model.families.mmact import loading
from vla_model.loading import LoadOptions
from vla_model.policy import IMAGE, PLAN, ImageOptions, PlanOptions
from vla_model.quantized import put_layers, round_weight
from vla_model.types import Observation

onnx, ort = pytest.importorskip('onnx'), pytest.importorskip('onnxruntime')
pytestmark = pytest.mark.native


@pytest.fixture
def nano():
    return loading.load('random-nano', LoadOptions(threads=1))


def observation(seed):
    rng = np.random.default_rng(seed)
    images = {name: rng.integers(0, 256, (128, 128, 3), dtype=np.uint8) for name in ('front', 'wrist')}
    joints = np.array([0.0, -0.78, 0.0, -2.35, 0.0, 1.57, 0.78])
    return Observation(0, images, joints, np.zeros(7), 0.04, 'put the banana in the red bowl')


def rounded(nano, scheme):
    """The policy with the linear layers of its blocks stored in a scheme."""
    network, group = nano.network, 32 if scheme == 'int4' else 0
    names = [n for n, m in network.named_modules() if isinstance(m, torch.nn.Linear) and '.blocks.' in n]
    weights = {n: network.get_submodule(n).weight.detach() for n in names}
    activations = 'tensor' if scheme == 'int8' else 'none'
    put_layers(network, Quantization(scheme, group, activations, dict.fromkeys(names, scheme), 'x', {}))
    for name in names:
        layer = network.get_submodule(name)
        for stored, value in zip((layer.weight, layer.scale), round_weight(weights[name], scheme, group), strict=True):
            stored.copy_(value)
        if scheme == 'int8':
            layer.input_scale.fill_(6 / 127)
    return nano


@pytest.mark.parametrize(('dtype', 'limit'), [('float32', 1e-5), ('float16', 5e-3), ('bfloat16', 1e-5)])
def test_graphs_compute_what_torch_does(nano, tmp_path, dtype, limit):
    manifest = onnx_export.export(nano, tmp_path, dtype, 'float32', plan_tokens=16)
    assert manifest['model'] == nano.model_id and not manifest['quantized']
    found = onnx_export.check(nano, tmp_path, prompts=1)
    assert found.keys() == {'act', 'plan', 'image', 'images'}
    for name in ('act', 'plan', 'image'):
        assert 0 < found[name]['relative error'] < limit
        assert found[name]['run as'] == ('float32' if dtype == 'bfloat16' else dtype)
    assert found['images']['equal tokens'] > 0.98


@pytest.mark.parametrize('scheme', ['int8', 'fp8', 'int4', 'int8-weight'])
def test_a_quantized_checkpoint_keeps_its_numbers_in_the_graph(nano, tmp_path, scheme):
    onnx_export.export(rounded(nano, scheme), tmp_path, 'float32', 'float32', plan_tokens=16)
    found = onnx_export.check(nano, tmp_path, prompts=1)
    assert found['act']['relative error'] < (1e-5 if scheme in ('int4', 'int8-weight') else 0.3)
    graph = onnx.load(tmp_path / 'act.onnx', load_external_data=False).graph
    kinds = [node.op_type for node in graph.node]
    weights = 6 * 7 if scheme != 'int8-weight' else 0
    # q, k and v share their input; so do gate and up. fp8 is calibrated here: q of the last layer saw the block alone.
    shared = {'int8': 6 * 4, 'fp8': 6 * 4 + 1}.get(scheme, 0)
    assert kinds.count('QuantizeLinear') == shared and kinds.count('DequantizeLinear') == weights + shared
    stored = {t.name: t for t in graph.initializer}['model.transformer.blocks.0.q_proj.weight']
    wanted = {'int8': 'INT8', 'fp8': 'FLOAT8E4M3FN', 'int4': 'INT4', 'int8-weight': 'FLOAT'}[scheme]
    assert onnx.TensorProto.DataType.Name(stored.data_type) == wanted


def test_a_bfloat16_graph_has_a_type_for_every_value(nano, tmp_path):
    onnx_export.export(nano, tmp_path, 'bfloat16', 'float16', plan_tokens=16)
    model = onnx.shape_inference.infer_shapes(
        onnx.load(tmp_path / 'act.onnx', load_external_data=False), check_type=True, strict_mode=True
    )
    kinds = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    products = [n.output[0] for n in model.graph.node if n.op_type in ('Gemm', 'MatMul', 'Softmax')]
    assert len(products) == 6 * 10 + 1 and {kinds[name] for name in products} == {onnx.TensorProto.BFLOAT16}


def test_what_is_missing_or_damaged_is_named(nano, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r'manifest.json is missing: run ./vla tensorrt export'):
        onnx_manifest.read_manifest(tmp_path)
    (tmp_path / 'manifest.json').write_text('{"kinds": 3}')
    with pytest.raises(ValueError, match='damaged or of another version'):
        onnx_manifest.read_manifest(tmp_path)
    with pytest.raises(ValueError, match=r"image_dtype of .*'bfloat16'"):
        onnx_export.export(nano, tmp_path, 'bfloat16', 'bfloat16')
    monkeypatch.setattr(onnx_export.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match=r'onnx is missing: pip install -r requirements/tensorrt.txt'):
        onnx_export.export(nano, tmp_path)


def test_without_tensorrt_the_error_reports_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'tensorrt', None)
    with pytest.raises(ValueError, match=r'TensorRT is not here .*pip install tensorrt-cu12'):
        tensorrt_runtime.library()
    monkeypatch.setitem(sys.modules, 'tensorrt', SimpleNamespace(__version__='8.6', Builder=object))
    with pytest.raises(ValueError, match=r'TensorRT 8.6 has no Builder.create_network: install TensorRT 10.3 or later'):
        tensorrt_runtime.library()


# ---- TensorRT's API, with ONNX Runtime behind it. Names and signatures are those of the bindings 10.3 to 11.4.


class Context:
    def __init__(self, engine):
        self.engine, self.shapes, self.addresses, self.memory = engine, {}, {}, None

    def set_device_memory(self, memory, size):
        self.memory = (memory, size)

    def set_input_shape(self, name, shape):
        profile = self.engine.profile.get(name)
        self.shapes[name] = shape
        return profile is None or profile[0] <= shape <= profile[1]

    def set_tensor_address(self, name, memory):
        self.addresses[name] = memory
        return name in self.engine.names

    def execute_async_v3(self, stream_handle):
        assert self.memory[1] >= 256 and stream_handle == 7
        kinds = {'tensor(int64)': np.int64, 'tensor(float)': np.float32}
        session = self.engine.session

        def at(value, shape):
            size = int(np.prod(shape)) * np.dtype(kinds[value.type]).itemsize
            raw = (ctypes.c_char * size).from_address(self.addresses[value.name])
            return np.frombuffer(raw, kinds[value.type]).reshape(shape)

        inputs = {v.name: at(v, self.shapes[v.name]) for v in session.get_inputs()}
        for value, result in zip(session.get_outputs(), session.run(None, inputs), strict=True):
            at(value, result.shape)[...] = result
        return True


class Engine:
    device_memory_size_v2 = 1000

    def __init__(self, graph, profile):
        self.session, self.profile = ort.InferenceSession(graph), profile
        self.names = [v.name for v in [*self.session.get_inputs(), *self.session.get_outputs()]]

    def create_execution_context(self, strategy):
        assert strategy == 'user'
        return Context(self)


class Config:
    builder_optimization_level = 0

    def set_memory_pool_limit(self, pool, pool_size):
        assert pool == 'workspace' and pool_size == 8 * 2**30

    def create_timing_cache(self, serialized_timing_cache):
        return SimpleNamespace(serialize=lambda: b'times')

    def set_timing_cache(self, cache, ignore_mismatch):
        self.cache = cache
        return True

    def get_timing_cache(self):
        return self.cache

    def add_optimization_profile(self, profile):
        self.profile = profile
        return 0


class Profile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, input, min, opt, max):
        assert min <= opt <= max
        self.shapes[input] = (list(min), list(max))


class Builder:
    built = 0

    def __init__(self, logger):
        pass

    def create_network(self, flags=0):
        assert flags == 2
        return SimpleNamespace()

    def create_builder_config(self):
        return Config()

    def create_optimization_profile(self):
        return Profile()

    def build_serialized_network(self, network, config):
        Builder.built += 1
        profile = getattr(config, 'profile', Profile()).shapes
        return json.dumps({'graph': network.file, 'profile': profile}).encode()


class Parser:
    num_errors = 0

    def __init__(self, network, logger):
        self.network = network

    def parse_from_file(self, model):
        self.network.file = model
        return True

    def get_error(self, index):
        raise AssertionError


class Runtime:
    def __init__(self, logger):
        pass

    def deserialize_cuda_engine(self, serialized_engine):
        plan = json.loads(serialized_engine)
        return Engine(plan['graph'], {k: tuple(map(tuple, v)) for k, v in plan['profile'].items()})


@pytest.fixture
def tensorrt(monkeypatch):
    class Logger:
        WARNING = 2

        def __init__(self, min_severity):
            pass

    fake = SimpleNamespace(
        __version__='11.4.0', Builder=Builder, OnnxParser=Parser, IBuilderConfig=Config, IOptimizationProfile=Profile,
        Runtime=Runtime, ICudaEngine=Engine, IExecutionContext=Context, Logger=Logger,
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED='user'),
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1),
        MemoryPoolType=SimpleNamespace(WORKSPACE='workspace'),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, 'tensorrt', fake)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'Some GPU')
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda: (8, 7))
    monkeypatch.setattr(torch.cuda, 'current_stream', lambda: SimpleNamespace(cuda_stream=7))
    monkeypatch.setattr(engine_cuda, 'Graphs', lambda device: lambda run: run)
    Builder.built = 0
    return fake


def test_export_build_verify_and_use(nano, tmp_path, tensorrt, monkeypatch):
    onnx_export.export(nano, tmp_path, 'float32', 'float32', plan_tokens=16)
    with pytest.raises(ValueError, match=r'were not verified: run ./vla tensorrt verify'):
        _engine(nano, tmp_path)
    assert all(seconds > 0 for seconds in tensorrt_build.build(tmp_path).values()) and Builder.built == 4
    assert set(tensorrt_build.build(tmp_path).values()) == {0.0} and Builder.built == 4
    place = tensorrt_runtime.built_in(tmp_path)
    assert place.name.startswith('Some-GPU-8.7-tensorrt-11.4.0-')

    exact = [nano.act(observation(i)).chunk.positions for i in range(2)]
    result = tensorrt_verify.verify(nano, tmp_path, [observation(i) for i in range(2)])
    assert result['equal_bins'] > 0.99 and result['image_codes_equal'] > 0.98 and result['observations'] == 2
    nano.engine = _engine(nano, tmp_path)
    assert all(np.abs(nano.act(observation(i)).chunk.positions - p).max() < 1e-2 for i, p in enumerate(exact))
    plain = loading.load('random-nano', LoadOptions(threads=1))
    ours, theirs = (x.start(PLAN, observation(0), PlanOptions(16, 4)).run() for x in (nano, plain))
    assert ours.text == theirs.text
    options = ImageOptions(3, cached=True)  # torch runs that
    ours, theirs = (x.start(IMAGE, observation(0), options).run() for x in (nano, plain))
    assert (ours.image == theirs.image).mean() > 0.98

    # Built for another TensorRT or from other graphs, it is not found.
    monkeypatch.setattr(tensorrt, '__version__', '11.5.0')
    with pytest.raises(ValueError, match='were not verified'):
        _engine(nano, tmp_path)


def test_engines_that_answer_something_else_are_never_used(nano, tmp_path, tensorrt, monkeypatch):
    onnx_export.export(nano, tmp_path, 'float32', 'float32', plan_tokens=16)
    tensorrt_build.build(tmp_path)
    monkeypatch.setattr(tensorrt_verify, '_answer', lambda p, o: (torch.ones(2, 64), np.full((8, 8), next(answers))))
    answers = iter((0.01, 0.05))
    with pytest.raises(ValueError, match=r'close_bins is 0.000, at least 0.97 is needed: they are not used'):
        tensorrt_verify.verify(nano, tmp_path, [observation(0)])
    with pytest.raises(ValueError, match='were not verified'):
        _engine(nano, tmp_path)
    with pytest.raises(ValueError, match='nothing to verify with'):
        tensorrt_verify.verify(nano, tmp_path, [])


def test_another_precision_than_that_of_the_graphs_is_named(nano, tmp_path, tensorrt):
    onnx_export.export(nano, tmp_path, 'float16', 'float16', plan_tokens=16)
    with pytest.raises(ValueError, match='are in float16, the network in float32: give dtype float16'):
        _engine(nano, tmp_path)


def _engine(nano, folder):
    act = Act.of(nano.prompts.action('put it there'), nano.config.vocabulary, nano.prompts.max_tokens)
    return engine_tensorrt.TensorRt(nano.network, nano.image_tokenizer, act, folder)
