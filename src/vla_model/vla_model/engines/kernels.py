"""The operations between the matmuls of the network, one kernel each: norm, gate and rotation, with rounding.

On a GPU these are Triton kernels, which read and write each number once. Elsewhere, and as their reference, they are
the same expressions in torch. With TRITON_INTERPRET=1 the kernels run on a CPU, slowly, for tests.
"""

import importlib.util
import os
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vla_model.network import rotate
from vla_model.quantized import FP8, INT8, TINY

LIMITS = {'int8': INT8, 'fp8': FP8}  # largest magnitude of a rounded number
DTYPES = {'int8': torch.int8, 'fp8': torch.float8_e4m3fn}
Rounded = tuple[Tensor, Tensor]  # (M, K) int8 or float8_e4m3fn, and the scale (M, 1) fp32 that gives the numbers back


def available(device: torch.device) -> bool:
    """Return whether the Triton kernels can run on tensors of `device`."""
    interpreted = os.environ.get('TRITON_INTERPRET') == '1'
    return (device.type == 'cuda' or interpreted) and _installed()


@lru_cache
def _installed() -> bool:
    return importlib.util.find_spec('triton') is not None


# ---- in torch: the reference


def round_rows(x: Tensor, kind: str, scale: Tensor | None = None) -> Rounded:
    """Return x (M, K) rounded to `kind`, 'int8' or 'fp8', and its scales.

    scale: () fp32, one fixed scale for all rows; None: one per row. int8 rounds halves to even. Numbers beyond a fixed
    scale are clipped.
    """
    x, limit = x.float(), LIMITS[kind]
    if scale is None:
        scale = (x.abs().amax(-1, keepdim=True) / limit).clamp(min=TINY)
    else:
        scale = scale.float().expand(len(x), 1)
    y = (x / scale).clamp(-limit, limit)
    return (y.round() if kind == 'int8' else y).to(DTYPES[kind]), scale


def quantize(x: Tensor, kind: str, scale: Tensor | None = None) -> Rounded:
    """Return `round_rows` of x, by one kernel where Triton is available."""
    if available(x.device):
        return _rows('', x, x.shape[1], None, 0.0, kind, scale)
    return round_rows(x, kind, scale)


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return the RMSNorm of x (M, K), as `network.RMSNorm`."""
    if available(x.device):
        return _rows('norm', x, x.shape[1], weight, eps, '', None)[0]
    return F.rms_norm(x.float(), weight.shape, eps=eps).to(x.dtype) * weight


def norm_round(x: Tensor, weight: Tensor, eps: float, kind: str, scale: Tensor | None = None) -> Rounded:
    """Return `norm` of x (M, K), rounded as in `round_rows`."""
    if available(x.device):
        return _rows('norm', x, x.shape[1], weight, eps, kind, scale)
    return round_rows(F.rms_norm(x.float(), weight.shape, eps=eps).to(x.dtype) * weight, kind, scale)


def gate(x: Tensor) -> Tensor:
    """Return silu(a) * b (M, K) of x (M, 2 K), whose halves are a and b."""
    if available(x.device):
        return _rows('gate', x, x.shape[1] // 2, None, 0.0, '', None)[0]
    a, b = x.chunk(2, -1)
    return F.silu(a) * b


def gate_round(x: Tensor, kind: str, scale: Tensor | None = None) -> Rounded:
    """Return `gate` of x (M, 2 K), rounded as in `round_rows`."""
    if available(x.device):
        return _rows('gate', x, x.shape[1] // 2, None, 0.0, kind, scale)
    a, b = x.chunk(2, -1)
    return round_rows(F.silu(a) * b, kind, scale)


def rotate_heads(x: Tensor, heads: int, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the first `heads` heads of x (M, all heads, head_dim) in place, as `network.rotate`. Returns x.

    cos, sin (M, head_dim) fp32.
    """
    if available(x.device):
        tl_kernels = _kernels()
        half = x.shape[2] // 2
        grid = (x.shape[0], heads)
        block = max(16, 1 << (half - 1).bit_length())
        tl_kernels.rotate[grid](x, cos, sin, x.stride(0), x.stride(1), cos.stride(0), half, block)
        return x
    part = x[:, :heads]
    part.copy_(rotate(part.transpose(0, 1), cos, sin).transpose(0, 1))
    return x


# ---- in Triton


def _rows(what: str, x: Tensor, k: int, weight: Tensor | None, eps: float, kind: str, scale: Tensor | None) -> Rounded:
    """'norm' with `weight`, 'gate', or '' for neither; then rounded to `kind` if there is one."""
    kernels = _kernels()
    m = x.shape[0]
    out = torch.empty((m, k), dtype=DTYPES.get(kind, x.dtype), device=x.device)
    scales = torch.empty((m, 1), dtype=torch.float32, device=x.device)
    block = max(16, 1 << (k - 1).bit_length())
    kernels.rows[(m,)](
        x, x if weight is None else weight, scales if scale is None else scale, out, scales, x.stride(0), k, eps,
        what, kind, scale is not None, LIMITS.get(kind, 0.0), TINY, block,
        num_warps=min(16, max(1, block // 512)),
    )  # fmt: skip
    return out, scales


def _kernels() -> Any:
    from vla_model.engines import kernels_triton  # imports triton, which not every machine has

    return kernels_triton
