"""The network and the image encoder as ONNX graphs with explicit precisions.

Casts mark each change of type, and pairs of QuantizeLinear and DequantizeLinear each rounding. TensorRT 10 and 11 build
such graphs as "strongly typed". The graphs are assembled operator by operator, as a tracer would need a second copy of
the weights. 8B weights do not fit into one protobuf, so all graphs share one file of weights beside them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from vla_model.image_tokenizer import Attention, ImageTokenizer, ResBlock
from vla_model.network import Block, Network, RMSNorm, rope_table
from vla_model.quantized import FP8, TINY, QuantizedLayer, QuantizedLinear

OPSET, IR = 21, 10  # the first with int4 and blocks in DequantizeLinear, and what goes with it
TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.float8_e4m3fn: TensorProto.FLOAT8E4M3FN,
    torch.int8: TensorProto.INT8,
    torch.int64: TensorProto.INT64,
}
ALIGNMENT = 4096  # of each tensor in the file of weights, so that it can be mapped
INLINE = 256  # tensors of fewer numbers stay in the graph


class Weights:
    """The file of weights that several graphs share. Each tensor is written once."""

    def __init__(self, file: BinaryIO, name: str):
        """name: of the file, relative to the folder of the graphs."""
        self._file, self._name, self._places = file, name, dict[str, tuple[int, int]]()

    def put(self, name: str, value: Tensor, kind: int, shape: tuple[int, ...]) -> TensorProto:
        """Return an initializer with the bytes of `value`, interpreted as the ONNX type `kind`."""
        proto = TensorProto(name=name, data_type=kind, dims=shape)
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        if value.numel() < INLINE:
            proto.raw_data = raw.tobytes()
            return proto
        if name not in self._places:
            self._file.write(b'\0' * (-self._file.tell() % ALIGNMENT))
            start = self._file.tell()
            self._file.write(raw.data)
            self._places[name] = (start, raw.nbytes)
        start, length = self._places[name]
        proto.data_location = TensorProto.EXTERNAL
        for key, content in (('location', self._name), ('offset', start), ('length', length)):
            proto.external_data.add(key=key, value=str(content))
        return proto


class Graph:
    """Builds a graph of nodes in the order of calls; values of modules have the names of these."""

    def __init__(self, weights: Weights, dtype: torch.dtype):
        self.weights, self.dtype = weights, dtype
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, TensorProto] = {}
        self._rounded: dict[tuple[str, str], str] = {}

    def op(self, kind: str, *inputs: str, out: str = '', **attributes: Any) -> str:
        """Add a node; return the name of its first output."""
        out = out or f'{kind}_{len(self.nodes)}'
        self.nodes.append(helper.make_node(kind, inputs, [out], name=out, **attributes))
        return out

    def constant(self, name: str, value: Tensor, kind: int = 0, shape: tuple[int, ...] | None = None) -> str:
        """Add a constant; return its name. kind, shape: ONNX type and shape of a packed value."""
        if name not in self.initializers:
            dims = tuple(value.shape) if shape is None else shape
            self.initializers[name] = self.weights.put(name, value, kind or TYPES[value.dtype], dims)
        return name

    def number(self, value: float, dtype: torch.dtype) -> str:
        return self.constant(f'{value:g}_{str(dtype)[6:]}', torch.tensor(value, dtype=dtype))

    def integers(self, *values: int) -> str:
        return self.constant('ints_' + '_'.join(map(str, values)), torch.tensor(values))

    def cast(self, x: str, dtype: torch.dtype) -> str:
        return self.op('Cast', x, to=TYPES[dtype])

    def silu(self, x: str) -> str:
        return self.op('Mul', x, self.op('Sigmoid', x))

    def model(self, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, 'vla_model', inputs, outputs, list(self.initializers.values()))
        return helper.make_model(graph, opset_imports=[helper.make_opsetid('', OPSET)], ir_version=IR)

    # ---- layers

    def weight(self, name: str, layer: nn.Module) -> str:
        """Return the weight (n, k) of a layer in the graph's precision; quantized weights pass DequantizeLinear."""
        scheme = layer.scheme if isinstance(layer, QuantizedLinear) else ''
        if scheme in ('', 'int8-weight'):
            wide: Any = layer.widened() if isinstance(layer, QuantizedLayer) else layer.weight
            return self.constant(f'{name}.weight', wide.to(self.dtype))
        assert isinstance(layer, QuantizedLinear)
        scale = self.constant(f'{name}.scale', layer.scale.to(self.dtype))
        shape = (layer.outputs, *layer.inputs)
        if scheme == 'int4':  # stored as 0..15 around 8, in ONNX as -8..7: the highest bit of each is inverted
            packed = self.constant(f'{name}.weight', layer.weight ^ 0x88, TensorProto.INT4, shape)
            return self.op('DequantizeLinear', packed, scale, axis=1, block_size=layer.group)
        return self.op('DequantizeLinear', self.constant(f'{name}.weight', layer.weight), scale, axis=0)

    def rounded(self, x: str, name: str, layer: nn.Module, largest: Mapping[str, float]) -> str:
        """Return the input of a layer, rounded with one scale where its scheme needs that.

        largest: name of a layer -> largest magnitude of its inputs in calibration.
        """
        scheme = layer.scheme if isinstance(layer, QuantizedLinear) else ''
        if scheme not in ('int8', 'fp8'):
            return x
        scale = float(layer.input_scale) if scheme == 'int8' else max(largest[name], TINY) / FP8  # type: ignore[arg-type]
        kind = torch.int8 if scheme == 'int8' else torch.float8_e4m3fn
        key = (x, f'{scheme}_{scale:.9g}')
        if key not in self._rounded:
            step = self.constant(f'step_{key[1]}', torch.tensor(scale, dtype=self.dtype))
            zero = self.constant(f'zero_{scheme}', torch.zeros((), dtype=kind))
            self._rounded[key] = self.op('DequantizeLinear', self.op('QuantizeLinear', x, step, zero), step, zero)
        return self._rounded[key]

    def linear(self, x: str, name: str, layer: nn.Module, largest: Mapping[str, float]) -> str:
        return self.op('Gemm', self.rounded(x, name, layer, largest), self.weight(name, layer), transB=1)

    def rms_norm(self, x: str, name: str, norm: RMSNorm) -> str:
        wide = self.cast(x, torch.float32)
        mean = self.op('ReduceMean', self.op('Mul', wide, wide), self.integers(-1), keepdims=1)
        root = self.op('Sqrt', self.op('Add', mean, self.number(norm.eps, torch.float32)))
        weight = self.constant(f'{name}.weight', norm.weight.to(self.dtype))
        return self.op('Mul', self.cast(self.op('Div', wide, root), self.dtype), weight)

    def group_norm(self, x: str, name: str, norm: nn.GroupNorm) -> str:
        scale, bias = (self.constant(f'{name}.{k}', getattr(norm, k).to(self.dtype)) for k in ('weight', 'bias'))
        return self.op('GroupNormalization', x, scale, bias, num_groups=norm.num_groups, epsilon=norm.eps)

    def conv(self, x: str, name: str, conv: nn.Conv2d, pads: list[int] | None = None) -> str:
        weight, bias = (self.constant(f'{name}.{k}', getattr(conv, k).to(self.dtype)) for k in ('weight', 'bias'))
        around = [int(p) for p in conv.padding] * 2 if pads is None else pads
        return self.op('Conv', x, weight, bias, pads=around, strides=list(conv.stride), kernel_shape=conv.kernel_size)


