"""Makes image encoders by name and precision: torch eager, torch.compile, or OpenVINO on a CPU.

Each is compared with eager float32 when it is made. A code consists of the signs of channels. Another order or
precision of sums moves some channels over zero. An encoder that changes too many codes is refused.
"""

import copy
import importlib.util
import math
import os
import shutil
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vla_model.engines.base import ImageEncoder
from vla_model.image_tokenizer import ImageTokenizer

ROUNDS = 5  # timed calls of each candidate of 'auto'
DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}
# Engine -> device -> precisions of the encoder. OpenVINO converts from float32.
SUPPORTED: dict[str, dict[str, tuple[str, ...]]] = {
    'eager': {'cpu': ('float32', 'bfloat16'), 'cuda': ('float32', 'bfloat16', 'float16')},
    'compile': {'cpu': ('float32', 'bfloat16'), 'cuda': ('float32', 'bfloat16', 'float16')},
    'openvino': {'cpu': ('float32', 'bfloat16', 'int8')},
}
NAMES = ('auto', *SUPPORTED)
# Smallest accepted share of codes equal to those of float32 eager. Measured with random weights on a CPU: all in
# float32, 94 to 96 % in bfloat16; float16 has three more bits. Unrelated codes are hardly ever equal.
LIMITS = {'float32': 0.98, 'float16': 0.95, 'bfloat16': 0.8, 'int8': 0.8}
CODES = 512  # least number of compared codes
CALIBRATION = 12  # pictures that set the ranges of int8; other pictures are compared
# Smallest share of codes equal to float32 eager for 'auto'. It never takes 'compile', which needs a minute.
AUTO_AGREEMENT = 0.97
AUTO_FIRST = (('openvino', 'bfloat16'), ('openvino', 'int8'))  # the fastest ones on a CPU


