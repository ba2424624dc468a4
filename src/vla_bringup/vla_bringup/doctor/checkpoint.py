"""What the doctor says of a checkpoint: configuration, tensors, numbers, statistics, training, evaluation."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vla_bringup.doctor.check import Check, bad, skip, warn

if TYPE_CHECKING:
    from vla_model.config import ModelConfig, Quantization

READ = 2 * 2**30  # [byte] larger checkpoints are not loaded here; the policy node does


def check_checkpoint(model: str) -> Iterator[Check]:
    """model: a folder, or random-nano. Small ones are loaded, as the policy node does it."""
    if model == 'random-nano':
        yield warn('checkpoint', 'none: random-nano has random weights, for shadow only', './vla doctor --model FOLDER')
        return
    from vla_model.families.folder import open_folder

    folder = Path(model)
    try:
        found = open_folder(folder)
    except (FileNotFoundError, ValueError) as error:
        yield _bad('checkpoint', error)
        return
    config, stored = found.config, found.network | found.image
    robot, paths = config.robot, {s.path for s in stored.values()}
    size = sum(p.stat().st_size for p in paths)
    yield Check('checkpoint', f'{config.name} in {folder}: {len(stored)} tensors, {size / 2**30:.2f} GiB')
    said = f'cameras {", ".join(robot.cameras)}; {robot.dof} joints{" and a gripper" if robot.gripper else ""}; '
    yield Check('actions', f'{said}{robot.horizon} steps of {robot.dt:g} s, {robot.action_space}')
    if config.trained:
        yield Check('trained', 'yes')
    else:
        yield warn('trained', 'no: the policy node drives with it in the simulator only', './vla train fit')
    if config.statistics is None:
        yield Check('statistics', "none needed: 'limits' of the robot are what becomes -1 and +1")
    else:
        yield Check('statistics', f'{robot.normalization}, fit the limits')  # ModelConfig checked them
    if config.quantization is not None:
        yield _quantization(config.quantization)
    yield _memory(config)
    if size <= READ:
        yield _weights(folder)
    else:
        why = f'{size / 2**30:.0f} GiB are not read here: the policy node checks them when it loads them'
        yield skip('weights', why)
    yield from _evaluations(folder)


def _bad(name: str, error: Exception) -> Check:
    """The sentence that the policy node and the replay give, too: fact and remedy."""
    fact, _, remedy = str(error).rpartition(': ')
    return bad(name, fact or remedy, remedy if fact else '')


def _quantization(q: 'Quantization') -> Check:
    fact = f'{q.scheme}, {len(q.layers)} layers, made from {q.made_from}'
    if not q.gate:
        return warn('quantization', f'{fact}; nobody has compared it', './vla quantize makes one that is compared')
    return Check('quantization', f'{fact}; compared with it when it was made')


def _memory(config: 'ModelConfig') -> Check:
    """Whether the model fits where it would run: the GPU if there is one."""
    import torch

    from vla_model.checkpoints import memory

    cuda = torch.cuda.is_available()
    device = torch.device('cuda' if cuda else 'cpu')
    needed = memory.plan(config, torch.bfloat16 if cuda else torch.float32, device=device.type)
    free, where = memory.available(device)
    fact = f'needs {needed.total / 2**30:.2f} GiB; {free / 2**30:.1f} GiB free on {where}'
    if needed.total > free:
        return bad('memory of it', fact, 'take a quantized checkpoint (./vla quantize), or end other programs')
    return Check('memory of it', fact)


def _weights(folder: Path) -> Check:
    """Names, shapes, finite numbers, and the hash that is in the model's id."""
    from vla_model import loading

    try:
        return Check('weights', f'all there and finite; model id {loading.load(folder).model_id}')
    except (FileNotFoundError, ValueError) as error:
        return _bad('weights', error)


def _evaluations(folder: Path) -> Iterator[Check]:
    from vla_training.evaluate.records import HELD_OUT

    records = sorted(folder.glob('evaluation-*.json'))
    if not records:
        yield warn('evaluation', 'nobody knows how good it is', f'./vla train evaluate {folder} --dataset DATASET')
    for path in records:
        try:
            content = json.loads(path.read_text())
            tasks = content['summary'][HELD_OUT]
            rates = ', '.join(f'{task} {100 * numbers["success"]:.0f} %' for task, numbers in tasks.items())
            fact = f'{path.stem.removeprefix("evaluation-")}: {rates} of episodes in held-out scenes'
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            yield bad(
                'evaluation', f'{path.name} cannot be read ({type(error).__name__}: {error})', 'evaluate it again'
            )
            continue
        yield Check('evaluation', fact)
