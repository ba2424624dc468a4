"""Smoothing: divides inputs with outliers by a factor, and multiplies the weights of the layer by it.

This is SmoothQuant (Xiao et al., 2023) for rounded inputs, and AWQ (Lin et al., 2023) for weights in 4 bits. The
division is folded into the norm or layer before. Factors are powers of two, so that folding changes no digit. Of a few
exponents, the one with the smallest error of the rounded outputs is taken.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_model.config import Quantization
from vla_model.network import Block
from vla_model.quantized import FP8, INT8, round_tokens, round_weight, widen

ALPHAS = (0.4, 0.55, 0.7, 0.85)  # s = largest input ^ alpha / largest weight ^ (1 - alpha)
ROWS = 512  # recorded inputs of a layer, on which errors are measured
# Module that takes the division -> layers whose inputs it divides.
FOLDS = {
    'attn_norm': ('q_proj', 'k_proj', 'v_proj'),
    'v_proj': ('attn_out',),
    'ff_norm': ('ff_proj', 'up_proj'),
    'up_proj': ('ff_out',),
}


@dataclass
class Seen:
    """Statistics of the inputs of a layer with k inputs."""

    largest: Tensor  # (k,) magnitude
    square: Tensor  # (k,) mean
    rows: Tensor  # (at most ROWS, k) of them


def watch(
    block: Block,
    hidden: list[Tensor],
    rope: Callable[[int], tuple[Tensor, Tensor]],
    mask: Callable[[int], Tensor | None] = lambda length: None,
) -> tuple[list[Tensor], dict[str, Seen]]:
    """Return the outputs of a block for `hidden` (1, T, d_model), and the inputs of each of its linear layers."""
    device = block.q_proj.weight.device
    linears = {name: m for name, m in block.named_modules() if isinstance(m, nn.Linear)}
    largest = {name: torch.zeros(m.in_features, device=device) for name, m in linears.items()}
    square = {name: torch.zeros(m.in_features, device=device) for name, m in linears.items()}
    kept: dict[str, list[Tensor]] = {name: [] for name in linears}
    each = max(1, ROWS // max(1, len(hidden)))

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def see(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].flatten(0, -2)
            torch.maximum(largest[name], x.abs().amax(0), out=largest[name])
            square[name].add_(x.square().mean(0) / len(hidden))
            kept[name].append(x[torch.linspace(0, len(x) - 1, min(each, len(x)), device=device).long()].clone())

        return see

    handles = [m.register_forward_pre_hook(hook(name)) for name, m in linears.items()]
    out = [block(h.to(device), rope(h.shape[1]), slice(None), mask(h.shape[1])) for h in hidden]
    for handle in handles:
        handle.remove()
    return out, {name: Seen(largest[name], square[name], torch.cat(kept[name])) for name in linears}


def smooth(block: Block, entered: dict[str, Seen], schemes: Mapping[str, str], entry: Quantization) -> None:
    """Smooth a block in place, and update `entered` to the inputs after smoothing."""
    for source, names in FOLDS.items():
        rounded = {n: schemes[n] for n in names if n in schemes}
        if not rounded:
            continue
        weights: dict[str, Tensor] = {n: block.get_submodule(n).weight for n in names}  # type: ignore[misc]
        seen = entered[names[0]]  # all of them have the same inputs
        if source == 'v_proj' and block.n_kv_heads != block.n_heads:
            continue  # a row of v_proj is the input of several heads: one factor could not suit all
        best, factor = _error(weights, rounded, seen, torch.ones_like(seen.largest), entry), None
        for alpha in ALPHAS:
            s = _factor(seen, list(weights.values()), alpha)
            error = _error(weights, rounded, seen, s, entry)
            if error < best:
                best, factor = error, s
        if factor is None:
            continue
        before = block.get_submodule(source).weight
        before.copy_(before / (factor if before.ndim == 1 else factor[:, None]))  # type: ignore[operator, arg-type]
        for name in names:
            weights[name].copy_(weights[name] * factor)
            e = entered[name]
            entered[name] = Seen(e.largest / factor, e.square / factor.square(), e.rows / factor)


def _factor(seen: Seen, weights: list[Tensor], alpha: float) -> Tensor:
    """Return factors (k,): powers of two around 1."""
    weight = torch.stack([w.abs().amax(0) for w in weights]).amax(0).clamp(min=1e-5)
    s = alpha * seen.largest.clamp(min=1e-5).log2() - (1 - alpha) * weight.log2()
    return torch.exp2((s - s.mean()).round().clamp(-12, 12))


def _error(
    weights: Mapping[str, Tensor], rounded: Mapping[str, str], seen: Seen, s: Tensor, entry: Quantization
) -> float:
    """Return the relative square error of the outputs by rounding, summed over the rounded layers."""
    total = 0.0
    for name, scheme in rounded.items():
        weight = weights[name]
        q = widen(*round_weight(weight * s, scheme, entry.group, seen.square / s.square()), scheme)
        wanted = F.linear(seen.rows, weight)
        got = F.linear(round_input(seen.rows / s, scheme, float((seen.largest / s).max()), entry.activations), q)
        total += float((got - wanted).square().sum() / wanted.square().sum().clamp(min=1e-12))
    return total


def round_input(x: Tensor, scheme: str, largest: float, activations: str) -> Tensor:
    """Return x as rounded by a layer of this scheme."""
    if scheme == 'int8':
        if activations == 'tensor':
            scale = max(largest, 1e-6) / INT8
            return (x / scale).round().clamp(-INT8, INT8) * scale
        q, by_token = round_tokens(x, INT8)
        return q.round() * by_token
    if scheme == 'fp8':
        q, by_token = round_tokens(x, FP8)
        return q.to(torch.float8_e4m3fn).float() * by_token
    return x
