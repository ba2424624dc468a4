"""Times the model against a baseline that computes like the public reference.

The baseline has the same weights, device and precision. It pads the prompt to its full length, adds a mask to the
scores of attention, and updates every position in every layer. It computes logits of the whole vocabulary at every
position, and builds prompts from Python lists. Contenders run in turns, so that other load hits all of them.
"""

import copy
import os
import platform
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from vla_model import decode
from vla_model.bench.parts import (
    Size,
    baseline_act,
    dying_engines,
    encoder_flops,
    forward_flops,
    matmul_peak,
    padded_mask,
    size_of,
    timed,
)
from vla_model.bench.reference import time_reference
from vla_model.config import ImageTokenizerConfig, NetworkConfig
from vla_model.engines import image as image_engine
from vla_model.engines.base import Act, Engine, ImageEncoder
from vla_model.engines.cache import versions
from vla_model.engines.image import DTYPES
from vla_model.engines.processor import cpu_name, has_amx
from vla_model.engines.select import auto_candidates, check, make
from vla_model.engines.trial import ENGINE, IMAGES, Candidate
from vla_model.image_tokenizer import ImageTokenizer
from vla_model.network import Network
from vla_model.tokens.prompt import PromptBuilder, Template
from vla_model.tokens.text_tokenizer import NANO_FILE, TextTokenizer
from vla_model.tokens.vocabulary import Vocabulary

M = TypeVar('M', bound=nn.Module)
Row = dict[str, float]
INSTRUCTION = 'pick up the black bowl and place it on the plate'
BASE_IMAGES = 'eager float32, usual layout'  # torch's own; the paths have channels last
PLAN_TOKENS, PLAN_STEPS, IMAGINE_STEPS = 64, 16, 18


