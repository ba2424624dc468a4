"""Defines the layout of a LeRobotDataset v3.0 for reader and writer: names, paths and types of columns."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

VERSION = 'v3.0'
DATA_PATH = 'data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet'
VIDEO_PATH = 'videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4'
EPISODES_PATH = 'meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet'
INFO, STATS, TASKS = 'meta/info.json', 'meta/stats.json', 'meta/tasks.parquet'
WRITING = 'writing'  # folder of files that are not yet part of the dataset; while it exists the dataset is unfinished
COMPRESSION = 'zstd'
EPISODE_COLUMNS = ('episode_index', 'tasks', 'length', 'dataset_from_index', 'dataset_to_index')
EPISODES_PLACE = ('meta/episodes/chunk_index', 'meta/episodes/file_index')  # place of the row of an episode
EPISODE_PREFIXES = ('data/', 'videos/', 'stats/', 'meta/')


@dataclass(frozen=True)
class Feature:
    """One column. dtype: video, image, string, bool or a numpy name; shape of one frame's value; names of its axes.

    Videos have shape (height, width, 3); single values and strings have shape (1,).
    """

    dtype: str
    shape: tuple[int, ...] = (1,)
    names: list[str] | dict | None = None

    @property
    def is_pixels(self) -> bool:
        return self.dtype in ('video', 'image')

    @property
    def is_camera(self) -> bool:
        """Return whether these are colour images, (height, width, 3) or (3, height, width). Stock has depth videos."""
        return self.is_pixels and len(self.shape) == 3 and 3 in (self.shape[0], self.shape[2])

    @property
    def is_column(self) -> bool:
        """Return whether the values are numbers or strings. Stock also has structures, such as `language_events`."""
        try:
            return self.dtype == 'string' or np.dtype(self.dtype).kind in 'biuf'
        except TypeError:
            return False

    def arrow(self) -> tuple[pa.DataType, dict]:
        """Return the type of the column in parquet and its description for `datasets`. Not for videos."""
        value = pa.string() if self.dtype == 'string' else pa.from_numpy_dtype(np.dtype(self.dtype))
        leaf = {'dtype': self.dtype, '_type': 'Value'}
        if self.shape == (1,):
            return value, leaf
        if len(self.shape) == 1:
            return pa.list_(value, self.shape[0]), {'feature': leaf, 'length': self.shape[0], '_type': 'List'}
        kind: pa.DataType = value
        for _ in self.shape:
            kind = pa.list_(kind)
        return kind, {'shape': list(self.shape), 'dtype': self.dtype, '_type': f'Array{len(self.shape)}D'}


INDICES = {  # columns that every dataset has; the writer fills them
    'timestamp': Feature('float32'),
    'frame_index': Feature('int64'),
    'episode_index': Feature('int64'),
    'index': Feature('int64'),
    'task_index': Feature('int64'),
}


def to_arrow(values: np.ndarray | list[str], feature: Feature) -> pa.Array:
    """Convert a column of T values, (T,) or (T, *shape), for parquet."""
    kind, _ = feature.arrow()
    if feature.shape == (1,):
        return pa.array(values, kind)
    values = np.ascontiguousarray(values)
    array = pa.array(values.ravel())
    if len(feature.shape) == 1:
        return pa.FixedSizeListArray.from_arrays(array, feature.shape[0])
    for axis in range(len(feature.shape), 0, -1):
        count, size = int(np.prod(values.shape[:axis])), values.shape[axis]
        array = pa.ListArray.from_arrays(pa.array(np.arange(count + 1, dtype=np.int32) * size), array)
    return array


def from_arrow(column: pa.ChunkedArray, feature: Feature) -> np.ndarray | list[str]:
    """Convert a column of T values to (T,), (T, *shape), or a list of T strings. Raises ValueError for wrong sizes."""
    if feature.dtype == 'string':
        return column.to_pylist()
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # older pyarrow keeps the chunks of nested types
        array = pa.concat_arrays(array.chunks)
    while not pa.types.is_primitive(array.type):
        if isinstance(array, pa.ExtensionArray):
            array = array.storage
            continue
        array = array.flatten()
    if array.null_count:
        raise ValueError(f'{array.null_count} values are missing')
    values = array.to_numpy(zero_copy_only=False).astype(feature.dtype, copy=False)
    shape = (len(column),) if feature.shape == (1,) else (len(column), *feature.shape)
    return values.reshape(shape)


def write_file(path: Path, content: bytes) -> None:
    """Write a file atomically: it has its old or its complete new content, even after a crash of the machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + '.new')
    with new.open('wb') as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def write_json(path: Path, content: Any) -> None:
    write_file(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False).encode())


def parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression=COMPRESSION)
    return sink.getvalue().to_pybytes()


def tasks_table(tasks: list[str]) -> pa.Table:
    """Return a table of the instructions: a data frame whose index is the instruction, as pandas writes it."""
    index = '__index_level_0__'
    column = {'pandas_type': 'int64', 'numpy_type': 'int64', 'metadata': None}
    text = {'pandas_type': 'unicode', 'numpy_type': 'object', 'metadata': None}
    pandas = {
        'index_columns': [index],
        'column_indexes': [{'name': None, 'field_name': None, **text, 'metadata': {'encoding': 'UTF-8'}}],
        'columns': [
            {'name': 'task_index', 'field_name': 'task_index', **column},
            {'name': None, 'field_name': index, **text},
        ],
        'creator': {'library': 'pyarrow', 'version': pa.__version__},
        'pandas_version': '2.0.0',
    }
    table = pa.table({'task_index': pa.array(range(len(tasks)), pa.int64()), index: pa.array(tasks, pa.string())})
    return table.replace_schema_metadata({'pandas': json.dumps(pandas)})


def described(feature: Feature, fps: int) -> dict:
    """Return the entry of a feature in info.json."""
    found: dict[str, Any] = {'dtype': feature.dtype, 'shape': list(feature.shape), 'names': feature.names}
    if feature.dtype == 'video':
        height, width, channels = feature.shape
        found['info'] = {
            'video.height': height,
            'video.width': width,
            'video.codec': 'h264',
            'video.pix_fmt': 'yuv420p',
            'video.is_depth_map': False,
            'video.fps': fps,
            'video.channels': channels,
            'has_audio': False,
        }
    return found
