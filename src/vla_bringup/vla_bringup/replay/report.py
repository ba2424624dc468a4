"""The report of a replay: one self-contained HTML file, CSV tables, figures, summary.json."""

import base64
import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vla_bringup.replay.driven import PARTS
from vla_bringup.replay.figures import Result, write_figures
from vla_bringup.replay.groups import episodes, errors, instructions, number, parts
from vla_bringup.replay.measures import bootstrap, mean_known, worst
from vla_core.clocks import SECONDS
from vla_training.convert.report import BagReport, notes

WORST, APART = 6, 1.0  # number of shown moments, least time between two [s]
SHOWN = 240  # [pixel] height of a frame in the report
GROUPS = {'parts': parts, 'episodes': episodes, 'instructions': instructions}
GROUP_TITLES = {
    'parts': 'Compared and excluded parts',
    'episodes': 'By episode, where it was driven',
    'instructions': 'By instruction, where it was driven',
}
STYLE = """
body{font:14px/1.45 system-ui,sans-serif;color:#1b1e24;max-width:1180px;margin:24px auto;padding:0 16px}
h1{font-size:22px}h2{font-size:17px;margin-top:32px}img{max-width:100%}
table{border-collapse:collapse;margin:8px 0}td,th{padding:3px 10px;border-bottom:1px solid #ddd;text-align:left}
td+td,th+th{text-align:right}.words td+td{text-align:left}.warn{background:#fff4e0;border-left:4px solid #d95f02;
padding:6px 12px;margin:6px 0}.moments{display:flex;flex-wrap:wrap;gap:16px}figure{margin:12px 0}figcaption{color:#555}
"""


def summary(result: Result) -> dict[str, Any]:
    """Return the numbers of one model. Angles in mrad, times in ms unless named."""
    cycles = result.run.cycles
    inference = 1e3 * np.array([c.inference_time for c in cycles])
    latency = 1e3 * SECONDS * np.array([c.at - c.t_ref for c in cycles])
    recorded = 1e3 * np.array(result.run.session.inference_times)
    driven = result.driven
    seam = 1e3 * driven.seam[np.isfinite(driven.seam)]
    return {
        'model': result.run.model_id,
        'chunks': len(cycles),
        'failed inferences': len(result.run.failures),
        **errors(driven),
        'gripper error mean [mm]': number(1e3 * mean_known(np.abs(driven.gripper_error).ravel(), 0)),
        **{f'seam {p}': _percentile(seam, p) for p in ('p50', 'p95', 'max')},
        **{f'inference {p} [ms]': _percentile(inference, p) for p in ('p50', 'p95', 'p99', 'max')},
        **{f't_ref to chunk, clock of the bag, {p} [ms]': _percentile(latency, p) for p in ('p50', 'p95', 'max')},
        **({'inference of the chunks in the bag p50 [ms]': _percentile(recorded, 'p50')} if len(recorded) else {}),
        **(
            {'prediction error mean': number(np.mean([v for _, v in result.run.prediction_errors]))}
            if result.run.prediction_errors
            else {}
        ),
    }


def comparison(results: Sequence[Result]) -> dict[str, Any]:
    """Return second minus first model on the common driven steps, with a 95 % interval (block bootstrap)."""
    a, b = results
    at = {(c.t_ref, c.shift): i for i, c in enumerate(a.run.cycles)}
    pairs = [(at[key], j) for j, c in enumerate(b.run.cycles) if (key := (c.t_ref, c.shift)) in at]
    driven = [np.isfinite(r.driven.norm).any(1) for r in results]
    pairs = [(i, j) for i, j in pairs if driven[0][i] and driven[1][j]]
    if not pairs:
        return {'chunks in common': 0}
    i, j = (list(x) for x in zip(*pairs, strict=True))
    end = min(a.steps[-1], b.steps[-1]) + 1e-9
    ea, eb = (mean_known(r.driven.norm[:, r.steps <= end], 1) for r in (a, b))
    difference = 1e3 * (eb[j] - ea[i])
    spacing = float(np.median(np.diff(a.times[i]))) if len(i) > 1 else end
    block = math.ceil(end / max(spacing, 1e-3))
    mean, low, high = bootstrap(difference, block)
    return {
        'chunks in common': len(pairs),
        'mean error, second minus first [mrad]': number(mean),
        '95 % interval [mrad]': [number(low), number(high)],
        'second is nearer in [% of chunks]': number(100 * float((difference < 0).mean())),
        'block [chunks]': block,
    }


def verdict(found: dict[str, Any], names: Sequence[str]) -> str:
    """Return a sentence about a comparison."""
    if not found['chunks in common']:
        return 'The two models have no chunk in common where the robot was driven.'
    mean, (low, high) = found['mean error, second minus first [mrad]'], found['95 % interval [mrad]']
    if mean is None:
        return 'The steps that both models have were not driven or not recorded: there is no error to compare.'
    a, b = names
    words = 'no significant difference on this bag' if low <= 0 <= high else f'{b if mean < 0 else a} is nearer'
    return f'{b} minus {a}: {mean:+.2f} mrad (95 % interval {low:+.2f} .. {high:+.2f}): {words}.'


