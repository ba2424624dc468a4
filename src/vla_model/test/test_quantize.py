"""Quantized checkpoints: what is stored, what is computed with it, what is refused."""

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vla_model.bench.engines import bench_engines, report
from vla_model.checkpoints import memory, nano
from vla_model.config import NetworkConfig
from vla_model.families.mmact import loading
from vla_model.families.mmact.policy import MaskedPolicy
from vla_model.image_tokenizer import ImageTokenizer
from vla_model.loading import LoadOptions
from vla_model.network import Block, Network, rope_table
from vla_model.quantization import gate as quantize_gate
from vla_model.quantization.gate import Calibration, Check
from vla_model.quantization.mixed import choose, sensitivity
from vla_model.quantization.quantize import BLOCKS, LINEARS, quantize, stored_layers
from vla_model.quantization.smooth import smooth, watch
from vla_model.quantized import QuantizedLinear, group_for, int8_matmul, quantized_like, round_weight, widen
from vla_model.tokens.text_tokenizer import NANO_FILE, TextTokenizer

SCHEMES = ('int8', 'fp8', 'int4', 'int8-weight')


def toy(layers=2, width=64, hidden=96):
    """A small policy with random weights."""
    text = TextTokenizer.load(NANO_FILE)
    base = nano.config(text.size)
    shape = NetworkConfig(width, layers, 2, 2, hidden, 10000.0, 1e-5, base.vocabulary.size)
    image = replace(
        base.image_tokenizer, resolution=32, channels=8, groups=4, encoder_mult=(1, 2), decoder_mult=(1, 2),
        encoder_blocks=(0, 1), decoder_blocks=(0, 1),
    )  # fmt: skip
    robot = replace(base.robot, max_prompt_tokens=700)
    config = replace(base, name='toy', network=shape, image_tokenizer=image, robot=robot)
    network, tokenizer = Network(shape), ImageTokenizer(image)
    nano.init_weights(network, 1)
    nano.init_weights(tokenizer, 1)
    return MaskedPolicy(config, text, network, tokenizer, 'toy-0')


def calibration_of(made, prompts=6, checks=5):
    generator = torch.Generator().manual_seed(2)
    v = made.config.vocabulary
    block = slice(30, 30 + made.config.robot.horizon * made.config.robot.action_dim)

    def ids():
        found = torch.randint(0, v.size, (1, block.stop + 2), generator=generator)
        found[:, block] = v.mask
        return found

    def check():
        return Check(ids(), block, torch.randint(0, v.bins, (block.stop - block.start,), generator=generator))

    pictures = torch.rand(4, 3, 32, 32, generator=generator) * 2 - 1
    return Calibration(
        tuple(ids() for _ in range(prompts)),
        (check(), check()),
        tuple(check() for _ in range(checks)),
        pictures,
        'noise',
    )


