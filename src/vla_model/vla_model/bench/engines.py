"""Times `act` on every engine that runs here, from two new images to set-points, and compares the set-points.

All contenders are loaded first and then run in turns, so that other load hits all of them. On a shared machine the
processor time is more reliable than the wall time.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from vla_model.bench.model import machine
from vla_model.bench.parts import encoder_flops, forward_flops, matmul_peak
from vla_model.checkpoints.memory import size_of
from vla_model.engines import image as image_engine
from vla_model.engines.select import NAMES, SUPPORTED
from vla_model.families.mmact.loading import LoadOptions, load
from vla_model.families.mmact.policy import MaskedPolicy
from vla_model.image_tokenizer import to_image
from vla_model.observation import state_of
from vla_model.tokens.prompt_texts import EXAMPLE
from vla_model.types import Observation

Row = dict[str, Any]


@dataclass(frozen=True)
class Contender:
    checkpoint: str  # folder or random-nano
    engine: str
    dtype: str
    image_engine: str
    image_dtype: str

    @property
    def name(self) -> str:
        return f'{Path(self.checkpoint).name} {self.engine} {self.dtype}, images {self.image_engine} {self.image_dtype}'


def contenders(checkpoints: Sequence[str], device: str, engines: Sequence[str]) -> list[Contender]:
    """Return the contenders. The first is the reference: the first checkpoint in float32 eager.

    Raises ValueError for an unknown engine.
    """
    if unknown := sorted(set(engines) - set(NAMES)):
        raise ValueError(f'engine must be of {list(NAMES)}, got {unknown[0]!r}')
    found = [Contender(checkpoints[0], 'eager', 'float32', 'eager', 'float32')]
    half = ('openvino', 'bfloat16') if device == 'cpu' else ('eager', 'float16')
    quarter = ('openvino', 'int8')
    for checkpoint in checkpoints:
        for engine in engines or SUPPORTED:
            for dtype in SUPPORTED.get(engine, {device: ('float32',)}).get(device, ()):
                if dtype == 'float16':  # as fast as bfloat16, with less range
                    continue
                exact = dtype == 'float32' and engine in ('eager', 'cuda-graph', 'openvino-float32')
                images = ('eager', 'float32') if exact else quarter if engine == 'openvino-int8' else half
                found.append(Contender(checkpoint, engine, dtype, *images))
    return list(dict.fromkeys(found))


def bench_engines(
    checkpoints: Sequence[str],
    observations: Sequence[Observation] = (),
    device: str = 'cpu',
    engines: Sequence[str] = (),
    seconds: float = 30.0,
    threads: int = 0,
) -> dict[str, Any]:
    """Time all contenders for about `seconds`, at least five rounds; return times in ms.

    checkpoints: of one robot; the others are compared with the first one. observations: the inputs, by default grey
    noise. engines: by default, all that run on `device`.
    """
    loaded: dict[str, MaskedPolicy] = {}
    left_out: dict[str, str] = {}
    memory: dict[str, float] = {}
    wanted = contenders(checkpoints, device, engines)
    for c in wanted:
        before = _used(device)
        try:
            options = LoadOptions(
                device, c.dtype, threads, engine=c.engine, image_dtype=c.image_dtype, image_engine=c.image_engine
            )
            loaded[c.name] = load(c.checkpoint, options)
            loaded[c.name].warm_up()
        except ValueError as error:
            left_out[c.name] = str(error)
            continue
        memory[c.name] = (_used(device) - before) / 2**20
    first = wanted[0].name
    if first not in loaded:
        raise ValueError(left_out[first])
    reference = loaded[first]
    seen = list(observations) or _noise(reference)
    samples = _rounds(loaded, seen, seconds, reference.device)
    work = _work(reference)
    peaks = {d: matmul_peak(reference.device, getattr(torch, d)) for d in ('float32', 'bfloat16')}
    chunks = {name: [_values(p, o) for o in seen] for name, p in loaded.items()}
    rows = {}
    for c in wanted:
        if c.name not in loaded:
            continue
        wall, cpu = (np.array([s[i] for s in samples[c.name]]) * 1e3 for i in (0, 1))
        low = c.dtype == 'float32' and c.engine in ('eager', 'cuda-graph', 'openvino-float32')
        rate = work / np.percentile(wall, 50) * 1e3
        difference = np.abs(np.array(chunks[c.name]) - np.array(chunks[first]))
        rows[c.name] = {
            **{f'p{p}': float(np.percentile(wall, p)) for p in (50, 95, 99)},
            'cpu': float(np.median(cpu)),
            'runs': len(wall),
            'ms_per_tflop': float(np.percentile(wall, 50) / work * 1e12),
            'share_of_peak': float(rate / peaks['float32' if low else 'bfloat16']),
            'weights_mib': (size_of(loaded[c.name].network) + size_of(loaded[c.name].image_tokenizer)) / 2**20,
            'memory_mib': memory[c.name],
            'equal': float((difference == 0).mean()),
            'difference_mean': float(difference.mean()),
            'difference_p99': float(np.percentile(difference, 99)),
        }
        rows[c.name]['speedup'] = rows[first]['p50'] / rows[c.name]['p50']
        rows[c.name]['cpu_speedup'] = rows[first]['cpu'] / rows[c.name]['cpu']
    return {
        'machine': machine(reference.device),
        'gflop': work / 1e9,
        'peak_gflops': {d: p / 1e9 for d, p in peaks.items()},
        'observations': len(seen),
        'rows': rows,
        'left_out': left_out,
    }


def _rounds(
    loaded: dict[str, MaskedPolicy], seen: list[Observation], seconds: float, device: torch.device
) -> dict[str, list[tuple[float, float]]]:
    """Return the (wall, processor) times [s] of each `act`, run in turns with uncached images."""
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in loaded}
    end, i = time.perf_counter() + seconds, 0
    while i < 5 or time.perf_counter() < end:
        for name, p in loaded.items():
            p.prepare(seen[i % len(seen)].instruction)  # as the policy node does, when an instruction comes
            wall, cpu = time.perf_counter(), time.process_time()
            _values(p, seen[i % len(seen)])  # waits for the device
            samples[name].append((time.perf_counter() - wall, time.process_time() - cpu))
        i += 1
    return samples


def _values(p: MaskedPolicy, observation: Observation) -> np.ndarray:
    """Return the actions (horizon, action_dim without gripper) of uncached images."""
    robot = p.config.robot
    p.forget_images()
    values, _ = p.actions(observation.images, state_of(robot, observation), observation.instruction)
    return values[:, : robot.action_dim - robot.gripper]


def _work(p: MaskedPolicy) -> int:
    """Return the FLOP of matmuls and convolutions in one `act` with new images."""
    template = p.prompts.action(EXAMPLE)
    rows = template.block.stop - template.block.start
    forward = forward_flops(p.config.network, len(template.ids), rows, p.config.vocabulary.bins)
    return forward + len(p.config.robot.cameras) * encoder_flops(p.config.image_tokenizer)


def _noise(p: MaskedPolicy, count: int = 8) -> list[Observation]:
    side, example = p.config.image_tokenizer.resolution, p.example()
    made = []
    for i in range(count):
        pictures = [image_engine.picture(side, 10 * i + k) for k in range(len(p.config.robot.cameras))]
        images = {c: to_image(x) for c, x in zip(p.config.robot.cameras, pictures, strict=True)}
        made.append(replace(example, images=images))
    return made


def _used(device: str) -> int:
    """Return the memory in use [bytes]: reserved on the GPU, or resident in this process."""
    if device == 'cuda':
        torch.cuda.synchronize()
        return torch.cuda.memory_reserved()
    return psutil.Process().memory_info().rss


def report(result: dict[str, Any]) -> str:
    """Return the result of bench_engines as a table."""
    rows = result['rows']
    width = max(map(len, rows))
    lines = [
        ', '.join(f'{key} {value}' for key, value in result['machine'].items()),
        f'act: two new images to set-points, {result["gflop"]:.2f} GFLOP; peak of a matrix product '
        + ', '.join(f'{peak:.0f} GFLOP/s in {d}' for d, peak in result['peak_gflops'].items()),
        f'differences: actions of {result["observations"]} observations from those of the first row, '
        'in mrad, or mm where they are places',
        '',
        f'{"[ms]":{width}} {"p50":>7} {"p95":>7} {"p99":>7} {"cpu":>7} {"first/it":>9} {"by cpu":>7} {"ms/TFLOP":>9} '
        f'{"of peak":>8} {"weights":>8} {"memory":>8} {"equal":>7} {"mean":>8} {"p99":>8}',
        f'{"":{width}} {"":7} {"":7} {"":7} {"":7} {"":9} {"":7} {"":9} {"":8} {"[MiB]":>8} {"[MiB]":>8} {"":7} '
        f'{"[1e-3]":>8} {"[1e-3]":>8}',
    ]
    for name, r in rows.items():
        lines.append(
            f'{name:{width}} {r["p50"]:7.1f} {r["p95"]:7.1f} {r["p99"]:7.1f} {r["cpu"]:7.1f} {r["speedup"]:8.2f}x '
            f'{r["cpu_speedup"]:6.2f}x {r["ms_per_tflop"]:9.0f} {r["share_of_peak"]:8.0%} {r["weights_mib"]:8.1f} '
            f'{r["memory_mib"]:8.0f} {r["equal"]:7.1%} {r["difference_mean"] * 1e3:8.2f} '
            f'{r["difference_p99"] * 1e3:8.2f}'
        )
    lines += [f'{name} left out: {why}' for name, why in result['left_out'].items()]
    return '\n'.join(lines)
