"""The Chameleon image tokenizer: a VQGAN with 8192 codes, one for 16 x 16 pixels.

Parameter names are those of `vqgan.ckpt`, whose discriminator and loss are not read.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 32  # of every normalisation


@dataclass(frozen=True)
class VqganConfig:
    """Shape of the tokenizer; the defaults are those of the released one."""

    channels: int = 128  # base width
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks: int = 2  # residual blocks per level of the encoder; the decoder has one more
    z_channels: int = 256
    codes: int = 8192
    code_width: int = 256


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    def __init__(self, inside: int, outside: int):
        super().__init__()
        self.norm1, self.conv1 = _norm(inside), nn.Conv2d(inside, outside, 3, padding=1)
        self.norm2, self.conv2 = _norm(outside), nn.Conv2d(outside, outside, 3, padding=1)
        if inside != outside:
            self.nin_shortcut = nn.Conv2d(inside, outside, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, 'nin_shortcut') else x)


class AttentionBlock(nn.Module):
    """One head over all positions."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm(x)
        q, k, v = (layer(n).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).view_as(x)
        return x + self.proj_out(h)


class Level(nn.Module):
    """Residual blocks of one resolution, and the convolution to the next."""

    def __init__(self, inside: int, outside: int, blocks: int, change: str = ''):
        super().__init__()
        widths = [inside] + [outside] * blocks
        self.block = nn.ModuleList(ResnetBlock(a, b) for a, b in pairwise(widths))
        if change == 'down':
            self.downsample = nn.ModuleDict({'conv': nn.Conv2d(outside, outside, 3, stride=2)})
        elif change == 'up':
            self.upsample = nn.ModuleDict({'conv': nn.Conv2d(outside, outside, 3, padding=1)})

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        if hasattr(self, 'downsample'):
            return self.downsample['conv'](F.pad(x, (0, 1, 0, 1)))
        if hasattr(self, 'upsample'):
            return self.upsample['conv'](F.interpolate(x, scale_factor=2.0, mode='nearest'))
        return x


def _middle(width: int) -> nn.ModuleDict:
    return nn.ModuleDict({
        'block_1': ResnetBlock(width, width), 'attn_1': AttentionBlock(width), 'block_2': ResnetBlock(width, width),
    })  # fmt: skip


class Encoder(nn.Module):
    def __init__(self, c: VqganConfig):
        super().__init__()
        widths = [c.channels * m for m in (1, *c.multipliers)]
        last = len(c.multipliers) - 1
        self.conv_in = nn.Conv2d(3, c.channels, 3, padding=1)
        self.down = nn.ModuleList(
            Level(widths[i], widths[i + 1], c.blocks, 'down' if i < last else '') for i in range(last + 1)
        )
        self.mid = _middle(widths[-1])
        self.norm_out, self.conv_out = _norm(widths[-1]), nn.Conv2d(widths[-1], c.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        for part in self.mid.values():
            x = part(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    def __init__(self, c: VqganConfig):
        super().__init__()
        widths = [c.channels * m for m in c.multipliers]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(c.z_channels, widths[-1], 3, padding=1)
        self.mid = _middle(widths[-1])
        self.up = nn.ModuleList(
            Level(widths[min(i + 1, last)], widths[i], c.blocks + 1, 'up' if i else '') for i in range(last + 1)
        )
        self.norm_out, self.conv_out = _norm(widths[0]), nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.conv_in(z)
        for part in self.mid.values():
            h = part(h)
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Vqgan(nn.Module):
    """Pictures of any sides that are multiples of 16 pixels, as codes and back."""

    def __init__(self, config: VqganConfig):
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quantize = nn.ModuleDict({'embedding': nn.Embedding(config.codes, config.code_width)})
        self.quant_conv = nn.Conv2d(config.z_channels, config.code_width, 1)
        self.post_quant_conv = nn.Conv2d(config.code_width, config.z_channels, 1)

    def latents(self, pixels: Tensor) -> Tensor:
        """(B, code_width, h / 16, w / 16) of pixels (B, 3, h, w) in [-1, 1]."""
        return self.quant_conv(self.encoder(pixels))

    def distances(self, pixels: Tensor) -> Tensor:
        """Squared distances (B, h / 16, w / 16, codes) of the latents from all codes."""
        z = self.latents(pixels).movedim(1, -1)
        table = self._table
        return (z**2).sum(-1, keepdim=True) + (table**2).sum(-1) - 2 * z @ table.T

    def encode(self, pixels: Tensor) -> Tensor:
        """Codes (B, h / 16, w / 16) int64 of pixels (B, 3, h, w) in [-1, 1]."""
        return self.distances(pixels).argmin(-1)

    def decode(self, codes: Tensor) -> Tensor:
        """Pixels (B, 3, h, w), about [-1, 1], of codes (B, h / 16, w / 16)."""
        return self.decoder(self.post_quant_conv(self._table[codes].movedim(-1, 1)))

    @property
    def _table(self) -> Tensor:
        return self.quantize['embedding'].weight  # type: ignore[return-value]


def to_pixels(images: Tensor) -> Tensor:
    """(B, h, w, 3) uint8 -> (B, 3, h, w) float32 in [-1, 1]."""
    return images.movedim(-1, 1).float() / 127.5 - 1


def to_images(pixels: Tensor) -> Tensor:
    """(B, 3, h, w) -> (B, h, w, 3) uint8. The fraction is cut off, as the reference does."""
    return (((pixels.clamp(-1, 1) + 1) / 2) * 255).to(torch.uint8).movedim(1, -1)
