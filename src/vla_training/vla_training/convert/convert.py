"""Converts rosbag2 recordings of a real or simulated robot to a LeRobotDataset v3."""

import csv
import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from vla_core.observe.streams import CAMERA_MAX_AGE
from vla_policy_node.ros.encodings import ORDERS
from vla_training.bag import bag_files, messages
from vla_training.bag.identity import identity
from vla_training.bag.setup import SET_POINTS, STATES, Setup
from vla_training.convert.bag_faults import slow_cameras, slow_gripper, why_nothing
from vla_training.convert.episode_parts import Recorded
from vla_training.convert.recording import Recording
from vla_training.convert.report import BagReport, bag_table, notes, stream_table
from vla_training.data import features
from vla_training.lerobot import DatasetWriter
from vla_training.lerobot.layout import write_json

REPORT = 'meta/conversion.json'  # in the dataset
Subtasks = dict[str, list[tuple[float, str]]]  # bag -> (time since its start [s], sub-task), by time


class NothingConverted(ValueError):
    """No episode could be made of any bag."""

    def __init__(self, message: str, reports: list[dict[str, Any]]) -> None:
        super().__init__(message)
        self.reports = reports


def convert_bags(
    bags: Sequence[Path],
    out: Path,
    setup: Setup,
    subtasks: Subtasks | None = None,
    progress: Callable[[str, int, int], None] = lambda bag, read, size: None,
) -> list[dict[str, Any]]:
    """Append the episodes of these bags to the dataset `out`. Bags that it already has are skipped.

    Returns a report per bag of the dataset and of these, as in meta/conversion.json. The reason for a skipped bag is
    in `skipped`, for a failed one in `failed`. A failed bag does not stop the others. progress is called with a bag,
    the bytes read of it and its size. Raises ValueError when a bag does not exist, two have one name, or the dataset is
    for another robot. Raises NothingConverted when neither a bag nor the dataset has an episode.
    """
    names = [bag_name(bag) for bag in bags]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f'more than one bag is named {doubled}: rename them, the dataset identifies bags by name')
    if unknown := sorted(set(subtasks or {}) - set(names)):
        raise ValueError(f'the file of sub-tasks names the bags {unknown}, which are not among {names}')
    sizes = [sum(f.stat().st_size for f in bag_files(bag)) for bag in bags]
    identities = [identity(bag) for bag in bags]
    reports: dict[str, dict] = {r['bag']: r for r in _read_reports(out)}
    _check_names(names, identities, reports, out)
    # A data set whose writing was interrupted is completed, also when it has all of these bags.
    target = None if (out / 'meta/info.json').is_file() else _Target(out, setup)
    skipped: dict[str, str] = {}
    for bag, name, size, own in zip(bags, names, sizes, identities, strict=True):
        if why := _had(name, own, reports, out):
            skipped[name] = why
        else:
            target = target or _Target(out, setup)
            _convert_one(
                bag,
                name,
                own,
                target,
                (subtasks or {}).get(name, []),
                partial(_show_progress, progress, name, size),
                reports,
            )
        progress(name, size, size)
    results = [{**r, 'skipped': skipped[name]} if name in skipped else r for name, r in reports.items()]
    results += [{**BagReport(name).as_dict(), 'skipped': why} for name, why in skipped.items() if name not in reports]
    if target is not None and target.writer is None:
        lines = [f'{r["bag"]}: {line}' for r in results for line in notes(r)]
        raise NothingConverted('no episode could be made of any bag:\n' + '\n'.join(lines), results)
    if target is not None and target.writer is not None:
        target.writer.close()
    return results


def _check_names(names: list[str], identities: list[str], reports: dict[str, dict], out: Path) -> None:
    """Raise ValueError where the dataset has another bag of a name."""
    for name, own in zip(names, identities, strict=True):
        known = reports.get(name, {}).get('identity')  # reports of earlier versions have none
        if known and known != own and (reports[name]['episodes'] or not reports[name]['failed']):
            raise ValueError(
                f'the data set {out} has another bag that is named {name}: rename the folder of the new one, or '
                'convert it into a data set of its own; nothing was converted'
            )


