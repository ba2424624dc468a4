"""MCAP files, chunk by chunk: https://mcap.dev/spec."""

import mmap
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lz4.frame
from backports import zstd

from vla_training.bag.parts import LARGEST, Damage, Raw, Types

MAGIC = b'\x89MCAP0\r\n'
HEADER, FOOTER, SCHEMA, CHANNEL, MESSAGE, CHUNK, STATISTICS, DATA_END = 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x0B, 0x0F
SIZES = {FOOTER: 20, DATA_END: 4}  # [byte]


class _Fields:
    """Reads the fields of a record one after the other. struct.error or ValueError where it is too short."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def numbers(self, form: str) -> tuple:
        found = struct.unpack_from('<' + form, self.data, self.at)
        self.at += struct.calcsize('<' + form)
        return found

    def take(self, form: str) -> bytes:
        """Bytes behind their number, which is of this form."""
        (size,) = self.numbers(form)
        found = self.data[self.at : self.at + size]
        if len(found) != size:
            raise ValueError('a record is too short')
        self.at += size
        return found

    def text(self) -> str:
        return self.take('I').decode()


class _Channels:
    """Topic and type by channel number."""

    def __init__(self, types: Types, damage: Damage, summary: list[tuple[int, bytes]]) -> None:
        """summary: (opcode, data) at the end of the file, without a checksum; for what is found nowhere else."""
        self.types, self.damage, self._summary = types, damage, summary
        self._schemas: dict[int, str] = {}
        self._channels: dict[int, tuple[str, str]] = {}
        self._seen: Counter[int] = Counter()

    def learn(self, opcode: int, data: bytes, *, checked: bool = True) -> None:
        fields = _Fields(data)
        if opcode == SCHEMA:
            (number,), name = fields.numbers('H'), fields.text()
            encoding, text = fields.text(), fields.text()
            try:
                self.types.define(name, encoding, text, checked=checked)
            except Exception as error:  # rosbags' parser
                self.damage.problems.append(f'the definition of {name} cannot be understood ({error})')
            self._schemas.setdefault(number, name)
        elif opcode == CHANNEL:
            (number, schema), topic = fields.numbers('HH'), fields.text()
            if schema not in self._schemas:
                self._look_up()
            self._channels.setdefault(number, (topic, self._schemas.get(schema, '')))

    def message(self, data: bytes | memoryview) -> Raw:
        number, _, time, _ = struct.unpack_from('<HIQQ', data)
        if number not in self._channels:
            self._look_up()
        if number not in self._channels:
            raise ValueError(f'a message is of channel {number}, which is not described')
        topic, kind = self._channels[number]
        self._seen[number] += 1
        return Raw(topic, kind, time, data[22:])

    def _look_up(self) -> None:
        """The part of the file that described a channel is lost: the end of the file says it again."""
        records, self._summary = self._summary, []
        for opcode, data in records:
            self.learn(opcode, data, checked=False)

    def lost(self, expected: dict[int, int]) -> str:
        """Messages of which the end of the file tells (channel -> number) and that were not seen, by topic."""
        missing = {n: count - self._seen[n] for n, count in expected.items() if count > self._seen[n]}
        return ', '.join(f'{count} of {self._channels.get(n, ("?",))[0]}' for n, count in missing.items())


def read_mcap(path: Path, name: str, types: Types, damage: Damage, progress: Callable[[int], None]) -> Iterator[Raw]:
    with path.open('rb') as file:
        if path.stat().st_size < len(MAGIC):
            damage.problems.append(f'{name} is empty: the recorder wrote nothing')
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content[:8] != MAGIC:
                damage.problems.append(f'{name} does not begin as an MCAP does')
            summary = list(_summary(content))
            channels = _Channels(types, damage, [r for r in summary if r[0] in (SCHEMA, CHANNEL)])
            for opcode, data, at in _records(content, name, damage):
                progress(at)
                try:
                    if opcode == CHUNK:
                        yield from _chunk(data, channels, damage)
                    elif opcode == MESSAGE:
                        damage.unchecked = True
                        yield channels.message(data)
                    else:
                        channels.learn(opcode, data)
                except (ValueError, struct.error, zstd.ZstdError, RuntimeError, MemoryError) as error:
                    damage.problems.append(f'{name}: the part at byte {at} ({len(data)} bytes) is lost: {error}')
            if lost := channels.lost(_expected(summary)):
                damage.problems.append(f'{name}: messages are lost: {lost}')


def _summary(content: mmap.mmap) -> Iterator[tuple[int, bytes]]:
    """(opcode, data) of the records at the end of the file, as far as they are whole."""
    if content[-8:] != MAGIC or content[-37:-36] != bytes([FOOTER]):
        return
    (at,) = struct.unpack_from('<Q', content, len(content) - 28)
    while 0 < at < len(content) - 37:
        opcode, size = struct.unpack_from('<BQ', content, at)
        if size > len(content):
            return
        yield opcode, content[at + 9 : at + 9 + size]
        at += 9 + size


def _expected(summary: list[tuple[int, bytes]]) -> dict[int, int]:
    """Channel -> messages, as the statistics record says."""
    for opcode, data in summary:
        if opcode == STATISTICS and len(data) >= 46 and (len(data) - 46) % 10 == 0:
            return dict(struct.iter_unpack('<HQ', data[46:]))
    return {}


def _records(content: mmap.mmap, name: str, damage: Damage) -> Iterator[tuple[int, bytes, int]]:
    """(opcode, data, byte) of the records up to the end of the data."""
    at, end = len(MAGIC), len(content)
    while True:
        if end - at >= 9:
            opcode, size = struct.unpack_from('<BQ', content, at)
            if SIZES.get(opcode) == size:
                return
            if HEADER <= opcode <= DATA_END and at + 9 + size <= end:
                yield opcode, content[at + 9 : at + 9 + size], at
                at += 9 + size
                continue
        following = _next_chunk(content, at + 1)
        if following < 0:
            cut = end - at < 9 or HEADER <= opcode <= DATA_END
            why = 'it ends in mid-air, its recorder was killed' if cut else 'what follows is damaged'
            damage.problems.append(f'{name}: the last {end - at} bytes cannot be read: {why}')
            return
        damage.problems.append(f'{name}: {following - at} bytes from byte {at} on are damaged')
        at = following


def _next_chunk(content: mmap.mmap, start: int) -> int:
    """Where the next compressed chunk begins; -1: there is none."""
    found = []
    for compression in (b'\x04\x00\x00\x00zstd', b'\x03\x00\x00\x00lz4'):
        p = content.find(compression, start + 37)
        while p >= 0:
            opcode, size = struct.unpack_from('<BQ', content, p - 37)
            where = p + len(compression)
            if opcode == CHUNK and where + 8 <= len(content):
                (packed,) = struct.unpack_from('<Q', content, where)
                if size == 28 + len(compression) + 8 + packed and p - 37 + 9 + size <= len(content):
                    found.append(p - 37)
                    break
            p = content.find(compression, p + 1)
    return min(found, default=-1)


def _chunk(data: bytes, channels: _Channels, damage: Damage) -> list[Raw]:
    """All messages of a chunk. Raises when any of it is not as it must be: then none of it can be trusted."""
    fields = _Fields(data)
    _, _, size, checksum = fields.numbers('QQQI')
    compression, packed = fields.text(), fields.take('Q')
    plain = _inflated(packed, compression, size)
    if checksum:
        if zlib.crc32(plain) != checksum:
            raise ValueError('its checksum does not fit')
    elif not (compression == 'zstd' and zstd.get_frame_info(packed) and packed[4] & 4):
        damage.unchecked = True  # a zstd frame may have a checksum of its own: bit 2 of its header
    found, at, view = [], 0, memoryview(plain)  # images are large: what is cut out of the chunk is not copied
    while at < len(plain):
        opcode, length = struct.unpack_from('<BQ', plain, at)
        record = view[at + 9 : at + 9 + length]
        if len(record) != length:
            raise ValueError('a record in it is too short')
        if opcode == MESSAGE:
            found.append(channels.message(record))
        elif opcode in (SCHEMA, CHANNEL):
            channels.learn(opcode, bytes(record))
        at += 9 + length
    return found


def _inflated(packed: bytes, compression: str, size: int) -> bytes:
    if size > LARGEST:
        raise ValueError(f'it says to have {size} bytes')
    if compression == 'zstd':
        decompressor: Any = zstd.ZstdDecompressor()
    elif compression == 'lz4':
        decompressor = lz4.frame.LZ4FrameDecompressor()
    elif not compression:
        return packed
    else:
        raise ValueError(f'its compression {compression!r} is unknown')
    plain = decompressor.decompress(packed, max_length=size + 1)
    if len(plain) != size or not decompressor.eof:
        raise ValueError(f'it has {len(plain)} bytes and must have {size}')
    return plain
