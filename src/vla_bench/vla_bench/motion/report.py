"""The numbers of ./vla bench motion as tables, motion.json and figures."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.table import Table

from vla_bench.motion.contenders import contender
from vla_bench.motion.replay import TICK, Motion, replay
from vla_bench.motion.streams import SOURCES, Grid, Recording, make_stream
from vla_core.profile import RobotProfile
from vla_sim.rollout import wilson

Rows = list[dict[str, Any]]
HEAD = (
    'runs',
    'seam jerk [rad/s³]',
    'seam acceleration [rad/s²]',
    'seam speed step [rad/s]',
    'rms jerk',
    'deviation [mrad]',
    'outside [mrad]',
    'time lost [s]',
    'over velocity',
    'over acceleration',
    'over jerk',
    'refused',
)
RATIOS = (
    'seam_jerk_p50',
    'seam_jerk_p95',
    'seam_acceleration_p50',
    'seam_speed_step_p50',
    'rms_jerk',
    'deviation_mean',
)
LOOP_HEAD = ('delay', 'success', 'share', '95 %', 'time p50', 'refused')
COLOURS = {
    'inpaint': '#1b7837', 'latest': '#5aae61', 'cross_fade': '#2166ac', 'weighted': '#67a9cf',
    'temporal_ensemble': '#9970ab', 'clamp': '#d95f02', 'lerobot': '#b2182b', 'blocking': '#888888',
}  # fmt: skip
_SHOWN = ('latest', 'clamp', 'lerobot', 'blocking')  # in the figure of a switch


def summaries(rows: Rows) -> Rows:
    """Return a row for each source, delay and contender, over its recordings.

    Seams are pooled; other peaks are the largest, other numbers means; time lost is infinite where an end was not
    reached.
    """
    result = []
    for key in dict.fromkeys((r['source'], r['delay'], r['contender']) for r in rows):
        chosen = [r for r in rows if (r['source'], r['delay'], r['contender']) == key]
        row: dict[str, Any] = dict(zip(('source', 'delay', 'contender'), key, strict=True)) | {'runs': len(chosen)}
        for name in ('seam_jerk', 'seam_acceleration', 'seam_speed_step'):
            pooled = [x for r in chosen for x in r[name]]
            for p in (50, 95, 100):
                row[f'{name}_p{p}'] = float(np.percentile(pooled, p)) if pooled else math.nan
        for name in ('peak_acceleration', 'peak_jerk', 'deviation_max', 'outside'):
            row[name] = max(r[name] for r in chosen)
        for name in ('seam_rms_acceleration', 'seam_rms_jerk', 'rms_acceleration', 'rms_jerk'):
            row[name] = float(np.sqrt(np.mean([r[name] ** 2 for r in chosen])))
        for name in ('deviation_mean', 'time_lost', 'over_velocity', 'over_acceleration', 'over_jerk'):
            row[name] = float(np.mean([r[name] for r in chosen]))
        row['refused'], row['chunks'] = sum(r['refused'] for r in chosen), sum(r['chunks'] for r in chosen)
        result.append(row)
    return result


def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells of a row, in the order of HEAD. Seams: p50 / p95 / largest."""

    def seams(name: str) -> str:
        return ' / '.join(number(row[f'{name}_p{p}']) for p in (50, 95, 100))

    lost = f'{row["time_lost"]:.2f}' if math.isfinite(row['time_lost']) else 'not reached'
    return (
        str(row['runs']),
        seams('seam_jerk'),
        seams('seam_acceleration'),
        seams('seam_speed_step'),
        number(row['rms_jerk']),
        f'{1e3 * row["deviation_mean"]:.1f} (max {1e3 * row["deviation_max"]:.0f})',
        f'{1e3 * row["outside"]:.0f}',
        lost.replace('-0.00', '0.00'),
        *(f'{100 * row[f"over_{name}"]:.1f} %' for name in ('velocity', 'acceleration', 'jerk')),
        f'{row["refused"]} of {row["chunks"] + row["refused"]}',
    )


