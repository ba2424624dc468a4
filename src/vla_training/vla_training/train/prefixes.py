"""Disturbed action prefixes, after which the following steps lead back to the demonstrated ones."""

import numpy as np
import torch
from torch import Tensor

from vla_model.config import ModelConfig
from vla_training.train.masking import Noise

RELATIVE = ('joint_delta', 'ee_relative')  # action spaces whose 0 is the robot's present pose
LEFT = 0.4  # share of the prefix's deviation that is left one step after it


class Prefixes:
    """Disturbs the first steps of chunks [bins]."""

    def __init__(self, noise: Noise, action: Tensor) -> None:
        """action: all chunks of the data (N, horizon, action_dim) [bins]; -1: unknown. Raises ValueError."""
        self.noise, self.config, self.masking, self.device = noise, noise.config, noise.masking, noise.device
        m, space = self.masking, self.config.robot.action_space
        if (m.prefix_slow or m.prefix_noise) and space not in RELATIVE:
            raise ValueError(f'prefix_slow and prefix_noise are for actions of {RELATIVE}, not of {space}: remove them')
        self.rest, self.spread = self._rest_and_spread(self.config, action)

    def perturbed(self, action: Tensor, given: Tensor, generator: torch.Generator) -> Tensor:
        """Return chunks (B, horizon, action_dim) [bins] with `given` (B, 1) steps that are slower and end elsewhere."""
        m, last = self.masking, (given - 1).clamp(min=0)
        if not (m.prefix_slow or m.prefix_noise or m.prefix_hand):
            return action
        size, horizon, _ = action.shape
        end = action.gather(1, last[..., None].expand(-1, -1, action.shape[2]))[:, 0]
        slow = self.noise.uniform((size, 1), generator) < m.prefix_slow
        off = -self.noise.uniform((size, 1), generator) * slow * (end - self.rest)
        off = off + m.prefix_noise * self.spread[last[:, 0]] * torch.randn(
            end.shape, generator=generator, device=self.device
        )
        if self.config.robot.gripper:
            off[:, -1] = 0.0
        step = torch.arange(1, horizon + 1, device=self.device)
        if m.prefix_hand and self.config.robot.gripper:
            drawn = self.noise.uniform((size, 1), generator)
            now_or_end = torch.where(drawn < m.prefix_hand / 2, action[:, :1, -1], action[:, -1:, -1])
            changed = (drawn < m.prefix_hand) & (step <= given)
            action = action.clone()
            action[..., -1] = torch.where(changed, now_or_end, action[..., -1])
        share = torch.where(step <= given, step / given.clamp(min=1), LEFT ** (step - given).clamp(min=0))
        share = share * ((given > 0) & (action[:, 0, :1] >= 0))
        moved = (action + share[..., None] * off[:, None]).round().long()
        return torch.where(action < 0, action, moved.clamp(0, self.config.vocabulary.bins - 1))

    def following_own(self, action: Tensor, own: Tensor, given: Tensor) -> Tensor:
        """Return chunks (B, horizon, action_dim) [bins]: `given` (B, 1) steps of `own`, then steps that lead back."""
        last = (given - 1)[..., None].expand(-1, -1, action.shape[2])
        off = (own - action).gather(1, last).float()
        if self.config.robot.gripper:
            off[..., -1] = 0.0
        step = torch.arange(1, action.shape[1] + 1, device=self.device)
        left = (LEFT ** (step - given).clamp(min=0))[..., None]
        back = (action + left * off).round().long().clamp(0, self.config.vocabulary.bins - 1)
        return torch.where((step <= given)[..., None], own, back)

    def _rest_and_spread(self, config: ModelConfig, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return the bin of a zero action (action_dim,) and each step's RMS distance from it (horizon, action_dim)."""
        zero = config.ranges('action').normalize(np.zeros(config.robot.action_dim))
        rest = torch.tensor((zero + 1) / 2 * (config.vocabulary.bins - 1), dtype=torch.float32, device=self.device)
        known = action[action[:, 0, 0] >= 0].float()
        spread = (known - rest).square().mean(0).sqrt() if len(known) else torch.zeros_like(action[0]).float()
        return rest, spread
