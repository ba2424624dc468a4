"""The prompts: where text, state, images and the block to be decoded stand. One builder for training and inference."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from . import prompt_texts
from .text_tokenizer import TextTokenizer
from .vocabulary import Vocabulary


@dataclass(frozen=True)
class Template:
    """A prompt whose state, image and action slots still hold the mask."""

    ids: Tensor  # (length,) int64, on the model's device
    state: slice
    views: tuple[slice, ...]
    action: slice

    def fill(self, state: Tensor, views: Tensor, action: Tensor | None = None) -> Tensor:
        """Ids (1, length) with state (dim,), views (n, tokens) and the first action ids (k,) put into their slots.

        All are ids of the vocabulary, not bins or codes. Action slots that are not given stay masked.
        """
        ids = self.ids.clone()
        ids[self.state] = state
        for slot, view in zip(self.views, views, strict=True):
            ids[slot] = view
        if action is not None:
            ids[self.action.start : self.action.start + len(action)] = action
        return ids[None]


class PromptBuilder:
    """Builds prompts without padding: `mm2a BOS task state images dim EOS | soa masks eoa`."""

    def __init__(
        self,
        text: TextTokenizer,
        vocabulary: Vocabulary,
        views: int,
        view_tokens: int,
        state_dim: int,
        action_dim: int,
        horizon: int,
        max_prompt_tokens: int,
        device: torch.device,
    ):
        """max_prompt_tokens bounds what stands before the action block."""
        self.text, self.vocabulary, self.device = text, vocabulary, device
        self.views, self.view_tokens = views, view_tokens
        self.state_dim, self.action_tokens = state_dim, action_dim * horizon
        self.max_prompt_tokens = max_prompt_tokens
        # Released models know two marks, for 7 dimensions and for all else.
        self.dim_mark = vocabulary.dim7 if action_dim == 7 else vocabulary.dim14
        self.action = lru_cache(maxsize=8)(self._action)  # an instruction holds for many observations

    def _action(self, instruction: str) -> Template:
        """Template of the action prompt. Raises ValueError on an instruction that is empty or too long."""
        v = self.vocabulary
        if not instruction.strip():
            raise ValueError('the instruction is empty: say what the robot shall do')
        task = self.text.encode(instruction)
        ids = [v.mm2a, *task] if task[0] == v.bos else [v.mm2a, v.bos, *task]
        state = self._slot(ids, prompt_texts.STATE, v.sostate, self.state_dim, v.eostate)
        views = tuple(
            self._slot(ids, phrase, v.soi, self.view_tokens, v.eoi) for phrase in prompt_texts.VIEWS[self.views]
        )
        ids += [*self.text.encode(prompt_texts.ACTION_DIM), self.dim_mark, v.eos]
        if len(ids) > self.max_prompt_tokens:
            room = self.max_prompt_tokens - (len(ids) - len(task))
            raise ValueError(f'the instruction has {len(task)} tokens, there is room for {room}: shorten it')
        action = self._slot(ids, '', v.soa, self.action_tokens, v.eoa)
        return Template(torch.tensor(ids, device=self.device), state, views, action)

    def _slot(self, ids: list[int], phrase: str, start: int, length: int, end: int) -> slice:
        """Appends `phrase start masks end` and returns where the masks are."""
        ids += [*self.text.encode(phrase), start]
        slot = slice(len(ids), len(ids) + length)
        ids += [self.vocabulary.mask] * length + [end]
        return slot
