"""CUDA graphs: each forward of the network and each encoding of an image is one launch.

A request type is the length of its block and the part of the vocabulary that it reads: act, plan, image. The first
request of a type captures graphs for all lengths of its prompt, in steps of STEP tokens. `seal` ends the capturing, so
that none delays a moving arm.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vla_model.engines.base import Act, Engine
from vla_model.engines.fused import FusedNetwork
from vla_model.image_tokenizer import ImageTokenizer
from vla_model.network import KeyValues, Network

STEP = 32  # tokens from one captured length to the next
LIMITS = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.02}  # of the logits, relative to eager's
ROUNDED_LIMIT = 0.2  # where inputs are rounded to 8 bits: one rounding that differs changes those of later layers
CHECKS = 3  # prompts that are compared with eager
Replay = Callable[[], Tensor]  # computes from the graph's own inputs into the tensor that it returns
Capture = Callable[[Replay], Replay]
_log = logging.getLogger(__name__)


@dataclass
class RequestType:
    """The captured graphs of a request type, and the tensors that they read."""

    ids: Tensor  # (longest,) int64: the prompt at the beginning
    length: Tensor  # (1,) int32 tokens of the prompt
    start: Tensor  # (1,) int64 position of the block
    graphs: dict[int, Replay] = field(default_factory=dict)  # by the number of positions that are computed
    keys: list[Tensor] | None = None  # with a prefix cache
    suffix: Replay | None = None  # later forwards with it: the block and what follows it
    owner: KeyValues | None = None  # whose keys are in `keys`


class CudaGraphs(Engine):
    """Runs requests of one prompt. Eager runs those with a batch, left padding or scattered rows."""

    name = 'cuda-graph'
    fixed_shapes = True

    def __init__(self, network: Network, image_tokenizer: ImageTokenizer, act: Act, capture: Capture | None = None):
        """capture: makes a graph; tests give one that needs no GPU.

        Raises ValueError where this engine cannot run here, or its logits differ from eager's by more than LIMITS.
        """
        if capture is None and not torch.cuda.is_available():
            raise ValueError(
                f"engine '{self.name}' needs a GPU that torch can use: take 'eager', or mend the GPU driver"
            )
        super().__init__(network, image_tokenizer)
        self._capture = capture or Graphs(act.prompts[0].device)
        self._longest = act.longest
        self._requests: dict[tuple, RequestType] = {}
        self._images: dict[tuple, tuple[Tensor, Replay]] = {}
        self._sealed = False
        block = act.block.stop - act.block.start
        self.fused = FusedNetwork(network, _up(act.longest + block, STEP))
        self.implementations = self._choose_matmuls(_up(act.prompts[0].shape[1], STEP))
        self.error = self._check(act)

    def seal(self) -> None:
        """End capturing: from now on, a request without a captured graph raises ValueError."""
        self._sealed = True

    @torch.inference_mode()
    def __call__(
        self,
        ids: Tensor,
        rows: slice | Tensor,
        vocabulary: slice,
        valid: Tensor | None = None,
        cache: KeyValues | None = None,
    ) -> Tensor:
        fixed = cache is None or (isinstance(cache.positions, slice) and not cache.grows)
        if valid is not None or len(ids) != 1 or not isinstance(rows, slice) or not fixed:
            return super().__call__(ids, rows, vocabulary, valid, cache)
        length = ids.shape[1]
        request = self._request(length, rows, vocabulary, cache is not None)
        request.length.fill_(length)
        request.start.fill_(rows.start)
        if cache is not None and cache.layers:
            if request.owner is not cache:
                raise ValueError(
                    'another decode of this request type has started: decodes with a prefix cache run one after another'
                )
            request.ids[rows.start : length].copy_(ids[0, rows.start :])
            return request.suffix().clone()[None]  # type: ignore[misc]
        request.ids[:length].copy_(ids[0])
        if cache is not None:
            request.owner = cache
            cache.layers = [k.permute(0, 2, 1, 3)[:, None] for k in request.keys or ()]
        return request.graphs[_fitting(request, length)]().clone()[None]

    def encode(self, pixels: Tensor) -> Tensor:
        key = tuple(pixels.shape)
        if key not in self._images:
            self._may_capture(f'images {key}')
            source = pixels.clone(memory_format=torch.contiguous_format)
            self._images[key] = (source, self._capture(self._codes(source)))
        source, replay = self._images[key]
        source.copy_(pixels)
        return replay().clone()

    def _codes(self, pixels: Tensor) -> Replay:
        return lambda: self.encoder(pixels)

    def _request(self, length: int, rows: slice, vocabulary: slice, cached: bool) -> RequestType:
        """Return the request type of a prompt of `length` tokens; capture its missing graphs.

        Raises ValueError for a prompt that is too long, and for a new type after `seal`.
        """
        size, tail = rows.stop - rows.start, length - rows.stop
        key = (size, tail, vocabulary.start, vocabulary.stop, cached)
        request = self._requests.get(key)
        if request is not None and _fitting(request, length):
            return request
        longest = _up(self._longest + size, STEP)
        if length > longest:
            raise ValueError(f'the prompt has {length} tokens, the graphs take up to {longest}')
        what = f'a block of {size} tokens behind a prompt of {rows.start}, ids {vocabulary.start} to {vocabulary.stop}'
        self._may_capture(what + (', with a prefix cache' if cached else ''))
        begun = time.perf_counter()
        if request is None:
            device = self.fused.device
            ids = torch.zeros(longest, dtype=torch.int64, device=device)
            numbers = torch.ones(1, dtype=torch.int32, device=device), torch.zeros(1, dtype=torch.int64, device=device)
            request = RequestType(ids, *numbers, keys=self.fused.new_keys(longest) if cached else None)
        places = torch.arange(size, device=request.ids.device)
        request.length.fill_(length)  # capturing runs the forward, which needs valid numbers
        request.start.fill_(rows.start)
        for positions in range(_up(length, STEP), longest + 1, STEP):
            if positions not in request.graphs:
                request.graphs[positions] = self._capture(self._whole(request, positions, places, vocabulary))
        if cached and request.suffix is None:
            request.suffix = self._capture(self._suffix(request, size + tail, places, vocabulary))
        self._requests[key] = request
        _log.info('captured %s for %d lengths in %.1f s', what, len(request.graphs), time.perf_counter() - begun)
        return request

    def _whole(self, request: RequestType, positions: int, places: Tensor, vocabulary: slice) -> Replay:
        """Return the forward of the first `positions` positions."""
        return lambda: self.fused(
            request.ids[:positions], request.length, request.start + places, vocabulary, request.keys
        )

    def _suffix(self, request: RequestType, size: int, places: Tensor, vocabulary: slice) -> Replay:
        """Return the forward of the `size` positions that start at `request.start`."""
        following = torch.arange(size, device=request.ids.device)
        return lambda: self.fused(
            request.ids, request.length, places, vocabulary, request.keys, request.start + following
        )

    def _may_capture(self, what: str) -> None:
        if self._sealed:
            raise ValueError(
                f'{self.name}: no graph was captured for {what}, and capturing ends with warm_up: '
                'run this request once before'
            )

    def _choose_matmuls(self, rows: int) -> dict[str, dict[str, float]]:
        """Choose the fastest implementation of each matmul, the same one in all layers.

        Return the times [ms]: scheme and shape -> name of the implementation -> time.
        """
        chosen: dict[str, tuple[Callable[..., Tensor], dict[str, float]]] = {}
        for block in self.fused.blocks:
            for p in block.matmuls:
                key = f'{p.scheme or "plain"} {p.outputs} x {p.weight.shape[1]}'
                if key not in chosen:
                    times = p.measure(rows, self.fused.dtype, self._timed)
                    chosen[key] = (p.implementation, {name: t * 1e3 for name, t in times.items()})
                p.implementation = chosen[key][0]
        return {key: times for key, (_, times) in chosen.items()}

    @torch.inference_mode()
    def _timed(self, run: Callable[[], object], runs: int = 5) -> float:
        """Return the shortest time of a few runs [s]."""
        wait = torch.cuda.synchronize if self.fused.device.type == 'cuda' else lambda: None
        best = float('inf')
        for _ in range(runs):
            wait()
            begun = time.perf_counter()
            run()
            wait()
            best = min(best, time.perf_counter() - begun)
        return best

    @torch.inference_mode()
    def _check(self, act: Act) -> float:
        """Return the relative difference of the logits from eager's. Raises ValueError above the limit."""
        ours = torch.cat([self(ids, act.block, act.vocabulary) for ids in act.prompts[:CHECKS]]).float()
        eager = [self.network(ids, act.block, act.vocabulary) for ids in act.prompts[:CHECKS]]
        theirs = torch.cat(eager).float()
        error, limit = float((ours - theirs).norm() / theirs.norm()), LIMITS[self.fused.dtype]
        if any(p.rounding for block in self.fused.blocks for p in block.matmuls):
            limit = ROUNDED_LIMIT
        if not error <= limit:
            raise ValueError(
                f"engine '{self.name}' differs from eager by {error:.2g}, the limit is {limit:g}: take engine 'eager'"
            )
        return error


class Graphs:
    """Makes CUDA graphs. They share one memory pool, as they never run at the same time."""

    def __init__(self, device: torch.device):
        self._device, self._pool, self._keep = device, torch.cuda.graph_pool_handle(), list[Any]()

    @torch.inference_mode()
    def __call__(self, run: Replay) -> Replay:
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):  # libraries choose their kernels and allocate before the capture
            for _ in range(2):
                run()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Only what this thread does is captured: other threads may use the GPU meanwhile.
        capture = torch.cuda.graph(graph, pool=self._pool, capture_error_mode='thread_local')
        with torch.cuda.device(self._device), capture:
            result = run()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


def _fitting(request: RequestType, length: int) -> int:
    """Return the shortest captured length that holds a prompt of `length` tokens; 0: none does."""
    return min((n for n in request.graphs if n >= length), default=0)


def _up(n: int, step: int) -> int:
    return -(-n // step) * step
