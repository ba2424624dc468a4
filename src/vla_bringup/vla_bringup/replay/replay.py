"""./vla replay: runs a recorded bag through a model and writes a report."""

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from vla_bringup.console import make_console
from vla_bringup.machine import facts
from vla_bringup.replay.driven import timeline
from vla_bringup.replay.feed import Feed, load_setup
from vla_bringup.replay.figures import Result
from vla_bringup.replay.live import NodeSettings, run_live
from vla_bringup.replay.measures import PredictedChunk, measure
from vla_bringup.replay.offline import ZERO, Asker, Run, parse_latency, prepare, run_offline
from vla_bringup.replay.report import (
    GROUP_TITLES,
    GROUPS,
    comparison,
    how_decided,
    shown,
    summary,
    verdict,
    warnings,
    write_report,
)
from vla_bringup.replay.session import NO_INSTRUCTION, Session
from vla_model.checkpoints.shipped import RANDOM
from vla_model.loading import LoadOptions, load
from vla_training.bag import bag_files
from vla_training.convert.bag_faults import why_nothing

OFFLINE, LIVE = 'offline', 'live'
NARROW_WITHOUT = (  # columns that a terminal has no space for
    'begins [s]',
    'error middle step',
    'chunks compared',
    'joint error mean',
    'joint error if the arm stays',
)


@dataclass(frozen=True)
class Options:
    """Options of a replay."""

    bag: Path
    model: str = RANDOM
    against: str = ''  # second model on the same bag
    robot: str = 'sim_panda'
    mode: str = OFFLINE
    out: Path = Path('out/replay')
    instruction: str = ''  # empty: the instructions in the bag
    namespace: str = ''
    rate: float = 10.0  # [Hz] most inferences per second of the bag
    real_time_factor: float = 0.0  # live; 0: wait for each chunk
    latency: str = ZERO  # offline
    plan_rate: float = 0.0  # [Hz] offline; 0: none
    imagine_rate: float = 0.0  # [Hz] same
    seconds: float = 0.0  # of the bag; 0: all
    device: str = 'cpu'
    engine: str = 'eager'
    threads: int = 0
    seed: int = 0


def run_replay(options: Options) -> bool:
    """Replay the bag and write the report; return True. Raises ValueError with the reason when there is no chunk."""
    check(options)
    console = make_console()
    runs, feed = [], None
    for model in filter(None, (options.model, options.against)):
        feed, run = replay(options, model, console)
        runs.append(run)
    assert feed is not None
    names = ['A', 'B'] if len(runs) == 2 else [runs[0].model_id]
    results = [result(run, name) for run, name in zip(runs, names, strict=True)]
    options.out.mkdir(parents=True, exist_ok=True)
    title = f'{feed.report.bag}: ' + ' against '.join(
        f'{n} = {r.model_id}' if len(runs) == 2 else r.model_id for n, r in zip(names, runs, strict=True)
    )
    write_report(options.out, results, feed.report, how(options, runs), feed.frames, title)
    print_summary(console, results, feed, options)
    return True


def check(options: Options) -> None:
    """Raise ValueError for contradictory options, before the model is loaded."""
    parse_latency(options.latency)
    if options.mode not in (OFFLINE, LIVE):
        raise ValueError(f'--mode must be {OFFLINE} or {LIVE}, got {options.mode!r}')
    if options.mode == LIVE and (options.latency != ZERO or options.plan_rate or options.imagine_rate):
        raise ValueError('--latency, --plan-rate and --imagine-rate are for --mode offline: leave them out')
    if options.mode == OFFLINE and options.real_time_factor:
        raise ValueError('--real-time-factor is for --mode live: offline runs as fast as the model goes')


def replay(options: Options, model: str, console: Console) -> tuple[Feed, Run]:
    """Run one model on the bag. Raises ValueError without a chunk."""
    setup = load_setup(options.robot, options.namespace)
    with progress(options.bag, Path(model).name, console) as advance:
        feed = Feed(options.bag, setup, seconds=options.seconds, progress=advance)
        session = Session(feed, rate=options.rate, instruction=options.instruction)
        run = Run(model, session)
        if options.mode == LIVE:
            node = NodeSettings(
                options.robot,
                options.namespace,
                model,
                options.device,
                options.engine,
                options.threads,
                options.seed,
                options.rate,
            )
            run_live(feed, run, node, options.out / 'logs', options.real_time_factor)
        else:
            how_loaded = LoadOptions(
                options.device,
                engine=options.engine,
                threads=options.threads,
                seed=options.seed,
                gripper=feed.setup.gripper,
            )
            policy = prepare(load(model, how_loaded), feed, model)
            session.remember(policy.info.history)
            run.model_id, run.trained = policy.info.model_id, policy.info.trained
            latency = parse_latency(options.latency)
            run_offline(feed, session, Asker(run, policy, latency, options.plan_rate, options.imagine_rate))
    session.end()
    if not run.cycles:
        raise ValueError(nothing(feed, run))
    return feed, run


