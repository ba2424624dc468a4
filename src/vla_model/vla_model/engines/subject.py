"""What engines are tried on: a model as `loading.load` is asked for it, identified without reading its weights."""

import os
from pathlib import Path

import torch

from vla_model.checkpoints import memory, nano
from vla_model.checkpoints.shipped import RANDOM, model_path
from vla_model.engines.trial import Subject, identity_of
from vla_model.families.folder import Opened, open_folder
from vla_model.tokens.text_tokenizer import NANO_FILE, TextTokenizer


def trial_subject(
    path_or_name: str | Path,
    device: str = 'cpu',
    dtype: str = 'float32',
    seed: int = 0,
    image_tokenizer: Path | None = None,
    gripper: bool = True,
    found: Opened | None = None,
) -> Subject:
    """A model on which engines are tried, with torch's number of threads. found: the opened folder, if it is there."""
    path = model_path(path_or_name)
    if found is None and path != RANDOM:
        found = open_folder(Path(path), image_tokenizer)
    load = {
        'path_or_name': RANDOM if found is None else str(Path(path).absolute()),
        'device': device,
        'dtype': dtype,
        'threads': torch.get_num_threads(),
        'seed': seed,
        'image_tokenizer': None if image_tokenizer is None else str(image_tokenizer.absolute()),
        'gripper': gripper,
    }
    if found is None:
        config, files = nano.config(TextTokenizer.load(NANO_FILE).size, gripper=gripper), []
    else:
        config, files = found.config, sorted({s.path for s in (*found.network.values(), *found.image.values())})
    identity = identity_of(config.name, config.to_json(), seed if found is None else None, files)
    numbers, options = memory.network_numbers(config.network), tuple(config.network.options)
    return Subject(load, numbers, identity, config.quantization is not None, options)


def set_threads(threads: int) -> None:
    """CPU threads of torch, and of the graphs that are compiled from now on; 0: all cores but one.

    A core stays free by default: where threads outnumber free cores they spin on each other, 10 times slower.
    """
    torch.set_num_threads(threads or max(1, len(os.sched_getaffinity(0)) - 1))
