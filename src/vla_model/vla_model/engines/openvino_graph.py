"""The network and the image encoder as OpenVINO graphs, in floating point or int8, checked against torch eager.

Only the converter itself is used: openvino.convert_model reports usage to its vendor over the network.
"""

import contextlib
import copy
import gc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vla_model.engines.base import Act
from vla_model.engines.cache import versions, write_json
from vla_model.image_tokenizer import ResBlock
from vla_model.network import Network
from vla_model.quantized import INT8, QuantizedLinear, is_quantized, plain_layers

WIDE = 64  # channels from which on a convolution is in int8
SILU_LOW = -0.2785  # x sigmoid(x) is never less
MARGIN = 1.3  # of an input's range over that on the pictures of calibration
CALIBRATION = 8  # prompts whose activations set the ranges of int8; the later ones are for the check
# Largest relative difference from eager; graphs beyond it are refused.
LIMITS = {'float32': 1e-3, 'bfloat16': 0.05, 'int8': 0.2}


class _Forward(nn.Module):
    """The network for one block length and one slice of the vocabulary; the position of the block is an input."""

    def __init__(self, network: Network, vocabulary: slice):
        super().__init__()
        self.network, self.vocabulary = network, vocabulary

    def forward(self, ids: Tensor, rows: Tensor) -> Tensor:
        return self.network(ids, rows, self.vocabulary)


def rows_of(block: slice) -> Tensor:
    """Return the positions (n,) int64 of a block."""
    return torch.arange(block.start, block.stop)


def to_openvino(network: Network, act: Act) -> Any:
    """Return an openvino.Model: ids (1, up to act.longest) int64, rows (n,) int64 -> logits (1, n, vocabulary).

    int8 layers of a quantized network are int8 in the graph, with the scales of the checkpoint; their inputs have one
    scale per tensor. All other layers are in floating point, with their weights dequantized.
    """
    inputs = (act.prompts[0], rows_of(act.block))
    layers = {n: m for n, m in network.named_modules() if isinstance(m, QuantizedLinear) and m.scheme == 'int8'}
    if is_quantized(network):
        network = plain_layers(copy.deepcopy(network))  # type: ignore[assignment]
    network._rope_for(act.longest, inputs[0].device)  # the traced forward slices this table
    model = convert(_Forward(network, act.vocabulary), inputs, ([1, -1], [len(inputs[1])]))
    if layers:
        limits = {n: (float(m.input_scale) * INT8, (m.scale * INT8).numpy()[:, None]) for n, m in layers.items()}
        _round_in_graph(model, limits)
    return model


@torch.inference_mode()
def convert(module: nn.Module, inputs: tuple[Tensor, ...], shapes: tuple[list[int], ...]) -> Any:
    """openvino.Model of a module, traced on `inputs`; shapes: of its inputs, -1 for any length."""
    import openvino as ov
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the tracer warns about every shape
        traced = torch.jit.trace(module.eval(), inputs, check_trace=False)
        traced = torch.jit.freeze(traced)
    frontend = FrontEndManager().load_by_framework('pytorch')
    decoder = TorchScriptPythonDecoder(traced, example_input=inputs)  # must outlive `convert`
    source = frontend.load(decoder)
    kinds = {torch.int64: ov.Type.i64, torch.float32: ov.Type.f32}
    for place, shape, value in zip(source.get_inputs(), shapes, inputs, strict=True):
        source.set_partial_shape(place, ov.PartialShape(shape))
        source.set_element_type(place, kinds[value.dtype])
    converted = frontend.convert(source)
    del source, decoder, traced
    _forget_traced()
    return converted


def _forget_traced() -> None:
    """Free traced modules. TorchScript keeps the types of all frozen modules, and these keep the weights.

    torch's tracer also leaves a function that refers to itself and to the module.
    """
    torch.jit._state._clear_class_state()
    torch._C._jit_clear_class_registry()
    gc.collect()


def compile_for_cpu(model: Any, precision: str) -> Any:
    """Return an openvino.InferRequest with torch's number of threads.

    precision: float32, bfloat16, or int8 (other layers are in bfloat16 where the processor supports it). Raises
    ValueError for bfloat16 on a processor without it.
    """
    import openvino as ov

    if torch.get_num_threads() == 1:
        keep_gated_layers_apart(model)
    core = ov.Core()
    has_bfloat16 = 'BF16' in core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES')
    if precision == 'bfloat16' and not has_bfloat16:
        raise ValueError('the processor does not compute in bfloat16: let OpenVINO compute in float32')
    options = {
        'INFERENCE_PRECISION_HINT': 'bf16' if precision != 'float32' and has_bfloat16 else 'f32',
        'INFERENCE_NUM_THREADS': torch.get_num_threads(),
        'PERFORMANCE_HINT': 'LATENCY',
        'ENABLE_CPU_PINNING': False,  # a pinned thread would wait for other processes on its core
    }
    return core.compile_model(model, 'CPU', options).create_infer_request()


def keep_gated_layers_apart(model: Any) -> None:
    """Give each Swish its beta of 1, in place. The numbers are the same, but OpenVINO's LLMMLP does not match them.

    On a processor with AMX the CPU plugin (2026.4.1) fuses the layers of a gated block into one node for bfloat16. To
    prepare the weights of its last layer the node divides by half the number of threads. With one thread this is a
    division by zero, and the process dies by SIGFPE. The plugin runs both forms by the same kernels elsewhere.
    """
    from openvino import opset13 as op

    one = op.constant(np.float32(1))
    changed = False
    for node in model.get_ordered_ops():
        if node.get_type_name() == 'Swish' and node.get_input_size() == 1:
            node.output(0).replace(op.swish(node.input_value(0), one).output(0))
            changed = True
    if changed:
        model.validate_nodes_and_infer_types()


