"""The quality gate of quantization: figures of the changes, which the checkpoint stores, and their thresholds."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vla_model.config import ModelConfig
from vla_model.image_tokenizer import ImageTokenizer
from vla_model.tokens.bins import dequantize

Figures = dict[str, float]


@dataclass(frozen=True)
class Check:
    """A prompt outside of calibration, and the actions of the demonstrator."""

    ids: Tensor  # (1, T) int64, the block masked
    block: slice
    wanted: Tensor  # (block_tokens,) bins


@dataclass(frozen=True)
class Calibration:
    prompts: tuple[Tensor, ...]  # (1, T) int64, of all request types
    tuning: tuple[Check, ...]  # of the same data as the prompts; they choose the scheme of each layer
    checks: tuple[Check, ...]
    pictures: Tensor  # (N, 3, resolution, resolution), as `preprocess` makes them
    source: str  # the data set, in words


# Name -> (lowest or highest value allowed, True for lowest). Figures are means over slots unless they say otherwise.
THRESHOLDS: dict[str, tuple[float, bool]] = {
    'logit_cosine': (0.99, True),
    'equal_bins_of_bfloat16': (0.7, True),  # share of equal bins, divided by that of bfloat16
    'action_difference_mean': (0.005, False),
    'action_difference_p99': (0.1, False),
    'error_of_exact': (1.05, False),  # mean error to the demonstrator's actions, divided by that of the original
    'image_codes_equal': (0.95, True),
}


@torch.inference_mode()
def measure(config: ModelConfig, calibration: Calibration, logits: Mapping[str, list[Tensor]]) -> dict:
    """Return the gate without images: the figures of 'bfloat16' and 'quantized' against 'exact'."""
    figures = {name: compare(config, calibration, logits['exact'], logits[name]) for name in ('bfloat16', 'quantized')}
    return {
        'checks': len(calibration.checks),
        'calibration': calibration.source,
        'exact': dict(zip(('error_mean', 'error_p99'), _errors(config, calibration, logits['exact']), strict=True)),
        **figures,
    }


def compare(config: ModelConfig, calibration: Calibration, exact: list[Tensor], other: list[Tensor]) -> Figures:
    """Return figures of two lists of logits (n, bins), one item per check.

    Actions are in robot units, without the gripper: [rad] for joints. kl: divergence of the probabilities of a slot
    [nats]. error: difference from the demonstrator's actions.
    """
    a, b = torch.cat(exact), torch.cat(other)
    difference = np.abs(_actions(config, exact) - _actions(config, other))
    mean, p99 = _errors(config, calibration, other)
    logs = a.log_softmax(-1)
    return {
        'logit_cosine': float(F.cosine_similarity(a, b, dim=-1).mean()),
        'kl': float((logs.exp() * (logs - b.log_softmax(-1))).sum(-1).mean()),
        'equal_bins': float((a.argmax(-1) == b.argmax(-1)).float().mean()),
        'action_difference_mean': float(difference.mean()),
        'action_difference_p99': float(np.percentile(difference, 99)),
        'error_mean': mean,
        'error_p99': p99,
    }


def compare_images(exact: ImageTokenizer, other: torch.nn.Module, pictures: Tensor) -> dict:
    """Return the shares of codes equal to those of `exact`: with weights in int8, and in bfloat16."""
    half = type(exact)(exact.config).to(pictures.device)
    half.load_state_dict(exact.state_dict())
    half.encoder.to(torch.bfloat16)
    quantized = low = 0.0
    with torch.inference_mode():
        for p in pictures:
            codes = exact.encode(p[None])
            quantized += float((other.encode(p[None]) == codes).float().mean())  # type: ignore[operator]
            low += float((half.quantize(half.encoder(p[None].bfloat16())) == codes).float().mean())
    return {'images': {'bfloat16': low / len(pictures), 'quantized': quantized / len(pictures)}}


def judged(gate: Mapping) -> dict[str, float]:
    """Return the figures that have a threshold."""
    q = gate['quantized']
    return {
        'logit_cosine': q['logit_cosine'],
        'equal_bins_of_bfloat16': q['equal_bins'] / max(gate['bfloat16']['equal_bins'], 1e-9),
        'action_difference_mean': q['action_difference_mean'],
        'action_difference_p99': q['action_difference_p99'],
        'error_of_exact': q['error_mean'] / max(gate['exact']['error_mean'], 1e-9),
        'image_codes_equal': gate['images']['quantized'],
    }


def judge(gate: Mapping) -> list[str]:
    """Return a sentence for each figure that misses its threshold."""
    failed = []
    for name, value in judged(gate).items():
        limit, lowest = THRESHOLDS[name]
        if not (value >= limit if lowest else value <= limit):
            failed.append(f'{name} is {value:.4g}, it must be {"at least" if lowest else "at most"} {limit:g}')
    return failed


def _actions(config: ModelConfig, logits: list[Tensor]) -> np.ndarray:
    """Return actions (checks, horizon, dims without gripper) in robot units."""
    return _values(config, torch.stack([x.argmax(-1) for x in logits]))


def _errors(config: ModelConfig, calibration: Calibration, logits: list[Tensor]) -> tuple[float, float]:
    """Return mean and 99th percentile of the difference from the demonstrator's actions."""
    wanted = _values(config, torch.stack([c.wanted for c in calibration.checks]))
    error = np.abs(_actions(config, logits) - wanted)
    return float(error.mean()), float(np.percentile(error, 99))


def _values(config: ModelConfig, indices: Tensor) -> np.ndarray:
    robot = config.robot
    chunks = indices[:, : robot.chunk_tokens].cpu().numpy().reshape(len(indices), robot.horizon, robot.action_dim)
    values = dequantize(chunks, config.vocabulary.bins)
    units = config.ranges('action').denormalize(values)
    return units[..., : robot.action_dim - robot.gripper]
