"""Files of other programs, and files with holes: what is of no use is passed over, what is whole is read."""

import importlib.util
import os
import random
import sqlite3
import struct
import sys
import tempfile
from pathlib import Path

import pytest

from vla_training.bag import Damage, messages, topics_seen
from vla_training.bag import sqlite as sqlite_reader
from vla_training.convert.convert import convert_bags
from vla_training.convert.recording import STATES, Setup
from vla_training.convert.report import BagReport, notes


def _load(name: str):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


bags, m = _load('bags'), _load('mcap_bytes')
STRING = m.schema(1, 'std_msgs/msg/String', 'ros2msg', b'string data\n') + m.channel(1, 1, '/words')
BINARY = bytes(range(256))  # no text in any encoding


def read(path: Path, *topics: str) -> tuple[list[str], Damage]:
    """The words of std_msgs/String messages."""
    damage = Damage()
    return [x.data.data for x in messages(path, topics or ['/words'], damage, lambda n: None)], damage


def records_of(content: bytes) -> list[bytes]:
    """Records that were put behind one another."""
    found, at = [], 0
    while at < len(content):
        size = 9 + struct.unpack_from('<Q', content, at + 1)[0]
        found.append(content[at : at + size])
        at += size
    return found


# ---- MCAP files of other programs


@pytest.mark.parametrize('compression', ['', 'zstd', 'lz4'])
def test_a_chunk_that_also_holds_other_schemas_is_read_and_their_topics_are_named_once(tmp_path, compression):
    others = [
        (m.schema(2, 'foxglove.Pose', 'protobuf', BINARY), m.channel(2, 2, '/pose', 'protobuf')),
        (m.schema(3, 'Scene', 'flatbuffer', BINARY[::-1]), m.channel(3, 3, '/scene', 'flatbuffer')),
        (m.schema(4, 'Event', 'jsonschema', b'{"type": "object"}'), m.channel(4, 4, '/event', 'json')),
        (b'', m.channel(5, 0, '/raw', 'json')),
    ]
    file = m.File(compression)
    for k in range(3):
        described = [STRING, *(a + b for a, b in others)]
        sent = [m.message(n, 10 * k + n, BINARY) for n in (2, 3, 4, 5)]
        file.chunk(*records_of(b''.join(described)), *sent, m.message(1, 10 * k, m.string(f'word {k}')))
    path = tmp_path / 'x.mcap'
    path.write_bytes(file.bytes())
    words, damage = read(path)
    assert words == ['word 0', 'word 1', 'word 2']
    assert not damage.problems and not damage.undecodable
    assert set(damage.foreign) == {'/pose', '/scene', '/event', '/raw'}
    report = BagReport('x', damage=damage)
    [line] = [line for line in notes(report.as_dict()) if 'passed over' in line]
    assert all(name in line for name in ('/pose (protobuf', '/scene (flatbuffer', '/event (json', '/raw (json'))
    assert topics_seen(path, lambda seen: False) == {'/words': 'std_msgs/msg/String'}


@pytest.mark.parametrize(
    ('definition', 'encoding'),
    [('jsonschema', 'json'), ('ros1msg', 'ros1'), ('ros2msg', 'ros1'), ('protobuf', 'protobuf'), ('ros1msg', 'cdr')],
)
def test_a_wanted_topic_in_another_encoding_is_one_sentence(tmp_path, definition, encoding):
    described = m.schema(1, 'std_msgs/String', definition, b'string data') + m.channel(1, 1, '/words', encoding)
    sent = [m.message(1, k, b'{"data": "no"}') for k in range(5)]
    path = tmp_path / 'x.mcap'
    path.write_bytes(m.File().chunk(*records_of(described), *sent).bytes())
    words, damage = read(path)
    assert words == [] and not damage.undecodable and not damage.foreign
    [line] = damage.problems
    assert line.startswith('/words cannot be read') and encoding in line and definition in line


def test_definitions_of_services_actions_and_nothing_are_no_damage(tmp_path):
    described = [
        m.schema(7, 'x/srv/Add', 'ros2msg', b'int64 a\n---\nint64 sum\n'),
        m.schema(8, 'x/action/Go', 'ros2msg', b'int64 to\n---\nbool there\n---\nfloat64 left\n'),
        m.schema(9, 'std_msgs/msg/Empty', 'ros2msg', b''),
        m.schema(10, 'x/msg/Odd', 'ros2msg', BINARY),
        m.schema(11, 'x/msg/None', '', b''),
    ]
    topics = [m.channel(n, n, f'/t{n}') for n in range(7, 12)]
    sent = [m.message(n, n, b'\0\1\0\0') for n in range(7, 12)]
    file = m.File().chunk(*described, *topics, *sent, *records_of(STRING), m.message(1, 20, m.string('yes')))
    path = tmp_path / 'x.mcap'
    path.write_bytes(file.bytes())
    words, damage = read(path)
    assert words == ['yes'] and damage == Damage(unchecked=damage.unchecked)