def _had(name: str, own: str, reports: dict[str, dict], out: Path) -> str:
    """Return why a bag is skipped; '': it must be converted."""
    for known, report in reports.items():
        if report['failed'] or own != report.get('identity', own if known == name else ''):
            continue
        if 'identity' not in report:
            return (
                f'skipped: {out} has a bag of this name, converted by a version that did not record which one it was; '
                'if this is another bag, rename its folder'
            )
        return f'skipped: {out} has it already' + (f', as {known}' if known != name else '')
    return ''


def _convert_one(
    bag: Path,
    name: str,
    own: str,
    target: '_Target',
    subtasks: list[tuple[float, str]],
    progress: Callable[[int], None],
    reports: dict[str, dict],
) -> None:
    """Convert a bag. Its report is kept in `reports` and in the dataset, also during the conversion."""

    def keep(report: BagReport) -> None:
        reports[name] = {**report.as_dict(), 'identity': own}
        if target.writer is not None:
            write_json(target.out / REPORT, list(reports.values()))

    def begun(report: BagReport) -> None:
        keep(replace(report, failed='its conversion was interrupted: give it again to continue'))

    keep(_convert_bag(bag, name, target, subtasks, progress, begun))


def bag_name(path: Path) -> str:
    """Return the name of a bag's folder or file."""
    return path.resolve().name


def _show_progress(progress: Callable[[str, int, int], None], bag: str, size: int, read: int) -> None:
    progress(bag, read, size)


class _Target:
    """The dataset, created with the first episode, which gives the size of the images."""

    def __init__(self, out: Path, setup: Setup) -> None:
        self.out, self.setup = out, setup
        self.writer: DatasetWriter | None = None
        if out.exists() and any(out.iterdir()):
            self.writer = DatasetWriter.resume(out)

    def done(self, bag: str) -> int:
        """Return the number of episodes of the bag in the dataset: those before the writer was killed."""
        return sum(e.extra.get('bag') == bag for e in self.writer.episodes) if self.writer is not None else 0

    def add(self, episode: Recorded) -> list[str]:
        """Write an episode. Return its known columns of tool pixels that the data set lacks."""
        labels = features.tool_pixel_features(self.setup.cameras)
        columns = dict(episode.columns)
        # The data set has those that its first episode knows. Bags without calibration can be added to it.
        there = labels if self.writer is None else self.writer.features
        dropped = [n for n in labels if n not in there or (self.writer is None and np.isnan(columns[n]).all())]
        for name in dropped:
            del columns[name], labels[name]
        wanted = (
            features.robot_features(self.setup.profile.joint_names, episode.sizes, gripper=self.setup.gripper)
            | features.subtask_features()
            | labels
        )
        if self.writer is None:
            self.writer = DatasetWriter(self.out, self.setup.fps, self.setup.profile.name, wanted)
        elif self.writer.features != wanted or self.writer.fps != self.setup.fps:
            raise ValueError(
                f'the dataset {self.out} has other columns, image sizes or another frame rate: '
                'write these bags into a dataset of their own'
            )
        self.writer.add_episode(columns, episode.videos, episode.instruction, episode.extra)
        return [name for name in dropped if not np.isnan(episode.columns[name]).all()]


def _convert_bag(
    bag: Path,
    name: str,
    target: _Target,
    subtasks: list[tuple[float, str]],
    progress: Callable[[int], None],
    begun: Callable[[BagReport], None],
) -> BagReport:
    """Write the episodes of a bag into the target. Return its report. begun: called after the first episode."""
    report, setup = BagReport(name), target.setup
    skip, first = target.done(name), True

    def store(episodes: Iterable[Recorded]) -> None:
        nonlocal skip, first
        for episode in episodes:
            if skip:
                skip -= 1
                continue
            report.left_out.update(target.add(episode))
            if first:
                begun(report)
            first = False

    try:
        setup = setup.found_in(bag)[0]
        recording = Recording(setup, report, subtasks)
        for message in messages(bag, recording.topics, report.damage, progress):
            recording.take(message)
            store(recording.episodes())
        recording.end()
        store(recording.episodes())
        report.slow = slow_cameras(report, setup.cameras, setup.fps) + slow_gripper(report)
        if not report.episodes:
            report.failed = f'no episode could be made of it: {_why(bag, report, setup)}'
    except ValueError as error:
        report.failed = str(error)
    return report


def _why(bag: Path, report: BagReport, setup: Setup) -> str:
    """Return the main cause for a bag without an episode, in one sentence."""
    for reason, count in report.dropped.most_common(1):  # sets were complete
        if report.slow:
            return report.slow[0]
        return f'{count} frames dropped: {reason}'
    return why_nothing(bag, report, setup.streams) or 'it has no frame'


