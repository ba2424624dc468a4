"""Saves and restores the state of a run of the image tokenizer, and loads the trained tokenizer."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla_model.checkpoints import checkpoint
from vla_model.config import ImageTokenizerConfig, read, read_json
from vla_model.image_tokenizer import ImageTokenizer
from vla_training.data.pieces import read_pieces, write_pieces

MAY_CHANGE = ('steps', 'log_every', 'save_every', 'amp')  # more steps: the cosine begins anew where it would be


def load_image_tokenizer(folder: Path, device: str | torch.device = 'cpu') -> ImageTokenizer:
    """Load the tokenizer of a run. Raises FileNotFoundError or ValueError naming the file and the remedy."""
    content = read_json(folder / 'config.json')
    try:
        config = read(ImageTokenizerConfig, content, '')
    except ValueError as error:
        raise ValueError(f'{folder / "config.json"}: {error}') from None
    with torch.device('meta'):
        tokenizer = ImageTokenizer(config)
    path = folder / checkpoint.IMAGE_FILE
    if not path.is_file():
        raise FileNotFoundError(f'{path} is missing: train the image tokenizer first')
    _, stored = checkpoint.split(checkpoint.list_tensors(folder))
    checkpoint.load_into(tokenizer, stored, torch.device(device), torch.float32, folder)
    return tokenizer.eval()


class State:
    """Weights, their average and the optimizers of a run, in the folder `state` of its output."""

    def __init__(
        self,
        out: Path,
        parameters: Mapping[str, torch.nn.Parameter],
        average: Mapping[str, Tensor],
        optimizers: Sequence[torch.optim.Optimizer],
    ) -> None:
        """Put `state` back where a `save` was cut off between its two renames."""
        self.parameters, self.average, self.optimizers = parameters, average, optimizers
        self.folder, self._new, self._old = (out / name for name in ('state', '.state-new', '.state-old'))
        if self._old.exists() and not self.folder.exists():
            self._old.rename(self.folder)

    def save(self, record: Mapping[str, Any]) -> None:
        """Write `state` with this record; a write that is cut off leaves the one before."""
        shutil.rmtree(self._new, ignore_errors=True)
        self._new.mkdir()
        state = {f'weight.{n}': p.detach() for n, p in self.parameters.items()}
        state |= {f'average.{n}': value for n, value in self.average.items()}
        for name, p in self.parameters.items():
            state |= {f'optimizer.{key}.{name}': value for key, value in self._optimizer(p).state[p].items()}
        write_pieces(self._new, state.items())
        (self._new / 'training.json').write_text(json.dumps(record, indent=2) + '\n')
        shutil.rmtree(self._old, ignore_errors=True)
        if self.folder.exists():
            self.folder.rename(self._old)
        self._new.rename(self.folder)
        shutil.rmtree(self._old, ignore_errors=True)

    def restore(self, record: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
        """Read `state`; return the record that it was saved with.

        record: of the run as it starts now. Raises ValueError when settings, frames or shape differ, or a file is
        missing.
        """
        then = read_json(self.folder / 'training.json')
        before, after = (r['settings'] | {k: r.get(k) for k in ('config', 'frames', 'names')} for r in (then, record))
        if changed := [k for k in after if k not in MAY_CHANGE and before.get(k) != after[k]]:
            raise ValueError(
                f'{self.folder} was trained with other {", ".join(changed)}: give another folder, the same settings, '
                'or resume=False'
            )
        state = read_pieces(self.folder)
        for name, p in self.parameters.items():
            optimizer = self._optimizer(p)
            moments = ('exp_avg', 'exp_avg_sq') if isinstance(optimizer, torch.optim.AdamW) else ('momentum_buffer',)
            steps = ('step',) if isinstance(optimizer, torch.optim.AdamW) else ()
            keys = {k: f'{k}.{name}' for k in ('weight', *(('average',) if name in self.average else ()))}
            keys |= {k: f'optimizer.{k}.{name}' for k in (*steps, *moments)}
            if missing := [key for key in keys.values() if key not in state]:
                raise ValueError(f'{self.folder} lacks {missing[0]}: a file of it is missing, copy it again')
            with torch.no_grad():
                p.copy_(state[keys['weight']])
            if name in self.average:
                self.average[name].copy_(state[keys['average']])
            # On a CPU, too, the optimizer keeps its moments as it keeps the weights: channels last.
            optimizer.state[p] = {k: state[keys[k]].to(device) for k in steps} | {
                k: torch.empty_like(p).copy_(state[keys[k]]) for k in moments
            }
        return then

    def _optimizer(self, p: torch.nn.Parameter) -> torch.optim.Optimizer:
        return next(o for o in self.optimizers if any(p is q for group in o.param_groups for q in group['params']))