# ---- the network


def network_graph(
    network: Network, weights: Weights, dtype: torch.dtype, longest: int, rows: int, vocabulary: slice,
    largest: Mapping[str, float],
) -> onnx.ModelProto:  # fmt: skip
    """Return the graph: ids (tokens,), length (1,), start (1,), all int64 -> logits (rows, vocabulary) fp32.

    The first `length` of up to `longest` ids are the prompt; later ids are never attended to. The block of `rows`
    tokens starts at `start`. largest: of `largest_inputs`, for layers that round with a fixed scale.
    """
    g, c = Graph(weights, dtype), network.config
    c.refuse_options('the ONNX graph', "take engine 'eager'", able=('head_dim',))
    t: Any = network.model['transformer']
    table = t.wte.widened() if isinstance(t.wte, QuantizedLayer) else t.wte.weight
    h = g.op('Gather', g.constant('wte.weight', table.to(dtype)), 'ids')
    size = g.op('Shape', 'ids')
    head_dim = c.head_size
    angles = rope_table(longest, head_dim, c.rope_theta, torch.device('cpu'))
    zero = g.integers(0)
    rope = tuple(
        g.op('Slice', g.constant(f'{name}_{longest}', a[:, None]), zero, size)
        for name, a in zip(('cos', 'sin'), angles, strict=True)
    )
    place = g.op('Slice', g.constant(f'places_{longest}', torch.arange(longest)), zero, size)
    inside = g.op('Less', place, 'length')
    lowest = g.number(torch.finfo(dtype).min, dtype)
    bias = g.op('Where', inside, g.number(0.0, dtype), lowest)
    asked = g.op('Add', 'start', g.constant(f'rows_{rows}', torch.arange(rows)))
    for i, block in enumerate(t.blocks):  # type: ignore[arg-type]
        h = _block(
            g, h, f'model.transformer.blocks.{i}', block, rope, bias, asked if i + 1 == c.n_layers else '', largest
        )
    h = g.rms_norm(h, 'ln_f', t.ln_f)  # type: ignore[arg-type]
    head = t.ff_out.widened(vocabulary) if isinstance(t.ff_out, QuantizedLayer) else t.ff_out.weight[vocabulary]
    name = f'head_{vocabulary.start}_{vocabulary.stop}'
    logits = g.op('Gemm', h, g.constant(name, head.to(dtype)), transB=1)
    g.op('Cast', logits, out='logits', to=TensorProto.FLOAT)
    inputs: list[tuple[str, list[str | int]]] = [('ids', ['tokens']), ('length', [1]), ('start', [1])]
    shape = [rows, vocabulary.stop - vocabulary.start]
    return g.model(
        [helper.make_tensor_value_info(name, TensorProto.INT64, dims) for name, dims in inputs],
        [helper.make_tensor_value_info('logits', TensorProto.FLOAT, shape)],
    )


