"""The largest step of set-points in every hold, and the page about it: docs/reference/holds.md."""

from datetime import date
from pathlib import Path

from rich.progress import Progress

from vla_bench.fuzz.holds import CASES, CONTROLLERS, Held, hold, table
from vla_bringup.console import make_console
from vla_bringup.machine import facts
from vla_core.profile import RobotProfile, profile_path

ROBOTS = ('fr3', 'sim_panda')

_HEAD = """\
# Steps of set-points in every hold, measured

Written by `./vla bench holds`. The executor moves the arm by chunks until an event; the arm is 30 ms late. There
are no physics and no DDS: the messages of the adapters are sampled every 10 ms as their controllers follow them, a
trajectory by the cubics between its points. Robots: {robots}, {runs} runs of each.

"largest step" is from one control step of 10 ms to the next. The other two are shares of the hard limits, which depend
on the position where the robot has such limits. Each value is the worst of its runs, from activation to rest.
"at rest after" counts from the status that names the hold.

An impedance controller (`crisp`) that releases its force keeps the velocity limits only: its set-points are a force,
which must end at once. Every other row keeps all limits.

"""


def bench_holds(runs: int, out: Path | None) -> bool:
    """Run each case `runs` times for each controller and robot, print the table; return whether all kept the limits."""
    console = make_console()
    jobs = [(r, k, c, s) for r in ROBOTS for k in CONTROLLERS for c in CASES for s in range(runs)]
    profiles = {robot: RobotProfile.load(profile_path(robot)) for robot in ROBOTS}
    held: list[Held] = []
    good = True
    with Progress(console=console, transient=True) as bar:
        for robot, kind, case, seed in bar.track(jobs, description='holds'):
            seen = hold(profiles[robot], kind, case, seed)
            held.append(seen)
            if not seen.within or case.hold not in seen.holds:
                good = False
                holds = ', '.join(h.name for h in seen.holds)
                console.print(
                    f'WRONG: {robot}, {kind}, {case.hold.name} ({case.about}), seed {seed}: {seen.velocity:.3f} of the '
                    f'velocity limit, {seen.acceleration:.3f} of the acceleration limit; holds: {holds}'
                )
    rows = table(held)
    print(rows)
    if out is not None:
        machine = f'- date: {date.today()}\n' + '\n'.join(f'- {k}: {v}' for k, v in facts().items())
        out.write_text(_HEAD.format(robots=' and '.join(ROBOTS), runs=runs) + rows + f'\n\n{machine}\n')
    return good
