"""Reads the decoded action block: the chunk of either action head, grounding points and trace."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vla_model.config import ModelConfig
from vla_model.engines.base import Engine
from vla_model.network import KeyValues
from vla_model.observation import unsquared
from vla_model.tokens import bins
from vla_model.types import Trace


@dataclass(frozen=True)
class Decoded:
    """The numbers of one action block."""

    actions: np.ndarray  # (horizon, action_dim) float64, in robot units
    probability: np.ndarray  # (horizon, action_dim) of the bins
    points: np.ndarray  # see Prediction, as the two below
    trace: Trace | None
    disagreement: np.ndarray


class Regressed:
    """Takes the column of the continuous action head off the logits of an engine, and keeps its newest numbers."""

    def __init__(self, engine: Engine, size: int):
        """size: of the vocabulary."""
        self.engine, self.size = engine, size
        self.values = torch.zeros(0)  # (rows,) normalized actions

    def __call__(self, ids: Tensor, rows: slice, vocabulary: slice, cache: KeyValues | None = None) -> Tensor:
        """Return logits (1, rows, vocabulary), as `Engine`."""
        out = self.engine(ids, rows, slice(vocabulary.start, self.size + 1), cache=cache)
        self.values = out[0, :, -1].float()
        return out[..., :-1]


def read_block(
    config: ModelConfig, ranges: bins.Ranges, numbers: np.ndarray, head: str, size: tuple[int, ...]
) -> Decoded:
    """Return what the slots of an action block mean.

    ranges: of the actions. numbers: (2 or 3, block) float32: bins, their probabilities, and numbers of the continuous
    action head. head: one of config.ACTION_HEADS. size: height and width of the first view [px].
    """
    robot, count = config.robot, config.vocabulary.bins
    n, m = robot.chunk_tokens, robot.chunk_tokens + robot.point_tokens
    chunk = numbers[:, :n].reshape(len(numbers), robot.horizon, robot.action_dim)
    values = bins.dequantize(chunk[0].astype(np.int64), count)
    disagreement = np.zeros(0)
    if len(numbers) > 2:
        regressed = np.clip(chunk[2], -1, 1)
        disagreement = np.abs(values - regressed)[:, : robot.action_dim - robot.gripper].mean(1)
        values = regressed if head == 'continuous' else values
    places = (bins.dequantize(numbers[0, n:].astype(np.int64), count) + 1) / 2
    trace = None
    if robot.trace:
        height, width = size
        trace = Trace(robot.cameras[0], unsquared(places[m - n :].reshape(-1, 2), height, width), width, height)
    points = places[: m - n].reshape(len(robot.cameras), robot.points, 2)
    return Decoded(ranges.denormalize(values), chunk[1], points, trace, disagreement)
