"""./vla bench expert: success rate of the scripted expert."""

from functools import partial

from rich.progress import Progress, TaskID
from rich.table import Table

from vla_bringup.console import make_console
from vla_core.profile import RobotProfile
from vla_sim.rollout import EpisodeResult, success_rate


def bench_expert(tasks: tuple[str, ...], seeds: range, processes: int) -> bool:
    """Run the expert without ROS and print a table; return whether 98 % of the episodes of each task succeeded."""
    console = make_console()
    profile = RobotProfile.load('sim_panda')
    table = Table('task', 'episodes', 'success', '95 % interval (Wilson)', 'time p50', 'peak speed', 'failing seeds')
    good = True
    with Progress(console=console, transient=True) as bar:
        for task in tasks:
            job = bar.add_task(task, total=len(seeds))
            step = partial(_advance, bar, job)
            result = success_rate(profile, task, seeds, processes=processes, progress=step)
            low, high = result.interval
            times = sorted(e.duration for e in result.episodes)
            table.add_row(
                task,
                str(len(result.episodes)),
                f'{100 * result.rate:.1f} %',
                f'{100 * low:.1f} .. {100 * high:.1f} %',
                f'{times[len(times) // 2]:.1f} s',
                f'{100 * max(e.peak_speed for e in result.episodes):.0f} % of the limit',
                ', '.join(str(e.seed) for e in result.failed) or '-',
            )
            for episode in result.failed:
                console.print(f'{task}, seed {episode.seed}: {"; ".join(episode.messages) or "no message"}')
            good &= result.rate >= 0.98
    console.print(table)
    return good


def _advance(bar: Progress, job: TaskID, _: EpisodeResult) -> None:
    bar.advance(job)