@pytest.fixture(scope='module')
def original(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp('original') / 'toy'
    loading.save(toy(), folder)
    return folder


@pytest.fixture(scope='module')
def data(original):
    return calibration_of(loading.load(original, LoadOptions(threads=1)))


@pytest.fixture(scope='module')
def made(original, data, tmp_path_factory):
    """Scheme -> (folder, result)."""
    place = tmp_path_factory.mktemp('quantized')
    layers = {
        f'{BLOCKS}.{i}.{n}': 'int8' if n == 'ff_out' else 'int4' for i in range(2) for n in LINEARS if n != 'v_proj'
    }
    return {
        scheme: (
            place / scheme,
            quantize(
                original, place / scheme, data, scheme, keep_failed=True, layers=layers if scheme == 'mixed' else None
            ),
        )
        for scheme in ('int8', 'fp8', 'int4', 'mixed')
    }


# ---- rounding


@given(st.integers(1, 9), st.integers(1, 3), st.floats(1e-4, 1e4), st.integers(0, 1000))
@settings(max_examples=40)
def test_what_is_stored_is_near_what_was_there(n, groups, size, seed):
    w = torch.randn(n, 32 * groups, generator=torch.Generator().manual_seed(seed)) * size
    largest = w.abs().amax(1, keepdim=True)
    for scheme, step in (('int8', 0.5 / 127), ('int8-weight', 0.5 / 127), ('fp8', 2**-4)):
        q, scale = round_weight(w, scheme, 0)
        limit = step * (largest if scheme != 'fp8' else w.abs() + largest * 2**-14)
        assert ((widen(q, scale, scheme) - w).abs() <= limit * 1.001).all()
    q, scale = round_weight(w, 'int4', 32)
    assert q.shape == (n, 16 * groups) and scale.shape == (n, groups) and scale.dtype == torch.bfloat16
    error = (widen(q, scale, 'int4') - w).unflatten(1, (groups, 32)).square().sum(2)
    plain = w.unflatten(1, (groups, 32))
    step = plain.abs().amax(2) / 7  # clipped only where that is better than not
    assert (error <= 32 * (step * 0.51).square() + 1e-12).all()


def test_the_low_nibble_is_the_even_input():
    weight = torch.tensor([[7.0, -7.0] + [0.0] * 30])
    q, scale = round_weight(weight, 'int4', 32)
    assert q[0, 0] == (15 | 1 << 4) and q[0, 1] == 0x88
    assert torch.allclose(widen(q, scale, 'int4')[0, :2], weight[0, :2], rtol=0.01)


def test_zero_weights_stay_zero_and_finite():
    for scheme in SCHEMES:
        q, scale = round_weight(torch.zeros(3, 64), scheme, 32)
        assert (widen(q, scale, scheme) == 0).all() and scale.isfinite().all()


def test_integer_matmuls_are_exact():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-127, 128, (m, 320), dtype=torch.int8, generator=generator) for m in (5, 9))
    assert torch.equal(int8_matmul(a, b).long(), a.long() @ b.long().t())


@pytest.mark.parametrize('scheme', SCHEMES)
@pytest.mark.parametrize('activations', ['token', 'tensor'])
def test_a_layer_computes_with_rounded_numbers(scheme, activations):
    generator = torch.Generator().manual_seed(1)
    linear = torch.nn.Linear(64, 24, bias=False)
    layer = quantized_like(linear, 'x', scheme, 32, activations)
    layer.weight, layer.scale = round_weight(linear.weight.detach(), scheme, 32)
    x = torch.randn(3, 5, 64, generator=generator)
    if scheme == 'int8':
        layer.input_scale.fill_(x.abs().max() / 127)
    wanted, got = linear(x), layer(x)
    assert got.shape == wanted.shape
    assert (got - wanted).norm() / wanted.norm() < {'int8': 0.02, 'fp8': 0.06, 'int4': 0.15, 'int8-weight': 0.01}[
        scheme
    ]
    assert torch.allclose(layer(x, slice(3, 11)), got[..., 3:11], atol=1e-6)
    if scheme == 'int8':  # a fixed scale clips, one per token does not
        clipped = (layer(10 * x) - 10 * wanted).norm() / (10 * wanted).norm()
        assert (clipped > 0.3) == (activations == 'tensor')


def test_a_group_divides_the_inputs():
    assert group_for({4096, 12288}) == 128 and group_for({192, 576}) == 64
    with pytest.raises(ValueError, match='multiple of 32'):
        group_for({40})


# ---- smoothing


