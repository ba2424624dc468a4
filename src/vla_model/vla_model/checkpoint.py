"""A checkpoint is a folder: config.json, tokenizer.json, *.safetensors. Nothing in it is ever unpickled."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .config import ModelConfig
from .text_tokenizer import TextTokenizer

PICKLES = ('.bin', '.pt', '.pth', '.ckpt', '.pkl')
# What a name starts with says whose tensor it is; the rest of a name is the released one.
IMAGE_PREFIXES = ('encoder.', 'decoder.', 'quantize.')


def check_folder(folder: Path) -> None:
    """Raises FileNotFoundError or ValueError that says what is wrong with the folder as a whole."""
    remedy = "give a folder with config.json, tokenizer.json and *.safetensors, or the name 'random-nano'"
    if not folder.exists():
        raise FileNotFoundError(f'no checkpoint at {folder}: {remedy}')
    if folder.is_file():
        kind = 'may be a pickle, which can run code when it is read' if folder.suffix in PICKLES else 'is a file'
        raise ValueError(f'{folder} {kind}: {remedy}')
    if not (folder / 'config.json').is_file():
        raise FileNotFoundError(f'{folder / "config.json"} is missing: {remedy}')
    if not any(folder.glob('*.safetensors')):
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
        found = f'only {pickles[0]}, a pickle, which is not read: convert it to safetensors' if pickles else remedy
        raise FileNotFoundError(f'{folder} has no *.safetensors: {found}')


def read_tensors(folder: Path, device: torch.device) -> dict[str, Tensor]:
    """All tensors of all *.safetensors of a folder, as stored, on `device`. ValueError on a file that is damaged."""
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob('*.safetensors')):
        try:
            with safe_open(path, framework='pt', device=str(device)) as file:
                for name in file.keys():  # noqa: SIM118 (the file is no mapping)
                    if name in tensors:
                        raise ValueError(f'{path}: tensor {name} is in another file of the folder too: remove one')
                    tensors[name] = file.get_tensor(name)
        except SafetensorError as error:
            raise ValueError(f'{path} is damaged or no safetensors file ({error}): copy it again') from None
    return tensors


def assign(module: nn.Module, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Makes `tensors` the weights of `module`. ValueError naming tensors that miss, are too many, or do not fit."""
    expected = module.state_dict()
    missing, unexpected = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unexpected:
        parts = [f'{len(n)} {word} ({", ".join(n[:3])}{", ..." if len(n) > 3 else ""})'
                 for word, n in (('missing', missing), ('unexpected', unexpected)) if n]  # fmt: skip
        raise ValueError(f'{folder}: tensors {" and ".join(parts)}: weights and config.json are of different models')
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape or tensor.is_floating_point() != expected[name].is_floating_point():
            raise ValueError(
                f'{folder}: tensor {name} is {tuple(tensor.shape)} {tensor.dtype}, config.json says '
                f'{tuple(expected[name].shape)}: weights and config.json are of different models'
            )
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f'{folder}: tensor {name} is not finite: the checkpoint is damaged')
    module.load_state_dict(tensors, assign=True)


def split(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(network's, image tokenizer's) tensors."""
    image = {name: t for name, t in tensors.items() if name.startswith(IMAGE_PREFIXES)}
    return {name: t for name, t in tensors.items() if name not in image}, image


def content_hash(config: ModelConfig, tensors: Mapping[str, Tensor]) -> str:
    """12 hex digits that change with the configuration and with any weight."""
    digest = hashlib.sha256(config.to_json().encode())
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        digest.update(f'{name} {t.dtype} {tuple(t.shape)}'.encode())
        digest.update(t.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]


def write(
    folder: Path, config: ModelConfig, text: TextTokenizer, network: Mapping[str, Tensor], image: Mapping[str, Tensor]
) -> None:
    """Writes a checkpoint. Every file appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / '.writing'
    for name, save in (
        ('config.json', lambda: temporary.write_text(config.to_json())),
        ('tokenizer.json', lambda: text.tokenizer.save(str(temporary))),
        ('model.safetensors', lambda: save_file(_plain(network), temporary)),
        ('image_tokenizer.safetensors', lambda: save_file(_plain(image), temporary)),
    ):
        save()
        temporary.replace(folder / name)


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
