"""The network for a GPU: fixed shapes, few large matmuls, no mask, no value that the host must read.

It computes the numbers of `Network` from the same weights. The prompt is at the start of `ids`. Tokens behind it are
never attended to, so that one shape serves prompts of many lengths.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_model.engines import kernels
from vla_model.engines.matmuls import Matmul, storage_of
from vla_model.network import Block, Network, RMSNorm, Transformer, rope_table


class FusedBlock:
    """A transformer block: QKV in one matmul, gate and up in one, norm and rounding in one kernel."""

    def __init__(self, block: Block):
        self.heads, self.kv_heads, self.head_dim = block.n_heads, block.n_kv_heads, block.head_dim
        self.attn_norm, self.ff_norm = block.attn_norm, block.ff_norm
        self.qkv = _matmuls(block.q_proj, block.k_proj, block.v_proj)
        self.attn_out = Matmul([block.attn_out])
        self.gate_up = _matmuls(block.ff_proj, block.up_proj)
        self.ff_out = Matmul([block.ff_out])

    @property
    def matmuls(self) -> list[Matmul]:
        return [*self.qkv, self.attn_out, *self.gate_up, self.ff_out]

    def __call__(
        self, h: Tensor, rope: tuple[Tensor, Tensor], length: Tensor, rows: Tensor | None, keys: Tensor | None,
        positions: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """Return (M, d_model), or (rows, d_model), for h (M, d_model).

        length (1,) int32: the number of keys that are attended to. keys: the tensor that stores keys and values, or
        None. positions (M,) int64: the places of h in `keys`; None: h fills it from its start.
        """
        x = _apply(self.qkv, h, self.attn_norm).unflatten(-1, (-1, self.head_dim))
        kernels.rotate_heads(x, self.heads + self.kv_heads, *rope)
        q, k, v = x.split((self.heads, self.kv_heads, self.kv_heads), 1)
        if keys is not None:
            if positions is None:
                keys[0, : len(k)], keys[1, : len(v)] = k, v
            else:
                keys[0].index_copy_(0, positions, k)
                keys[1].index_copy_(0, positions, v)
            k, v = keys[0], keys[1]
        if rows is not None:
            q, h = q[rows], h[rows]
        y = attention(q, k, v, length).flatten(1)
        h = self.attn_out.onto(_round(self.attn_out, y), h)
        g = _apply(self.gate_up, h, self.ff_norm)
        kind = self.ff_out.rounding
        return self.ff_out.onto(kernels.gate_round(g, kind, self.ff_out.input_scale) if kind else kernels.gate(g), h)


class FusedNetwork:
    """Computes logits from ids. `network` still works: its weights become views of the fused ones."""

    def __init__(self, network: Network, longest: int):
        """longest: length of the longest prompt [tokens]; the rotary angles of all its positions are computed now."""
        t: Transformer = network.model['transformer']  # type: ignore[assignment]
        c = network.config
        c.refuse_options('a network of fused matmuls', "take engine 'eager'", able=('head_dim',))
        self.config, self.embedding, self.last_norm, self.head = c, t.wte, t.ln_f, t.ff_out
        self.blocks = [FusedBlock(block) for block in t.blocks]  # type: ignore[arg-type]
        self.dtype, self.device = t.ln_f.weight.dtype, t.ln_f.weight.device
        self.rope = rope_table(longest, c.head_size, c.rope_theta, self.device)

    def __call__(
        self, ids: Tensor, length: Tensor, rows: Tensor, vocabulary: slice, keys: list[Tensor] | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return logits (rows, vocabulary) of ids (T,), of which the first `length` (1,) int32 are the prompt.

        rows (n,) int64: the computed positions whose logits are returned. keys: of `new_keys`; they are filled where
        `positions` is None. positions (M,) int64: only these are computed; the keys of all others are read from `keys`.
        """
        at = slice(0, len(ids)) if positions is None else positions
        h = self.embedding(ids[at]).to(self.dtype)
        rope = (self.rope[0][at], self.rope[1][at])
        last = len(self.blocks) - 1
        for i, block in enumerate(self.blocks):
            h = block(h, rope, length, rows if i == last else None, None if keys is None else keys[i], positions)
        h = kernels.norm(h, self.last_norm.weight, self.last_norm.eps)
        return self.head(h, vocabulary)

    def new_keys(self, length: int) -> list[Tensor]:
        """Return room for keys and values of `length` tokens: a tensor (2, length, kv heads, head_dim) per layer."""
        c = self.config
        shape = (2, length, c.n_kv_heads, c.head_size)
        return [torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in self.blocks]


def attention(q: Tensor, k: Tensor, v: Tensor, length: Tensor) -> Tensor:
    """Return attention (M, heads, head_dim) of queries q over the first `length` (1,) int32 of T keys.

    k, v: (T, kv heads, head_dim). On a GPU in half precision the kernel stops at `length`; else later keys are masked.
    """
    if q.is_cuda and q.dtype in (torch.bfloat16, torch.float16):
        from torch.nn.attention.varlen import varlen_attn

        ends = _ends(len(q), q.device), _ends(len(k), q.device)
        grouped = q.shape[1] != k.shape[1]
        y = varlen_attn(q, k, v, *ends, len(q), len(k), enable_gqa=grouped, seqused_k=length)
        return y  # type: ignore[return-value]
    mask = torch.arange(len(k), device=k.device) < length
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[None, None, None], enable_gqa=q.shape[1] != k.shape[1])
    return y[0].transpose(0, 1)


@cache
def _ends(length: int, device: torch.device) -> Tensor:
    """Return start and end of one sequence, (2,) int32. Cached, as a capture must not copy from the host."""
    return torch.tensor([0, length], dtype=torch.int32, device=device)


def _matmuls(*layers: nn.Linear) -> list[Matmul]:
    """Return one matmul for all layers, or one per layer where their storage differs."""
    alike = len({storage_of(layer) for layer in layers}) == 1
    return [Matmul(layers)] if alike else [Matmul([layer]) for layer in layers]


def _apply(matmuls: list[Matmul], h: Tensor, norm: RMSNorm) -> Tensor:
    """Return the outputs of all matmuls for the norm of h (M, K), side by side."""
    made: dict[tuple, Tensor | kernels.Rounded] = {}
    parts = []
    for p in matmuls:
        key = (p.rounding, None if p.input_scale is None else id(p.input_scale))
        if key not in made:
            weight, eps = norm.weight, norm.eps
            made[key] = (
                kernels.norm_round(h, weight, eps, p.rounding, p.input_scale)
                if p.rounding
                else kernels.norm(h, weight, eps)
            )
        parts.append(p(made[key], h.dtype))
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def _round(p: Matmul, x: Tensor) -> Tensor | kernels.Rounded:
    return kernels.quantize(x, p.rounding, p.input_scale) if p.rounding else x
