"""Converts sentences to goals and back. `parse_instruction` parses every phrasing of every task."""

import numpy as np

from vla_sim.assets.objects import first_word, group_of
from vla_sim.kinematics import Kinematics
from vla_sim.tasks.episode import Episode, Goal
from vla_sim.tasks.skill import Skill
from vla_sim.tasks.table import TABLE, task_of
from vla_sim.tasks.task import Task

HOME_TOOL = (0.307, 0.0)  # [m] the tool above the table in the arm's home position
NEAR = 0.03  # [m] tolerance of equal distances

_PATTERNS = {name: task.patterns() for name, task in TABLE.items()}


def parse_instruction(text: str) -> Goal:
    """Return the goal of a sentence; case, full stop and spaces are ignored. Raises ValueError when no task has it."""
    words = ' '.join(text.lower().replace('.', ' ').split())
    for name, patterns in _PATTERNS.items():
        for pattern in patterns:
            if match := pattern.fullmatch(words):
                found = match.groupdict()
                goal = TABLE[name].goal(found['object'], found.get('target', ''))
                if goal.object == goal.target:
                    raise ValueError(f'{text!r}: an object cannot be put onto itself')
                return goal
    examples = '; '.join(task.phrasings[0].format(**task.example) for task in TABLE.values())
    raise ValueError(f'no task has the instruction {text!r}; for example: {examples}')


def vague_instructions(text: str) -> tuple[str, ...]:
    """Return the sentences of the same task that name no object; () for an instruction of no task."""
    try:
        return TABLE[parse_instruction(text).task].vague
    except ValueError:
        return ()


def contrast(episode: Episode, near: float = NEAR) -> str:
    """Return an instruction for another object of the scene at the same distance; '' without such an object.

    The other object has the same distances from the tool's home and from the target, to within `near` [m]. Or the
    object is the same, and another target has the same distances from the tool's home and from the object. The phrasing
    is that of the episode.
    """
    goal, at = episode.goal, {p.name: np.array([p.x, p.y]) for p in episode.placements}

    def alike(one: str, other: str, partner: str) -> bool:
        ends = [np.array(HOME_TOOL), *([at[partner]] if partner else [])]
        return all(abs(np.linalg.norm(at[one] - end) - np.linalg.norm(at[other] - end)) <= near for end in ends)

    for name in at:
        if name in (goal.object, goal.target):
            continue
        if group_of(name) == group_of(goal.object) and alike(goal.object, name, goal.target):
            return _rephrased(episode.instruction, Goal(goal.task, name, goal.target))
        if goal.target and group_of(name) == group_of(goal.target) and alike(goal.target, name, goal.object):
            return _rephrased(episode.instruction, Goal(goal.task, goal.object, name))
    return ''


def any_instruction(episode: Episode, rng: np.random.Generator) -> str:
    """Return a random sentence of the episode's task about suitable objects of its scene."""
    goal, names = episode.goal, [p.name for p in episode.placements]
    objects = [name for name in names if group_of(name) == group_of(goal.object)]
    chosen = str(rng.choice(objects))
    targets = [name for name in names if goal.target and group_of(name) == group_of(goal.target) and name != chosen]
    words = {'object': first_word(chosen), 'target': first_word(str(rng.choice(targets))) if targets else ''}
    return str(rng.choice(TABLE[episode.task].phrasings)).format(**words)


def phrase(task: Task, which: int, goal: Goal) -> str:
    """Return the sentence for a goal in phrasing number `which`."""
    return task.phrasings[which].format(object=first_word(goal.object), target=first_word(goal.target))


def _rephrased(instruction: str, goal: Goal) -> str:
    """Return the sentence for this goal in the phrasing of `instruction`."""
    i = next(i for i, pattern in enumerate(_PATTERNS[goal.task]) if pattern.fullmatch(instruction))
    return phrase(TABLE[goal.task], i, goal)


def skill_for(task: str, instruction: str, kinematics: Kinematics, max_opening: float) -> Skill:
    """Return the skill for an instruction. Raises ValueError when the sentence is of another task.

    max_opening: of the gripper [m].
    """
    goal = parse_instruction(instruction)
    if goal.task != task:
        raise ValueError(f'the instruction {instruction!r} is one of task {goal.task}, not of {task}')
    return task_of(task).skill(goal, kinematics, max_opening)
