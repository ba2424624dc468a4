"""Reads the log times of a bag from the indexes of undamaged files, without reading the messages."""

import mmap
import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np

from vla_training.bag.order import Times
from vla_training.bag.sqlite import JOURNALS

MAGIC = b'\x89MCAP0\r\n'
CHANNEL, MESSAGE, CHUNK, INDEX, STATISTICS, DATA_END, FOOTER = 0x04, 0x05, 0x06, 0x07, 0x0B, 0x0F, 0x02
INDEX_PAIR = np.dtype([('time', '<u8'), ('offset', '<u8')])


def add_times(path: Path, wanted: Callable[[str], bool], found: Times) -> bool:
    """Add the log times of the wanted topics, in the order of the file. Return False when the file must be read."""
    try:
        times, numbers, topics = (_of_mcap if path.suffix == '.mcap' else _of_sqlite)(path)
    except Exception:  # a damaged index fails in any way
        return False
    for topic in topics.values():
        if wanted(topic):
            found.numbers.setdefault(topic, len(found.numbers))
    own = {number: found.numbers[topic] for number, topic in topics.items() if wanted(topic)}
    kept = np.isin(numbers, list(own))
    found.times.frombytes(np.minimum(times[kept], 2**63 - 1).astype(np.int64).tobytes())
    of_bag = np.array([own.get(number, -1) for number in range(max(topics, default=0) + 1)], np.int32)
    found.topics.frombytes(of_bag[numbers[kept]].tobytes())
    return True


def _of_sqlite(path: Path) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Return times [ns] (n,) and topic numbers (n,) of the messages, and topic number -> topic."""
    if path.suffix != '.db3' or any(Path(f'{path}{end}').exists() for end in JOURNALS):
        raise ValueError('not whole by itself')
    with closing(sqlite3.connect(f'{path.absolute().as_uri()}?mode=ro&immutable=1', uri=True)) as base:
        topics = dict(base.execute('SELECT id, name FROM topics').fetchall())
        rows = np.array(base.execute('SELECT timestamp, topic_id FROM messages ORDER BY id').fetchall(), np.int64)
        times, numbers = rows.reshape(-1, 2).T
        return np.maximum(times, 0), numbers, topics


def _of_mcap(path: Path) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Return as _of_sqlite. Raises ValueError or struct.error unless the indexes list every message and channel.

    The end of a file need not repeat the channels. Messages of such a file have no topic here.
    """
    with path.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        topics, count = _summary(content)
        times, numbers, at = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)], len(MAGIC)
        listed: list[tuple[int, np.ndarray]] = []  # channel, index: of the chunk that is read
        while True:
            opcode, size = struct.unpack_from('<BQ', content, at)
            if opcode == INDEX:
                (channel,) = struct.unpack_from('<H', content, at + 9)
                listed.append((channel, np.frombuffer(content[at + 15 : at + 9 + size], INDEX_PAIR)))
            else:
                if listed:
                    pairs = np.concatenate([pairs for _, pairs in listed])
                    order = np.argsort(pairs['offset'], kind='stable')
                    times.append(pairs['time'][order])
                    channels, lengths = [c for c, _ in listed], [len(pairs) for _, pairs in listed]
                    numbers.append(np.repeat(channels, lengths)[order])
                    listed = []
                if opcode == MESSAGE:
                    channel, _, time = struct.unpack_from('<HIQ', content, at + 9)
                    times.append(np.array([time], np.uint64))
                    numbers.append(np.array([channel]))
                elif opcode == DATA_END:
                    break
            at += 9 + size
    found, of = np.concatenate(times), np.concatenate(numbers)
    if len(found) != count or not np.isin(of, list(topics)).all():
        raise ValueError('the indexes do not list every message, or the end of the file not every channel')
    return found, of, topics


def _summary(content: mmap.mmap) -> tuple[dict[int, str], int]:
    """Return channel -> topic and the number of messages, from the end of the file."""
    footer = len(content) - 37
    if content[-8:] != MAGIC or content[footer] != FOOTER:
        raise ValueError('no footer')
    (at,) = struct.unpack_from('<Q', content, footer + 9)
    topics, count = dict[int, str](), -1
    while 0 < at < footer:
        opcode, size = struct.unpack_from('<BQ', content, at)
        if opcode == CHANNEL:
            number, _, length = struct.unpack_from('<HHI', content, at + 9)
            topics[number] = content[at + 17 : at + 17 + length].decode()
        elif opcode == STATISTICS:
            (count,) = struct.unpack_from('<Q', content, at + 9)
        at += 9 + size
    return topics, count
