"""Builds prompts of text, state, images and the block to decode, for training and inference.

    action   mm2a BOS task  state  images  dim [previous actions] [trace] EOS | soa  block  eoa
    plan     mmu  BOS task [state] images  dim                                |      block
    image    t2i  BOS task [state] images  dim                            EOS | soi  block  eoi
    world    t2i  BOS       state  images  dim  next actions              EOS | soi  block  eoi
    depth    t2i  BOS       state  images  dim  phrase                    EOS | soi  block  eoi

The last two and the trace are of this suite; released models do not have them.

Every part but the task starts with a fixed phrase. Prompts have no padding; `Template.padded` returns the padded form,
with which the released models were trained.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vla_model.tokens import prompt_texts
from vla_model.tokens.text_tokenizer import TextTokenizer
from vla_model.tokens.vocabulary import Vocabulary

if TYPE_CHECKING:
    from vla_model.config import ModelConfig

NOTHING = slice(0, 0)
STEERING_POINTS = 5  # points of the trace in a prompt


@dataclass(frozen=True)
class Template:
    """A prompt with masks in all slots."""

    ids: Tensor  # (length,) int64, on the model's device
    state: slice  # empty for a prompt without state
    views: tuple[slice, ...]
    actions: slice  # previous actions, or those whose images are to be predicted; may be empty
    block: slice  # slots that the model decodes
    left: int  # number of pads before and after the prompt in the padded form
    right: int
    pad: int
    trace: slice = field(default_factory=lambda: NOTHING)  # x and y of each point; empty without steering

    def fill(
        self,
        state: Tensor | None,
        views: Tensor,
        block: Tensor | None = None,
        actions: Tensor | None = None,
        trace: Tensor | None = None,
    ) -> Tensor:
        """Return ids (1, length) with state (dim,), views (n, tokens), actions (k,) and trace (m,) in their slots.

        block: (k,) ids of its first slots, which condition the rest; the other slots stay masked. All numbers are ids
        of the vocabulary, not bins or codes. Raises ValueError where the arguments do not match the slots.
        """
        ids = self.ids.clone()
        slots = (('state', self.state, state), ('actions', self.actions, actions), ('a trace', self.trace, trace))
        for name, slot, value in slots:
            size = slot.stop - slot.start
            if size != (0 if value is None else len(value)):
                raise ValueError(f'this prompt has {size} slots for {name}, got {0 if value is None else len(value)}')
            if value is not None:
                ids[slot] = value
        for slot, view in zip(self.views, views, strict=True):
            ids[slot] = view
        if block is not None:
            if len(block) > self.block.stop - self.block.start:
                raise ValueError(f'the block has {self.block.stop - self.block.start} slots, got {len(block)} ids')
            ids[self.block.start : self.block.start + len(block)] = block
        return ids[None]

    def padded(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return (ids, valid) of a filled prompt in the fixed length of training, (1, left + length + right) each."""
        left, right = (ids.new_full((1, n), self.pad) for n in (self.left, self.right))
        out = torch.cat((left, ids, right), 1)
        valid = torch.ones_like(out, dtype=torch.bool)
        valid[:, : self.left] = False
        valid[:, out.shape[1] - self.right :] = False
        return out, valid


@dataclass(frozen=True)
class PromptLayout:
    """The numbers that decide the slots of a prompt, and its lengths."""

    views: int
    view_tokens: int  # of one view
    state_dim: int
    action_dim: int
    horizon: int  # steps per chunk
    # Limit of the action prompt before its block, which also sets the padded lengths. Released: 910 for 7 dimensions
    # and two views (1024 with the block), 990 for 16 dimensions and three views (1120).
    max_prompt_tokens: int
    points: int = 0  # grounding points per view, see RobotInterface
    trace: int = 0  # points of the predicted trace, see RobotInterface

    @classmethod
    def of(cls, config: 'ModelConfig') -> 'PromptLayout':
        """Return the layout of a configuration's prompts."""
        robot, tokens = config.robot, config.image_tokenizer.tokens
        dims, limit = (robot.state_dim, robot.action_dim), robot.max_prompt_tokens
        return cls(len(robot.cameras), tokens, *dims, robot.horizon, limit, robot.points, robot.trace)


