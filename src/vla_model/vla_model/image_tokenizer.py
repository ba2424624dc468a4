"""The image tokenizer: MAGVIT-v2 encoder and decoder around a lookup-free quantizer (LFQ).

Parameter names are those of the released checkpoint (showlab/magvitv2), at any width and depth.
"""

import itertools
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_model.config import ImageTokenizerConfig


def upload(values: np.ndarray, device: torch.device | str) -> Tensor:
    """Return a copy on `device`. Copies to a GPU are from pinned memory, so that the host does not wait."""
    if torch.device(device).type != 'cuda':
        return torch.tensor(values, device=device)
    return torch.tensor(values, pin_memory=True).to(device, non_blocking=True)


def preprocess(image: np.ndarray, resolution: int, device: torch.device | str = 'cpu') -> Tensor:
    """Return pixels (3, resolution, resolution) float32, about [-1, 1], of an image (height, width, 3) uint8 RGB.

    Black bars make it square (an odd pixel goes to the bottom or right), bicubic resize with antialias. Not clamped:
    the filter overshoots a little, and the released tokenizer was trained so.
    """
    height, width = image.shape[:2]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    if torch.device(device).type == 'cpu' and side != resolution:
        return _resized(image, resolution, side, top, left)
    x = upload(image, device).permute(2, 0, 1).float() / 255
    if height != width:
        x = F.pad(x, (left, side - width - left, top, side - height - top))
    if side != resolution:
        size = (resolution, resolution)
        x = F.interpolate(x[None], size, mode='bicubic', align_corners=False, antialias=True)[0]
    return (x - 0.5) / 0.5


def _resized(image: np.ndarray, resolution: int, side: int, top: int, left: int) -> Tensor:
    """Return the pixels of `preprocess` on a CPU, in a quarter of the time: each direction is a sum of few rows."""
    height, width = image.shape[:2]
    x = upload(image, 'cpu').reshape(height, width * 3).float()
    x = _summed(x, *_filter(side, resolution, top, height))
    x = x.view(resolution, width, 3).transpose(0, 1).reshape(width, resolution * 3)
    x = _summed(x, *_filter(side, resolution, left, width))
    return x.view(resolution, resolution, 3).permute(2, 1, 0) * (2 / 255) - 1


def _summed(rows: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    return F.embedding_bag(index, rows, per_sample_weights=weight, mode='sum')


@lru_cache(maxsize=16)
def _filter(side: int, resolution: int, first: int, length: int) -> tuple[Tensor, Tensor]:
    """Return indices and weights, (resolution, k) each, of the `length` numbers that start at `first` of `side`."""
    eye = torch.eye(side)[None, :, None]
    weight = F.interpolate(eye, (1, resolution), mode='bicubic', align_corners=False, antialias=True)[0, :, 0].T
    weight = weight[:, first : first + length]
    there = (weight != 0).int()
    begin = there.argmax(1)
    end = torch.where(there.any(1), length - there.flip(1).argmax(1), begin)
    k = max(1, int((end - begin).max()))
    index = begin.clamp(max=length - k)[:, None] + torch.arange(k)
    return index, weight.gather(1, index)


def to_image(pixels: Tensor) -> np.ndarray:
    """Return an image (side, side, 3) uint8 RGB of pixels (3, side, side) in [-1, 1]."""
    return (((pixels + 1) / 2).clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, groups: int):
        super().__init__()
        self.norm1 = _norm(inputs, groups)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = _norm(outputs, groups)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, 'nin_shortcut') else x)


class Attention(nn.Module):
    """Attention of one head over all positions of the feature map."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = _norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm(x)
        q, k, v = (f(n).flatten(2).transpose(1, 2) for f in (self.q, self.k, self.v))  # (B, H*W, C)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).unflatten(2, x.shape[2:])
        return x + self.proj_out(h)


class Middle(nn.Module):
    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.block_1 = ResBlock(channels, channels, groups)
        self.attn_1 = Attention(channels, groups)
        self.block_2 = ResBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode='nearest'))


class Level(nn.Module):
    """Residual blocks at one resolution, then the step to the next one, if there is a next one."""

    def __init__(self, inputs: int, outputs: int, blocks: int, groups: int):
        super().__init__()
        widths = [inputs] + [outputs] * blocks
        self.block = nn.ModuleList(ResBlock(i, o, groups) for i, o in itertools.pairwise(widths))
        self.outputs = widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        for name in ('downsample', 'upsample'):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


class Encoder(nn.Module):
    def __init__(self, c: ImageTokenizerConfig):
        super().__init__()
        self.conv_in = nn.Conv2d(3, c.channels, 3, padding=1)
        self.down = nn.ModuleList()
        width = c.channels
        for i, (mult, blocks) in enumerate(zip(c.encoder_mult, c.encoder_blocks, strict=True)):
            level = Level(width, c.channels * mult, blocks, c.groups)
            width = level.outputs
            if i < len(c.encoder_mult) - 1:
                level.downsample = Downsample(width)
            self.down.append(level)
        self.mid = Middle(width, c.groups)
        self.norm_out = _norm(width, c.groups)
        self.conv_out = nn.Conv2d(width, c.z_channels, 3, padding=1)
        self.quant_conv = nn.Conv2d(c.z_channels, c.z_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.quant_conv(self.conv_out(F.silu(self.norm_out(self.mid(x)))))


class Decoder(nn.Module):
    def __init__(self, c: ImageTokenizerConfig):
        super().__init__()
        levels = []
        width = c.channels * c.decoder_mult[-1]
        self.post_quant_conv = nn.Conv2d(c.z_channels, c.z_channels, 1)
        self.conv_in = nn.Conv2d(c.z_channels, width, 3, padding=1)
        self.mid = Middle(width, c.groups)
        for i in reversed(range(len(c.decoder_mult))):
            level = Level(width, c.channels * c.decoder_mult[i], c.decoder_blocks[i], c.groups)
            width = level.outputs
            if i > 0:
                level.upsample = Upsample(width)
            levels.append(level)
        self.up = nn.ModuleList(reversed(levels))  # numbered by resolution, as in the encoder
        self.norm_out = _norm(width, c.groups)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(self.post_quant_conv(z)))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Quantizer(nn.Module):
    """LFQ: one bit per channel, [z > 0], channel 0 is the most significant."""

    embedding: Tensor  # (codes, bits) +-1
    power_vals: Tensor  # (bits,) 2^(bits - 1) .. 1

    def __init__(self, bits: int):
        super().__init__()
        powers = 2 ** torch.arange(bits - 1, -1, -1)
        self.register_buffer('power_vals', powers)
        self.register_buffer('embedding', ((torch.arange(2**bits)[:, None] & powers) != 0).float() * 2 - 1)

    def forward(self, z: Tensor) -> Tensor:
        """Return codes (B, H * W) int64, row by row, of z (B, bits, H, W)."""
        return ((z > 0) * self.power_vals[:, None, None]).sum(1).flatten(1)


class ImageTokenizer(nn.Module):
    def __init__(self, config: ImageTokenizerConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Quantizer(config.z_channels)

    def encode(self, pixels: Tensor) -> Tensor:
        """Return codes (B, tokens) int64 of pixels (B, 3, resolution, resolution), which `preprocess` returns."""
        return self.quantize(self.encoder(pixels))

    def decode(self, codes: Tensor) -> Tensor:
        """Return pixels (B, 3, resolution, resolution), about [-1, 1], of the codes (B, tokens) of square images."""
        side = int(codes.shape[1] ** 0.5)
        return self.decoder(self.quantize.embedding[codes].transpose(1, 2).unflatten(2, (side, side)))
