"""What the readers of the storage formats share: bytes of a message, what was lost, how a message is decoded."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rosbags.interfaces import Nodetype
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore

LARGEST = 2**31  # [byte] of a chunk or a message: above, a size is damage
CDR = ('cdr', '')  # encodings of messages that can be decoded; '': its writer did not name it
ROS = ('ros2msg', 'ros2idl')  # encodings of definitions that can be understood


def full_name(kind: str) -> str:
    """The type as pkg/msg/Type. Early versions of ROS 2, and some writers of MCAP, leave out what is in between."""
    package, _, name = kind.partition('/')
    return f'{package}/msg/{name}' if name and '/' not in name else kind


class Raw(NamedTuple):
    """One message as it stands in the file."""

    topic: str
    kind: str  # full_name
    time: int  # [ns]
    data: bytes | memoryview
    encoding: str = CDR[0]  # another one: the message is not of ROS 2, and in words how it is encoded


@dataclass
class Damage:
    """What of a bag could not be read."""

    problems: list[str] = field(default_factory=list)  # one sentence each
    undecodable: Counter[str] = field(default_factory=Counter)  # topic -> messages
    examples: list[str] = field(default_factory=list)  # why, for the first ones
    order: list[str] = field(default_factory=list)  # one sentence per fault of the order of time
    unchecked: bool = False  # parts had no checksum: wrong values in them would not be noticed
    foreign: dict[str, str] = field(default_factory=dict)  # topic -> encoding, of topics that are passed over

    def miss(self, wanted: Iterable[str]) -> None:
        """A topic that is wanted and was passed over is a problem."""
        for topic in sorted(set(wanted) & set(self.foreign)):
            self.problems.append(
                f'{topic} cannot be read, its messages are {self.foreign.pop(topic)}: only {CDR[0]} with a '
                f'definition in {" or ".join(ROS)} is decoded. Convert the bag with the tools of its writer'
            )


class Types:
    """Decodes messages by the definitions in the bag, else by those of ROS 2 and of the sourced workspace.

    A definition is parsed when the first message needs it: a bag has many that are of no use here (of services,
    actions, other robots), and what is wrong with those is no damage.
    """

    def __init__(self, damage: Damage) -> None:
        self._damage = damage
        self._store = get_typestore(Stores.EMPTY)
        self._common = get_typestore(Stores.ROS2_HUMBLE)
        self._told: dict[str, tuple[str, bytes, bool]] = {}  # type -> encoding, definition, whether it is checked

    def define(self, kind: str, encoding: str, text: bytes, *, checked: bool = True) -> None:
        """Keeps the definition of a type. Of several the first counts.

        checked False: it may be damaged, so that of ROS 2 is taken where there is one.
        """
        if text.strip():
            self._told.setdefault(full_name(kind), (encoding, text, checked))

    def decode(self, data: bytes | memoryview, kind: str) -> Any:
        """Fields as in the .msg file. Raises ValueError for a type without definition, anything for damaged data."""
        if kind not in self._store.fielddefs:
            self._find(kind)
        return self._store.deserialize_cdr(data, kind)

    def _find(self, kind: str) -> None:
        """The definition of a type, with those of its parts."""
        if kind not in self._store.fielddefs:
            self._take(kind)
        for part in _parts(self._store.fielddefs[kind][1]):
            self._find(part)

    def _take(self, kind: str) -> None:
        """The definition of the bag; else that of ROS 2; else that of the sourced workspace."""
        encoding, text, checked = self._told.pop(kind, ('', b'', False))
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
    """The .msg file of the sourced workspace; empty: there is none."""
    package, _, name = kind.partition('/msg/')
    for prefix in filter(None, os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep)):
        path = Path(prefix, 'share', package, 'msg', f'{name}.msg')
        if path.is_file():
            return path.read_bytes()
    return b''


def _parts(fields: Iterable[tuple[str, Any]]) -> Iterator[str]:
    """Types of the fields of a type."""
    for _, (node, value) in fields:
        if node in (Nodetype.ARRAY, Nodetype.SEQUENCE):
            node, value = value[0]
        if node == Nodetype.NAME:
            yield value
