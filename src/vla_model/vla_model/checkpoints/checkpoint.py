"""Reads and writes checkpoint folders: config.json, tokenizer.json, *.safetensors. No pickle is ever read.

Tensors are read one by one into their final memory, so that loading needs the memory of the model and one shard.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vla_model import statistics
from vla_model.checkpoints.shipped import KNOWN
from vla_model.config import ModelConfig
from vla_model.file_checks import PICKLES, check_file, check_shards, explain_file, explain_folder, explain_names
from vla_model.quantized import QuantizedLayer
from vla_model.statistics import Statistics
from vla_model.tokens.depth_tokenizer import FILE as DEPTH_FILE
from vla_model.tokens.depth_tokenizer import DepthTokenizer, save_depth_tokenizer
from vla_model.tokens.text_tokenizer import TextTokenizer

INDEX = 'model.safetensors.index.json'
IMAGE_FILE = 'image_tokenizer.safetensors'
MAX_SHARD_BYTES = 5_000_000_000
# Tensors whose names start so are of the image tokenizer; the rest of a name is the released one.
IMAGE_PREFIXES = ('encoder.', 'decoder.', 'quantize.')


@dataclass(frozen=True)
class Stored:
    """File and shape of a tensor, read from the header of the file."""

    path: Path
    shape: tuple[int, ...]
    floating: bool


def check_folder(folder: Path) -> None:
    """Raise FileNotFoundError or ValueError where a folder is no checkpoint, naming the fault and the remedy."""
    remedy = f'give {KNOWN}; a checkpoint has config.json, tokenizer.json and *.safetensors'
    if not folder.exists():
        raise FileNotFoundError(f'no checkpoint at {folder}: {remedy}')
    if folder.is_file():
        check_file(folder, 'a checkpoint', remedy)
        raise ValueError(explain_file(folder) or f'{folder} is a file: {remedy}')
    config = folder / 'config.json'
    if not config.is_symlink() and not config.exists():
        other = explain_folder(folder)
        raise ValueError(other) if other else FileNotFoundError(f'{config} is missing: {remedy}')
    check_file(config, 'the configuration', remedy)
    check_has_weights(folder, remedy)


def check_has_weights(folder: Path, remedy: str) -> None:
    """Raise FileNotFoundError for a folder without *.safetensors, or ValueError naming what else it holds."""
    if not any(folder.glob('*.safetensors')):
        if other := explain_folder(folder) if folder.is_dir() else '':
            raise ValueError(other)
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES) if folder.is_dir() else []
        found = f'only {pickles[0]}, a pickle, which is not read: convert it to safetensors' if pickles else remedy
        raise FileNotFoundError(f'{folder} has no *.safetensors: {found}')


def list_tensors(folder: Path) -> dict[str, Stored]:
    """Return name -> file and shape of the tensors in the files of the index; without an index, in all files.

    Raises FileNotFoundError or ValueError naming a missing or damaged file. Raises ValueError naming a tensor that is
    in two files, or not in the file of the index.
    """
    index = _read_index(folder / INDEX)
    paths = {folder / name for name in index.values()} or set(folder.glob('*.safetensors'))
    paths.discard(folder / DEPTH_FILE)  # a module of its own, see depth_tokenizer.py
    if (folder / IMAGE_FILE).exists() or (folder / IMAGE_FILE).is_symlink():
        paths.add(folder / IMAGE_FILE)
    found: dict[str, Stored] = {}
    check_shards(paths)
    for path in sorted(paths):
        check_file(path, 'the weights', f'{INDEX} names it, copy it again' if index else 'copy it again')
        try:
            with safe_open(path, framework='pt') as file:
                for name in file.keys():  # noqa: SIM118 (the file is no mapping)
                    if name in found:
                        raise ValueError(f'{path}: tensor {name} is in another file of the folder too: remove one')
                    part = file.get_slice(name)
                    found[name] = Stored(path, tuple(part.get_shape()), part.get_dtype().startswith(('F', 'BF')))
        except SafetensorError as error:
            raise _damaged(path, error) from None
    lost = sorted(n for n, file in index.items() if n not in found or found[n].path.name != file)
    if lost:
        raise ValueError(f'{folder}: {_some(lost)} not in the file that {INDEX} names: copy the checkpoint again')
    return found


def load_into(
    module: nn.Module,
    stored: Mapping[str, Stored],
    device: torch.device,
    dtype: torch.dtype,
    folder: Path,
    name_of: Callable[[str], str] = str,
) -> dict[str, str]:
    """Load the weights of `module`, which is on the meta device, to `device` in `dtype`. Return name -> digest.

    name_of: returns the stored name of a tensor of the module; digests and errors have this name. Raises ValueError
    naming tensors that are missing, unexpected, of another shape or not finite, or a damaged file.
    """
    ours = {name_of(name): name for name in module.state_dict()}
    shapes = {name_of(name): t for name, t in module.state_dict().items()}
    return load_parts(module, stored, device, dtype, folder, shapes, lambda name, t: [(ours[name], ..., t)])


Part = tuple[str, Any, Tensor]  # name of a module's tensor, an index of it, and what it gets there


def load_parts(
    module: nn.Module,
    stored: Mapping[str, Stored],
    device: torch.device,
    dtype: torch.dtype,
    folder: Path,
    expected: Mapping[str, Tensor],
    parts: Callable[[str, Tensor], Iterable[Part]],
) -> dict[str, str]:
    """As `load_into`, where stored tensors are put together in another way than the module's.

    expected: stored names and shapes. parts: where a stored tensor goes; together they fill the module.
    """
    check_names(expected, stored, folder)
    cast(module, dtype)
    module.to_empty(device=device)
    targets = module.state_dict()
    digests: dict[str, str] = {}
    for name, tensor in read_tensors(stored):
        digests[name] = digest(tensor)
        for target, at, value in parts(name, tensor):
            place = targets[target][at]
            place.copy_(value.to(device))  # there it is cast
            check_finite(name, place, tensor.dtype, folder)
            del value
        del tensor  # before the next one is read
    return digests


def cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast floating point tensors to `dtype`, except those of quantized layers, whose types belong to the scheme."""
    for part in module.modules():
        if isinstance(part, QuantizedLayer):
            part.dtype = dtype
            continue
        for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False)):
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)


