"""The transformer: LLaMA-style blocks, one head over text, image codes and bins.

`Network` is embed, hidden, head, in this order; its options are those of `NetworkConfig`. Parameter names are those of
the released checkpoints (`model.transformer.blocks.0.q_proj.weight`, ...).

A network with a continuous action head has one more column of outputs behind those of the vocabulary: the regressed
number of each slot. `rows` are then the whole action block.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_model.config import NetworkConfig

QK_NORM_EPS = 1e-5  # of the norm 'layer', as in Chameleon; rms_norm_eps is of all other norms


class RMSNorm(nn.Module):
    """Computes x / rms(x) in fp32, and multiplies it by the weight in the model's precision."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, eps=self.eps).to(x.dtype) * self.weight


class HeadLayerNorm(nn.Module):
    """LayerNorm over the numbers of each attention head; all heads share one gain and bias (1, head_dim)."""

    def __init__(self, head_dim: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(1, head_dim)), nn.Parameter(torch.zeros(1, head_dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], None, None, QK_NORM_EPS) * self.weight + self.bias


def qk_norm(c: NetworkConfig) -> nn.Module:
    """Return the norm `c.qk_norm` of queries and keys (..., head_dim), which is applied before their rotation."""
    if c.qk_norm == 'rms':
        return RMSNorm(c.head_size, c.rms_norm_eps)
    return HeadLayerNorm(c.head_size) if c.qk_norm == 'layer' else nn.Identity()


