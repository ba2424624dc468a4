"""The depth tokenizer of MolmoAct: a VQ-VAE of depth pictures, 10 x 10 codes of 128.

Parameter names are those of `vae-final.pt`, without `module.`. The class is the `Depth` part alone: no colour, relative
depth, scaled per picture.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

SIDE = 320  # [px] of a picture


@dataclass(frozen=True)
class DepthConfig:
    """Shape; the defaults are those of the released tokenizer."""

    channels: int = 16  # of the first convolution; each of five doubles them
    blocks: int = 2
    codes: int = 128
    width: int = 512  # of a code

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]]) -> 'DepthConfig':
        """Return the shape that tensors have. Raises KeyError naming one that is missing."""
        blocks = {name.split('.')[1] for name in shapes if re.match(r'encoder\.\d+\.net\.', name)}
        return cls(shapes['encoder.0.weight'][0], len(blocks), *shapes['_vq_vae._embedding'])


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + x


class _Codes(nn.Module):
    """The table; the released file has the sums of its moving average beside it."""

    def __init__(self, c: DepthConfig):
        super().__init__()
        self.register_buffer('_embedding', torch.zeros(c.codes, c.width))
        self.register_buffer('_ema_cluster_size', torch.zeros(c.codes))
        self.register_buffer('_ema_w', torch.zeros(c.codes, c.width))


class DepthTokenizer(nn.Module):
    """Depth pictures (B, 1, 320, 320) in [0, 1] as codes (B, 10, 10), and back."""

    def __init__(self, config: DepthConfig):
        super().__init__()
        widths = [1] + [config.channels * 2**i for i in range(5)]
        down: list[nn.Module] = []
        for inside, outside in pairwise(widths):
            down += [nn.Conv2d(inside, outside, 4, stride=2, padding=1), nn.ReLU()]
        down += [_Residual(widths[-1]) for _ in range(config.blocks)]
        self.encoder = nn.Sequential(*down, nn.Conv2d(widths[-1], config.width, 1))
        up: list[nn.Module] = [nn.Conv2d(config.width, widths[-1], 1), nn.ReLU()]
        up += [_Residual(widths[-1]) for _ in range(config.blocks)]
        outs = [widths[-1], *widths[-2:0:-1]]
        for inside, outside in zip([widths[-1], *outs[:-1]], outs, strict=True):
            up += [nn.ConvTranspose2d(inside, outside, 4, stride=2, padding=1), nn.ReLU()]
        self.decoder = nn.Sequential(*up, nn.Conv2d(widths[1], 1, 1))
        self._vq_vae = _Codes(config)

    @property
    def table(self) -> Tensor:
        """(codes, width)."""
        return self._vq_vae._embedding  # type: ignore[return-value]

    def encode(self, depth: Tensor) -> Tensor:
        """Codes (B, 10, 10) of depth pictures (B, 1, 320, 320) in [0, 1]."""
        z = self.encoder(depth).movedim(1, -1)
        return ((z**2).sum(-1, keepdim=True) + (self.table**2).sum(-1) - 2 * z @ self.table.T).argmin(-1)

    def decode(self, codes: Tensor) -> Tensor:
        """Depth pictures (B, 320, 320), of any scale, of codes (B, 10, 10)."""
        return self.decoder(F.embedding(codes, self.table).movedim(-1, 1))[:, 0]


def to_input(depth: np.ndarray) -> Tensor:
    """(1, 1, 320, 320) in [0, 1] of a depth picture (h, w) uint8, scaled per picture."""
    picture = Image.fromarray(depth).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(picture, np.float32) / np.float32(255))[None, None]


def to_unit(depth: Tensor) -> Tensor:
    """A decoded picture, brought to [0, 1] for viewing. One that is flat becomes 0."""
    return (depth - depth.min()) / (depth.max() - depth.min()).clamp(min=1e-12)
