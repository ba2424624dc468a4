"""MCAP files made byte by byte, for tests: also what no recorder of ROS 2 writes."""

import struct
import zlib
from dataclasses import dataclass, field

import lz4.frame
from backports import zstd

MAGIC = b'\x89MCAP0\r\n'
PACK = {'': bytes, 'zstd': zstd.compress, 'lz4': lz4.frame.compress}


def text(content: str | bytes) -> bytes:
    content = content.encode() if isinstance(content, str) else content
    return struct.pack('<I', len(content)) + content


def record(opcode: int, content: bytes) -> bytes:
    return struct.pack('<BQ', opcode, len(content)) + content


def schema(number: int, name: str, encoding: str, definition: bytes) -> bytes:
    return record(3, struct.pack('<H', number) + text(name) + text(encoding) + text(definition))


def channel(number: int, schema: int, topic: str, encoding: str = 'cdr') -> bytes:
    return record(4, struct.pack('<HH', number, schema) + text(topic) + text(encoding) + text(b''))


def message(channel: int, time: int, data: bytes, published: int | None = None) -> bytes:
    return record(5, struct.pack('<HIQQ', channel, 0, time, time if published is None else published) + data)


def string(words: str) -> bytes:
    """A std_msgs/String in CDR."""
    return b'\0\1\0\0' + text(words.encode() + b'\0')


@dataclass
class File:
    """Grows record by record. summary: the file ends with one, as when its recorder was closed."""

    compression: str = ''
    content: bytes = MAGIC + record(1, text('ros2') + text(''))
    descriptions: list[bytes] = field(default_factory=list)  # schemas and channels, for the summary
    chunks: list[tuple[int, int]] = field(default_factory=list)  # (byte, length)
    counts: dict[int, int] = field(default_factory=dict)  # channel -> messages

    def add(self, *records: bytes) -> 'File':
        for one in records:
            if one[0] in (3, 4):
                self.descriptions.append(one)
            elif one[0] == 5:
                (number,) = struct.unpack_from('<H', one, 9)
                self.counts[number] = self.counts.get(number, 0) + 1
        self.content += b''.join(records)
        return self

    def chunk(self, *records: bytes, checksum: bool = True) -> 'File':
        plain, before = b''.join(records), self.content
        self.add(*records)
        packed = PACK[self.compression](plain)
        head = struct.pack('<QQQI', 0, 2**60, len(plain), zlib.crc32(plain) if checksum else 0)
        one = record(6, head + text(self.compression) + struct.pack('<Q', len(packed)) + packed)
        self.chunks.append((len(before), len(one)))
        self.content = before + one
        return self

    def bytes(self, *, summary: bool = True) -> bytes:
        if not summary:
            return self.content
        data = self.content + record(15, bytes(4))
        counts = b''.join(struct.pack('<HQ', *pair) for pair in self.counts.items())
        numbers = struct.pack('<QHIIIIQQ', sum(self.counts.values()), 0, 0, 0, 0, len(self.chunks), 0, 0)
        tail = b''.join(self.descriptions) + record(11, numbers + struct.pack('<I', len(counts)) + counts)
        for begin, length in self.chunks:
            tail += record(
                8, struct.pack('<QQQQIQ', 0, 2**60, begin, length, 0, 0) + text(self.compression) + bytes(16)
            )
        end = struct.pack('<BQQQ', 2, 20, len(data), 0)
        return data + tail + end + struct.pack('<I', zlib.crc32(tail + end)) + MAGIC
