"""rosbag2 of a robot, real or simulated, to a LeRobotDataset v3."""

import csv
import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from vla_training import features
from vla_training.bag import bag_files, messages
from vla_training.conversion_report import BagReport, bag_table, notes, stream_table
from vla_training.lerobot import DatasetWriter
from vla_training.lerobot.layout import write_json
from vla_training.recording import SET_POINTS, STATES, Recorded, Recording, Setup

REPORT = 'meta/conversion.json'  # in the dataset
Subtasks = dict[str, list[tuple[float, str]]]  # bag -> (time since it began [s], sub-task), by time


def convert_bags(
    bags: Sequence[Path],
    out: Path,
    setup: Setup,
    subtasks: Subtasks | None = None,
    progress: Callable[[str, int, int], None] = lambda bag, read, size: None,
) -> list[dict[str, Any]]:
    """Append the episodes of these bags to the dataset `out`; bags that its report has are skipped.

    progress is called with a bag, the bytes read of it and its size. Returns a report per bag of the dataset, as in
    meta/conversion.json. A bag that cannot be converted is reported and does not stop the others. Raises ValueError
    when a bag does not exist, two have one name, the dataset is for another robot, or nothing could be converted.
    """
    names = [bag_name(bag) for bag in bags]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f'more than one bag is named {doubled}: rename them, the dataset tells bags by name')
    if strangers := sorted(set(subtasks or {}) - set(names)):
        raise ValueError(f'the file of sub-tasks tells of the bags {strangers}, which are not among {names}')
    sizes = [sum(f.stat().st_size for f in bag_files(bag)) for bag in bags]
    reports: dict[str, dict] = {r['bag']: r for r in _read_reports(out)}
    if all(name in reports and not reports[name]['failed'] for name in names) and (out / 'meta/info.json').is_file():
        return list(reports.values())
    target = _Target(out, setup)
    for bag, name, size in zip(bags, names, sizes, strict=True):
        if name not in reports or reports[name]['failed']:
            tell = partial(_tell, progress, name, size)
            report = _convert_bag(bag, name, target, (subtasks or {}).get(name, []), tell)
            reports[name] = report.as_dict()
            if target.writer is not None:
                write_json(out / REPORT, list(reports.values()))
        progress(name, size, size)
    if target.writer is None:
        lines = [f'{r["bag"]}: {line}' for r in reports.values() for line in notes(r) or ['it has no frame']]
        raise ValueError('no episode could be made of any bag:\n' + '\n'.join(lines))
    target.writer.close()
    return list(reports.values())


def bag_name(path: Path) -> str:
    """The name of a bag's folder, or of its file."""
    return path.resolve().name


def _tell(progress: Callable[[str, int, int], None], bag: str, size: int, read: int) -> None:
    progress(bag, read, size)


class _Target:
    """The dataset, made when the first episode says how large the images are."""

    def __init__(self, out: Path, setup: Setup) -> None:
        self.out, self.setup = out, setup
        self.writer: DatasetWriter | None = None
        if out.exists() and any(out.iterdir()):
            self.writer = DatasetWriter.resume(out)

    def done(self, bag: str) -> int:
        """Episodes of the bag that the dataset has already: all those before the writer was killed."""
        return sum(e.extra['bag'] == bag for e in self.writer.episodes) if self.writer is not None else 0

    def add(self, episode: Recorded) -> None:
        wanted = features.robot_features(
            self.setup.profile.joint_names, episode.sizes, gripper=self.setup.gripper
        ) | dict(features.subtask_features())
        if self.writer is None:
            self.writer = DatasetWriter(self.out, self.setup.fps, self.setup.profile.name, wanted)
        elif self.writer.features != wanted or self.writer.fps != self.setup.fps:
            raise ValueError(
                f'the dataset {self.out} has other columns, image sizes or another frame rate: '
                'write these bags into a dataset of their own'
            )
        self.writer.add_episode(episode.columns, episode.videos, episode.instruction, episode.extra)


def _convert_bag(
    bag: Path, name: str, target: _Target, subtasks: list[tuple[float, str]], progress: Callable[[int], None]
) -> BagReport:
    report = BagReport(name)
    skip = target.done(name)

    def store(episodes: Iterable[Recorded]) -> None:
        nonlocal skip
        for episode in episodes:
            if skip:
                skip -= 1
            else:
                target.add(episode)

    try:
        recording = Recording(target.setup.found_in(bag)[0], report, subtasks)
        for message in messages(bag, recording.topics, report.damage, progress):
            recording.take(message)
            store(recording.episodes())
        recording.end()
        store(recording.episodes())
    except ValueError as error:
        report.failed = str(error)
    return report


def _read_reports(out: Path) -> list[dict]:
    path = out / REPORT
    try:
        return json.loads(path.read_text()) if path.is_file() else []
    except ValueError as error:
        raise ValueError(f'{path} cannot be read ({error}): remove the dataset and convert again') from error


def read_subtasks(path: Path, bags: Sequence[Path]) -> Subtasks:
    """Sub-tasks from a file: CSV with the columns time, subtask and, for several bags, bag; or a JSON list of such.

    time [s] since the bag began, from which on the sub-task is being done; an empty sub-task: none. Raises ValueError
    naming the line.
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
                raise ValueError('it does not say of which bag')
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
) -> None:
    """`convert_bags` with a progress bar, and its report on the terminal.

    robot: its profile, by name or file. actions: `states`, where the arm was one frame later, or `set-points`, where it
    was sent. instruction: for every episode; empty: as the bag has it. subtasks: CSV or JSON: time, subtask (and bag).
    """
    if actions not in (STATES, SET_POINTS):
        raise ValueError(f'--actions must be {STATES} or {SET_POINTS}, got {actions}')
    setup = Setup.load(robot, namespace=namespace, fps=fps, actions=actions, instruction=instruction, shortest=shortest)
    console = Console()
    columns = (
        TextColumn('{task.description}'),
        BarColumn(),
        TextColumn('{task.percentage:.0f} %'),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        lines = {bag_name(bag): bar.add_task(bag_name(bag), total=1) for bag in bags}
        reports = convert_bags(
            bags,
            out,
            setup,
            read_subtasks(subtasks, bags) if subtasks is not None else None,
            lambda bag, read, size: bar.update(lines[bag], completed=read, total=size),
        )
    console.print(stream_table(reports), bag_table(reports))
    for report in reports:
        for line in notes(report):
            console.print(f'{report["bag"]}: {line}', style='yellow', markup=False)
    console.print(f'{out}: {sum(r["episodes"] for r in reports)} episodes; the report is in {out / REPORT}')
