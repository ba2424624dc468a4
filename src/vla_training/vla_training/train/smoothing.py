"""The cross-entropy of bins with smoothed labels."""

import math

import torch
from torch import Tensor


def smoothed_cross_entropy(logits: Tensor, label: Tensor, sigma: float) -> Tensor:
    """Return the cross-entropy (B, n) of logits (B, n, bins) with a Gaussian of `sigma` bins at each label (B, n)."""
    reach = math.ceil(3 * sigma)
    offset = torch.arange(-reach, reach + 1, device=logits.device)
    place = label[..., None] + offset
    inside = (place >= 0) & (place < logits.shape[-1])
    weight = torch.exp(-0.5 * (offset / sigma) ** 2) * inside
    weight = weight / weight.sum(-1, keepdim=True)
    near = logits.gather(-1, place.clamp(0, logits.shape[-1] - 1))
    return logits.logsumexp(-1) - (near * weight).sum(-1)
