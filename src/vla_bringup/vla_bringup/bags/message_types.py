"""Message definitions of the installed packages, for bags: text, type hash and codec by type name."""

import importlib
import re
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

_PRIMITIVE = re.compile(
    r'(bool|byte|char|float32|float64|u?int(8|16|32|64)|w?string)(<=\d+)?(\[.*\])?'  # wstring is reported later
)


def definition(kind: str) -> str:
    """Return the text of the .msg file of pkg/msg/Type. Raises ValueError when it is not installed."""
    package, _, name = kind.split('/')
    try:
        return Path(get_package_share_directory(package), 'msg', f'{name}.msg').read_text()
    except (LookupError, OSError):
        raise ValueError(f'no definition of {kind} is installed: build or source its package') from None


def parts(text: str, package: str) -> list[str]:
    """Return the message types (pkg/msg/Type) of the fields of a definition."""
    found = []
    for line in text.splitlines():
        words = line.split('#')[0].split()
        if len(words) < 2 or '=' in words[1] or _PRIMITIVE.fullmatch(words[0]):
            continue  # a comment, a constant or a plain field
        kind = words[0].split('[')[0].split('/')
        found.append(f'{kind[0]}/msg/{kind[-1]}' if len(kind) > 1 else f'{package}/msg/{kind[0]}')
    return found


class MessageTypes:
    """Definitions and type hashes of installed message types, looked up on first use."""

    def __init__(self) -> None:
        self.store: Typestore = get_typestore(Stores.EMPTY)
        self._full: dict[str, str] = {}

    def full_definition(self, kind: str) -> str:
        """Return the definition with those of its parts, as rosbag2 stores it. Raises ValueError if one is missing."""
        if kind not in self._full:
            texts: dict[str, str] = {}
            open_kinds = [kind]
            while open_kinds:
                k = open_kinds.pop(0)
                if k not in texts:
                    texts[k] = definition(k)
                    open_kinds += parts(texts[k], k.split('/')[0])
            for k, text in texts.items():
                if k not in self.store.fielddefs:
                    self.store.register(get_types_from_msg(text, k))
            rest = [f'{"=" * 80}\nMSG: {k.replace("/msg/", "/")}\n{t}' for k, t in texts.items() if k != kind]
            self._full[kind] = '\n'.join([texts[kind], *rest])
        return self._full[kind]

    def type_hash(self, kind: str) -> str:
        """Return the RIHS01 hash of the type, which DDS discovery has on Jazzy."""
        self.full_definition(kind)
        return self.store.hash_rihs01(kind)


def message_class(kind: str) -> type:
    """Return the Python class of pkg/msg/Type. Raises ValueError when it is not installed."""
    package, _, name = kind.split('/')
    try:
        return getattr(importlib.import_module(f'{package}.msg'), name)
    except (ImportError, AttributeError):
        raise ValueError(f'no Python class of {kind} is installed: build or source its package') from None
