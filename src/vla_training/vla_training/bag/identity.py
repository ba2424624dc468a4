"""Identifies a recording independently of the name of its folder."""

import hashlib
from pathlib import Path

from vla_training.bag import bag_files

ENDS = 1 << 16  # [byte] read at both ends of each storage file: its first messages, and its index or its last ones


def identity(bag: Path) -> str:
    """Return a hash of the sizes and ends of the storage files. A copy has the same, another recording has another.

    Raises ValueError when the path is no bag.
    """
    digest = hashlib.sha256()
    for path in bag_files(bag):
        size = path.stat().st_size
        digest.update(f'{size} '.encode())
        with path.open('rb') as file:
            digest.update(file.read(ENDS))
            file.seek(max(0, size - ENDS))
            digest.update(file.read(ENDS))
    return digest.hexdigest()[:32]
