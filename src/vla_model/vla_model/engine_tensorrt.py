"""The engine 'tensorrt': what TensorRT built runs act, plan, image and the image tokenizer; torch runs the rest.

Each launch is a CUDA graph, as in engine_cuda.py, of which this changes what is captured.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import bins
from .cache import write_json
from .engine import Act
from .engine_cuda import Capture, CudaGraphs, Kind, Replay
from .families.mmact.policy import MaskedPolicy
from .image_tokenizer import ImageTokenizer
from .network import Network
from .observation import state_of
from .onnx_export import read_manifest
from .tensorrt_build import VERIFIED, Memory, Runner, built_in
from .types import Observation

CLOSE, LEAST_CLOSE = 2, 0.97  # bins: so far from torch's counts as the same; so many must be the same
LEAST_CODES = 0.95  # of the image tokenizer's codes that must be those of torch in float32


class TensorRt(CudaGraphs):
    name = 'tensorrt'

    def __init__(
        self, network: Network, image_tokenizer: ImageTokenizer, act: Act, folder: Path, verified: bool = True,
        capture: Capture | None = None,
    ):  # fmt: skip
        """folder: of the graphs. verified: refuse engines that `verify` has not passed. capture: as in CudaGraphs.

        Raises ValueError or FileNotFoundError saying what to run.
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
        for name, kind in manifest['kinds'].items():
            self._runners[(kind.rows, *kind.vocabulary)] = Runner(place / f'{name}.plan', memory)
        self._tokenizer = Runner(place / 'images.plan', memory)
        self._images_out = image_tokenizer.config.tokens
        super().__init__(network, image_tokenizer, act, capture)

    def _whole(self, kind: Kind, positions: int, places: Tensor, vocabulary: slice) -> Replay:
        runner = self._runners.get((len(places), vocabulary.start, vocabulary.stop))
        if runner is None or kind.keys is not None:  # with a prefix cache torch runs it
            return super()._whole(kind, positions, places, vocabulary)
        device, size = kind.ids.device, vocabulary.stop - vocabulary.start
        length = torch.zeros(1, dtype=torch.int64, device=device)
        logits = torch.empty(len(places), size, device=device)
        run = runner.bind({'ids': kind.ids[:positions], 'length': length, 'start': kind.start}, {'logits': logits})

        def forward() -> Tensor:
            length.copy_(kind.length)
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


@torch.inference_mode()
def verify(policy: MaskedPolicy, folder: Path, observations: Iterable[Observation]) -> dict[str, float]:
    """Runs recorded observations through torch eager and the engines that were built; returns what was found.

    policy: on the GPU, in the precision of the graphs. Its answer to observation i is compared with that of the
    engines: bins of the actions, codes of the images. Writes the figures beside the engines, which are used only if
    they pass. Raises ValueError naming what does not.
    """
    policy.use('eager')
    seen = list(observations)
    if not seen:
        raise ValueError('nothing to verify with: give a dataset with at least one frame')
    exact = [_answer(policy, o) for o in seen]
    act = Act.of(policy.prompts.action('put it there'), policy.config.vocabulary, policy.prompts.max_tokens)
    policy.engine = TensorRt(policy.network, policy.image_tokenizer, act, folder, verified=False)
    policy.forget_images()
    ours = [_answer(policy, o) for o in seen]
    result = figures(policy, exact, ours) | {'observations': len(seen), 'logit error': policy.engine.error}
    failed = judge(result)
    write_json(built_in(folder) / VERIFIED, result | {'failed': failed})
    if failed:
        raise ValueError(f'the engines in {folder} differ from torch: {"; ".join(failed)}: they are not used')
    return result


def figures(
    policy: MaskedPolicy, exact: list[tuple[Tensor, np.ndarray]], ours: list[tuple[Tensor, np.ndarray]]
) -> dict:
    """Of (codes, actions (horizon, action_dim) in robot units) by torch and by the engines."""
    ranges, count = policy.action_ranges, policy.config.vocabulary.bins
    a, b = (
        np.stack([bins.quantize(ranges.normalize(actions).astype(np.float32), count) for _, actions in answers])
        for answers in (exact, ours)
    )
    joints = slice(0, policy.config.robot.action_dim - policy.config.robot.gripper)
    difference = np.abs(np.stack([x for _, x in exact]) - np.stack([x for _, x in ours]))[..., joints]
    codes = [float((x == y).float().mean()) for (x, _), (y, _) in zip(exact, ours, strict=True)]
    return {
        'equal_bins': float((a == b).mean()),
        'close_bins': float((np.abs(a - b) <= CLOSE).mean()),
        'action_difference_mean': float(difference.mean()),
        'action_difference_p99': float(np.percentile(difference, 99)),
        'image_codes_equal': float(np.mean(codes)),
    }


def judge(result: dict[str, float]) -> list[str]:
    """What misses its threshold, in words."""
    limits = {'close_bins': LEAST_CLOSE, 'image_codes_equal': LEAST_CODES}
    return [f'{k} is {result[k]:.3f}, at least {v:g} is needed' for k, v in limits.items() if not result[k] >= v]


def _answer(policy: MaskedPolicy, seen: Observation) -> tuple[Tensor, np.ndarray]:
    codes = policy._view_ids(seen.images)
    return codes, policy.actions(seen.images, state_of(policy.config.robot, seen), seen.instruction)[0]


def _passed(file: Path) -> bool:
    try:
        return json.loads(file.read_text())['failed'] == []
    except (OSError, ValueError, KeyError, TypeError):
        return False
