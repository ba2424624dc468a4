"""Layers with weights in 8 or 4 bits: how numbers are rounded and the plain way to compute with them.

The layout is that of docs/reference/quantization.md. Integer matmuls are exact; the faster engines are measured
against what is computed here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_model.config import Quantization

INT8, INT4, FP8 = 127.0, 7.0, 448.0  # stored values of the largest magnitude
GROUPS = (128, 64, 32)
CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7)  # tried shares of the largest magnitude of an int4 group; the best is taken
CHUNK = 1 << 20  # numbers of a weight that are rounded at a time: temporaries are a few times as large
WIDE = 1 << 25  # numbers of a weight that are widened at a time: a head of 100 000 words would need gigabytes
TINY = 1e-12  # scale of weights that are all zero


def group_for(sizes: set[int]) -> int:
    """Return the largest int4 group that divides all numbers of inputs. Raises ValueError where none does."""
    for group in GROUPS:
        if all(k % group == 0 for k in sizes):
            return group
    raise ValueError(f'int4 needs layers whose inputs are a multiple of {GROUPS[-1]}, these have {sorted(sizes)}')


@torch.no_grad()
def round_weight(weight: Tensor, scheme: str, group: int, importance: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the stored (weight, scale) of a floating point weight (n, k), or (n, ...) for int8-weight.

    importance: (k,) cost of an error in the weights of each input for int4, such as the mean square of the input.
    """
    rows = max(1, CHUNK // max(1, weight[0].numel()))
    parts = [_round_rows(w.float(), scheme, group, importance) for w in weight.split(rows)]
    return torch.cat([q for q, _ in parts]), torch.cat([s for _, s in parts])


def _round_rows(w: Tensor, scheme: str, group: int, importance: Tensor | None) -> tuple[Tensor, Tensor]:
    if scheme == 'int4':
        return _round_int4(w, group, importance)
    largest = FP8 if scheme == 'fp8' else INT8
    scale = (w.flatten(1).abs().amax(1) / largest).clamp(min=TINY)
    scaled = w / scale.view(-1, *[1] * (w.ndim - 1))
    return (scaled.to(torch.float8_e4m3fn) if scheme == 'fp8' else scaled.round().to(torch.int8)), scale


def _round_int4(w: Tensor, group: int, importance: Tensor | None) -> tuple[Tensor, Tensor]:
    grouped = w.unflatten(1, (-1, group))
    counts = torch.ones(group, device=w.device) if importance is None else importance.unflatten(0, (-1, group))
    largest = grouped.abs().amax(2)
    best: Tensor | None = None
    for clip in CLIPS:
        scale = (largest * (clip / INT4)).clamp(min=TINY).bfloat16()
        q = (grouped / scale.float()[..., None]).round().clamp(-8, 7)
        error = ((q * scale.float()[..., None] - grouped).square() * counts).sum(2)
        if best is None:
            best, kept_q, kept_scale = error, q, scale
            continue
        better = error < best
        best = torch.where(better, error, best)
        kept_q, kept_scale = torch.where(better[..., None], q, kept_q), torch.where(better, scale, kept_scale)
    nibbles = (kept_q + 8).flatten(1).to(torch.uint8)
    return nibbles[:, ::2] | (nibbles[:, 1::2] << 4), kept_scale


def widen(weight: Tensor, scale: Tensor, scheme: str) -> Tensor:
    """Return a stored weight in float32: (n, k) of int4, else of its stored shape."""
    if scheme == 'int4':
        nibbles = torch.stack((weight & 15, weight >> 4), 2).flatten(1).float() - 8
        return (nibbles.unflatten(1, (scale.shape[1], -1)) * scale.float()[..., None]).flatten(1)
    return weight.float() * scale.view(-1, *[1] * (weight.ndim - 1))


def round_tokens(x: Tensor, largest: float) -> tuple[Tensor, Tensor]:
    """Return x / scale and scale (..., 1), in float32; the largest magnitude of each token becomes `largest`."""
    x = x.float()
    scale = (x.abs().amax(-1, keepdim=True) / largest).clamp(min=TINY)
    return x / scale, scale


def int8_matmul(a: Tensor, b: Tensor) -> Tensor:
    """Return a (m, k) int8 times the transpose of b (n, k) int8: (m, n) int32, exact."""
    if a.device.type == 'cpu':
        return torch._int_mm(a, b.t())
    rows = len(a)
    if rows < 32:  # the minimum of the library on a GPU
        a = F.pad(a, (0, 0, 0, 32 - rows))
    return torch._int_mm(a, b.t())[:rows]


class QuantizedLayer(nn.Module):
    """Base of quantized layers. The types of stored numbers are kept when a network is cast; see `dtype`."""

    weight: Tensor
    scale: Tensor

    def __init__(self, scheme: str, group: int, outputs: int, inputs: tuple[int, ...]):
        super().__init__()
        self.scheme, self.group, self.outputs, self.inputs = scheme, group, outputs, inputs
        self.dtype = torch.float32  # of results, where no input has one
        kind = {'fp8': torch.float8_e4m3fn, 'int4': torch.uint8}.get(scheme, torch.int8)
        four = scheme == 'int4'
        self.register_buffer('weight', torch.zeros(outputs, *((inputs[0] // 2,) if four else inputs), dtype=kind))
        shape = (outputs, inputs[0] // group) if four else (outputs,)
        self.register_buffer('scale', torch.zeros(shape, dtype=torch.bfloat16 if four else torch.float32))

    def widened(self, rows: slice | Tensor = slice(None)) -> Tensor:
        """Return the weight, or some of its rows, in float32."""
        return widen(self.weight[rows], self.scale[rows], self.scheme)


class QuantizedLinear(QuantizedLayer):
    """nn.Linear without bias in a scheme of LAYER_SCHEMES. activations: as in `Quantization`."""

    input_scale: Tensor

    def __init__(self, inputs: int, outputs: int, scheme: str, group: int, activations: str):
        super().__init__(scheme, group, outputs, (inputs,))
        self.activations = activations
        if scheme == 'int8':
            self.register_buffer('input_scale', torch.ones(()))

    def forward(self, x: Tensor, rows: slice = slice(None)) -> Tensor:
        """Return (..., outputs), or the outputs `rows` only, for x (..., inputs)."""
        weight = self.weight[rows]
        if self.scheme == 'int8':
            if self.activations == 'tensor':
                q, scale = x.float() / self.input_scale, self.input_scale
            else:
                q, scale = round_tokens(x, INT8)
            q = q.round().clamp(-INT8, INT8).to(torch.int8)
            y = int8_matmul(q.flatten(0, -2), weight).unflatten(0, x.shape[:-1])
            return (y * scale * self.scale[rows]).to(x.dtype)
        if self.scheme == 'fp8':
            q, scale = round_tokens(x, FP8)
            y = F.linear(q.to(torch.float8_e4m3fn).to(x.dtype), weight.to(x.dtype))
            return (y * scale * self.scale[rows]).to(x.dtype)
        first, last, _ = rows.indices(self.outputs)
        step = max(1, WIDE // self.inputs[0])
        pieces = [slice(i, min(i + step, last)) for i in range(first, last, step)]
        return torch.cat([F.linear(x, self.widened(piece).to(x.dtype)) for piece in pieces], -1)


class QuantizedEmbedding(QuantizedLayer):
    """nn.Embedding; its results are in `dtype`."""

    def forward(self, ids: Tensor) -> Tensor:
        """Return embeddings (..., size) of ids (...) int64."""
        return self.widened(ids.flatten()).to(self.dtype).unflatten(0, ids.shape)


class QuantizedConv2d(QuantizedLayer):
    """A stored convolution; `plain` returns the one that runs."""

    def __init__(self, conv: nn.Conv2d, scheme: str):
        super().__init__(scheme, 0, conv.out_channels, tuple(conv.weight.shape[1:]))
        self.bias = conv.bias
        self.stride, self.padding = conv.stride, conv.padding

    def plain(self) -> nn.Conv2d:
        n, k, *size = self.weight.shape
        with torch.device(self.weight.device):
            conv = nn.Conv2d(k, n, size, self.stride, self.padding)  # type: ignore[arg-type]
        conv.weight, conv.bias = nn.Parameter(self.widened()), self.bias
        return conv


class PlainLinear(nn.Module):
    """The floating point layer with the dequantized weights of a quantized one."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor, rows: slice = slice(None)) -> Tensor:
        return F.linear(x, self.weight[rows])


def put_layers(module: nn.Module, q: Quantization, prefixes: tuple[str, ...] = ('',)) -> None:
    """Replace the layers of `module` that q names, and whose names start with `prefixes`, by empty quantized ones.

    Raises ValueError naming a layer that is missing, or does not support its scheme.
    """
    for name, scheme in q.layers.items():
        if not name.startswith(prefixes):
            continue
        try:
            layer = module.get_submodule(name)
        except AttributeError:
            raise ValueError(f'quantization.layers: the model has no layer {name}') from None
        set_layer(module, name, quantized_like(layer, name, scheme, q.group, q.activations))


def quantized_like(layer: nn.Module, name: str, scheme: str, group: int, activations: str) -> QuantizedLayer:
    """Return an empty quantized layer of the shape of `layer`, on its device."""
    device = next(layer.parameters()).device
    weight_only = scheme in ('int4', 'int8-weight')
    with torch.device(device):
        if isinstance(layer, nn.Linear) and layer.bias is None:
            _check_group(name, layer.in_features, scheme, group)
            return QuantizedLinear(layer.in_features, layer.out_features, scheme, group, activations)
        if isinstance(layer, nn.Embedding) and weight_only:
            _check_group(name, layer.embedding_dim, scheme, group)
            return QuantizedEmbedding(scheme, group, layer.num_embeddings, (layer.embedding_dim,))
        if isinstance(layer, nn.Conv2d) and scheme == 'int8-weight':
            return QuantizedConv2d(layer, scheme)
    raise ValueError(f'quantization.layers: {name}, a {type(layer).__name__}, cannot be {scheme}')


def is_quantized(module: nn.Module) -> bool:
    return any(isinstance(m, QuantizedLayer) for m in module.modules())


def plain_layers(module: nn.Module) -> nn.Module:
    """Replace quantized layers, in place, by plain ones with the same weights in float32; return the module."""
    for name, layer in list(module.named_modules()):
        if isinstance(layer, QuantizedConv2d):
            set_layer(module, name, layer.plain())
        elif isinstance(layer, QuantizedEmbedding):
            set_layer(module, name, nn.Embedding.from_pretrained(layer.widened()))
        elif isinstance(layer, QuantizedLinear):
            set_layer(module, name, PlainLinear(layer.widened()))
    return module


def set_layer(module: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition('.')
    setattr(module.get_submodule(parent), child, layer)


def _check_group(name: str, inputs: int, scheme: str, group: int) -> None:
    if scheme == 'int4' and (not group or inputs % group):
        raise ValueError(f'quantization.group {group} does not divide the {inputs} inputs of {name}')