@pytest.mark.parametrize('kv_heads', [1, 2])
def test_smoothing_changes_no_output_and_makes_rounding_better(kv_heads):
    torch.manual_seed(3)
    block = Block(NetworkConfig(64, 1, 2, kv_heads, 96, 10000.0, 1e-5, 300)).requires_grad_(False)
    block.attn_norm.weight[5], block.ff_norm.weight[7] = 60.0, 40.0  # inputs that are large, as trained networks have
    hidden = [torch.randn(1, 12, 64) for _ in range(4)]
    entry = memory.scheme_config(toy().config, 'int8').quantization
    with torch.inference_mode():
        before, entered = watch(block, hidden, lambda n: rope_table(n, 32, 10000.0, torch.device('cpu')))
        largest = {n: float(s.largest.max()) for n, s in entered.items()}
        smooth(block, entered, dict.fromkeys(LINEARS, 'int8'), entry)
        after, again = watch(block, hidden, lambda n: rope_table(n, 32, 10000.0, torch.device('cpu')))
    for a, b in zip(before, after, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)
    for name, seen in again.items():
        assert torch.allclose(seen.largest, entered[name].largest, rtol=1e-3)  # what was said would enter
    assert entered['q_proj'].largest.max() < largest['q_proj'] / 2


# ---- checkpoints


@pytest.mark.parametrize('scheme', ['int8', 'fp8', 'int4', 'mixed'])
def test_a_quantized_folder_is_loaded_alone_and_gives_what_its_gate_measured(original, made, data, scheme):
    folder, result = made[scheme]
    plain, ours = loading.load(original, LoadOptions(threads=1)), loading.load(folder, LoadOptions(threads=1))
    v = ours.config.vocabulary
    cosines = []
    with torch.inference_mode():
        for c in data.checks:
            a, b = (p.network(c.ids, c.block, slice(v.bins_offset, v.size)) for p in (plain, ours))
            cosines.append(torch.nn.functional.cosine_similarity(a, b, dim=-1).mean())
    assert float(torch.stack(cosines).mean()) == pytest.approx(result.gate['quantized']['logit_cosine'], abs=2e-4)
    q = ours.config.quantization
    assert q.made_from == plain.model_id and q.gate == json.loads(json.dumps(result.gate))
    assert ours.act(ours.example()).chunk.positions.shape == (8, 7)
    size = sum(p.stat().st_size for p in folder.glob('*.safetensors'))
    assert size < 0.45 * sum(p.stat().st_size for p in original.glob('*.safetensors'))
    kept = {n for n in ours.network.state_dict() if n.endswith('v_proj.weight')}
    if scheme == 'mixed':
        assert all(ours.network.state_dict()[n].dtype == torch.float32 for n in kept)


def test_the_documented_tensors_are_in_the_files(made):
    layer = f'{BLOCKS}.1.up_proj'
    wanted = {
        'int8': {'weight': (torch.int8, (96, 64)), 'scale': (torch.float32, (96,)), 'input_scale': (torch.float32, ())},
        'fp8': {'weight': (torch.float8_e4m3fn, (96, 64)), 'scale': (torch.float32, (96,))},
        'int4': {'weight': (torch.uint8, (96, 32)), 'scale': (torch.bfloat16, (96, 2))},
    }
    for scheme, tensors in wanted.items():
        with safe_open(made[scheme][0] / 'model.safetensors', framework='pt') as file:
            found = {n.rpartition('.')[2]: file.get_tensor(n) for n in file.keys() if n.startswith(layer)}  # noqa: SIM118
        assert {n: (t.dtype, tuple(t.shape)) for n, t in found.items()} == tensors


def test_what_was_measured_is_no_part_of_the_name(made, tmp_path):
    folder = shutil.copytree(made['int8'][0], tmp_path / 'copy')
    before = loading.load(folder, LoadOptions(threads=1)).model_id
    content = json.loads((folder / 'config.json').read_text())
    content['quantization']['gate'] = {}
    (folder / 'config.json').write_text(json.dumps(content))
    assert loading.load(folder, LoadOptions(threads=1)).model_id == before