def rope_table(length: int, head_dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cos and sin, each (length, head_dim) fp32. The angle of position p, pair i: p * theta^(-2i / head_dim)."""
    inverse = theta ** (-torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(length, device=device, dtype=torch.float32), inverse)
    angles = torch.cat((angles, angles), -1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return the rotary position embedding (rotate-half form) of x (..., length, head_dim), computed in fp32."""
    y, half = x.float(), x.shape[-1] // 2
    # Slices, not chunks: OpenVINO recognises this form and runs it as one kernel.
    return (y * cos + torch.cat((-y[..., half:], y[..., :half]), -1) * sin).to(x.dtype)


class KeyValues:
    """The key/value cache of a prompt, stored between forwards: per layer one tensor of the key/value heads.

    The first forward fills the cache and is exact. Later forwards compute `positions` only and read all others. This is
    exact for a causal network while the ids before `positions` are unchanged. For a bidirectional network it is
    approximate, as keys and values of unchanged ids depend on the ids that changed.
    """

    def __init__(self, length: int, capacity: int = 0):
        """length: positions of the prefix, which later forwards do not compute.

        capacity: positions for which memory is allocated, for a prompt that grows; 0: the prompt has a fixed length.
        """
        self.length, self.capacity = length, capacity
        self.positions: slice | Tensor = slice(length, None)  # computed by the next forward; a tensor (n,) is sorted
        self.layers: list[Tensor] = []  # each (2, B, kv heads, positions, head_dim): keys, values

    @property
    def grows(self) -> bool:
        return self.capacity > 0

    def update(self, layer: int, k: Tensor, v: Tensor, end: int) -> tuple[Tensor, Tensor]:
        """Store what a layer computed, each (B, kv heads, n, head_dim); return it for all `end` positions."""
        if layer == len(self.layers):
            n = k.shape[2]
            # Zeros, as unused values are multiplied by 0, which would keep a NaN.
            kept = k.new_zeros(2, *k.shape[:2], max(self.capacity, n), k.shape[3])
            kept[0, :, :, :n], kept[1, :, :, :n] = k, v
            self.layers.append(kept)
            return k, v
        kept = self.layers[layer]
        if end > kept.shape[3]:
            raise ValueError(f'the prompt has {end} tokens, the key/value cache has room for {kept.shape[3]}')
        at = slice(self.positions.start, end) if isinstance(self.positions, slice) else self.positions
        kept[0, :, :, at], kept[1, :, :, at] = k, v
        return kept[0, :, :, :end], kept[1, :, :, :end]


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Return attention (B, heads, L, head_dim) of queries, keys and values. mask: bool, True for attended keys."""
    if q.device.type != 'cpu' or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    # Training on a CPU: the fused kernel and its backward take three times as long as plain matmuls in bf16.
    score = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        score = score.masked_fill(~mask, -torch.inf)
    return score.softmax(-1).to(v.dtype) @ v


class Block(nn.Module):
    def __init__(self, c: NetworkConfig):
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = c.n_heads, c.n_kv_heads, c.head_size
        size, kv_size = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        self.attn_norm = RMSNorm(c.d_model, c.rms_norm_eps)
        self.q_proj = nn.Linear(c.d_model, size, bias=c.qkv_bias)
        self.k_proj = nn.Linear(c.d_model, kv_size, bias=c.qkv_bias)
        self.v_proj = nn.Linear(c.d_model, kv_size, bias=c.qkv_bias)
        self.q_norm, self.k_norm = qk_norm(c), qk_norm(c)
        self.attn_out = nn.Linear(size, c.d_model, bias=False)
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
        cache: KeyValues | None = None,
        layer: int = 0,
        end: int = 0,
    ) -> Tensor:
        """Return (B, rows, d_model) for h (B, T, d_model): the `rows` attend to every position.

        mask: bool, (B or 1, 1, rows or 1, keys). cache: stores keys and values of this `layer`, of a prompt of `end`
        positions.
        """
        cos, sin = rope
        n = self.attn_norm(h)
        h = h[:, rows]
        q = self._heads(self.q_proj(n[:, rows]), self.n_heads)
        k = self._heads(self.k_proj(n), self.n_kv_heads)
        v = self._heads(self.v_proj(n), self.n_kv_heads)
        q, k = rotate(self.q_norm(q), cos[rows], sin[rows]), rotate(self.k_norm(k), cos, sin)
        if cache is not None:
            k, v = cache.update(layer, k, v, end)
        if self.n_kv_heads != self.n_heads:
            k, v = (x.repeat_interleave(self.n_heads // self.n_kv_heads, 1) for x in (k, v))
        h = h + self.attn_out(attention(q, k, v, mask).transpose(1, 2).flatten(2))
        m = self.ff_norm(h)
        return h + self.ff_out(F.silu(self.ff_proj(m)) * self.up_proj(m))

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        return x.unflatten(-1, (heads, self.head_dim)).transpose(1, 2)


class Head(nn.Linear):
    """A linear layer that computes the outputs of a part of the vocabulary."""

    def forward(self, x: Tensor, rows: slice = slice(None)) -> Tensor:
        return F.linear(x, self.weight[rows])


class ActionHead(nn.Module):
    """The continuous action head: a small transformer over the final hidden states of the action block.

    Each slot of a chunk has seen the whole prompt, so the slots are the queries of RynnVLA-002's Action Transformer.
    """

    def __init__(self, c: NetworkConfig):
        super().__init__()
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.action_layers))
        self.norm = RMSNorm(c.d_model, c.rms_norm_eps)
        self.out = nn.Linear(c.d_model, 1)

    def forward(self, hidden: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Return numbers (B, n, 1), normalized actions in the slots of a chunk, of hidden states (B, n, d_model)."""
        for block in self.blocks:
            hidden = block(hidden, rope, slice(None), None)
        return self.out(self.norm(hidden))


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
        if config.action_layers:
            self.model['action_head'] = ActionHead(config)
        self._rope: tuple[Tensor, Tensor] | None = None

    def forward(
        self,
        ids: Tensor,
        rows: slice | Tensor,
        vocabulary: slice,
        valid: Tensor | None = None,
        cache: KeyValues | None = None,
    ) -> Tensor:
        """Return logits (B, rows, vocabulary) of ids (B, T), for the given positions and part of the vocabulary.

        rows: a slice with start and stop, or an index (n,) int64.
        valid: (B, T) bool, False for padding. None: no padding, attention then needs no mask. Positions are relative,
        so that a prompt without its padding gives the same logits.
        cache: the first forward fills it. Later forwards compute its `positions`, which must contain the rows.
        """
        at = cache.positions if cache is not None and cache.layers else slice(0, None)
        mask = None if valid is None else valid[:, None, None, :]
        return self.head(self.hidden(self.embed(ids[:, at]), rows, ids.shape[1], mask, cache), vocabulary)

    def embed(self, ids: Tensor) -> Tensor:
        """Return embeddings (B, n, d_model) of ids (B, n) int64."""
        return self._transformer.wte(ids)

    def hidden(
        self,
        h: Tensor,
        rows: slice | Tensor,
        length: int,
        mask: Tensor | None = None,
        cache: KeyValues | None = None,
    ) -> Tensor:
        """Return final hidden states (B, rows, d_model), normed, of the embedded positions h (B, n, d_model).

        h: of all `length` positions of the prompt, or of `cache.positions` where the cache is filled. rows: of the
        prompt, see `forward`. mask: bool (B or 1, 1, length or 1, length), True where a query (third axis) attends to a
        key; None: to all keys. With `config.causal`, queries never attend to later keys.
        """
        at = cache.positions if cache is not None and cache.layers else slice(0, None)
        cos, sin = self._rope_for(length, h.device)
        rope = cos[at], sin[at]
        if left_out := length - h.shape[1]:  # all of these are before the rows
            rows = slice(rows.start - left_out, rows.stop - left_out) if isinstance(rows, slice) else rows - left_out
        seen = self._mask(mask, at, length, h.device)
        blocks, everything = self._transformer.blocks, slice(None)
        for i, block in enumerate(blocks):
            # The head reads `rows` only, so the last block computes no other positions.
            some = rows if i + 1 == len(blocks) else everything
            h = block(h, rope, some, _queries(seen, some), cache, i, length)
        return self._transformer.ln_f(h)

    def head(self, hidden: Tensor, vocabulary: slice) -> Tensor:
        """Return logits (B, n, vocabulary) of hidden states (B, n, d_model).

        vocabulary: with a stop behind the last id, the last column is that of the continuous action head.
        """
        size = self.config.vocab_size
        if vocabulary.stop is None or vocabulary.stop <= size:
            return self._transformer.ff_out(hidden, vocabulary)
        logits = self._transformer.ff_out(hidden, slice(vocabulary.start, size))
        rope = self._rope_for(hidden.shape[1], hidden.device)
        return torch.cat((logits, self.model['action_head'](hidden, rope).to(logits.dtype)), -1)

    def _mask(self, mask: Tensor | None, at: slice | Tensor, length: int, device: torch.device) -> Tensor | None:
        """Return the mask of the queries at `at`: (B or 1, 1, queries or 1, length) bool; None: all keys."""
        if mask is not None and mask.shape[2] > 1:
            mask = mask[:, :, at]
        last = isinstance(at, slice) and at.start == length - 1  # the last query attends to all keys
        if not self.config.causal or last:
            return mask
        positions = torch.arange(length, device=device)
        causal = (positions <= positions[at][:, None])[None, None]
        return causal if mask is None else causal & mask

    @property
    def _transformer(self) -> Transformer:
        return self.model['transformer']  # type: ignore[return-value]

    def _rope_for(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        if self._rope is None or self._rope[0].shape[0] < length or self._rope[0].device != device:
            self._rope = rope_table(length, self.config.head_size, self.config.rope_theta, device)
        return self._rope[0][:length], self._rope[1][:length]


def _queries(mask: Tensor | None, rows: slice | Tensor) -> Tensor | None:
    """Return the mask of the queries `rows`."""
    return mask if mask is None or mask.shape[2] == 1 else mask[:, :, rows]
