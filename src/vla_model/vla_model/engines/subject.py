"""The model on which engines are tried, identified without reading its weights."""

import os
from pathlib import Path

import torch

from vla_model.checkpoints import memory
from vla_model.engines.trial import Subject, identity_of
from vla_model.families.folder import Opened, open_model


def trial_subject(
    reference: str | Path,
    device: str = 'cpu',
    dtype: str = 'float32',
    seed: int = 0,
    image_tokenizer: Path | None = None,
    gripper: bool = True,
    found: Opened | None = None,
) -> Subject:
    """Return the subject of trials for a model, with torch's number of threads. found: the model, if it is open."""
    found = found or open_model(reference, image_tokenizer, gripper)
    load = {
        'reference': str(reference) if found.folder is None else str(found.folder.absolute()),
        'device': device,
        'dtype': dtype,
        'threads': torch.get_num_threads(),
        'seed': seed,
        'image_tokenizer': None if image_tokenizer is None else str(image_tokenizer.absolute()),
        'gripper': gripper,
    }
    config, files = found.config, sorted({s.path for s in (*found.network.values(), *found.image.values())})
    identity = identity_of(config.name, config.to_json(), seed if found.folder is None else None, files)
    numbers, options = memory.network_numbers(config.network), tuple(config.network.options)
    return Subject(load, numbers, identity, config.quantization is not None, options)


def set_threads(threads: int) -> None:
    """Set the CPU threads of torch and of graphs compiled later; 0: all cores but one.

    One core is free by default: with more threads than free cores, threads wait for each other, 10 times slower.
    """
    torch.set_num_threads(threads or max(1, len(os.sched_getaffinity(0)) - 1))


def device_of(name: str) -> torch.device:
    """Return the device of an option. Raises ValueError for another one, or where torch finds no GPU."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be 'cpu' or 'cuda', got {name!r}") from None
    if device.type not in ('cpu', 'cuda'):
        raise ValueError(f"device must be 'cpu' or 'cuda', got {name!r}")
    if device.type == 'cuda' and not torch.cuda.is_available():
        raise ValueError(f"device is {name!r}, but torch finds no usable GPU: use 'cpu', or mend the GPU driver")
    return device
