"""Defines the parts that both storage readers share: a raw message, the damage, and the decoder of types."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rosbags.interfaces import Nodetype
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore

LARGEST = 2**31  # [byte] largest chunk or message; a larger size is damage
CDR = ('cdr', '')  # encodings of messages that can be decoded; '': its writer did not name it
ROS = ('ros2msg', 'ros2idl')  # encodings of definitions that can be understood


def full_name(kind: str) -> str:
    """Return a type as pkg/msg/Type. Early versions of ROS 2 and some writers of MCAP leave out `msg`."""
    package, _, name = kind.partition('/')
    return f'{package}/msg/{name}' if name and '/' not in name else kind


class Raw(NamedTuple):
    """One message as stored in the file."""

    topic: str
    kind: str  # full_name
    time: int  # [ns]
    data: bytes | memoryview
    encoding: str = CDR[0]  # another value describes the encoding of a message that is not of ROS 2


@dataclass
class Damage:
    """The parts of a bag that could not be read."""

    problems: list[str] = field(default_factory=list)  # one sentence each
    undecodable: Counter[str] = field(default_factory=Counter)  # topic -> messages
    examples: list[str] = field(default_factory=list)  # causes of the first ones
    order: list[str] = field(default_factory=list)  # one sentence per fault of the order of time
    unchecked: bool = False  # parts had no checksum: wrong values in them are not noticed
    foreign: dict[str, str] = field(default_factory=dict)  # topic -> encoding of ignored topics

    def miss(self, wanted: Iterable[str]) -> None:
        """Add a problem for each wanted topic that was ignored."""
        for topic in sorted(set(wanted) & set(self.foreign)):
            self.problems.append(
                f'{topic} cannot be read, its messages are {self.foreign.pop(topic)}: only {CDR[0]} with a '
                f'definition in {" or ".join(ROS)} is decoded. Convert the bag with the tools of its writer'
            )


class Types:
    """Decodes messages by the definitions in the bag, else by those of ROS 2 and of the sourced workspace.

    A definition is parsed for its first message. A bag has many unused definitions (services, actions, other robots),
    and faults in these are no damage.
    """

    def __init__(self, damage: Damage) -> None:
        self._damage = damage
        self._store = get_typestore(Stores.EMPTY)
        self._common = get_typestore(Stores.ROS2_HUMBLE)
        self._defined: dict[str, tuple[str, bytes, bool]] = {}  # type -> encoding, definition, whether it is checked

    def define(self, kind: str, encoding: str, text: bytes, *, checked: bool = True) -> None:
        """Keep the definition of a type. The first of several counts.

        checked False: the definition may be damaged, so one of ROS 2 has priority.
        """
        if text.strip():
            self._defined.setdefault(full_name(kind), (encoding, text, checked))

    def decode(self, data: bytes | memoryview, kind: str) -> Any:
        """Decode a message. Raises ValueError for a type without definition, and any exception for damaged data."""
        if kind not in self._store.fielddefs:
            self._find(kind)
        return self._store.deserialize_cdr(data, kind)

    def _find(self, kind: str) -> None:
        """Register the definition of a type and of its parts."""
        if kind not in self._store.fielddefs:
            self._take(kind)
        for part in _parts(self._store.fielddefs[kind][1]):
            self._find(part)

    def _take(self, kind: str) -> None:
        """Register a definition: of the bag, else of ROS 2, else of the sourced workspace."""
        encoding, text, checked = self._defined.pop(kind, ('', b'', False))
        if text and (checked or kind not in self._common.fielddefs):
            try:
                words = text.decode()
                self._register(get_types_from_idl(words) if encoding == ROS[1] else get_types_from_msg(words, kind))
                if kind in self._store.fielddefs:
                    return
            except Exception as error:  # rosbags' parser, which repeats the whole text
                why = str(error).splitlines() or [type(error).__name__]
                self._damage.problems.append(f'the definition of {kind} cannot be understood ({why[0].rstrip(":")})')
        if kind in self._common.fielddefs:
            self._register({kind: self._common.fielddefs[kind]})
        elif text := _installed(kind):
            self._register(get_types_from_msg(text.decode(), kind))
        if kind not in self._store.fielddefs:
            raise ValueError(
                f'the bag has no definition of {kind} and none is installed: source the workspace that has it'
            )

    def _register(self, found: dict[str, Any]) -> None:
        self._store.register({name: v for name, v in found.items() if name not in self._store.fielddefs})


def _installed(kind: str) -> bytes:
    """Return the .msg file of the sourced workspace; empty: there is none."""
    package, _, name = kind.partition('/msg/')
    for prefix in filter(None, os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep)):
        path = Path(prefix, 'share', package, 'msg', f'{name}.msg')
        if path.is_file():
            return path.read_bytes()
    return b''


def _parts(fields: Iterable[tuple[str, Any]]) -> Iterator[str]:
    """Yield the types of the fields of a type."""
    for _, (node, value) in fields:
        if node in (Nodetype.ARRAY, Nodetype.SEQUENCE):
            node, value = value[0]
        if node == Nodetype.NAME:
            yield value