class PromptBuilder:
    """Builds prompts of one layout."""

    def __init__(self, text: TextTokenizer, vocabulary: Vocabulary, layout: PromptLayout, device: torch.device) -> None:
        self.text, self.vocabulary, self.device = text, vocabulary, device
        self.views, self.view_tokens = layout.views, layout.view_tokens
        self.state_dim, self.action_dim = layout.state_dim, layout.action_dim
        self.action_tokens = layout.action_dim * layout.horizon
        self.max_prompt_tokens = layout.max_prompt_tokens
        # 7 dimensions are padded to the length of 14, so that both fit into one batch of training.
        self.action_pads = self.action_tokens if layout.action_dim == 7 else 0
        self.block_tokens = self.action_tokens + 2 * (layout.views * layout.points + layout.trace)
        self.max_tokens = layout.max_prompt_tokens + 2 + self.block_tokens + self.action_pads
        # Templates are cached, as an instruction is in force for many observations.
        self.action = lru_cache(maxsize=8)(self._action)
        self.plan = lru_cache(maxsize=8)(self._plan)
        self.image = lru_cache(maxsize=8)(self._image)
        self.world = lru_cache(maxsize=8)(self._world)
        self.depth = lru_cache(maxsize=8)(self._depth)
        self._phrase = lru_cache(maxsize=None)(text.encode)

    @classmethod
    def of(cls, config: 'ModelConfig', text: TextTokenizer, device: torch.device) -> 'PromptBuilder':
        """Return the builder of a configuration's prompts, for training and inference alike."""
        return cls(text, config.vocabulary, PromptLayout.of(config), device)

    def _action(self, instruction: str, previous: int = 0, steered: bool = False) -> Template:
        """Return the action prompt, with `previous` slots for action ids. steered: with a trace to follow.

        Raises ValueError on an empty or too long instruction.
        """
        v = self.vocabulary
        ids, task, state, views = self._context(v.mm2a, instruction, state=True)
        before = trace = NOTHING
        if previous:
            before = self._slot(ids, prompt_texts.PREVIOUS_ACTIONS, v.soa, previous, v.eoa)
        if steered:
            trace = self._slot(ids, prompt_texts.TRACE, v.soa, 2 * STEERING_POINTS, v.eoa)
        ids.append(v.eos)
        self._check_room(len(ids), task, self.max_prompt_tokens)
        left = self.max_prompt_tokens - len(ids)
        block = self._slot(ids, '', v.soa, self.block_tokens, v.eoa)
        return self._template(ids, state, views, before, block, left, self.action_pads, trace)

    def _world(self) -> Template:
        """Return the prompt for the image of every view after given actions: `actions` has a chunk's slots.

        Slots of steps after which the images are wanted stay masked. The block has all views, in their order. There is
        no task: what happens depends on the actions alone.
        """
        v = self.vocabulary
        ids, _, state, views = self._context(v.t2i, None, state=True)
        actions = self._slot(ids, prompt_texts.NEXT_ACTIONS, v.soa, self.action_tokens, v.eoa)
        ids.append(v.eos)
        block = self._slot(ids, '', v.soi, self.views * self.view_tokens, v.eoi)
        return self._template(ids, state, views, actions, block, 0, 0)

    def _depth(self, tokens: int) -> Template:
        """Return the prompt for the depth codes of the first view; tokens: their number."""
        v = self.vocabulary
        ids, _, state, views = self._context(v.t2i, None, state=True)
        ids += [*self._phrase(prompt_texts.DEPTH), v.eos]
        block = self._slot(ids, '', v.soi, tokens, v.eoi)
        return self._template(ids, state, views, NOTHING, block, 0, 0)

    def _plan(self, instruction: str, length: int, state: bool = False) -> Template:
        """Return the prompt for a text of at most `length` tokens. Training fills the block with EOS, without padding.

        The released models plan without `state`.
        """
        ids, task, where, views = self._context(self.vocabulary.mmu, instruction, state)
        self._check_room(len(ids), task, self.max_tokens - 1)
        block = slice(len(ids), len(ids) + length)
        ids += [self.vocabulary.mask] * length
        return self._template(ids, where, views, NOTHING, block, 0, 0)

    def _image(self, instruction: str | None, state: bool = False) -> Template:
        """Return the prompt for the image of the head view at the end of the chunk.

        The released models have no `state` here. instruction: None for the prompt without a task, for guidance.
        """
        v = self.vocabulary
        ids, task, where, views = self._context(v.t2i, instruction, state)
        ids.append(v.eos)
        room = self.max_tokens - self.view_tokens - 2
        self._check_room(len(ids), task, room)
        left = room - len(ids)
        block = self._slot(ids, '', v.soi, self.view_tokens, v.eoi)
        return self._template(ids, where, views, NOTHING, block, left, 0)

    def _context(
        self, mode: int, instruction: str | None, state: bool
    ) -> tuple[list[int], int, slice, tuple[slice, ...]]:
        """Return the common start of all prompts, the number of task tokens, and the slots of state and views."""
        v = self.vocabulary
        if instruction is not None and not instruction.strip():
            raise ValueError('the instruction is empty: give the task of the robot')
        task = self.text.encode(instruction) if instruction is not None else []
        ids = [mode, *task] if task[:1] == [v.bos] else [mode, v.bos, *task]
        where = self._slot(ids, prompt_texts.STATE, v.sostate, self.state_dim, v.eostate) if state else NOTHING
        phrases = prompt_texts.VIEWS[self.views]
        views = tuple(self._slot(ids, phrase, v.soi, self.view_tokens, v.eoi) for phrase in phrases)
        # Released models have two marks, for 7 and for 14 dimensions.
        ids += [*self._phrase(prompt_texts.ACTION_DIM), v.dim7 if self.action_dim == 7 else v.dim14]
        return ids, len(task), where, views

    def _slot(self, ids: list[int], phrase: str, start: int, length: int, end: int) -> slice:
        """Append `phrase start masks end` to ids; return the slice of the masks."""
        ids += [*self._phrase(phrase), start]
        slot = slice(len(ids), len(ids) + length)
        ids += [self.vocabulary.mask] * length + [end]
        return slot

    def _check_room(self, length: int, task: int, limit: int) -> None:
        if length > limit:
            room = limit - (length - task)
            raise ValueError(f'the instruction has {task} tokens, there is room for {room}: shorten it')

    def _template(
        self, ids: list[int], state: slice, views: tuple[slice, ...], before: slice, block: slice, left: int,
        right: int, trace: slice = NOTHING,
    ) -> Template:  # fmt: skip
        tensor = torch.tensor(ids, device=self.device)
        return Template(tensor, state, views, before, block, left, right, self.vocabulary.pad, trace)
