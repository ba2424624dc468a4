"""Makes a quantized checkpoint block by block, so that one block of the original is in memory at a time.

Each original block runs on the calibration prompts, which records the inputs of its layers. Then its weights are
smoothed and rounded. The check prompts run through the original block, a bfloat16 one and the quantized one. The gate
compares their final logits.
"""

import copy
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from vla_model.checkpoints import checkpoint
from vla_model.checkpoints.checkpoint import Stored
from vla_model.config import ImageTokenizerConfig, NetworkConfig, Quantization
from vla_model.families.folder import Opened, open_folder
from vla_model.image_tokenizer import ImageTokenizer
from vla_model.network import Block, Head, RMSNorm, rope_table
from vla_model.quantization.gate import Calibration, compare_images, judge, measure
from vla_model.quantization.smooth import Seen, smooth, watch
from vla_model.quantized import (
    INT8,
    QuantizedLayer,
    QuantizedLinear,
    group_for,
    plain_layers,
    put_layers,
    quantized_like,
    round_weight,
    set_layer,
)

SCHEMES = ('int8', 'fp8', 'int4', 'mixed')
LINEARS = ('q_proj', 'k_proj', 'v_proj', 'attn_out', 'ff_proj', 'up_proj', 'ff_out')
LEAST_SHARD = 64 << 20  # [bytes] of a file of weights
BLOCKS, EMBEDDING, NORM, HEAD = (f'model.transformer.{name}' for name in ('blocks', 'wte', 'ln_f', 'ff_out'))


@dataclass(frozen=True)
class Result:
    gate: dict
    failed: list[str]  # a sentence for each figure that misses its threshold
    folder: Path | None  # of the checkpoint; None where it was not kept


