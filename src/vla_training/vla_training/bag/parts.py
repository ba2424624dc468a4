"""What the readers of the storage formats share: bytes of a message, what was lost, how a message is decoded."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore

LARGEST = 2**31  # [byte] of a chunk or a message: above, a size is damage


class Raw(NamedTuple):
    """One message as it stands in the file."""

    topic: str
    kind: str
    time: int  # [ns]
    data: bytes | memoryview


@dataclass
class Damage:
    """What of a bag could not be read."""

    problems: list[str] = field(default_factory=list)  # one sentence each
    undecodable: Counter[str] = field(default_factory=Counter)  # topic -> messages
    examples: list[str] = field(default_factory=list)  # why, for the first ones
    order: list[str] = field(default_factory=list)  # one sentence per fault of the order of time
    unchecked: bool = False  # parts had no checksum: wrong values in them would not be noticed


class Types:
    """Decodes messages by the definitions in the bag, else by those of ROS 2 and of the sourced workspace."""

    def __init__(self) -> None:
        self._store = get_typestore(Stores.EMPTY)
        self._common = get_typestore(Stores.ROS2_HUMBLE)

    def define(self, kind: str, encoding: str, text: str, *, checked: bool = True) -> None:
        """Raises what rosbags raises for a definition that it cannot understand.

        checked False: it may be damaged, so that of ROS 2 is taken where there is one.
        """
        if kind in self._store.fielddefs or not text or (not checked and kind in self._common.fielddefs):
            return
        found = get_types_from_idl(text) if encoding.endswith('idl') else get_types_from_msg(text, kind)
        self._store.register({k: v for k, v in found.items() if k not in self._store.fielddefs})

    def decode(self, data: bytes | memoryview, kind: str) -> Any:
        if kind not in self._store.fielddefs:
            self._find(kind)
        return self._store.deserialize_cdr(data, kind)

    def _find(self, kind: str) -> None:
        """The definition of a type that the bag has none of, with those of its parts."""
        if kind in self._common.fielddefs:
            self._store.register({k: v for k, v in self._common.fielddefs.items() if k not in self._store.fielddefs})
            return
        package, _, name = kind.partition('/msg/')
        for prefix in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep):
            path = Path(prefix, 'share', package, 'msg', f'{name}.msg')
            if prefix and path.is_file():
                self.define(kind, 'ros2msg', path.read_text())
                self._store.register(
                    {k: v for k, v in self._common.fielddefs.items() if k not in self._store.fielddefs}
                )
                return
        raise ValueError(f'the bag has no definition of {kind} and none is installed: source the workspace that has it')
