"""The network of MolmoAct on prompts with pictures."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vla_model.decode import Steps, Tokens, autoregressive
from vla_model.families.molmoact.grammar import Grammar
from vla_model.families.molmoact.tokens import END, IMAGE_PATCH, VOCABULARY
from vla_model.network import KeyValues, Network


class WithPictures:
    """A Network whose image tokens have features added to their embeddings; called as a Network is."""

    def __init__(self, network: Network, features: Tensor):
        """features: (N, d_model) of the image tokens of the prompt, in their order."""
        self._network, self._features = network, features

    def __call__(self, ids: Tensor, rows: slice | Tensor, vocabulary: slice, cache: KeyValues | None = None) -> Tensor:
        """Logits (1, rows, vocabulary) of ids (1, T), see Network.forward."""
        return self._network.head(self.hidden(ids, rows, cache), vocabulary)

    def hidden(self, ids: Tensor, rows: slice | Tensor, cache: KeyValues | None = None) -> Tensor:
        """Final hidden states (1, rows, d_model)."""
        at = cache.positions if cache is not None and cache.layers else slice(0, None)
        h = self._network.embed(ids[:, at])
        places = (ids == IMAGE_PATCH).cumsum(1)[:, at] - 1
        image = ids[:, at] == IMAGE_PATCH
        if image.any():
            h = h.clone()
            h[image] += self._features[places[image]].to(h.dtype)
        return self._network.hidden(h, rows, ids.shape[1], None, cache)


def answer(network: WithPictures, ids: Tensor, grammar: Grammar, given: Sequence[int] = ()) -> Steps[Tokens]:
    """The greedy answer to a prompt `ids` (1, T) within a grammar, with its closing mark. A forward per decision.

    It is the free greedy answer wherever that is in the grammar. given: ids that it begins with.
    """
    follow = grammar.allowed()

    def allowed(tokens: list[int]) -> slice | Tensor:
        n = len(tokens)
        return slice(given[n], given[n] + 1) if n < len(given) else follow(tokens)

    return autoregressive(network, VOCABULARY, ids, frozenset({END}), grammar.longest, allowed)


def preferred(network: WithPictures, ids: Tensor, found: Tensor) -> Tensor:
    """Return (n,) the id that the network prefers at each place of an answer `found` (n,) to a prompt `ids` (1, T)."""
    whole = torch.cat((ids, found[None]), 1)
    rows = slice(ids.shape[1] - 1, whole.shape[1] - 1)
    return network(whole, rows, slice(0, VOCABULARY))[0].argmax(-1)


def pictures_in(ids: Tensor) -> int:
    """Image tokens of a prompt (1, T)."""
    return int(torch.count_nonzero(ids == IMAGE_PATCH))
