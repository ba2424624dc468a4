"""Prompts of a batch: filled, aligned and masked, with labels and weights."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vla_model.tokens.prompt import Template


class Prompts:
    """The prompts of one mode for every text of the data, aligned at their ends: ids (texts, length)."""

    def __init__(self, templates: list[Template], pad: int, device: torch.device) -> None:
        longest = max(len(t.ids) for t in templates)
        self.lengths = torch.tensor([len(t.ids) for t in templates], device=device)
        self.ids = torch.full((len(templates), longest), pad, device=device)
        for row, t in zip(self.ids, templates, strict=True):
            row[longest - len(t.ids) :] = t.ids
        shift = longest - self.lengths
        one = templates[0]
        behind = len(one.ids) - one.block.stop
        # Ends are aligned, so the block is at the same place in all of them.
        self.block = slice(longest - behind - (one.block.stop - one.block.start), longest - behind)
        # Name -> (start (texts,), length) of the slots that are filled.
        self.slots = {
            name: (shift + torch.tensor([getattr(t, name).start for t in templates], device=device), stop - start)
            for name in ('state', 'actions', 'trace')
            if (stop := getattr(one, name).stop) > (start := getattr(one, name).start)
        }
        self.views = shift[:, None] + torch.tensor([[v.start for v in t.views] for t in templates], device=device)

    def fill(self, text: Tensor, views: Tensor, block: Tensor, **values: Tensor) -> tuple[Tensor, Tensor | None, slice]:
        """Return (ids (B, L), valid (B, L) or None without padding, block) of filled prompts.

        text (B,): rows of the prompts. views (B, views, tokens), block (B, n), and values, which must contain each of
        the `slots`: ids.
        """
        ids = self.ids[text]
        starts = self.views[text]
        for i in range(views.shape[1]):
            place = starts[:, i, None] + torch.arange(views.shape[2], device=ids.device)
            ids.scatter_(1, place, views[:, i])
        for name, (start, length) in self.slots.items():
            place = start[text][:, None] + torch.arange(length, device=ids.device)
            ids.scatter_(1, place, values[name])
        ids[:, self.block] = block
        lengths = self.lengths[text]
        longest, shortest = (int(x) for x in torch.aminmax(lengths)[::-1])
        cut = ids.shape[1] - longest
        ids = ids[:, cut:]
        valid = None
        if shortest < longest:
            valid = torch.arange(longest, device=ids.device) >= longest - lengths[:, None]
        return ids, valid, slice(self.block.start - cut, self.block.stop - cut)


@dataclass(frozen=True)
class Batch:
    """Prompts of one mode with their blocks masked."""

    ids: Tensor  # (B, L)
    valid: Tensor | None  # (B, L) bool; None: no padding
    block: slice  # n positions
    part: slice  # of the vocabulary: possible ids of a token of the block
    label: Tensor  # (B, n), counted from the start of `part`
    weight: Tensor  # (B, n) weights of the cross-entropies in the loss, which is their sum
    counted: Tensor  # (B, n) 0 for tokens that are not masked, else 1 / number of masked tokens of the whole batch
    exact: Tensor | None = None  # (B, n) normalized numbers for the continuous action head; None: it does not learn
    exact_weight: Tensor | None = None  # (B, n) weights of their absolute errors in the loss

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, index: Tensor, zeroed: Tensor) -> 'Batch':
        """Return the prompts `index` (k,). Those that are `zeroed` (k,) bool have no weight."""
        weight, counted = (w[index] * ~zeroed[:, None] for w in (self.weight, self.counted))
        valid = None if self.valid is None else self.valid[index]
        exact, exact_weight = None, None
        if self.exact is not None and self.exact_weight is not None:
            exact, exact_weight = self.exact[index], self.exact_weight[index] * ~zeroed[:, None]
        return Batch(
            self.ids[index], valid, self.block, self.part, self.label[index], weight, counted, exact, exact_weight
        )

    def parts(self, size: int, rank: int = 0, ranks: int = 1) -> Iterator['Batch']:
        """Yield pieces of at most `size` prompts (0: one piece) for process `rank`. All processes get equal pieces."""
        each = math.ceil(len(self) / ranks)
        index = torch.arange(each * ranks, device=self.ids.device)[rank * each : (rank + 1) * each]
        for some in index.split(size or each):
            yield self.rows(some.clamp(max=len(self) - 1), some >= len(self))
