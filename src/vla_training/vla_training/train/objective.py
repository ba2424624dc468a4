"""Defines the loss of a batch of contexts: masked-token prediction of chunks, plans, images and depth.

Every context makes prompts of several modes. Each has its own block behind the same images and state (the shared
context of MM-ACT). A share of the block is masked. The loss is the cross-entropy of the masked tokens; the continuous
action head adds its absolute error.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from vla_model.network import Network
from vla_model.tokens.prompt import STEERING_POINTS, PromptBuilder
from vla_training.data.shards import DEPTH_CODES, LEVELS, LINE, Tokens
from vla_training.train.batch import Batch, Prompts
from vla_training.train.masking import Masking, Noise
from vla_training.train.prefixes import Prefixes
from vla_training.train.smoothing import smoothed_cross_entropy

# steer: a chunk along the tokens of a trace; line: along a line on the image; world: images after given actions.
MODES = ('action', 'steer', 'line', 'text', 'image', 'world', 'depth')


@dataclass
class Drawn:
    """A batch before its block is masked."""

    text: Tensor  # (B,) rows of the prompts
    views: Tensor  # (B, views, tokens) ids
    target: Tensor  # (B, n) ids of the block
    masked: Tensor  # (B, n) bool
    part: slice  # of the vocabulary: possible ids of a token of the block
    slots: dict[str, Tensor] = field(default_factory=dict)  # ids of further slots
    known: Tensor | None = None  # (B, n) bool: masked tokens with a label; None: all masked tokens
    weight: Tensor | None = None  # (B, n) relative weights of the tokens; None: all equal
    share: Tensor | None = None  # (B, 1) probability of a mask, of plans
    exact: Tensor | None = None  # (B, n) see Batch, as the next one
    exact_known: Tensor | None = None  # (B, n) bool


class Objective:
    """Draws batches from rows of `tokens`, which are all on `device`, and computes their losses."""

    def __init__(self, tokens: Tokens, masking: Masking, device: torch.device) -> None:
        config = tokens.config
        self.config, self.masking, self.device = config, masking, device
        self.noise = Noise(config, masking, device)
        self.codes = tokens.codes.to(device)
        self.state, self.action = tokens.state.to(device), tokens.action.to(device)
        self.points = tokens.points.to(device)
        self.future, self.static = tokens.future.to(device), tokens.static.to(device)
        self.exact, self.sent, self.ahead = (t.to(device) for t in (tokens.exact, tokens.sent, tokens.ahead))
        self.trace, self.depth = tokens.trace.to(device), tokens.depth.to(device)
        self.lined, self.drawn = tokens.lined.to(device), tokens.drawn.to(device)
        self.prefixes = Prefixes(self.noise, self.action)
        builder = PromptBuilder.of(config, tokens.text, device)
        named, vague = tokens.instruction.unique(), tokens.vague[tokens.vague >= 0].unique()
        used = torch.cat((named, vague)).unique()
        row_of = torch.zeros(len(tokens.texts), dtype=torch.int64)
        row_of[used] = torch.arange(len(used))
        self.instruction = row_of[tokens.instruction].to(device)
        self.vague = torch.where(tokens.vague >= 0, row_of[tokens.vague.clamp(min=0)], -1).to(device)
        self.kind = _kinds(self.instruction.cpu(), self.vague.cpu(), len(used)).to(device)
        texts = [tokens.text.decode(tokens.texts[i]) for i in used.tolist()]
        pad, length = config.vocabulary.pad, masking.plan_tokens
        self.prompts = {
            'action': Prompts([builder.action(i) for i in texts], pad, device),
            'text': Prompts([builder.plan(i, length) for i in texts], pad, device),
            'image': Prompts([builder.image(i) for i in texts], pad, device),
        }
        if config.steering:
            self.prompts['steer'] = Prompts([builder.action(i, steered=True) for i in texts], pad, device)
            self.prompts['line'] = self.prompts['action']
        if config.world:
            self.prompts['world'] = Prompts([builder.world()], pad, device)
        if config.vocabulary.depth:
            self.prompts['depth'] = Prompts([builder.depth(DEPTH_CODES)], pad, device)
        self.plan = tokens.plan.to(device)
        self.plans = self._plans(tokens, length)
        self._draw: dict[str, Callable[[Tensor, torch.Generator, Network | None], Drawn]] = {
            'action': self._action,
            'steer': self._steer,
            'line': self._line,
            'text': self._text,
            'image': self._image,
            'world': self._world,
            'depth': self._depth,
        }

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
        if mode not in self.prompts:
            raise ValueError(f'{mode} needs tokens with it: give ./vla train tokenize the --outputs of the recipe')
        rows = rows[self._labelled(mode, rows)]
        if not len(rows):
            return None
        d = self._draw[mode](rows, generator, network)
        block = torch.where(d.masked, self.config.vocabulary.mask, d.target)
        ids, valid, where = self.prompts[mode].fill(d.text, d.views, block, **d.slots)
        counted = d.masked if d.known is None else d.known
        counted = counted / counted.sum().clamp(min=1)
        weight = counted
        if d.share is not None:  # weighted by 1 / share and by the length as in LLaDA: a bound of the likelihood
            weight = d.masked / (d.share * d.target.numel())
        elif d.weight is not None:
            weight = counted * d.weight
            weight = weight / weight.sum().clamp(min=1e-9)
            if mode in CHUNKS and self.masking.discrete != 1:
                weight = weight.clone()
                weight[:, : self.config.robot.chunk_tokens] *= self.masking.discrete
        exact_weight = None
        if d.exact_known is not None:
            exact_weight = d.exact_known / d.exact_known.sum().clamp(min=1) * self.masking.continuous
        return Batch(ids, valid, where, d.part, d.target - d.part.start, weight, counted, d.exact, exact_weight)

    def loss(self, network: Network, batch: 'Batch') -> tuple[Tensor, Tensor]:
        """Return (loss, share of masked tokens whose most probable id is right).

        The values of the parts of a batch add up to those of the batch.
        """
        v = self.config.vocabulary
        regresses = batch.exact is not None and network.config.action_layers > 0
        part = slice(batch.part.start, v.size + 1) if regresses else batch.part
        logits = network(batch.ids, batch.block, part, batch.valid).float()
        error = logits.new_zeros(())
        if regresses and batch.exact is not None and batch.exact_weight is not None:
            error = ((logits[..., -1] - batch.exact).abs() * batch.exact_weight).sum()
            logits = logits[..., :-1]
        bins = batch.part.start == v.bins_offset
        if bins and self.masking.label_sigma:
            each = smoothed_cross_entropy(logits, batch.label, self.masking.label_sigma)
        else:
            each = F.cross_entropy(logits.flatten(0, 1), batch.label.flatten(), reduction='none').view_as(batch.label)
        right = ((logits.argmax(-1) == batch.label) * batch.counted).sum()
        return (each * batch.weight).sum() + error, right

    def _labelled(self, mode: str, rows: Tensor) -> Tensor:
        """Return which of the rows (B,) have a label of a mode, (B,) bool."""
        if mode == 'text':
            return self.plan[rows] >= 0
        if mode == 'image':
            return ~self.static[rows]  # a static scene has no image of later
        if mode == 'world':
            return self.ahead[rows, -1] >= 0
        if mode == 'depth':
            return self.depth[rows, 0] >= 0
        if mode == 'steer':
            return (self.trace[rows, 0, 0] >= 0) & (self.action[rows, 0, 0] >= 0)
        if mode == 'line':
            return (self.drawn[rows, 0, 0] >= 0) & (self.action[rows, 0, 0] >= 0)
        return torch.ones_like(rows, dtype=torch.bool)

    # ---- modes

    def _text(self, rows: Tensor, generator: torch.Generator, _: Network | None) -> Drawn:
        views = self.noise.views(self.codes[rows], generator)
        self.noise.state(self.state[rows], generator)  # draws the same numbers as the other modes
        target = self.plans[self.plan[rows]]
        share = self.noise.uniform((len(rows), 1), generator) * (1 - 1e-3) + 1e-3  # LLaDA
        masked = self.noise.uniform(target.shape, generator) < share
        part = slice(0, self.config.vocabulary.size)
        return Drawn(self.instruction[rows], views, target, masked, part, share=share)

    def _image(self, rows: Tensor, generator: torch.Generator, _: Network | None) -> Drawn:
        v = self.config.vocabulary
        views = self.noise.views(self.codes[rows], generator)
        self.noise.state(self.state[rows], generator)
        target = self.codes[self.future[rows], 0].long() + v.image_offset
        masked = self.noise.mask_cosine(target.shape, generator)
        return Drawn(self.instruction[rows], views, target, masked, self._images)

    def _world(self, rows: Tensor, generator: torch.Generator, _: Network | None) -> Drawn:
        v, robot, m = self.config.vocabulary, self.config.robot, self.masking
        views = self.noise.views(self.codes[rows], generator)
        after = torch.randint(1, robot.horizon + 1, (len(rows), 1), generator=generator, device=self.device)
        after = torch.where(self.noise.uniform((len(rows), 1), generator) < m.world_end, robot.horizon, after)
        actions = self._normal(self.sent[rows], v.bins).flatten(1) + v.bins_offset
        step = torch.arange(robot.chunk_tokens, device=self.device) // robot.action_dim
        actions = torch.where(step < after, actions, v.mask)
        then = self.ahead[rows].gather(1, after - 1)[:, 0]
        state = self.noise.state(self.state[then], generator, m.world_state_noise)
        target = self.codes[then].flatten(1).long()
        changed = target != self.codes[rows].flatten(1)
        masked = self.noise.mask_cosine(target.shape, generator)
        masked |= self.noise.uniform((len(rows), 1), generator) < m.world_whole
        return Drawn(
            torch.zeros_like(rows), views, target + v.image_offset, masked, self._images,
            {'state': state, 'actions': actions}, weight=1 + (m.world_changed - 1) * changed,
        )  # fmt: skip

    def _depth(self, rows: Tensor, generator: torch.Generator, _: Network | None) -> Drawn:
        v = self.config.vocabulary
        views = self.noise.views(self.codes[rows], generator)
        state = self.noise.state(self.state[rows], generator)
        target = self.depth[rows].long() + v.depth_offset
        masked = self.noise.mask_cosine(target.shape, generator)
        masked |= self.noise.uniform((len(rows), 1), generator) < self.masking.one_step
        part = slice(v.depth_offset, v.bins_offset)
        return Drawn(torch.zeros_like(rows), views, target, masked, part, {'state': state})

    def _action(self, rows: Tensor, generator: torch.Generator, network: Network | None) -> Drawn:
        text, views = self.instruction[rows], self.noise.views(self.codes[rows], generator)
        named = torch.ones_like(rows, dtype=torch.bool)
        if self.masking.vague:
            hidden = self.noise.uniform(rows.shape, generator) < self.masking.vague
            named = ~(hidden & (self.vague[rows] >= 0))
            text = torch.where(named, text, self.vague[rows])
        return self._chunk(rows, text, named, views, {}, generator, network)

    def _steer(self, rows: Tensor, generator: torch.Generator, network: Network | None) -> Drawn:
        views = self.noise.views(self.codes[rows], generator)
        text, named = self._steered_text(rows, generator)
        slots = {'trace': self._as_drawn(self.trace[rows], generator).flatten(1) + self.config.vocabulary.bins_offset}
        return self._chunk(rows, text, named, views, slots, generator, network, 'steer')

    def _line(self, rows: Tensor, generator: torch.Generator, network: Network | None) -> Drawn:
        codes = self.codes[rows].clone()
        codes[:, 0] = self.lined[rows]
        views = self.noise.views(codes, generator)
        text, named = self._steered_text(rows, generator)
        return self._chunk(rows, text, named, views, {}, generator, network)

    def _chunk(
        self, rows: Tensor, text: Tensor, named: Tensor, views: Tensor, slots: dict[str, Tensor],
        generator: torch.Generator, network: Network | None, mode: str = 'action',
    ) -> Drawn:  # fmt: skip
        """named: (B,) bool, whether the text names the objects, whose places are then learned."""
        v, m = self.config.vocabulary, self.masking
        state = self.noise.state(self.state[rows], generator)
        slots = {'state': state, **slots}
        points = torch.where(named[:, None], self.points[rows].flatten(1).long(), -1)
        action = self.action[rows].long()
        unknown = action[:, 0, :1] < 0
        masked, given = self.noise.mask_action(len(rows), generator)
        masked |= unknown
        before = action
        action = self.prefixes.perturbed(action, given, generator)
        if m.prefix_own and network is not None:
            own = (given > 0) & ~unknown & (self.noise.uniform(given.shape, generator) < m.prefix_own)
            chosen = own[:, 0].nonzero()[:, 0]
            if len(chosen):
                some = {name: value[chosen] for name, value in slots.items()}
                predicted = self._own_chunks(network, mode, text[chosen], views[chosen], some)
                action[chosen] = self.prefixes.following_own(before[chosen], predicted, given[chosen])
        chunk = action.flatten(1)
        way = self._way(rows)
        target = torch.cat((chunk, points, way), 1).clamp(min=0) + v.bins_offset
        # Grounding points and traces are always masked. Those without a label have no loss.
        behind = torch.cat((points, way), 1)
        known = torch.cat((masked & ~unknown, behind >= 0), 1)
        weight = torch.ones_like(known, dtype=torch.float32)
        weight[:, chunk.shape[1] :] = m.grounding_weight
        exact = self.exact[rows].flatten(1)
        label = exact / LEVELS * 2 - 1 + (chunk - before.flatten(1)) * 2 / (v.bins - 1)
        exact_known = masked & ~unknown & (exact >= 0)
        some_behind = torch.zeros_like(behind)
        return Drawn(
            text, views, target, torch.cat((masked, torch.ones_like(behind, dtype=torch.bool)), 1),
            slice(v.bins_offset, v.size), slots, known, weight,
            exact=torch.cat((label, some_behind), 1), exact_known=torch.cat((exact_known, some_behind.bool()), 1),
        )  # fmt: skip

    @property
    def _images(self) -> slice:
        v = self.config.vocabulary
        return slice(v.image_offset, v.image_offset + v.codes)

    def _way(self, rows: Tensor) -> Tensor:
        """Return the labels (B, 2 * trace) of the predicted trace [bins]; -1: unknown."""
        count, line = self.config.robot.trace, self.trace[rows].float()
        if not count:
            return self.trace[rows].flatten(1)[:, :0].long()
        at = torch.linspace(0, LINE - 1, count, device=self.device).expand(len(rows), -1)
        return torch.where(line[:, :1, 0] < 0, -1, _between(line, at).round().long().flatten(1))

    def _steered_text(self, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return texts (B,) beside a trace, and which of them (B,) name the objects of the label."""
        own, vague, m = self.instruction[rows], self.vague[rows], self.masking
        drawn = self.noise.uniform(rows.shape, generator)
        # Another instruction of the same task: that of a random row of the same kind.
        other = torch.randint(len(self.instruction), (16, len(rows)), generator=generator, device=self.device)
        fits = (self.kind[other] == self.kind[rows]) & (self.instruction[other] != own)
        text = self.instruction[other.gather(0, fits.long().argmax(0)[None])[0]]
        contrary = (drawn >= m.steered_vague) & (drawn < m.steered_vague + m.steered_contrary) & fits.any(0)
        hidden = (drawn < m.steered_vague) & (vague >= 0)
        return torch.where(contrary, text, torch.where(hidden, vague, own)), ~(contrary | hidden)

    def _as_drawn(self, line: Tensor, generator: torch.Generator) -> Tensor:
        """Return STEERING_POINTS points (B, n, 2) [bins] of traces (B, LINE, 2), as a person may draw them.

        Three in ten begin later. A line is straighter by a random share, and every point is some pixels off.
        """
        size, count = len(line), self.config.vocabulary.bins
        late, straight = (self.noise.uniform((size, 1), generator) for _ in range(2))
        begin = torch.where(late < 0.3, late, 0.0)
        share = torch.linspace(0, 1, STEERING_POINTS, device=self.device)
        points = _between(line.float(), (begin + (1 - begin) * share) * (LINE - 1))
        chord = points[:, :1] + (points[:, -1:] - points[:, :1]) * share[:, None]
        mixed = torch.lerp(points, chord, (straight * 1.4).clamp(max=1)[..., None])
        off = torch.randn(points.shape, generator=generator, device=self.device) * (0.008 * count)
        return (mixed + off).round().long().clamp(0, count - 1)

    @staticmethod
    def _normal(levels: Tensor, bins: int) -> Tensor:
        """Return the bins (int64) of numbers in LEVELS."""
        return (levels.float() / LEVELS * (bins - 1)).round().long()

    @torch.no_grad()
    def _own_chunks(self, network: Network, mode: str, text: Tensor, views: Tensor, slots: dict[str, Tensor]) -> Tensor:
        """Return the network's chunks (B, horizon, action_dim) [bins] for prompts without an action prefix."""
        robot, v = self.config.robot, self.config.vocabulary
        block = torch.full((len(text), robot.block_tokens), v.mask, device=self.device)
        ids, valid, where = self.prompts[mode].fill(text, views, block, **slots)
        where = slice(where.start, where.start + robot.chunk_tokens)
        p = network(ids, where, slice(v.bins_offset, v.size), valid).float().softmax(-1)
        chunks = (p.cumsum(-1) < 0.5).sum(-1).view(len(text), robot.horizon, robot.action_dim)
        if robot.gripper:
            chunks[..., -1] = p.argmax(-1).view(chunks.shape)[..., -1]
        return chunks


CHUNKS = ('action', 'steer', 'line')  # modes whose block starts with a chunk


def _between(line: Tensor, at: Tensor) -> Tensor:
    """Return points (B, n, 2) of lines (B, LINE, 2) at the places `at` (B, n) in 0..LINE - 1."""
    low = at.floor().long().clamp(max=LINE - 2)
    a, b = (line.gather(1, (low + k)[..., None].expand(-1, -1, 2)) for k in (0, 1))
    return torch.lerp(a, b, (at - low)[..., None])


def _kinds(instruction: Tensor, vague: Tensor, texts: int) -> Tensor:
    """Return the kind of task of each row (N,): instructions that share a vague sentence are of one kind.

    Rows without a vague sentence are a kind of their own each.
    """
    label = torch.arange(texts)
    pairs = torch.stack((instruction, vague), 1)[vague >= 0].unique(dim=0)
    for _ in range(texts):
        low = torch.minimum(label[pairs[:, 0]], label[pairs[:, 1]])
        new = label.clone().scatter_reduce(0, pairs.flatten(), low.repeat_interleave(2), 'amin')
        if torch.equal(new, label):
            break
        label = new
    return torch.where(vague >= 0, label[instruction], texts + torch.arange(len(instruction)))