def test_a_wanted_type_with_a_damaged_definition_is_read_by_that_of_ros_and_reported_once(tmp_path):
    described = m.schema(1, 'std_msgs/msg/String', 'ros2msg', BINARY) + m.channel(1, 1, '/words')
    sent = [m.message(1, k, m.string(str(k))) for k in range(5)]
    path = tmp_path / 'x.mcap'
    path.write_bytes(m.File().chunk(*records_of(described), *sent).bytes())
    words, damage = read(path)
    assert words == ['0', '1', '2', '3', '4'] and len(damage.problems) == 1
    assert '\n' not in damage.problems[0]


def test_a_type_may_be_named_without_what_is_between_package_and_name(tmp_path):
    """As early versions of ROS 2 and other writers of MCAP do."""
    described = m.schema(1, 'x/Word', 'ros2msg', b'string data\n') + m.channel(1, 1, '/words')
    path = tmp_path / 'x.mcap'
    path.write_bytes(m.File().chunk(*records_of(described), m.message(1, 1, m.string('yes'))).bytes())
    assert read(path)[0] == ['yes'] and topics_seen(path, lambda found: False) == {'/words': 'x/msg/Word'}
    open_recording(tmp_path / 'x.db3', 5, kind='std_msgs/String').close()
    words, damage = read(tmp_path / 'x.db3')
    assert len(words) == 5 and not damage.undecodable


def test_attachments_and_metadata_between_chunks_are_passed_over(tmp_path):
    attached = struct.pack('<QQ', 0, 0) + m.text('a.bin') + m.text('') + struct.pack('<Q', 256) + BINARY + bytes(4)
    file = m.File('zstd').add(m.record(9, attached), m.record(12, m.text('calibration') + m.text(BINARY)))
    for k in range(2):
        file.chunk(*records_of(STRING), m.message(1, k, m.string(str(k)))).add(m.record(9, attached))
    path = tmp_path / 'x.mcap'
    path.write_bytes(file.bytes())
    words, damage = read(path)
    assert words == ['0', '1'] and not damage.problems


def test_a_bag_without_messages_and_one_without_metadata(tmp_path):
    path = tmp_path / 'x.mcap'
    path.write_bytes(m.File().bytes())
    assert read(path)[0] == [] and not read(path)[1].problems
    file = bags.write(tmp_path / 'bag', [('/words', bags.text('take it'), 1.0)])
    (tmp_path / 'bag/metadata.yaml').unlink()
    (tmp_path / 'bag/notes.txt').write_text('by hand')
    assert read(tmp_path / 'bag')[0] == read(file)[0] == ['take it']


def test_without_channels_in_its_summary_a_file_is_put_in_the_order_of_time_all_the_same(tmp_path):
    """The writer may leave them out, and the times of messages are then known without their topics."""
    file, path = m.File().add(*records_of(STRING)), tmp_path / 'x.mcap'
    for time in (3, 1, 2, 0):
        file.add(m.message(1, time * 10**9, m.string(f'{time}')))
    file.descriptions.clear()
    path.write_bytes(file.bytes())
    words, damage = read(path)
    assert words == ['0', '1', '2', '3'] and damage.order


# ---- holes

CHUNKS, EACH = 12, 20


def recording(compression: str) -> 'm.File':
    file = m.File(compression)
    for k in range(CHUNKS):
        words = [m.message(1, 10**9 + EACH * k + i, m.string(f'{k} ' * 40)) for i in range(EACH)]
        file.chunk(*(records_of(STRING) if k == 0 else []), *words)
    return file