def write_report(
    folder: Path, results: Sequence[Result], report: BagReport, facts: dict[str, str], frames: Any, title: str
) -> None:
    """Write the report into the folder. frames: as of Feed.frames."""
    tables(folder, results, report)
    numbers = [summary(r) for r in results]
    bag = report.as_dict()
    groups = [{name: rows(r) for name, rows in GROUPS.items()} for r in results]
    models = [n | g for n, g in zip(numbers, groups, strict=True)]
    content: dict[str, Any] = {'facts': facts, 'models': models, 'bag': bag}
    if len(results) == 2:
        content['comparison'] = comparison(results)
    (folder / 'summary.json').write_text(json.dumps(content, indent=1) + '\n')
    figures = write_figures(results, folder)
    page = [f'<h1>{escape(title)}</h1>', *(f'<div class="warn">{escape(line)}</div>' for line in warnings(bag))]
    page += ['<h2>Where the robot was driven</h2>', _numbers_table(numbers, [r.name for r in results])]
    if len(results) == 2:
        page.append(f'<p><b>{escape(verdict(content["comparison"], [r.name for r in results]))}</b></p>')
    page.append(
        '<p>Angles in mrad. Error: length over the joints of what was predicted minus what the robot did; the robot '
        'did not follow these chunks, so it grows with the time ahead even for a good model. Joint error: the mean '
        'magnitude over joints and steps, as ./vla train evaluate gives it for frames of a data set. Seam: largest '
        'joint jump from one chunk to the next where the next takes over. Errors and seams are of the driven part; '
        'the rest stands below.</p>'
    )
    for result, group in zip(results, groups, strict=True):
        for name, title_of in GROUP_TITLES.items():
            if found := group[name]:
                page += [f'<h2>{escape(title_of)}, {escape(result.name)}</h2>', groups_table(found)]
        page.append(f'<p>{escape(how_decided(result))}</p>')
    for name, caption in figures:
        picture = _img((folder / name).read_bytes(), 'png')
        page.append(f'<figure><figcaption>{escape(caption)}</figcaption>{picture}</figure>')
    page += ['<h2>Streams</h2>', _streams_table(bag)]
    page += ['<h2>Worst moments</h2>', _moments(results, frames)]
    for result in results:
        if result.run.plans:
            rows = [(f'{(t - result.began) * SECONDS:.1f} s', words) for t, words in result.run.plans]
            page += [f'<h2>Plan text over time, {escape(result.name)}</h2>', _table(('time', 'words'), rows, 'words')]
    page += ['<h2>How it was made</h2>', _table(('', ''), facts.items(), 'words')]
    top = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    (folder / 'report.html').write_text(top + '\n'.join(page) + '</html>\n')


def how_decided(result: Result) -> str:
    """Return a sentence with the criterion of driven time."""
    driven, rest = (row['seconds'] for row in parts(result)[:2])
    share = f'{driven:.1f} of {driven + rest:.1f} s are compared'
    moves = 'the arm or gripper moves within half a second, before the success of an episode'
    if not result.line.by_words:
        moves += '; the bag never has the words of --instruction, so they count everywhere'
    if result.line.by_executor:
        return f'Driven: executor/status is EXECUTING, and {moves}: {share}.'
    return f'Driven: {moves} (the bag has no executor that executes): {share}.'


def groups_table(rows: Sequence[dict[str, Any]]) -> str:
    return _table(tuple(rows[0]), [tuple(shown(v) for v in row.values()) for row in rows], 'words')


def warnings(bag: dict[str, Any]) -> list[str]:
    """Return a line for each fault of the bag."""
    return notes(bag | {'gaps_that_ended_an_episode': {'count': 0}})


