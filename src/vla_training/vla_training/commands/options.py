"""Options that several commands of ./vla train have, and how a command is registered."""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help='Make a checkpoint for the policy node from demonstrations.')
Out = Annotated[Path, typer.Option(help='Folder to write. An interrupted run in it is continued.')]
TaskIds = Annotated[str, typer.Option(help='Comma-separated task ids. Default: all.')]
Robot = Annotated[str, typer.Option(help='Robot profile: a name of the suite, or a file.')]
Model = Annotated[
    str,
    typer.Option(
        help='Checkpoint folder, nano (the trained model of the suite), random-nano, or ws://HOST:PORT of a server. '
        'Default: nano.'
    ),
]
Checkpoint = Annotated[
    str, typer.Argument(help='Checkpoint folder, nano (the trained model of the suite), or random-nano.')
]
SIMULATED = 'sim_panda'
Minutes = Annotated[float, typer.Option(min=0.0, help='Stop and save after this time [min]. 0: at the end.')]
Device = Annotated[str, typer.Option(help='cpu or cuda.')]
TOKENS = Path('out/train/tokens')
TokenFolders = Annotated[
    list[Path] | None,
    typer.Option(
        help='Folder of tokens (./vla train tokenize). Give the option again for more folders.',
        show_default=str(TOKENS),
    ),
]


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Register a command of `app`. An error that the user can mend is printed in one line, with exit code 1."""

    @functools.wraps(function)
    def run(*args, **kwargs) -> None:
        try:
            function(*args, **kwargs)
        except (ValueError, FileNotFoundError) as error:
            typer.secho(str(error), fg='red', err=True)
            raise typer.Exit(1) from None

    return app.command()(run)


def trains() -> None:
    """Let torch's threads spin while they wait for work. Call it before torch is loaded.

    On the robot they must not (see vla_model). Training has the cores alone: a step takes 0.4 instead of 0.6 s.
    """
    os.environ.setdefault('GOMP_SPINCOUNT', '300000')


def task_ids(ids: str) -> tuple[str, ...]:
    from vla_sim.tasks import TASKS, check_task

    chosen = tuple(task.strip() for task in ids.split(',') if task.strip()) or TASKS
    for task in chosen:
        check_task(task)
    return chosen
