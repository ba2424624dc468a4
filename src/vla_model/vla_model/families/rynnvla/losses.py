"""What RynnVLA-002 is trained to: tokens of the answer, and the continuous chunk of the action head."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vla_model.families.rynnvla.tokens import ACTION_START, VOCABULARY

IGNORED = -100  # label of a token that is not learned
IMAGE_WEIGHT = 0.04  # of image codes; the reference weighs ids 3 to 8194, one below the codes
ACTION_WEIGHT, Z_WEIGHT = 10.0, 1e-5


def class_weights(device: torch.device) -> Tensor:
    """(VOCABULARY,) weight of each id in the cross-entropy."""
    weights = torch.ones(VOCABULARY, device=device)
    weights[3:8195] = IMAGE_WEIGHT
    return weights


def token_losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(Cross-entropy, z-loss) of logits (n, VOCABULARY), each of which predicts its label (n,), not IGNORED.

    Cross-entropy: mean weighted by class. z-loss: mean of the squared logarithm of the sum of exponentials.
    """
    return F.cross_entropy(logits, labels, class_weights(logits.device)), logits.logsumexp(-1).square().mean()


def has_chunk(ids: Tensor) -> Tensor:
    """(B,) bool: which samples (B, T) have more than one action block, so that the action head learns from them."""
    return (ids == ACTION_START).sum(1) > 1


def total_loss(cross_entropy: Tensor, z: Tensor, action: Tensor) -> Tensor:
    """The sum that is minimised. action: mean absolute error of the action head."""
    return cross_entropy + ACTION_WEIGHT * action + Z_WEIGHT * z
