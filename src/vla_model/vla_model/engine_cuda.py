"""CUDA graphs: the whole forward as one launch, for every shape that `act` asks for."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .engine import Engine
from .image_tokenizer import ImageTokenizer
from .network import Network, PrefixCache

MAX_GRAPHS = 8  # shapes kept; an instruction of another length is another shape


@dataclass(frozen=True)
class Captured:
    graph: torch.cuda.CUDAGraph
    source: Tensor  # copy the input here, replay, read `result`
    result: Tensor
    keep: Any  # what the graph reads and nobody else may hold on to

    def run(self, value: Tensor) -> Tensor:
        self.source.copy_(value)
        self.graph.replay()
        return self.result.clone()


class CudaGraphs(Engine):
    """Captures at the first request of a shape, which takes a few forwards; `Policy.warm_up` makes the usual ones."""

    name = 'cuda-graph'

    def __init__(self, network: Network, image_tokenizer: ImageTokenizer):
        if not torch.cuda.is_available():
            raise ValueError("engine 'cuda-graph' needs a GPU that torch can use: take 'eager', or mend the GPU driver")
        super().__init__(network, image_tokenizer)
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: OrderedDict[tuple, Captured] = OrderedDict()

    def __call__(
        self,
        ids: Tensor,
        rows: slice | Tensor,
        vocabulary: slice,
        valid: Tensor | None = None,
        cache: PrefixCache | None = None,
    ) -> Tensor:
        if valid is not None or cache is not None or not isinstance(rows, slice):
            return super().__call__(ids, rows, vocabulary, valid, cache)
        key = ('logits', *ids.shape, rows.start, rows.stop, vocabulary.start, vocabulary.stop)
        return self._run(key, lambda x: self.network(x, rows, vocabulary), ids)

    def encode(self, pixels: Tensor) -> Tensor:
        return self._run(('codes', *pixels.shape), super().encode, pixels)

    @torch.inference_mode()
    def _run(self, key: tuple, function: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
        captured = self._graphs.get(key)
        if captured is None:
            if len(self._graphs) >= MAX_GRAPHS:
                torch.cuda.synchronize()  # the one that goes may still be running
                self._graphs.popitem(last=False)
            captured = self._graphs[key] = self._capture(function, value)
        self._graphs.move_to_end(key)
        return captured.run(value)

    def _capture(self, function: Callable[[Tensor], Tensor], value: Tensor) -> Captured:
        source = value.clone()
        stream = torch.cuda.Stream(source.device)
        stream.wait_stream(torch.cuda.current_stream(source.device))
        with torch.cuda.stream(stream):  # libraries choose their kernels and allocate before the capture
            for _ in range(3):
                function(source)
        torch.cuda.current_stream(source.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Only what this thread does is captured: other threads may use the GPU meanwhile.
        capture = torch.cuda.graph(graph, pool=self._pool, capture_error_mode='thread_local')
        with torch.cuda.device(source.device), capture:
            result = function(source)
        # The network may make a longer table of angles later; this graph still reads the one of now.
        return Captured(graph, source, result, self.network._rope)
