"""The engine 'tensorrt': engines built by TensorRT run act, plan, image and the image tokenizer; torch runs the rest.

Each launch is a CUDA graph, as in cuda_graph.py. This class captures calls of TensorRT in place of torch's.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

from vla_model.engines.base import Act
from vla_model.engines.cuda_graph import Capture, CudaGraphs, Replay, RequestType
from vla_model.engines.onnx_manifest import read_manifest
from vla_model.engines.tensorrt_runtime import VERIFIED, Memory, Runner, built_in
from vla_model.image_tokenizer import ImageTokenizer
from vla_model.network import Network


class TensorRt(CudaGraphs):
    name = 'tensorrt'

    def __init__(
        self, network: Network, image_tokenizer: ImageTokenizer, act: Act, folder: Path, verified: bool = True,
        capture: Capture | None = None,
    ):  # fmt: skip
        """folder: of the graphs. verified: refuse engines without a passed `verify`. capture: as in CudaGraphs.

        Raises ValueError or FileNotFoundError naming the command to run.
        """
        manifest, place = read_manifest(folder), built_in(folder)
        dtype = str(next(network.parameters()).dtype).removeprefix('torch.')
        if dtype != manifest['dtype']:
            raise ValueError(
                f'the graphs in {folder} are in {manifest["dtype"]}, the network in {dtype}: give dtype '
                f'{manifest["dtype"]}, or run ./vla tensorrt export with another'
            )
        if verified and not _passed(place / VERIFIED):
            raise ValueError(f'the engines in {place} were not verified: run ./vla tensorrt verify')
        memory = Memory(act.prompts[0].device)
        self._runners: dict[tuple, Runner] = {}
        for name, graph in manifest['kinds'].items():
            self._runners[(graph.rows, *graph.vocabulary)] = Runner(place / f'{name}.plan', memory)
        self._tokenizer = Runner(place / 'images.plan', memory)
        self._images_out = image_tokenizer.config.tokens
        super().__init__(network, image_tokenizer, act, capture)

    def _whole(self, request: RequestType, positions: int, places: Tensor, vocabulary: slice) -> Replay:
        runner = self._runners.get((len(places), vocabulary.start, vocabulary.stop))
        if runner is None or request.keys is not None:  # with a prefix cache torch runs it
            return super()._whole(request, positions, places, vocabulary)
        device, size = request.ids.device, vocabulary.stop - vocabulary.start
        length = torch.zeros(1, dtype=torch.int64, device=device)
        logits = torch.empty(len(places), size, device=device)
        run = runner.bind(
            {'ids': request.ids[:positions], 'length': length, 'start': request.start}, {'logits': logits}
        )

        def forward() -> Tensor:
            length.copy_(request.length)
            run()
            return logits

        return forward

    def _codes(self, pixels: Tensor) -> Replay:
        codes = torch.empty(1, self._images_out, dtype=torch.int64, device=pixels.device)
        run = self._tokenizer.bind({'pixels': pixels}, {'codes': codes})

        def encode() -> Tensor:
            run()
            return codes

        return encode


def _passed(file: Path) -> bool:
    try:
        return json.loads(file.read_text())['failed'] == []
    except (OSError, ValueError, KeyError, TypeError):
        return False
