"""Stores the tensors of a run in safetensors files of at most 15 MB, which pass through any channel."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vla_training.data.shards import MAX_BYTES


def write_pieces(folder: Path, state: Iterable[tuple[str, Tensor]], max_bytes: int = MAX_BYTES) -> None:
    """Write safetensors files of at most `max_bytes`. A larger tensor is cut along its first dimension.

    `state` may make its tensors one by one: memory holds one of them and one file.
    """
    piece: dict[str, Tensor] = {}
    room, files = max_bytes, 0
    for name, value in state:
        value = value.detach().cpu().contiguous()
        row = value.element_size() * max(1, math.prod(value.shape[1:]))
        parts = value.split(max(1, max_bytes // row)) if value.ndim else (value,)
        for i, part in enumerate(parts):
            size = part.numel() * part.element_size()
            if size > room and piece:
                save_file(piece, folder / f'state-{files:05d}.safetensors')
                piece, room, files = {}, max_bytes, files + 1
            piece[f'{name}#{i}'] = part.clone()
            room -= size
    save_file(piece, folder / f'state-{files:05d}.safetensors')


def iterate_pieces(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of a folder that write_pieces wrote. Raises ValueError naming a damaged file."""
    places: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.glob('state-*.safetensors')):
        with _opened(path) as file:
            for key in file.keys():  # noqa: SIM118 (the file is no mapping)
                name, _, i = key.rpartition('#')
                places.setdefault(name, {})[int(i)] = path
    for name, parts in places.items():
        found = []
        for i, path in sorted(parts.items()):
            with _opened(path) as file:
                found.append(file.get_tensor(f'{name}#{i}'))
        yield name, torch.cat(found) if found[0].ndim else found[0]


def read_pieces(folder: Path) -> dict[str, Tensor]:
    """Return all tensors by name of a folder that write_pieces wrote."""
    return dict(iterate_pieces(folder))


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(path, framework='pt')
    except (SafetensorError, OSError) as error:
        raise ValueError(f'{path} is damaged ({error}): copy it again') from None
