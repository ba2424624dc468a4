"""The unified VLA on a Franka arm. Beside the commands below:

./vla build   builds the workspace;   ./vla test   runs style, types and all tests;   ./vla shell   opens a shell in it.
"""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)


@app.callback()
def _commands() -> None:
    """Typer takes a single command for the whole program unless there is a callback."""


@app.command()
def demo(
    tasks: Annotated[str, typer.Option(help='Comma-separated task ids; all by default.')] = '',
    episodes_per_task: Annotated[int, typer.Option(min=1)] = 1,
    seed: Annotated[int, typer.Option(min=0, help='Of the first episode of each task.')] = 0,
    out: Annotated[Path, typer.Option(help='Folder for videos, figure, bag and summary; emptied first.')] = Path(
        'out/demo'
    ),
    real_time_factor: Annotated[float, typer.Option(min=0.0, help='0: as fast as possible.')] = 1.0,
    model: Annotated[str, typer.Option(help='random-nano, or a checkpoint folder.')] = 'random-nano',
    device: Annotated[str, typer.Option(help='Of the model: cpu, cuda.')] = 'cpu',
) -> None:
    """A simulated Franka does each task once: expert drives, policy in shadow; leaves videos, figure, bag, summary."""
    from vla_bringup.demo import run_demo
    from vla_sim.tasks import TASKS, check_task

    chosen = [t.strip() for t in tasks.split(',') if t.strip()] or list(TASKS)
    try:
        for task in chosen:
            check_task(task)
        ok = run_demo(
            chosen,
            episodes_per_task=episodes_per_task,
            seed=seed,
            out=out,
            real_time_factor=real_time_factor,
            model=model,
            device=device,
        )
    except ValueError as error:
        typer.secho(str(error), fg='red', err=True)
        ok = False
    raise typer.Exit(0 if ok else 1)


if __name__ == '__main__':
    app(prog_name='./vla')
