"""The matrix products of the network on a GPU, in the precision that their weights are stored in.

A product takes rows that are rounded already: the kernel that makes them does it on the way, see kernels.py. Several
ways compute the same; which one is fastest depends on the GPU and the shape, so it is measured when an engine is made.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_model.engines import kernels
from vla_model.engines.kernels import Rounded
from vla_model.quantized import QuantizedLinear, int8_product, widen

Timer = Callable[[Callable[[], object]], float]  # [s] that a call takes
_log = logging.getLogger(__name__)
ROUNDED = ('int8', 'fp8')  # schemes whose inputs are rounded


class Product:
    """y = x W^T for layers that share their input: their outputs stand side by side.

    The layers' own weights become views of the fused one, so that they take no second memory.
    """

    def __init__(self, layers: Sequence[nn.Linear | QuantizedLinear]):
        """Raises ValueError where the layers are not stored alike."""
        first: Any = layers[0]
        self.scheme = first.scheme if isinstance(first, QuantizedLinear) else ''
        if len({kind_of(layer) for layer in layers}) > 1:
            raise ValueError(f'layers that share an input are stored as {sorted({kind_of(x) for x in layers})}')
        self.weight = _fused(layers, 'weight')
        self.scale = _fused(layers, 'scale') if self.scheme else None
        self.input_scale: Tensor | None = None
        if self.scheme == 'int8' and first.activations == 'tensor':
            # They were calibrated on the same input. Where they were not, none may be clipped.
            self.input_scale = torch.stack([x.get_buffer('input_scale') for x in layers]).amax()
        self.outputs = len(self.weight)
        self.way = WAYS[self.scheme][0]

    @property
    def rounding(self) -> str:
        """How inputs are to be rounded: 'int8', 'fp8', or '' for not at all."""
        return self.scheme if self.scheme in ROUNDED else ''

    def __call__(self, x: Tensor | Rounded, dtype: torch.dtype) -> Tensor:
        """x (M, K), or rounded -> (M, outputs) in `dtype`."""
        return self.way(self, x, dtype)

    def onto(self, x: Tensor | Rounded, residual: Tensor) -> Tensor:
        """residual (M, outputs) + the product."""
        if not self.scheme:
            return torch.addmm(residual, x, self.weight.t())  # type: ignore[arg-type]
        return residual + self(x, residual.dtype)

    def measure(
        self, rows: int, dtype: torch.dtype, timed: Callable[[Callable[[], object]], float]
    ) -> dict[str, float]:
        """Takes the fastest way for inputs of `rows` rows. Returns the time of each that runs here, by name."""
        inputs = self._example(rows, dtype)
        times: dict[str, float] = {}
        for way in WAYS[self.scheme]:
            try:
                times[way.__name__] = timed(lambda way=way: way(self, inputs, dtype))  # type: ignore[misc]
            except (RuntimeError, ValueError, NotImplementedError, ImportError) as error:
                _log.info('%s %s does not run here: %s', self.scheme, way.__name__, str(error).splitlines()[0])
        if not times:
            raise ValueError(
                f'no way to multiply {self.scheme} weights runs on this GPU: take a checkpoint in bfloat16'
            )
        self.way = next(w for w in WAYS[self.scheme] if w.__name__ == min(times, key=times.__getitem__))
        return times

    def _example(self, rows: int, dtype: torch.dtype) -> Tensor | Rounded:
        inputs = self.weight.shape[1] * (2 if self.scheme == 'int4' else 1)
        generator = torch.Generator(self.weight.device).manual_seed(0)
        x = torch.randn(rows, inputs, generator=generator, device=self.weight.device).to(dtype)
        return kernels.round_rows(x, self.rounding, self.input_scale) if self.rounding else x


def kind_of(layer: nn.Linear | QuantizedLinear) -> str:
    """Layers of the same kind can be one product."""
    if isinstance(layer, QuantizedLinear):
        return f'{layer.scheme} {layer.group} {layer.activations}'
    return str(layer.weight.dtype)


def _fused(layers: Sequence[nn.Linear | QuantizedLinear], name: str) -> Tensor:
    parts = [getattr(layer, name) for layer in layers]
    if len(parts) == 1:
        return parts[0].detach()
    whole = torch.cat([p.detach() for p in parts])
    start = 0
    for part in parts:
        part.data = whole[start : start + len(part)]
        start += len(part)
    return whole


# ---- ways to compute a product: (product, input, dtype of the result) -> (M, outputs)


def plain(p: Product, x: Tensor, dtype: torch.dtype) -> Tensor:
    """The library's product in the model's precision."""
    return F.linear(x, p.weight)


def library_int8(p: Product, x: Rounded, dtype: torch.dtype) -> Tensor:
    """torch._int_mm, and its scales after it."""
    return (int8_product(x[0], p.weight) * x[1] * p.scale).to(dtype)  # type: ignore[operator]


def library_fp8(p: Product, x: Rounded, dtype: torch.dtype) -> Tensor:
    """torch._scaled_mm with a scale per row and per column, which needs compute capability 9.0."""
    scale = p.scale[None].contiguous()  # type: ignore[index]
    if dtype == torch.bfloat16 or x[0].device.type == 'cpu':
        return torch._scaled_mm(x[0], p.weight.t(), scale_a=x[1], scale_b=scale, out_dtype=torch.bfloat16).to(dtype)
    raise ValueError(f'torch._scaled_mm with scales per row gives bfloat16, not {dtype}')


def triton_scaled(p: Product, x: Rounded, dtype: torch.dtype) -> Tensor:
    """Our own product, which applies the scales before it writes."""
    if not kernels.available(x[0].device):
        raise ValueError('Triton is not here')
    from vla_model.engines import kernels_triton

    (m, k), n = x[0].shape, len(p.weight)
    out = torch.empty((m, n), dtype=dtype, device=x[0].device)
    tile = (128, 128, 64) if m > 64 else (32, 128, 64)
    grid = (-(-m // tile[0]) * -(-n // tile[1]),)
    kernels_triton.scaled_product[grid](
        x[0], p.weight, x[1], p.scale, out, m, n, k, p.scheme == 'int8', *tile, 8, num_warps=8, num_stages=3
    )
    return out


def widened(p: Product, x: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight in the model's precision for the time of the product."""
    return F.linear(x, widen(p.weight, p.scale, p.scheme).to(dtype))  # type: ignore[arg-type]


WAYS: dict[str, tuple[Callable[..., Tensor], ...]] = {
    '': (plain,),
    'int8': (library_int8, triton_scaled),
    'fp8': (library_fp8, triton_scaled),
    'int4': (widened,),
    'int8-weight': (widened,),
}
