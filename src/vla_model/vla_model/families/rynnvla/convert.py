"""Makes the files of the image tokenizer from `vqgan.ckpt` and `vqgan.yaml`, as they are released.

`vqgan.ckpt` is a pickle. Only tensors are read from it: torch's restricted loader runs no code of the file.
"""

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vla_model.checkpoints import checkpoint
from vla_model.families.rynnvla.vqgan import Vqgan
from vla_model.families.rynnvla.weights import vqgan_config

FIELDS = ('ddconfig', 'n_embed', 'embed_dim')


def convert_vqgan(source: Path, out: Path, settings: Path | None = None) -> Path:
    """Write model.safetensors and config.json of the image tokenizer into the folder `out`; return it.

    source: vqgan.ckpt. settings: vqgan.yaml; None: beside the source. Raises FileNotFoundError or ValueError naming a
    file, field or tensor, and writes nothing then.
    """
    settings = settings or source.with_suffix('.yaml')
    for path in (source, settings):
        if not path.is_file():
            raise FileNotFoundError(f'{path} is missing: give vqgan.ckpt, and vqgan.yaml of the same release')
    if existing := [name for name in ('model.safetensors', 'config.json') if (out / name).exists()]:
        raise ValueError(f'{out / existing[0]} exists already: remove it, or give another folder')
    content = _settings(settings)
    with torch.device('meta'):
        expected = Vqgan(vqgan_config(content)).state_dict()
    tensors = {name: t for name, t in _tensors(source).items() if name in expected}
    for name, wanted in expected.items():
        if name not in tensors or tensors[name].shape != wanted.shape:
            found = f'is {tuple(tensors[name].shape)}' if name in tensors else 'is missing'
            raise ValueError(f'{source}: tensor {name} {found}, {settings.name} gives {tuple(wanted.shape)}')
    for name, tensor in tensors.items():
        checkpoint.check_finite(name, tensor, tensor.dtype, source)
    out.mkdir(parents=True, exist_ok=True)
    writing = out / '.writing'
    save_file({name: t.contiguous() for name, t in tensors.items()}, writing)
    writing.chmod(0o644)
    (out / 'config.json').write_text(json.dumps(content, indent=2) + '\n')
    writing.replace(out / 'model.safetensors')
    return out


def _settings(path: Path) -> dict[str, Any]:
    """Return the fields of a vqgan.yaml, which has them at its top or in `model: params:`."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
        content = content.get('model', {}).get('params') or content
        return {name: content[name] for name in FIELDS}
    except KeyError as error:
        raise ValueError(f'{path}: field {error} is missing: give vqgan.yaml of the image tokenizer') from None
    except (yaml.YAMLError, AttributeError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f'{path} is not the YAML file of an image tokenizer: {error}') from None


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(
            f'{path} is damaged, or holds more than tensors, which is not read ({first}): where you trust the file, '
            'save its state_dict alone with torch.save'
        ) from None
    content = content.get('state_dict', content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(t, Tensor | nn.Parameter) for t in content.values()):
        raise ValueError(f'{path} has no state_dict of tensors: give vqgan.ckpt of the image tokenizer')
    return content
