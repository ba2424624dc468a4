"""Reads a rosbag2: messages of chosen topics in order of time, decoded with the definitions in the bag."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rosbags.highlevel import AnyReader
from rosbags.highlevel.anyreader import AnyReaderError


class Message(NamedTuple):
    """One message of a bag."""

    topic: str  # as in the bag, with namespace
    time: int  # [ns] bag time: the recorder's clock at the receipt
    data: Any  # fields as in the .msg file; arrays are numpy


class RawMessage(NamedTuple):
    """One message, serialized."""

    topic: str
    time: int  # [ns] bag time
    data: bytes  # CDR


class Bag:
    """An open bag, for a with statement. Raises ValueError with the remedy when it cannot be read."""

    def __init__(self, path: str | Path) -> None:
        if not Path(path).exists():
            raise ValueError(f'there is no bag {path}')
        try:
            self._reader = AnyReader([Path(path)])
            self._reader.open()
        except (AnyReaderError, OSError) as error:
            raise ValueError(f'{path} is no complete bag ({error}); was its recorder killed?') from error

    def __enter__(self) -> 'Bag':
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    @property
    def topics(self) -> dict[str, str]:
        """Topic -> message type, also of topics without a message."""
        return {c.topic: c.msgtype for c in self._reader.connections}

    @property
    def counts(self) -> dict[str, int]:
        """Topic -> number of messages."""
        counts: Counter[str] = Counter()
        for c in self._reader.connections:  # a topic has a connection per publisher profile
            counts[c.topic] += c.msgcount
        return counts

    @property
    def start(self) -> int:
        """Bag time of the first message [ns]."""
        return self._reader.start_time

    @property
    def seconds(self) -> float:
        """Time from the first to the last message [s]."""
        return self._reader.duration / 1e9

    def messages(self, topics: Iterable[str] | None = None) -> Iterator[Message]:
        """Yield the messages of these topics (absolute names; None: all) by bag time; unknown topics are ignored."""
        for connection, time, data in self._read(topics):
            yield Message(connection.topic, time, self._reader.deserialize(data, connection.msgtype))

    def raw(self, topics: Iterable[str], until: int) -> Iterator[RawMessage]:
        """Yield the serialized messages of these topics before a bag time [ns], by bag time."""
        for connection, time, data in self._read(topics, until):
            yield RawMessage(connection.topic, time, bytes(data))

    def _read(self, topics: Iterable[str] | None, until: int | None = None) -> Iterator[tuple[Any, int, bytes]]:
        wanted = None if topics is None else set(topics)
        connections = [c for c in self._reader.connections if wanted is None or c.topic in wanted]
        if connections:  # rosbags takes an empty list for all
            yield from self._reader.messages(connections, stop=until)
