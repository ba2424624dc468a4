"""Makes engines by name: torch eager (the reference), CUDA graphs, TensorRT, or OpenVINO on a CPU.

An engine is called like the network. It is faster for the requests of `act`, and runs all others in eager.
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

# Engine -> device -> supported precisions of the network. OpenVINO converts float32 to the precision in its name.
SUPPORTED: dict[str, dict[str, tuple[str, ...]]] = {
    'eager': {'cpu': ('float32', 'bfloat16'), 'cuda': ('float32', 'bfloat16', 'float16')},
    'cuda-graph': {'cuda': ('bfloat16', 'float16', 'float32')},
    'tensorrt': {'cuda': ('bfloat16', 'float16', 'float32')},
    'openvino-float32': {'cpu': ('float32',)},
    'openvino-bfloat16': {'cpu': ('float32',)},
    'openvino-int8': {'cpu': ('float32',)},
}
NAMES = ('auto', *SUPPORTED)
AUTO_ERROR = 0.03  # 'auto' takes no engine whose logits differ more from eager's, relative norm
AUTO_QUANTIZED_ERROR = 0.05  # for a network with rounded inputs, where the last digit of a sum changes logits so much
AUTO_PARAMETERS = 1e9  # larger networks are not exported by 'auto': that takes a second copy and minutes


def check(name: str, device: str, dtype: str, image_dtype: str = 'float32', image_engine: str = 'eager') -> None:
    """Raise ValueError if the engines do not support these precisions on `device` ('cpu' or 'cuda')."""
    if name not in NAMES:
        raise ValueError(f'engine must be one of {list(NAMES)}, got {name!r}')
    images.check(image_engine, device, image_dtype)
    if name == 'auto':
        name = 'eager'  # supports every precision that another engine supports
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
    """Return the engine `name`, made in this process. `choice.choose` finds the fastest one that is safe here.

    model_id: names the weights; graphs exported for it are kept in the cache folder. image_dtype, image_engine: of the
    image encoder, see image.py. Raises ValueError where an engine cannot run here or its results differ from eager's.
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
    """Return the engines that 'auto' tries, and those that it tries where none of the first passes.

    parameters: number of weights of the network. options: names of its options that differ from their defaults.
    """
    if device == 'cuda':  # graphs of fused matmuls support no option but head_dim
        return (() if set(options) - {'head_dim'} else ('cuda-graph',)), ()
    if dtype != 'float32' or parameters > AUTO_PARAMETERS or importlib.util.find_spec('openvino') is None:
        return (), ()
    return ('openvino-bfloat16', 'openvino-int8'), ('openvino-float32',)


def auto_error(device: str, quantized: bool) -> float:
    """Return the largest relative difference from eager that 'auto' accepts. CUDA graphs check their own limit."""
    return math.inf if device == 'cuda' else AUTO_QUANTIZED_ERROR if quantized else AUTO_ERROR


@torch.inference_mode()
def measure(engines: dict[str, Engine], act: Act, rounds: int = 7) -> dict[str, float]:
    """Return the median time [ms] of each engine's forward. They are timed in turns, so that other load hits all."""
    samples: dict[str, list[float]] = {name: [] for name in engines}
    for i in range(rounds + 2):
        for name, engine in engines.items():
            start = time.perf_counter()
            engine(act.prompts[i % len(act.prompts)], act.block, act.vocabulary).cpu()  # waits for the device
            if i >= 2:  # the first two allocate memory
                samples[name].append((time.perf_counter() - start) * 1e3)
    return {name: round(median(s), 3) for name, s in samples.items()}


def _others(device: str) -> str:
    return f'there, take one of {[n for n, devices in SUPPORTED.items() if device in devices]}'
