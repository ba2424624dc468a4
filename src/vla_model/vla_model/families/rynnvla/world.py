"""The world model: images and an action in, the next image of every view out; roll-outs over the steps of a chunk."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vla_model.decode import Steps
from vla_model.families.rynnvla import decode as answers
from vla_model.families.rynnvla import prompt, tokens
from vla_model.families.rynnvla.robot import RobotFile
from vla_model.families.rynnvla.tokens import ACTION, Scale
from vla_model.families.rynnvla.views import Views
from vla_model.network import Network
from vla_model.tokens.text_tokenizer import TextTokenizer
from vla_model.types import Observation, PredictedViews

CELL = 2 / (tokens.EDGES - 1)  # of [-1, 1]: an action further out than one cell has no bin


def check_actions(actions: np.ndarray, scale: Scale) -> np.ndarray:
    """Return actions (n, dims), in units of training, as numbers of [-1, 1].

    Raises ValueError naming an action of another size, a number that is not finite, or one that no bin stands for.
    """
    actions = np.asarray(actions, np.float64)
    if actions.ndim != 2 or actions.shape[1] != len(scale.low):
        raise ValueError(f'actions for the world model must be (n, {len(scale.low)}), got {actions.shape}')
    span = np.maximum(scale.high - scale.low, tokens.EPS)
    outside = ~(np.abs((2 * actions - scale.low - scale.high) / span) <= 1 + CELL)  # NaN is outside, too
    if outside.any():
        step, number = np.argwhere(outside)[0]
        raise ValueError(
            f'number {number + 1} of action {step + 1} is {actions[step, number]:g}, the bins of the world model go '
            f'from {scale.low[number]:g} to {scale.high[number]:g}: give an action that it was trained on'
        )
    return scale.normalize(actions)


@dataclass(frozen=True)
class WorldModel:
    """Predicts images with the network of a policy."""

    network: Network
    views: Views
    text: TextTokenizer
    robot: RobotFile
    positions: int  # most tokens of a prompt with its answer

    def next(self, images: Sequence[np.ndarray], action: np.ndarray) -> Steps[tuple[list[Tensor], float]]:
        """Return the codes (rows, columns) of the next image of every view, and their mean probability.

        images: blocks of the present images, front before wrist. action: (dims,) of [-1, 1] in the world model's scale.
        """
        device = next(self.network.parameters()).device
        found, probabilities = list[Tensor](), list[Tensor]()
        for group in [[image] for image in images] if self.robot.kind.apart else [images]:
            ids = prompt.world_prompt(self.text, group, tokens.block_ids(action, ACTION))
            sides = [codes.shape for codes in tokens.codes_of(np.concatenate(group))]
            longest = len(ids) + sum(tokens.image_length(*side) for side in sides) + 1
            check_length(longest, self.positions)
            answer, p = yield from answers.images(self.network, torch.from_numpy(ids)[None].to(device), sides)
            found += [torch.from_numpy(c).long().to(device) for c in tokens.codes_of(answer.cpu().numpy())]
            probabilities.append(p)
            yield
        return found, float(torch.cat(probabilities).mean())

    def roll_out(self, seen: Observation, actions: np.ndarray, dt: float) -> Steps[list[PredictedViews]]:
        """Return the images after each of the actions (n, dims), in units of training, which follow an observation.

        A predicted image is encoded again before the next action, as the reference does it. dt: [s] between actions.
        Raises ValueError as `check_actions`.
        """
        return self._roll_out(seen, check_actions(actions, self.robot.kind.world_action), dt)

    def _roll_out(self, seen: Observation, normalized: np.ndarray, dt: float) -> Steps[list[PredictedViews]]:
        pictures, found = [seen.images[c] for c in self.robot.cameras], list[PredictedViews]()
        for i, action in enumerate(normalized):
            codes, confidence = yield from self.next([self.views.block(p) for p in pictures], action)
            pictures = []
            for view in codes:
                pictures.append(self.views.picture(view))
                yield
            due = seen.t_ref + round((i + 1) * dt * 1e9)
            images = dict(zip(self.robot.cameras, pictures, strict=True))
            found.append(PredictedViews(seen.t_ref, due, images, confidence))
        return found


def check_length(tokens: int, positions: int) -> None:
    """Raise ValueError where a prompt and its answer are longer than the checkpoint's positions."""
    if tokens > positions:
        raise ValueError(
            f'prompt and answer have up to {tokens} tokens, the checkpoint has {positions} positions '
            '(max_position_embeddings): shorten the instruction'
        )