class Compiled(ImageEncoder):
    """Encodes one image per call by torch.compile. Compiling takes seconds; torch caches the result."""

    def __init__(self, image_tokenizer: ImageTokenizer, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(image_tokenizer, dtype)
        self.name = 'compile'
        encoder = copy.deepcopy(self.encoder)  # weights become constants of the graph
        self._run = torch.compile(encoder, fullgraph=True, dynamic=False, options={'freezing': True})


class OpenVinoEncoder(ImageEncoder):
    """Encodes by OpenVINO on a CPU. The first call with a number of images makes their graph (0.3 s)."""

    together = True

    def __init__(self, image_tokenizer: ImageTokenizer, precision: str) -> None:
        """precision: float32, bfloat16, or int8, in which narrow and unnormalized layers keep floating point."""
        from vla_model.engines import openvino_graph as export

        super().__init__(image_tokenizer)
        self.name, self.precision = 'openvino', precision
        side = image_tokenizer.config.resolution
        self._graph = export.convert(self.encoder, (torch.zeros(2, 3, side, side),), ([-1, 3, side, side],))
        if precision == 'int8':
            export.quantize_encoder(
                self._graph, self.encoder, [picture(side, 100 + i)[None] for i in range(CALIBRATION)]
            )
        self._requests: dict[int, Any] = {}

    def __call__(self, pixels: Tensor) -> Tensor:
        request = self._requests.get(len(pixels)) or self._made(pixels)
        request.infer({0: pixels.contiguous().numpy()}, share_inputs=True, share_outputs=True)
        # The result is read before the next call overwrites it.
        return self.quantize(torch.from_numpy(request.get_output_tensor(0).data))

    def _made(self, pixels: Tensor) -> Any:
        from vla_model.engines import openvino_graph as export

        graph = self._graph.clone()
        graph.reshape(list(pixels.shape))
        self._requests[len(pixels)] = export.compile_for_cpu(graph, self.precision)
        return self._requests[len(pixels)]


def check(name: str, device: str, dtype: str) -> None:
    """Raise ValueError if the engine does not support `device` ('cpu' or 'cuda') and precision, or lacks a tool."""
    if name not in NAMES:
        raise ValueError(f'image_engine must be one of {list(NAMES)}, got {name!r}')
    if name == 'auto':
        known = {d for devices in SUPPORTED.values() for d in devices.get(device, ())}
        if dtype not in ('auto', *known):
            raise ValueError(f"image_dtype on {device} must be 'auto' or one of {sorted(known)}, got {dtype!r}")
        return
    dtype = 'float32' if dtype == 'auto' else dtype
    devices = SUPPORTED[name]
    if device not in devices:
        others = [n for n, d in SUPPORTED.items() if device in d]
        raise ValueError(f'image_engine {name!r} runs on {" or ".join(devices)}, not on {device}: take one of {others}')
    if dtype not in devices[device]:
        raise ValueError(
            f'image_dtype on {device} must be one of {list(devices[device])} for image_engine {name!r}, got {dtype!r}'
        )
    if name == 'openvino' and importlib.util.find_spec('openvino') is None:
        raise ValueError("image_engine 'openvino' needs the package openvino: pip install openvino, or take 'eager'")
    compiler = os.environ.get('CXX') or 'g++'
    if name == 'compile' and shutil.which(compiler) is None:
        raise ValueError(
            f"image_engine 'compile' needs a C++ compiler, {compiler} is not there: install g++, set CXX to another, "
            "or take 'eager'"
        )
    if name == 'compile' and device == 'cuda' and importlib.util.find_spec('triton') is None:
        raise ValueError("image_engine 'compile' on cuda needs the package triton: pip install triton, or take 'eager'")


def make(name: str, image_tokenizer: ImageTokenizer, dtype: str = 'float32') -> ImageEncoder:
    """Return the encoder on the device of `image_tokenizer`, after a comparison with float32 eager.

    dtype 'auto' is float32. Raises ValueError where it cannot run here, or too few of its codes equal those of eager.
    """
    weight = next(image_tokenizer.parameters())
    check(name, weight.device.type, dtype)
    if name == 'auto':
        raise ValueError("image_engine 'auto' stands for several: give the name of one")
    dtype = 'float32' if dtype == 'auto' else dtype
    exact = ImageEncoder(image_tokenizer)
    if (name, dtype) == ('eager', 'float32'):
        return exact
    if name == 'openvino':
        made: ImageEncoder = OpenVinoEncoder(image_tokenizer, dtype)
    else:
        made = (Compiled if name == 'compile' else ImageEncoder)(image_tokenizer, DTYPES[dtype])
    config = image_tokenizer.config
    pictures = [picture(config.resolution, i).to(weight.device) for i in range(max(2, -(-CODES // config.tokens)))]
    try:
        made.agreement = agreement(made, exact, pictures)
    except (RuntimeError, OSError) as error:  # 'compile' compiles at the first image
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"image_engine {name!r} in {dtype} does not run here ({first}): for 'compile' install a C++ compiler and "
            "Python's headers, or take 'eager'"
        ) from error
    if not made.agreement >= LIMITS[dtype]:
        raise ValueError(
            f'image_engine {name!r} in {dtype} gives {made.agreement:.1%} of the codes of float32 eager, at least '
            f"{LIMITS[dtype]:.0%} are needed: take image_engine 'eager' and image_dtype 'float32'"
        )
    return made


def auto_candidates(device: str, dtype: str) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]:
    """Return the (engine, precision) pairs that 'auto' tries first, and those that it tries where none of them passes.

    dtype: 'auto', or the requested precision. Eager in float32 is left out, as it needs no trial.
    """
    found = [(n, d) for n, devices in SUPPORTED.items() for d in devices.get(device, ()) if dtype in ('auto', d)]
    found = [path for path in found if path[0] != 'compile' and path != ('eager', 'float32')]
    if importlib.util.find_spec('openvino') is None:
        found = [path for path in found if path[0] != 'openvino']
    first = [path for path in found if path in AUTO_FIRST]
    return tuple(first or found), tuple(path for path in found if first and path not in first)


@torch.inference_mode()
def measure(encoders: dict[str, ImageEncoder], pixels: Tensor, rounds: int = ROUNDS) -> dict[str, float]:
    """Return name -> shortest time [ms] for pixels (B, 3, side, side). Encoders are timed in turns."""
    times = dict.fromkeys(encoders, math.inf)
    for _ in range(rounds):
        for name, encoder in encoders.items():
            start = time.perf_counter()
            encoder(pixels).cpu()
            times[name] = min(times[name], (time.perf_counter() - start) * 1e3)
    return times


def agreement(made: Callable[[Tensor], Tensor], exact: Callable[[Tensor], Tensor], pictures: list[Tensor]) -> float:
    """Return the share of equal codes over pictures (3, side, side), encoded one at a time."""
    return sum(float((made(p[None]) == exact(p[None])).float().mean()) for p in pictures) / len(pictures)


def picture(side: int, seed: int) -> Tensor:
    """Return a picture (3, side, side) in [-1, 1] of random blobs with noise; equal seeds give equal pictures."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 8, 8, generator=generator) * 2 - 1
    smooth = F.interpolate(coarse, (side, side), mode='bicubic')[0]
    return (smooth + 0.05 * torch.randn(3, side, side, generator=generator)).clamp(-1, 1)