def nothing(feed: Feed, run: Run) -> str:
    """Return the reason why there is no chunk, in one line."""
    fault = run.session.fault
    if run.failures:
        why = f'the model failed each time: {run.failures[0][1]}'
    elif fault == NO_INSTRUCTION:
        why = fault
    else:
        why = why_nothing(feed.path, feed.report, feed.setup.streams) or fault
    return f'nothing of {feed.path} could be replayed: {why}'


def result(run: Run, name: str) -> Result:
    """Return the numbers of a run with chunks."""
    profile, session = run.session.setup.profile, run.session
    arm, opening = session.arm.arrays(profile.dof), session.opening.arrays(1)
    fixed = session.instruction if session.fixed else ''
    line = timeline(session.events, arm, opening, profile.velocity, fixed)
    predicted = [
        PredictedChunk(c.t_ref + c.shift, c.at + c.shift, c.chunk.positions, c.chunk.gripper, c.chunk.dt, c.instruction)
        for c in run.cycles
    ]
    return Result(
        name, run, measure(predicted, arm, opening, line), line, predicted[0].dt, profile.joint_names, session.began
    )


def how(options: Options, runs: list[Run]) -> dict[str, str]:
    """Return the settings of the replay: name -> text."""
    pace = 'each answer waited for' if options.real_time_factor == 0 else f'{options.real_time_factor:g} x real time'
    times = {
        OFFLINE: f'offline; inference time on the clock of the bag: {options.latency}',
        LIVE: f'live, the policy node over DDS, in shadow; {pace}',
    }
    return {
        'command': shlex.join(['./vla', *sys.argv[1:]]),
        'bag': str(options.bag),
        'mode': times[options.mode],
        'rate': f'at most {options.rate:g} inferences per second of the bag',
        'models': ', '.join(f'{r.model_id}{"" if r.trained else " (random weights)"}' for r in runs),
        'engine': f'{options.engine} on {options.device}',
        **facts(),
    }


def print_summary(console: Console, results: list[Result], feed: Feed, options: Options) -> None:
    """Print the main numbers of the report."""
    numbers = [summary(r) for r in results]
    table = Table('', *(r.name for r in results), title=f'{feed.report.bag}; angles in mrad')
    for key in numbers[0]:
        values = [n.get(key) for n in numbers]
        table.add_row(escape(key), *map(shown, values))
    console.print(table)
    for r in results:
        for kind, rows in GROUPS.items():
            found = rows(r)
            if kind == 'parts' or len(found) > 1:
                console.print(group_table(found, f'{GROUP_TITLES[kind]}, {r.name}; angles in mrad'))
    console.print(how_decided(results[0]), markup=False)
    if not any(np.isfinite(r.driven.norm).any() for r in results):
        text = 'no arm is driven in this bag: the numbers of the driven part are empty'
        console.print(f'warning: {text}', style='yellow', markup=False)
    for line in warnings(feed.report.as_dict()):
        console.print(f'warning: {line}', style='yellow', markup=False)
    for r in results:
        if r.run.failures:
            failed = f'{r.name} failed {len(r.run.failures)} times: {r.run.failures[0][1]}'
            console.print(f'warning: {failed}', style='yellow', markup=False)
    if len(results) == 2:
        console.print(verdict(comparison(results), [r.name for r in results]), markup=False)
    console.print(f'the report is in {options.out / "report.html"}', markup=False)


def group_table(rows: list[dict[str, Any]], title: str) -> Table:
    """Return a table with the main columns of rows; the report has all."""
    keys = [key for key in rows[0] if key not in NARROW_WITHOUT]
    table = Table(*keys, title=title)
    for row in rows:
        table.add_row(*(escape(shown(row[key])) for key in keys))
    return table


@contextmanager
def progress(bag: Path, model: str, console: Console) -> Iterator[Callable[[int], None]]:
    """Show a progress bar; yields a function for the bytes read so far. Raises ValueError when there is no bag."""
    size = sum(f.stat().st_size for f in bag_files(bag))
    columns = (
        TextColumn('{task.description}'),
        BarColumn(),
        TextColumn('{task.percentage:.0f} %'),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        job = bar.add_task(model, total=max(size, 1))
        yield lambda read: bar.update(job, completed=read)
