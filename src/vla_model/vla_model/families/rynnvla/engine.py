"""Engines of the continuous chunk: ids of a prompt to the output of the action head, checked against torch eager.

Decoding token by token, of discrete chunks and of images, runs in eager with every engine.
"""

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vla_model.families.rynnvla.action_head import ActionHead
from vla_model.network import Network
from vla_model.quantized import is_quantized

PREFIX = 'openvino-'
NAMES = ('eager', 'auto', 'cuda-graph', 'openvino-float32', 'openvino-bfloat16')
LIMITS = {'float32': 1e-3, 'bfloat16': 0.05, 'float16': 0.02}  # of the chunk, |a - b| / |b|
LARGEST = 1e9  # parameters of a network of which OpenVINO makes a second copy
KEPT = 4  # captured lengths of a prompt
Replay = Callable[[], Tensor]
Chunks = Callable[[Tensor], Tensor]  # ids (1, n) -> (horizon, dims) float32


class Eager(nn.Module):
    """Runs torch eager."""

    name = 'eager'

    def __init__(self, network: Network, head: ActionHead):
        super().__init__()
        self.network, self.head = network, head

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.network.hidden(self.network.embed(ids), slice(0, ids.shape[1]), ids.shape[1])
        return self.head(hidden.float())[0]


def check(name: str, device: str, dtype: str) -> None:
    """Raise ValueError naming an engine that does not run this family on the device ('cpu' or 'cuda')."""
    if name not in NAMES:
        raise ValueError(f'engine {name!r} does not run RynnVLA-002: take one of {list(NAMES)}')
    if name == 'cuda-graph' and device != 'cuda':
        raise ValueError(f"engine 'cuda-graph' runs on cuda, not on {device}: take 'eager'")
    if name.startswith(PREFIX) and (device != 'cpu' or dtype != 'float32'):
        raise ValueError(f'engine {name!r} runs on cpu from weights in float32, not on {device} in {dtype}')
    if name.startswith(PREFIX) and importlib.util.find_spec('openvino') is None:
        raise ValueError(f"engine {name!r} needs the package openvino: pip install openvino, or take 'eager'")


def make(name: str, eager: Eager, capture: Callable[[Replay], Replay] | None = None) -> Chunks:
    """Return the engine `name`; 'auto' is eager. capture: makes a CUDA graph; tests give one that needs no GPU.

    Raises ValueError where the engine does not compute this network, by name.
    """
    if name in ('eager', 'auto'):
        return eager
    if name == 'cuda-graph':
        if capture is None:
            from vla_model.engines.cuda_graph import Graphs

            capture = Graphs(next(eager.parameters()).device)
        return Captured(eager, capture)
    return OpenVinoChunks(eager, name.removeprefix(PREFIX))


def compare(name: str, ours: Tensor, theirs: Tensor, limit: float) -> None:
    """Raise ValueError where an engine's chunk differs from eager's by more than the limit."""
    error = float((ours - theirs).norm() / theirs.norm().clamp(min=1e-9))
    if not error <= limit:
        raise ValueError(f"engine {name!r} differs from eager by {error:.2g}, the limit is {limit:g}: take 'eager'")


class Captured:
    """Replays a CUDA graph per length of a prompt; a length is captured, and compared with eager, when it is new."""

    def __init__(self, eager: Eager, capture: Callable[[Replay], Replay]):
        self._eager, self._capture = eager, capture
        self._graphs: dict[int, tuple[Tensor, Replay]] = {}  # the newest last
        self._limit = LIMITS[str(next(eager.network.parameters()).dtype).removeprefix('torch.')]

    def __call__(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        if length not in self._graphs:
            buffer = ids.clone()
            replay = self._capture(lambda: self._eager(buffer))
            compare('cuda-graph', replay(), self._eager(ids), self._limit)
            self._graphs[length] = buffer, replay
            for old in list(self._graphs)[:-KEPT]:
                del self._graphs[old]
        buffer, replay = self._graphs[length]
        buffer.copy_(ids)
        return replay().clone()


class OpenVinoChunks:
    """Runs network and head as one OpenVINO graph for prompts of any length, from a second copy of the weights."""

    def __init__(self, eager: Eager, precision: str):
        from vla_model.engines import openvino_graph as export

        numbers = sum(p.numel() for p in eager.parameters())
        if numbers > LARGEST:
            raise ValueError(
                f'engine {PREFIX}{precision} copies the weights, {numbers / 1e9:.1f} G of them: it runs networks of up '
                f"to {LARGEST / 1e9:.0f} G, take 'eager'"
            )
        if is_quantized(eager.network):
            raise ValueError(f"engine {PREFIX}{precision} does not run a quantized RynnVLA-002: take 'eager'")
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # one operator that the converter does not know
        try:
            ids = torch.arange(40)[None]
            model = export.convert(eager, (ids,), ([1, -1],))
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
        self._request = export.compile_for_cpu(model, precision)
        for length in (40, 75):  # another length than that of the trace, too
            ids = torch.arange(length)[None]
            compare(PREFIX + precision, self(ids), eager(ids), LIMITS[precision])

    def __call__(self, ids: Tensor) -> Tensor:
        self._request.infer({0: ids.numpy()}, share_inputs=True, share_outputs=True)
        return torch.tensor(self._request.get_output_tensor(0).data)  # a copy: the next call overwrites it
