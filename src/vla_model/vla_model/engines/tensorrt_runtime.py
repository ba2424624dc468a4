"""Runs engines that TensorRT built before."""

import hashlib
import logging
from pathlib import Path
from typing import Any

import torch

from vla_model.engines.onnx_manifest import MANIFEST

VERIFIED = 'verified.json'


REMEDY = (
    'install TensorRT 10.3 or later (pip install tensorrt-cu12 or tensorrt-cu13, by your CUDA; a Jetson has it from '
    'JetPack)'
)


NEEDED = {  # names of TensorRT that are called here and in tensorrt_build.py
    'Builder': ('create_network', 'create_builder_config', 'create_optimization_profile', 'build_serialized_network'),
    'OnnxParser': ('parse_from_file', 'num_errors', 'get_error'),
    'IBuilderConfig': (
        'set_memory_pool_limit', 'add_optimization_profile', 'builder_optimization_level', 'create_timing_cache',
        'set_timing_cache', 'get_timing_cache',
    ),
    'IOptimizationProfile': ('set_shape',),
    'Runtime': ('deserialize_cuda_engine',),
    'ICudaEngine': ('create_execution_context', 'device_memory_size_v2'),
    'IExecutionContext': ('set_input_shape', 'set_tensor_address', 'set_device_memory', 'execute_async_v3'),
    'ExecutionContextAllocationStrategy': ('USER_MANAGED',),
    'NetworkDefinitionCreationFlag': ('STRONGLY_TYPED',),
    'MemoryPoolType': ('WORKSPACE',),
}  # fmt: skip


_log = logging.getLogger(__name__)


def library() -> Any:
    """Return the package tensorrt. Raises ValueError where it is missing, cannot be loaded or is too old."""
    try:
        import tensorrt as trt
    except ImportError as error:
        raise ValueError(f'TensorRT is not here ({error}): {REMEDY}') from None
    if missing := missing_names(trt):
        raise ValueError(f'TensorRT {trt.__version__} has no {missing[0]}: {REMEDY}')
    return trt


def missing_names(trt: Any) -> list[str]:
    """Return the names in NEEDED that a version of TensorRT lacks."""
    return [f'{c}.{n}' for c, names in NEEDED.items() for n in names if not hasattr(getattr(trt, c, None), n)]


def built_in(folder: Path) -> Path:
    """Return the folder of the engines built from the graphs in `folder`, by GPU, TensorRT version and graphs."""
    trt = library()
    if not torch.cuda.is_available():
        raise ValueError(
            'torch finds no usable GPU, for which TensorRT would build: run this on the machine of the arm'
        )
    name = torch.cuda.get_device_name().replace(' ', '-')
    capability = '.'.join(map(str, torch.cuda.get_device_capability()))
    graphs = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()[:8]
    return folder / f'{name}-{capability}-tensorrt-{trt.__version__}-{graphs}'


def _logger(trt: Any) -> Any:
    return trt.Logger(trt.Logger.WARNING)


class Runner:
    """Runs a built engine on the current GPU."""

    def __init__(self, plan: Path, memory: 'Memory'):
        """memory: shared by runners that never run at the same time. Raises ValueError naming the command to run."""
        trt = library()
        if not plan.is_file():
            raise ValueError(f'{plan} is missing, it is for this GPU and this TensorRT: run ./vla tensorrt build')
        self.name, self._memory = plan.stem, memory
        self._runtime = trt.Runtime(_logger(trt))
        self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if self._engine is None:
            raise ValueError(f'TensorRT cannot read {plan}: delete it and run ./vla tensorrt build')
        self._strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        memory.need(self._engine.device_memory_size_v2)

    def bind(self, inputs: dict[str, torch.Tensor], outputs: dict[str, torch.Tensor]) -> Any:
        """Return a function that runs the engine on these tensors, on torch's current stream.

        The call can be captured in a CUDA graph. A graph keeps the addresses of its context, so each has its own.
        """
        context = self._engine.create_execution_context(self._strategy)
        context.set_device_memory(*self._memory.given())
        for name, tensor in inputs.items():
            if not context.set_input_shape(name, tuple(tensor.shape)):
                raise ValueError(f'the engine {self.name} does not take {name} of shape {tuple(tensor.shape)}')
        for name, tensor in (inputs | outputs).items():
            if not tensor.is_contiguous() or not context.set_tensor_address(name, tensor.data_ptr()):
                raise ValueError(f'the engine {self.name} has no {name}, or it is not in one piece')

        def run() -> None:
            if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
                raise RuntimeError(f'the engine {self.name} failed: see the messages of TensorRT above')

        run.tensors = (inputs, outputs)  # type: ignore[attr-defined]  # they live as long as what reads them
        return run


class Memory:
    """The work memory that engines share, one after another; as large as the largest need."""

    def __init__(self, device: torch.device):
        self._device, self._bytes = device, 0
        self._tensor: torch.Tensor | None = None

    def need(self, size: int) -> None:
        if self._tensor is not None and size > self._bytes:
            raise RuntimeError('the memory is in use: load all engines before the first one is bound')
        self._bytes = max(self._bytes, int(size))

    def given(self) -> tuple[int, int]:
        """Return the address and the size [bytes]."""
        if self._tensor is None:
            self._tensor = torch.empty(max(256, self._bytes), dtype=torch.uint8, device=self._device)
        return self._tensor.data_ptr(), self._tensor.numel()
