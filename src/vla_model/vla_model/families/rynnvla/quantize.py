"""Quantizes a released RynnVLA-002 folder block by block: one block of the original is in memory at a time.

Each block runs on prompts of pictures, which records the inputs of its layers. Then its weights are smoothed and
rounded, and the check prompts run through the original, a bfloat16 and the quantized block. At the end the gate
compares the chunks of the action head. The head, half a percent of the work, and the image tokenizer are unchanged.
"""

import copy
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from vla_model.checkpoints import checkpoint
from vla_model.checkpoints.checkpoint import Stored
from vla_model.checkpoints.memory import table_of
from vla_model.config import NetworkConfig, Quantization
from vla_model.engines.image import picture
from vla_model.families.rynnvla import loading, memory, preprocess, prompt, tokens
from vla_model.families.rynnvla.action_head import ActionHead
from vla_model.families.rynnvla.tokens import STATE
from vla_model.families.rynnvla.views import Views
from vla_model.families.rynnvla.vqgan import to_images
from vla_model.families.rynnvla.weights import head_shape, network_config, released_name
from vla_model.network import Block, RMSNorm, rope_table
from vla_model.quantization.quantize import (
    BLOCKS,
    EMBEDDING,
    HEAD,
    LEAST_SHARD,
    LINEARS,
    NORM,
    Result,
    round_block,
)
from vla_model.quantization.smooth import smooth, watch
from vla_model.quantized import group_for, quantized_like, round_weight
from vla_model.tokens.text_tokenizer import TextTokenizer

SCHEMES = ('int8', 'fp8', 'int4')
TASK = 'pick up the black bowl and place it on the plate'
PICTURES = ('.png', '.jpg', '.jpeg')
# Name -> (lowest or highest value allowed, True for lowest). Actions are in [-1, 1], where a bin has 0.008.
THRESHOLDS: dict[str, tuple[float, bool]] = {
    'hidden_cosine': (0.99, True),
    'action_difference_mean': (0.02, False),
    'action_difference_p99': (0.1, False),
}


