"""Writes records of episodes as tables, results.json and figures."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from rich.console import Console
from rich.table import Table

from vla_sim.tasks import STAGES
from vla_training.evaluate.records import CONTRAST, HELD_OUT, Record, Share
from vla_training.evaluate.steering import WAYS

Rows = list[tuple[str, ...]]  # a share with its 95 % interval: 93.0 % (86.3 .. 96.6)
STEERED_HEAD = ('task', 'guided by', 'success', 'wrong object')
SUCCESS_HEAD = ('task', 'episodes', 'success', 'wrong object', 'time p50', 'jump p50 / p95', 'chunks refused')
CONTRAST_HEAD = ('task', 'scenes', 'success', 'right in both', 'wrong object')
GREEN, ORANGE = '#2e7d4f', '#d95f02'
CLIP = 100.0  # [mrad] larger jumps are drawn in the last bar


def success_rows(records: list[Record]) -> Rows:
    """Return the rows of the table SUCCESS_HEAD."""
    rows: Rows = []
    for task, chosen in _by_task(records, HELD_OUT).items():
        times = [r.duration for r in chosen if r.success]
        seams = 1e3 * np.array([s for r in chosen for s in r.seams])
        refused, chunks = sum(r.refused for r in chosen), sum(r.chunks for r in chosen)
        rows.append((
            task,
            str(len(chosen)),
            str(Share.successes(chosen)),
            str(Share.mistakes(chosen)),
            f'{np.median(times):.1f} s' if times else '-',
            f'{np.median(seams):.1f} / {np.percentile(seams, 95):.1f} mrad' if len(seams) else '-',
            f'{refused} of {chunks}',
        ))  # fmt: skip
    return rows


def contrast_rows(records: list[Record]) -> Rows:
    """Return the rows of the table CONTRAST_HEAD. A scene counts when it has both of its episodes."""
    rows: Rows = []
    for task, chosen in _by_task(records, CONTRAST).items():
        scenes: dict[int, list[Record]] = {}
        for r in chosen:
            scenes.setdefault(r.seed, []).append(r)
        pairs = [pair for pair in scenes.values() if len(pair) == 2]
        both = [r for pair in pairs for r in pair]
        if both:
            right = sum(all(r.success for r in pair) for pair in pairs)
            rows.append((task, str(len(pairs)), str(Share.successes(both)), str(Share(right, len(pairs))),
                         str(Share.mistakes(both))))  # fmt: skip
    return rows


def steered_rows(records: list[Record]) -> Rows:
    """Return (task, way, success, wrong object) for each task and each way of steering.py that was driven."""
    return [
        (task, way, str(Share.successes(chosen)), str(Share.mistakes(chosen)))
        for way in WAYS
        for task, chosen in _by_task(records, way).items()
        if chosen
    ]


def failure_rows(records: list[Record]) -> Rows:
    """Return (task, reason, episodes) for every reason of a failure."""
    return [
        (task, reason, str(count))
        for task, chosen in _by_task(records).items()
        for reason, count in Counter(r.reason for r in chosen if not r.success).most_common()
    ]


def print_report(
    console: Console, facts: Mapping[str, Any], records: list[Record], measures: Mapping[str, Mapping[str, Any]]
) -> None:
    """Print the tables of the report. Brackets hold 95 % intervals."""
    for title, head, rows in (
        (f'{facts["model"]}: held-out scenes', SUCCESS_HEAD, success_rows(records)),
        ('contrast scenes: the wrong object is as near', CONTRAST_HEAD, contrast_rows(records)),
        ('steered scenes', STEERED_HEAD, steered_rows(records)),
    ):
        table = Table(*head, title=title)
        for row in rows:
            table.add_row(*row)
        if rows:
            console.print(table)
    for heading, values in measures.items():
        console.print(
            f'{heading}: ' + ', '.join(f'{name} {_shown(value)}' for name, value in values.items()), markup=False
        )


def markdown(head: tuple[str, ...], rows: Rows) -> list[str]:
    return [f'| {" | ".join(head)} |', '|' + '---|' * len(head), *(f'| {" | ".join(row)} |' for row in rows), '']


def write_report(
    folder: Path, facts: Mapping[str, Any], records: list[Record], measures: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write results.json, summary.md and the figures. measures: heading -> name -> number."""
    summary = {
        group: {task: _numbers(chosen) for task, chosen in _by_task(records, group).items()}
        for group in (HELD_OUT, CONTRAST, *WAYS)
    }
    content = {'facts': facts, 'summary': summary, 'measures': measures, 'episodes': [asdict(r) for r in records]}
    (folder / 'results.json').write_text(json.dumps(content, indent=1) + '\n')
    lines = ['# Closed-loop evaluation', '', *(f'- {key}: {value}' for key, value in facts.items()), '']
    lines += markdown(SUCCESS_HEAD, success_rows(records))
    lines += [
        'The seeds are held out: layouts, colours, camera and light were never trained on. Success is the '
        "simulator's test at the end. Wrong object: another button was pressed, another object was lifted by 2 cm, or "
        'the right one was put into a wrong target. Time: of successful episodes. Jump: largest joint jump from one '
        'chunk to the next while the arm moves; the executor smooths it. Brackets hold 95 % intervals (Wilson).',
        '',
    ]
    if rows := contrast_rows(records):
        lines += ['## Contrast scenes: the wrong object is as near as the right one', '']
        lines += [
            *markdown(CONTRAST_HEAD, rows),
            'Each scene is driven twice, with two instructions. The layout is the same. The second instruction asks '
            'for another object or another target, which is as far away to within 3 cm.',
            '',
        ]
    if rows := steered_rows(records):
        lines += ['## Steered scenes', '']
        lines += [
            *markdown(STEERED_HEAD, rows),
            'The goal is the same in all ways. Words alone and the trace have an instruction that names no object. '
            'Trace against words: the instruction names another object, and success is that of the trace.',
            '',
        ]
    if rows := failure_rows(records):
        lines += ['## Where failed episodes ended', '', *markdown(('task', 'first stage missed', 'episodes'), rows)]
    for heading, values in measures.items():
        named: Rows = [(name, _shown(value)) for name, value in values.items()]
        lines += [f'## {heading}', '', *markdown(('measure', 'value'), named)]
    figures = _write_figures(folder, records)
    lines += [f'![{path.stem}]({path.name})\n' for path in figures]
    if sheets := sorted((folder / 'failures').glob('*.png')):
        lines += ['## Some failures', '', *(f'![{path.stem}](failures/{path.name})\n' for path in sheets)]
    (folder / 'summary.md').write_text('\n'.join(lines))