def number(value: float) -> str:
    """Return the number with two or three digits, with separated thousands."""
    if math.isnan(value):
        return '-'
    digits = max(0, 1 - math.floor(math.log10(abs(value)))) if abs(value) > 1e-9 else 0
    return f'{value:,.{min(digits, 2)}f}' if abs(value) < 100 else f'{float(f"{value:.3g}"):,.0f}'


def ratios(found: Rows) -> Rows:
    """Return the numbers of the others divided by those of `inpaint`, at each delay.

    The others have the chunks of the same model without action prefix.
    """
    result = []
    ours = {r['delay']: r for r in found if r['contender'] == 'inpaint'}
    for r in found:
        if r['source'] == 'noisy' and (mine := ours.get(r['delay'])) is not None:
            names = (
                'seam_jerk_p50',
                'seam_jerk_p95',
                'seam_acceleration_p50',
                'seam_speed_step_p50',
                'rms_jerk',
                'deviation_mean',
            )
            against = {name: r[name] / mine[name] if mine[name] > 0 else math.inf for name in names}
            result.append({'delay': r['delay'], 'contender': r['contender'], **against})
    return result


def loop_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells of a row, in the order of LOOP_HEAD."""
    low, high = wilson(row['successes'], row['episodes'])
    return (
        f'{row["delay"]:g} s',
        f'{row["successes"]} of {row["episodes"]}',
        f'{100 * row["successes"] / row["episodes"]:.0f} %',
        f'{100 * low:.0f} .. {100 * high:.0f} %',
        f'{np.median(row["durations"]):.1f} s' if row['durations'] else '-',
        f'{row["refused"]} of {row["chunks"]}',
    )


def markdown(about: Mapping[str, Any], found: Rows, loops: Rows) -> str:
    """Return the page motion.md."""
    lines = ['# Motion', '', f'`{about["command"]}`. Definitions: docs/reference/motion.md.', '']
    lines += ['## On the same chunks', '', 'Seams: p50 / p95 / largest over all switches.', '']
    for source in SOURCES:
        for delay in dict.fromkeys(r['delay'] for r in found):
            chosen = [r for r in found if (r['source'], r['delay']) == (source, delay)]
            if chosen:
                lines += [f'### {source}, delay {delay:g} s', '']
                lines += _table(('', *HEAD), [(r['contender'], *cells(r)) for r in chosen])
    compared = ratios(found)
    if compared:
        lines += [
            '## Times `inpaint`',
            '',
            'The others on `noisy`, `inpaint` on `inpainted`: above 1 `inpaint` is smaller.',
            '',
        ]
        head = ('delay', 'contender', *list(compared[0])[2:])
        lines += _table(head, [(f'{r["delay"]:g} s', r['contender'], *map(number, list(r.values())[2:]))
                               for r in compared])  # fmt: skip
    lines += ['## Closed loop', '', f'Driver: {about["closed loop"]}.', '']
    if loops:
        lines += _table(('contender', *LOOP_HEAD), [(r['contender'], *loop_cells(r)) for r in loops])
    lines += ['![by delay](delays.png)', '', '![a switch](switch.png)', '', '## Machine and versions', '']
    lines += [f'- {key}: {value}' for key, value in about['machine'].items()]
    return '\n'.join(lines) + '\n'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ['| ' + ' | '.join(head) + ' |', '|' + '---|' * len(head), *('| ' + ' | '.join(r) + ' |' for r in rows), '']


def write_report(
    folder: Path,
    about: Mapping[str, Any],
    rows: Rows,
    loops: Rows,
    profile: RobotProfile,
    recording: Recording,
    delays: Sequence[float],
) -> None:
    """Write motion.json, motion.md, delays.png and switch.png into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    found = summaries(rows)
    content = {**about, 'summary': found, 'ratios': ratios(found), 'closed_loop': loops, 'runs': rows}
    (folder / 'motion.json').write_text(json.dumps(_finite(content), indent=1) + '\n')
    (folder / 'motion.md').write_text(markdown(about, found, loops))
    _draw_delays(folder / 'delays.png', found)
    _draw_switch(folder / 'switch.png', profile, recording, delays[-1] if len(delays) == 1 else delays[2])


