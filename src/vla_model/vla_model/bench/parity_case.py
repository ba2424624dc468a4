"""A parity folder: weights made from their names, and tensors that the public reference computed with them."""

import importlib.util
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

M = TypeVar('M', bound=nn.Module)


@dataclass(frozen=True)
class Row:
    """One tensor of the folder."""

    name: str
    value: float | None  # largest deviation, or share of equal integers; None: nothing could be compared
    tolerance: float | None  # None for integers: all must be equal
    passed: bool
    note: str = ''

    def __str__(self) -> str:
        if self.value is None:
            middle = f'{"":38}'
        elif self.tolerance is None:
            middle = f'equal {self.value:9.4%}   must be    100 %    '
        else:
            middle = f'max |d| {self.value:9.2e}  tolerance {self.tolerance:.0e}  '
        return f'{"pass" if self.passed else "FAIL"}  {self.name:36} {middle}{self.note}'.rstrip()


def report(rows: list[Row]) -> bool:
    """Print the rows; return whether all pass."""
    failed = sum(not row.passed for row in rows)
    print(*rows, f'{len(rows)} tensors, {failed} failed', sep='\n')
    return not failed


class ParityCase:
    """Compares the tensors of a folder. Subclasses set `checks`: patterns of names, and the methods that compare them.

    A method is called with the tensor's name and the named groups of its pattern.
    """

    checks: list[tuple[str, Callable[..., Row]]]

    def __init__(self, folder: Path, tensors: dict[str, np.ndarray]):
        self.tensors = tensors
        self.config = json.loads((folder / 'config.json').read_text())
        self.weights = _module(folder / 'det_weights.py')

    def check(self, name: str) -> Row:
        """Return the row of one tensor. An error in this implementation fails this tensor only."""
        for pattern, function in self.checks:
            if match := re.fullmatch(pattern, name):
                try:
                    return function(name, **match.groupdict())
                except (ValueError, IndexError, KeyError, RuntimeError) as error:
                    return Row(name, None, None, False, f'cannot be checked: {error}')
        return Row(name, None, None, False, 'cannot be checked: unknown tensor name')

    def texts(self) -> list[Row]:
        """Rows of what a folder has beside its tensors."""
        return []

    def _get(self, name: str) -> np.ndarray:
        if name not in self.tensors:
            raise ValueError(f'tensor {name} is missing')
        return self.tensors[name]

    def _input(self, name: str) -> Row:
        return Row(name, None, None, True, 'input')

    def _integers(self, name: str, ours: Tensor | np.ndarray, note: str = '') -> Row:
        ours, theirs = np.asarray(ours), self.tensors[name]
        if ours.shape != theirs.shape:
            return Row(name, None, None, False, f'shape {theirs.shape}, ours is {ours.shape}')
        equal = float((ours == theirs).mean()) if theirs.size else 1.0
        return Row(name, equal, None, equal == 1, note)

    def _numbers(self, name: str, ours: Tensor | np.ndarray, tolerance: float, note: str = '') -> Row:
        ours, theirs = np.asarray(ours), self.tensors[name]
        if ours.shape != theirs.shape:
            return Row(name, None, None, False, f'shape {theirs.shape}, ours is {ours.shape}')
        known = np.isfinite(theirs)
        if not np.array_equal(known, np.isfinite(ours)):
            return Row(name, None, None, False, 'NaN or infinity where the other is a number')
        deviation = float(np.abs(ours.astype(np.float64) - theirs)[known].max(initial=0.0))
        return Row(name, deviation, tolerance, deviation <= tolerance, note)


def needed(path: Path) -> Path:
    """Return the path of a file. Raises FileNotFoundError where it is missing."""
    if not path.is_file():
        raise FileNotFoundError(f'{path} is missing: a parity folder needs it')
    return path


def fill(module: M, make: Callable, name: Callable[[str], str] = str, skip: str = '!') -> M:
    """The module with weights that `make` gives for a name and a shape; returns it in evaluation mode.

    name: gives the folder's name of one of our parameters. skip: start of the names of those that keep their values.
    """
    ours = {n: t for n, t in module.state_dict().items() if not n.startswith(skip)}
    module.load_state_dict({n: torch.from_numpy(make(name(n), t.shape)) for n, t in ours.items()}, strict=False)
    return module.eval()


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location('det_weights', path)
    if spec is None or spec.loader is None:
        raise ValueError(f'{path} is no Python module')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
