"""The world mode of a masked model: images and a chunk in, the image of every view after the chunk out.

The state of the prompt is that to which the chunk leads: the arm of an image depends on it alone.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vla_model import decode
from vla_model.image_tokenizer import to_image
from vla_model.observation import chunk_steps, state_of
from vla_model.policy import WorldOptions
from vla_model.types import Observation, PredictedViews

if TYPE_CHECKING:
    from vla_model.families.mmact.policy import MaskedPolicy

FAR = 1.5  # largest action, as a multiple of the range of the training data


@torch.inference_mode()
def start(policy: 'MaskedPolicy', observation: Observation, o: WorldOptions) -> decode.Job[PredictedViews]:
    """Return a job that predicts the image of every camera after `o.after` steps of `o.chunk`.

    Raises ValueError naming a wrong part of the observation, the chunk, or a number of steps it does not have.
    """
    robot, horizon = policy.config.robot, policy.config.robot.horizon
    after = o.after or horizon
    if not 1 <= after <= horizon or len(o.chunk.positions) < after:
        raise ValueError(
            f'images after {after} steps are asked for: the chunk has {len(o.chunk.positions)}, the model predicts '
            f'1 to {horizon} steps ahead'
        )
    steps = chunk_steps(policy.info, o.chunk, 'chunk', horizon)[:after]
    target = steps[-1] if robot.joints else o.target
    if target is None:
        raise ValueError('images after actions of the tool need the joints that they lead to: give options.target')
    if robot.action_space == 'joint_delta':
        steps = steps - np.append(observation.positions, np.zeros(robot.action_dim - robot.dof))
    normalized = policy.action_ranges.normalize(steps)
    far = np.abs(normalized).max(1)
    if far.max() > FAR:
        raise ValueError(
            f'step {int(far.argmax()) + 1} of the chunk is {far.max():.2g} times as far as the actions that the model '
            'knows: give a chunk that the robot could execute'
        )
    template = policy.prompts.world()
    actions = torch.full((robot.chunk_tokens,), policy.config.vocabulary.mask, device=policy.device)
    known = policy.bin_ids(normalized.astype(np.float32)).flatten()
    actions[: len(known)] = known
    state_of(robot, observation)  # only checked: the images show where the arm is
    state = policy.state_ids(np.asarray(target, np.float64))
    ids = template.fill(state, policy.view_ids(observation.images), actions=actions)
    due = observation.t_ref + round(after * robot.dt * 1e9)
    return decode.Job(_decode(policy, observation.t_ref, due, ids, template.block, o))


def _decode(
    policy: 'MaskedPolicy', t_ref: int, due: int, ids: Tensor, block: slice, o: WorldOptions
) -> decode.Steps[PredictedViews]:
    config, cameras = policy.config, policy.config.robot.cameras
    codes, probability = yield from decode.image(
        policy.engine, config.vocabulary, ids, block, o.steps or config.world_steps, cached=o.cached
    )
    images = {}
    for camera, view in zip(cameras, codes.view(len(cameras), -1), strict=True):
        yield  # the image decoder costs about as much as a forward
        images[camera] = to_image(policy.image_tokenizer.decode(view[None])[0])
    return PredictedViews(t_ref, due, images, float(probability.mean()))
