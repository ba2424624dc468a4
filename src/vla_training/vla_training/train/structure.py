"""Gives similar ids similar rows of the embedding tables while they train.

Neighbouring bins mean nearly the same number, and a bit means the same in every image code. A plain table learns each
row alone. Here a row is its own numbers plus a learned linear map of known features: a cosine basis of the bin's value,
or the bits of the code. `fold` returns the sum, so the trained network is a plain one.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vla_model.network import Network
from vla_model.tokens.vocabulary import Vocabulary

COSINES = 48  # of the basis over the bins; the finest has half a period of bins / 48
OWN = 0.1  # initial scale of a row's own numbers, relative to a table without features


def features(v: Vocabulary) -> Tensor:
    """Return the features (size, bits + COSINES) of every id.

    An image code has its bits as +-1, a bin at place x in 0..1 has cos(pi n x). All others are 0.
    """
    bits = (v.codes - 1).bit_length()
    out = torch.zeros(v.size, bits + COSINES)
    powers = 2 ** torch.arange(bits - 1, -1, -1)
    codes = torch.arange(v.codes)[:, None]
    out[v.image_offset : v.image_offset + v.codes, :bits] = ((codes & powers) != 0).float() * 2 - 1
    place = torch.arange(v.bins)[:, None] / (v.bins - 1)
    order = torch.arange(1, COSINES + 1)
    # Higher frequencies weigh less, so that the table becomes smooth first.
    out[v.bins_offset :, bits:] = torch.cos(math.pi * order * place) * (4 / (4 + order))
    return out


class Features(nn.Module):
    """Adds the mapped features to the rows of a table."""

    def __init__(self, v: Vocabulary, width: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        self.basis: Tensor
        self.register_buffer('basis', features(v), persistent=False)
        norm = self.basis.square().sum(1)
        spread = scale / norm[norm > 0].mean().sqrt()
        self.map = nn.Parameter(torch.randn(self.basis.shape[1], width, generator=generator) * spread)

    def forward(self, rows: Tensor) -> Tensor:
        return rows + self.basis.to(rows.dtype) @ self.map.to(rows.dtype)


def attach(network: Network, v: Vocabulary, seed: int) -> None:
    """Add the features to the embedding and to the head. Call it once, on the CPU, after initialisation."""
    generator = torch.Generator().manual_seed(seed)
    t = network.model['transformer']
    has = features(v).any(1)
    for module in (t.wte, t.ff_out):  # type: ignore[union-attr]
        weight: Tensor = module.weight  # type: ignore[assignment, union-attr]
        scale = float(weight.detach()[has].std())
        with torch.no_grad():
            weight[has] *= OWN
        parametrize.register_parametrization(module, 'weight', Features(v, weight.shape[1], scale, generator))  # type: ignore[arg-type]


def fold(state: dict[str, Tensor], v: Vocabulary) -> dict[str, Tensor]:
    """Return the state of a plain network from that of a network with or without features."""
    out = {}
    basis: Tensor | None = None
    for name, value in state.items():
        if name.endswith('.parametrizations.weight.original'):
            base = name.removesuffix('.parametrizations.weight.original')
            basis = features(v).to(value) if basis is None else basis
            out[f'{base}.weight'] = value + basis @ state[f'{base}.parametrizations.weight.0.map'].to(value)
        elif '.parametrizations.' not in name:
            out[name] = value
    return out
