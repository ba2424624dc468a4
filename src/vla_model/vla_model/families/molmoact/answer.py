"""Reads MolmoAct's answers: depth codes, a trace, a chunk of actions. What is malformed is refused, never a motion.

The reference maps unknown words to the largest or smallest value, drops rows of a wrong length, and takes what is left
of an answer that was cut.
"""

import re
from dataclasses import dataclass

import numpy as np

from vla_model.families.molmoact.tokens import DEPTHS, bin_values

MOST_POINTS, LARGEST = 5, 255
_NUMBER = re.compile(r'[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?')


@dataclass(frozen=True)
class Answer:
    """What an answer has."""

    depth: np.ndarray  # (100,) codes, or (0,)
    trace: np.ndarray  # (n, 2) points, x and y in 0..255 of the first picture, or (0, 2)
    actions: np.ndarray  # (steps, dims) in [-1, 1]


def read(text: str, words: dict[str, int], dims: int, steps: int = 0) -> Answer:
    """Reads an answer. words: bin of each action word. steps: of the chunk; 0: any number.

    Raises ValueError, with the text, where the chunk is missing, cut or has anything but action words, or where depth
    or trace are not as they should be.
    """
    try:
        groups = [group for group in action_groups(text) if not _numeric(group)]
        if text.count('[') != text.count(']'):
            raise ValueError('a bracket is not closed: the answer was cut')
        if not groups:
            raise ValueError('there is no action')
        bins = [_bins(group, words, dims) for group in groups]
        if steps and len(bins) != steps:
            raise ValueError(f'{len(bins)} actions, {steps} are needed')
        return Answer(_depth(text), _trace(text), bin_values(np.array(bins)))
    except ValueError as error:
        raise ValueError(f'the answer cannot be executed ({error}): {text!r}') from None


def depth_strings(text: str) -> list[str]:
    """Depth maps in a text, as written."""
    return re.findall(r'<DEPTH_START>.*?<DEPTH_END>', text, re.DOTALL)


def depth_codes(depth: str) -> list[int]:
    """The numbers of a depth map."""
    return [int(n) for n in re.findall(r'<DEPTH_(\d+)>', depth)]


def depth_grid(count: int) -> tuple[int, int]:
    """(rows, columns) in which so many codes are laid out: the most square ones."""
    rows = next(n for n in range(int(count**0.5), 0, -1) if count % n == 0)
    return rows, count // rows


def traces(text: str) -> list[list[list[float]]]:
    """Lists of points: bracket blocks, all of whose inner groups are pairs of numbers."""
    found = []
    for block in _blocks(text):
        groups = action_groups(block)
        if groups and all(len(group) == 2 and _numeric(group) for group in groups):
            found.append([[float(n) for n in group] for group in groups])
    return found


def action_groups(text: str) -> list[list[str]]:
    """Pieces of every bracket group without brackets inside, without quotes."""
    return [
        [piece.strip().strip('\'"').strip() for piece in group.split(',')]
        for group in re.findall(r'\[([^\[\]]+)\]', text)
        if group.strip()
    ]


def _bins(group: list[str], words: dict[str, int], dims: int) -> list[int]:
    if len(group) != dims:
        raise ValueError(f'an action has {len(group)} numbers, {dims} are needed')
    if wrong := [piece for piece in group if piece not in words]:
        raise ValueError(f'{wrong[0]!r} is no action word')
    return [words[piece] for piece in group]


def _depth(text: str) -> np.ndarray:
    maps = depth_strings(text)
    if '<DEPTH_START>' in text and not maps:
        raise ValueError('the depth map is not closed')
    codes = depth_codes(maps[0]) if maps else []
    if maps and (len(codes) != 100 or max(codes) >= DEPTHS):
        raise ValueError(f'the depth map has {len(codes)} codes up to {max(codes, default=0)}, not 100 below {DEPTHS}')
    return np.array(codes, np.int64)


def _trace(text: str) -> np.ndarray:
    found = traces(text)
    if not found:
        return np.zeros((0, 2))
    points = np.array(found[0])
    if len(points) > MOST_POINTS or points.min() < 0 or points.max() > LARGEST:
        raise ValueError(f'the trace {points.tolist()} is not up to {MOST_POINTS} points in 0..{LARGEST}')
    return points


def _numeric(group: list[str]) -> bool:
    return all(_NUMBER.fullmatch(piece) for piece in group)


def _blocks(text: str) -> list[str]:
    """Outermost balanced bracket blocks; a bracket that is never closed is passed over."""
    found, i = [], 0
    while (i := text.find('[', i)) >= 0:
        depth = 0
        for j in range(i, len(text)):
            depth += (text[j] == '[') - (text[j] == ']')
            if depth == 0:
                found.append(text[i : j + 1])
                i = j
                break
        i += 1
    return found