def read_tensors(stored: Mapping[str, Stored]) -> Iterator[tuple[str, Tensor]]:
    """The tensors one by one, file by file, as they are stored. Raises ValueError naming a damaged file."""
    for path in sorted({s.path for s in stored.values()}):
        try:
            with safe_open(path, framework='pt') as file:
                for name in (n for n, s in stored.items() if s.path == path):
                    yield name, file.get_tensor(name)
        except SafetensorError as error:
            raise _damaged(path, error) from None


def split(stored: Mapping[str, Stored]) -> tuple[dict[str, Stored], dict[str, Stored]]:
    """(network's, image tokenizer's) tensors."""
    image = {name: s for name, s in stored.items() if name.startswith(IMAGE_PREFIXES)}
    return {name: s for name, s in stored.items() if name not in image}, image


def digest(tensor: Tensor) -> str:
    """Return the digest of a stored tensor: of its type, shape and numbers."""
    t = tensor.detach().cpu().contiguous()
    found = hashlib.sha256(f'{t.dtype} {tuple(t.shape)}'.encode())
    found.update(t.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def content_hash(config: ModelConfig, digests: Mapping[str, str]) -> str:
    """12 hex digits that change with the configuration, the statistics and any weight."""
    statistics = config.statistics.to_json() if config.statistics is not None else ''
    if config.quantization is not None:  # the same weights are the same model, whatever was measured on them
        config = replace(config, quantization=replace(config.quantization, gate={}))
    lines = [config.to_json(), statistics, *(f'{name} {digests[name]}' for name in sorted(digests))]
    return hashlib.sha256('\n'.join(lines).encode()).hexdigest()[:12]


def read_config(folder: Path, content: dict[str, Any]) -> ModelConfig:
    """Return the configuration of a folder that `write` made, from the content of its config.json.

    Raises FileNotFoundError or ValueError naming the file, the field and the remedy.
    """
    robot = content.get('robot')
    needed = isinstance(robot, dict) and robot.get('normalization', 'limits') in statistics.METHODS
    found = Statistics.load(folder / statistics.FILE) if needed else None
    try:
        return ModelConfig.of_json(content, found)
    except ValueError as error:
        raise ValueError(f'{folder / "config.json"}: {error}') from None


def write(
    folder: Path,
    config: ModelConfig,
    text: TextTokenizer,
    network: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    image: Mapping[str, Tensor],
    max_shard_bytes: int = MAX_SHARD_BYTES,
    depth: DepthTokenizer | None = None,
) -> None:
    """Writes a checkpoint. Every file appears whole or not at all.

    network: a mapping, or tensors that are made one by one; no more of them are held than go into one file of
    max_shard_bytes. (One that is larger has a file of its own.)
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / '.writing'
    write_network(folder, network.items() if isinstance(network, Mapping) else network, max_shard_bytes)
    files = [
        ('config.json', lambda: temporary.write_text(config.to_json())),
        ('tokenizer.json', lambda: text.tokenizer.save(str(temporary))),
        (IMAGE_FILE, lambda: _save(_plain(image), temporary)),
    ]
    if config.statistics is not None:
        files.append((statistics.FILE, lambda: config.statistics.save(temporary)))  # type: ignore[union-attr]
    if depth is not None:
        files.append((DEPTH_FILE, lambda: save_depth_tokenizer(depth, temporary)))
    for name, save in files:
        save()
        temporary.replace(folder / name)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    save_file(tensors, path)
    path.chmod(0o644)  # safetensors lets only the training user read it; on the robot another user reads it


def write_network(folder: Path, tensors: Iterable[tuple[str, Tensor]], max_bytes: int) -> None:
    """Write model.safetensors, or model-00001-of-0000N.safetensors and their index."""
    written: list[Path] = []
    where: dict[str, int] = {}
    total, held, room = 0, dict[str, Tensor](), max_bytes

    def close() -> None:
        written.append(folder / f'.writing-{len(written)}')
        _save(held, written[-1])
        held.clear()

    for name, value in tensors:
        tensor = value.detach().cpu().contiguous()
        size = tensor.numel() * tensor.element_size()
        if size > room and held:
            close()
            room = max_bytes
        held[name], where[name] = tensor, len(written)
        room, total = room - size, total + size
    close()
    for old in (*folder.glob('model.safetensors'), *folder.glob('model-*-of-*.safetensors'), *folder.glob(INDEX)):
        old.unlink()  # of what was here before, whose shards may have other names
    n = len(written)
    names = [f'model-{i + 1:05d}-of-{n:05d}.safetensors' for i in range(n)] if n > 1 else ['model.safetensors']
    for path, name in zip(written, names, strict=True):
        path.replace(folder / name)
    if n > 1:
        index = {'metadata': {'total_size': total}, 'weight_map': {name: names[i] for name, i in where.items()}}
        (folder / '.writing').write_text(json.dumps(index, indent=2) + '\n')
        (folder / '.writing').replace(folder / INDEX)


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().cpu().contiguous() for name, t in tensors.items()}


def _read_index(path: Path) -> dict[str, str]:
    """Tensor name -> file name; empty without an index."""
    if not path.exists() and not path.is_symlink():
        return {}
    check_file(path, 'the index of the weights', '')
    try:
        index = json.loads(path.read_text())['weight_map']
        # Only files in the same folder belong to the checkpoint.
        good = bool(index) and all(isinstance(f, str) and Path(f).name == f for f in index.values())
    except (ValueError, KeyError, TypeError, AttributeError):
        good = False
    if not good:
        raise ValueError(f"{path} must hold 'weight_map', from tensor names to file names: copy it again")
    return index


def check_names(expected: Mapping[str, Tensor], stored: Mapping[str, Stored], folder: Path) -> None:
    """Raise ValueError naming tensors that are missing, unexpected or of another shape."""
    missing, unexpected = sorted(expected.keys() - stored.keys()), sorted(stored.keys() - expected.keys())
    if missing or unexpected:
        if other := explain_names(expected.keys(), stored.keys()):
            raise ValueError(f'{folder}: {other}')
        parts = [f'{len(n)} {word} ({_some(n)})' for word, n in (('missing', missing), ('unexpected', unexpected)) if n]
        raise ValueError(f'{folder}: tensors {" and ".join(parts)}: weights and config.json are of different models')
    for name, s in stored.items():
        t = expected[name]
        if tuple(t.shape) != s.shape or t.is_floating_point() != s.floating:
            kind = 'floating point' if s.floating else 'integers'
            raise ValueError(
                f'{folder}: tensor {name} is {s.shape} of {kind}, config.json says {tuple(t.shape)} {t.dtype}: '
                f'weights and config.json are of different models'
            )


def check_finite(name: str, target: Tensor, stored: torch.dtype, folder: Path) -> None:
    """Raise ValueError where a tensor, read from the type `stored`, is not finite."""
    if not target.is_floating_point() or not target.numel():
        return
    if target.dtype == torch.float8_e4m3fn:  # has no infinity, and torch cannot compare it
        target = target.view(torch.uint8)
        low = high = torch.where(((target & 127) == 127).any(), torch.nan, 0.0)
    else:
        low, high = torch.aminmax(target)  # without a copy; both are NaN where there is one
    if not (torch.isfinite(low) and torch.isfinite(high)):
        other = f', or take another dtype: {stored} does not fit into {target.dtype}' if stored != target.dtype else ''
        raise ValueError(f'{folder}: tensor {name} is not finite: the checkpoint is damaged, copy it again{other}')


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f'{path} is damaged or no safetensors file ({error}): copy it again')


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')