def _read_reports(out: Path) -> list[dict]:
    path = out / REPORT
    try:
        return json.loads(path.read_text()) if path.is_file() else []
    except ValueError as error:
        raise ValueError(f'{path} cannot be read ({error}): remove the dataset and convert again') from error


def read_subtasks(path: Path, bags: Sequence[Path]) -> Subtasks:
    """Read sub-tasks from CSV with the columns time, subtask and, for several bags, bag; or from a JSON list of such.

    A sub-task starts at `time` [s] since the start of the bag; an empty one means none. Raises ValueError naming the
    line.
    """
    try:
        text = path.read_text()
        rows = json.loads(text) if path.suffix == '.json' else list(csv.DictReader(io.StringIO(text)))
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f'{path} cannot be read ({error})') from error
    found: Subtasks = defaultdict(list)
    for number, row in enumerate(rows if isinstance(rows, list) else [rows], 1):
        try:
            bag = row.get('bag') or (bag_name(bags[0]) if len(bags) == 1 else '')
            if not bag:
                raise ValueError('bag is missing')
            found[bag].append((float(row['time']), str(row['subtask']).strip()))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f'{path}, entry {number}: {error!r}; must have time [s], subtask and, with several bags, bag'
            ) from error
    return {bag: sorted(entries) for bag, entries in found.items()}


def convert(
    bags: list[Path],
    robot: str | Path,
    out: Path,
    fps: int = features.FPS,
    actions: str = STATES,
    instruction: str = '',
    subtasks: Path | None = None,
    namespace: str = '',
    shortest: int = 10,
    camera_gap: float = CAMERA_MAX_AGE,
    encoding: str = '',
    urdf: Path | None = None,
) -> None:
    """Run `convert_bags` with a progress bar and print its report.

    robot: profile, by name or file. actions: `states` (measured one frame later) or `set-points` (sent for then).
    instruction: for every episode; empty: that of the bag. subtasks: see read_subtasks. camera_gap: largest age of an
    image that replaces missing ones [s]. encoding: rgb8 or bgr8, for 8UC3 images. urdf: robot
    description, for bags that lack it. Raises ValueError after the report
    when a bag could not be converted.
    """
    if actions not in (STATES, SET_POINTS):
        raise ValueError(f'--actions must be {STATES} or {SET_POINTS}, got {actions}')
    if encoding not in ('', *ORDERS):
        raise ValueError(f'--encoding must be {" or ".join(ORDERS)}, got {encoding}')
    if urdf is not None and not urdf.is_file():
        raise ValueError(f'--urdf: there is no file {urdf}')
    setup = Setup.load(
        robot,
        namespace=namespace,
        fps=fps,
        actions=actions,
        instruction=instruction,
        shortest=shortest,
        camera_gap=camera_gap,
        encoding=encoding,
        urdf=str(urdf or ''),
    )
    console = Console()
    columns = (
        TextColumn('{task.description}'),
        BarColumn(),
        TextColumn('{task.percentage:.0f} %'),
        TimeRemainingColumn(),
    )
    failure: NothingConverted | None = None
    with Progress(*columns, console=console, transient=True) as bar:
        lines = {bag_name(bag): bar.add_task(bag_name(bag), total=1) for bag in bags}
        try:
            reports = convert_bags(
                bags,
                out,
                setup,
                read_subtasks(subtasks, bags) if subtasks is not None else None,
                lambda bag, read, size: bar.update(lines[bag], completed=read, total=size),
            )
        except NothingConverted as error:
            failure, reports = error, error.reports
    own = [report for report in reports if report['bag'] in lines]
    if read := [report for report in own if not report.get('skipped')]:
        console.print(stream_table(read), bag_table(read))
    if failure is not None:
        raise failure
    for report in own:
        for line in notes(report):
            console.print(f'{report["bag"]}: {line}', style='yellow', markup=False)
    console.print(f'{out}: {sum(r["episodes"] for r in reports)} episodes; the report is in {out / REPORT}')
    if failed := [report['bag'] for report in own if report['failed'] and not report.get('skipped')]:
        raise ValueError(f'{len(failed)} of {len(own)} bags could not be converted: {", ".join(failed)}')