def _block(
    g: Graph,
    h: str,
    name: str,
    block: Block,
    rope: tuple[str, ...],
    bias: str,
    asked: str,
    largest: Mapping[str, float],
) -> str:
    heads, kv_heads, dim = block.n_heads, block.n_kv_heads, block.head_dim

    def project(x: str, which: str) -> str:
        return g.linear(x, f'{name}.{which}', getattr(block, which), largest)

    def split(x: str, n: int) -> str:  # (T, n * dim) -> (T, n, dim)
        return g.op('Reshape', x, g.integers(-1, n, dim))

    def turn(x: str) -> str:
        wide = g.cast(x, torch.float32)
        low = g.op('Slice', wide, g.integers(0), g.integers(dim // 2), g.integers(2))
        high = g.op('Slice', wide, g.integers(dim // 2), g.integers(dim), g.integers(2))
        other = g.op('Concat', g.op('Neg', high), low, axis=2)
        return g.cast(g.op('Add', g.op('Mul', wide, rope[0]), g.op('Mul', other, rope[1])), g.dtype)

    def spread(x: str, perm: list[int]) -> str:  # (T, kv, dim) -> (heads, ...)
        x = g.op('Transpose', x, perm=perm)
        if kv_heads == heads:
            return x
        x = g.op('Tile', g.op('Unsqueeze', x, g.integers(1)), g.integers(1, heads // kv_heads, 1, 1))
        return g.op('Reshape', x, g.integers(heads, *((dim, -1) if perm[1] == 2 else (-1, dim))))

    n = g.rms_norm(h, f'{name}.attn_norm', block.attn_norm)
    q, k = turn(split(project(n, 'q_proj'), heads)), turn(split(project(n, 'k_proj'), kv_heads))
    v = split(project(n, 'v_proj'), kv_heads)
    if asked:
        q, h = g.op('Gather', q, asked), g.op('Gather', h, asked)
    q = g.op('Mul', g.op('Transpose', q, perm=[1, 0, 2]), g.number(dim**-0.5, g.dtype))
    score = g.op('Softmax', g.op('Add', g.op('MatMul', q, spread(k, [1, 2, 0])), bias), axis=-1)
    y = g.op('Transpose', g.op('MatMul', score, spread(v, [1, 0, 2])), perm=[1, 0, 2])
    y = g.op('Reshape', y, g.integers(-1, heads * dim))
    h = g.op('Add', h, project(y, 'attn_out'))
    m = g.rms_norm(h, f'{name}.ff_norm', block.ff_norm)
    return g.op('Add', h, project(g.op('Mul', g.silu(project(m, 'ff_proj')), project(m, 'up_proj')), 'ff_out'))


@torch.inference_mode()
def largest_inputs(network: Network, prompts: tuple[Tensor, ...], rows: slice, vocabulary: slice) -> dict[str, float]:
    """Return name -> largest magnitude of the inputs of each fp8 layer on these prompts (1, T)."""
    found: dict[str, float] = {}
    hooks = []
    for name, layer in network.named_modules():
        if isinstance(layer, QuantizedLinear) and layer.scheme == 'fp8':

            def watch(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                found[name] = max(found.get(name, 0.0), float(inputs[0].abs().max()))

            hooks.append(layer.register_forward_pre_hook(watch))
    try:
        for ids in prompts if hooks else ():
            network(ids, rows, vocabulary)
    finally:
        for hook in hooks:
            hook.remove()
    return found


# ---- the image encoder


def image_graph(tokenizer: ImageTokenizer, weights: Weights, dtype: torch.dtype) -> onnx.ModelProto:
    """Return the graph: pixels (1, 3, resolution, resolution) fp32 -> codes (1, tokens) int64, as `encode`."""
    g, e, c = Graph(weights, dtype), tokenizer.encoder, tokenizer.config
    x = g.conv(g.cast('pixels', dtype), 'encoder.conv_in', e.conv_in)
    for i, level in enumerate(e.down):
        x = _level(g, x, f'encoder.down.{i}', level)  # type: ignore[arg-type]
    x = _residual(g, x, 'encoder.mid.block_1', e.mid.block_1)
    x = _attention(g, x, 'encoder.mid.attn_1', e.mid.attn_1)
    x = _residual(g, x, 'encoder.mid.block_2', e.mid.block_2)
    x = g.conv(g.silu(g.group_norm(x, 'encoder.norm_out', e.norm_out)), 'encoder.conv_out', e.conv_out)
    x = g.conv(x, 'encoder.quant_conv', e.quant_conv)
    bits = g.op('Cast', g.op('Greater', x, g.number(0.0, dtype)), to=TensorProto.INT64)
    powers = g.constant('powers', tokenizer.quantize.power_vals[:, None, None])
    codes = g.op('ReduceSum', g.op('Mul', bits, powers), g.integers(1), keepdims=0)
    g.op('Reshape', codes, g.integers(1, c.tokens), out='codes')
    shape = [1, 3, c.resolution, c.resolution]
    return g.model(
        [helper.make_tensor_value_info('pixels', TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info('codes', TensorProto.INT64, [1, c.tokens])],
    )


def _level(g: Graph, x: str, name: str, level: Any) -> str:
    """level: a `Level` of the encoder."""
    for i, block in enumerate(level.block):
        x = _residual(g, x, f'{name}.block.{i}', block)  # type: ignore[arg-type]
    if hasattr(level, 'downsample'):
        x = g.conv(x, f'{name}.downsample.conv', level.downsample.conv, pads=[0, 0, 1, 1])
    return x


def _residual(g: Graph, x: str, name: str, block: ResBlock) -> str:
    h = g.conv(g.silu(g.group_norm(x, f'{name}.norm1', block.norm1)), f'{name}.conv1', block.conv1)
    h = g.conv(g.silu(g.group_norm(h, f'{name}.norm2', block.norm2)), f'{name}.conv2', block.conv2)
    if hasattr(block, 'nin_shortcut'):
        x = g.conv(x, f'{name}.nin_shortcut', block.nin_shortcut)
    return g.op('Add', h, x)


def _attention(g: Graph, x: str, name: str, a: Attention) -> str:
    channels = a.q.out_channels
    n = g.group_norm(x, f'{name}.norm', a.norm)
    q, k, v = (
        g.op('Reshape', g.conv(n, f'{name}.{w}', getattr(a, w)), g.integers(1, channels, -1)) for w in ('q', 'k', 'v')
    )
    q = g.op('Mul', g.op('Transpose', q, perm=[0, 2, 1]), g.number(channels**-0.5, g.dtype))
    score = g.op('Softmax', g.op('MatMul', q, k), axis=-1)  # (1, H * W, H * W)
    y = g.op('Transpose', g.op('MatMul', score, g.op('Transpose', v, perm=[0, 2, 1])), perm=[0, 2, 1])
    y = g.op('Reshape', y, g.op('Shape', x))
    return g.op('Add', x, g.conv(y, f'{name}.proj_out', a.proj_out))


def save(model: onnx.ModelProto, file: Path) -> None:
    """Write a graph beside its weights, and check operators, types and shapes."""
    file.write_bytes(model.SerializeToString())
    onnx.checker.check_model(str(file), full_check=True)
