"""Computes the memory that a model will need, before it is loaded: exact from shapes, else an estimate."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import psutil
import torch
from torch import nn

from vla_model.checkpoints import nano
from vla_model.checkpoints.checkpoint import IMAGE_PREFIXES, cast
from vla_model.config import ImageTokenizerConfig, ModelConfig, NetworkConfig, Quantization
from vla_model.image_tokenizer import ImageTokenizer
from vla_model.network import Network
from vla_model.quantized import WIDE, QuantizedLinear, put_layers
from vla_model.tokens.vocabulary import Vocabulary

GIB = 2**30
ORINS = (8, 16, 32, 64)  # [GB] modules of Jetson Orin; CPU and GPU share it
ORIN_SEEN = 0.93  # share that is available to Linux: 7.4 GiB of 8, 61 of 64
ORIN_SYSTEM = 1.5  # [GiB] of Linux, ROS and drivers, without a desktop
CUDA_CONTEXT = 0.6  # [GiB] of driver, cuBLAS, cuDNN
PLAN_TOKENS = 256  # longest block of a plan, which reads logits of the whole vocabulary


@dataclass(frozen=True)
class MemoryPlan:
    """Memory by purpose [bytes]."""

    weights: int  # of the network; exact
    image_tokenizer: int  # exact
    copies: int  # of weights that an engine makes
    keys_values: int  # of the key/value cache, if one is used
    activations: int  # largest of act, plan and image, estimated
    workspace: int  # of libraries and graphs, estimated

    @property
    def total(self) -> int:
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """Return name -> size [bytes], in the order of the fields."""
        return {name.replace('_', ' '): int(getattr(self, name)) for name in self.__dataclass_fields__}

    def __str__(self) -> str:
        return ' + '.join(f'{name} {size / GIB:.2f}' for name, size in self.parts().items() if size) + (
            f' = {self.total / GIB:.2f} GiB'
        )


def plan(
    config: ModelConfig,
    dtype: torch.dtype = torch.bfloat16,
    image_dtype: torch.dtype = torch.float32,
    device: str = 'cuda',
    engine: str = 'eager',
) -> MemoryPlan:
    """Return the memory of a model that is loaded with these options, see LoadOptions and `config.quantization`."""
    with torch.device('meta'):
        network, image = Network(config.network), ImageTokenizer(config.image_tokenizer)
    if config.quantization is not None:
        put_layers(network, config.quantization, ('model.',))
    cast(network, dtype)
    weights, images = size_of(network), size_of(image)
    if image_dtype != torch.float32:
        images += sum(p.numel() for p in image.encoder.parameters()) * image_dtype.itemsize
    copies = 0
    if engine.startswith('openvino'):
        # The exported graph in float32, and the compiled one in its precision.
        count = network_numbers(config.network)
        copies = count * (4 + (4 if engine.endswith('float32') else 2 if engine.endswith('bfloat16') else 1))
    c, robot = config.network, config.robot
    tokens = robot.max_prompt_tokens + 2 + robot.block_tokens
    keys = 2 * c.n_layers * tokens * c.n_kv_heads * c.head_size * dtype.itemsize
    return MemoryPlan(
        weights=weights,
        image_tokenizer=images,
        copies=copies,
        keys_values=keys,
        activations=_activations(config, tokens + PLAN_TOKENS, dtype, image_dtype) + _widened(network, dtype),
        workspace=int(CUDA_CONTEXT * GIB) if device == 'cuda' else 0,
    )


def network_numbers(config: NetworkConfig) -> int:
    """Return the number of parameters of the network, for any precision of storage."""
    with torch.device('meta'):
        return sum(p.numel() for p in Network(config).parameters())


def _activations(config: ModelConfig, tokens: int, dtype: torch.dtype, image_dtype: torch.dtype) -> int:
    """Return the memory of activations [bytes]: the larger one of network and image tokenizer."""
    c, i = config.network, config.image_tokenizer
    # Residual, its norm in float32, queries, keys, values and the result of attention; then gate, up and their product.
    block = tokens * max(
        c.d_model * (7 * dtype.itemsize + 8), c.d_model * 3 * dtype.itemsize + 3 * c.mlp_hidden_size * 4
    )
    logits = PLAN_TOKENS * c.vocab_size * (dtype.itemsize + 8)  # probabilities are float32
    # Feature maps of the widest layer of the highest resolution: input, output, norm, and an unrolled convolution.
    width = i.channels * max(i.encoder_mult[0], i.decoder_mult[0])
    images = 5 * i.resolution**2 * width * max(image_dtype.itemsize, 4)
    return max(block + logits, images)


def _widened(network: Network, dtype: torch.dtype) -> int:
    """Return the memory [bytes] of the largest widened part of a quantized weight, in float32 and in `dtype`."""
    layers = [m for m in network.modules() if isinstance(m, QuantizedLinear) and m.scheme != 'int8']
    return min(WIDE, max((m.outputs * m.inputs[0] for m in layers), default=0)) * (4 + dtype.itemsize)


def size_of(module: nn.Module) -> int:
    """Return the size of all parameters and buffers [bytes]."""
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


def stored_size(config: ModelConfig, dtype: torch.dtype) -> int:
    """Return the size of a checkpoint's tensors on disk [bytes], floating point in `dtype`, without file headers."""
    with torch.device('meta'):
        network, image = Network(config.network), ImageTokenizer(config.image_tokenizer)
    if config.quantization is not None:
        put_layers(network, config.quantization, ('model.',))
        put_layers(image, config.quantization, IMAGE_PREFIXES)
    cast(network, dtype)
    return size_of(network) + size_of(image)


