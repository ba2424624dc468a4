"""The tasks of the simulator: one file each; `task.py` defines their interface, `table.py` lists them."""

from vla_sim.tasks.instructions import (
    HOME_TOOL,
    NEAR,
    any_instruction,
    contrast,
    parse_instruction,
    skill_for,
    vague_instructions,
)
from vla_sim.tasks.sampling import GAP, X_RANGE, Y_RANGE, sample_episode
from vla_sim.tasks.table import STAGES, TASKS, check_task, task_of
from vla_sim.tasks.task import Task

__all__ = [
    'GAP',
    'HOME_TOOL',
    'NEAR',
    'STAGES',
    'TASKS',
    'X_RANGE',
    'Y_RANGE',
    'Task',
    'any_instruction',
    'check_task',
    'contrast',
    'parse_instruction',
    'sample_episode',
    'skill_for',
    'task_of',
    'vague_instructions',
]
