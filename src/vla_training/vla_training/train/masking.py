"""Random masks and disturbances of prompts, and the settings of them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vla_model.config import ModelConfig


@dataclass(frozen=True)
class Masking:
    """Settings of masks and disturbances. Shares and probabilities are in 0..1."""

    one_step: float = 0.5  # share of the action blocks that are masked completely, as in one-step decoding
    prefix: float = 0.3  # share of the action blocks with an action prefix of 1 to horizon / 2 steps (in-painting)
    # A model that sees only a demonstrator's prefixes learns to continue them without the images. So some prefixes are
    # slower, or end to one side, and the following steps lead back, as set-points do after a push.
    prefix_slow: float = 0.0  # share of the prefixes that cover a uniformly drawn part of their way only
    prefix_noise: float = 0.0  # standard deviation of the prefix's end, relative to the RMS way to that step
    prefix_hand: float = 0.0  # share whose gripper already has its last value, or (as many) still its first
    prefix_own: float = 0.0  # share of the network's own prefixes, from another forward on the same inputs
    label_sigma: float = 4.0  # [bins] of the Gaussian over neighbouring bins that smooths labels; 0: none
    state_noise: float = 2.0  # [bins] standard deviation
    code_drop: float = 0.02  # share of the context's image codes that are masked
    code_flip: float = 0.01  # share of the context's image codes with one wrong bit
    grounding_weight: float = 1.0  # weight of a grounding point's token in the loss; a set-point's has 1
    vague: float = 0.0  # share of the contexts without a trace whose instruction does not name its objects
    steered_vague: float = 0.5  # the same with a trace
    steered_contrary: float = 0.25  # share of the contexts with a trace whose instruction names other objects
    world_state_noise: float = 5.0  # [bins] of the state to which given actions lead: set-points are reached roughly
    world_whole: float = 0.3  # share of the world images that are masked completely
    world_end: float = 0.5  # share of the world images after the whole chunk; the others are after fewer steps
    world_changed: float = 3.0  # weight of an image code that differs from the present one; the others have 1
    continuous: float = 10.0  # weight of the mean absolute error of the continuous action head
    discrete: float = 1.0  # weight of a set-point's token; 0: only the continuous action head learns set-points
    plan_tokens: int = ModelConfig.plan_tokens  # length of a plan's block; the rest is filled with EOS


class Noise:
    """Draws masks and noise. All numbers depend on the generator alone."""

    def __init__(self, config: ModelConfig, masking: Masking, device: torch.device) -> None:
        self.config, self.masking, self.device = config, masking, device

    def uniform(self, shape: tuple[int, ...] | torch.Size, generator: torch.Generator) -> Tensor:
        return torch.rand(shape, generator=generator, device=self.device)

    def views(self, codes: Tensor, generator: torch.Generator) -> Tensor:
        """Return the disturbed ids (B, views, tokens) of the context's images."""
        v, m = self.config.vocabulary, self.masking
        codes = codes.long()
        if m.code_flip:
            bits = self.config.image_tokenizer.z_channels
            flipped = codes ^ (1 << torch.randint(bits, codes.shape, generator=generator, device=self.device))
            codes = torch.where(self.uniform(codes.shape, generator) < m.code_flip, flipped, codes)
        ids = codes + v.image_offset
        if m.code_drop:
            ids = torch.where(self.uniform(codes.shape, generator) < m.code_drop, v.mask, ids)
        return ids

    def state(self, state: Tensor, generator: torch.Generator, deviation: float | None = None) -> Tensor:
        """Return the disturbed ids (B, state_dim) of the state. deviation: [bins]; None: state_noise."""
        v = self.config.vocabulary
        state = state.long()
        deviation = self.masking.state_noise if deviation is None else deviation
        if deviation:
            noise = torch.randn(state.shape, generator=generator, device=self.device) * deviation
            state = (state + noise.round().long()).clamp(0, v.bins - 1)
        return state + v.bins_offset

    def mask_cosine(self, shape: tuple[int, ...] | torch.Size, generator: torch.Generator) -> Tensor:
        """Return a mask (B, n) bool of round(n cos(pi t / 2)) tokens, t uniform, at least one (MaskGIT; MM-ACT 7.1)."""
        size, n = shape
        count = (n * torch.cos(math.pi / 2 * self.uniform((size, 1), generator))).round().clamp(min=1)
        rank = self.uniform((size, n), generator).argsort(1).argsort(1)
        return rank < count

    def mask_action(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return (masked (B, n) bool, given (B, 1): length of the action prefix [step], which is not masked)."""
        robot, m = self.config.robot, self.masking
        shape = (size, robot.chunk_tokens)
        masked = self.mask_cosine(shape, generator) | (self.uniform((size, 1), generator) < m.one_step)
        given = torch.randint(1, max(2, robot.horizon // 2 + 1), (size, 1), generator=generator, device=self.device)
        given = torch.where(self.uniform((size, 1), generator) < m.prefix, given, 0)
        step = torch.arange(shape[1], device=self.device) // robot.action_dim
        masked = masked & (step >= given)
        masked[:, -1] |= ~masked.any(1)  # something must be learned from every block
        return masked, given
