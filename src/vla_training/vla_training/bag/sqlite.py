"""Reads sqlite3 files row by row, and page by page after a failure. Nothing is written beside them."""

import mmap
import shutil
import sqlite3
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from vla_training.bag.parts import CDR, ROS, Damage, Raw, Types, full_name
from vla_training.bag.sqlite_pages import leaf_rows

JOURNALS = ('-wal', '-journal')  # suffixes of the journals of a file that was not closed
RESERVE = 100_000_000  # [byte] that a copy leaves free on its disk


def read_sqlite(path: Path, name: str, types: Types, damage: Damage, progress: Callable[[int], None]) -> Iterator[Raw]:
    """Yield the messages in the order of the file. name: of the file, for reports. progress: called with bytes read."""
    damage.unchecked = True  # the format has no checksums
    try:
        with _settled(path, name, damage) as file, closing(_open(file)) as base:
            base.text_factory = lambda b: b.decode(errors='replace')
            base.execute('PRAGMA writable_schema=ON')  # else a file that was cut is refused as a whole
            rows = base.execute('SELECT id, name, type, serialization_format FROM topics').fetchall()
            topics = {
                number: (topic, full_name(kind), _encoding(coded))
                for number, topic, kind, coded in rows
                if all(isinstance(text, str) for text in (topic, kind, coded))  # else the row is damaged
            }
            _define(base, types)
            yield from _rows(base, file, topics, name, damage, progress)
    except sqlite3.Error as error:
        damage.problems.append(f'{name} cannot be read as a database ({error}): was its recorder killed?')


def _open(path: Path) -> sqlite3.Connection:
    """Open a database without locks and new files, for read-only disks. Journals are not read."""
    return sqlite3.connect(f'{path.absolute().as_uri()}?mode=ro&immutable=1', uri=True)


@contextmanager
def _settled(path: Path, name: str, damage: Damage) -> Iterator[Path]:
    """Yield the file, or a temporary copy with its journal applied.

    Without room for a copy, the file itself is yielded and the loss is reported.
    """
    journals = [p for end in JOURNALS if (p := path.with_name(path.name + end)).is_file() and p.stat().st_size]
    if not journals:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        beside = ' and '.join(p.name for p in journals)
        needed = path.stat().st_size + 2 * sum(p.stat().st_size for p in journals)
        copy = Path(folder, path.name)
        try:
            if needed > shutil.disk_usage(folder).free - RESERVE:
                raise OSError(f'a copy of {needed / 1e9:.2f} GB has no room in {tempfile.gettempdir()}')
            for file in (path, *journals):
                shutil.copyfile(file, copy.with_name(file.name))
        except OSError as error:
            damage.problems.append(
                f'{name} is read without what is in {beside}: {error}. Set TMPDIR to a folder with room'
            )
            yield path
            return
        try:
            with closing(sqlite3.connect(copy)) as base:  # the last one that closes a file puts its journal into it
                base.execute('SELECT count(*) FROM sqlite_master').fetchone()
        except sqlite3.Error as error:
            damage.problems.append(f'{name} is read without what is in {beside}, which cannot be read ({error})')
        yield copy


def _encoding(coded: str) -> str:
    return coded if coded in CDR else f'serialized as {coded}'


def _define(base: sqlite3.Connection, types: Types) -> None:
    query = 'SELECT topic_type, encoding, encoded_message_definition FROM message_definitions'
    try:
        for kind, encoding, text in base.execute(query).fetchall():
            if encoding in ROS and isinstance(kind, str) and isinstance(text, str):
                types.define(kind, encoding, text.encode())
    except sqlite3.Error:
        return  # before Jazzy there is no such table


def _rows(
    base: sqlite3.Connection,
    path: Path,
    topics: dict[int, tuple[str, str, str]],
    name: str,
    damage: Damage,
    progress: Callable[[int], None],
) -> Iterator[Raw]:
    """Yield the rows. Writers number them without holes, so a hole is a lost row."""
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
        where, kind, encoding = topics[topic]
        yield Raw(where, kind, time, data, encoding)
    if broken or (end is not None and count < end):
        lost = f'{max(end or 0, last) - count} rows' + ('' if end is not None else f' and all behind row {last}')
        damage.problems.append(f'{name} is damaged ({broken or "rows are missing"}): {lost} are lost')


def _broken(base: sqlite3.Connection, path: Path) -> str:
    """Return the fault of the file's structure; empty: none is visible."""
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