@torch.inference_mode()
def quantize(model: Any, network: Network, act: Act) -> int:
    """Quantize the linear layers of the blocks to int8, in place; return their number.

    Weights have a scale per output, activations one per layer: the largest magnitude on the first CALIBRATION prompts.
    The graph marks the places of rounding, between which OpenVINO computes in int8. Attention, norms and head keep
    their floating point.
    """
    largest: dict[str, float] = {}

    def watch(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            largest[name] = max(largest.get(name, 0.0), float(inputs[0].abs().max()))

        return hook

    linears = {n: m for n, m in network.named_modules() if isinstance(m, nn.Linear) and '.blocks.' in n}
    with contextlib.ExitStack() as hooks:
        for name, linear in linears.items():
            hooks.callback(linear.register_forward_pre_hook(watch(name)).remove)
        for ids in act.prompts[:CALIBRATION]:
            network(ids, act.block, act.vocabulary)

    limits = {
        n: (max(largest[n], 1e-8), m.weight.abs().amax(1, keepdim=True).clamp(min=1e-8).numpy())
        for n, m in linears.items()
    }
    _round_in_graph(model, limits)
    return len(linears)


def _round_in_graph(model: Any, limits: dict[str, tuple[float, np.ndarray]]) -> None:
    """Insert the rounding of inputs and weights of matmuls to int8, in place.

    limits: layer -> (largest magnitude of its input, and of the weights of each output (n, 1)), which become 127.
    Raises ValueError where a layer is not in the graph.
    """
    left = set(limits)
    for node in model.get_ordered_ops():
        name = node.get_friendly_name().split('/')[0].removeprefix('__module.network.')
        if node.get_type_name() != 'MatMul' or name not in left:
            continue
        largest, weight = limits[name]
        _round(node, -largest * 128 / 127, largest, weight)  # zero stays zero
        left.remove(name)
    if left:
        raise ValueError(f'int8: {len(left)} of {len(limits)} linear layers are not in the graph: take another engine')
    model.validate_nodes_and_infer_types()


def _round(node: Any, low: float, high: float, weight: np.ndarray) -> None:
    """Round the input of a node to 256 levels from low to high, and its weights to 255 levels within +-weight."""
    from openvino import opset13 as op

    for place, ends, levels in ((node.input(0), (low, high), 256), (node.input(1), (-weight, weight), 255)):
        limits = [op.constant(np.asarray(end, np.float32)) for end in ends]
        source = place.get_source_output()
        place.replace_source_output(op.fake_quantize(source, *limits, *limits, levels).output(0))


@torch.inference_mode()
def quantize_encoder(model: Any, encoder: nn.Module, pictures: list[Tensor]) -> None:
    """Quantize the wide convolutions of an image encoder's blocks to int8, in place.

    Their input is x sigmoid(x) of normalized numbers. A margin over its range on any pictures (1, 3, side, side) is
    therefore enough. The inputs of other layers vary more between pictures. The few products of narrow convolutions do
    not average out their errors.
    """
    largest: dict[str, float] = {}
    blocks = [(n, m) for n, m in encoder.named_modules() if isinstance(m, ResBlock)]
    wide = {
        f'{n}.{k}': c for n, m in blocks for k, c in (('conv1', m.conv1), ('conv2', m.conv2)) if c.in_channels >= WIDE
    }

    def watch(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            largest[name] = max(largest.get(name, 0.0), float(inputs[0].max()))

        return hook

    with contextlib.ExitStack() as hooks:
        for name, conv in wide.items():
            hooks.callback(conv.register_forward_pre_hook(watch(name)).remove)
        for picture in pictures:
            encoder(picture)
    for node in model.get_ordered_ops():
        name = node.get_friendly_name().split('/')[0].removeprefix('__module.')
        if node.get_type_name() != 'Convolution' or name not in wide:
            continue
        high = MARGIN * max(largest[name], 1e-3)
        step = (high - SILU_LOW) / 255
        low = -round(-SILU_LOW / step) * step  # zero, the value of padding, is one of the levels
        weight = wide[name].weight.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-8).numpy()
        _round(node, low, low + 255 * step, weight)
    model.validate_nodes_and_infer_types()


@torch.inference_mode()
def check(run: Any, precision: str, network: Network, act: Act, file: Path) -> float:
    """Compare run(ids, rows) with eager on prompts that were not used for calibration; write the numbers to `file`.

    Return the relative difference |a - b| / |b| of the logits. Raises ValueError beyond the limit. A quantized network
    has the limit of int8: the last digit of a sum changes the rounding of some numbers, and with it later layers.
    """
    limit = LIMITS['int8' if is_quantized(network) else precision]
    ours, eager = [], []
    for ids in act.prompts[CALIBRATION:]:
        ours.append(run(ids, rows_of(act.block))[0].float())
        eager.append(network(ids, act.block, act.vocabulary)[0].float())
    a, b = torch.cat(ours), torch.cat(eager)
    error = float((a - b).norm() / b.norm())
    content = {
        'precision': precision,
        'prompts': len(ours),
        'relative_error': error,
        'largest_difference': float((a - b).abs().max()),
        'equal_argmax': float((a.argmax(-1) == b.argmax(-1)).float().mean()),
        'largest_probability_difference': float((a.softmax(-1) - b.softmax(-1)).abs().max()),
        'limit_of_relative_error': limit,
        'versions': versions(),
    }
    write_json(file, content)
    if not error <= limit:
        raise ValueError(
            f'the graph in {precision} differs from eager by {error:.2g}, the limit is {limit:g} '
            f"({file}): take engine 'eager'"
        )
    return error