def quantize(
    source: Path,
    out: Path,
    calibration: Calibration,
    scheme: str,
    *,
    activations: str = 'tensor',
    layers: Mapping[str, str] | None = None,
    keep_failed: bool = False,
    image_tokenizer: Path | None = None,
    device: str = 'cpu',
) -> Result:
    """Write the quantized checkpoint `source` to `out`. One that fails its gate is kept only with `keep_failed`.

    layers: scheme of the linear layers of the blocks, for 'mixed'; layers without one are unchanged. image_tokenizer:
    as in LoadOptions. Raises ValueError or FileNotFoundError naming the wrong argument or file.
    """
    if scheme not in SCHEMES:
        raise ValueError(f'scheme must be one of {list(SCHEMES)}, got {scheme!r}')
    if out.exists():
        raise ValueError(f'{out} exists already: remove it, or give another folder')
    found = open_folder(source, image_tokenizer)
    if found.config.quantization is not None:
        raise ValueError(f'{source} is quantized already ({found.config.quantization.scheme}): give the original')
    chosen = plan_layers(found.config.network, scheme, layers)
    entry = Quantization(
        scheme=scheme,
        group=group_of(found.config.network) if 'int4' in chosen.values() else 0,
        activations=activations if 'int8' in chosen.values() else 'none',
        layers=chosen,
        made_from='',
        gate={},
    )
    stream = Stream(found, calibration, entry, torch.device(device))
    images, image_layers, agreement = quantize_image_tokenizer(found, calibration, stream.device)
    config = replace(found.config, name=f'{found.config.name}-{scheme}')
    largest = max(path.stat().st_size for path in {s.path for s in found.network.values()})
    # Tensors are held until their file is written: a file is at most a quarter of the largest original one.
    limit = min(checkpoint.MAX_SHARD_BYTES, max(largest // 4, LEAST_SHARD))
    making = out.with_name(f'.{out.name}.writing')
    shutil.rmtree(making, ignore_errors=True)
    try:
        checkpoint.write(making, config, found.text, stream.tensors(), images, limit)
        gate = measure(found.config, calibration, stream.logits) | agreement
        digests = stream.digests | {n: checkpoint.digest(t) for n, t in checkpoint.read_tensors(found.image)}
        made_from = f'{found.config.name}-{checkpoint.content_hash(found.config, digests)}'
        entry = replace(entry, layers=chosen | image_layers, made_from=made_from, gate=gate)
        (making / 'config.json').write_text(replace(config, quantization=entry).to_json())
        failed = judge(gate)
        if failed and not keep_failed:
            return Result(gate, failed, None)
        making.replace(out)
        return Result(gate, failed, out)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def plan_layers(config: NetworkConfig, scheme: str, layers: Mapping[str, str] | None) -> dict[str, str]:
    """Return layer -> scheme for all layers of the network. Raises ValueError where `layers` contradicts `scheme`."""
    # The continuous action head is small, and stays in floating point.
    config.refuse_options('quantization', 'keep the checkpoint in bfloat16', able=('action_layers',))
    if (layers is None) != (scheme != 'mixed'):
        raise ValueError("schemes of single layers need scheme 'mixed', and 'mixed' needs them")
    names = [f'{BLOCKS}.{i}.{n}' for i in range(config.n_layers) for n in LINEARS]
    blocks = dict.fromkeys(names, scheme) if layers is None else dict(layers)
    if unknown := sorted(blocks.keys() - set(names)):
        raise ValueError(f'the network has no layer {unknown[0]} in its blocks')
    return blocks | {EMBEDDING: 'int4' if scheme == 'int4' else 'int8-weight', HEAD: 'int8-weight'}


def stored_layers(source: Path, image_tokenizer: Path | None = None) -> tuple[dict[str, int], int]:
    """Return the number of weights of each linear layer of the blocks, and the int4 group, of a checkpoint."""
    found = open_folder(source, image_tokenizer)
    names = [f'{BLOCKS}.{i}.{n}' for i in range(found.config.network.n_layers) for n in LINEARS]
    sizes = {n: math.prod(found.network[f'{n}.weight'].shape) for n in names if f'{n}.weight' in found.network}
    return sizes, group_of(found.config.network)


def group_of(config: NetworkConfig) -> int:
    """Return the number of inputs that share a scale in int4."""
    return group_for({config.d_model, config.mlp_hidden_size})


@dataclass
class Stream:
    """Runs the network block by block: yields the quantized tensors, and keeps the logits of the checks."""

    found: Opened
    calibration: Calibration
    entry: Quantization
    device: torch.device
    digests: dict[str, str] = field(default_factory=dict)  # of the original's tensors
    logits: dict[str, list[Tensor]] = field(
        default_factory=dict
    )  # contender -> per check (n, bins) float32, on the CPU

    @torch.inference_mode()
    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the quantized tensors in the order of the network. Then `digests` and `logits` are complete."""
        config, checks = self.found.config.network, self.calibration.checks
        half = torch.bfloat16
        (table,) = self.read([f'{EMBEDDING}.weight']).values()
        rounded = round_weight(table, self.entry.layers[EMBEDDING], self.entry.group)
        wte = nn.Embedding.from_pretrained(table)
        quantized_wte = _filled(
            quantized_like(wte, EMBEDDING, self.entry.layers[EMBEDDING], self.entry.group, 'none'), rounded
        )
        seen = [wte(ids).float() for ids in self.calibration.prompts]
        exact = [wte(c.ids).float() for c in checks]
        halves = [h.to(half) for h in exact]
        ours = [quantized_wte(c.ids) for c in checks]
        yield from _named(EMBEDDING, quantized_wte)
        del table, wte, quantized_wte

        for i in range(config.n_layers):
            block, kinds = read_block(self, i)
            seen, entered = watch(block, seen, self.rope)
            exact = [self.run(block, h) for h in exact]
            low = copy.deepcopy(block).to(half)
            halves = [self.run(low, h) for h in halves]
            del low
            schemes = {
                n: self.entry.layers[f'{BLOCKS}.{i}.{n}'] for n in LINEARS if f'{BLOCKS}.{i}.{n}' in self.entry.layers
            }
            smooth(block, entered, schemes, self.entry)
            round_block(block, entered, schemes, self.entry)
            ours = [self.run(block, h) for h in ours]
            for name, tensor in block.state_dict().items():
                kept = name.rpartition('.')[0] not in schemes
                yield f'{BLOCKS}.{i}.{name}', tensor.to(kinds[name]) if kept else tensor
            del block
        yield from self._finish({'exact': exact, 'bfloat16': halves, 'quantized': ours})

    def _finish(self, ends: dict[str, list[Tensor]]) -> Iterator[tuple[str, Tensor]]:
        config, v = self.found.config.network, self.found.config.vocabulary
        read = self.read([f'{NORM}.weight', f'{HEAD}.weight'])
        norm = RMSNorm(config.d_model, config.rms_norm_eps)
        weight, table = read[f'{NORM}.weight'], read.pop(f'{HEAD}.weight')
        norm.weight = nn.Parameter(weight.float().to(self.device))
        bins = slice(v.bins_offset, v.size)
        part = table[bins].float().to(self.device)
        yield f'{NORM}.weight', weight
        with torch.device('meta'):
            empty = Head(config.d_model, config.vocab_size, bias=False)
        scheme = self.entry.layers[HEAD]
        head = quantized_like(empty, HEAD, scheme, self.entry.group, self.entry.activations)
        head = _filled(head.to_empty(device=table.device), round_weight(table, scheme, self.entry.group))
        yield from _named(HEAD, head)
        widened = head.widened(bins).to(self.device)
        for name, hidden in ends.items():
            kind = torch.bfloat16 if name == 'bfloat16' else torch.float32
            last, n = (widened if name == 'quantized' else part).to(kind), copy.deepcopy(norm).to(kind)
            self.logits[name] = [
                (n(h[0, c.block]) @ last.t()).float().cpu()
                for h, c in zip(hidden, self.calibration.checks, strict=True)
            ]

    def read(self, names: list[str]) -> dict[str, Tensor]:
        """Return stored tensors, and record their digests. Raises ValueError naming a missing one."""
        for name in names:
            if name not in self.found.network:
                raise ValueError(f'tensor {name} is missing: weights and config.json are of different models')
        read = dict(checkpoint.read_tensors({n: self.found.network[n] for n in names}))
        self.digests |= {n: checkpoint.digest(t) for n, t in read.items()}
        return read

    def rope(self, length: int) -> tuple[Tensor, Tensor]:
        c = self.found.config.network
        return rope_table(length, c.head_size, c.rope_theta, self.device)

    def run(self, block: nn.Module, h: Tensor) -> Tensor:
        return block(h.to(self.device), self.rope(h.shape[1]), slice(None), None)


def read_block(stream: Stream, i: int) -> tuple[Block, dict[str, torch.dtype]]:
    """Return block i in float32, and the stored types of its tensors."""
    with torch.device('meta'):
        block = Block(stream.found.config.network)
    prefix = f'{BLOCKS}.{i}.'
    expected = block.state_dict()
    stored: dict[str, Stored] = {n: s for n, s in stream.found.network.items() if n.startswith(prefix)}
    folder = next(iter(stream.found.network.values())).path.parent
    checkpoint.check_names({prefix + n: t for n, t in expected.items()}, stored, folder)
    block.to_empty(device=stream.device)
    targets, kinds = block.state_dict(), {}
    for name in expected:
        (tensor,) = stream.read([prefix + name]).values()
        targets[name].copy_(tensor)
        checkpoint.check_finite(prefix + name, targets[name], tensor.dtype, folder)
        kinds[name] = tensor.dtype
    return block, kinds


def round_block(block: Block, entered: Mapping[str, Seen], schemes: Mapping[str, str], entry: Quantization) -> None:
    """Replace the layers named in `schemes` by quantized ones."""
    for name, scheme in schemes.items():
        linear = block.get_submodule(name)
        made = quantized_like(linear, name, scheme, entry.group, entry.activations)
        importance = entered[name].square if scheme == 'int4' else None
        _filled(made, round_weight(linear.weight, scheme, entry.group, importance))  # type: ignore[arg-type]
        if scheme == 'int8':
            assert isinstance(made, QuantizedLinear)
            made.input_scale.fill_(float(entered[name].largest.max().clamp(min=1e-6)) / INT8)
        set_layer(block, name, made)


def image_layers(config: ImageTokenizerConfig) -> dict[str, str]:
    """Return the scheme of each convolution of the image tokenizer."""
    with torch.device('meta'):
        tokenizer = ImageTokenizer(config)
    return {n: 'int8-weight' for n, m in tokenizer.named_modules() if isinstance(m, nn.Conv2d)}


def quantize_image_tokenizer(
    found: Opened, calibration: Calibration, device: torch.device
) -> tuple[dict[str, Tensor], dict[str, str], dict]:
    """Return (tensors, layer -> scheme, agreement of codes): convolutions are in int8, other tensors unchanged."""
    with torch.device('meta'):
        exact = ImageTokenizer(found.config.image_tokenizer)
    folder = next(iter(found.image.values())).path.parent
    checkpoint.load_into(exact, found.image, device, torch.float32, folder)
    layers = image_layers(found.config.image_tokenizer)
    tensors = dict(checkpoint.read_tensors(found.image))
    for name in layers:
        weight = f'{name}.weight'
        tensors[weight], tensors[f'{name}.scale'] = round_weight(tensors[weight], 'int8-weight', 0)
    with torch.device('meta'):
        ours = ImageTokenizer(found.config.image_tokenizer)
    put_layers(ours, Quantization('int8', 0, 'none', layers, '', {}))
    ours.to_empty(device=device)
    ours.load_state_dict(tensors)
    return tensors, layers, compare_images(exact, plain_layers(ours), calibration.pictures.to(device))


def _filled(layer: QuantizedLayer, rounded: tuple[Tensor, Tensor]) -> QuantizedLayer:
    layer.weight, layer.scale = rounded
    return layer


def _named(name: str, layer: nn.Module) -> Iterable[tuple[str, Tensor]]:
    return [(f'{name}.{part}', tensor) for part, tensor in layer.state_dict().items()]
