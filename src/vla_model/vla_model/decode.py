"""From a prompt with masks to actions: all steps of a chunk in one forward."""

from torch import Tensor

from .network import Network
from .vocabulary import Vocabulary


def action(
    network: Network, vocabulary: Vocabulary, ids: Tensor, block: slice, given: int = 0
) -> tuple[Tensor, Tensor]:
    """Bins (N,) int64 of the action block and the probability (N,) fp32 that the network gives each of them.

    ids (1, T) with the block's N slots masked but for the first `given`: those are committed, they condition the rest,
    keep their bins and get probability 1. The rest is decoded greedily, the same for the same input.
    """
    bins = ids[0, block] - vocabulary.bins_offset
    probability = ids.new_ones(len(bins)).float()
    if given < len(bins):
        logits = network(ids, slice(block.start + given, block.stop), slice(vocabulary.bins_offset, vocabulary.size))
        best = logits[0].float().softmax(-1).max(-1)
        probability[given:], bins[given:] = best.values, best.indices
    return bins, probability
