"""The transformer: bidirectional, LLaMA-style blocks, one head over text, image codes and bins.

Parameter names are those of the released checkpoints (`model.transformer.blocks.0.q_proj.weight`, ...).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import NetworkConfig


class RMSNorm(nn.Module):
    """x / rms(x) in fp32, then times the weight in the model's precision."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, eps=self.eps).to(x.dtype) * self.weight


def rope_table(length: int, head_dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin, each (length, head_dim) fp32: angle of position p, pair i is p * theta^(-2i / head_dim)."""
    inverse = theta ** (-torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(length, device=device, dtype=torch.float32), inverse)
    angles = torch.cat((angles, angles), -1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding (rotate-half form) of x (..., length, head_dim), in fp32."""
    y, half = x.float(), x.shape[-1] // 2
    # Slices, not chunks: so OpenVINO knows what this is and does it in one kernel.
    return (y * cos + torch.cat((-y[..., half:], y[..., :half]), -1) * sin).to(x.dtype)


class PrefixCache:
    """Keys and values of a prompt, for later forwards of a prompt of the same length.

    The first forward that is given the cache fills it and is exact; later ones compute only what follows the prefix,
    or the positions that are asked for. They are approximate: attention goes both ways, so what is not computed again
    would have seen what changed.
    """

    def __init__(self, length: int):
        """length: positions of the prefix."""
        self.length = length
        self.positions: slice | Tensor = slice(length, None)  # computed again; a tensor (n,) int64 rises and ends so
        self.layers: list[tuple[Tensor, Tensor]] = []  # per layer (B, heads, T, head_dim), of the whole prompt

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Takes what a layer computed for the positions in its forward and returns that of all positions."""
        if layer == len(self.layers):
            self.layers.append((k, v))
            return k, v
        keys, values = self.layers[layer]
        keys[:, :, self.positions], values[:, :, self.positions] = k, v
        return keys, values


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """(B, heads, L, head_dim) of queries, keys and values of that shape; mask: True where a key counts."""
    if q.device.type != 'cpu' or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    # Training on a CPU: there the fused kernel, with its backward, takes three times as long as plain products in bf16.
    score = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        score = score.masked_fill(~mask, -torch.inf)
    return score.softmax(-1).to(v.dtype) @ v


class Block(nn.Module):
    def __init__(self, c: NetworkConfig):
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = c.n_heads, c.n_kv_heads, c.d_model // c.n_heads
        kv_size = self.n_kv_heads * self.head_dim
        self.attn_norm = RMSNorm(c.d_model, c.rms_norm_eps)
        self.q_proj = nn.Linear(c.d_model, c.d_model, bias=False)
        self.k_proj = nn.Linear(c.d_model, kv_size, bias=False)
        self.v_proj = nn.Linear(c.d_model, kv_size, bias=False)
        self.attn_out = nn.Linear(c.d_model, c.d_model, bias=False)
        self.ff_norm = RMSNorm(c.d_model, c.rms_norm_eps)
        self.ff_proj = nn.Linear(c.d_model, c.mlp_hidden_size, bias=False)
        self.up_proj = nn.Linear(c.d_model, c.mlp_hidden_size, bias=False)
        self.ff_out = nn.Linear(c.mlp_hidden_size, c.d_model, bias=False)

    def forward(
        self,
        h: Tensor,
        rope: tuple[Tensor, Tensor],
        rows: slice | Tensor,
        mask: Tensor | None,
        cache: PrefixCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """h (B, T, d_model) -> (B, rows, d_model): every position is attended to, only `rows` are updated."""
        cos, sin = rope
        n = self.attn_norm(h)
        h = h[:, rows]
        q = self._heads(self.q_proj(n[:, rows]), self.n_heads)
        k = self._heads(self.k_proj(n), self.n_kv_heads)
        v = self._heads(self.v_proj(n), self.n_kv_heads)
        q, k = rotate(q, cos[rows], sin[rows]), rotate(k, cos, sin)
        if self.n_kv_heads != self.n_heads:
            k, v = (x.repeat_interleave(self.n_heads // self.n_kv_heads, 1) for x in (k, v))
        if cache is not None:
            k, v = cache.update(layer, k, v)
        h = h + self.attn_out(attention(q, k, v, mask).transpose(1, 2).flatten(2))
        m = self.ff_norm(h)
        return h + self.ff_out(F.silu(self.ff_proj(m)) * self.up_proj(m))

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        return x.unflatten(-1, (heads, self.head_dim)).transpose(1, 2)


class Head(nn.Linear):
    """A linear layer of which only some outputs are made: a part of the vocabulary."""

    def forward(self, x: Tensor, rows: slice = slice(None)) -> Tensor:
        return F.linear(x, self.weight[rows])


class Transformer(nn.Module):
    def __init__(self, c: NetworkConfig):
        super().__init__()
        self.wte = nn.Embedding(c.vocab_size, c.d_model)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.n_layers))
        self.ln_f = RMSNorm(c.d_model, c.rms_norm_eps)
        self.ff_out = Head(c.d_model, c.vocab_size, bias=False)


class Network(nn.Module):
    def __init__(self, config: NetworkConfig):
        super().__init__()
        self.config = config
        self.model = nn.ModuleDict({'transformer': Transformer(config)})
        self._rope: tuple[Tensor, Tensor] | None = None

    def forward(
        self,
        ids: Tensor,
        rows: slice | Tensor,
        vocabulary: slice,
        valid: Tensor | None = None,
        cache: PrefixCache | None = None,
    ) -> Tensor:
        """Logits (B, rows, vocabulary) of ids (B, T): only the positions and the part of the vocabulary asked for.

        rows: a slice with start and stop, or an index (n,) int64.
        valid (B, T) bool marks what is not padding; leave it out where nothing is padded, attention then needs no
        mask. Positions are relative, so a stripped prompt gives the logits of the padded one.
        cache: filled by the first forward it is given to; later ones need rows behind its prefix, all of which they
        compute.
        """
        t: Transformer = self.model['transformer']  # type: ignore[assignment]
        mask = None if valid is None else valid[:, None, None, :]
        at = cache.positions if cache is not None and cache.layers else slice(0, None)
        cos, sin = self._rope_for(ids.shape[1], ids.device)
        h, rope = t.wte(ids[:, at]), (cos[at], sin[at])
        if left_out := ids.shape[1] - h.shape[1]:  # they all lie before the rows
            rows = slice(rows.start - left_out, rows.stop - left_out) if isinstance(rows, slice) else rows - left_out
        last = len(t.blocks) - 1
        for i, block in enumerate(t.blocks):  # what else than `rows` the last block would make, nobody reads
            h = block(h, rope, rows if i == last else slice(None), mask, cache, i)
        return t.ff_out(t.ln_f(h), vocabulary)

    def _rope_for(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        if self._rope is None or self._rope[0].shape[0] < length or self._rope[0].device != device:
            self._rope = rope_table(length, self.config.d_model // self.config.n_heads, self.config.rope_theta, device)
        return self._rope[0][:length], self._rope[1][:length]
