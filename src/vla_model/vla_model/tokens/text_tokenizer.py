"""The text tokenizer: byte-level BPE, from the tokenizer.json of a checkpoint or trained on the texts of the tasks.

`python3 -m vla_model.tokens.text_tokenizer FILE` trains the one of the nano configuration again.
"""

import sys
from itertools import product
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from vla_model.file_checks import check_file
from vla_model.tokens import prompt_texts

NANO_FILE = Path(__file__).parents[1] / 'data' / 'nano_tokenizer.json'


class TextTokenizer:
    """Encodes and decodes text by a `tokenizers` file. It adds no marks; marks in a text are encoded as plain text."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.tokenizer.encode_special_tokens = True

    @classmethod
    def load(cls, path: Path) -> 'TextTokenizer':
        """Read a tokenizer file. Raises FileNotFoundError or ValueError naming the file."""
        check_file(path, 'the tokenizer', 'a checkpoint needs the tokenizer it was trained with')
        try:
            return cls(Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises plain Exception
            raise ValueError(f'{path} is not a tokenizer file ({error}): restore the checkpoint') from None

    @property
    def size(self) -> int:
        return self.tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def train(texts: list[str], size: int) -> TextTokenizer:
    """Train a byte-level BPE of at most `size` tokens. It contains the 256 bytes, so that any text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    return TextTokenizer(tokenizer)


def task_texts() -> list[str]:
    """Return the training texts: prompt phrases, instructions and sub-tasks of table-top tasks, and plan texts."""
    colours = ['red', 'green', 'blue', 'yellow', 'orange', 'purple', 'white', 'black', 'pink', 'brown']
    things = [
        'apple',
        'banana',
        'carrot',
        'lemon',
        'orange',
        'pear',
        'tomato',
        'eggplant',
        'cucumber',
        'pepper',
        'potato',
        'strawberry',
    ]
    plans = []
    for c in colours:
        moves = [f'move above the {c} button', f'press the {c} button', f'move away from the {c} button']
        for verb in ('press', 'push', 'push down', 'hit'):
            plans.append((f'{verb} the {c} button', moves))
    for a, b in product(colours, colours):
        moves = _moves(f'{a} block', f'{b} block', f'set the {a} block onto the {b} block')
        for words in ('stack the {} block on the {} block', 'put the {} block on top of the {} block',
                      'place the {} block on the {} block', 'set the {} block onto the {} block'):  # fmt: skip
            plans.append((words.format(a, b), moves))
    for t, c in product(things, colours):
        moves = _moves(t, f'{c} bowl', f'lower the {t} into the {c} bowl')
        for words in ('put the {} in the {} bowl', 'place the {} in the {} bowl',
                      'drop the {} into the {} bowl', 'move the {} to the {} bowl'):  # fmt: skip
            plans.append((words.format(t, c), moves))
    texts = [prompt_texts.plan(task, moves, moves[:i], moves[i]) for task, moves in plans for i in range(len(moves))]
    texts += [task for task, _ in plans]
    texts += [
        'pick up, lift, turn, pull, open, close, release, retreat, from, left, right, front, behind, plate, table',
        'go to the home position',
    ]
    return texts + list(prompt_texts.PHRASES) * 50


def _moves(thing: str, place: str, put: str) -> list[str]:
    return [f'reach for the {thing}', f'grasp the {thing}', f'carry the {thing} to the {place}', put,
            f'let go of the {thing}', 'move back']  # fmt: skip


if __name__ == '__main__':
    train(task_texts(), 512).tokenizer.save(sys.argv[1])