def print_report(console: Console, rows: Rows, loops: Rows) -> None:
    """Print the shortened tables."""
    found = summaries(rows)
    for source in SOURCES:
        table = Table('delay', 'contender', *HEAD[1:8], title=f'source: {source}')
        for r in found:
            if r['source'] == source:
                table.add_row(f'{r["delay"]:g} s', r['contender'], *cells(r)[1:8])
        console.print(table)
    if loops:
        table = Table('contender', *LOOP_HEAD, title='closed loop')
        for r in loops:
            table.add_row(r['contender'], *loop_cells(r))
        console.print(table)


def _finite(value: Any) -> Any:
    """Return the value with None in place of NaN and infinity, which JSON lacks."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _draw_delays(path: Path, found: Rows) -> None:
    """Draw seam jerk, deviation and time lost over the delay; `inpaint` on `inpainted`, the others on `noisy`."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout='constrained')
    panels = (
        ('seam_jerk_p50', 'peak jerk at a switch, median [rad/s³]', 1.0, 'log'),
        ('deviation_mean', 'path deviation, mean [mrad]', 1e3, 'log'),
        ('time_lost', 'time lost [s]', 1.0, 'linear'),
    )
    for axis, (name, label, scale, kind) in zip(axes, panels, strict=True):
        for method, colour in COLOURS.items():
            source = 'inpainted' if method == 'inpaint' else 'noisy'
            chosen = [r for r in found if r['contender'] == method and r['source'] == source and math.isfinite(r[name])]
            if chosen:
                style = '-' if method in ('inpaint', 'latest', 'cross_fade', 'weighted', 'temporal_ensemble') else '--'
                values = [scale * r[name] if kind == 'linear' else max(scale * r[name], 0.1) for r in chosen]
                axis.plot(
                    [1e3 * r['delay'] for r in chosen], values, style, marker='o', ms=4, color=colour, label=contender
                )
        axis.set(xlabel='delay [ms]', ylabel=label, yscale=kind)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_switch(path: Path, profile: RobotProfile, recording: Recording, delay: float) -> None:
    """Draw the joint with the largest jump at a switch of the noisy source: set-points, speeds, accelerations."""
    motions: dict[str, Motion] = {}
    for source, names in (('noisy', _SHOWN), ('inpainted', ('inpaint',))):
        stream = make_stream(recording, profile, source, Grid(0.1, 16), delay)
        motions |= {name: replay(contender(name, profile, TICK), stream) for name in names}
    shaken = np.diff(motions['lerobot'].positions, 2, axis=0) / TICK**2
    at = np.array([round(t / TICK) for t in motions['lerobot'].switches if t > 0.5])
    peaks = np.array([np.abs(shaken[k : k + 60]).max(axis=0) for k in at])
    switch, joint = np.unravel_index(int(peaks.argmax()), peaks.shape)
    window = slice(max(at[switch] - 300, 3), at[switch] + 400)
    figure, axes = plt.subplots(3, 1, figsize=(10, 8), sharex=True, layout='constrained')
    for name, motion in motions.items():
        q = motion.positions[:, joint]
        for axis, n in zip(axes, range(3), strict=True):
            values = np.diff(q, n)[window.start - n : window.stop - n] / TICK**n
            times = TICK * np.arange(window.start, window.start + len(values))
            axis.plot(times, values, color=COLOURS[name], lw=2 if name == 'inpaint' else 1.2, label=name)
    axes[0].set(ylabel=f'{profile.joint_names[joint]} [rad]', title=f'one switch, delay {delay:g} s')
    axes[1].set(ylabel='speed [rad/s]')
    axes[2].set(ylabel='acceleration [rad/s²]', yscale='symlog', xlabel='time [s]')
    for axis in axes:
        axis.axvline(TICK * at[switch], color='black', lw=0.8, ls=':')
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8, ncols=5)
    figure.savefig(path, dpi=110)
    plt.close(figure)
