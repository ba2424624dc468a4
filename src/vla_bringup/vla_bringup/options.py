"""Options that several commands of ./vla share, and the exit code of a command."""

from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer

from vla_training.commands.options import SIMULATED, Model, Robot

__all__ = ['SIMULATED', 'Device', 'Model', 'Robot', 'Tasks', 'Threads', 'exit_with', 'task_of', 'tasks_of']

Tasks = Annotated[str, typer.Option(help='Comma-separated task ids; all by default.')]
Device = Annotated[str, typer.Option(help='Torch device of the model: cpu, cuda.')]
Threads = Annotated[int, typer.Option(min=0, help='CPU threads of the model; 0: all cores but one.')]


def tasks_of(text: str) -> tuple[str, ...]:
    """Return comma-separated task ids as a tuple; all tasks if there are none. Raises ValueError for an unknown one."""
    from vla_sim.tasks import TASKS, check_task

    chosen = tuple(task.strip() for task in text.split(',') if task.strip()) or TASKS
    for task in chosen:
        check_task(task)
    return chosen


def task_of(instruction: str, tasks: str) -> tuple[str, ...]:
    """Return the task of an instruction. Raises ValueError if no task has it, or if `tasks` has other ids."""
    from vla_sim.tasks import parse_instruction

    task = parse_instruction(instruction).task
    if tasks and tasks_of(tasks) != (task,):
        raise ValueError(f'the instruction {instruction!r} is one of task {task}: leave --tasks out')
    return (task,)


def exit_with(command: Callable[[], Any]) -> NoReturn:
    """Run a command and exit: code 0 if it returns a true value, else 1.

    A ValueError or FileNotFoundError has a remedy for the user: its text is printed in red, without a traceback.
    """
    try:
        good = command()
    except (ValueError, FileNotFoundError) as error:
        typer.secho(str(error), fg='red', err=True)
        good = False
    raise typer.Exit(0 if good else 1)
