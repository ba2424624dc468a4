"""Prompts of MolmoAct as ids: BOS, pictures, then the question as one turn of a conversation."""

import numpy as np

from vla_model.families.molmoact.tokens import END, IMAGE_COLUMN, IMAGE_END, IMAGE_PATCH, IMAGE_START
from vla_model.tokens.text_tokenizer import TextTokenizer

_TASK = 'The task is {task}. '
_THINK = (
    'What is the action that the robot should take. To figure out the action that the robot should take to {task}, '
    "let's think through it step by step. "
)
REASON_ONE = _TASK + _THINK + (
    'First, what is the depth map for this image? Second, what is the trajectory of the end effector? '
    'Based on the depth map of the image and the trajectory of the end effector, '
    'what is the action that the robot should take?'
)  # fmt: skip
REASON_MANY = _TASK + _THINK + (
    'First, what is the depth map for the first image? '
    'Second, what is the trajectory of the end effector in the first image? '
    'Based on the depth map of the first image and the trajectory of the end effector in the first image, '
    'along with other images from different camera views as additional information, '
    'what is the action that the robot should take?'
)  # fmt: skip
STEER_ONE = _TASK + (
    'Notice that the trajectory of the end effector is annotated on the image. '
    'Based on the trajectory annotated on the image, what is the action that the robot should take?'
)
STEER_MANY = _TASK + (
    'Notice that the trajectory of the end effector is annotated on the first image. '
    'Based on the trajectory annotated on the image, '
    'along with other images from different camera views as additional information, '
    'what is the action that the robot should take?'
)


def question(task: str, views: int, trace: bool) -> str:
    """The question for a task. trace: one is drawn on the first image. Raises ValueError on an empty task."""
    if not task.strip():
        raise ValueError('the instruction is empty: say what the robot shall do')
    many, one = (STEER_MANY, STEER_ONE) if trace else (REASON_MANY, REASON_ONE)
    return (many if views > 1 else one).format(task=task.strip().rstrip('.'))


def prompt(text: TextTokenizer, words: str, grids: np.ndarray, numbered: bool) -> np.ndarray:
    """Ids (T,) int64. grids: of `preprocess.views`. numbered: pictures are named, as several were in training."""
    ids = [END]
    for i in range(0, len(grids), 2):
        if numbered:
            ids += text.encode(f'Image {i // 2 + 1}')
        for rows, columns in grids[i : i + 2]:
            row = [IMAGE_PATCH] * int(columns) + [IMAGE_COLUMN]
            ids += [IMAGE_START, *row * int(rows), IMAGE_END]
    return np.array(ids + text.encode(f'User: {words} Assistant:'), np.int64)
