"""Log times of a bag without reading its messages: from the indexes of files that are whole."""

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
    """Add the log times of the wanted topics, in the order of the file. False when the file must be read instead."""
    try:
        times, topics = (_of_mcap if path.suffix == '.mcap' else _of_sqlite)(path)
    except Exception:  # a damaged index fails in any way
        return False
    for topic in topics.values():
        if wanted(topic):
            found.numbers.setdefault(topic, len(found.numbers))
    own = {number: found.numbers[topic] for number, topic in topics.items() if wanted(topic)}
    kept = [(time, own[number]) for time, number in times if number in own]
    found.times.extend(time for time, _ in kept)
    found.topics.extend(number for _, number in kept)
    return True


def _of_sqlite(path: Path) -> tuple[list[tuple[int, int]], dict[int, str]]:
    if path.suffix != '.db3' or any(Path(f'{path}{end}').exists() for end in JOURNALS):
        raise ValueError('not whole by itself')
    with closing(sqlite3.connect(f'{path.absolute().as_uri()}?mode=ro&immutable=1', uri=True)) as base:
        topics = dict(base.execute('SELECT id, name FROM topics').fetchall())
        return base.execute('SELECT timestamp, topic_id FROM messages ORDER BY id').fetchall(), topics


def _of_mcap(path: Path) -> tuple[list[tuple[int, int]], dict[int, str]]:
    """Raises ValueError or struct.error unless the indexes list as many messages as the statistics."""
    with path.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        topics, count = _summary(content)
        found, pairs, at = list[tuple[int, int]](), list[tuple[int, int, int]](), len(MAGIC)
        while True:
            opcode, size = struct.unpack_from('<BQ', content, at)
            if opcode == INDEX:
                (channel,) = struct.unpack_from('<H', content, at + 9)
                listed = np.frombuffer(content[at + 15 : at + 9 + size], INDEX_PAIR)
                pairs += zip(listed['offset'].tolist(), listed['time'].tolist(), [channel] * len(listed), strict=True)
            else:
                found += [(time, channel) for _, time, channel in sorted(pairs)]
                pairs = []
                if opcode == MESSAGE:
                    channel, _, time = struct.unpack_from('<HIQ', content, at + 9)
                    found.append((time, channel))
                elif opcode == DATA_END:
                    break
            at += 9 + size
    if len(found) != count:
        raise ValueError('the indexes do not list every message')
    return found, topics


def _summary(content: mmap.mmap) -> tuple[dict[int, str], int]:
    """Channel -> topic, and the number of messages, as the end of the file gives them."""
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
