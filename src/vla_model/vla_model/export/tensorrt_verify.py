"""Compares a TensorRT engine with eager on the same observations."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vla_model.engines.base import Act
from vla_model.engines.cache import write_json
from vla_model.engines.tensorrt import TensorRt
from vla_model.engines.tensorrt_runtime import VERIFIED, built_in
from vla_model.families.mmact.policy import MaskedPolicy
from vla_model.observation import state_of
from vla_model.tokens import bins
from vla_model.tokens.prompt_texts import EXAMPLE
from vla_model.types import Observation

CLOSE, LEAST_CLOSE = 2, 0.97  # largest distance of equal bins; least share of equal bins


LEAST_CODES = 0.95  # of the image tokenizer's codes that must be those of torch in float32


@torch.inference_mode()
def verify(policy: MaskedPolicy, folder: Path, observations: Iterable[Observation]) -> dict[str, float]:
    """Compare built engines with torch eager on recorded observations; return the figures of `figures`.

    policy: on the GPU, in the precision of the graphs. Bins of actions and codes of images are compared. The figures
    are written beside the engines, which are used only if they pass. Raises ValueError naming each failed figure.
    """
    policy.use('eager')
    seen = list(observations)
    if not seen:
        raise ValueError('nothing to verify with: give a dataset with at least one frame')
    exact = [_answer(policy, o) for o in seen]
    act = Act.of(policy.prompts.action(EXAMPLE), policy.config.vocabulary, policy.prompts.max_tokens)
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
    """Return the figures of two lists of (codes, actions (horizon, action_dim) in robot units)."""
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
    """Return a sentence for each figure that misses its threshold."""
    limits = {'close_bins': LEAST_CLOSE, 'image_codes_equal': LEAST_CODES}
    return [f'{k} is {result[k]:.3f}, at least {v:g} is needed' for k, v in limits.items() if not result[k] >= v]


def _answer(policy: MaskedPolicy, seen: Observation) -> tuple[Tensor, np.ndarray]:
    codes = policy.view_ids(seen.images)
    return codes, policy.actions(seen.images, state_of(policy.config.robot, seen), seen.instruction)[0]
