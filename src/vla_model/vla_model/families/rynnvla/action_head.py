"""The Action Transformer: hidden states of the prompt to a whole chunk, in one pass.

Parameter names are those of the released checkpoints, without `action_head.`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADS, LAYERS, BLOCKS, SHRINK, FEED_FORWARD = 4, 2, 2, 4, 4


class ResidualMlp(nn.Module):
    """(B, T, dims * width) -> (B, T, dims)."""

    def __init__(self, dims: int, width: int):
        super().__init__()
        self.layer_norm1, self.fc1 = nn.LayerNorm(dims * width), nn.Linear(dims * width, width)
        self.mlp_resnet_blocks = nn.ModuleList(
            nn.ModuleDict({'ffn': nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())})
            for _ in range(BLOCKS)
        )
        self.layer_norm2, self.fc2 = nn.LayerNorm(width), nn.Linear(width, dims)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = x + block['ffn'](x)  # type: ignore[index]
        return self.fc2(self.layer_norm2(x))


class ActionHead(nn.Module):
    """Learned queries, one per step and dimension, attend to the prompt and to one another.

    Give it float32: the reference runs it in bfloat16, whose steps are half a bin near 1.
    """

    def __init__(self, d_model: int, horizon: int, dims: int):
        super().__init__()
        self.horizon, self.dims, self.width = horizon, dims, d_model // SHRINK
        self.action_token_embeddings = nn.Embedding(1, horizon * dims * d_model)
        self.hidden_projection = nn.Linear(d_model, self.width)
        layer = nn.TransformerEncoderLayer(self.width, HEADS, FEED_FORWARD * self.width, dropout=0.1, batch_first=True)
        self.transformer_encoder = nn.TransformerEncoder(
            layer, LAYERS, nn.LayerNorm(self.width), enable_nested_tensor=False
        )
        self.output_projection = nn.ModuleDict({'model': ResidualMlp(dims, self.width)})

    def forward(self, context: Tensor, valid: Tensor | None = None) -> Tensor:
        """Chunks (B, horizon, dims) of normalised actions.

        context: final hidden states (B, n, d_model) of the prompt, with its closing mark, without the answer.
        valid: (B, n) bool, False where the context is padding, which is then not attended to.
        """
        return self.output_projection['model'](self.queries(context, valid).unflatten(1, (self.horizon, -1)).flatten(2))

    def queries(self, context: Tensor, valid: Tensor | None = None) -> Tensor:
        """What the encoder makes of the queries: (B, horizon * dims, width), step by step."""
        count = self.horizon * self.dims
        table = self.action_token_embeddings.weight.view(1, count, -1).expand(len(context), -1, -1)
        padding = None
        if valid is not None:
            padding = torch.cat((~valid, valid.new_zeros(len(valid), count)), 1)
        h = self.hidden_projection(torch.cat((context, table), 1))
        return self.transformer_encoder(h, src_key_padding_mask=padding)[:, -count:]
