"""Writes a LeRobotDataset v3.0 episode by episode. A crash loses no complete episode.

Each episode first gets files of its own in folder/writing. Its .json is written last and makes it complete. When a data
or video file is full, or at close, the files of its episodes are concatenated. meta/info.json is the last file of all.
A dataset with `writing` and without info.json is unfinished: it cannot be opened. `DatasetWriter.resume` continues it.
"""

import fcntl
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vla_training.lerobot import layout, video
from vla_training.lerobot.checks import check_features, checked_columns, checked_videos
from vla_training.lerobot.layout import (
    INDICES,
    Feature,
    described,
    parquet,
    tasks_table,
    to_arrow,
    write_file,
    write_json,
)
from vla_training.lerobot.reader import Dataset, EpisodeInfo
from vla_training.lerobot.stats import Stats, aggregate, column_stats, image_stats

MB = 2**20
# Times in a video file are compared as float32 with a tolerance of 1e-4 s by stock lerobot: above 1024 s that fails.
LONGEST_FILE = 1000.0  # [s]
START = 'start.json'  # file in `writing` with info.json and stats.json of before


@dataclass
class _File:
    """A data or video file that is being filled."""

    chunk: int
    index: int
    members: list[int] = field(default_factory=list)  # episodes
    size: int = 0  # [byte]
    frames: int = 0
    header: bytes = b''  # codec header of its videos


