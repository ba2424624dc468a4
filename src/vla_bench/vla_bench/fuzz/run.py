"""Drives the executor with random and adversarial streams of chunks and measures what it sends.

    python -m vla_bench.fuzz.run --chunks 10000

Set-points are taken at 1 kHz, or at 200 or 100 Hz with jittering periods, and differentiated by finite differences.
Velocity, acceleration and jerk must stay within the robot profile's limits, and set-points on the planned paths. The
velocity limit includes its fall towards the ends of the position range. With a URDF the collision monitor runs, too:
the tool keeps its speed limit, and no links touch. Exits with 1 on any violation.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from vla_bench.fuzz.stress import KINDS, Measured, stress
from vla_core.motion.chunk import Verdict
from vla_core.profile import RobotProfile


def _report(seen: Measured) -> str:
    lines = [f'{seen.chunks} chunks, {seen.samples} set-points, {seen.moving} of them moving']
    lines += [f'  {name + ", of its limit":36}{value:.4f}' for name, value in seen.multiples().items()]
    lines.append(f'  {"beyond position limits [rad]":36}{seen.position:.6f}')
    lines.append(f'  {"deviation from the path [mrad]":36}{1000 * seen.deviation:.4f}')
    if np.isfinite(seen.distance):
        lines.append(f'  {"smallest distance [mm]":36}{1000 * seen.distance:.1f}')
    for name, values, unit, unit_name in (('step', seen.steps, 1e6, 'us'), ('ingest', seen.ingests, 1e3, 'ms')):
        x = np.array(values) * unit
        p50, p99 = np.percentile(x, (50, 99))
        lines.append(f'  {f"{name} [{unit_name} of CPU]: mean, p50, p99":36}{x.mean():.2f}, {p50:.2f}, {p99:.2f}')
    lines.append('verdicts: ' + ', '.join(f'{v.name} {n}' for v, n in sorted(seen.verdicts.items())))
    lines.append('holds: ' + ', '.join(f'{h.name} {n}' for h, n in sorted(seen.holds.items())))
    lines.append('accepted, of each kind: ')
    for kind in dict.fromkeys(KINDS):
        n = {v: c for (k, v), c in seen.by_kind.items() if k == kind}
        lines.append(f'  {kind:36}{n.get(Verdict.ACCEPTED, 0)} of {sum(n.values())}')
    return '\n'.join(lines)


def main() -> int:
    robots = Path(__file__).resolve().parents[3] / 'vla_bringup' / 'config' / 'robots'
    parser = argparse.ArgumentParser(
        description='Fuzz test: the executor keeps the limits for random and adversarial chunks.'
    )
    parser.add_argument('--chunks', type=int, default=10_000, help='total number of chunks')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--robot', type=Path, nargs='+', help='robot profiles', default=sorted(robots.glob('*.yaml')))
    parser.add_argument(
        '--urdf', type=Path, help='robot description; the collision monitor runs in 3 of 4 runs of that robot'
    )
    parser.add_argument('--srdf', type=Path, help='semantic description (SRDF) of that robot')
    parser.add_argument('--packages', type=Path, nargs='*', default=[], help='folders of package:// meshes')
    options = parser.parse_args()
    if not options.robot:
        parser.error('name robot profiles with --robot')
    profiles, monitors = [RobotProfile.load(path) for path in options.robot], {}
    if options.urdf is not None:
        from vla_core.kinematics.collision_monitor import CollisionMonitor, CollisionMonitorConfig

        urdf = options.urdf.read_text()
        for profile in profiles:
            if all(f'"{name}"' in urdf for name in profile.joint_names):
                config = CollisionMonitorConfig(planes=((0.0, 0.0, 1.0, 0.0),), workspace_margin=0.01)
                srdf = options.srdf.read_text() if options.srdf else ''
                monitors[profile.name] = CollisionMonitor.from_urdf(urdf, profile, config, srdf, options.packages)
        if not monitors:
            parser.error(f'{options.urdf} has the joints of none of the robots')
    total, run, each = Measured(), 0, 100
    while total.chunks < options.chunks:
        profile, period = profiles[run % len(profiles)], (0.001, 0.001, 0.005, 0.01)[run // len(profiles) % 4]
        monitor = monitors.get(profile.name) if run // len(profiles) % 4 != 1 else None
        seen = stress(profile, min(each, options.chunks - total.chunks), options.seed + run, period, monitor)
        for violation in seen.violations:
            print(f'{profile.name}, seed {options.seed + run}, {1 / period:.0f} Hz: {violation}', flush=True)
        total.add(seen)
        run += 1
    print(_report(total))
    return 1 if total.violations else 0


if __name__ == '__main__':
    sys.exit(main())
