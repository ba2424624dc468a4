"""The attention mask of action chunks: blocks behind the last image do not see one another."""

import numpy as np
import torch
from torch import Tensor

from vla_model.families.rynnvla.tokens import ACTION_END, ACTION_START, IMAGE_END, IMAGE_START


def blocks(ids: np.ndarray, start: int, end: int) -> list[tuple[int, int]]:
    """(first, last) positions of the blocks between marks. An unclosed last block reaches to the end of the ids.

    A last end mark too many is dropped. Raises ValueError where starts and ends differ by more.
    """
    starts, ends = np.flatnonzero(ids == start).tolist(), np.flatnonzero(ids == end).tolist()
    if len(starts) == len(ends) + 1:
        ends.append(len(ids) - 1)
    elif len(ends) == len(starts) + 1:
        ends.pop()
    if len(starts) != len(ends):
        raise ValueError(f'{len(starts)} starts (id {start}) and {len(ends)} ends (id {end}) of blocks do not pair')
    return list(zip(starts, ends, strict=True))


def chunk_mask(ids: np.ndarray) -> Tensor:
    """(T, T) bool, True where a row attends to a column, of the ids (T,).

    It is causal. A row of an action block that starts behind the last image does not attend to earlier action blocks.
    """
    mask = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    images = blocks(ids, IMAGE_START, IMAGE_END)
    last = images[-1][1] if images else -1
    actions = blocks(ids, ACTION_START, ACTION_END)
    for start, end in actions:
        if start > last:
            for before, to in actions:
                if to < start:
                    mask[start : end + 1, before : to + 1] = False
    return mask
