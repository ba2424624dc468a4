"""Reads the undamaged messages of a rosbag2, MCAP or sqlite3, in the order of time (see order.py).

A bag may be damaged: its recorder was killed, the disk was full, bits flipped. Each chunk of an MCAP is checked
(checksum if there is one, size, structure) and discarded alone. After damage, reading continues at the next
recognisable chunk. Each row of an sqlite3 file is read by itself. `Damage` lists the losses. Of an undamaged bag,
`messages` yields every message.
"""

import functools
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from backports import zstd

from vla_training.bag.index import add_times
from vla_training.bag.mcap import read_mcap
from vla_training.bag.order import Plan, Times, in_order, plan, times_of
from vla_training.bag.parts import CDR, Damage, Raw, Types
from vla_training.bag.sqlite import read_sqlite

__all__ = ['Damage', 'Message', 'bag_files', 'has_messages', 'messages', 'topics_seen']
ZSTD_MAGIC = b'\x28\xb5\x2f\xfd'
EXAMPLES = 3  # undecodable messages per topic that are reported


class Message(NamedTuple):
    """One message."""

    topic: str  # as in the bag, with namespace
    kind: str  # pkg/msg/Type
    time: int  # [ns] bag time: the recorder's clock when it came
    data: Any  # fields as in the .msg file; arrays are numpy
    raw: bytes | memoryview = b''  # serialized message (CDR)
    period: int = 0  # number of steps back of the recorder's clock before it; times of two periods are not comparable


def bag_files(path: Path) -> list[Path]:
    """Return the storage files of a bag (a folder or one file), oldest first. Raises ValueError when there is none."""
    if not path.exists():
        raise ValueError(f'there is no bag {path}')
    files = [p for p in ([path] if path.is_file() else path.iterdir()) if _kind(p)]
    if not files:
        raise ValueError(f'{path} is no rosbag2: it has no .mcap and no .db3 file')
    order = {name: i for i, name in enumerate(_listed(path))}
    return sorted(files, key=lambda p: (order.get(p.name, len(order)), _number(p), p.name))


def messages(path: Path, topics: Iterable[str], damage: Damage, progress: Callable[[int], None]) -> Iterator[Message]:
    """Yield the messages of these topics (absolute names) by log time. progress is called with the bytes read so far.

    A step back of the recorder's clock starts a new `period` and is reported in `damage.order`. All faults of the bag
    are reported in `damage`, and the remaining messages are yielded. Raises ValueError when the path is no bag.
    """
    wanted, types = set(topics), Types(damage)
    order = _plan(path, wanted.__contains__)
    damage.order += order.sentences()
    raws = (raw for raw in _raws(path, types, damage, progress) if raw.topic in wanted)
    for period, raw in in_order(raws, order):
        try:
            data = zstd.decompress(raw.data) if raw.data[:4] == ZSTD_MAGIC else raw.data
            yield Message(raw.topic, raw.kind, raw.time, types.decode(data, raw.kind), data, period)
        except Exception as error:  # damaged bytes make the decoder fail in any way
            damage.undecodable[raw.topic] += 1
            if damage.undecodable[raw.topic] <= EXAMPLES:
                damage.examples.append(f'{raw.topic} at {raw.time}: {type(error).__name__}: {error}')
    damage.miss(wanted)


def _plan(path: Path, wanted: Callable[[str], bool]) -> Plan:
    """Return the reading plan for the order of time, from the bag's indexes or else from a first reading."""
    found = Times()
    if all(add_times(file, wanted, found) for file in bag_files(path)):
        order = plan(found)
        if not order.cuts:  # a cut is a message number, so the plan needs exactly the messages that will be read
            return order
    return plan(times_of(_raws_alone(path), wanted))


def topics_seen(path: Path, enough: Callable[[Mapping[str, str]], bool]) -> dict[str, str]:
    """Return topic -> type of the ROS 2 messages in their order, up to `enough` or the end of the bag.

    Raises ValueError when the path is no bag.
    """
    found: dict[str, str] = {}
    for raw in _raws_alone(path):
        if raw.topic not in found:
            found[raw.topic] = raw.kind
            if enough(found):
                break
    return found


def has_messages(path: Path, topic: str) -> bool:
    """Return whether the bag has a ROS 2 message on a topic. Without usable indexes the whole bag is read.

    Raises ValueError when the path is no bag.
    """
    found = Times()
    if all(add_times(file, topic.__eq__, found) for file in bag_files(path)):
        return len(found.times) > 0
    return topic in topics_seen(path, lambda seen: topic in seen)


def _raws_alone(path: Path) -> Iterator[Raw]:
    """Yield as `_raws`, without a report of the damage: another reading of the bag makes it."""
    damage = Damage()
    return _raws(path, Types(damage), damage, lambda read: None)


def _raws(path: Path, types: Types, damage: Damage, progress: Callable[[int], None]) -> Iterator[Raw]:
    """Yield the ROS 2 messages in the order of the files. Topics of other systems are noted in `damage`."""
    before = 0
    for file in bag_files(path):
        read = read_mcap if _kind(file) == 'mcap' else read_sqlite
        with tempfile.TemporaryDirectory() as folder:
            plain = file
            if file.suffix == '.zstd':
                plain = _unpacked(file, Path(folder), damage)
            for raw in read(plain, file.name, types, damage, functools.partial(_further, progress, before)):
                if raw.encoding in CDR:
                    yield raw
                else:
                    damage.foreign.setdefault(raw.topic, raw.encoding)
        before += file.stat().st_size
        progress(before)


def _kind(path: Path) -> str:
    name = path.name.removesuffix('.zstd')
    return 'mcap' if name.endswith('.mcap') else 'sqlite3' if name.endswith('.db3') else ''


def _number(path: Path) -> int:
    digits = path.name.split('.')[0].rpartition('_')[2]
    return int(digits) if digits.isdigit() else 0


def _listed(path: Path) -> list[str]:
    """Return the file names of metadata.yaml in the order of recording; empty without a readable one."""
    try:
        found = yaml.safe_load((path / 'metadata.yaml').read_text())
        return [Path(str(name)).name for name in found['rosbag2_bagfile_information']['relative_file_paths']]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return []


def _unpacked(file: Path, folder: Path, damage: Damage) -> Path:
    """Decompress a file as far as possible. Return the decompressed file."""
    plain = folder / file.stem
    with file.open('rb') as source, plain.open('wb') as target:
        try:
            shutil.copyfileobj(zstd.ZstdFile(source), target)
        except (zstd.ZstdError, EOFError, OSError) as error:
            damage.problems.append(f'{file.name} is cut or damaged ({error}): only its beginning can be read')
    return plain


def _further(progress: Callable[[int], None], before: int, read: int) -> None:
    progress(before + read)