def test_a_scheme_that_fails_its_gate_is_not_kept(original, data, tmp_path, monkeypatch):
    monkeypatch.setitem(quantize_gate.THRESHOLDS, 'logit_cosine', (0.9999999, True))
    result = quantize(original, tmp_path / 'out', data, 'int4')
    assert result.folder is None and not list(tmp_path.iterdir())
    assert any(text.startswith('logit_cosine is 0.9') for text in result.failed)
    assert quantize(original, tmp_path / 'out', data, 'int4', keep_failed=True).folder == tmp_path / 'out'


def test_what_cannot_be_quantized_is_reported(original, made, data, tmp_path):
    with pytest.raises(ValueError, match='is quantized already'):
        quantize(made['int8'][0], tmp_path / 'a', data, 'int8')
    with pytest.raises(ValueError, match='exists already'):
        quantize(original, made['int8'][0], data, 'int8')
    with pytest.raises(ValueError, match='scheme must be one of'):
        quantize(original, tmp_path / 'a', data, 'int3')
    with pytest.raises(ValueError, match="need scheme 'mixed'"):
        quantize(original, tmp_path / 'a', data, 'mixed')
    with pytest.raises(ValueError, match='copy the folder'):
        loading.save(loading.load(made['int8'][0], LoadOptions(threads=1)), tmp_path / 'a')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda q: q.update(activations='row'), 'quantization.activations must be one of'),
        (lambda q: q['layers'].update({f'{BLOCKS}.0.q_proj': 'int2'}), 'q_proj must be one of'),
        (lambda q: q['layers'].update({f'{BLOCKS}.9.q_proj': 'int8'}), 'the model has no layer'),
        (lambda q: q['layers'].pop(f'{BLOCKS}.0.q_proj'), 'tensors .* unexpected'),
        (lambda q: q.pop('group'), 'field quantization.group is missing'),
        (lambda q: q['layers'].update({'encoder.norm_out': 'int8-weight'}), 'cannot be int8-weight'),
    ],
)
def test_a_config_that_does_not_fit_is_refused(made, tmp_path, change, message):
    folder = shutil.copytree(made['int8'][0], tmp_path / 'copy')
    content = json.loads((folder / 'config.json').read_text())
    change(content['quantization'])
    (folder / 'config.json').write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        loading.load(folder, LoadOptions(threads=1))


def test_a_float8_that_is_no_number_is_found(made, tmp_path):
    folder = shutil.copytree(made['fp8'][0], tmp_path / 'copy')
    tensors = load_file(folder / 'model.safetensors')
    name = f'{BLOCKS}.0.q_proj.weight'
    tensors[name].view(torch.uint8)[0, 0] = 0x7F
    save_file(tensors, folder / 'model.safetensors')
    with pytest.raises(ValueError, match=r'q_proj\.weight is not finite'):
        loading.load(folder, LoadOptions(threads=1))


# ---- mixed


def test_sensitivity_reports_a_fragile_layer_and_choose_keeps_to_the_bits(original, data):
    found = sensitivity(original, data)
    sizes, group = stored_layers(original)
    assert group == 32 and set(found) == {(n, s) for n in sizes for s in ('int4', 'int8')}
    assert sum(found[n, 'int4'] for n in sizes) > sum(found[n, 'int8'] for n in sizes) >= 0
    cost = {'int4': 4.5, 'int8': 8.0}
    previous = math.inf
    for bits in (4.5, 6.0, 10.0, 16.0):
        chosen = choose(found, sizes, group, bits)
        spent = sum(size * cost.get(chosen.get(n, ''), 16.0) for n, size in sizes.items())
        assert spent <= bits * sum(sizes.values())
        left = sum(found[n, s] for n, s in chosen.items())
        assert left <= previous
        previous = left
    with pytest.raises(ValueError, match=r'at least 4\.5'):
        choose(found, sizes, group, 4.4)


# ---- memory


