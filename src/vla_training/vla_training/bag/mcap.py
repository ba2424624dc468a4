"""Reads MCAP files chunk by chunk: https://mcap.dev/spec."""

import mmap
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lz4.frame
from backports import zstd

from vla_training.bag.mcap_records import (
    CHANNEL,
    CHUNK,
    MAGIC,
    MESSAGE,
    SCHEMA,
    Summary,
    descriptions,
    read_summary,
    records,
)
from vla_training.bag.parts import CDR, LARGEST, ROS, Damage, Raw, Types, full_name

STEP = 16_384  # [byte] of damaged compressed data that are decompressed at once


class _Fields:
    """Reads the fields of a record in turn. Raises struct.error or ValueError where the record is too short."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def numbers(self, form: str) -> tuple:
        found = struct.unpack_from('<' + form, self.data, self.at)
        self.at += struct.calcsize('<' + form)
        return found

    def take(self, form: str) -> bytes:
        """Return the bytes that follow their number, which has this form."""
        (size,) = self.numbers(form)
        found = self.data[self.at : self.at + size]
        if len(found) != size:
            raise ValueError('a record is too short')
        self.at += size
        return found

    def text(self) -> str:
        return self.take('I').decode(errors='replace')


class _Channels:
    """Topic, type and encoding by channel number."""

    def __init__(self, types: Types, summary: Summary) -> None:
        """summary: source of descriptions that are found nowhere else."""
        self.types, self._spare = types, list(summary.records)
        self._schemas: dict[int, tuple[str, str]] = {}  # type, encoding of its definition
        self._channels: dict[int, tuple[str, str, str]] = {}  # topic, type, encoding of its messages
        self._seen: Counter[int] = Counter()
        self._undescribed: Counter[int] = Counter()

    def learn(self, opcode: int, data: bytes, *, checked: bool = True) -> None:
        fields = _Fields(data)
        if opcode == SCHEMA:
            (number,), name = fields.numbers('H'), fields.text()
            encoding, definition = fields.text(), fields.take('I')
            if encoding in ROS:
                self.types.define(name, encoding, definition, checked=checked)
            self._schemas.setdefault(number, (full_name(name) if encoding in ROS else name, encoding))
        elif opcode == CHANNEL:
            (number, schema), topic = fields.numbers('HH'), fields.text()
            encoding = fields.text()
            if schema and schema not in self._schemas:
                self._look_up()
            kind, defined = self._schemas.get(schema, ('', ''))
            if not schema:
                encoding = f'{encoding or "unknown"} without a schema'
            elif encoding not in CDR or (defined and defined not in ROS):
                encoding = f'{encoding or "unknown"} by {defined or "no"} schema'
            self._channels.setdefault(number, (topic, kind, encoding))

    def message(self, data: bytes | memoryview) -> Raw | None:
        """Return the message. None: the description of its channel is lost, which is counted."""
        number, _, time, _ = struct.unpack_from('<HIQQ', data)
        if number not in self._channels:
            self._look_up()
        self._seen[number] += 1
        if number not in self._channels:
            self._undescribed[number] += 1
            return None
        topic, kind, encoding = self._channels[number]
        return Raw(topic, kind, time, data[22:], encoding)

    def keep(self, rest: bytes) -> None:
        """Keep the complete descriptions in the rest of a lost chunk, for channels that have no other."""
        self._spare += descriptions(rest)

    def _look_up(self) -> None:
        """Learn descriptions from the end of the file and from lost chunks, because the original is lost."""
        again, self._spare = self._spare, []
        for opcode, data in again:
            try:
                self.learn(opcode, data, checked=False)
            except (ValueError, struct.error):  # it is damaged, too
                continue

    def lost(self, expected: dict[int, int]) -> str:
        """Return the numbers of lost messages by topic, in words. expected: channel -> number, from the file's end."""
        missing = {n: count - self._seen[n] for n, count in expected.items() if count > self._seen[n]}
        lines = [f'{count} of {self._channels.get(n, ("?",))[0]}' for n, count in missing.items()]
        lines += [f'{count} of channel {n}, whose description is lost' for n, count in self._undescribed.items()]
        return ', '.join(lines)


