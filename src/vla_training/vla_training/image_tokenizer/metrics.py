"""Measures the similarity of images and the use of a tokenizer's codes."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio (B,) [dB] of images (B, 3, H, W) in [0, 1]; 100 for equal images."""
    error = (a.float() - b.float()).square().flatten(1).mean(1)
    return -10 * torch.log10(error.clamp(min=1e-10))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Return the structural similarity (B,) of images (B, 3, H, W) in [0, 1], mean over channels and places.

    Wang et al. 2004: Gaussian window of 11 px with sigma 1.5, K1 = 0.01, K2 = 0.03, no padding.
    """
    if min(a.shape[2:]) < 11:
        raise ValueError(f'SSIM needs images of at least 11 px, got {tuple(a.shape[2:])}')
    a, b = a.float(), b.float()
    window = torch.exp(-0.5 * ((torch.arange(11, device=a.device) - 5) / 1.5) ** 2)
    window = window / window.sum()

    def blur(x: Tensor) -> Tensor:
        x = x.flatten(0, 1)[:, None]
        x = F.conv2d(F.conv2d(x, window.view(1, 1, 11, 1)), window.view(1, 1, 1, 11))
        return x.unflatten(0, a.shape[:2])[:, :, 0]

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    likeness = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (likeness / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).flatten(1).mean(1)


@dataclass(frozen=True)
class CodeUsage:
    """Statistics of the codes of many images."""

    used: int  # distinct codes
    perplexity: float  # exp of the entropy of the code's distribution
    bits: float  # sum of the entropies of the single bits [bit]
    dead_bits: int  # number of bits with less than 0.1 bit of entropy

    @classmethod
    def of(cls, codes: Tensor, bits: int) -> 'CodeUsage':
        """Return the statistics of codes: integers of any shape below 2^bits."""
        counts = torch.bincount(codes.flatten().cpu(), minlength=2**bits).double()
        share = counts[counts > 0] / counts.sum()
        ones = torch.stack([((codes >> i) & 1).double().mean() for i in range(bits)]).clamp(1e-12, 1 - 1e-12)
        entropy = -(ones * ones.log2() + (1 - ones) * (1 - ones).log2())
        perplexity = math.exp(-float((share * share.log()).sum()))
        return cls(len(share), perplexity, float(entropy.sum()), int((entropy < 0.1).sum()))
