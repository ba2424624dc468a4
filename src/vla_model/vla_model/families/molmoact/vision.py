"""The vision tower of MolmoAct: SigLIP2 patches to features, pooled and projected for the transformer.

Parameter names are those of the released checkpoints, without `model.vision_backbone.`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_model.families.molmoact.preprocess import PATCH, PATCHES


@dataclass(frozen=True)
class VisionConfig:
    """Shape of the tower."""

    width: int
    mlp: int
    heads: int
    layers: tuple[int, ...]  # whose outputs are the features, in this order; deeper ones are not built
    eps: float
    pool_width: int
    pool_heads: int
    projector: int  # inner width
    out: int  # width of the transformer

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> 'VisionConfig':
        """Of a released config.json. Raises ValueError naming a variant that is not built."""
        vit, adapter = content['vit_config'], content['adapter_config']
        variant = {
            'use_cls_token': (vit.get('use_cls_token'), False), 'patch_bias': (vit.get('patch_bias'), True),
            'pre_layernorm': (vit.get('pre_layernorm'), False), 'hidden_act': (vit['hidden_act'], 'gelu_pytorch_tanh'),
            'image_num_pos': (vit['image_num_pos'], PATCHES**2),
            'image_padding_embed': (adapter.get('image_padding_embed'), None),
        }  # fmt: skip
        for name, (value, known) in variant.items():
            if value != known:
                raise ValueError(f'{name} is {value!r}, only {known!r} is supported')
        count = vit['num_hidden_layers']
        layers = tuple(n if n >= 0 else count + n for n in adapter['vit_layers'])
        return cls(
            vit['hidden_size'], vit['intermediate_size'], vit['num_attention_heads'], layers, vit['layer_norm_eps'],
            adapter['hidden_size'], adapter['num_attention_heads'], adapter['intermediate_size'],
            adapter['text_hidden_size'],
        )  # fmt: skip


class Attention(nn.Module):
    """Queries (B, Q, inside) see keys (B, K, inside). Computed in float32."""

    def __init__(self, inside: int, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.wq, self.wk, self.wv = (nn.Linear(inside, width) for _ in range(3))
        self.wo = nn.Linear(width, width)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2).float()
            for layer, x in ((self.wq, queries), (self.wk, keys), (self.wv, keys))
        )
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.wo(h.to(queries.dtype))


class VisionBlock(nn.Module):
    def __init__(self, c: VisionConfig):
        super().__init__()
        self.attention = Attention(c.width, c.width, c.heads)
        self.feed_forward = nn.ModuleDict({'w1': nn.Linear(c.width, c.mlp), 'w2': nn.Linear(c.mlp, c.width)})
        self.attention_norm, self.ffn_norm = (nn.LayerNorm(c.width, eps=c.eps) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        n = self.attention_norm(x)
        x = x + self.attention(n, n)
        inner = F.gelu(self.feed_forward['w1'](self.ffn_norm(x)), approximate='tanh')
        return x + self.feed_forward['w2'](inner)


class Patches(nn.Module):
    """(crops, 729, 588) pixels -> (crops, 729, layers * width)."""

    def __init__(self, c: VisionConfig):
        super().__init__()
        self.layers = c.layers
        self.positional_embedding = nn.Parameter(torch.zeros(PATCHES**2, c.width))
        self.patch_embedding = nn.Linear(PATCH * PATCH * 3, c.width)
        count = max(c.layers) + 1
        self.transformer = nn.ModuleDict({'resblocks': nn.ModuleList(VisionBlock(c) for _ in range(count))})

    def forward(self, pixels: Tensor) -> Tensor:
        x, outputs = self.patch_embedding(pixels) + self.positional_embedding, []
        for block in self.transformer['resblocks']:  # type: ignore[attr-defined]
            x = block(x)
            outputs.append(x)
        return torch.cat([outputs[i] for i in self.layers], -1)


class Projector(nn.Module):
    def __init__(self, inside: int, inner: int, outside: int):
        super().__init__()
        self.w1, self.w3 = (nn.Linear(inside, inner, bias=False) for _ in range(2))
        self.w2 = nn.Linear(inner, outside, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class VisionTower(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        self.image_vit = Patches(config)
        self.image_pooling_2d = Attention(config.width * len(config.layers), config.pool_width, config.pool_heads)
        self.image_projector = Projector(config.pool_width, config.projector, config.out)

    def forward(self, pixels: Tensor, pooled: Tensor) -> Tensor:
        """What is added to the embeddings of the image tokens: (N, out).

        pixels: (crops * 729, 588). pooled: (N, 4) int64, see preprocess.Views. A crop that is the same picture as the
        one before, the overview of a small picture say, is computed once.
        """
        return self.tokens(self.features(pixels), pooled)

    def features(self, pixels: Tensor) -> Tensor:
        """(crops * 729, layers * width) of pixels (crops * 729, 588)."""
        crops = pixels.view(-1, PATCHES**2, pixels.shape[-1])
        same = [i > 0 and torch.equal(crops[i], crops[i - 1]) for i in range(len(crops))]
        computed = self.image_vit(crops[[i for i, s in enumerate(same) if not s]])
        places = torch.tensor(same).logical_not().cumsum(0) - 1
        return computed[places].flatten(0, 1)

    def tokens(self, features: Tensor, pooled: Tensor) -> Tensor:
        """(N, out) of features (crops * 729, layers * width). A patch that is missing is zeros, which take part."""
        four = features[pooled.clamp(min=0)] * (pooled >= 0)[..., None]
        return self.image_projector(self.image_pooling_2d(four.mean(1, keepdim=True), four)[:, 0])
