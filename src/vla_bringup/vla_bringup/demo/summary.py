"""The table and the one-page summary of a demo."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path

from vla_bringup.demo.report import EpisodeReport

COLUMNS = ('task', 'instruction', 'success', 'time', 'chunks', 'inference p50 / p95', 'seam', 'drops')
FOOTNOTE = (
    'time: reset to success, in simulation. chunks: of the driver + of the policy in shadow. inference: of the policy, '
    'observation complete to chunk ready. seam: largest joint jump between two chunks, smoothed by the executor. '
    'drops: chunks refused + camera frames missing.'
)


def row(e: EpisodeReport) -> tuple[str, ...]:
    """Return the cells of a row, in the order of COLUMNS."""
    inference = '-'
    if not math.isnan(e.inference_p50):
        inference = f'{1e3 * e.inference_p50:.0f} / {1e3 * e.inference_p95:.0f} ms'
    return (
        e.task,
        e.instruction,
        'yes' if e.success else 'NO',
        f'{e.time:.1f} s',
        f'{e.chunks} + {e.shadow_chunks}',
        inference,
        f'{1e3 * e.seam_position:.1f} mrad',
        f'{e.refused} + {e.frames_missed}',
    )


def write_summary(
    folder: Path,
    episodes: list[EpisodeReport],
    *,
    videos: Mapping[int, str],
    machine: Mapping[str, str],
    command: str,
    bag_counts: Mapping[str, int],
    trouble: list[str],
    model: str,
    policy_drives: bool = False,
    wall: float,
    slow: str = '',
) -> None:
    """Write summary.md and summary.json into the folder.

    videos: episode -> file. machine: see machine.facts. trouble: faults beside failed episodes. wall: duration of the
    run [s]. slow: a line of advice for a slow machine, or ''.
    """
    succeeded = sum(e.success for e in episodes)
    error = max((e.tracking_error for e in episodes), default=0.0)
    driver = (
        f'The policy ({model}) moved the simulated arm through the executor. Its inputs were the camera images, the '
        'joints and the instruction.'
        if policy_drives
        else f'The scripted expert moved the simulated arm through the executor. The policy ({model}) ran in shadow on '
        'the same camera topics: its chunks were recorded, never executed.'
    )
    lines = [
        '# Demo',
        '',
        f'{succeeded} of {len(episodes)} episodes succeeded, `{command}`, {wall:.0f} s. {driver} '
        'Every number is computed from the bag.',
        '',
        '| ' + ' | '.join((*COLUMNS, 'video')) + ' |',
        '|' + '---|' * (len(COLUMNS) + 1),
    ]
    for e in episodes:
        video = f'[mp4]({videos[e.index]})' if e.index in videos else '-'
        lines.append('| ' + ' | '.join((*row(e), video)) + ' |')
    lines += ['', FOOTNOTE, '']
    if trouble:
        lines += ['## Faults', '', *(f'- {t}' for t in trouble), '']
    if slow:
        lines += [f'{slow[0].upper()}{slow[1:]}.', '']
    lines += [
        '![commanded and measured joints](joints.png)',
        '',
        f'Largest tracking error while executing: {1e3 * error:.1f} mrad.',
        '',
        '## Machine and versions',
        '',
        *(f'- {key}: {value}' for key, value in machine.items()),
        '',
        '## Recorded',
        '',
        'rosbag2, MCAP: [bag](bag). Times in it are simulation time.',
        '',
        '| topic | messages |',
        '|---|---|',
        *(f'| `{topic}` | {count} |' for topic, count in sorted(bag_counts.items())),
        '',
    ]
    (folder / 'summary.md').write_text('\n'.join(lines))
    content = {
        'succeeded': succeeded,
        'episodes': [{**_finite(dataclasses.asdict(e)), 'video': videos.get(e.index)} for e in episodes],
        'trouble': trouble,
        'slow': slow,
        'model': model,
        'command': command,
        'wall_seconds': wall,
        'machine': dict(machine),
        'bag_messages': dict(bag_counts),
    }
    (folder / 'summary.json').write_text(json.dumps(content, indent=1) + '\n')


def _finite(values: dict) -> dict:
    """Return the values with None in place of NaN, which JSON lacks."""
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}
