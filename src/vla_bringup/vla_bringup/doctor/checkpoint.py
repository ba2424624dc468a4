"""Checks of a checkpoint: configuration, tensors, numbers, statistics, training, evaluation."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vla_bringup.doctor.check import Check, fail, skip, warn

if TYPE_CHECKING:
    from vla_model.config import ModelConfig, Quantization

READ = 2 * 2**30  # [byte] a larger checkpoint is loaded by the policy node only


def check_checkpoint(model: str) -> Iterator[Check]:
    """Yield the checks of a model, a folder or random-nano. A small one is loaded as the policy node loads it."""
    if model == 'random-nano':
        yield warn('checkpoint', 'none: random-nano has random weights, for shadow only', './vla doctor --model FOLDER')
        return
    from vla_model.families.folder import open_folder

    folder = Path(model)
    try:
        found = open_folder(folder)
    except (FileNotFoundError, ValueError) as error:
        yield _fail('checkpoint', error)
        return
    config, stored = found.config, found.network | found.image
    robot, paths = config.robot, {s.path for s in stored.values()}
    size = sum(p.stat().st_size for p in paths)
    yield Check('checkpoint', f'{config.name} in {folder}: {len(stored)} tensors, {size / 2**30:.2f} GiB')
    inputs = f'cameras {", ".join(robot.cameras)}; {robot.dof} joints{" and a gripper" if robot.gripper else ""}; '
    yield Check('actions', f'{inputs}{robot.horizon} steps of {robot.dt:g} s, {robot.action_space}')
    if config.trained:
        yield Check('trained', 'yes')
    else:
        yield warn('trained', 'no: the policy node drives with it in the simulator only', './vla train fit')
    if config.statistics is None:
        yield Check('statistics', "none needed: the robot's limits become -1 and +1")
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


def _fail(name: str, error: Exception) -> Check:
    """Return a failed check with the fact and the remedy of the error that the policy node and the replay report."""
    fact, _, remedy = str(error).rpartition(': ')
    return fail(name, fact or remedy, remedy if fact else '')


def _quantization(q: 'Quantization') -> Check:
    fact = f'{q.scheme}, {len(q.layers)} layers, made from {q.made_from}'
    if not q.gate:
        return warn('quantization', f'{fact}; not compared with it', './vla quantize makes a compared checkpoint')
    return Check('quantization', f'{fact}; compared with it when it was quantized')


def _memory(config: 'ModelConfig') -> Check:
    """Compare the memory that the model needs with the free memory of the GPU, or of the CPU without one."""
    import torch

    from vla_model.checkpoints import memory

    cuda = torch.cuda.is_available()
    device = torch.device('cuda' if cuda else 'cpu')
    needed = memory.plan(config, torch.bfloat16 if cuda else torch.float32, device=device.type)
    free, where = memory.available(device)
    fact = f'needs {needed.total / 2**30:.2f} GiB; {free / 2**30:.1f} GiB free on {where}'
    if needed.total > free:
        return fail('memory', fact, 'take a quantized checkpoint (./vla quantize), or end other programs')
    return Check('memory', fact)


def _weights(folder: Path) -> Check:
    """Load the checkpoint: names, shapes and finite numbers are checked. The fact has the model id."""
    from vla_model import loading

    try:
        return Check('weights', f'complete and finite; model id {loading.load(folder).model_id}')
    except (FileNotFoundError, ValueError) as error:
        return _fail('weights', error)


def _evaluations(folder: Path) -> Iterator[Check]:
    from vla_training.evaluate.records import HELD_OUT

    records = sorted(folder.glob('evaluation-*.json'))
    if not records:
        yield warn('evaluation', 'not evaluated', f'./vla train evaluate {folder} --dataset DATASET')
    for path in records:
        try:
            content = json.loads(path.read_text())
            tasks = content['summary'][HELD_OUT]
            rates = ', '.join(f'{task} {100 * numbers["success"]:.0f} %' for task, numbers in tasks.items())
            fact = f'{path.stem.removeprefix("evaluation-")}: {rates} of episodes in held-out scenes'
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            yield fail(
                'evaluation',
                f'{path.name} cannot be read ({type(error).__name__}: {error})',
                'evaluate the checkpoint again',
            )
            continue
        yield Check('evaluation', fact)
