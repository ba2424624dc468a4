"""The network of MolmoAct on prompts with pictures."""

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


def answer(network: WithPictures, ids: Tensor, grammar: Grammar) -> Steps[Tokens]:
    """The greedy answer to a prompt `ids` (1, T) within a grammar, with its closing mark. A forward per decision.

    It is the free greedy answer wherever that is in the grammar.
    """
    return autoregressive(network, VOCABULARY, ids, frozenset({END}), grammar.longest, grammar.allowed())


def pictures_in(ids: Tensor) -> int:
    """Image tokens of a prompt (1, T)."""
    return int(torch.count_nonzero(ids == IMAGE_PATCH))