def bench_model(
    size: str = 'nano',
    device: str = 'cpu',
    dtype: str = 'auto',
    engines: tuple[str, ...] = ('auto',),
    layers: int = 0,
    seconds: float = 20.0,
    threads: int = 0,
    image_engines: tuple[str, ...] = tuple(image_engine.SUPPORTED),
    reference: tuple[Path, str] | None = None,
) -> dict[str, Any]:
    """Time all contenders with random weights for about `seconds`, at least three rounds; return times in ms.

    layers: of the network, 0 for all. image_engines: those that cannot run here are left out. reference: a checkout of
    the public MM-ACT code, and a Python that can run it, to time it, too. Raises ValueError for an option that this
    machine does not support.
    """
    shape, target = size_of(size), torch.device(device)
    if target.type == 'cuda' and not torch.cuda.is_available():
        raise ValueError(f"device is {device!r}, but torch finds no usable GPU: use 'cpu', or mend the GPU driver")
    if not 0 <= layers <= shape.network.n_layers:
        raise ValueError(f'layers must be 0 to {shape.network.n_layers} for {size}, got {layers}')
    if dtype not in ('auto', *DTYPES):
        raise ValueError(f"dtype must be 'auto' or one of {list(DTYPES)}, got {dtype!r}")
    precision = dtype if dtype != 'auto' else 'bfloat16' if target.type == 'cuda' else 'float32'
    for name in engines:
        check(name, target.type, precision)
    if unknown := sorted(set(image_engines) - set(image_engine.SUPPORTED)):
        raise ValueError(f'image_engine must be of {list(image_engine.SUPPORTED)}, got {unknown[0]!r}')
    torch.set_num_threads(threads or max(1, len(os.sched_getaffinity(0)) - 1))
    config = replace(shape.network, n_layers=layers or shape.network.n_layers)
    network = _random(Network, config, target, DTYPES[precision])
    tokenizer = _random(ImageTokenizer, shape.image_tokenizer, target, torch.float32)

    builder = PromptBuilder(TextTokenizer.load(NANO_FILE), shape.vocabulary, shape.layout, target)
    template, v = builder.action(INSTRUCTION), shape.vocabulary
    request = Act.of(template, v, builder.max_tokens)
    networks = {precision: network}
    first, _ = auto_candidates(target.type, precision, sum(p.numel() for p in network.parameters()))
    engines = tuple(dict.fromkeys(n for name in engines for n in (first if name == 'auto' else (name,))))
    dying = dying_engines(engines, image_engines, device, precision)
    if named := [why for candidate, why in dying.items() if candidate.part == ENGINE]:
        raise ValueError('; '.join(named))
    made = [make(name, network, tokenizer, request, f'bench-{size}-{config.n_layers}') for name in engines]
    exports = {engine.name: engine for engine in made if engine.name != 'eager'}
    if any(_precision(name, precision) != precision for name in exports):  # they, too, need a baseline
        networks['bfloat16'] = copy.deepcopy(network).bfloat16()
    built: dict[str, Engine] = {
        f'eager {p}': Engine(n, copy.deepcopy(tokenizer)) for p, n in networks.items()
    } | exports

    side, bins_ids = shape.image_tokenizer.resolution, slice(v.bins_offset, v.size)
    pictures = [image_engine.picture(side, i).to(target) for i in range(8)]
    plain = copy.deepcopy(tokenizer).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    state = torch.full((shape.dims[0],), v.bins_offset, device=target)
    tokens, rows = len(template.ids), template.block.stop - template.block.start
    padded = builder.max_tokens

    def views(encode: Callable[[Tensor], Tensor], i: int) -> Tensor:
        pair = (pictures[(2 * i + k) % 8][None] for k in range(2))
        return torch.cat([encode(p) for p in pair]) + v.image_offset

    def act(engine: Engine, codes: Tensor) -> Tensor:
        ids = template.fill(state, codes)
        return decode.run(decode.action(engine, v, ids, template.block))[0]

    codes = [views(plain.encode, i) for i in range(4)]
    work = dict.fromkeys(built, forward_flops(config, tokens, rows, v.bins))
    forwards: dict[str, Callable[[int], Any]] = {}
    acts: dict[str, Callable[[int], Any]] = {}
    for p, n in networks.items():
        name = f'baseline {p}'
        work[name] = forward_flops(config, padded, padded, v.size)
        forwards[name] = lambda i, n=n: baseline_act(n, v, template, state, codes[i % 4])  # type: ignore[misc]
        acts[name] = lambda i, n=n: baseline_act(n, v, template, state, views(plain.encode, i))  # type: ignore[misc]
    for name, engine in built.items():
        forwards[name] = lambda i, e=engine: act(e, codes[i % 4])  # type: ignore[misc]
        acts[name] = lambda i, e=engine: act(e, views(e.encode, i))  # type: ignore[misc]

    with torch.inference_mode():
        forward_rows = _rounds(forwards, seconds * 0.5, target)
        act_rows = _rounds(acts, seconds * 0.25, target)
        image_rows, agreement, left_out = _image_rows(image_engines, plain, pictures, target, seconds * 0.15, dying)
        decoders = _decoder_rows('eager', built[f'eager {precision}'], v, builder, codes[0], target)
        for name, engine in exports.items():
            if engine.fixed_shapes:
                decoders |= _decoder_rows(name, engine, v, builder, codes[0], target)
    precisions = {name: _precision(name, precision) for name in forwards}
    peaks = {p: matmul_peak(target, DTYPES[p]) for p in networks}
    for name, row in forward_rows.items():
        rate = work[name] / (row['p50'] * 1e-3)
        row |= {'gflop': work[name] / 1e9, 'gflops': rate / 1e9, 'share_of_peak': rate / peaks[precisions[name]]}
        row |= {'ms_per_tflop': row['p50'] / work[name] * 1e12}
        row |= {'speedup': forward_rows[f'baseline {precisions[name]}']['p50'] / row['p50']}
        row |= {'error': built[name].error if name in built else 0.0}
    for name, row in act_rows.items():
        row |= {'speedup': act_rows[f'baseline {precisions[name]}']['p50'] / row['p50']}
    result = {
        'machine': machine(target),
        'size': size,
        'precision': precision,
        'layers': [config.n_layers, shape.network.n_layers],
        'parameters': sum(p.numel() for p in network.parameters()),
        'tokens': [tokens, padded, rows],
        'vocabulary': [bins_ids.stop - bins_ids.start, v.size],
        'forward': forward_rows,
        'act': act_rows,
        'images': image_rows,
        'image_agreement': agreement,
        'image_left_out': left_out,
        'image_gflop': encoder_flops(shape.image_tokenizer) / 1e9,
        'decoders': decoders,
        'peak_gflops': {name: peak / 1e9 for name, peak in peaks.items()},
        'peak_memory_gib': _peak_memory(target),
    }
    if reference is not None:
        lengths = (builder.plan(INSTRUCTION, PLAN_TOKENS), builder.image(INSTRUCTION))
        result['reference'] = _reference(reference, shape, config, target, precision, padded, lengths)
    if config.n_layers < shape.network.n_layers:
        result['extrapolated'] = _extrapolate(network, forward_rows, template, shape, target)
    return result


