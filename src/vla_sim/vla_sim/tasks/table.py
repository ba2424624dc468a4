"""All tasks, by name. A new one is a file beside this one and a line here."""

from vla_sim.tasks.fill_bowl import FillBowl
from vla_sim.tasks.press_button import PressButton
from vla_sim.tasks.stack_block import StackBlock
from vla_sim.tasks.task import Task

TABLE: dict[str, Task] = {task.name: task for task in (PressButton(), StackBlock(), FillBowl())}
TASKS = tuple(TABLE)
STAGES = {name: task.stages for name, task in TABLE.items()}  # success follows the last one


def check_task(task: str) -> None:
    """Raise ValueError with the task ids for an unknown task."""
    if task not in TABLE:
        raise ValueError(f'unknown task {task!r}, the tasks are: {", ".join(TASKS)}')


def task_of(name: str) -> Task:
    """Return the task of this id. Raises ValueError with the task ids for an unknown one."""
    check_task(name)
    return TABLE[name]
