"""The fixed English phrases of the prompts, word for word as in the training of the released models."""

import math
import re

STATE = 'The current states of robot is:'
HEAD_VIEW = 'The third/head view of robot is:'
WRIST_VIEW = 'The wrist view of robot is:'
LEFT_WRIST_VIEW = 'The left wrist view of robot is:'
RIGHT_WRIST_VIEW = 'The right wrist view of robot is:'
ACTION_DIM = "Robot's action dim is:"
PREVIOUS_ACTIONS = "Robot's previous actions are:"
NEXT_ACTIONS = "Robot's next actions are:"
TRACE = 'The trace of robot is:'
DEPTH = 'The depth of robot is:'
PHRASES = (STATE, HEAD_VIEW, WRIST_VIEW, LEFT_WRIST_VIEW, RIGHT_WRIST_VIEW, ACTION_DIM)

EXAMPLE = 'put it there'  # the instruction of prompts for warm-up, tracing and timing

VIEWS = {  # by number of views
    1: (HEAD_VIEW,),
    2: (HEAD_VIEW, WRIST_VIEW),
    3: (HEAD_VIEW, LEFT_WRIST_VIEW, RIGHT_WRIST_VIEW),
}


def plan(instruction: str, subtasks: list[str], finished: list[str], current: str) -> str:
    """Return the plan text of a task: all sub-tasks, the finished ones and the current one."""
    text = f'My task is {instruction}. I need to finish this task by {", ".join(subtasks)}. '
    if finished:
        text += f'Currently, I have finished {", ".join(finished)}. '
    return text + f'So now I should continue to {current}.'


_PLAN = re.compile(
    r'to finish this task by (.+?)\. (?:Currently, I have finished (.+?)\. )?So now I should continue to '
)


def progress(text: str) -> float:
    """Return the share of finished sub-tasks in a plan text, 0..1; NaN for another text."""
    found = _PLAN.search(text)
    if found is None:
        return math.nan
    subtasks = found[1].split(', ')
    finished = found[2].split(', ') if found[2] else []
    return sum(s in finished for s in subtasks) / len(subtasks)
