"""Checks of a checkpoint: configuration, tensors, numbers, statistics, training, evaluation."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vla_bringup.doctor.check import Check, fail, skip, warn
from vla_model.checkpoints.shipped import is_random

if TYPE_CHECKING:
    import torch

    from vla_model.checkpoints.memory import MemoryPlan
    from vla_model.config import Quantization

READ = 2 * 2**30  # [byte] a larger checkpoint is loaded by the policy node only


def check_checkpoint(model: str, robot: str = '') -> Iterator[Check]:
    """Yield the checks of a model, as `loading.load` takes it. A small one is loaded as the policy node loads it.

    robot: a profile by name or file, which the policy of a server is compared with.
    """
    from vla_model.loading import USUAL, describe, family_of, scheme_of

    if scheme_of(model):
        from vla_bringup.doctor.server import check_server

        yield from check_server(model, robot)
        return
    if is_random(model):
        yield warn('checkpoint', f'none: {model} has random weights, for shadow only', './vla doctor --model FOLDER')
        return
    try:
        info = describe(model)
    except (FileNotFoundError, ValueError) as error:
        yield _fail('checkpoint', error)
        return
    ours, folder = family_of(model) == USUAL, Path(model)
    files = [p for p in folder.rglob('*.safetensors') if p.is_file()]
    size = sum(p.stat().st_size for p in files)
    stored = f'{len(files)} files, {size / 2**30:.2f} GiB' if files else 'no weights here'
    yield Check('checkpoint', f'{info.name} in {model}: {stored}')
    inputs = f'cameras {", ".join(info.cameras)}; {info.dof} joints{" and a gripper" if info.gripper else ""}; '
    yield Check('actions', f'{inputs}{info.horizon} steps of {info.dt:g} s, {info.action_space}')
    if info.trained:
        yield Check('trained', 'yes')
    else:
        yield warn('trained', 'no: the policy node drives with it in the simulator only', './vla train fit')
    if ours:
        yield from _masked(folder)
    elif family_of(model) == 'rynnvla':
        yield _rynnvla_memory(folder)
    if size <= READ:
        yield _weights(model)
    else:
        why = f'{size / 2**30:.0f} GiB are not read here: the policy node checks them when it loads them'
        yield skip('weights', why)
    yield from _evaluations(folder)


def _masked(folder: Path) -> Iterator[Check]:
    """Yield the checks that only a checkpoint of a masked model has."""
    from vla_model.checkpoints import memory
    from vla_model.families.folder import open_folder

    config = open_folder(folder).config
    if config.statistics is None:
        yield Check('statistics', "none needed: the robot's limits become -1 and +1")
    else:
        yield Check('statistics', f'{config.robot.normalization}, fit the limits')  # ModelConfig checked them
    if config.quantization is not None:
        yield _quantization(config.quantization)
    yield _memory(lambda dtype, device: memory.plan(config, dtype, device=device))


def _rynnvla_memory(folder: Path) -> Check:
    from vla_model.families.rynnvla.loading import memory_plan

    try:
        return _memory(lambda dtype, device: memory_plan(folder, dtype, device))
    except (FileNotFoundError, ValueError) as error:  # of the image tokenizer
        return _fail('memory', error)


def _fail(name: str, error: Exception) -> Check:
    """Return a failed check with the fact and the remedy of the error that the policy node and the replay report."""
    fact, _, remedy = str(error).rpartition(': ')
    return fail(name, fact or remedy, remedy if fact else '')


def _quantization(q: 'Quantization') -> Check:
    fact = f'{q.scheme}, {len(q.layers)} layers, made from {q.made_from}'
    if not q.gate:
        return warn('quantization', f'{fact}; not compared with it', './vla quantize makes a compared checkpoint')
    return Check('quantization', f'{fact}; compared with it when it was quantized')


def _memory(plan: 'Callable[[torch.dtype, str], MemoryPlan]') -> Check:
    """Compare the memory that the model needs with the free memory of the GPU, or of the CPU without one."""
    import torch

    from vla_model.checkpoints import memory

    cuda = torch.cuda.is_available()
    device = torch.device('cuda' if cuda else 'cpu')
    needed = plan(torch.bfloat16 if cuda else torch.float32, device.type)
    free, where = memory.available(device)
    fact = f'needs {needed.total / 2**30:.2f} GiB; {free / 2**30:.1f} GiB free on {where}'
    if needed.total > free:
        return fail('memory', fact, 'take a quantized checkpoint (./vla quantize), or end other programs')
    return Check('memory', fact)


def _weights(model: str) -> Check:
    """Load the checkpoint: names, shapes and finite numbers are checked. The fact has the model id."""
    from vla_model.loading import load

    try:
        policy = load(model)
        policy.close()
        return Check('weights', f'complete and finite; model id {policy.info.model_id}')
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
