"""Trains the codes to hold the places of objects, by a reader that predicts grounding points from them.

Codes that are trained for reconstruction alone hold mostly light and table. The place of a small object is spread over
many codes, and a small transformer needs many examples to find it. The reader is such a transformer: it receives the
codes as the model will, and predicts a point for each name. It is discarded after training. (Tokenizers for perception
and generation: UniTok, Ma et al. 2025. Pointing: Molmo, Deitke et al. 2024.)
"""

import torch
from torch import Tensor, nn

from vla_model.checkpoints.nano import init_weights
from vla_model.config import NetworkConfig
from vla_model.network import Block, RMSNorm, rope_table

WIDTH, LAYERS, HEADS = 192, 2, 3


class GroundingReader(nn.Module):
    """Predicts a point for each name from the bits of one image's codes."""

    def __init__(self, names: int, bits: int, tokens: int) -> None:
        super().__init__()
        self.names = nn.Embedding(names, WIDTH)
        self.bits = nn.Linear(bits, WIDTH)
        self.places = nn.Parameter(torch.zeros(tokens, WIDTH))
        shape = NetworkConfig(WIDTH, LAYERS, HEADS, HEADS, 3 * WIDTH, 10000.0, 1e-5, 1)  # no vocabulary
        self.blocks = nn.ModuleList(Block(shape) for _ in range(LAYERS))
        self.norm = RMSNorm(WIDTH, 1e-5)
        self.out = nn.Linear(WIDTH, 2)
        init_weights(self, 0)
        with torch.no_grad():  # names and codes must start larger than the blocks' outputs, or they are lost
            self.names.weight.mul_(WIDTH**0.5)
            self.places.mul_(0.3 * WIDTH**0.5)
            for block in self.blocks:
                for out in (block.attn_out, block.ff_out):
                    out.weight.mul_((2 * LAYERS) ** -0.5)  # type: ignore[operator, union-attr]

    def forward(self, bits: Tensor) -> Tensor:
        """Return x and y of each name (B, names, 2), -1 and +1 at the image's edges. bits: (B, bits, H, W) of +-1."""
        codes = self.bits(bits.flatten(2).transpose(1, 2)) + self.places
        names = self.names.weight.expand(len(codes), -1, -1)
        h = torch.cat((names.to(codes.dtype), codes), 1)
        rope = rope_table(h.shape[1], WIDTH // HEADS, 10000.0, h.device)
        for block in self.blocks:
            h = block(h, rope, slice(None), None)
        return self.out(self.norm(h[:, : names.shape[1]]))

    def matrices(self) -> list[nn.Parameter]:
        """Return the parameters for Muon: AdamW takes several times as long to learn to search for the names."""
        return [p for p in self.blocks.parameters() if p.ndim == 2]


def grounding_loss(predicted: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Return (mean |difference|, mean distance [share of the image's edge]) of the points in the image, both scalars.

    predicted, places: (B, names, 2) in [-1, 1]. An object that is not in the image has NaN or a place outside.
    """
    seen = (places.abs() <= 1).all(-1)  # NaN: False
    difference = torch.where(seen[..., None], predicted.float() - places.nan_to_num(), 0.0)
    count = seen.sum().clamp(min=1)
    return difference.abs().sum() / (2 * count), difference.norm(dim=-1).sum() / (2 * count)