class DatasetWriter:
    """Writes a new dataset into an empty or new folder; `resume` continues one. A folder has one writer at a time."""

    def __init__(
        self,
        folder: str | Path,
        fps: int,
        robot_type: str,
        features: Mapping[str, Feature],
        *,
        chunks_size: int = 1000,
        data_files_size_in_mb: float = 100,
        video_files_size_in_mb: float = 200,
    ) -> None:
        """Create a dataset.

        features: without the index columns, which are filled in. Files roll over at these sizes, folders at chunks_size
        files. Raises ValueError when the folder is not empty or a setting is impossible.
        """
        folder = Path(folder)
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f'{folder} is not empty: choose another folder, or continue the dataset in it (resume)')
        if int(fps) != fps or fps < 1 or min(chunks_size, data_files_size_in_mb, video_files_size_in_mb) <= 0:
            raise ValueError('fps must be a whole number above zero, sizes must be above zero')
        check_features(features)
        info = {
            'codebase_version': layout.VERSION,
            'robot_type': robot_type,
            'total_episodes': 0,
            'total_frames': 0,
            'total_tasks': 0,
            'chunks_size': chunks_size,
            'data_files_size_in_mb': data_files_size_in_mb,
            'video_files_size_in_mb': video_files_size_in_mb,
            'fps': int(fps),
            'splits': {},
            'data_path': layout.DATA_PATH,
            'video_path': layout.VIDEO_PATH,
            'features': {name: described(f, int(fps)) for name, f in {**features, **INDICES}.items()},
        }
        write_json(folder / layout.WRITING / START, {'info': info, 'stats': {}})
        self._open(folder)

    @classmethod
    def resume(cls, folder: str | Path) -> 'DatasetWriter':
        """Continue an unfinished or finished dataset after its last complete episode.

        Raises ValueError when there is no dataset, or when another writer has it.
        """
        folder = Path(folder)
        writing, info = folder / layout.WRITING, folder / layout.INFO
        if info.is_file():
            dataset = Dataset(folder)
            if int(dataset.fps) != dataset.fps:
                raise ValueError(f'{folder} has {dataset.fps} frames per second, only whole numbers can be continued')
            check_features({name: f for name, f in dataset.features.items() if name not in INDICES})
            shutil.rmtree(writing, ignore_errors=True)  # left by a writer that ended while it cleaned up
            stats = dataset.stats if (folder / layout.STATS).is_file() else {}
            write_json(writing / START, {'info': dataset.info, 'stats': stats})
            info.unlink()
        elif not (writing / START).is_file():
            raise ValueError(f'{folder} is no LeRobot dataset: it cannot be continued')
        writer = cls.__new__(cls)
        writer._open(folder)
        return writer

    def _open(self, folder: Path) -> None:
        self.folder, self._writing = folder, folder / layout.WRITING
        self._lock = (self._writing / 'lock').open('w')
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise ValueError(f'{folder} is being written by another process: wait for it, or end it') from None
        start = json.loads((self._writing / START).read_text())
        self.info, self._stats_before = start['info'], start['stats']
        self.fps = int(self.info['fps'])
        self.features = {
            name: Feature(f['dtype'], tuple(f['shape']), f.get('names'))
            for name, f in self.info['features'].items()
            if name not in INDICES
        }
        self._videos = [name for name, f in self.features.items() if f.dtype == 'video']
        check_features(self.features)
        self._rows: list[dict] = []  # of meta/episodes, by this writer and by the interrupted one
        self.episodes: list[EpisodeInfo] = []  # all complete episodes
        self._tasks: list[str] = []
        self._files: dict[str, _File] = {}  # 'data' or a video's name -> the file being filled
        self._first = self.info['total_episodes']
        self._last_before: dict | None = None  # row of the last episode before
        if self._first:
            finished = Dataset(folder, info=self.info)
            self.episodes, self._tasks = finished.episodes, finished.tasks
            self._last_before = self.episodes[-1].row
        self._recover()

    def _recover(self) -> None:
        """Read the journal. All other files in `writing` are of an incomplete episode and are removed."""
        journal = sorted(self._writing.glob('[0-9]*.json'))
        for path in journal:
            row = json.loads(path.read_text())
            self._take(row)
            for stream in ['data', *self._videos]:
                file = self._file_of(stream, row)
                staged = self._staged(row['episode_index'], stream)
                file.members.append(row['episode_index'])
                file.frames += row['length']
                if staged.exists():
                    file.size += staged.stat().st_size
                    file.header = video.probe(staged.read_bytes())[3] if stream != 'data' else b''
        for path in self._writing.glob('[0-9]*'):
            if int(path.name.split('.')[0]) >= len(self.episodes) or path.suffix == '.new':
                path.unlink()
        for stream, file in list(self._files.items()):
            if self._target(stream, file).exists():
                self._finish(stream)

    def _file_of(self, stream: str, row: dict) -> _File:
        prefix = 'data' if stream == 'data' else f'videos/{stream}'
        chunk, index = row[f'{prefix}/chunk_index'], row[f'{prefix}/file_index']
        file = self._files.get(stream)
        if file is None or (file.chunk, file.index) != (chunk, index):
            file = self._files[stream] = _File(chunk, index)
        return file

    def _take(self, row: dict) -> None:
        self._rows.append(row)
        self._tasks += [task for task in row['tasks'] if task not in self._tasks]
        self.episodes.append(EpisodeInfo(row['episode_index'], row['length'], tuple(row['tasks']), row['extra'], row))

    @property
    def total_frames(self) -> int:
        return self.episodes[-1].row['dataset_to_index'] if self.episodes else 0

    def add_episode(
        self,
        columns: Mapping[str, np.ndarray | list[str]],
        videos: Mapping[str, bytes],
        task: str,
        extra: Mapping[str, int | float | bool | str] | None = None,
    ) -> None:
        """Append one episode of T frames. When this returns the episode is safe on disk.

        columns: every feature but videos, (T,), (T, *shape) or T strings. videos: every video, by encode_video. task:
        the instruction. extra: further columns of meta/episodes, with the same names for every episode. Raises
        ValueError naming the column and the fault; nothing is written then.
        """
        extra = dict(extra or {})
        if not task.strip():
            raise ValueError('the episode has no task: give the instruction')
        if self.episodes and set(extra) != set(self.episodes[-1].extra):
            raise ValueError(
                f'the episodes before have the extra columns {sorted(self.episodes[-1].extra)}, got {extra}'
            )
        if bad := [k for k in extra if k in layout.EPISODE_COLUMNS or k.startswith(layout.EPISODE_PREFIXES)]:
            raise ValueError(f'extra columns {bad} have names that the format uses itself: choose others')
        values = checked_columns(columns, self.features)
        length = len(next(iter(values.values())))
        headers = checked_videos(videos, self.features, length)

        e, first = len(self.episodes), self.total_frames
        known = [*self._tasks, task]
        values |= {
            'timestamp': (np.arange(length) / self.fps).astype(np.float32),
            'frame_index': np.arange(length),
            'episode_index': np.full(length, e),
            'index': first + np.arange(length),
            'task_index': np.full(length, known.index(task)),
        }
        stats = {name: column_stats(v) for name, v in values.items() if isinstance(v, np.ndarray)}
        stats |= {key: image_stats(video.key_frames(videos[key])) for key in self._videos}
        self._stage_table(e, values)
        for key in self._videos:
            write_file(self._staged(e, key), videos[key])

        row: dict[str, Any] = {
            'episode_index': e,
            'tasks': [task],
            'length': length,
            'dataset_from_index': first,
            'dataset_to_index': first + length,
        }
        for stream in ['data', *self._videos]:
            size = self._staged(e, stream).stat().st_size
            file = self._room(stream, length, size, headers.get(stream, b''))
            prefix = 'data' if stream == 'data' else f'videos/{stream}'
            row |= {f'{prefix}/chunk_index': file.chunk, f'{prefix}/file_index': file.index}
            if stream != 'data':
                row[f'{prefix}/from_timestamp'] = file.frames / self.fps
                row[f'{prefix}/to_timestamp'] = (file.frames + length) / self.fps
        row |= {'extra': extra, 'stats': stats}
        write_json(self._writing / f'{e:06d}.json', row)  # from here on the episode is complete
        for stream in ['data', *self._videos]:
            file = self._files[stream]
            file.members.append(e)
            file.size += self._staged(e, stream).stat().st_size
            file.frames += length
            file.header = headers.get(stream, b'')
        self._take(row)

    def close(self) -> None:
        """Concatenate the files and finish the dataset. Raises ValueError when it has no episode."""
        if not self.episodes:
            raise ValueError(f'{self.folder} has no episode: nothing can be finished')
        for stream in list(self._files):
            self._finish(stream)
        self._write_episodes()
        write_file(self.folder / layout.TASKS, parquet(tasks_table(self._tasks)))
        parts = [row['stats'] for row in self._rows]
        names = parts[0] if parts else []
        before = self._stats_before
        stats = {n: aggregate([*([before[n]] if n in before else []), *(p[n] for p in parts)]) for n in names}
        write_json(self.folder / layout.STATS, {**before, **stats})
        self.info |= {
            'total_episodes': len(self.episodes),
            'total_frames': self.total_frames,
            'total_tasks': len(self._tasks),
            'splits': {'train': f'0:{len(self.episodes)}'},
        }
        write_json(self.folder / layout.INFO, self.info)
        shutil.rmtree(self._writing)
        self._lock.close()

    # ---- files

    def _staged(self, episode: int, stream: str) -> Path:
        name = f'{episode:06d}.parquet' if stream == 'data' else f'{episode:06d}.{stream}.mp4'
        return self._writing / name

    def _target(self, stream: str, file: _File) -> Path:
        pattern = self.info['data_path'] if stream == 'data' else self.info['video_path']
        return self.folder / pattern.format(video_key=stream, chunk_index=file.chunk, file_index=file.index)

    def _stage_table(self, episode: int, values: Mapping[str, np.ndarray | list[str]]) -> None:
        kinds, fields, arrays = {}, [], []
        for name, feature in {**self.features, **INDICES}.items():
            if feature.dtype == 'video':
                continue
            kind, kinds[name] = feature.arrow()
            fields.append(pa.field(name, kind))
            arrays.append(to_arrow(values[name], feature))
        schema = pa.schema(fields, {'huggingface': json.dumps({'info': {'features': kinds}})})
        write_file(self._staged(episode, 'data'), parquet(pa.Table.from_arrays(arrays, schema=schema)))

    def _room(self, stream: str, length: int, size: int, header: bytes) -> _File:
        """Return the file for the next episode. The present file is finished when the episode does not fit."""
        file = self._files.get(stream)
        if file is not None and file.members:
            limit = self.info['data_files_size_in_mb' if stream == 'data' else 'video_files_size_in_mb'] * MB
            full = file.size + size > limit
            if stream != 'data':
                full = full or (file.frames + length) / self.fps > LONGEST_FILE or header != file.header
            if full:
                self._finish(stream)
        return self._files.setdefault(stream, self._next(stream))

    def _next(self, stream: str) -> _File:
        """Return the file after the last one with a complete episode."""
        if not self.episodes:
            return _File(0, 0)
        row, prefix = self.episodes[-1].row, 'data' if stream == 'data' else f'videos/{stream}'
        return _File(*_after(row[f'{prefix}/chunk_index'], row[f'{prefix}/file_index'], self.info['chunks_size']))

    def _finish(self, stream: str) -> None:
        """Concatenate the episodes of the file, unless it exists, and remove their own files."""
        file = self._files.pop(stream)
        target = self._target(stream, file)
        staged = [self._staged(e, stream) for e in file.members]
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            new = target.with_name(target.name + '.new')
            if stream == 'data':
                with pq.ParquetWriter(new, pq.read_schema(staged[0]), compression=layout.COMPRESSION) as writer:
                    for path in staged:
                        writer.write_table(pq.ParquetFile(path).read())
            else:
                video.concatenate(staged, new, self.fps)
            new.replace(target)
        for path in staged:
            path.unlink(missing_ok=True)

    def _write_episodes(self) -> None:
        """Write meta/episodes. Existing files stay as they are, and new episodes go into the next files."""
        chunk, index = 0, 0
        size = self.info['chunks_size']
        if (last := self._last_before) is not None:
            chunk, index = (last[name] for name in layout.EPISODES_PLACE)
            chunk, index = _after(chunk, index, size)
        rows = [_flat(row) for row in self._rows]
        bytes_each = pa.Table.from_pylist(rows[:1]).nbytes if rows else 1
        per_file = max(1, math.floor(self.info['data_files_size_in_mb'] * MB / bytes_each))
        for begin in range(0, len(rows), per_file):
            where = dict(zip(layout.EPISODES_PLACE, (chunk, index), strict=True))
            table = pa.Table.from_pylist([row | where for row in rows[begin : begin + per_file]])
            path = layout.EPISODES_PATH.format(chunk_index=chunk, file_index=index)
            write_file(self.folder / path, parquet(table))
            chunk, index = _after(chunk, index, size)


def _after(chunk: int, index: int, chunks_size: int) -> tuple[int, int]:
    return (chunk, index + 1) if index + 1 < chunks_size else (chunk + 1, 0)


def _flat(row: dict) -> dict:
    flat = {name: value for name, value in row.items() if name not in ('extra', 'stats')} | row['extra']
    stats: dict[str, Stats] = row['stats']
    return flat | {f'stats/{name}/{key}': value for name, s in stats.items() for key, value in s.items()}
