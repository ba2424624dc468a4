"""./vla quantize: quantizes a checkpoint and compares it with the original, optionally in simulated episodes."""

import math
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from vla_core.profile import RobotProfile
from vla_model.checkpoints import memory
from vla_model.checkpoints.shipped import model_path
from vla_model.families.folder import open_folder
from vla_model.loading import family_of
from vla_model.quantization.gate import THRESHOLDS, Calibration, judged
from vla_model.quantization.mixed import choose, sensitivity
from vla_model.quantization.quantize import Result, quantize, stored_layers
from vla_sim.assets.robot import urdf_text
from vla_sim.tasks import TASKS
from vla_training.train.calibration import calibration
from vla_training.train.target_model import Arm

RYNNVLA = 'rynnvla'  # a family that has a quantization of its own
LOST = 0.02  # accepted loss of the success rate, by its one-sided 95 % bound


@dataclass(frozen=True)
class Options:
    """Options of the quantization."""

    model: Path
    scheme: str
    data: Path | None  # tokens or data set; for RynnVLA-002 a folder of pictures, or none
    robot: str  # profile, for episodes: by name or file
    out: Path
    work: Path  # for the reports of episodes
    activations: str = 'tensor'
    bits: float = 6.0
    prompts: int = 32
    checks: int = 256
    episodes: int = 0
    force: bool = False
    image_tokenizer: Path | None = None
    device: str = 'cpu'


def run_quantize(o: Options) -> bool:
    """Quantize and print the comparison. Return True if the checkpoint passes its gate or is kept by force.

    Raises ValueError or FileNotFoundError for wrong options.
    """
    console = Console()
    if family_of(o.model) == RYNNVLA:
        return _run_rynnvla(o, console)
    if o.data is None:
        raise ValueError('--calibration is missing: give a folder of ./vla train tokenize, or a LeRobotDataset')
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) - 1))
    arm = Arm(RobotProfile.load(o.robot), urdf_text)
    data = calibration(o.data, o.model, o.prompts, o.checks, image_tokenizer=o.image_tokenizer, arm=arm)
    layers = _mixed(o, data, console) if o.scheme == 'mixed' else None
    result = quantize(
        o.model, o.out, data, o.scheme, activations=o.activations, layers=layers, keep_failed=o.force,
        image_tokenizer=o.image_tokenizer, device=o.device,
    )  # fmt: skip
    failed = list(result.failed)
    if result.folder is not None and o.episodes:
        failed += _drive(o, result)
    _report(console, result)
    for text in failed:
        console.print(f'[red]refused:[/] {text}' if not o.force else f'[yellow]kept nevertheless:[/] {text}')
    if failed and not o.force:
        shutil.rmtree(o.out, ignore_errors=True)
        return False
    sizes = [sum(p.stat().st_size for p in f.glob('*.safetensors')) / 1e6 for f in (o.model, o.out)]
    console.print(f'{o.out}: {sizes[1]:.1f} MB of weights, the original has {sizes[0]:.1f}')
    return True


def _run_rynnvla(o: Options, console: Console) -> bool:
    from vla_model.families.rynnvla.quantize import THRESHOLDS, quantize

    if o.episodes or o.device != 'cpu' or o.image_tokenizer is not None:
        raise ValueError('RynnVLA-002 is quantized on the CPU, without --episodes, --device and --image-tokenizer')
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) - 1))
    counts = {'prompts': min(o.prompts, 8), 'checks': min(o.checks, 4)}
    result = quantize(
        o.model, o.out, o.scheme, pictures=o.data, activations=o.activations, keep_failed=o.force, **counts
    )
    table = Table('', 'bfloat16', 'quantized', 'limit', title=f'Against float32, {result.gate["calibration"]}')
    for name, (limit, lowest) in THRESHOLDS.items():
        cells = [f'{result.gate[weights][name]:.4g}' for weights in ('bfloat16', 'quantized')]
        table.add_row(name.replace('_', ' '), *cells, f'{"at least" if lowest else "at most"} {limit:g}')
    console.print(table)
    for text in result.failed:
        console.print(f'[red]refused:[/] {text}' if not o.force else f'[yellow]kept nevertheless:[/] {text}')
    return result.folder is not None


def print_plan(model: str) -> bool:
    """Print the memory of each scheme on each Orin. model: checkpoint folder, or '8b' for the released size."""
    if family_of(model) == RYNNVLA:
        from vla_model.families.rynnvla.quantize import memory_table

        print(memory_table(Path(model)))
        return True
    config = memory.released() if model == '8b' else open_folder(Path(model_path(model))).config
    print(memory.table(replace(config, quantization=None)))
    return True


