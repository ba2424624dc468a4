"""The matrix multiplications of the network on a GPU, in the precision of the stored weights.

The kernel that computes the inputs rounds them, too, see kernels.py. Several implementations compute the same numbers.
The fastest one depends on GPU and shape, so they are timed when an engine is made.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_model.engines import kernels
from vla_model.engines.kernels import Rounded
from vla_model.quantized import QuantizedLinear, int8_matmul, widen

Timer = Callable[[Callable[[], object]], float]  # [s] that a call takes
_log = logging.getLogger(__name__)
ROUNDED = ('int8', 'fp8')  # schemes whose inputs are rounded


class Matmul:
    """y = x W^T for layers that share their input; y holds their outputs side by side.

    The weights of the layers become views of the fused weight, so that they take no second memory.
    """

    def __init__(self, layers: Sequence[nn.Linear | QuantizedLinear]):
        """Raises ValueError for layers of different precision, group size or rounding of inputs."""
        first: Any = layers[0]
        self.scheme = first.scheme if isinstance(first, QuantizedLinear) else ''
        if len({storage_of(layer) for layer in layers}) > 1:
            raise ValueError(f'layers that share an input are stored as {sorted({storage_of(x) for x in layers})}')
        self.weight = _fused(layers, 'weight')
        self.scale = _fused(layers, 'scale') if self.scheme else None
        self.input_scale: Tensor | None = None
        if self.scheme == 'int8' and first.activations == 'tensor':
            # The layers were calibrated on the same input. Where they were not, the largest scale clips none.
            self.input_scale = torch.stack([x.get_buffer('input_scale') for x in layers]).amax()
        self.outputs = len(self.weight)
        self.implementation = IMPLEMENTATIONS[self.scheme][0]

    @property
    def rounding(self) -> str:
        """Rounding that the inputs need: 'int8', 'fp8', or '' for none."""
        return self.scheme if self.scheme in ROUNDED else ''

    def __call__(self, x: Tensor | Rounded, dtype: torch.dtype) -> Tensor:
        """Return (M, outputs) in `dtype` for x (M, K), rounded or plain."""
        return self.implementation(self, x, dtype)

    def onto(self, x: Tensor | Rounded, residual: Tensor) -> Tensor:
        """Return residual (M, outputs) + x W^T."""
        if not self.scheme:
            return torch.addmm(residual, x, self.weight.t())  # type: ignore[arg-type]
        return residual + self(x, residual.dtype)

    def measure(
        self, rows: int, dtype: torch.dtype, timed: Callable[[Callable[[], object]], float]
    ) -> dict[str, float]:
        """Choose the fastest implementation for inputs of `rows` rows.

        Return name -> time [s] of the implementations that run on this GPU. Raises ValueError where none does.
        """
        inputs = self._example(rows, dtype)
        times: dict[str, float] = {}
        for run in IMPLEMENTATIONS[self.scheme]:
            try:
                times[run.__name__] = timed(lambda run=run: run(self, inputs, dtype))  # type: ignore[misc]
            except (RuntimeError, ValueError, NotImplementedError, ImportError) as error:
                _log.info('%s %s does not run here: %s', self.scheme, run.__name__, str(error).splitlines()[0])
        if not times:
            raise ValueError(
                f'no implementation of a matmul with {self.scheme} weights runs on this GPU: '
                'take a checkpoint in bfloat16'
            )
        self.implementation = next(
            w for w in IMPLEMENTATIONS[self.scheme] if w.__name__ == min(times, key=times.__getitem__)
        )
        return times

    def _example(self, rows: int, dtype: torch.dtype) -> Tensor | Rounded:
        inputs = self.weight.shape[1] * (2 if self.scheme == 'int4' else 1)
        generator = torch.Generator(self.weight.device).manual_seed(0)
        x = torch.randn(rows, inputs, generator=generator, device=self.weight.device).to(dtype)
        return kernels.round_rows(x, self.rounding, self.input_scale) if self.rounding else x


def storage_of(layer: nn.Linear | QuantizedLinear) -> str:
    """Return how a layer stores its weights; layers of equal storage can share one matmul."""
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


# ---- implementations: (matmul, input, dtype of the result) -> (M, outputs)


def plain(p: Matmul, x: Tensor, dtype: torch.dtype) -> Tensor:
    """torch's linear layer in the model's precision."""
    return F.linear(x, p.weight)


def library_int8(p: Matmul, x: Rounded, dtype: torch.dtype) -> Tensor:
    """torch._int_mm; the scales are applied to its result."""
    return (int8_matmul(x[0], p.weight) * x[1] * p.scale).to(dtype)  # type: ignore[operator]


def library_fp8(p: Matmul, x: Rounded, dtype: torch.dtype) -> Tensor:
    """torch._scaled_mm with a scale per row and per column, which needs compute capability 9.0."""
    scale = p.scale[None].contiguous()  # type: ignore[index]
    if dtype == torch.bfloat16 or x[0].device.type == 'cpu':
        return torch._scaled_mm(x[0], p.weight.t(), scale_a=x[1], scale_b=scale, out_dtype=torch.bfloat16).to(dtype)
    raise ValueError(f'torch._scaled_mm with scales per row gives bfloat16, not {dtype}')


def triton_scaled(p: Matmul, x: Rounded, dtype: torch.dtype) -> Tensor:
    """The suite's Triton kernel, which applies the scales before it writes."""
    if not kernels.available(x[0].device):
        raise ValueError('Triton is not here')
    from vla_model.engines import kernels_triton

    (m, k), n = x[0].shape, len(p.weight)
    out = torch.empty((m, n), dtype=dtype, device=x[0].device)
    tile = (128, 128, 64) if m > 64 else (32, 128, 64)
    grid = (-(-m // tile[0]) * -(-n // tile[1]),)
    kernels_triton.scaled_matmul[grid](
        x[0], p.weight, x[1], p.scale, out, m, n, k, p.scheme == 'int8', *tile, 8, num_warps=8, num_stages=3
    )
    return out


def widened(p: Matmul, x: Tensor, dtype: torch.dtype) -> Tensor:
    """The matmul with the weight widened to the model's precision for its duration."""
    return F.linear(x, widen(p.weight, p.scale, p.scheme).to(dtype))  # type: ignore[arg-type]


IMPLEMENTATIONS: dict[str, tuple[Callable[..., Tensor], ...]] = {
    '': (plain,),
    'int8': (library_int8, triton_scaled),
    'fp8': (library_fp8, triton_scaled),
    'int4': (widened,),
    'int8-weight': (widened,),
}