@pytest.mark.parametrize('summary', [True, False])
@pytest.mark.parametrize('compression', ['', 'zstd', 'lz4'])
def test_a_hole_in_the_head_of_a_chunk_loses_that_chunk_alone(tmp_path, compression, summary):
    file, path = recording(compression), tmp_path / 'x.mcap'
    content = file.bytes(summary=summary)
    begin, length = file.chunks[CHUNKS // 2]
    for at in range(begin - 3, begin + 49):
        for hole in (bytes(8), b'\xff' * 8):
            spoilt = content[:at] + hole + content[at + 8 :]
            path.write_bytes(spoilt)
            words, damage = read(path)
            assert len(words) >= (CHUNKS - 2) * EACH, (at - begin, hole)  # the one before may lose its last bytes
            assert {w.split()[0] for w in words} >= {str(k) for k in range(CHUNKS)} - {'5', '6'}
            assert damage.problems or len(words) == CHUNKS * EACH
    path.write_bytes(content[: begin + 10] + content[begin + length - 10 :])  # cut out
    words, damage = read(path)
    assert len(words) >= CHUNKS // 2 * EACH and damage.problems


@pytest.mark.parametrize('compression', ['', 'zstd', 'lz4'])
def test_the_first_chunk_may_be_lost_though_it_alone_describes_the_topics(tmp_path, compression):
    """As in a recording that was killed: no summary says again what the first chunk said."""
    rng, file, path = random.Random(0), m.File(compression), tmp_path / 'x.mcap'
    for k in range(3):  # larger than the blocks in which zstd and lz4 compress
        words = [m.message(1, 10**9 + 40 * k + i, m.string(f'{k} {rng.randbytes(8000).hex()}')) for i in range(40)]
        file.chunk(*(records_of(STRING) if k == 0 else []), *words)
    begin, length = file.chunks[0]
    content = bytearray(file.bytes(summary=False))
    content[begin + length - 12 : begin + length - 4] = b'\xff' * 8
    path.write_bytes(content)
    found, damage = read(path)
    assert len(found) == 80 and {w[0] for w in found} == {'1', '2'} and damage.problems


def test_a_description_behind_a_hole_in_its_chunk_still_describes_the_chunks_that_follow(tmp_path):
    big = m.schema(2, 'std_msgs/msg/String', 'ros2msg', b'string data\n') + m.channel(2, 2, '/big')
    file, path = m.File(), tmp_path / 'x.mcap'
    file.chunk(*records_of(big), m.message(2, 1, m.string('?' * 5000)), *records_of(STRING))
    file.chunk(*(m.message(1, 10 + k, m.string(str(k))) for k in range(5)))
    content = bytearray(file.bytes(summary=False))
    at = content.index(b'????')
    content[at : at + 4000] = random.Random(0).randbytes(4000)
    path.write_bytes(content)
    words, damage = read(path)
    assert words == ['0', '1', '2', '3', '4'] and not [line for line in damage.problems if 'channel' in line]


@pytest.mark.parametrize('compression', ['', 'zstd', 'lz4'])
def test_a_lost_description_loses_the_messages_of_its_channel_alone(tmp_path, compression):
    more = records_of(m.schema(2, 'std_msgs/msg/String', 'ros2msg', b'string data\n') + m.channel(2, 2, '/more'))
    file, path = m.File(compression), tmp_path / 'x.mcap'
    file.chunk(*records_of(STRING), m.message(1, 1, m.string('first')))
    file.chunk(*more, m.message(2, 2, m.string('second')))
    for k in range(3, 9):
        file.chunk(m.message(1 + k % 2, k, m.string(str(k))), m.message(1, k, m.string('again')))
    content = bytearray(file.bytes(summary=False))
    begin, length = file.chunks[1]
    content[begin + 49 + len(compression) : begin + length] = random.Random(0).randbytes(length - 49 - len(compression))
    path.write_bytes(content)
    words, damage = read(path)
    assert words == ['first', 'again', '4', 'again', 'again', '6', 'again', 'again', '8', 'again']
    assert [line for line in damage.problems if '3 of channel 2, whose description is lost' in line]


@pytest.mark.parametrize('ahead', [0, 10**18])  # [ns] published by the clock of the machine, logged in simulation time
@pytest.mark.parametrize('summary', [True, False])
def test_behind_a_hole_in_a_file_without_chunks_reading_continues_at_the_next_message(tmp_path, summary, ahead):
    file = m.File().add(*records_of(STRING))
    for k in range(100):
        file.add(m.message(1, 10**15 + k * 10**7, m.string(f'word {k}'), 10**15 + k * 10**7 + ahead))
    content, path = file.bytes(summary=summary), tmp_path / 'x.mcap'
    begin = content.index(b'word 50') - 39  # of its record
    for at in range(begin - 9, begin + 45, 6):
        for hole in (b'\xff' * 35, random.Random(at).randbytes(60)):
            path.write_bytes(content[:at] + hole + content[at + len(hole) :])
            words, damage = read(path)
            assert len(words) >= 96 and words[-1] == 'word 99', (at - begin, hole)
            assert damage.problems or damage.undecodable or len(words) == 100, (at - begin, hole)


# ---- sqlite3


def open_recording(
    path: Path, count: int, journal: str = 'WAL', serialization: str = 'cdr', kind: str = 'std_msgs/msg/String'
) -> sqlite3.Connection:
    """A bag as rosbag2 has it while it records: what came last is in the journal alone. Close what is returned."""
    base = sqlite3.connect(path)
    base.execute(f'PRAGMA journal_mode={journal}')
    base.execute('PRAGMA wal_autocheckpoint=0')
    base.execute('CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT, type TEXT, serialization_format TEXT)')
    base.execute('CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER, timestamp INTEGER, data BLOB)')
    base.execute('INSERT INTO topics VALUES (1, "/words", ?, ?)', [kind, serialization])
    base.commit()
    if journal == 'WAL':
        base.execute('PRAGMA wal_checkpoint(TRUNCATE)')
    rows = [(k + 1, 1, k, m.string(f'{k} ' * 200)) for k in range(count)]
    base.executemany('INSERT INTO messages VALUES (?, ?, ?, ?)', rows)
    base.commit()
    return base


@pytest.fixture
def readable():
    """A folder that other users can reach."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def state(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_messages_that_are_in_a_write_ahead_log_alone_are_read_and_nothing_is_left_behind(tmp_path):
    live = tmp_path / 'live'
    live.mkdir()
    base = open_recording(live / 'x_0.db3', 50)
    killed = tmp_path / 'killed'
    killed.mkdir()
    for name in ('x_0.db3', 'x_0.db3-wal'):
        (killed / name).write_bytes((live / name).read_bytes())
    base.close()
    before = state(killed)
    assert len(before['x_0.db3-wal']) > 10_000
    words, damage = read(killed)
    assert len(words) == 50 and not damage.problems
    assert state(killed) == before


@pytest.mark.parametrize('journal', ['WAL', 'DELETE'])
def test_a_closed_recording_on_a_read_only_disk_is_read_and_nothing_is_left_behind(readable, journal):
    open_recording(readable / 'x_0.db3', 50, journal).close()
    before = state(readable)
    assert list(before) == ['x_0.db3'] and before['x_0.db3'][18] == (2 if journal == 'WAL' else 1)
    readable.chmod(0o555)
    try:
        if os.geteuid() == 0:
            os.seteuid(65534)  # nobody: modes do not bind root
        words, damage = read(readable)
    finally:
        os.seteuid(os.getuid())
        readable.chmod(0o755)
    assert len(words) == 50 and not damage.problems
    assert state(readable) == before


def test_without_room_for_a_copy_the_rest_is_read_and_what_is_missing_is_reported(tmp_path, monkeypatch):
    base = open_recording(tmp_path / 'x_0.db3', 50)
    monkeypatch.setattr(sqlite_reader, 'RESERVE', 2**62)
    words, damage = read(tmp_path)
    base.close()
    assert words == []
    assert any('x_0.db3-wal' in line and 'TMPDIR' in line for line in damage.problems)


def test_an_sqlite3_topic_in_another_serialization_is_one_sentence(tmp_path):
    open_recording(tmp_path / 'x_0.db3', 5, serialization='protobuf').close()
    words, damage = read(tmp_path)
    [line] = damage.problems
    assert words == [] and '/words cannot be read' in line and 'protobuf' in line


def test_a_conversion_names_topics_that_it_cannot_read(tmp_path):
    path = tmp_path / 'robot.yaml'
    path.write_text(bags.PROFILE)
    setup = Setup.load(path, fps=10, actions=STATES)
    described = m.schema(1, 'Image', 'jsonschema', b'{}') + m.channel(1, 1, '/front/image_raw', 'json')
    (tmp_path / 'x.mcap').write_bytes(m.File().chunk(*records_of(described), m.message(1, 1, b'{}')).bytes())
    with pytest.raises(ValueError, match='/front/image_raw cannot be read, its messages are json'):
        convert_bags([tmp_path / 'x.mcap'], tmp_path / 'd', setup)
    described = m.schema(1, 'Pose', 'protobuf', BINARY) + m.channel(1, 1, '/pose', 'protobuf')
    (tmp_path / 'y.mcap').write_bytes(m.File().chunk(*records_of(described), m.message(1, 1, b'{}')).bytes())
    with pytest.raises(ValueError, match=r'none of its messages is of ROS 2(.|\n)*/pose .protobuf'):
        convert_bags([tmp_path / 'y.mcap'], tmp_path / 'd', setup)