def orin(size: int) -> float:
    """Return the memory that a model can use on an Orin with `size` GB [bytes]."""
    return (size * ORIN_SEEN - ORIN_SYSTEM) * GIB


def available(device: torch.device) -> tuple[int, str]:
    """Return the free memory [bytes] and the name of the device."""
    if device.type == 'cuda':
        return torch.cuda.mem_get_info(device)[0], torch.cuda.get_device_name(device)
    return psutil.virtual_memory().available, 'this machine'


def check(needed: MemoryPlan, device: torch.device) -> None:
    """Raises ValueError with the arithmetic where the plan does not fit."""
    free, where = available(device)
    if needed.total > free:
        raise ValueError(
            f'the model needs {needed}, {where} has {free / GIB:.2f} GiB free: take a quantized checkpoint '
            '(./vla quantize), a smaller dtype, or free memory'
        )


def scheme_config(config: ModelConfig, scheme: str) -> ModelConfig:
    """`config` as the scheme would store it; 'bfloat16': as it is. Scheme mixed depends on what is measured."""
    from vla_model.quantization.quantize import group_of, image_layers, plan_layers

    if scheme == 'bfloat16':
        return replace(config, quantization=None)
    layers = plan_layers(config.network, scheme, None) | image_layers(config.image_tokenizer)
    group = group_of(config.network) if scheme == 'int4' else 0
    return replace(
        config, quantization=Quantization(scheme, group, 'tensor' if scheme == 'int8' else 'none', layers, '', {})
    )


def table(config: ModelConfig, dtype: torch.dtype = torch.bfloat16) -> str:
    """Return a Markdown table: disk and memory of each scheme, and the Orins with enough memory."""
    schemes = ('bfloat16', 'int8', 'fp8', 'int4')
    stored = [scheme_config(config, scheme) for scheme in schemes]
    image_dtype = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    plans = [plan(c, dtype, image_dtype) for c in stored]
    return table_of(schemes, [stored_size(c, dtype) for c in stored], plans)


def table_of(schemes: Sequence[str], disk: Sequence[int], plans: Sequence[MemoryPlan]) -> str:
    """Return the table of schemes, their sizes on disk [bytes] and their plans."""
    rows = [('on disk [GB]', [f'{size / 1e9:.2f}' for size in disk])]
    for name in plans[0].parts():
        rows.append((f'{name} [GiB]', [f'{p.parts()[name] / GIB:.2f}' for p in plans]))
    rows.append(('all [GiB]', [f'{p.total / GIB:.2f}' for p in plans]))
    for size in ORINS:
        room = orin(size)
        left = [(room - p.total) / GIB for p in plans]
        cells = [f'{x:.1f} left' if x >= 0 else f'**{-x:.1f} too much**' for x in left]
        rows.append((f'Orin {size} GB, {room / GIB:.1f} free', cells))
    lines = ['| | ' + ' | '.join(schemes) + ' |', '|---' * (len(schemes) + 1) + '|']
    return '\n'.join([*lines, *(f'| {name} | ' + ' | '.join(cells) + ' |' for name, cells in rows)])


def released(network: NetworkConfig | None = None) -> ModelConfig:
    """The released 8B model on a Franka with two cameras, to plan for."""
    shape = network or NetworkConfig(4096, 32, 32, 32, 12288, 10000.0, 1e-5, 136704)
    base = nano.config(512)
    robot = replace(base.robot, max_prompt_tokens=910)
    return ModelConfig('8b', False, shape, Vocabulary.released(), ImageTokenizerConfig.released(), robot)
