"""Prompts of RynnVLA-002 as ids: a text, blocks of states, images and actions, and the mark that ends the turn."""

from collections.abc import Sequence

import numpy as np

from vla_model.families.rynnvla.tokens import BOS, TURN_END
from vla_model.tokens.text_tokenizer import TextTokenizer

ACT = 'What action should the robot take to {task}?'
# The text of the released evaluation. The one of training differs, which the authors' evaluation does not follow.
IMAGINE = 'Generate the image based on the current image and the action.'
IMAGINE_TRAINED = (
    'Generate the next image based on the provided sequence of historical images and corresponding actions.'
)


def check_task(task: str) -> None:
    """Raise ValueError on an empty instruction."""
    if not task.strip():
        raise ValueError('the instruction is empty: say what the robot shall do')


def action_prompt(text: TextTokenizer, task: str, state: np.ndarray, images: Sequence[np.ndarray]) -> np.ndarray:
    """Ids (T,) int64 that ask for a chunk. Raises ValueError on an empty task.

    state: block of the state. images: blocks in order of time and, at one time, front before wrist.
    """
    check_task(task)
    return _prompt(text, ACT.format(task=task.strip()), [state, *images])


def world_prompt(
    text: TextTokenizer, images: Sequence[np.ndarray], action: np.ndarray, words: str = IMAGINE
) -> np.ndarray:
    """Ids (T,) int64 that ask for the next image of each view. images: blocks, front before wrist. action: block."""
    return _prompt(text, words, [*images, action])


def answer(blocks: Sequence[np.ndarray]) -> np.ndarray:
    """Ids (n,) int64 of an answer: its blocks and the mark that ends the turn."""
    return np.concatenate([*blocks, [TURN_END]]).astype(np.int64)


def _prompt(text: TextTokenizer, words: str, blocks: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([[BOS], text.encode(words), *blocks, [TURN_END]]).astype(np.int64)
