"""Defines the losses of the image tokenizer: small objects must be reconstructed, and all codes must be used."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vla_training.image_tokenizer.frames import FrameSet


@dataclass(frozen=True)
class ImageLosses:
    """Weights of the losses and of the pixels."""

    l1: float = 1.0
    l2: float = 2.0
    edge: float = 0.5  # L1 of the differences between neighbouring pixels, at two scales
    commitment: float = 0.1  # of the encoder's outputs to their signs
    entropy: float = 0.02
    diversity: float = 1.0  # weight of the entropy of a batch, relative to that of single places
    temperature: float = 0.5  # of the bits' probabilities
    moving: float = 4.0  # extra weight of a pixel that is far from its camera's mean image
    points: float = 1.0  # of the grounding points, where frames have them
    rare: float = 40.0  # extra weight of a pixel whose colour is rare for its camera; also scales the weight map


class Foreground:
    """Weights of pixels: arm and objects count more than the table, small objects most.

    Frames without a weight map get one from the distance to the camera's mean image and from the rarity of the colour.
    """

    def __init__(self, frames: FrameSet, rows: Tensor, losses: ImageLosses, device: torch.device) -> None:
        """Compute the statistics over `rows` of the frames. Raises ValueError for a camera without a frame."""
        self.losses = losses
        self.mapped = frames.weight is not None
        means, counts = [], []
        for camera in range(len(frames.cameras)):
            seen = rows[frames.camera[rows] == camera]
            if not len(seen):
                raise ValueError(f'no frame of camera {frames.cameras[camera]} to learn from: collect some')
            total = torch.zeros(frames.images.shape[1:], dtype=torch.float64)
            count = torch.zeros(16**3, dtype=torch.float64)
            for part in seen.split(256):
                images = frames.images[part]
                total += images.double().sum(0)
                count += torch.bincount(_colour(images).flatten(), minlength=16**3)
            means.append((total / len(seen) / 255).float())
            counts.append(F.avg_pool3d(count.view(1, 1, 16, 16, 16), 3, 1, 1).flatten())
        share = torch.stack(counts)
        share = share / share.sum(1, keepdim=True)
        self.mean = torch.stack(means).to(device)  # (cameras, 3, R, R) in [0, 1]
        # 0 for colours that make up 1 % or more, 1 for those below 0.001 %.
        self.rarity = (torch.log10(1e-2 / (share + 1e-12)) / 3).clamp(0, 1).float().to(device)  # (cameras, 4096)

    def weight(self, images: Tensor, camera: Tensor, given: Tensor | None) -> Tensor:
        """Return weights (B, 1, R, R) of images (B, 3, R, R) uint8. camera: (B,). given: maps (B, R, R) uint8."""
        if given is not None:
            return 1 + self.losses.rare * given[:, None].float() / 255
        distance = (images.float() / 255 - self.mean[camera]).abs().amax(1, keepdim=True)
        moving = ((distance - 0.08) / 0.3).clamp(0, 1)  # grain and light are below
        rare = self.rarity[camera[:, None, None], _colour(images)][:, None]
        rare = F.max_pool2d(F.avg_pool2d(rare, 3, 1, 1, count_include_pad=False), 3, 1, 1)  # with a rim, without specks
        return 1 + self.losses.moving * moving + self.losses.rare * rare


def _colour(images: Tensor) -> Tensor:
    """Quantize colours (B, 3, H, W) uint8 to (B, H, W) int64 below 16^3."""
    q = (images >> 4).long()
    return (q[:, 0] * 16 + q[:, 1]) * 16 + q[:, 2]


def reconstruction_loss(made: Tensor, real: Tensor, weight: Tensor, losses: ImageLosses) -> Tensor:
    """Return the loss (scalar) of images (B, 3, R, R) in [-1, 1]. weight: (B, 1, R, R), of any scale."""
    weight = weight / weight.mean()
    difference = made.float() - real
    loss = losses.l1 * (weight * difference.abs()).mean() + losses.l2 * (weight * difference.square()).mean()
    for _ in range(2):
        across = (difference[..., 1:] - difference[..., :-1]).abs() * weight[..., 1:]
        down = (difference[..., 1:, :] - difference[..., :-1, :]).abs() * weight[..., 1:, :]
        loss = loss + losses.edge * (across.mean() + down.mean()) / 2
        difference, weight = F.avg_pool2d(difference, 2), F.avg_pool2d(weight, 2)
    return loss


def signs(z: Tensor) -> Tensor:
    """Return the signs +-1 of z as the quantizer reads them. The gradient passes straight through."""
    hard = torch.where(z > 0, 1.0, -1.0).to(z.dtype)
    return z + (hard - z).detach()


def code_losses(z: Tensor, losses: ImageLosses) -> tuple[Tensor, Tensor]:
    """Return the losses (commitment, entropy) of the encoder's outputs z (B, bits, H, W).

    Entropy is that of MAGVIT-v2 (Yu et al. 2023, eq. 5) per independent bit [nat]. Each place should be sure of its
    bits, and all places together should use both values of each bit.
    """
    z = z.float()
    commitment = (z - torch.where(z > 0, 1.0, -1.0)).square().mean()
    # Distances to -1 and +1 differ by 4 z.
    p = torch.sigmoid(4 * z / losses.temperature)
    single = _entropy(p).mean()
    together = _entropy(p.mean((0, 2, 3))).mean()
    return commitment, single - losses.diversity * together


def _entropy(p: Tensor) -> Tensor:
    """Return the entropy of bits that are 1 with probability p [nat]."""
    p = p.clamp(1e-6, 1 - 1e-6)
    return -(p * p.log() + (1 - p) * (1 - p).log())
