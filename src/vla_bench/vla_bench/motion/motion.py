"""./vla bench motion: seams, path deviation and time lost of the executor and of simple versions of others.

All contenders get the same chunks. docs/reference/motion.md defines the measures.
"""

import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from vla_bench.motion.contenders import BASELINES, contender
from vla_bench.motion.loop import Loop, close_loop
from vla_bench.motion.replay import TICK, measure, replay
from vla_bench.motion.report import print_report, write_report
from vla_bench.motion.streams import PERIOD, SOURCES, Grid, Recording, make_stream, record
from vla_bringup.console import make_console
from vla_bringup.machine import facts
from vla_core.profile import RobotProfile
from vla_model.checkpoints.shipped import RANDOM

ROBOT = 'sim_panda'
DELAYS = (0.0, 0.1, 0.2, 0.4)  # [s]
GRIDS = (Grid(0.05, 16), Grid(0.1, 8), Grid(0.1, 16), Grid(0.2, 8))  # of the recordings in turn
SPARE = 0.2  # [s] by which a chunk must outlast the receipt of the next one
# Contenders of each source: only a chunk with the action prefix can be continued.
BLENDED = ('latest', 'cross_fade', 'weighted', 'temporal_ensemble')
CONTENDERS = {
    'expert': (*BLENDED, *BASELINES),
    'noisy': (*BLENDED, *BASELINES),
    'inpainted': ('inpaint', *BASELINES),
}


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    out: Path
    tasks: tuple[str, ...]
    episodes: int = 2  # recorded per task
    seed: int = 2_000_000  # of the first
    loops: int = 10  # closed-loop episodes per task, delay and contender; 0: none
    model: str = RANDOM  # random-nano, a checkpoint folder, or expert: the scripted one with a model's errors
    device: str = 'cpu'
    quick: bool = False  # a few seconds, one delay

    @property
    def delays(self) -> tuple[float, ...]:
        return DELAYS[2:3] if self.quick else DELAYS


def bench_motion(options: Options) -> bool:
    """Run all parts, write motion.json, motion.md and figures, print the tables.

    Raises ValueError or FileNotFoundError for wrong options.
    """
    console = make_console()
    profile = RobotProfile.load(ROBOT)
    loop = Loop.make(options.model, options.device, profile) if options.loops else None
    recordings = _record(options, profile, console)
    rows = _replay(options, profile, recordings, console)
    loops: list[dict[str, Any]] = []
    if loop is not None:
        loops = close_loop(loop, profile, options.tasks, options.delays, options.loops, options.seed, console)
    about = {
        'command': shlex.join(['./vla', *sys.argv[1:]]),
        'robot': profile.name,
        'tasks': list(options.tasks),
        'episodes': options.episodes,
        'seed': options.seed,
        'delays [s]': list(options.delays),
        'grids': [str(grid) for grid in GRIDS],
        'closed loop': _driver(options, loop),
        'machine': facts(),
    }
    write_report(options.out, about, rows, loops, profile, recordings[0], options.delays)
    print_report(console, rows, loops)
    console.print(f'{options.out}/motion.md, motion.json and figures are ready')
    return True


def _driver(options: Options, loop: Loop | None) -> str:
    if loop is not None:
        return loop.name
    return 'not asked for' if options.loops == 0 else 'not run, as there is no trained model here (random-nano is none)'


def _record(options: Options, profile: RobotProfile, console: Console) -> list[Recording]:
    jobs = [(task, options.seed + i) for i in range(options.episodes) for task in options.tasks]
    if options.quick:
        return [record(profile, *jobs[0], time_limit=2.0)]
    with Progress(console=console, transient=True) as bar:
        return [record(profile, *job) for job in bar.track(jobs, description='episodes of the expert')]


def _replay(
    options: Options, profile: RobotProfile, recordings: list[Recording], console: Console
) -> list[dict[str, Any]]:
    """Return a row with measures for each recording, source, delay and contender."""
    jobs = []
    for i, recording in enumerate(recordings):
        grid = GRIDS[(i + 2) % len(GRIDS)]
        for delay in options.delays:
            if grid.dt * grid.horizon >= delay + max(PERIOD, delay) + SPARE - 1e-9:
                jobs += [(recording, grid, source, delay, name) for source in SOURCES for name in CONTENDERS[source]]
    rows = []
    with Progress(console=console, transient=True) as bar:
        for recording, grid, source, delay, name in bar.track(jobs, description='replays'):
            stream = make_stream(recording, profile, source, grid, delay)
            runner = contender(name, profile, TICK)
            result = measure(replay(runner, stream), profile, runner.interpolation)
            about = {'source': source, 'delay': delay, 'contender': name, 'grid': str(grid)}
            rows.append({**about, 'task': recording.task, 'seed': recording.seed, **asdict(result)})
    return rows