def keep(results: Path, checkpoint: Path, profile: Path) -> Path:
    """Copy the numbers of an evaluation and the robot profile into the checkpoint's folder. Return the file of numbers.

    The file is named after the engine: it documents success in that precision, and travels with the checkpoint.
    """
    content = json.loads((results / 'results.json').read_text())
    del content['episodes']
    path = checkpoint / f'evaluation-{content["facts"]["engine"]}.json'
    path.write_text(json.dumps(content, indent=2) + '\n')
    (checkpoint / 'robot_profile.yaml').write_bytes(profile.read_bytes())
    return path


def _shown(value: float | int | str) -> str:
    return f'{value:.4g}' if isinstance(value, float) else str(value)


def _numbers(records: list[Record]) -> dict[str, Any]:
    good, wrong = Share.successes(records), Share.mistakes(records)
    return {
        'episodes': len(records),
        'success': good.rate,
        'success_interval': good.interval,
        'wrong_object': wrong.rate,
        'wrong_object_interval': wrong.interval,
        'missed': dict(Counter(r.reason for r in records if not r.success)),
    }


def _by_task(records: list[Record], group: str = '') -> dict[str, list[Record]]:
    """Return task -> records in the order of the tasks, without tasks that have no record."""
    chosen = {task: [r for r in records if r.task == task and group in ('', r.group)] for task in STAGES}
    return {task: sorted(rs, key=lambda r: r.key) for task, rs in chosen.items() if rs}


