"""What the doctor says of a checkpoint: configuration, tensors, numbers, statistics, training, evaluation."""

import json
from collections.abc import Iterator
from pathlib import Path

from vla_bringup.doctor_check import Check, bad, skip, warn

READ = 4 * 2**30  # [byte] larger checkpoints are not read through; the policy node does when it loads them


def check_checkpoint(model: str) -> Iterator[Check]:
    """model: a folder, or random-nano. Small ones are read through, tensor by tensor."""
    if model == 'random-nano':
        yield warn('checkpoint', 'none: random-nano has random weights, for shadow only', './vla doctor --model FOLDER')
        return
    from vla_model import checkpoint
    from vla_model.folder import open_folder

    folder = Path(model)
    try:
        found = open_folder(folder)
    except (FileNotFoundError, ValueError) as error:
        yield bad('checkpoint', str(error), 'give another folder, or copy it again')
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
    yield (
        _numbers(checkpoint, folder, found)
        if size <= READ
        else skip(
            'weights', f'{size / 2**30:.0f} GiB are not read here: the policy node checks them when it loads them'
        )
    )
    yield from _evaluations(folder)


def _numbers(checkpoint, folder: Path, found) -> Check:
    """Names, shapes, finite numbers, and the hash that is the model's id."""
    import torch

    from vla_model.image_tokenizer import ImageTokenizer
    from vla_model.network import Network

    with torch.device('meta'):
        parts: list[tuple[torch.nn.Module, dict]] = [
            (Network(found.config.network), found.network),
            (ImageTokenizer(found.config.image_tokenizer), found.image),
        ]
    digests = {}
    try:
        for module, stored in parts:
            checkpoint.check_names(module.state_dict(), stored, folder)
            for name, tensor in checkpoint.read_tensors(stored):
                checkpoint.check_finite(name, tensor, tensor.dtype, folder)
                digests[name] = checkpoint.digest(tensor)
    except ValueError as error:
        return bad('weights', str(error), 'copy the checkpoint again')
    identity = f'{found.config.name}-{checkpoint.content_hash(found.config, digests)}'
    return Check('weights', f'all there and finite; model id {identity}')


def _evaluations(folder: Path) -> Iterator[Check]:
    from vla_training.evaluate_records import HELD_OUT

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
