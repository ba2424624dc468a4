"""Codes that say where things are: beside its decoder, the image tokenizer trains a reader that points at named things.

Codes that are trained for pictures alone hold what makes up most of a picture, light and table; where a small thing
lies is spread over many of them, and a small transformer needs many more examples to find it. So the reader is such a
transformer: it sees the codes as the model will see them, and is asked for each name where it is. It is thrown away
after training. (Tokenizers for seeing and for making: UniTok, Ma et al. 2025; pointing: Molmo, Deitke et al. 2024.)
"""

import torch
from torch import Tensor, nn

from vla_model.checkpoints.nano import init_weights
from vla_model.config import NetworkConfig
from vla_model.network import Block, RMSNorm, rope_table

WIDTH, LAYERS, HEADS = 192, 2, 3


class Pointer(nn.Module):
    """Names and the bits of one image's codes to a place for each name."""

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
        with torch.no_grad():  # names and codes must be louder than what the blocks add at first, or they are lost
            self.names.weight.mul_(WIDTH**0.5)
            self.places.mul_(0.3 * WIDTH**0.5)
            for block in self.blocks:
                for out in (block.attn_out, block.ff_out):
                    out.weight.mul_((2 * LAYERS) ** -0.5)  # type: ignore[operator, union-attr]

    def forward(self, bits: Tensor) -> Tensor:
        """(B, bits, H, W) of +-1 -> (B, names, 2): x and y of each name, -1 and +1 at the picture's edges."""
        codes = self.bits(bits.flatten(2).transpose(1, 2)) + self.places
        names = self.names.weight.expand(len(codes), -1, -1)
        h = torch.cat((names.to(codes.dtype), codes), 1)
        rope = rope_table(h.shape[1], WIDTH // HEADS, 10000.0, h.device)
        for block in self.blocks:
            h = block(h, rope, slice(None), None)
        return self.out(self.norm(h[:, : names.shape[1]]))

    def matrices(self) -> list[nn.Parameter]:
        """What Muon trains: an AdamW takes several times as long to find that names are to be looked for."""
        return [p for p in self.blocks.parameters() if p.ndim == 2]


def pointing_loss(pointed: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """(mean |difference| of those that are in the picture, mean distance in shares of its edge): both scalars.

    pointed, places: (B, names, 2) in [-1, 1]; a name that is not in the picture has NaN, or lies outside.
    """
    seen = (places.abs() <= 1).all(-1)  # NaN: False
    difference = torch.where(seen[..., None], pointed.float() - places.nan_to_num(), 0.0)
    count = seen.sum().clamp(min=1)
    return difference.abs().sum() / (2 * count), difference.norm(dim=-1).sum() / (2 * count)
