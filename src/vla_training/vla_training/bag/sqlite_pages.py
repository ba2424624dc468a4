"""Rows of the table `messages` straight from the leaf pages of a damaged sqlite3 file.

The way to the leaves (the interior pages of the B-tree) is often what a file that was cut has lost. Format:
https://www.sqlite.org/fileformat2.html, sections 1.5, 1.6 and 2.1.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

LEAF = 0x0D
LARGEST = 2**31  # [byte]


class Row(NamedTuple):
    number: int
    topic: int
    time: int  # [ns]
    data: bytes


class _Cell(NamedTuple):
    """The place of a row in the file."""

    at: int  # byte of what is in the leaf itself
    local: int  # number of bytes there
    size: int  # number of bytes in all


def leaf_rows(content: bytes, after: int) -> Iterator[Row]:
    """Rows of form (id, topic_id, timestamp, data) with a number above `after`, in order, as far as they are whole.

    content: of the file. Raises ValueError when it does not begin as such a file does.
    """
    if content[:16] != b'SQLite format 3\x00':
        raise ValueError('it does not begin as an sqlite3 file does')
    (page,) = struct.unpack_from('>H', content, 16)
    page = 65536 if page == 1 else page
    if page < 512 or page & (page - 1):
        raise ValueError(f'its page size of {page} is none')
    usable = page - content[20]
    cells: dict[int, _Cell] = {}
    for base in range(0, len(content) - page + 1, page):
        head = base + (100 if base == 0 else 0)
        if content[head] == LEAF:
            cells.update(_cells(content, base, head, page, usable))
    for number in sorted(n for n in cells if n > after):
        row = _row(content, number, cells[number], page, usable)
        if row is not None:
            yield row


def _cells(content: bytes, base: int, head: int, page: int, usable: int) -> Iterator[tuple[int, _Cell]]:
    (count,) = struct.unpack_from('>H', content, head + 3)
    for i in range(min(count, page // 4)):
        place = head + 8 + 2 * i
        if place + 2 > base + page:
            return
        at = base + struct.unpack_from('>H', content, place)[0]
        size, at = _varint(content, at)
        number, at = _varint(content, at)
        local = size
        if size > usable - 35:  # the rest is on overflow pages
            least = (usable - 12) * 32 // 255 - 23
            local = least + (size - least) % (usable - 4)
            local = local if local <= usable - 35 else least
        if size <= LARGEST and at + local <= base + page:
            yield number, _Cell(at, local, size)


def _row(content: bytes, number: int, cell: _Cell, page: int, usable: int) -> Row | None:
    """None where the row is cut or is none of the table."""
    parts, left = [content[cell.at : cell.at + cell.local]], cell.size - cell.local
    if left:
        if cell.at + cell.local + 4 > len(content):
            return None
        (following,) = struct.unpack_from('>I', content, cell.at + cell.local)
        while left > 0:
            base = (following - 1) * page
            if following == 0 or base + page > len(content):
                return None
            (following,) = struct.unpack_from('>I', content, base)
            parts.append(content[base + 4 : base + 4 + min(left, usable - 4)])
            left -= usable - 4
    payload = b''.join(parts)
    head, at = _varint(payload, 0)
    kinds = []
    while at < min(head, len(payload)):
        kind, at = _varint(payload, at)
        kinds.append(kind)
    if len(kinds) != 4 or kinds[0] != 0 or not (1 <= kinds[1] <= 9 and 1 <= kinds[2] <= 6) or kinds[3] < 12:
        return None
    topic, at = _integer(payload, at, kinds[1])
    time, at = _integer(payload, at, kinds[2])
    data = payload[at:]
    return Row(number, topic, time, data) if kinds[3] % 2 == 0 and len(data) == (kinds[3] - 12) // 2 else None


def _integer(data: bytes, at: int, kind: int) -> tuple[int, int]:
    if kind in (8, 9):
        return kind - 8, at
    size = (0, 1, 2, 3, 4, 6, 8, 8)[kind]
    return int.from_bytes(data[at : at + size], 'big', signed=True), at + size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Value and the byte behind it; big-endian, seven bits a byte, eight in the ninth."""
    value = 0
    for i in range(9):
        byte = data[at + i] if at + i < len(data) else 0
        if i == 8:
            return value << 8 | byte, at + 9
        value = value << 7 | byte & 0x7F
        if not byte & 0x80:
            return value, at + i + 1
    raise AssertionError('unreachable')
