"""sqlite3 files: row by row, and page by page from where that fails."""

import mmap
import sqlite3
import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from vla_training.bag.parts import Damage, Raw, Types
from vla_training.bag.sqlite_pages import leaf_rows


def read_sqlite(path: Path, name: str, types: Types, damage: Damage, progress: Callable[[int], None]) -> Iterator[Raw]:
    """Messages in the order of the file. name: of the file, for people. progress is called with the bytes read."""
    damage.unchecked = True  # the format has no checksums
    try:
        with closing(sqlite3.connect(f'{path.absolute().as_uri()}?mode=ro', uri=True)) as base:
            base.text_factory = lambda b: b.decode(errors='replace')
            base.execute('PRAGMA writable_schema=ON')  # else a file that was cut is refused as a whole
            rows = base.execute('SELECT id, name, type FROM topics').fetchall()
            topics = {number: (topic, kind) for number, topic, kind in rows}
            _define(base, types, damage)
            yield from _rows(base, path, topics, name, damage, progress)
    except sqlite3.Error as error:
        damage.problems.append(f'{name} cannot be read as a database ({error}): was its recorder killed?')


def _define(base: sqlite3.Connection, types: Types, damage: Damage) -> None:
    query = 'SELECT topic_type, encoding, encoded_message_definition FROM message_definitions'
    try:
        for kind, encoding, text in base.execute(query).fetchall():
            try:
                types.define(kind, encoding, text)
            except Exception as error:  # rosbags' parser
                damage.problems.append(f'the definition of {kind} cannot be understood ({error})')
    except sqlite3.Error:
        return  # before Jazzy there is no such table


def _rows(
    base: sqlite3.Connection,
    path: Path,
    topics: dict[int, tuple[str, str]],
    name: str,
    damage: Damage,
    progress: Callable[[int], None],
) -> Iterator[Raw]:
    """Rows are numbered without holes by those who write bags: holes are what was lost."""
    size, last, count = path.stat().st_size, 0, 0
    broken = _broken(base, path)
    try:
        (end,) = base.execute('SELECT max(id) FROM messages').fetchone()
    except sqlite3.Error:
        end = None  # the last rows are gone
    rows = _by_pages(path, 0) if broken else _all(base)
    while True:
        try:
            number, topic, time, data = next(rows)
        except StopIteration:
            break
        except (sqlite3.Error, ValueError) as error:
            if broken:
                break
            broken = str(error)
            rows = _by_pages(path, last)
            continue
        if not isinstance(number, int) or number <= last:  # pages in disorder
            continue
        last, count = number, count + 1
        if topic not in topics or not isinstance(time, int) or not isinstance(data, bytes):
            damage.undecodable[topics[topic][0] if topic in topics else '?'] += 1
            continue
        progress(int(size * min(1.0, number / (end or number))))
        yield Raw(*topics[topic], time, data)
    if broken or (end is not None and count < end):
        lost = f'{max(end or 0, last) - count} rows' + ('' if end is not None else f' and all behind row {last}')
        damage.problems.append(f'{name} is damaged ({broken or "rows are missing"}): {lost} are lost')


def _broken(base: sqlite3.Connection, path: Path) -> str:
    """What is wrong with the file as a whole; empty: nothing that its structure shows."""
    with path.open('rb') as file:
        page, changes, pages, counted = struct.unpack('>16xH6xII60xI4x', file.read(100))
    page, size = 65536 if page == 1 else page, path.stat().st_size
    if size % max(page, 1) or (changes == counted and size < pages * page):
        return 'the file was cut'  # sqlite takes what is missing of the last page for zeros
    try:
        (found,) = base.execute('PRAGMA quick_check(1)').fetchone()
        return '' if found == 'ok' else found.replace('*** in database main ***\n', '')
    except sqlite3.Error as error:
        return str(error)


def _all(base: sqlite3.Connection) -> Iterator[tuple]:
    yield from base.execute('SELECT id, topic_id, timestamp, data FROM messages ORDER BY id')


def _by_pages(path: Path, after: int) -> Iterator[tuple]:
    with path.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield from leaf_rows(content, after)  # type: ignore[arg-type]  # it is indexed like bytes