def quantize(
    source: Path, out: Path, scheme: str, *, pictures: Path | None = None, prompts: int = 8, checks: int = 4,
    activations: str = 'token', keep_failed: bool = False,
) -> Result:  # fmt: skip
    """Write the quantized folder `source` to `out`. One that fails its gate is kept only with `keep_failed`.

    pictures: folder of camera pictures for the prompts; None: random blobs, which tell less. Raises ValueError or
    FileNotFoundError naming the wrong argument or file.
    """
    if scheme not in SCHEMES:
        raise ValueError(f'scheme must be one of {list(SCHEMES)} for RynnVLA-002, got {scheme!r}')
    if out.exists():
        raise ValueError(f'{out} exists already: remove it, or give another folder')
    content, robot = loading.files(source)
    if 'quantization' in content:
        raise ValueError(f'{source} is quantized already: give the original')
    seen = Prompts.of(source, robot, pictures, prompts + checks)
    stored = loading.stored_tensors(source)
    stream = Stream(source, content, stored, seen.ids, checks, scheme, activations)
    making = out.with_name(f'.{out.name}.writing')
    shutil.rmtree(making, ignore_errors=True)
    try:
        making.mkdir(parents=True)
        largest = max(path.stat().st_size for path in {s.path for s in stored.values()})
        checkpoint.write_network(making, stream.tensors(), max(largest // 4, LEAST_SHARD))
        gate: dict[str, Any] = {'checks': checks, 'calibration': seen.source, **stream.figures}
        entry = replace(stream.entry, gate=gate)
        (making / 'config.json').write_text(json.dumps(content | {'quantization': asdict(entry)}, indent=2) + '\n')
        for path in (p for p in source.iterdir() if p.name == loading.VQGAN or p.suffix == '.json'):
            if path.is_dir():
                shutil.copytree(path, making / path.name)
            elif path.name not in ('config.json', checkpoint.INDEX):
                shutil.copyfile(path, making / path.name)
        failed = judge(gate['quantized'])
        if failed and not keep_failed:
            return Result(gate, failed, None)
        making.replace(out)
        return Result(gate, failed, out)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def judge(figures: Mapping[str, float]) -> list[str]:
    """Return a sentence for each figure that misses its threshold."""
    return [
        f'{name} is {figures[name]:.4g}, it must be {"at least" if lowest else "at most"} {limit:g}'
        for name, (limit, lowest) in THRESHOLDS.items()
        if not (figures[name] >= limit if lowest else figures[name] <= limit)
    ]


def entry_of(config: NetworkConfig, scheme: str, activations: str, made_from: str, head: bool = True) -> Quantization:
    """Return how a scheme stores the network. head: whether it has `lm_head`."""
    group = group_for({config.d_model, config.mlp_hidden_size}) if scheme == 'int4' else 0
    layers = {f'{BLOCKS}.{i}.{n}': scheme for i in range(config.n_layers) for n in LINEARS}
    layers |= {EMBEDDING: 'int4' if scheme == 'int4' else 'int8-weight'} | ({HEAD: 'int8-weight'} if head else {})
    return Quantization(scheme, group, activations if scheme == 'int8' else 'none', layers, made_from, {})


def memory_table(folder: Path) -> str:
    """Return a Markdown table: disk and memory of each scheme of a folder, and the Orins with enough memory."""
    content, robot = loading.files(folder)
    image, config = loading.read_vqgan_config(folder / loading.VQGAN), network_config(content)
    schemes = ('bfloat16', *SCHEMES)
    entries = [None if s == 'bfloat16' else entry_of(config, s, 'token', '') for s in schemes]
    plans = [memory.plan(content, robot, image, entry) for entry in entries]
    whole = replace(robot, world=True)
    disk = [p.weights + p.image_tokenizer for p in (memory.plan(content, whole, image, entry) for entry in entries)]
    return table_of(schemes, disk, plans)


class Prompts:
    """Prompts for acts, of pictures and random states."""

    def __init__(self, ids: list[Tensor], source: str):
        self.ids, self.source = ids, source

    @classmethod
    def of(cls, source: Path, robot: Any, pictures: Path | None, count: int) -> 'Prompts':
        """Return `count` prompts of a folder of pictures. Raises ValueError where it has none."""
        side, rng = preprocess.TRAINED, np.random.default_rng(0)
        views = Views(loading.load_vqgan(source / loading.VQGAN, torch.device('cpu'))[0], robot.mirrored)
        text, needed = TextTokenizer.load(source / 'tokenizer.json'), len(robot.cameras) * robot.history
        files = sorted(p for p in pictures.iterdir() if p.suffix.lower() in PICTURES) if pictures is not None else []
        if pictures is not None and not files:
            raise ValueError(f'{pictures} has no pictures ({", ".join(PICTURES)}) for the calibration')

        def shown(i: int) -> np.ndarray:
            if not files:
                return to_images(picture(side, i)[None])[0].numpy()
            with Image.open(files[i % len(files)]) as image:
                return np.asarray(image.convert('RGB'))

        made = []
        for i in range(count):
            state = tokens.block_ids(rng.uniform(-1, 1, len(robot.kind.state.low)), STATE)
            blocks = [views.block(shown(i * needed + k)) for k in range(needed)]
            made.append(torch.from_numpy(prompt.action_prompt(text, TASK, state, blocks))[None])
        return cls(made, f'{len(files)} pictures of {pictures.name}' if pictures is not None else 'random pictures')


class Stream:
    """Runs the network block by block: yields the quantized tensors, and keeps the figures of the checks."""

    def __init__(
        self,
        folder: Path,
        content: Mapping[str, Any],
        stored: Mapping[str, Stored],
        prompts: list[Tensor],
        checks: int,
        scheme: str,
        activations: str,
    ):
        self.folder, self.stored, self.prompts = folder, stored, prompts
        self.config, self.shape, self.checks = network_config(content), head_shape(content), checks
        self.figures: dict[str, dict[str, float]] = {}
        self.entry = entry_of(self.config, scheme, activations, folder.name, 'lm_head.weight' in stored)

    @torch.inference_mode()
    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of the new folder under their released names. Then `figures` is complete."""
        table = self._read(f'{EMBEDDING}.weight')
        quantized = self._quantized(EMBEDDING, table)
        yield from _named(EMBEDDING, quantized)
        seen = [F.embedding(ids, table).float() for ids in self.prompts[self.checks :]]
        exact = [F.embedding(ids, table).float() for ids in self.prompts[: self.checks]]
        halves, ours = [h.bfloat16() for h in exact], [quantized(ids) for ids in self.prompts[: self.checks]]
        del table, quantized
        for i in range(self.config.n_layers):
            block, kinds = self._block(i)
            seen, entered = watch(block, seen, self._rope, causal)
            exact = [self._run(block, h) for h in exact]
            low = copy.deepcopy(block).bfloat16()
            halves = [self._run(low, h) for h in halves]
            del low
            schemes = dict.fromkeys(LINEARS, self.entry.scheme)
            smooth(block, entered, schemes, self.entry)
            round_block(block, entered, schemes, self.entry)
            ours = [self._run(block, h) for h in ours]
            for name, tensor in block.state_dict().items():
                kept = name.rpartition('.')[0] not in schemes
                yield released_name(f'{BLOCKS}.{i}.{name}'), tensor.to(kinds[name]) if kept else tensor
        yield from self._finish({'exact': exact, 'bfloat16': halves, 'quantized': ours})

    def _finish(self, ends: dict[str, list[Tensor]]) -> Iterator[tuple[str, Tensor]]:
        weight = self._read(f'{NORM}.weight')
        yield released_name(f'{NORM}.weight'), weight
        if HEAD in self.entry.layers:
            table = self._read(f'{HEAD}.weight')
            yield from _named(HEAD, self._quantized(HEAD, table))
            del table
        of_head = {n: s for n, s in self.stored.items() if n.startswith(loading.HEAD)}
        yield from checkpoint.read_tensors(of_head)
        with torch.device('meta'):
            head = ActionHead(self.config.d_model, *self.shape).eval()
        cpu, name_of = torch.device('cpu'), (loading.HEAD + '{}').format
        checkpoint.load_into(head, of_head, cpu, torch.float32, self.folder, name_of)
        norm = RMSNorm(self.config.d_model, self.config.rms_norm_eps)
        norm.weight = nn.Parameter(weight.float())
        states = {name: [norm(h.float()) for h in hidden] for name, hidden in ends.items()}
        chunks = {name: torch.cat([head(h) for h in hidden]).clamp(-1, 1) for name, hidden in states.items()}
        for name in ('bfloat16', 'quantized'):
            difference = (chunks[name] - chunks['exact']).abs()
            cosine = [F.cosine_similarity(a, b, -1).mean() for a, b in zip(states['exact'], states[name], strict=True)]
            self.figures[name] = {
                'hidden_cosine': float(torch.stack(cosine).mean()),
                'action_difference_mean': float(difference.mean()),
                'action_difference_p99': float(difference.flatten().quantile(0.99)),
            }

    def _read(self, ours: str) -> Tensor:
        name = released_name(ours)
        if name not in self.stored:
            raise ValueError(f'{self.folder}: tensor {name} is missing: copy the checkpoint again')
        ((_, tensor),) = checkpoint.read_tensors({name: self.stored[name]})
        return tensor

    def _block(self, i: int) -> tuple[Block, dict[str, torch.dtype]]:
        """Return block i in float32, and the stored types of the tensors of its norms."""
        with torch.device('meta'):
            block = Block(self.config)
        stored = {n: s for n, s in self.stored.items() if n.startswith(f'model.layers.{i}.')}
        kinds: dict[str, torch.dtype] = {}

        def name_of(name: str) -> str:
            return released_name(f'{BLOCKS}.{i}.{name}')

        checkpoint.load_into(block, stored, torch.device('cpu'), torch.float32, self.folder, name_of)
        for name in block.state_dict():
            if name.rpartition('.')[0] not in LINEARS:
                kinds[name] = self._read(f'{BLOCKS}.{i}.{name}').dtype
        return block, kinds

    def _quantized(self, name: str, table: Tensor) -> Any:
        with torch.device('meta'):
            empty = (
                nn.Embedding(*table.shape)
                if name == EMBEDDING
                else nn.Linear(table.shape[1], table.shape[0], bias=False)
            )
        made = quantized_like(empty, name, self.entry.layers[name], self.entry.group, 'none').to_empty(device='cpu')
        made.weight, made.scale = round_weight(table, self.entry.layers[name], self.entry.group)
        return made

    def _rope(self, length: int) -> tuple[Tensor, Tensor]:
        return rope_table(length, self.config.head_size, self.config.rope_theta, torch.device('cpu'))

    def _run(self, block: nn.Module, h: Tensor) -> Tensor:
        return block(h, self._rope(h.shape[1]), slice(None), causal(h.shape[1]))


def _named(name: str, layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for part, tensor in layer.state_dict().items():
        yield released_name(f'{name}.{part}'), tensor


def causal(length: int) -> Tensor:
    """Return the mask (1, 1, length, length) of a causal network."""
    return torch.ones(1, 1, length, length, dtype=torch.bool).tril()
