"""What the network learns from one batch of contexts: chunks, plans and future images, by masked-token prediction.

Every context makes up to three prompts, each with its own block behind the same instruction and images (the shared
context of MM-ACT). A share of the block is masked; the loss is the cross-entropy of what was masked.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vla_model.config import ModelConfig
from vla_model.network import Network
from vla_model.tokens.prompt import PromptBuilder, Template
from vla_training.data.shards import Tokens

MODES = ('action', 'text', 'image')
RELATIVE = ('joint_delta', 'ee_relative')  # action spaces in which 0 is where the robot is
LEFT = 0.4  # share of what given steps are off by that is left a step behind them


@dataclass(frozen=True)
class Masking:
    """How blocks are masked and contexts disturbed. Shares and probabilities in 0..1."""

    one_step: float = 0.5  # of the action blocks: all masked, as one-step decoding finds them
    prefix: float = 0.3  # of the action blocks: they begin with 1 to horizon / 2 steps that are given (in-painting)
    # Of the given steps. Who only ever sees those of a demonstrator learns to go on as they do, without looking: let
    # some be slower, and end off to a side. What follows leads back, as what is sent does after a push.
    prefix_slow: float = 0.0  # share that covers a uniformly drawn part of its way only
    prefix_noise: float = 0.0  # standard deviation of where they end, in usual ways to there (RMS)
    prefix_hand: float = 0.0  # share whose hand does early what it does in the end, or (as many) not yet
    prefix_own: float = 0.0  # share that are the network's own, of a forward before: they know no more than it sees
    label_sigma: float = 4.0  # [bins] of the Gaussian over neighbouring bins that labels are smoothed with; 0: none
    state_noise: float = 2.0  # [bins] standard deviation
    code_drop: float = 0.02  # of the context's image codes: masked
    code_flip: float = 0.01  # of the context's image codes: one bit is wrong
    points_weight: float = 1.0  # of a place's token in the loss, where that of a set-point is 1
    plan_tokens: int = 112  # length of a plan's block; what the plan leaves is filled with EOS


class Prompts:
    """The prompts of one mode for every text of the data, with their ends aligned: (texts, length) ids."""

    def __init__(self, templates: list[Template], pad: int, device: torch.device) -> None:
        longest = max(len(t.ids) for t in templates)
        self.lengths = torch.tensor([len(t.ids) for t in templates], device=device)
        self.ids = torch.full((len(templates), longest), pad, device=device)
        for row, t in zip(self.ids, templates, strict=True):
            row[longest - len(t.ids) :] = t.ids
        shift = longest - self.lengths
        one = templates[0]
        behind = len(one.ids) - one.block.stop
        # Ends are aligned, so the block is at the same place in all of them.
        self.block = slice(longest - behind - (one.block.stop - one.block.start), longest - behind)
        self.state = shift + torch.tensor([t.state.start for t in templates], device=device)
        self.state_dim = one.state.stop - one.state.start
        self.views = shift[:, None] + torch.tensor([[v.start for v in t.views] for t in templates], device=device)

    def fill(self, text: Tensor, views: Tensor, state: Tensor, block: Tensor) -> tuple[Tensor, Tensor | None, slice]:
        """(ids (B, L), valid (B, L) or None where nothing is padded, block): text (B,) rows, the rest ids."""
        ids = self.ids[text]
        starts = self.views[text]
        for i in range(views.shape[1]):
            place = starts[:, i, None] + torch.arange(views.shape[2], device=ids.device)
            ids.scatter_(1, place, views[:, i])
        if self.state_dim:
            place = self.state[text][:, None] + torch.arange(self.state_dim, device=ids.device)
            ids.scatter_(1, place, state)
        ids[:, self.block] = block
        lengths = self.lengths[text]
        longest, shortest = (int(x) for x in torch.aminmax(lengths)[::-1])
        cut = ids.shape[1] - longest
        ids = ids[:, cut:]
        valid = None
        if shortest < longest:
            valid = torch.arange(longest, device=ids.device) >= longest - lengths[:, None]
        return ids, valid, slice(self.block.start - cut, self.block.stop - cut)


@dataclass(frozen=True)
class Batch:
    """Prompts of one mode with their blocks masked."""

    ids: Tensor  # (B, L)
    valid: Tensor | None  # (B, L) bool; None where nothing is padded
    block: slice  # n positions
    part: slice  # of the vocabulary: what a token of the block can be
    label: Tensor  # (B, n), counted from the start of `part`
    weight: Tensor  # (B, n) of the cross-entropies in the loss, which is their sum
    counted: Tensor  # (B, n) 0 where nothing is masked, else 1 / number of masked tokens of the whole batch

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, index: Tensor, zeroed: Tensor) -> 'Batch':
        """The prompts `index` (k,), of which those that are `zeroed` (k,) bool count nothing."""
        weight, counted = (w[index] * ~zeroed[:, None] for w in (self.weight, self.counted))
        valid = None if self.valid is None else self.valid[index]
        return Batch(self.ids[index], valid, self.block, self.part, self.label[index], weight, counted)

    def parts(self, size: int, rank: int = 0, ranks: int = 1) -> Iterator['Batch']:
        """Pieces of at most `size` prompts (0: one piece) for process `rank`, as many of the same size for all."""
        each = math.ceil(len(self) / ranks)
        index = torch.arange(each * ranks, device=self.ids.device)[rank * each : (rank + 1) * each]
        for some in index.split(size or each):
            yield self.rows(some.clamp(max=len(self) - 1), some >= len(self))


class Objective:
    """Losses of batches of rows of `tokens`, all of which lies on `device`."""

    def __init__(self, tokens: Tokens, masking: Masking, device: torch.device) -> None:
        config = tokens.config
        self.config, self.masking, self.device = config, masking, device
        self.codes = tokens.codes.to(device)
        self.state, self.action = tokens.state.to(device), tokens.action.to(device)
        self.points = tokens.points.to(device)
        self.future, self.glance = tokens.future.to(device), tokens.glance.to(device)
        if (masking.prefix_slow or masking.prefix_noise) and config.robot.action_space not in RELATIVE:
            raise ValueError(
                f'prefix_slow and prefix_noise are for actions of {RELATIVE}, not of {config.robot.action_space}: '
                'leave them out'
            )
        self.rest, self.spread = self._going(config)
        builder = prompt_builder(config, tokens, device)
        used = tokens.instruction.unique()
        row_of = torch.zeros(len(tokens.texts), dtype=torch.int64)
        row_of[used] = torch.arange(len(used))
        self.instruction = row_of[tokens.instruction].to(device)
        instructions = [tokens.text.decode(tokens.texts[i]) for i in used.tolist()]
        pad, length = config.vocabulary.pad, masking.plan_tokens
        self.prompts = {
            'action': Prompts([builder.action(i) for i in instructions], pad, device),
            'text': Prompts([builder.plan(i, length) for i in instructions], pad, device),
            'image': Prompts([builder.image(i) for i in instructions], pad, device),
        }
        self.plan = tokens.plan.to(device)
        self.plans = self._plans(tokens, length)

    def _plans(self, tokens: Tokens, length: int) -> Tensor:
        """(texts, plan_tokens) ids, filled up with EOS. Raises ValueError for a plan that does not fit."""
        out = torch.full((len(tokens.texts), length), self.config.vocabulary.eos)
        for i in tokens.plan.unique().tolist():
            if i < 0:
                continue
            ids = tokens.texts[i]
            if len(ids) >= length:
                raise ValueError(f'a plan has {len(ids)} tokens, plan_tokens is {length}: raise it')
            out[i, : len(ids)] = torch.tensor(ids)
        return out.to(self.device)

    def draw(
        self, mode: str, rows: Tensor, generator: torch.Generator, network: Network | None = None
    ) -> 'Batch | None':
        """Prompts of a mode of MODES for rows (B,), disturbed and masked. None where nothing can be learned from them.

        All randomness is in here, so parts of a batch, on whatever device, add up to what the batch is in one piece.
        network: says the steps of prefix_own; without it there are none of these.
        """
        v = self.config.vocabulary
        if mode == 'text':
            rows = rows[self.plan[rows] >= 0]
        elif mode == 'image':
            rows = rows[~self.glance[rows]]  # what comes after it, nobody saw
        if not len(rows):
            return None
        known: Tensor | None = None  # of what is masked; None: all
        views = self._views(self.codes[rows], generator)
        state = self._state(self.state[rows], generator)
        if mode == 'action':
            points = self.points[rows].flatten(1).long()
            action = self.action[rows].long()
            unknown = action[:, 0, :1] < 0
            masked, given = self._mask_action(len(rows), generator)
            masked |= unknown
            before = action
            action = self._astray(action, given, generator)
            if self.masking.prefix_own and network is not None:
                own = (given > 0) & ~unknown & (self._uniform(given.shape, generator) < self.masking.prefix_own)
                chosen = own[:, 0].nonzero()[:, 0]
                said = self._said(network, rows[chosen], views[chosen], state[chosen])
                action[chosen] = self._after_own(before[chosen], said, given[chosen])
            action = action.flatten(1)
            target = torch.cat((action, points), 1).clamp(min=0) + v.bins_offset
            # Where things are is always asked for; where nobody said, nothing is learned from it.
            known = torch.cat((masked & ~unknown, points >= 0), 1)
            masked = torch.cat((masked, torch.ones_like(points, dtype=torch.bool)), 1)
            part = slice(v.bins_offset, v.size)
        elif mode == 'image':
            target = self.codes[self.future[rows], 0].long() + v.image_offset
            masked = self._mask_cosine(target.shape, generator)
            part = slice(v.image_offset, v.image_offset + v.codes)
        else:
            target = self.plans[self.plan[rows]]
            share = self._uniform((len(rows), 1), generator) * (1 - 1e-3) + 1e-3  # LLaDA
            masked = self._uniform(target.shape, generator) < share
            part = slice(0, v.size)
        block = torch.where(masked, v.mask, target)
        ids, valid, where = self.prompts[mode].fill(self.instruction[rows], views, state, block)
        counted = masked if known is None else known
        counted = counted / counted.sum().clamp(min=1)
        weight = counted
        if mode == 'text':  # weighed by 1 / share and by the length, as LLaDA: the bound of the likelihood
            weight = masked / (share * target.numel())
        elif mode == 'action':
            weight = counted.clone()
            weight[:, self.config.robot.chunk_tokens :] *= self.masking.points_weight
            weight = weight / weight.sum().clamp(min=1e-9)
        return Batch(ids, valid, where, part, target - part.start, weight, counted)

    def loss(self, network: Network, batch: 'Batch') -> tuple[Tensor, Tensor]:
        """(loss, share of masked tokens whose most probable id is right): of a part of a batch, its part of both."""
        logits = network(batch.ids, batch.block, batch.part, batch.valid).float()
        bins = batch.part.start == self.config.vocabulary.bins_offset
        if bins and self.masking.label_sigma:
            each = smoothed_cross_entropy(logits, batch.label, self.masking.label_sigma)
        else:
            each = F.cross_entropy(logits.flatten(0, 1), batch.label.flatten(), reduction='none').view_as(batch.label)
        right = ((logits.argmax(-1) == batch.label) * batch.counted).sum()
        return (each * batch.weight).sum(), right

    def _uniform(self, shape: tuple[int, ...] | torch.Size, generator: torch.Generator) -> Tensor:
        return torch.rand(shape, generator=generator, device=self.device)

    def _views(self, codes: Tensor, generator: torch.Generator) -> Tensor:
        """(B, views, tokens) ids of the context's images, disturbed."""
        v, m = self.config.vocabulary, self.masking
        codes = codes.long()
        if m.code_flip:
            bits = self.config.image_tokenizer.z_channels
            flipped = codes ^ (1 << torch.randint(bits, codes.shape, generator=generator, device=self.device))
            codes = torch.where(self._uniform(codes.shape, generator) < m.code_flip, flipped, codes)
        ids = codes + v.image_offset
        if m.code_drop:
            ids = torch.where(self._uniform(codes.shape, generator) < m.code_drop, v.mask, ids)
        return ids

    def _state(self, state: Tensor, generator: torch.Generator) -> Tensor:
        """(B, state_dim) ids, disturbed."""
        v = self.config.vocabulary
        state = state.long()
        if self.masking.state_noise:
            noise = torch.randn(state.shape, generator=generator, device=self.device) * self.masking.state_noise
            state = (state + noise.round().long()).clamp(0, v.bins - 1)
        return state + v.bins_offset

    def _mask_cosine(self, shape: tuple[int, ...] | torch.Size, generator: torch.Generator) -> Tensor:
        """(B, n) bool: round(n cos(pi t / 2)) of them, t uniform, at least one (MaskGIT; MM-ACT 7.1)."""
        size, n = shape
        count = (n * torch.cos(math.pi / 2 * self._uniform((size, 1), generator))).round().clamp(min=1)
        rank = self._uniform((size, n), generator).argsort(1).argsort(1)
        return rank < count

    def _mask_action(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(masked (B, n) bool, given (B, 1): steps from the first on that are not)."""
        robot, m = self.config.robot, self.masking
        shape = (size, robot.chunk_tokens)
        masked = self._mask_cosine(shape, generator) | (self._uniform((size, 1), generator) < m.one_step)
        given = torch.randint(1, max(2, robot.horizon // 2 + 1), (size, 1), generator=generator, device=self.device)
        given = torch.where(self._uniform((size, 1), generator) < m.prefix, given, 0)
        step = torch.arange(shape[1], device=self.device) // robot.action_dim
        masked = masked & (step >= given)
        masked[:, -1] |= ~masked.any(1)  # something must be learned from every block
        return masked, given

    def _astray(self, action: Tensor, given: Tensor, generator: torch.Generator) -> Tensor:
        """Chunks (B, horizon, action_dim) [bins] whose `given` (B, 1) steps are slower and end elsewhere."""
        m, last = self.masking, (given - 1).clamp(min=0)
        if not (m.prefix_slow or m.prefix_noise or m.prefix_hand):
            return action
        size, horizon, _ = action.shape
        end = action.gather(1, last[..., None].expand(-1, -1, action.shape[2]))[:, 0]
        slow = self._uniform((size, 1), generator) < m.prefix_slow
        off = -self._uniform((size, 1), generator) * slow * (end - self.rest)
        off = off + m.prefix_noise * self.spread[last[:, 0]] * torch.randn(
            end.shape, generator=generator, device=self.device
        )
        if self.config.robot.gripper:
            off[:, -1] = 0.0
        step = torch.arange(1, horizon + 1, device=self.device)
        if m.prefix_hand and self.config.robot.gripper:
            drawn = self._uniform((size, 1), generator)
            now_or_end = torch.where(drawn < m.prefix_hand / 2, action[:, :1, -1], action[:, -1:, -1])
            changed = (drawn < m.prefix_hand) & (step <= given)
            action = action.clone()
            action[..., -1] = torch.where(changed, now_or_end, action[..., -1])
        share = torch.where(step <= given, step / given.clamp(min=1), LEFT ** (step - given).clamp(min=0))
        share = share * ((given > 0) & (action[:, 0, :1] >= 0))
        moved = (action + share[..., None] * off[:, None]).round().long()
        return torch.where(action < 0, action, moved.clamp(0, self.config.vocabulary.bins - 1))

    @torch.no_grad()
    def _said(self, network: Network, rows: Tensor, views: Tensor, state: Tensor) -> Tensor:
        """(B, horizon, action_dim) [bins] chunks as the policy reads them, of prompts without any given steps."""
        robot, v = self.config.robot, self.config.vocabulary
        if not len(rows):
            return self.action[rows].long()
        block = torch.full((len(rows), robot.block_tokens), v.mask, device=self.device)
        ids, valid, where = self.prompts['action'].fill(self.instruction[rows], views, state, block)
        where = slice(where.start, where.start + robot.chunk_tokens)
        p = network(ids, where, slice(v.bins_offset, v.size), valid).float().softmax(-1)
        said = (p.cumsum(-1) < 0.5).sum(-1).view(len(rows), robot.horizon, robot.action_dim)
        if robot.gripper:
            said[..., -1] = p.argmax(-1).view(said.shape)[..., -1]
        return said

    def _after_own(self, action: Tensor, said: Tensor, given: Tensor) -> Tensor:
        """Chunks (B, horizon, action_dim) [bins] that begin with `given` (B, 1) steps of `said` and lead back."""
        last = (given - 1)[..., None].expand(-1, -1, action.shape[2])
        off = (said - action).gather(1, last).float()
        if self.config.robot.gripper:
            off[..., -1] = 0.0
        step = torch.arange(1, action.shape[1] + 1, device=self.device)
        left = (LEFT ** (step - given).clamp(min=0))[..., None]
        back = (action + left * off).round().long().clamp(0, self.config.vocabulary.bins - 1)
        return torch.where((step <= given)[..., None], said, back)

    def _going(self, config: ModelConfig) -> tuple[Tensor, Tensor]:
        """[bins] what stands for 0, (action_dim,), and how far from it each step is, (horizon, action_dim), RMS."""
        zero = config.ranges('action').normalize(np.zeros(config.robot.action_dim))
        rest = torch.tensor((zero + 1) / 2 * (config.vocabulary.bins - 1), dtype=torch.float32, device=self.device)
        action = self.action[self.action[:, 0, 0] >= 0].float()
        spread = (action - rest).square().mean(0).sqrt() if len(action) else torch.zeros_like(self.action[0]).float()
        return rest, spread


def smoothed_cross_entropy(logits: Tensor, label: Tensor, sigma: float) -> Tensor:
    """Cross-entropy (B, n) of logits (B, n, bins) with a Gaussian of `sigma` bins around each label (B, n)."""
    reach = math.ceil(3 * sigma)
    offset = torch.arange(-reach, reach + 1, device=logits.device)
    place = label[..., None] + offset
    inside = (place >= 0) & (place < logits.shape[-1])
    weight = torch.exp(-0.5 * (offset / sigma) ** 2) * inside
    weight = weight / weight.sum(-1, keepdim=True)
    near = logits.gather(-1, place.clamp(0, logits.shape[-1] - 1))
    return logits.logsumexp(-1) - (near * weight).sum(-1)


def prompt_builder(config: ModelConfig, tokens: Tokens, device: torch.device) -> PromptBuilder:
    """The builder that the policy uses for this configuration."""
    robot = config.robot
    return PromptBuilder(
        tokens.text,
        config.vocabulary,
        len(robot.cameras),
        config.image_tokenizer.tokens,
        robot.state_dim,
        robot.action_dim,
        robot.horizon,
        robot.max_prompt_tokens,
        device,
        robot.points,
    )