def test_the_plan_is_what_is_loaded_and_stored(original, made):
    for folder in (original, *(f for f, _ in made.values())):
        loaded = loading.load(folder, LoadOptions(threads=1))
        needed = memory.plan(loaded.config, torch.float32, device='cpu')
        assert needed.weights == memory.size_of(loaded.network)
        assert needed.image_tokenizer == memory.size_of(loaded.image_tokenizer)
        files = sum(p.stat().st_size for p in folder.glob('*.safetensors'))
        assert memory.stored_size(loaded.config, torch.float32) == pytest.approx(files, rel=0.02)
        assert needed.total == sum(needed.parts().values())


def test_a_model_that_does_not_fit_is_refused_with_the_arithmetic(original, monkeypatch):
    monkeypatch.setattr(memory, 'available', lambda device: (2**20, 'this machine'))
    with pytest.raises(ValueError, match=r'weights .* \+ .* = .* GiB, this machine has 0.00 GiB free'):
        loading.load(original, LoadOptions(threads=1))


def test_int4_of_the_released_size_is_small_enough():
    config = memory.scheme_config(memory.released(), 'int4')
    assert memory.stored_size(config, torch.bfloat16) < 4.8e9
    table = memory.table(memory.released())
    assert '| on disk [GB] | 16.58 |' in table and 'Orin 64 GB' in table


STREAM = """
import sys
from pathlib import Path
import torch
import vla_model.quantization.quantize
from vla_model.quantization.quantize import quantize
from vla_model.quantization.gate import Calibration, Check

torch.set_num_threads(1)
vla_model.quantization.quantize.LEAST_SHARD = 1 << 20
ids, place = torch.arange(90)[None], Path(sys.argv[1])
check = Check(ids, slice(20, 84), torch.zeros(64, dtype=torch.int64))
data = Calibration((ids, ids), (), (check,), torch.zeros(1, 3, 32, 32), 'made up')

def memory(line):  # [bytes]
    return int(Path('/proc/self/status').read_text().split(line + ':')[1].split()[0]) * 1024

quantize(place / 'small', place / 'a', data, 'int4', keep_failed=True)  # what the libraries set up once
before = memory('VmRSS')
Path('/proc/self/clear_refs').write_text('5')
quantize(place / 'large', place / 'b', data, 'int4', keep_failed=True)
print((memory('VmHWM') - before) / max(p.stat().st_size for p in (place / 'large').glob('*.safetensors')))
"""


def test_quantizing_needs_less_than_one_shard_and_a_fifth(original, tmp_path):
    shutil.copytree(original, tmp_path / 'small')
    loading.save(toy(layers=16, width=256, hidden=512), tmp_path / 'large')
    run = subprocess.run([sys.executable, '-c', STREAM, str(tmp_path)], check=True, capture_output=True, text=True)
    assert 0.05 < float(run.stdout) < 1.2


# ---- engines


@pytest.mark.slow
@pytest.mark.native
def test_int8_layers_are_int8_in_openvino(made):
    pytest.importorskip('openvino')
    ours = loading.load(made['int8'][0], LoadOptions(threads=1))
    ours.use('openvino-float32')
    assert ours.engine.error < 0.1
    kinds = [n.get_type_name() for n in ours.engine._request.get_compiled_model().get_runtime_model().get_ops()]
    assert kinds
    assert sum(isinstance(m, QuantizedLinear) and m.scheme == 'int8' for m in ours.network.modules()) == 14


@pytest.mark.slow
@pytest.mark.native
def test_bench_engines_reports_how_far_each_is_from_float32(original, made):
    result = bench_engines([str(original), str(made['int8'][0])], engines=['eager'], seconds=0.0, threads=1)
    first, *others = result['rows'].values()
    assert first['equal'] == 1.0 and first['difference_mean'] == 0.0 and first['speedup'] == 1.0
    assert len(others) == 3 and any(r['difference_mean'] > 0 for r in others)
    text = report(result)
    assert 'ms/TFLOP' in text and 'int8 eager float32' in text
    with pytest.raises(ValueError, match='engine must be of'):
        bench_engines([str(original)], engines=['warp'])