def _mixed(o: Options, data: Calibration, console: Console) -> dict[str, str]:
    found = sensitivity(o.model, data, o.activations, o.image_tokenizer, o.device)
    layers, group = stored_layers(o.model, o.image_tokenizer)
    chosen = choose(found, layers, group, o.bits)
    table = Table('layer', 'KL, 4 bits (nats)', 'KL, 8 bits', 'chosen', title='Divergence when one layer is rounded')
    for layer in sorted(layers, key=lambda n: -found[n, 'int4'])[:12]:
        four, eight = found[layer, 'int4'], found[layer, 'int8']
        table.add_row(
            layer.removeprefix('model.transformer.'), f'{four:.2g}', f'{eight:.2g}', chosen.get(layer, 'unchanged')
        )
    console.print(table)
    return chosen


def _drive(o: Options, result: Result) -> list[str]:
    """Evaluate both checkpoints in simulation and write the rates into the folder. Return the failures as sentences."""
    from vla_training.evaluate.evaluate import evaluate

    profile = RobotProfile.load(o.robot)
    outcomes = {}
    for name, folder in (('original', o.model), ('quantized', o.out)):
        records = evaluate(
            str(folder), o.work / f'{o.out.name}-{name}', profile, tasks=TASKS, episodes=o.episodes, contrasts=0,
            device=o.device,
        )  # fmt: skip
        outcomes[name] = {r.key: r.success for r in records}
    pairs = [(outcomes['original'][k], s) for k, s in outcomes['quantized'].items()]
    success = compare_success(pairs)
    result.gate['success'] = success
    config = open_folder(o.out).config
    assert config.quantization is not None
    written = replace(config, quantization=replace(config.quantization, gate=result.gate))
    (o.out / 'config.json').write_text(written.to_json())
    if success['lost_at_least'] > LOST:
        return [
            f'success fell from {success["original"]:.1%} to {success["quantized"]:.1%} of {len(pairs)} episodes, '
            f'by {success["lost_at_least"]:.1%} at least (95 %); the limit is {LOST:.0%}'
        ]
    return []


def compare_success(pairs: list[tuple[bool, bool]]) -> dict[str, float]:
    """Compare successes (original, quantized) in the same scenes: rates, and the one-sided 95 % bound of the loss."""
    n = len(pairs)
    lost = [float(a) - float(b) for a, b in pairs]
    mean = sum(lost) / n
    deviation = math.sqrt(sum((x - mean) ** 2 for x in lost) / max(1, n - 1) / n)
    return {
        'episodes': n,
        'original': sum(a for a, _ in pairs) / n,
        'quantized': sum(b for _, b in pairs) / n,
        'lost_at_least': mean - 1.645 * deviation,
    }


def _report(console: Console, result: Result) -> None:
    gate = result.gate
    title = f'Against the original, {gate["checks"]} prompts outside the calibration'
    table = Table('', 'exact', 'bfloat16', 'quantized', title=title)
    rows = [
        ('cosine of logits', 'logit_cosine', 1.0, '.5f'),
        ('divergence (nats)', 'kl', 1.0, '.5f'),
        ('equal bins', 'equal_bins', 1.0, '.1%'),
        ('action difference, mean (mrad)', 'action_difference_mean', 1e3, '.2f'),
        ('action difference, p99 (mrad)', 'action_difference_p99', 1e3, '.2f'),
        ('error to the demonstrator, mean (mrad)', 'error_mean', 1e3, '.2f'),
        ('error to the demonstrator, p99 (mrad)', 'error_p99', 1e3, '.2f'),
    ]
    for label, key, factor, form in rows:
        cells = [gate[weights].get(key) for weights in ('exact', 'bfloat16', 'quantized')]
        table.add_row(label, *('' if c is None else format(c * factor, form) for c in cells))
    images = gate['images']
    table.add_row('equal image codes', '', *(f'{images[weights]:.1%}' for weights in ('bfloat16', 'quantized')))
    if 'success' in gate:
        success = gate['success']
        table.add_row(
            f'success in {success["episodes"]} episodes',
            f'{success["original"]:.1%}',
            '',
            f'{success["quantized"]:.1%}',
        )
    console.print(table)
    limits = Table('judged', 'value', 'limit', title='The gate')
    for name, value in judged(gate).items():
        limit, lowest = THRESHOLDS[name]
        limits.add_row(name.replace('_', ' '), f'{value:.4g}', f'{"at least" if lowest else "at most"} {limit:g}')
    console.print(limits)
