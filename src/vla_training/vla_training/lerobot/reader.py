"""Reads a LeRobotDataset v3.0 of this writer or of stock lerobot."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vla_training.lerobot import layout, video
from vla_training.lerobot.layout import Feature

AGAIN = 'copy or make the dataset again'
CONVERT = 'where lerobot is installed, run python -m lerobot.scripts.convert_dataset_v21_to_v30'
NEWER = 'convert it with the lerobot of its time to v2.1, then to v3'


@dataclass(frozen=True)
class EpisodeInfo:
    """One row of meta/episodes."""

    index: int
    length: int  # [frame]
    tasks: tuple[str, ...]  # instructions of its frames, in any order; empty where only its frames have them
    extra: dict[str, Any]  # further columns, such as seed and success
    row: dict[str, Any] = field(repr=False)  # place of its frames, as in the file

    @property
    def task(self) -> str:
        """Return the instruction. Raises ValueError for several instructions: `Episode.by_task` cuts them."""
        if len(self.tasks) != 1:
            raise ValueError(f'episode {self.index} has the instructions {list(self.tasks)}: read it frame by frame')
        return self.tasks[0]


@dataclass(frozen=True)
class Episode:
    """The frames of one episode. columns: (T,), (T, *shape), or a list of T strings, by name; no pixels.

    Columns of other types are left out.
    """

    info: EpisodeInfo
    columns: dict[str, np.ndarray | list[str]]
    dataset: 'Dataset' = field(repr=False)

    @property
    def task(self) -> str:
        """As EpisodeInfo.task."""
        return self.info.task

    def by_task(self) -> list['Episode']:
        """Cut the episode where the `task_index` of its frames changes. Each piece has one instruction."""
        numbers = np.asarray(self.columns['task_index'])
        edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(self)]
        return [self._piece(a, b) for a, b in pairwise(edges)]

    def _piece(self, a: int, b: int) -> 'Episode':
        row = self.info.row | {'dataset_from_index': self.info.row['dataset_from_index'] + a}
        for key in self.dataset.video_keys:
            if (start := f'videos/{key}/from_timestamp') in row:
                row[start] += a / self.dataset.fps
        tasks = (self.dataset.tasks[int(self.columns['task_index'][a])],)
        info = replace(self.info, length=b - a, tasks=tasks, row=row)
        return Episode(info, {name: values[a:b] for name, values in self.columns.items()}, self.dataset)

    def __len__(self) -> int:
        return self.info.length

    def frames(self, key: str) -> Iterator[np.ndarray]:
        """Yield the T frames of one camera as (H, W, 3) uint8 RGB, decoded one by one."""
        return self.dataset.frames(self.info, key)


class Dataset:
    """A dataset in a folder; len() is its number of frames. Raises ValueError naming the file and the remedy."""

    def __init__(self, folder: str | Path, *, info: dict | None = None) -> None:
        """Open a dataset. info: content of info.json before a writer continued the dataset; for that writer only."""
        self.folder = Path(folder)
        if info is None:
            if not (self.folder / layout.INFO).is_file():
                if (self.folder / layout.WRITING).exists():
                    raise ValueError(
                        f'{folder} is unfinished: its writer still runs, or was ended early. '
                        'Run the same command again to continue'
                    )
                raise ValueError(f'{folder} is no LeRobot dataset: it has no {layout.INFO}')
            info = _read_json(self.folder / layout.INFO)
        self.info = info
        version = str(self.info.get('codebase_version'))
        if not version.startswith('v3.'):
            remedy = f'{CONVERT} --repo-id NAME --root {folder} --push-to-hub false' if version == 'v2.1' else NEWER
            raise ValueError(f'{folder} is a LeRobot dataset of version {version}, only v3 can be read: {remedy}')
        try:
            self.fps = float(self.info['fps'])
            self.features = {
                name: Feature(f['dtype'], tuple(f['shape']) or (1,), f.get('names'))
                for name, f in self.info['features'].items()
            }
            self._data_path: str = self.info['data_path']
            self._video_path: str = self.info.get('video_path') or ''
        except (KeyError, TypeError) as error:
            raise ValueError(f'{self.folder / layout.INFO} lacks {error}: {AGAIN}') from error
        self.tasks = self._read_tasks()  # by task_index
        self.episodes = [self._episode_info(row) for row in self._read_episodes()]
        self._starts: dict[str, int] = {}  # data file -> index of its first frame
        for e in self.episodes:
            first = e.row['dataset_from_index']
            path = self._path(self._data_path, e.row, 'data')
            self._starts[path] = min(first, self._starts.get(path, first))

    def __len__(self) -> int:
        return sum(episode.length for episode in self.episodes)

    @cached_property
    def stats(self) -> dict[str, dict[str, list]]:
        """Return column -> min, max, mean, std, count, q01 ... q99."""
        return _read_json(self.folder / layout.STATS)

    @property
    def video_keys(self) -> list[str]:
        return [name for name, feature in self.features.items() if feature.is_camera]

    def episode(self, index: int) -> Episode:
        """Read an episode without pixels. Raises IndexError if it does not exist, ValueError for incomplete files."""
        if not 0 <= index < len(self.episodes):
            raise IndexError(f'{self.folder} has {len(self.episodes)} episodes, asked for {index}')
        info = self.episodes[index]
        wanted = {name: feature for name, feature in self.features.items() if feature.is_column}
        table = self._read_rows(info, list(wanted))
        columns = {}
        for name, feature in wanted.items():
            try:
                columns[name] = layout.from_arrow(table[name], feature)
            except (ValueError, pa.ArrowException) as error:
                path = self._path(self._data_path, info.row, 'data')
                raise ValueError(f'{path}: column {name} of episode {index}: {error}; {AGAIN}') from error
        if not (np.asarray(columns['episode_index']) == index).all():
            raise ValueError(
                f'{self._path(self._data_path, info.row, "data")} lacks frames of episode {index}: {AGAIN}'
            )
        tasks = np.unique(np.asarray(columns['task_index'])).tolist()
        if tasks[0] < 0 or tasks[-1] >= len(self.tasks):
            raise ValueError(f'episode {index} has the tasks {tasks}, {self.folder / layout.TASKS} does not: {AGAIN}')
        return Episode(replace(info, tasks=tuple(self.tasks[i] for i in tasks)), columns, self)

    def frames(self, info: EpisodeInfo, key: str) -> Iterator[np.ndarray]:
        """See Episode.frames. Raises ValueError for a camera that the dataset does not have."""
        feature = self.features.get(key)
        if feature is None or not feature.is_camera:
            raise ValueError(f'{self.folder} has no colour camera {key}, it has {self.video_keys}')
        if feature.dtype == 'image':
            for cell in self._read_rows(info, [key])[key]:
                yield next(video.decode(io.BytesIO(cell.as_py()['bytes']), 0.0, 1, 1.0))
            return
        path = self.folder / self._path(self._video_path, info.row, f'videos/{key}', video_key=key)
        yield from video.decode(path, info.row[f'videos/{key}/from_timestamp'], info.length, self.fps)

    def _read_rows(self, info: EpisodeInfo, columns: list[str]) -> pa.Table:
        name = self._path(self._data_path, info.row, 'data')
        first = info.row['dataset_from_index'] - self._starts[name]
        try:
            with pq.ParquetFile(self.folder / name) as file:
                groups, skipped, begin = [], 0, 0
                for g in range(file.num_row_groups):
                    rows = file.metadata.row_group(g).num_rows
                    if begin + rows <= first:
                        skipped += rows
                    elif begin < first + info.length:
                        groups.append(g)
                    begin += rows
                table = file.read_row_groups(groups, columns=columns).slice(first - skipped, info.length)
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f'{self.folder / name} cannot be read ({error}): {AGAIN}') from error
        missing = set(columns) - set(table.column_names)
        if missing or len(table) != info.length:
            what = f'the columns {sorted(missing)}' if missing else f'frames of episode {info.index}'
            raise ValueError(f'{self.folder / name} lacks {what}: {AGAIN}')
        return table

    def _path(self, pattern: str, row: dict, prefix: str, **names: str) -> str:
        return pattern.format(chunk_index=row[f'{prefix}/chunk_index'], file_index=row[f'{prefix}/file_index'], **names)

    def _read_tasks(self) -> list[str]:
        table = _read_table(self.folder / layout.TASKS)
        # The instruction is the index of a data frame, whose name differs between versions.
        names = [n for n in table.column_names if pa.types.is_string(t := table[n].type) or pa.types.is_large_string(t)]
        if len(names) != 1 or 'task_index' not in table.column_names:
            raise ValueError(f'{self.folder / layout.TASKS} has the columns {table.column_names}: {AGAIN}')
        by_index = dict(zip(table['task_index'].to_pylist(), table[names[0]].to_pylist(), strict=True))
        if sorted(by_index) != list(range(len(table))):
            raise ValueError(f'{self.folder / layout.TASKS} has the task indices {sorted(by_index)}: {AGAIN}')
        return [by_index[i] for i in sorted(by_index)]

    def _read_episodes(self) -> list[dict]:
        """Return the rows of meta/episodes without statistics, sorted by episode."""
        rows = []
        for path in sorted((self.folder / 'meta/episodes').glob('*/*.parquet')):
            table = _read_table(path)
            names = [n for n in table.column_names if not n.startswith('stats/')]
            if lacking := sorted(self._places() - set(names)):
                raise ValueError(f'{path} lacks the columns {lacking}: {AGAIN}')
            place = dict(zip(layout.EPISODES_PLACE, (_number(path.parent), _number(path)), strict=True))
            rows += [row | place for row in table.select(names).to_pylist()]
        rows.sort(key=lambda row: row['episode_index'])
        total = self.info.get('total_episodes', len(rows))
        rows = rows[:total]  # more only where a writer was ended while it finished
        if [row['episode_index'] for row in rows] != list(range(total)):
            raise ValueError(f'{self.folder}/meta/episodes does not have the {total} episodes of info.json: {AGAIN}')
        return rows

    def _places(self) -> set[str]:
        """Return the columns that locate the frames of an episode. Stock's tools leave out others."""
        names = {'episode_index', 'length', 'dataset_from_index', 'data/chunk_index', 'data/file_index'}
        for key in self.video_keys:
            if self.features[key].dtype == 'video':
                names |= {f'videos/{key}/{end}' for end in ('chunk_index', 'file_index', 'from_timestamp')}
        return names

    def _episode_info(self, row: dict) -> EpisodeInfo:
        extra = {
            name: value
            for name, value in row.items()
            if name not in layout.EPISODE_COLUMNS and not name.startswith(layout.EPISODE_PREFIXES)
        }
        tasks = row.get('tasks') or ()
        listed = (tasks,) if isinstance(tasks, str) else tuple(tasks)
        return EpisodeInfo(row['episode_index'], row['length'], listed, extra, row)


def _number(path: Path) -> int:
    """Return the number at the end of the name of a file or folder; 0: there is none."""
    digits = path.stem.rpartition('-')[2]
    return int(digits) if digits.isdigit() else 0


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f'{path} cannot be read ({error}): {AGAIN}') from error


def _read_table(path: Path) -> pa.Table:
    try:
        return pq.ParquetFile(path).read()
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f'{path} cannot be read ({error}): {AGAIN}') from error
