"""Reads the records of an MCAP file in turn, also behind damage: https://mcap.dev/spec."""

import mmap
import re
import struct
import zlib
from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple

from vla_training.bag.parts import LARGEST, Damage

MAGIC = b'\x89MCAP0\r\n'
HEADER, FOOTER, SCHEMA, CHANNEL, MESSAGE, CHUNK, DATA_END = 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x0F
CHUNK_INDEX, STATISTICS = 0x08, 0x0B
SIZES = {FOOTER: 20, DATA_END: 4}  # [byte]
READ = (SCHEMA, CHANNEL, MESSAGE, CHUNK)  # others (attachments, metadata, indices) are not needed
APART = 86_400 * 10**9  # [ns] largest distance of two consecutive messages in an unchunked file
CHAIN = 3  # number of consecutive valid records that confirm a message
# A chunk up to its compressed data: length, two times, size, checksum, compression, size. Sizes are below LARGEST.
_CHUNK = re.compile(rb'\x06(?=.{4}\0{4}.{20}\0{4}.{4}(?:\0{4}|\x03\0{3}lz4|\x04\0{3}zstd).{4}\0{4})', re.DOTALL)
_DESCRIPTION = re.compile(rb'[\x03\x04](?=.{4}\0{4})', re.DOTALL)
_MESSAGE = re.compile(rb'\x05(?=.{4}\0{4}.{22})', re.DOTALL)


class Record(NamedTuple):
    opcode: int
    data: bytes
    at: int  # byte of the file


class Times(NamedTuple):
    """Times of a message [ns]. They may come from different clocks, for example in simulation time."""

    logged: int
    published: int

    def near(self, other: 'Times') -> bool:
        """Return whether the messages may be consecutive in a file."""
        return abs(self.logged - other.logged) < APART and abs(self.published - other.published) < APART


class Summary(NamedTuple):
    """The summary at the end of the file."""

    records: list[tuple[int, bytes]]  # (opcode, data) of the schemas and channels
    expected: dict[int, int]  # channel -> messages
    chunks: dict[int, int]  # first byte of a chunk -> length of its record [byte]


def read_summary(content: mmap.mmap) -> Summary:
    """Return the readable part of the summary. It has chunks only if it can be trusted."""
    found = Summary([], {}, {})
    if content[-8:] != MAGIC or content[-37:-36] != bytes([FOOTER]):
        return found
    end = len(content) - 37
    start, _, checksum = struct.unpack_from('<QQI', content, len(content) - 28)
    # The checksum is over all from the summary's beginning up to itself. 0: its writer made none.
    right = checksum == 0 or (0 < start <= end and zlib.crc32(content[start:-12]) == checksum)
    at = start
    while 0 < at <= end - 9:
        opcode, size = struct.unpack_from('<BQ', content, at)
        data = content[at + 9 : at + 9 + size]
        at += 9 + size
        if at > end:
            break
        if opcode in (SCHEMA, CHANNEL):
            found.records.append((opcode, data))
        elif opcode == STATISTICS and len(data) >= 46 and (len(data) - 46) % 10 == 0:
            found.expected.update(struct.iter_unpack('<HQ', data[46:]))
        elif opcode == CHUNK_INDEX and len(data) >= 32 and right:
            begin, length = struct.unpack_from('<QQ', data, 16)
            if len(MAGIC) <= begin and begin + length <= start and (checksum or _chunk_end(content, begin)):
                found.chunks[begin] = length
    return found


