"""What runs the network: torch eager (the reference), CUDA graphs, or OpenVINO on a CPU; chosen by one name.

An engine is called like the network. It is faster for what `act` asks for, and leaves every other request to eager.
"""

import importlib.util
import math
import time
from statistics import median

import torch

from vla_model.engines import image as images
from vla_model.engines.base import Act, Engine
from vla_model.image_tokenizer import ImageTokenizer
from vla_model.network import Network

# Engine -> device -> precisions of the network that it takes. OpenVINO converts from float32 to what its name says.
SUPPORTED: dict[str, dict[str, tuple[str, ...]]] = {
    'eager': {'cpu': ('float32', 'bfloat16'), 'cuda': ('float32', 'bfloat16', 'float16')},
    'cuda-graph': {'cuda': ('bfloat16', 'float16', 'float32')},
    'tensorrt': {'cuda': ('bfloat16', 'float16', 'float32')},
    'openvino-float32': {'cpu': ('float32',)},
    'openvino-bfloat16': {'cpu': ('float32',)},
    'openvino-int8': {'cpu': ('float32',)},
}
NAMES = ('auto', *SUPPORTED)
AUTO_ERROR = 0.03  # 'auto' takes no engine whose logits are further from eager's, in the norm
AUTO_QUANTIZED_ERROR = 0.05  # of a network that rounds, whose logits move so far by the last digit of a sum
AUTO_PARAMETERS = 1e9  # larger networks are not exported by 'auto': it would take a second copy and minutes


def check(name: str, device: str, dtype: str, image_dtype: str = 'float32', image_engine: str = 'eager') -> None:
    """Raises ValueError if the engines do not run these precisions on `device` ('cpu' or 'cuda')."""
    if name not in NAMES:
        raise ValueError(f'engine must be one of {list(NAMES)}, got {name!r}')
    images.check(image_engine, device, image_dtype)
    if name == 'auto':
        name = 'eager'  # takes all that any other takes
    devices = SUPPORTED[name]
    if device not in devices:
        raise ValueError(f'engine {name!r} runs on {" or ".join(devices)}, not on {device}: {_others(device)}')
    if dtype not in devices[device]:
        raise ValueError(
            f'engine {name!r} on {device} takes a network in {" or ".join(devices[device])}, not {dtype}: '
            'change dtype or engine'
        )
    if name.startswith('openvino') and importlib.util.find_spec('openvino') is None:
        raise ValueError(f"engine {name!r} needs the package openvino: pip install openvino, or take 'eager'")


def make(
    name: str,
    network: Network,
    image_tokenizer: ImageTokenizer,
    act: Act,
    model_id: str,
    image_dtype: str = 'float32',
    image_engine: str = 'eager',
) -> Engine:
    """The engine called `name`, in this process: `choice.choose` says which one is safe here, and which is the fastest.

    model_id names the weights: what was exported for it is kept in the cache folder. image_dtype and image_engine are
    for the image encoder, see image_engine.py. Raises ValueError where an engine cannot run here or computes something
    else than eager.
    """
    weight = next(network.parameters())
    dtype = str(weight.dtype).removeprefix('torch.')
    check(name, weight.device.type, dtype, image_dtype, image_engine)
    if name == 'auto':
        raise ValueError("engine 'auto' stands for several: give the name of one")
    engine = _make(name, network, image_tokenizer, act, model_id)
    engine.encoder = images.make(image_engine, image_tokenizer, image_dtype)
    return engine


def _make(name: str, network: Network, image_tokenizer: ImageTokenizer, act: Act, model_id: str) -> Engine:
    if name == 'cuda-graph':
        from vla_model.engines.cuda_graph import CudaGraphs

        return CudaGraphs(network, image_tokenizer, act)
    if name == 'tensorrt':
        from vla_model.engines.onnx_manifest import folder_of
        from vla_model.engines.tensorrt import TensorRt

        dtype = str(next(network.parameters()).dtype).removeprefix('torch.')
        return TensorRt(network, image_tokenizer, act, folder_of(model_id, dtype))
    if name.startswith('openvino'):
        from vla_model.engines.openvino import OpenVino

        return OpenVino(name.removeprefix('openvino-'), network, image_tokenizer, act, model_id)
    return Engine(network, image_tokenizer)


def auto_candidates(
    device: str, dtype: str, parameters: float, options: tuple[str, ...] = ()
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(Engines that 'auto' tries, those that it tries where none of these is faster than eager and close to it).

    parameters: numbers of the network; options: names of those that are not at their default, see NetworkConfig.
    """
    if device == 'cuda':  # whose graphs are of fused matmuls
        return (() if set(options) - {'head_dim'} else ('cuda-graph',)), ()
    if dtype != 'float32' or parameters > AUTO_PARAMETERS or importlib.util.find_spec('openvino') is None:
        return (), ()
    return ('openvino-bfloat16', 'openvino-int8'), ('openvino-float32',)


def auto_error(device: str, quantized: bool) -> float:
    """Relative difference from eager up to which 'auto' takes an engine; a CUDA graph refuses more by itself."""
    return math.inf if device == 'cuda' else AUTO_QUANTIZED_ERROR if quantized else AUTO_ERROR


@torch.inference_mode()
def measure(engines: dict[str, Engine], act: Act, rounds: int = 7) -> dict[str, float]:
    """Median time [ms] of each engine's forward, taken in turns so that what else runs here hits all alike."""
    samples: dict[str, list[float]] = {name: [] for name in engines}
    for i in range(rounds + 2):
        for name, engine in engines.items():
            start = time.perf_counter()
            engine(act.prompts[i % len(act.prompts)], act.block, act.vocabulary).cpu()  # ends when the numbers are here
            if i >= 2:  # the first ones allocate
                samples[name].append((time.perf_counter() - start) * 1e3)
    return {name: round(median(s), 3) for name, s in samples.items()}


def _others(device: str) -> str:
    return f'there, take one of {[n for n, devices in SUPPORTED.items() if device in devices]}'
