"""Answers of RynnVLA-002: chunks, block-parallel, and the next images, token by token. Both follow the grammar."""

import math

import torch
from torch import Tensor

from vla_model.decode import Allowed, Steps, Tokens, autoregressive
from vla_model.families.rynnvla.mask import chunk_mask
from vla_model.families.rynnvla.tokens import (
    ACTION,
    CODES,
    FIRST_CODE,
    FIRST_SIZE,
    IMAGE_END,
    IMAGE_START,
    PATCH,
    ROW_END,
    SIZE_UNIT,
    TURN_END,
    VOCABULARY,
)
from vla_model.network import KeyValues, Network


def chunk(network: Network, ids: Tensor, horizon: int, dims: int) -> Steps[Tokens]:
    """Greedy answer to an action prompt `ids` (1, n): (horizon * (dims + 2) + 1,) ids, and the probability of each.

    Blocks behind the last image do not see one another, so token j of every block is made in one forward: `dims`
    forwards after the prompt, and the answer is that of decoding token by token. Marks take no forward.
    """
    n, size = ids.shape[1], dims + 2
    block = torch.full((horizon, size), ACTION.bins.start, device=ids.device)
    block[:, 0], block[:, -1] = ACTION.start, ACTION.end
    tail = torch.tensor([TURN_END], device=ids.device)
    known = torch.cat((ids[0], block.flatten(), tail))
    total = len(known)
    mask = chunk_mask(known.cpu().numpy()).to(ids.device)[None, None]
    probability = torch.ones(total - n, device=ids.device)
    cache = KeyValues(n, capacity=total)
    network.hidden(network.embed(ids), slice(n - 1, n), n, None, cache)
    starts = n + torch.arange(horizon, device=ids.device) * size
    for j in range(dims):
        yield
        cache.positions = starts + j
        h = network.hidden(network.embed(known[None, starts + j]), slice(total - horizon, total), total, mask, cache)
        best = network.head(h, ACTION.bins)[0].float().softmax(-1).max(-1)
        known[starts + j + 1] = best.indices + ACTION.bins.start
        probability[starts + j + 1 - n] = best.values
    return known[n:], probability


def image_grammar(sides: list[tuple[int, int]]) -> Allowed:
    """Which ids may follow in an answer of images of these (rows, columns) of codes: all but the codes is known."""
    fixed: list[int] = []
    for rows, columns in sides:
        fixed += [IMAGE_START, *(FIRST_SIZE + n * PATCH // SIZE_UNIT for n in (rows, columns))]
        fixed += ([-1] * columns + [ROW_END]) * rows + [IMAGE_END]
    fixed.append(TURN_END)

    def allowed(tokens: list[int]) -> slice:
        token = fixed[len(tokens)]
        return slice(FIRST_CODE, FIRST_CODE + CODES) if token < 0 else slice(token, token + 1)

    return allowed


def images(network: Network, ids: Tensor, sides: list[tuple[int, int]]) -> Steps[Tokens]:
    """Greedy answer to a world-model prompt `ids` (1, n): images of these (rows, columns) of codes, as ids."""
    longest = sum(4 + math.prod((rows, columns + 1)) for rows, columns in sides) + 1
    return autoregressive(network, VOCABULARY, ids, frozenset({TURN_END}), longest, image_grammar(sides))