def _reference(
    where: tuple[Path, str], shape: Size, config: NetworkConfig, device: torch.device, precision: str, padded: int,
    prompts: tuple[Template, Template],
) -> Row:  # fmt: skip
    """Return times [ms] of the public code, in the same run on the same machine."""
    plan, image = prompts
    spec = {
        'device': str(device), 'dtype': precision, 'network': asdict(config), 'bins': shape.vocabulary.bins,
        'length': padded, 'rows': shape.dims[1] * shape.horizon, 'mask': shape.vocabulary.mask,
        'plan_length': len(plan.ids), 'image_length': image.left + len(image.ids) + image.right,
        'images': shape.image_tokenizer == ImageTokenizerConfig.released(), 'runs': 5,
    }  # fmt: skip
    return time_reference(*where, spec)


@torch.inference_mode()
def _extrapolate(network: Network, rows: dict[str, Row], template: Template, shape: Size, device: torch.device) -> Row:
    """Return the time [ms] of the forward with all layers: the measured one, plus one layer's for each left out."""
    weight = next(network.parameters())
    tokens, padded = len(template.ids), template.left + len(template.ids) + template.right
    short, long = (torch.randn(1, n, shape.network.d_model, device=device).to(weight.dtype) for n in (tokens, padded))
    valid = torch.ones(1, padded, dtype=torch.bool, device=device)
    valid[:, : template.left] = False
    bias, rope = padded_mask(valid, weight.dtype), network._rope_for(padded, device)
    short_rope = (rope[0][:tokens], rope[1][:tokens])
    block: Any = network.model['transformer'].blocks[0]  # type: ignore[union-attr, index]
    layer = _rounds(
        {
            'baseline': lambda i: block(long, rope, slice(None), bias),
            'eager': lambda i: block(short, short_rope, slice(None), None),
        },
        0.0,
        device,
    )
    left = shape.network.n_layers - network.config.n_layers
    precision = str(weight.dtype).removeprefix('torch.')
    full = {name: rows[f'{name} {precision}']['p50'] + left * layer[name]['p50'] for name in layer}
    return full | {'speedup': full['baseline'] / full['eager']}


def _rounds(
    contenders: dict[str, Callable[[int], Any]], seconds: float, device: torch.device, least: int = 3
) -> dict[str, Row]:
    """Run contenders in turns for about `seconds`; return percentiles of their times [ms], without the first round."""
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    end, i = time.perf_counter() + seconds, 0
    while i <= least or time.perf_counter() < end:
        for name, run in contenders.items():
            duration = timed(lambda run=run, i=i: run(i), device)  # type: ignore[misc]
            if i:
                samples[name].append(duration * 1e3)
        i += 1
    return {
        name: {f'p{p}': float(np.percentile(s, p)) for p in (50, 95, 99)} | {'runs': len(s)}
        for name, s in samples.items()
    }


