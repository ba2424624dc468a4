"""Implements LoRA: the product of two small matrices is learned beside the frozen weights of linear layers.

Hu et al., 2021: y = W x + alpha / rank * B A x. A (rank, inputs) starts normal, B (outputs, rank) starts at zero.
`merge` returns W + alpha / rank * B A, which makes the adapted network a plain one.
"""

from dataclasses import dataclass
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vla_model.network import Network
from vla_model.tokens.vocabulary import Vocabulary

LINEARS = ('q_proj', 'k_proj', 'v_proj', 'attn_out', 'ff_proj', 'up_proj', 'ff_out')


@dataclass(frozen=True)
class Lora:
    """Settings of LoRA."""

    rank: int = 0  # 0: no LoRA, all weights are trained
    alpha: float = 32.0
    dropout: float = 0.0  # of the inputs of A
    targets: tuple[str, ...] = LINEARS  # adapted layers of every block
    train_tables: bool = True  # also train the rows of the bins in the embedding and in the head

    def __post_init__(self) -> None:
        if self.rank < 0 or not self.alpha > 0 or not 0 <= self.dropout < 1:
            raise ValueError(f'lora needs rank 0 or more, alpha above 0 and dropout in 0..1, got {self}')
        if unknown := sorted(set(self.targets) - set(LINEARS)):
            raise ValueError(f'lora.targets has {unknown[0]}, blocks have {", ".join(LINEARS)}')

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class LoraLinear(nn.Module):
    """Replaces a linear layer without bias. Its weight keeps its name."""

    def __init__(self, linear: nn.Linear, lora: Lora) -> None:
        super().__init__()
        self.weight, self.scale, self.dropout = linear.weight, lora.scale, lora.dropout
        self.lora_a = nn.Parameter(self.weight.new_empty(lora.rank, linear.in_features, dtype=torch.float32))
        self.lora_b = nn.Parameter(self.weight.new_empty(linear.out_features, lora.rank, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        small = F.linear(F.dropout(x, self.dropout, self.training), self.lora_a)
        return F.linear(x, self.weight) + F.linear(small, self.lora_b) * self.scale


class LastRows(nn.Module):
    """Makes the last rows of a table, those of the bins, a parameter of its own."""

    def __init__(self, table: Tensor, rows: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(table.new_empty(rows, table.shape[1], dtype=torch.float32))

    def forward(self, table: Tensor) -> Tensor:
        return torch.cat([table[: -len(self.rows)], self.rows.to(table.dtype)])


def attach(network: Network, v: Vocabulary, lora: Lora) -> None:
    """Freeze the network and add the trained matrices, not yet initialised: see `first`."""
    network.requires_grad_(False)
    t = network.model['transformer']
    for block in t.blocks:  # type: ignore[union-attr]
        for name in lora.targets:
            setattr(block, name, LoraLinear(getattr(block, name), lora))
    if lora.train_tables:
        for module in (t.wte, t.ff_out):  # type: ignore[union-attr]
            parametrize.register_parametrization(module, 'weight', LastRows(module.weight, v.bins))  # type: ignore[arg-type, union-attr]


def plain_name(name: str) -> str:
    """Return the name of the plain parameter to which a parameter of an adapted network belongs."""
    for part in ('.parametrizations.weight.original', '.parametrizations.weight.0.rows', '.lora_a', '.lora_b'):
        name = name.replace(part, '.weight')
    return name


def first(name: str, shape: torch.Size, seed: int) -> Tensor:
    """Return the initial matrix: A is normal with standard deviation inputs^-0.5, B is zero."""
    if name.endswith('lora_b'):
        return torch.zeros(shape)
    generator = torch.Generator().manual_seed((seed << 32) + crc32(name.encode()))
    return torch.randn(shape, generator=generator) * shape[1] ** -0.5


def merge(group: dict[str, Tensor], scale: float) -> Tensor:
    """Return the plain parameter, fp32, from the whole tensors by name that belong to it."""
    values = {name.rpartition('.')[2]: value.float() for name, value in group.items()}
    if 'rows' in values:
        return torch.cat([values['original'][: -len(values['rows'])], values['rows']])
    if 'lora_a' in values:
        return values['weight'] + scale * values['lora_b'] @ values['lora_a']
    return values['weight'] if 'weight' in values else values['original']