def read_mcap(path: Path, name: str, types: Types, damage: Damage, progress: Callable[[int], None]) -> Iterator[Raw]:
    with path.open('rb') as file:
        if path.stat().st_size < len(MAGIC):
            damage.problems.append(f'{name} is empty: the recorder wrote nothing')
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content[:8] != MAGIC:
                damage.problems.append(f'{name} does not begin as an MCAP does')
            summary = read_summary(content)
            channels = _Channels(types, summary)
            for opcode, data, at in records(content, summary.chunks, name, damage):
                progress(at)
                try:
                    if opcode == CHUNK:
                        yield from _chunk(data, channels, damage)
                    elif opcode == MESSAGE:
                        damage.unchecked = True
                        if raw := channels.message(data):
                            yield raw
                    else:
                        channels.learn(opcode, data)
                except (ValueError, struct.error, zstd.ZstdError, RuntimeError, MemoryError) as error:
                    damage.problems.append(f'{name}: the part at byte {at} ({len(data)} bytes) is lost: {error}')
            if lost := channels.lost(summary.expected):
                damage.problems.append(f'{name}: messages are lost: {lost}')


def _chunk(data: bytes, channels: _Channels, damage: Damage) -> list[Raw]:
    """Return all messages of a chunk. Raises when any part is wrong: then no part can be trusted."""
    fields = _Fields(data)
    _, _, size, checksum = fields.numbers('QQQI')
    compression, packed = fields.text(), fields.take('Q')
    plain = _inflated(packed, compression, size, channels)
    if checksum and zlib.crc32(plain) != checksum:
        channels.keep(plain)
        raise ValueError('its checksum does not fit')
    checked = bool(checksum) or (compression == 'zstd' and zstd.get_frame_info(packed) and packed[4] & 4)
    damage.unchecked |= not checked  # a zstd frame may have a checksum of its own: bit 2 of its header
    found, at, view = [], 0, memoryview(plain)  # images are large: slices of the chunk are not copied
    while at < len(plain):
        opcode, length = struct.unpack_from('<BQ', plain, at)
        record = view[at + 9 : at + 9 + length]
        if len(record) != length:
            raise ValueError('a record in it is too short')
        if opcode == MESSAGE:
            if raw := channels.message(record):
                found.append(raw)
            elif not checked:
                raise ValueError('a message in it is of a channel that is not described')
        elif opcode in (SCHEMA, CHANNEL):
            channels.learn(opcode, bytes(record))
        at += 9 + length
    return found


def _inflated(packed: bytes, compression: str, size: int, channels: _Channels) -> bytes:
    """Return the decompressed data. Raises for a wrong size or damage; the readable part then goes to `channels`."""
    if size > LARGEST:
        raise ValueError(f'its header gives a size of {size} bytes')
    if compression == 'zstd':
        decompressor: Any = zstd.ZstdDecompressor()
    elif compression == 'lz4':
        decompressor = lz4.frame.LZ4FrameDecompressor()
    elif compression:
        raise ValueError(f'its compression {compression!r} is unknown')
    try:
        plain = decompressor.decompress(packed, max_length=size + 1) if compression else packed
    except (zstd.ZstdError, RuntimeError):
        channels.keep(_beginning(packed, compression))
        raise
    if len(plain) != size or (compression and not decompressor.eof):
        channels.keep(plain)
        raise ValueError(f'it has {len(plain)} bytes and must have {size}')
    return plain


def _beginning(packed: bytes, compression: str) -> bytes:
    """Return the data before the damage of compressed data."""
    decompressor: Any = zstd.ZstdDecompressor() if compression == 'zstd' else lz4.frame.LZ4FrameDecompressor()
    parts = []
    try:
        for at in range(0, len(packed), STEP):
            parts.append(decompressor.decompress(packed[at : at + STEP]))
    except (zstd.ZstdError, RuntimeError, EOFError):
        pass
    return b''.join(parts)
