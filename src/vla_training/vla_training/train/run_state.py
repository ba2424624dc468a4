"""Saves the state of a run in folders `step-N` of safetensors files and a JSON file, and restores it.

A state holds whole tensors, so a run continues with any number of processes.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vla_training.data.pieces import iterate_pieces, write_pieces
from vla_training.train.distributed import World, put, whole
from vla_training.train.recipe import Recipe

MOMENTS = ('step', 'exp_avg', 'exp_avg_sq', 'momentum_buffer')  # of AdamW and Muon
Optimizers = Sequence[torch.optim.Optimizer]  # each of its own parameters
MAY_CHANGE = ('init', 'log_every', 'save_every', 'micro_batch', 'compile', 'amp', 'recompute', 'piece_bytes', 'dtype',
              'shard_bytes')  # fmt: skip


@dataclass
class Progress:
    """The content of training.json."""

    step: int
    seconds: float  # of training
    recipe: Recipe
    rows: int  # of the data
    base: str  # digest of the initial checkpoint; empty without one


def newest(out: Path) -> Path | None:
    """Return the folder of the newest complete state of a run; None: there is none."""
    found = sorted(p for p in out.glob('step-*') if (p / 'training.json').is_file())
    return found[-1] if found else None


def save(
    out: Path, progress: Progress, trained: dict[str, nn.Parameter], average: dict[str, Tensor],
    optimizers: Optimizers, world: World,
) -> Path:  # fmt: skip
    """Write `step-N`, whole or not at all, and remove earlier states. Return its folder. All processes must call it."""
    folder, temporary = out / f'step-{progress.step:08d}', out / '.writing'
    state = _state(trained, average, optimizers)
    if world.first:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        write_pieces(temporary, state, progress.recipe.piece_bytes)
        (temporary / 'training.json').write_text(json.dumps(asdict(progress), indent=2) + '\n')
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
        for old in sorted(out.glob('step-*')):
            if old != folder:
                shutil.rmtree(old)
    else:
        for _ in state:  # the parts of this process go to the first one
            pass
    world.wait()
    return folder


def _state(
    trained: dict[str, nn.Parameter], average: dict[str, Tensor], optimizers: Optimizers
) -> Iterator[tuple[str, Tensor]]:
    for name, p in trained.items():
        yield f'weight.{name}', whole(p)
    for name, value in average.items():
        yield f'average.{name}', whole(value)
    moments = {p: state for optimizer in optimizers for p, state in optimizer.state.items()}
    for name, p in trained.items():
        for key, value in moments.get(p, {}).items():
            yield f'optimizer.{key}.{name}', whole(value)


def check(folder: Path, now: Progress) -> Progress:
    """Return the progress of a state. Raises ValueError naming the settings that have changed since it was written."""
    try:
        content = json.loads((folder / 'training.json').read_text())
        recipe = Recipe.from_dict(content['recipe'])  # fields of later versions get their defaults
        then = Progress(content['step'], content['seconds'], recipe, content['rows'], content.get('base', ''))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{folder / "training.json"} is damaged ({error}): copy it again') from None
    before, after = then.recipe.to_dict(), now.recipe.to_dict()
    changed = [name for name in after if name not in MAY_CHANGE and before[name] != after[name]]
    if then.rows != now.rows:
        changed.append('data set')
    if then.base != now.base:
        changed.append('initial checkpoint')
    if changed:
        raise ValueError(
            f'{folder} was trained with another {", ".join(changed)}: give another folder, or restore the recipe'
        )
    return then


def restore(folder: Path, trained: dict[str, nn.Parameter], average: dict[str, Tensor], optimizers: Optimizers) -> None:
    """Read the tensors of a state into a run. Raises ValueError naming a tensor that is missing or unknown."""
    missing = {f'weight.{name}' for name in trained} | {f'average.{name}' for name in average}
    moments: dict[str, dict[str, Tensor]] = {name: {} for name in trained}
    for key, value in iterate_pieces(folder):
        kind, _, name = key.partition('.')
        if kind == 'optimizer':
            moment, _, name = name.partition('.')
            p = trained.get(name)
            if p is None or moment not in MOMENTS:
                raise ValueError(f'{folder} is no checkpoint of this run: it has {key}')
            target = torch.empty((), device=p.device) if moment == 'step' else torch.empty_like(p, requires_grad=False)
            put(target, value)
            moments[name][moment] = target
        elif key in missing:
            put(trained[name] if kind == 'weight' else average[name], value)
            missing.discard(key)
        elif kind != 'average':  # the run may no longer keep averages
            raise ValueError(f'{folder} is no checkpoint of this run: it has {key}')
    if missing:
        raise ValueError(f'{folder} lacks {min(missing)}: a file of it is missing, copy it again')
    of = {p: optimizer for optimizer in optimizers for group in optimizer.param_groups for p in group['params']}
    for name, found in moments.items():
        if found:
            of[trained[name]].state[trained[name]] = found
