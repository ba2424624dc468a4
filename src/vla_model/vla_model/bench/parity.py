"""Compares this implementation, tensor by tensor, with numbers of public references.

A parity folder has config.json, det_weights.py, *.safetensors and further files of its family. det_weights.py makes
the weights from their names, so that no checkpoint is needed.
"""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file

from vla_model.bench.parity_case import ParityCase, Row, needed, report
from vla_model.bench.parity_mmact import MmActCase
from vla_model.bench.parity_molmoact import MolmoActCase
from vla_model.bench.parity_rynnvla import RynnVlaCase

__all__ = ['CASES', 'Row', 'check_folder', 'report']
# By the model_type of config.json; MM-ACT's has none that another family uses.
CASES: dict[str, type[ParityCase]] = {'chameleon': RynnVlaCase, 'molmoact': MolmoActCase}


def check_folder(path: str | Path) -> list[Row]:
    """A row for every tensor of the folder, in the order of their names, then for what the case has beside tensors.

    Raises FileNotFoundError or ValueError that names what is wrong with the folder itself.
    """
    folder = Path(path)
    config = json.loads(needed(folder / 'config.json').read_text())
    needed(folder / 'det_weights.py')
    files = sorted(folder.glob('*.safetensors'))
    if not files:
        raise FileNotFoundError(f'{folder} has no *.safetensors: there is nothing to compare with')
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        try:
            content = load_file(file)
        except SafetensorError as error:
            raise ValueError(f'{file} is damaged or no safetensors file ({error}): copy it again') from None
        if twice := sorted(content.keys() & tensors.keys()):
            raise ValueError(f'{file}: tensor {twice[0]} is in another file of the folder too: remove one')
        tensors |= content
    case = CASES.get(config.get('model_type', ''), MmActCase)(folder, tensors)
    with torch.inference_mode():
        return [case.check(name) for name in sorted(tensors)] + case.texts()