def tables(folder: Path, results: Sequence[Result], report: BagReport) -> None:
    """Write the CSV tables, with a block per model.

    chunks.csv, steps.csv, error_by_horizon.csv, streams.csv: angles in rad, times in s. parts.csv, episodes.csv,
    instructions.csv: angles in mrad.
    """
    joints = results[0].joint_names
    with (
        (folder / 'chunks.csv').open('w', newline='') as chunk_file,
        (folder / 'steps.csv').open('w', newline='') as step_file,
        (folder / 'error_by_horizon.csv').open('w', newline='') as horizon_file,
    ):
        chunks, steps, horizons = csv.writer(chunk_file), csv.writer(step_file), csv.writer(horizon_file)
        chunks.writerow(
            ('model', 't_ref_ns', 'at_ns', 'error', 'seam', 'inference_time', 'confidence', 'instruction', 'part')
        )
        predicted, did = [f'predicted_{j}' for j in joints], [f'recorded_{j}' for j in joints]
        steps.writerow(
            ('model', 't_ref_ns', 'step', 'due_ns', *predicted, 'predicted_gripper', *did, 'recorded_gripper', 'part')
        )
        horizons.writerow(('model', 'step', 'after', 'compared', 'error', *joints, 'gripper', 'error_staying'))
        for r in results:
            m = r.measures
            for k, c in enumerate(r.run.cycles):
                confidence = float(c.chunk.confidence.mean()) if c.chunk.confidence.size else math.nan
                row = (m.cycle[k], m.seam[k], c.inference_time, confidence)
                part = PARTS[r.line.stretches[m.stretch[k]].part]
                chunks.writerow((r.name, c.t_ref, c.at, *map(_cell, row), c.instruction, part))
                for i in range(len(c.chunk.positions)):
                    grip = c.chunk.gripper[i] if c.chunk.gripper.size else math.nan
                    values = (*c.chunk.positions[i], grip, *m.recorded[k, i], m.gripper_recorded[k, i])
                    due, part = m.due[k, i] - c.shift, PARTS[m.part[k, i]]
                    steps.writerow((r.name, c.t_ref, i, due, *map(_cell, values), part))
            d = r.driven
            norm, still = mean_known(d.norm, 0), mean_known(d.still, 0)
            each, grips = mean_known(np.abs(d.error), 0), mean_known(np.abs(d.gripper_error), 0)
            for i, after in enumerate(r.steps):
                values = (norm[i], *each[i], grips[i], still[i])
                count = int(np.isfinite(d.norm[:, i]).sum())
                horizons.writerow((r.name, i, f'{after:.6g}', count, *map(_cell, values)))
    for name, rows in GROUPS.items():
        with (folder / f'{name}.csv').open('w', newline='') as file:
            blocks = [{'model': r.name, **row} for r in results for row in rows(r)]
            rows_out = csv.DictWriter(file, blocks[0])
            rows_out.writeheader()
            rows_out.writerows(blocks)
    with (folder / 'streams.csv').open('w', newline='') as file:
        streams = {name: s.summary() for name, s in report.streams.items()}
        columns = ['stream', *next(iter(streams.values()), {})]
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([name, *s.values()] for name, s in streams.items())


def _moments(results: Sequence[Result], frames: Any) -> str:
    chosen = []
    for r in results:
        t_refs = np.array([c.t_ref + c.shift for c in r.run.cycles], np.int64)
        chosen += [(r, i) for i in worst(r.driven.cycle, t_refs, WORST, APART)]
    views = frames(sorted({(c.t_ref, c.images) for r, i in chosen for c in [r.run.cycles[i]]}))
    parts = []
    for r, i in chosen:
        c, m = r.run.cycles[i], r.driven
        off = 1e3 * mean_known(np.abs(m.error[i]), 0)
        joint = r.joint_names[int(np.nanargmax(off))]
        words = (
            f'{r.name}, {r.times[i]:.2f} s: {1e3 * m.cycle[i]:.0f} mrad, most in {joint} '
            f'({np.nanmax(off):.0f} mrad); “{c.instruction}”'
        )
        pictures = ''.join(_img(_jpeg(image), 'jpeg', camera) for camera, image in views.get(c.images, {}).items())
        parts.append(f'<figure>{pictures}<figcaption>{escape(words)}</figcaption></figure>')
    return (
        f'<div class="moments">{"".join(parts)}</div>'
        if parts
        else '<p>There is no motion to compare with: see the excluded parts.</p>'
    )


def _numbers_table(numbers: list[dict[str, Any]], names: list[str]) -> str:
    rows = [(key, *(shown(n.get(key)) for n in numbers)) for key in numbers[0]]
    return _table(('', *names), rows)


def _streams_table(bag: dict[str, Any]) -> str:
    head = ('stream', 'topic', 'messages', 'Hz', 'gaps', 'longest [s]', 'lost in gaps', 'out of order', 'unusable')
    wrong = bag['messages_with_wrong_content']
    rows = [
        (name, s['topic'], s['messages'], s['rate'], s['gaps'], s['longest_gap'], s['lost_in_gaps'], s['out_of_order'],
         wrong.get(s['topic'], 0))
        for name, s in bag['streams'].items()
    ]  # fmt: skip
    return _table(head, rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]], kind: str = '') -> str:
    top = ''.join(f'<th>{escape(str(h))}</th>' for h in head) if any(head) else ''
    body = ''.join('<tr>' + ''.join(f'<td>{escape(str(c))}</td>' for c in row) + '</tr>' for row in rows)
    return f'<table class="{kind}"><tr>{top}</tr>{body}</table>'


def _img(data: bytes, kind: str, title: str = '') -> str:
    source = f'data:image/{kind};base64,{base64.b64encode(data).decode()}'
    return f'<img alt="{escape(title)}" title="{escape(title)}" src="{source}">'


def _jpeg(pixels: np.ndarray) -> bytes:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image = image.resize((max(1, image.width * SHOWN // image.height), SHOWN), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    image.save(data, 'JPEG', quality=85)
    return data.getvalue()


def _percentile(values: np.ndarray, name: str) -> float | None:
    if not len(values):
        return None
    return number(np.max(values) if name == 'max' else np.percentile(values, int(name[1:])))


def shown(value: Any) -> str:
    """Return a number of `summary` as text for the page."""
    return '-' if value is None else f'{value:.2f}' if isinstance(value, float) else str(value)


def _cell(value: Any) -> str:
    """Return the shortest text of a number that reads back exactly; empty for NaN."""
    return repr(float(value)) if np.isfinite(value) else ''