def _image_rows(
    names: tuple[str, ...],
    plain: ImageTokenizer,
    pictures: list[Tensor],
    device: torch.device,
    seconds: float,
    dying: Mapping[Candidate, str],
) -> tuple[dict[str, Row], dict[str, Row], dict[str, str]]:
    """Return, per encoder, time [ms] and shares of codes and bits equal to float32; and why encoders are left out."""
    paths: dict[str, ImageEncoder] = {}
    left_out = {}
    for name in names:
        for dtype in image_engine.SUPPORTED[name].get(device.type, ()):
            if (why := dying.get(Candidate(IMAGES, name, dtype))) is not None:
                left_out[f'{name} {dtype}'] = why
                continue
            try:
                paths[f'{name} {dtype}'] = image_engine.make(name, copy.deepcopy(plain), dtype)
            except ValueError as error:
                left_out[f'{name} {dtype}'] = str(error)
    contenders: dict[str, Callable[[int], Any]] = {BASE_IMAGES: lambda i: plain.encode(pictures[i % 8][None])}
    for name, encode in paths.items():
        contenders[name] = lambda i, e=encode: e(pictures[i % 8][None])  # type: ignore[misc]
    rows = _rounds(contenders, seconds, device)
    agreement = {}
    powers = plain.quantize.power_vals
    exact = torch.cat([plain.encode(p[None]) for p in pictures])
    for name, encode in paths.items():
        codes = torch.cat([encode(p[None]) for p in pictures])
        bits = ((codes[..., None] ^ exact[..., None]) & powers) == 0
        agreement[name] = {'codes': float((codes == exact).float().mean()), 'bits': float(bits.float().mean())}
    for row in rows.values():
        row['speedup'] = rows[BASE_IMAGES]['p50'] / row['p50']
    return rows, agreement, left_out


def _decoder_rows(
    who: str, network: Engine, v: Vocabulary, builder: PromptBuilder, views: Tensor, device: torch.device
) -> dict[str, Row]:
    """Return times [ms] of plan and imagine: the first forward, a later one, and all; exact and with the prefix cache.

    Engines of graphs capture before the timed forwards.
    """
    plan, image = builder.plan(INSTRUCTION, PLAN_TOKENS), builder.image(INSTRUCTION)
    rows = {}
    fixed = network.fixed_shapes

    def start(name: str, steps: int, cached: bool) -> decode.Job:
        if name == 'plan':
            ids, block = plan.fill(None, views), plan.block
            return decode.Job(decode.text(network, v, ids, block, steps, stop=False, cached=cached, fixed=fixed))
        return decode.Job(decode.image(network, v, image.fill(None, views), image.block, steps, cached=cached))

    for cached in (False, True):
        for name, steps in (('plan', PLAN_STEPS), ('imagine', IMAGINE_STEPS)):
            if fixed:
                start(name, 2, cached).run()
            job = start(name, steps, cached)
            times = [timed(job.step, device) * 1e3 for _ in range(min(steps, 4))]
            later = float(np.median(times[1:]))
            total = times[0] + later * (steps - 1)
            label = f'{who}: {name}, prefix cache' if cached else f'{who}: {name}'
            rows[label] = {'first': times[0], 'later': later, 'total': total, 'steps': steps}
    return rows


def _random(kind: Callable[[Any], M], config: Any, device: torch.device, dtype: torch.dtype) -> M:
    """Return a module with random weights that keep activations finite; large matrices repeat one random part."""
    with torch.device('meta'):
        module = kind(config)
    module = module.to(dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    stretch = torch.randn(2**20 + 7, generator=generator, device=device)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if p.ndim == 1:
                p.fill_(float(name.endswith('weight')))
                continue
            scale = 0.02 if name.endswith('wte.weight') else p[0].numel() ** -0.5
            stretch = stretch.roll(12345)  # no two matrices are equal, or a compiler would compute them once
            flat = p.view(-1)
            for start in range(0, len(flat), len(stretch)):
                part = flat[start : start + len(stretch)]
                part.copy_(stretch[: len(part)] * scale)
    if isinstance(module, ImageTokenizer):  # its tables are no parameters
        with torch.device(device):
            module.quantize = ImageTokenizer(config).quantize
    return module.eval()


def _precision(contender: str, network: str) -> str:
    """Return the precision of a contender; of int8, the precision of its other layers, by which it is judged."""
    half, single = contender.endswith(('bfloat16', 'int8')), contender.endswith('float32')
    return 'bfloat16' if half else 'float32' if single else network


def _peak_memory(device: torch.device) -> float:
    """Return the peak memory so far [GiB]: allocated on the GPU, or resident in this process."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def machine(device: torch.device) -> dict[str, str]:
    """Return processor, GPU and versions of this machine."""
    facts = {
        'processor': cpu_name(),
        'cores': str(len(os.sched_getaffinity(0))),
        'threads': str(torch.get_num_threads()),
        'Python': platform.python_version(),
        'libraries': versions(),
        'AMX': 'yes' if has_amx() else 'no',
    }
    if device.type == 'cuda':
        facts['GPU'] = torch.cuda.get_device_name(device)
    return facts