def _write_figures(folder: Path, records: list[Record]) -> list[Path]:
    held_out = _by_task(records, HELD_OUT)
    figures = [('success', _draw_success, 1 + bool(_by_task(records, CONTRAST)))] if held_out else []
    if any(not r.success for r in records):
        figures.append(('failures', _draw_failures, 1))
    if any(r.seams for r in records):
        figures.append(('seams', _draw_seams, 1))
    paths = []
    for name, draw, columns in figures:
        figure, axes = plt.subplots(1, columns, figsize=(6.4 * columns, 3.8), layout='constrained', squeeze=False)
        draw(list(axes.flat), records)
        paths.append(folder / f'{name}.png')
        figure.savefig(paths[-1], dpi=110)
        plt.close(figure)
    return paths


def _draw_success(axes: list[Axes], records: list[Record]) -> None:
    for ax, group in zip(axes, (HELD_OUT, CONTRAST), strict=False):
        tasks = _by_task(records, group)
        for offset, colour, label, share in (
            (-0.2, GREEN, 'success', Share.successes),
            (0.2, ORANGE, 'wrong object', Share.mistakes),
        ):
            shares = [share(chosen) for chosen in tasks.values()]
            rates = np.array([100 * s.rate for s in shares])
            bounds = 100 * np.array([s.interval for s in shares]).T
            x = np.arange(len(tasks)) + offset
            spread = np.maximum(np.stack([rates - bounds[0], bounds[1] - rates]), 0)
            ax.bar(x, rates, 0.36, color=colour, label=label)
            ax.errorbar(x, rates, spread, fmt='none', color='black', capsize=4, linewidth=1)
            for place, rate, top in zip(x, rates, bounds[1], strict=True):
                ax.text(place, top + 1.5, f'{rate:.0f}', ha='center', fontsize=9)
        ax.set_xticks(range(len(tasks)), [f'{task}\n{len(chosen)} episodes' for task, chosen in tasks.items()])
        ax.set_ylim(0, 112)
        ax.set_yticks(range(0, 101, 20))
        ax.set_ylabel('episodes [%], 95 % interval')
        ax.set_title('held-out scenes' if group == HELD_OUT else 'contrast scenes', loc='left', fontsize=10)
        _clean(ax)
    axes[0].legend(loc='lower right', ncols=2, frameon=False, fontsize=8, bbox_to_anchor=(1.0, 1.0))


def _draw_failures(axes: list[Axes], records: list[Record]) -> None:
    ax, tasks = axes[0], _by_task(records)
    reasons = ['wrong object', *dict.fromkeys(stage for task in tasks for stage in STAGES[task])]
    colours = dict(
        zip(reasons, [ORANGE, *plt.colormaps['Blues'](np.linspace(0.35, 0.9, len(reasons) - 1))], strict=True)
    )
    left = np.zeros(len(tasks))
    for reason in reasons:
        share = np.array([
            100 * sum(r.reason == reason and not r.success for r in chosen) / len(chosen) for chosen in tasks.values()
        ])  # fmt: skip
        ax.barh(range(len(tasks)), share, left=left, color=colours[reason], label=reason)
        left += share
    ax.set_yticks(range(len(tasks)), list(tasks))
    ax.invert_yaxis()
    ax.set_xlabel('failed episodes, by the first stage that was missed [% of all episodes]')
    ax.legend(frameon=False, fontsize=8, ncols=len(reasons), loc='lower left', bbox_to_anchor=(0, 1), handlelength=1)
    _clean(ax, 'x')


def _draw_seams(axes: list[Axes], records: list[Record]) -> None:
    ax = axes[0]
    seams = 1e3 * np.array([s for r in records for s in r.seams])
    ax.hist(np.minimum(seams, CLIP), bins=50, range=(0, CLIP), color='#1f4e9c')
    p50, p95 = np.percentile(seams, [50, 95])
    ax.set_title(f'p50 {p50:.1f} mrad, p95 {p95:.1f} mrad', loc='left', fontsize=10)
    beyond = int((seams > CLIP).sum())
    ax.set_xlabel(f'largest joint jump between two chunks [mrad]; above {CLIP:.0f}: {beyond} of {len(seams)}')
    ax.set_ylabel('chunks')
    _clean(ax)


def _clean(ax: Axes, grid: str = 'y') -> None:
    ax.grid(alpha=0.25, axis=grid)  # type: ignore[arg-type]
    ax.set_axisbelow(True)
    for side in ('top', 'right'):
        ax.spines[side].set_visible(False)
