"""The Triton kernels behind kernels.py and matmuls.py. Importing this needs the package triton."""

# Triton's language has its own types; its pointers and constants are no Python numbers.
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def rows(
    x, weight, fixed, out, scales, stride, k, eps,
    WHAT: tl.constexpr, KIND: tl.constexpr, FIXED: tl.constexpr, LIMIT: tl.constexpr, TINY: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per row: norm, gate or nothing, then rounding. Rounds to the model's precision where torch does."""
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    inside = at < k
    model = x.dtype.element_ty
    a = tl.load(x + row * stride + at, mask=inside, other=0.0).to(tl.float32)
    if WHAT == 'norm':
        a = (a * tl.rsqrt(tl.sum(a * a, 0) / k + eps)).to(model).to(tl.float32)
        a = (a * tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)).to(model).to(tl.float32)
    if WHAT == 'gate':
        b = tl.load(x + row * stride + k + at, mask=inside, other=0.0).to(tl.float32)
        a = (a * tl.sigmoid(a)).to(model).to(tl.float32)
        a = (a * b).to(model).to(tl.float32)
    if KIND == '':
        tl.store(out + row * k + at, a.to(model), mask=inside)
    else:
        if FIXED:  # noqa: SIM108 (the compiler takes one branch; of an expression it would make both)
            scale = tl.load(fixed).to(tl.float32)
        else:
            scale = tl.maximum(tl.max(tl.abs(a), 0) / LIMIT, TINY)
        a = tl.minimum(tl.maximum(a / scale, -LIMIT), LIMIT)
        if KIND == 'int8':
            a = (a + 12582912.0) - 12582912.0  # 1.5 * 2^23: what fp32 adds there is rounded to integers, halves to even
        tl.store(out + row * k + at, a.to(out.dtype.element_ty), mask=inside)
        tl.store(scales + row, scale)


@triton.jit
def rotate(x, cos, sin, stride, head_stride, angle_stride, half, BLOCK: tl.constexpr):
    """One program per position and head: pairs (i, i + half) by their angle."""
    row, head = tl.program_id(0), tl.program_id(1)
    at = tl.arange(0, BLOCK)
    inside = at < half
    place = x + row * stride + head * head_stride + at
    model = x.dtype.element_ty
    a = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(place + half, mask=inside, other=0.0).to(tl.float32)
    c = tl.load(cos + row * angle_stride + at, mask=inside, other=0.0)
    s = tl.load(sin + row * angle_stride + at, mask=inside, other=0.0)
    tl.store(place, (a * c - b * s).to(model), mask=inside)
    tl.store(place + half, (b * c + a * s).to(model), mask=inside)


@triton.jit
def scaled_matmul(
    a, b, a_scale, b_scale, out, m, n, k,
    INTEGER: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """out (m, n) = (a (m, k) @ b (n, k)^T) * a_scale (m,) * b_scale (n,), of int8 or fp8.

    Blocks that share rows of b run next to each other, so that b is read from the second-level cache.
    """
    program = tl.program_id(0)
    across = tl.cdiv(m, M)
    wide = GROUP * across
    first = program // wide * GROUP
    group = tl.minimum(tl.cdiv(n, N) - first, GROUP)
    i = (program % wide) // group * M + tl.arange(0, M)
    j = (first + (program % wide) % group) * N + tl.arange(0, N)
    inner = tl.arange(0, K)
    left = a + (i % m)[:, None] * k + inner[None, :]
    right = b + (j % n)[None, :] * k + inner[:, None]
    total = tl.zeros((M, N), dtype=tl.int32 if INTEGER else tl.float32)
    for start in range(0, k, K):
        inside = inner < k - start
        total = tl.dot(
            tl.load(left + start, mask=inside[None, :], other=0.0),
            tl.load(right + start, mask=inside[:, None], other=0.0),
            total,
            out_dtype=tl.int32 if INTEGER else tl.float32,
        )
    scales = tl.load(a_scale + i, mask=i < m, other=0.0)[:, None] * tl.load(b_scale + j, mask=j < n, other=0.0)[None, :]
    place = out + i[:, None] * n + j[None, :]
    tl.store(place, (total.to(tl.float32) * scales).to(out.dtype.element_ty), mask=(i < m)[:, None] & (j < n)[None, :])
