"""Defines the loss of a batch of contexts: masked-token prediction of chunks, plans and future images.

Every context makes up to three prompts. Each has its own block behind the same instruction and images (the shared
context of MM-ACT). A share of the block is masked. The loss is the cross-entropy of the masked tokens.
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
RELATIVE = ('joint_delta', 'ee_relative')  # action spaces whose 0 is the robot's present pose
LEFT = 0.4  # share of the prefix's deviation that is left one step after it


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
    plan_tokens: int = ModelConfig.plan_tokens  # length of a plan's block; the rest is filled with EOS


class Prompts:
    """The prompts of one mode for every text of the data, aligned at their ends: ids (texts, length)."""

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
        """Return (ids (B, L), valid (B, L) or None without padding, block) of filled prompts.

        text (B,): rows of the prompts. views (B, views, tokens), state (B, state_dim) and block (B, n): ids.
        """
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
    valid: Tensor | None  # (B, L) bool; None: no padding
    block: slice  # n positions
    part: slice  # of the vocabulary: possible ids of a token of the block
    label: Tensor  # (B, n), counted from the start of `part`
    weight: Tensor  # (B, n) weights of the cross-entropies in the loss, which is their sum
    counted: Tensor  # (B, n) 0 for tokens that are not masked, else 1 / number of masked tokens of the whole batch

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, index: Tensor, zeroed: Tensor) -> 'Batch':
        """Return the prompts `index` (k,). Those that are `zeroed` (k,) bool have no weight."""
        weight, counted = (w[index] * ~zeroed[:, None] for w in (self.weight, self.counted))
        valid = None if self.valid is None else self.valid[index]
        return Batch(self.ids[index], valid, self.block, self.part, self.label[index], weight, counted)

    def parts(self, size: int, rank: int = 0, ranks: int = 1) -> Iterator['Batch']:
        """Yield pieces of at most `size` prompts (0: one piece) for process `rank`. All processes get equal pieces."""
        each = math.ceil(len(self) / ranks)
        index = torch.arange(each * ranks, device=self.ids.device)[rank * each : (rank + 1) * each]
        for some in index.split(size or each):
            yield self.rows(some.clamp(max=len(self) - 1), some >= len(self))


class Objective:
    """Draws batches from rows of `tokens`, which are all on `device`, and computes their losses."""

    def __init__(self, tokens: Tokens, masking: Masking, device: torch.device) -> None:
        config = tokens.config
        self.config, self.masking, self.device = config, masking, device
        self.codes = tokens.codes.to(device)
        self.state, self.action = tokens.state.to(device), tokens.action.to(device)
        self.points = tokens.points.to(device)
        self.future, self.static = tokens.future.to(device), tokens.static.to(device)
        if (masking.prefix_slow or masking.prefix_noise) and config.robot.action_space not in RELATIVE:
            raise ValueError(
                f'prefix_slow and prefix_noise are for actions of {RELATIVE}, not of {config.robot.action_space}: '
                'remove them'
            )
        self.rest, self.spread = self._rest_and_spread(config)
        builder = PromptBuilder.of(config, tokens.text, device)
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
        """Return the plans (texts, plan_tokens) as ids, filled up with EOS. Raises ValueError for a longer plan."""
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
        """Return disturbed and masked prompts of a mode for rows (B,). None where the rows have no label of this mode.

        All randomness is in here, so the parts of a batch add up to the whole batch on any device. network: predicts
        the prefixes of prefix_own; None leaves these out.
        """
        v = self.config.vocabulary
        if mode == 'text':
            rows = rows[self.plan[rows] >= 0]
        elif mode == 'image':
            rows = rows[~self.static[rows]]  # a static scene has no image of later
        if not len(rows):
            return None
        known: Tensor | None = None  # masked tokens with a label; None: all masked tokens
        views = self._views(self.codes[rows], generator)
        state = self._state(self.state[rows], generator)
        if mode == 'action':
            points = self.points[rows].flatten(1).long()
            action = self.action[rows].long()
            unknown = action[:, 0, :1] < 0
            masked, given = self._mask_action(len(rows), generator)
            masked |= unknown
            before = action
            action = self._perturbed(action, given, generator)
            if self.masking.prefix_own and network is not None:
                own = (given > 0) & ~unknown & (self._uniform(given.shape, generator) < self.masking.prefix_own)
                chosen = own[:, 0].nonzero()[:, 0]
                predicted = self._own_chunks(network, rows[chosen], views[chosen], state[chosen])
                action[chosen] = self._following_own(before[chosen], predicted, given[chosen])
            action = action.flatten(1)
            target = torch.cat((action, points), 1).clamp(min=0) + v.bins_offset
            # Grounding points are always masked. Those without a label have no loss.
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
        if mode == 'text':  # weighted by 1 / share and by the length as in LLaDA: a bound of the likelihood
            weight = masked / (share * target.numel())
        elif mode == 'action':
            weight = counted.clone()
            weight[:, self.config.robot.chunk_tokens :] *= self.masking.grounding_weight
            weight = weight / weight.sum().clamp(min=1e-9)
        return Batch(ids, valid, where, part, target - part.start, weight, counted)

    def loss(self, network: Network, batch: 'Batch') -> tuple[Tensor, Tensor]:
        """Return (loss, share of masked tokens whose most probable id is right).

        The values of the parts of a batch add up to those of the batch.
        """
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
        """Return the disturbed ids (B, views, tokens) of the context's images."""
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
        """Return the disturbed ids (B, state_dim) of the state."""
        v = self.config.vocabulary
        state = state.long()
        if self.masking.state_noise:
            noise = torch.randn(state.shape, generator=generator, device=self.device) * self.masking.state_noise
            state = (state + noise.round().long()).clamp(0, v.bins - 1)
        return state + v.bins_offset

    def _mask_cosine(self, shape: tuple[int, ...] | torch.Size, generator: torch.Generator) -> Tensor:
        """Return a mask (B, n) bool of round(n cos(pi t / 2)) tokens, t uniform, at least one (MaskGIT; MM-ACT 7.1)."""
        size, n = shape
        count = (n * torch.cos(math.pi / 2 * self._uniform((size, 1), generator))).round().clamp(min=1)
        rank = self._uniform((size, n), generator).argsort(1).argsort(1)
        return rank < count

    def _mask_action(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return (masked (B, n) bool, given (B, 1): length of the action prefix [step], which is not masked)."""
        robot, m = self.config.robot, self.masking
        shape = (size, robot.chunk_tokens)
        masked = self._mask_cosine(shape, generator) | (self._uniform((size, 1), generator) < m.one_step)
        given = torch.randint(1, max(2, robot.horizon // 2 + 1), (size, 1), generator=generator, device=self.device)
        given = torch.where(self._uniform((size, 1), generator) < m.prefix, given, 0)
        step = torch.arange(shape[1], device=self.device) // robot.action_dim
        masked = masked & (step >= given)
        masked[:, -1] |= ~masked.any(1)  # something must be learned from every block
        return masked, given

    def _perturbed(self, action: Tensor, given: Tensor, generator: torch.Generator) -> Tensor:
        """Return chunks (B, horizon, action_dim) [bins] with `given` (B, 1) steps that are slower and end elsewhere."""
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
    def _own_chunks(self, network: Network, rows: Tensor, views: Tensor, state: Tensor) -> Tensor:
        """Return the network's chunks (B, horizon, action_dim) [bins] for prompts without an action prefix."""
        robot, v = self.config.robot, self.config.vocabulary
        if not len(rows):
            return self.action[rows].long()
        block = torch.full((len(rows), robot.block_tokens), v.mask, device=self.device)
        ids, valid, where = self.prompts['action'].fill(self.instruction[rows], views, state, block)
        where = slice(where.start, where.start + robot.chunk_tokens)
        p = network(ids, where, slice(v.bins_offset, v.size), valid).float().softmax(-1)
        chunks = (p.cumsum(-1) < 0.5).sum(-1).view(len(rows), robot.horizon, robot.action_dim)
        if robot.gripper:
            chunks[..., -1] = p.argmax(-1).view(chunks.shape)[..., -1]
        return chunks

    def _following_own(self, action: Tensor, own: Tensor, given: Tensor) -> Tensor:
        """Return chunks (B, horizon, action_dim) [bins]: `given` (B, 1) steps of `own`, then steps that lead back."""
        last = (given - 1)[..., None].expand(-1, -1, action.shape[2])
        off = (own - action).gather(1, last).float()
        if self.config.robot.gripper:
            off[..., -1] = 0.0
        step = torch.arange(1, action.shape[1] + 1, device=self.device)
        left = (LEFT ** (step - given).clamp(min=0))[..., None]
        back = (action + left * off).round().long().clamp(0, self.config.vocabulary.bins - 1)
        return torch.where((step <= given)[..., None], own, back)

    def _rest_and_spread(self, config: ModelConfig) -> tuple[Tensor, Tensor]:
        """Return the bin of a zero action (action_dim,) and each step's RMS distance from it (horizon, action_dim)."""
        zero = config.ranges('action').normalize(np.zeros(config.robot.action_dim))
        rest = torch.tensor((zero + 1) / 2 * (config.vocabulary.bins - 1), dtype=torch.float32, device=self.device)
        action = self.action[self.action[:, 0, 0] >= 0].float()
        spread = (action - rest).square().mean(0).sqrt() if len(action) else torch.zeros_like(self.action[0]).float()
        return rest, spread


def smoothed_cross_entropy(logits: Tensor, label: Tensor, sigma: float) -> Tensor:
    """Return the cross-entropy (B, n) of logits (B, n, bins) with a Gaussian of `sigma` bins at each label (B, n)."""
    reach = math.ceil(3 * sigma)
    offset = torch.arange(-reach, reach + 1, device=logits.device)
    place = label[..., None] + offset
    inside = (place >= 0) & (place < logits.shape[-1])
    weight = torch.exp(-0.5 * (offset / sigma) ** 2) * inside
    weight = weight / weight.sum(-1, keepdim=True)
    near = logits.gather(-1, place.clamp(0, logits.shape[-1] - 1))
    return logits.logsumexp(-1) - (near * weight).sum(-1)
