"""Tensors of a run in safetensors files of at most 15 MB, which move through any channel."""

import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vla_training.shards import MAX_BYTES


def write_pieces(folder: Path, state: dict[str, Tensor]) -> None:
    """Safetensors files of at most 15 MB; a larger tensor is cut along its first dimension."""
    pieces: list[dict[str, Tensor]] = [{}]
    room = MAX_BYTES
    for name, value in state.items():
        value = value.detach().cpu().contiguous()
        row = value.element_size() * max(1, math.prod(value.shape[1:]))
        parts = value.split(max(1, MAX_BYTES // row)) if value.ndim else (value,)
        for i, part in enumerate(parts):
            size = part.numel() * part.element_size()
            if size > room:
                pieces.append({})
                room = MAX_BYTES
            pieces[-1][f'{name}#{i}'] = part.clone()
            room -= size
    for i, piece in enumerate(pieces):
        save_file(piece, folder / f'state-{i:05d}.safetensors')


def read_pieces(folder: Path) -> dict[str, Tensor]:
    """What write_pieces wrote."""
    parts: dict[str, dict[int, Tensor]] = {}
    for path in sorted(folder.glob('state-*.safetensors')):
        try:
            content = load_file(path)
        except Exception as error:  # safetensors raises its own kind
            raise ValueError(f'{path} is damaged ({error}): copy it again') from None
        for key, value in content.items():
            name, _, i = key.rpartition('#')
            parts.setdefault(name, {})[int(i)] = value
    return {name: torch.cat([p[i] for i in sorted(p)]) if p[0].ndim else p[0] for name, p in parts.items()}
