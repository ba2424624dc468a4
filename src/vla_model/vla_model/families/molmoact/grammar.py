"""The answers of MolmoAct as a grammar of ids: what is fixed is inserted, only the rest is decided by the network.

A tokenizer does not make ids word by word: some action words merge with the comma behind them, and the ids of one word
can begin with those of another. It does split at every space. So a choice is made among whole pieces, from a space to
the end of the separator, as the folder's own tokenizer writes them.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
import torch
from torch import Tensor

from vla_model.decode import Allowed
from vla_model.families.molmoact.answer import LARGEST, MOST_POINTS
from vla_model.families.molmoact.tokens import ACTIONS_END, BINS, DEPTH_0, DEPTHS, END
from vla_model.tokens.text_tokenizer import TextTokenizer

CODES = 100  # of a depth map
_ACT_ONE = 'the action that the robot should take is {actions}.'
_ACT_MANY = f'along with other images from different camera views as additional information, {_ACT_ONE}'
REASONED_ONE = (
    'The depth map of the image is {depth}. The trajectory of the end effector is {trace}. '
    f'Based on these information, {_ACT_ONE}'
)
REASONED_MANY = (
    'The depth map of the first image is {depth}. The trajectory of the end effector in the first image is {trace}. '
    f'Based on these information, {_ACT_MANY}'
)
STEERED = f'Based on the image and the annotated trajectory of the end effector, {_ACT_ONE}'
_PLACES = re.compile(r'\{depth\}| \{trace\}\.| \{actions\}\.')


def template(views: int, steered: bool) -> str:
    """The answer to the question of `prompt.question`."""
    return STEERED if steered else REASONED_MANY if views > 1 else REASONED_ONE


def check_template(text: str) -> None:
    """Raises ValueError where an answer cannot be written in it."""
    found = _PLACES.findall(text)
    if found.count(' {actions}.') != 1 or re.search(r'[{}]', _PLACES.sub('', text)) or not text.endswith(found[-1]):
        raise ValueError(
            "template must end with ' {actions}.' and may have '{depth}' and ' {trace}.' before it, no other braces"
        )


def action_words(text: TextTokenizer) -> dict[str, int]:
    """Bin of each action word. Raises ValueError where the tokenizer has none."""
    spelled = ((text.tokenizer.id_to_token(ACTIONS_END - n), n) for n in range(1, BINS + 1))
    words = {word: n for word, n in spelled if word}
    if len(words) != BINS:
        raise ValueError('tokenizer.json lacks action words: it is not that of a MolmoAct checkpoint')
    return words


class _Node:
    """A place in a tree of ids: what may follow."""

    def __init__(self) -> None:
        self.to: dict[int, _Node | int] = {}  # an int: the end of a piece, of the group with this number

    @cached_property
    def allowed(self) -> slice | Tensor:
        ids = sorted(self.to)
        if ids[-1] - ids[0] + 1 == len(ids):
            return slice(ids[0], ids[-1] + 1)
        return torch.tensor(ids)

    @cached_property
    def depth(self) -> int:
        """Most ids to an end."""
        return 1 + max(0 if isinstance(n, int) else n.depth for n in self.to.values())


@dataclass(frozen=True)
class _Slot:
    """One piece of the answer."""

    root: _Node
    after: tuple[int, ...]  # index of the slot that follows each group
    step: int = -1  # of the chunk, where an action is decided
    fixed: bool = False  # words of the template


class Grammar:
    """Answers of `steps` actions of `dims` numbers in a template."""

    def __init__(self, text: TextTokenizer, wording: str, steps: int, dims: int):
        check_template(wording)
        self._text, self._template, self._steps, self._dims = text, ' ' + wording, steps, dims
        self._words = list(action_words(text))
        self._trees: dict[tuple[tuple[str, ...], ...], _Node] = {}
        self._slots: list[_Slot] = []
        at = 0
        before = ''  # fixed text that is not a slot yet
        for place in _PLACES.finditer(self._template):
            before, at = before + self._template[at : place.start()], place.end()
            if place[0] == '{depth}':
                self._fixed(before + '<DEPTH_START>')
                self._codes()
                before = '<DEPTH_END>'
                continue
            if before:
                self._fixed(before)
            before = ''
            if place[0] == ' {trace}.':
                self._points()
            else:
                self._actions()
        self._add(_tree([[[END]]]))
        self.longest = sum(slot.root.depth for slot in self._slots)
        self._check()

    def allowed(self) -> Allowed:
        """Which ids may follow, for one answer of `decode.autoregressive`."""
        slot, node, seen = 0, self._slots[0].root, 0

        def follow(tokens: list[int]) -> slice | Tensor:
            nonlocal slot, node, seen
            for token in tokens[seen:]:
                slot, node = self._next(slot, node, token)
            seen = len(tokens)
            return node.allowed

        return follow

    def fixed_in(self, ids: Sequence[int]) -> np.ndarray:
        """(n,) bool: which ids of an answer are words of the template. Raises KeyError where it is no answer."""
        return np.array([slot.fixed for slot in self._slots_of(ids)])

    def steps_of(self, ids: Sequence[int]) -> np.ndarray:
        """(n,) the step of the chunk that each id of an answer belongs to; -1: none. Raises KeyError where it is no
        answer."""
        return np.array([slot.step for slot in self._slots_of(ids)])

    def write(self, bins: np.ndarray, depth: Iterable[int] = (), trace: Iterable[Iterable[int]] = ()) -> str:
        """An answer as text, with the space that it begins with. bins: (steps, dims), 1 to 256."""
        rows = ['[' + ', '.join(self._words[b - 1] for b in row) + ']' for row in np.asarray(bins).tolist()]
        return self._template.format(
            depth='<DEPTH_START>' + ''.join(f'<DEPTH_{n}>' for n in depth) + '<DEPTH_END>',
            trace='[' + ', '.join(f'[{x}, {y}]' for x, y in trace) + ']',
            actions='[' + ', '.join(rows) + ']',
        )

    def _slots_of(self, ids: Iterable[int]) -> list[_Slot]:
        slot, node, found = 0, self._slots[0].root, []
        for token in ids:
            found.append(self._slots[slot])
            slot, node = self._next(slot, node, token)
        return found

    def _next(self, slot: int, node: _Node, token: int) -> tuple[int, _Node]:
        found = node.to[token]
        if isinstance(found, _Node):
            return slot, found
        slot = self._slots[slot].after[found]
        return slot, self._slots[min(slot, len(self._slots) - 1)].root

    def _add(self, root: _Node, after: tuple[int, ...] = (), step: int = -1, fixed: bool = False) -> None:
        self._slots.append(_Slot(root, after or (len(self._slots) + 1,), step, fixed))

    def _fixed(self, text: str) -> None:
        self._add(_tree([[self._text.encode(text)]]), fixed=True)

    def _codes(self) -> None:
        root = _tree([[[DEPTH_0 + n] for n in range(DEPTHS)]])
        for _ in range(CODES):
            self._add(root)

    def _points(self) -> None:
        """One to MOST_POINTS points: after each but the last, the network decides whether there is another."""
        numbers = [str(n) for n in range(LARGEST + 1)]
        end = len(self._slots) + 2 * MOST_POINTS
        for i in range(MOST_POINTS):
            self._add(self._pieces(' [[' if i == 0 else ' [', numbers, ','))
            here = len(self._slots)
            if i + 1 < MOST_POINTS:
                self._add(self._pieces(' ', numbers, '],', ']].'), (here + 1, end))
            else:
                self._add(self._pieces(' ', numbers, ']].'), (end,))

    def _actions(self) -> None:
        for step, i in product(range(self._steps), range(self._dims)):
            opening = ' ' if i else ' [' if step else ' [['
            last = i + 1 == self._dims
            closing = ',' if not last else '],' if step + 1 < self._steps else ']].'
            self._add(self._pieces(opening, self._words, closing), step=step)

    def _pieces(self, opening: str, words: list[str], *closings: str) -> _Node:
        """Opening, one of the words, one of the closings, each of which is a group."""
        key = (opening,), tuple(words[:2]), closings
        if key not in self._trees:
            self._trees[key] = _tree([[self._text.encode(opening + w + end) for w in words] for end in closings])
        return self._trees[key]

    def _check(self) -> None:
        """Raises ValueError where the tokenizer makes other ids of an answer than of its pieces. All words are used."""
        size = self._steps * self._dims
        for first in range(0, BINS, size):
            bins = (np.arange(first, first + size) % BINS + 1).reshape(self._steps, self._dims)
            text = self.write(bins, np.arange(CODES), [[first, 9], [10, 255]])
            ids = [*self._text.encode(text), END]
            try:
                self.steps_of(ids)
            except KeyError as error:
                raise ValueError(f'tokenizer.json is not that of a MolmoAct checkpoint: {text!r} has {error}') from None
            if self._text.decode(ids) != text:
                raise ValueError(f'tokenizer.json is not that of a MolmoAct checkpoint: it does not give back {text!r}')


def _tree(groups: Sequence[Iterable[Sequence[int]]]) -> _Node:
    """Of sequences of ids, which end with the number of their group. Raises ValueError where one begins another."""
    root = _Node()
    for number, group in enumerate(groups):
        for ids in group:
            node = root
            for token in ids[:-1]:
                found = node.to.setdefault(token, _Node())
                if isinstance(found, int):
                    raise ValueError(f'tokenizer.json: the ids {list(ids)} begin with those of another word')
                node = found
            if ids[-1] in node.to:
                raise ValueError(f'tokenizer.json: the ids {list(ids)} are also those of another word')
            node.to[ids[-1]] = number
    return root