def records(content: mmap.mmap, chunks: dict[int, int], name: str, damage: Damage) -> Iterator[Record]:
    """Yield the records of READ up to the end of the data. chunks: as in Summary. name: of the file, for messages.

    Behind damage reading continues at the next chunk of the summary. Without a summary it continues at the next bytes
    that have the form of a chunk, or of a message in a file without chunks.
    """
    starts, end = sorted(chunks), len(content)
    at = len(MAGIC)
    sure = at  # up to here nothing was passed over: the end of the last chunk that is one
    last = at  # the record before
    time: Times | None = None  # of the last message outside a chunk that the one before it confirms
    before: Times | None = None  # of the last one
    chunked = bool(chunks)
    while True:
        opcode, size = struct.unpack_from('<BQ', content, at) if end - at >= 9 else (0, 0)
        stop = at + 9 + size
        following = bisect_left(starts, at + 1)
        reach = starts[following] if following < len(starts) else end
        if SIZES.get(opcode) == size and following == len(starts):
            return
        if HEADER <= opcode <= DATA_END and stop <= reach and stop == at + chunks.get(at, 9 + size):
            last = at
            if opcode in READ:
                yield Record(opcode, content[at + 9 : stop], at)
            if opcode == MESSAGE and size >= 22:
                now = Times(*struct.unpack_from('<QQ', content, at + 15))
                if before is not None and now.near(before):
                    time = now
                before = now
            if opcode == CHUNK:
                chunked = True
                if _chunk_end(content, at) == stop:
                    sure = stop
            at = stop
            continue
        if starts:
            place = bisect_left(starts, at)
            found = starts[place] if place < len(starts) else -1
        else:
            found = _next_chunk(content, sure)
            if found < 0 and not chunked:
                found = _next_message(content, last + 1, time)
        if found < 0:
            cut = end - at < 9 or HEADER <= opcode <= DATA_END
            why = 'it ends in mid-air, its recorder was killed' if cut else 'what follows is damaged'
            damage.problems.append(f'{name}: the last {end - at} bytes cannot be read: {why}')
            return
        lost = at if found > at else sure
        damage.problems.append(
            f'{name}: {found - lost} bytes from byte {lost} on are damaged'
            if found > lost
            else f'{name}: the head of the chunk at byte {found} is damaged'
        )
        at = last = found
        if found in chunks:  # its length is known, whatever its header has
            at = sure = found + chunks[found]
            yield Record(CHUNK, content[found + 9 : at], found)


def descriptions(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (opcode, data) of the schemas and channels in the rest of a chunk, also behind damage."""
    end = 0
    for match in _DESCRIPTION.finditer(data):
        at = match.start()
        opcode, size = struct.unpack_from('<BQ', data, at)
        if at >= end and _fits(opcode, record := data[at + 9 : at + 9 + size]) and len(record) == size:
            yield opcode, record
            end = at + 9 + size


def _fits(opcode: int, record: bytes) -> bool:
    """Return whether a record is a schema or channel: its name is text, and its lengths fit together."""
    at, parts = (2 if opcode == SCHEMA else 4), list[bytes]()
    for _ in range(3):  # name, encoding and definition; topic, encoding and metadata
        if len(record) < at + 4:
            return False
        (size,) = struct.unpack_from('<I', record, at)
        parts.append(record[at + 4 : at + 4 + size])
        at += 4 + size
    try:
        return at == len(record) and parts[0].decode().isprintable() and parts[0] != b''
    except UnicodeDecodeError:
        return False


def _chunk_end(content: mmap.mmap, at: int) -> int:
    """Return the end of the chunk at this byte. 0: its lengths do not fit together, or the file ends before it."""
    if at + 49 > len(content) or content[at] != CHUNK:
        return 0
    size, _, _, plain, _, text = struct.unpack_from('<QQQQII', content, at + 1)
    if text > 16 or at + 49 + text > len(content):
        return 0
    (packed,) = struct.unpack_from('<Q', content, at + 41 + text)
    stop = at + 9 + size
    fits = size == 40 + text + packed and stop <= len(content) and plain <= LARGEST and (text or plain == packed)
    return stop if fits else 0


def _next_chunk(content: mmap.mmap, start: int) -> int:
    """Return the first byte of the next chunk; -1: there is none."""
    for match in _CHUNK.finditer(content, start):
        at = match.start()
        stop = _chunk_end(content, at)
        if not stop:
            continue
        (text,) = struct.unpack_from('<I', content, at + 37)
        inside = at + 49 + text
        if text or inside == stop or _chain(content, inside, stop, 1):
            return at
    return -1


def _next_message(content: mmap.mmap, start: int, time: Times | None) -> int:
    """Return the first byte of the next message outside a chunk; -1: none. time: of an earlier one; None: unknown."""
    for match in _MESSAGE.finditer(content, start):
        at = match.start()
        now = Times(*struct.unpack_from('<QQ', content, at + 15))
        near = now.near(time) if time is not None else abs(now.logged - now.published) < APART
        if near and _chain(content, at, len(content), CHAIN):
            return at
    return -1


def _chain(content: mmap.mmap, at: int, end: int, count: int) -> bool:
    """Return whether the next `count` records, or all up to the end of the data, are valid and of READ."""
    for _ in range(count):
        if end - at < 9:
            return at == end
        opcode, size = struct.unpack_from('<BQ', content, at)
        if SIZES.get(opcode) == size:
            return True
        at += 9 + size
        if opcode not in READ or at > end:
            return False
    return True
