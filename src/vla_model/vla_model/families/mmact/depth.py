"""The depth map of a masked model: the codes of the first view, decoded in few forwards."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vla_model import decode
from vla_model.observation import state_of
from vla_model.policy import DepthOptions
from vla_model.types import DepthMap, Observation

if TYPE_CHECKING:
    from vla_model.families.mmact.policy import MaskedPolicy


@torch.inference_mode()
def start(policy: 'MaskedPolicy', observation: Observation, o: DepthOptions) -> decode.Job[DepthMap]:
    """Return a job that predicts the depth of the first view. Raises ValueError naming a wrong part."""
    tokenizer = policy.depth_tokenizer
    if tokenizer is None:
        raise ValueError(f'model {policy.model_id} has depth codes, but no depth tokenizer: restore the checkpoint')
    template = policy.prompts.depth(tokenizer.config.grid**2)
    state = policy.state_ids(state_of(policy.config.robot, observation))
    ids = template.fill(state, policy.view_ids(observation.images))
    return decode.Job(_decode(policy, observation.t_ref, ids, template.block, o))


def _decode(policy: 'MaskedPolicy', t_ref: int, ids: Tensor, block: slice, o: DepthOptions) -> decode.Steps[DepthMap]:
    tokenizer, v = policy.depth_tokenizer, policy.config.vocabulary
    assert tokenizer is not None
    part = slice(v.depth_offset, v.bins_offset)
    codes, _ = yield from decode.codes(policy.engine, v, ids, block, part, o.steps, cached=o.cached)
    grid = codes.view(tokenizer.config.grid, -1)
    depth = tokenizer.decode(codes[None])[0]
    return DepthMap(t_ref, policy.config.robot.cameras[0], grid.cpu().numpy(), depth.cpu().numpy(), metric=True)
