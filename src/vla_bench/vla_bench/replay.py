"""./vla bench replay: speed of decoding and aligning a bag, without a model."""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from vla_bringup.bags.synthetic import IMAGE_RATE, ROBOT, SIDE, write_bag
from vla_bringup.console import make_console
from vla_bringup.machine import facts
from vla_bringup.replay.feed import Feed, load_setup
from vla_bringup.replay.offline import run_offline
from vla_bringup.replay.session import Due, Session

WANTED = 20.0  # times real time


@dataclass(frozen=True)
class Speed:
    """Numbers of one reading of a bag."""

    kind: str
    size: float  # [MB] of the bag
    sets: int  # complete sets that were due
    cpu: float  # [s] of this process
    wall: float  # [s]
    p50: float  # [s] per message, with decoding, storing and aligning
    p99: float


def bench_replay(seconds: float) -> bool:
    """Print the table; return whether both bags are read at WANTED times real time, by CPU time on one core.

    seconds: length of the bags.
    """
    console = make_console()
    speeds = []
    for kind in ('raw', 'jpeg'):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / kind
            console.print(f'writing {seconds:g} s with two {SIDE} x {SIDE} cameras at {IMAGE_RATE} Hz, {kind} ...')
            write_bag(path, seconds, compressed=kind == 'jpeg')
            speeds.append(read_speed(path, kind))
    table = Table('images', 'bag', 'sets', 'x real time (CPU)', 'x real time (wall)', 'per message p50', 'p99')
    for s in speeds:
        table.add_row(
            s.kind,
            f'{s.size:.0f} MB',
            str(s.sets),
            f'{seconds / s.cpu:.1f}',
            f'{seconds / s.wall:.1f}',
            f'{1e3 * s.p50:.3f} ms',
            f'{1e3 * s.p99:.3f} ms',
        )
    console.print(table)
    about = facts()
    console.print(', '.join(f'{key} {about[key]}' for key in ('processor', 'Python', 'numpy', 'rosbags')), markup=False)
    good = all(seconds / s.cpu >= WANTED for s in speeds)
    console.print(f'wanted: {WANTED:g} x real time on one core: {"reached" if good else "NOT reached"}')
    return good


def read_speed(path: Path, kind: str) -> Speed:
    """Read a bag through feed, decode and alignment; count the sets that are due at 10 Hz."""
    feed = Feed(path, load_setup(ROBOT, ''))
    session, sets = Session(feed, rate=10.0, instruction='continue'), list[int]()
    moments: list[float] = []

    def ask(due: Due) -> None:
        sets.append(due.aligned.t_ref)

    def timed() -> Any:
        for entry in Feed.__iter__(feed):
            yield entry
            moments.append(time.perf_counter())

    wall, cpu = time.perf_counter(), time.process_time()
    run_offline(timed(), session, ask)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    p50, p99 = np.percentile(np.diff(moments), [50, 99])
    size = sum(f.stat().st_size for f in path.iterdir()) / 1e6
    return Speed(kind, size, len(sets), cpu, wall, float(p50), float(p99))
