"""Bags to datasets: what is in a frame belongs together, what is damaged is lost alone and told."""

import contextlib
import importlib.util
import json
import re
import sqlite3
import sys
from pathlib import Path

import numpy as np
import pytest
from backports import zstd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vla_training.bag import Damage, messages
from vla_training.convert.convert import REPORT, convert_bags, read_subtasks
from vla_training.convert.recording import SET_POINTS, STATES, Setup
from vla_training.data import features
from vla_training.data.annotate import plan_texts
from vla_training.lerobot import Dataset

spec = importlib.util.spec_from_file_location('bags', Path(__file__).parent / 'bags.py')
bags = importlib.util.module_from_spec(spec)
sys.modules['bags'] = bags
spec.loader.exec_module(bags)

KINDS = ('mcap', 'sqlite3')


def setup_of(folder: Path, **changes) -> Setup:
    path = folder / 'robot.yaml'
    path.write_text(bags.PROFILE)
    return Setup.load(path, **{'fps': 10, 'actions': STATES, 'shortest': 3, 'camera_gap': 0.0, **changes})


def check_frames(dataset: Dataset, start: float = 100.0, ahead: float = 0.0) -> list[int]:
    """Every frame's image, state and action are of one time. Returns the numbers of the images, by episode."""
    numbers = []
    for info in dataset.episodes:
        found = dataset.episode(info.index)
        state, action = found.columns[features.STATE], found.columns[features.ACTION]
        frames = {c: list(found.frames(features.image(c))) for c in ('front', 'wrist')}
        for k in range(len(found)):
            number = round((state[k, 0] - start) / 0.1)
            numbers.append(number)
            for pixels in frames.values():
                assert abs(pixels[k].mean() - bags.level(number)) < 3.0, (info.index, k)
            assert state[k, 0] == pytest.approx(start + 0.1 * number, abs=0.021)
            assert action[k, 0] == pytest.approx(start + 0.1 * (number + 1) + ahead, abs=0.021)
        assert found.columns[features.DONE].tolist() == [False] * (len(found) - 1) + [True]
    return numbers


@pytest.mark.parametrize('storage', KINDS)
def test_frames_states_and_actions_belong_together(tmp_path, storage):
    bags.write(tmp_path / 'bag', bags.recording(), storage)
    [report] = convert_bags([tmp_path / 'bag'], tmp_path / 'd', setup_of(tmp_path))
    dataset = Dataset(tmp_path / 'd')
    assert check_frames(dataset) == list(range(30))
    assert dataset.tasks == ['take it']
    episode = dataset.episode(0)
    np.testing.assert_allclose(episode.columns[features.ACTION][:, 0], 100.1 + 0.1 * np.arange(30), atol=1e-4)
    np.testing.assert_allclose(episode.columns[features.STATE][:, 2], 0.04, atol=1e-6)
    np.testing.assert_allclose(episode.columns[features.VELOCITY], [[1.0, -1.0]] * 30)
    assert (report['frames_kept'], report['episodes'], report['frames_dropped']) == (30, 1, {})
    assert report['streams']['front']['rate'] == pytest.approx(10)
    assert report['streams']['joints']['rate'] == pytest.approx(50)
    assert report['worst_skew'] <= 0.02 and not report['damage']
    assert json.loads((tmp_path / 'd' / REPORT).read_text()) == [report]


def test_actions_from_set_points(tmp_path):
    bags.write(tmp_path / 'bag', bags.recording())
    convert_bags([tmp_path / 'bag'], tmp_path / 'd', setup_of(tmp_path, actions=SET_POINTS))
    dataset = Dataset(tmp_path / 'd')
    assert check_frames(dataset, ahead=0.5) == list(range(30))
    np.testing.assert_allclose(dataset.episode(0).columns[features.ACTION][:, 2], 0.04)  # 0.5 of 0.08 m


def planned(time):
    """What joint_trajectory_controller is sent at a time: the plan from then on, and then something else."""
    ahead = 0.02 * np.arange(1, 20)
    q = np.stack([-(time + ahead), time + ahead + 0.5], axis=-1)
    q[ahead > 0.2] = 99.0  # the brake, which the next message takes back
    return bags.trajectory(time, ahead, q, names=bags.JOINTS[::-1])


@pytest.mark.parametrize(
    'message', [lambda t: bags.numbers(t + 0.5, -t), planned], ids=['Float64MultiArray', 'JointTrajectory']
)
def test_actions_from_set_points_of_other_controllers(tmp_path, message):
    entries = [e for e in bags.recording() if e[0] != '/target_joint']
    entries += [('/target_joint', message(t), t + 0.001) for t in 99.9 + 0.04 * np.arange(85)]
    bags.write(tmp_path / 'bag', sorted(entries, key=lambda e: e[2]))
    [report] = convert_bags([tmp_path / 'bag'], tmp_path / 'd', setup_of(tmp_path, actions=SET_POINTS))
    found = Dataset(tmp_path / 'd').episode(0).columns
    assert len(found[features.ACTION]) == 30 and not report['damage']
    np.testing.assert_allclose(found[features.ACTION][:, 0], 100.6 + 0.1 * np.arange(30), atol=0.042)
    np.testing.assert_allclose(found[features.ACTION][:, :2].sum(axis=1), 0.5, atol=1e-4)


@pytest.mark.parametrize(
    ('message', 'says'),
    [
        (bags.numbers(1.0), 'has 1 numbers, the robot profile 2 joints'),
        (bags.numbers(1.0, np.nan), 'not finite'),
        (bags.trajectory(100.0, [], []), 'has no points'),
        (bags.trajectory(100.0, [0.1], [[1.0]]), 'without a position for each joint'),
        (bags.trajectory(100.0, [0.1], [[1.0, 2.0]], ['a', 'x']), "lacks ['b']"),
    ],
)
def test_set_points_that_are_none_are_reported(tmp_path, message, says):
    entries = [e for e in bags.recording(5) if e[0] != '/target_joint'] + [('/target_joint', message, 100.1)]
    bags.write(tmp_path / 'bag', sorted(entries, key=lambda e: e[2]))
    with pytest.raises(ValueError, match=re.escape(says)):
        convert_bags([tmp_path / 'bag'], tmp_path / 'd', setup_of(tmp_path, actions=SET_POINTS))


def test_cameras_that_are_faster_are_thinned_out(tmp_path):
    bags.write(tmp_path / 'bag', bags.recording(41))
    convert_bags([tmp_path / 'bag'], tmp_path / 'd', setup_of(tmp_path, fps=5))
    found = Dataset(tmp_path / 'd').episode(0).columns
    np.testing.assert_allclose(np.diff(found[features.STATE][:, 0]), 0.2, atol=1e-4)
    np.testing.assert_allclose(found[features.ACTION][:, 0] - found[features.STATE][:, 0], 0.2, atol=1e-4)


@settings(max_examples=8)
@given(rate=st.floats(9.8, 31.0), jitter=st.floats(0.0, 0.004), seed=st.integers(0, 99))
def test_frames_keep_their_rate_whatever_that_of_the_cameras(tmp_path_factory, rate, jitter, seed):
    """The frames are fps apart on average, none is used twice, and no step is longer than it has to be."""
    from vla_training.convert.recording import Recording
    from vla_training.convert.report import BagReport

    folder = tmp_path_factory.mktemp('jitter')
    rng = np.random.default_rng(seed)
    times = np.sort(100 + np.arange(round(6 * rate)) / rate + rng.uniform(-jitter, jitter, round(6 * rate)))
    entries = [entry for entry in bags.recording(65) if 'image' not in entry[0]]
    for t in times:
        entries += [(f'/{c}/image_raw', bags.image(t, 90), t + 0.001) for c in ('front', 'wrist')]
    entries.sort(key=lambda entry: entry[2])
    report = BagReport('bag')
    recording = Recording(setup_of(folder, shortest=1), report, [])
    for topic, message, time in entries:
        recording.take(bags_message(topic, message, time))
    recording.end()
    episodes = list(recording.episodes())
    steps = np.concatenate([np.diff(e.columns[features.STATE][:, 0]) for e in episodes])
    assert (steps > 0.02).all() and (steps < 0.13 + 1 / rate).all()
    if rate >= 20 or rate <= 10.5:  # else the grid beats with the cameras: gaps are possible, wrong rates are not
        assert len(episodes) == 1 and report.kept >= 56
    assert steps.mean() == pytest.approx(0.1, rel=0.05)


def bags_message(topic, message, time):
    from vla_training.bag import Message

    return Message(topic, message.__msgtype__, round(time * bags.NS), message)


def test_episodes_are_split_and_described_by_the_simulator(tmp_path):
    entries = bags.recording(60)
    entries += [
        ('/sim/episode', bags.episode(99.9, 'press', 7, 'press it'), 99.95),
        ('/sim/success', bags.truth(False), 99.95),
        ('/expert/progress', bags.progress(100.45, [], 'reach', ['push']), 100.5),
        ('/expert/progress', bags.progress(100.95, ['reach'], 'push', []), 101.0),
        ('/sim/success', bags.truth(True), 102.0),
        ('/sim/success', bags.truth(False), 102.96),  # taken back by the reset, before the episode is told
        ('/sim/episode', bags.episode(102.95, 'stack', 8, 'stack it'), 103.01),
        ('/policy/instruction', bags.text('something else'), 104.0),  # the simulator's words count
    ]
    entries.sort(key=lambda entry: entry[2])
    bags.write(tmp_path / 'bag', entries)
    convert_bags([tmp_path / 'bag'], tmp_path / 'd', setup_of(tmp_path))
    dataset = Dataset(tmp_path / 'd')
    assert [(e.task, e.extra['sim_task'], e.extra['seed'], e.extra['success']) for e in dataset.episodes] == [
        ('press it', 'press', 7, 'yes'),
        ('stack it', 'stack', 8, 'no'),
    ]
    first, second = (dataset.episode(i).columns[features.STATE][:, 0] for i in (0, 1))
    assert first[-1] + 0.1 <= 102.95 and second[0] >= 102.95  # no action reaches into the next episode
    subtasks = dataset.episode(0).columns[features.SUBTASK]
    assert subtasks[:11] == [''] * 5 + ['reach'] * 5 + ['push']
    assert plan_texts(dataset.episode(0))[10].endswith('I have finished reach. So now I should continue to push.')
    assert set(dataset.episode(1).columns[features.SUBTASK]) == {''}  # unknown


@pytest.mark.parametrize('topic', ['/policy/instruction', '/policy/instruction_in_force'])
def test_a_new_instruction_or_goal_begins_a_new_episode(tmp_path, topic):
    entries = [*bags.recording(40), (topic, bags.text('put it back'), 102.0)]
    bags.write(tmp_path / 'bag', sorted(entries, key=lambda entry: entry[2]))
    convert_bags([tmp_path / 'bag'], tmp_path / 'd', setup_of(tmp_path))
    assert [e.task for e in Dataset(tmp_path / 'd').episodes] == ['take it', 'put it back']
    convert_bags([tmp_path / 'bag'], tmp_path / 'e', setup_of(tmp_path, instruction='do it'))
    assert [e.task for e in Dataset(tmp_path / 'e').episodes] == ['do it']


def test_a_bag_without_an_instruction_is_reported(tmp_path):
    bags.write(tmp_path / 'bag', [entry for entry in bags.recording() if entry[0] != '/policy/instruction'])
    with pytest.raises(ValueError, match='30 frames dropped: no instruction'):
        convert_bags([tmp_path / 'bag'], tmp_path / 'd', setup_of(tmp_path))


def test_missing_images_end_an_episode_and_are_reported(tmp_path):
    lost = ('/wrist/image_raw', 101.22)
    entries = [e for e in bags.recording() if (e[0], round(e[2], 3)) != lost]
    assert len(entries) == len(bags.recording()) - 1
    bags.write(tmp_path / 'bag', entries)
    [report] = convert_bags([tmp_path / 'bag'], tmp_path / 'd', setup_of(tmp_path))
    assert check_frames(Dataset(tmp_path / 'd')) == [n for n in range(30) if n != 12]
    assert [e.length for e in Dataset(tmp_path / 'd').episodes] == [12, 17]
    assert report['gaps_that_ended_an_episode'] == {'count': 1, 'longest': pytest.approx(0.1)}
    assert report['streams']['wrist']['lost_in_gaps'] == 1 and report['streams']['front']['lost_in_gaps'] == 0


def test_messages_with_wrong_content_are_left_out_and_reported(tmp_path):
    broken = bags.image(100.5, 0)
    broken.encoding = '32FC1'
    entries = [e for e in bags.recording() if (e[0], round(e[2], 3)) != ('/front/image_raw', 100.52)]
    entries += [
        ('/front/image_raw', broken, 100.52),
        ('/joint_states', bags.joints(101.0, values=[np.nan, 0, 0]), 101.005),
        ('/joint_states', bags.joints(101.0, ['other'], [0.0]), 101.006),  # of another robot: no error
    ]
    bags.write(tmp_path / 'bag', sorted(entries, key=lambda entry: entry[2]))
    [report] = convert_bags([tmp_path / 'bag'], tmp_path / 'd', setup_of(tmp_path))
    assert check_frames(Dataset(tmp_path / 'd')) == [n for n in range(30) if n != 5]
    assert report['messages_with_wrong_content'] == {'/front/image_raw': 1, '/joint_states': 1}
    assert any('32FC1' in line for line in report['examples'])


def test_joints_that_stop_stop_the_episode(tmp_path):
    entries = [e for e in bags.recording() if not (e[0] == '/joint_states' and 101.3 < e[2] < 102.0)]
    bags.write(tmp_path / 'bag', entries)
    [report] = convert_bags([tmp_path / 'bag'], tmp_path / 'd', setup_of(tmp_path))
    numbers = check_frames(Dataset(tmp_path / 'd'))
    assert numbers == [*range(12), *range(20, 30)]  # 12 and 13 have joints, but what they led to is not known
    assert report['frames_dropped'] == {f'no {STATES} one frame later': 2}
    assert report['images_without_a_complete_set']['joints stale'] == 12


def test_sub_tasks_from_a_file(tmp_path):
    bags.write(tmp_path / 'bag', bags.recording())
    (tmp_path / 's.csv').write_text('time,subtask\n2.05,push\n1.05,reach\n')
    (tmp_path / 's.json').write_text(
        json.dumps([{'bag': 'bag', 'time': 1.05, 'subtask': 'reach'}, {'bag': 'bag', 'time': 2.05, 'subtask': 'push'}])
    )
    for name in ('s.csv', 's.json'):
        subtasks = read_subtasks(tmp_path / name, [tmp_path / 'bag'])
        convert_bags([tmp_path / 'bag'], tmp_path / name[2:], setup_of(tmp_path), subtasks)
        # The bag begins at 99.9 s: the first message is a joint state 0.1 s before the first image.
        found = Dataset(tmp_path / name[2:]).episode(0).columns[features.SUBTASK]
        assert found == [''] * 10 + ['reach'] * 10 + ['push'] * 10
    for content in ('time,subtask\nsoon,reach\n', 'when,subtask\n1,reach\n'):
        (tmp_path / 's.csv').write_text(content)
        with pytest.raises(ValueError, match='entry 1'):
            read_subtasks(tmp_path / 's.csv', [tmp_path / 'bag'])
    with pytest.raises(ValueError, match=r"the bags \['no'\]"):
        convert_bags([tmp_path / 'bag'], tmp_path / 'x', setup_of(tmp_path), {'no': [(0.0, 'reach')]})


def test_bags_are_added_and_not_twice(tmp_path):
    for i in range(3):
        bags.write(tmp_path / f'bag{i}', bags.recording(12, start=100.0 * (i + 1)))
    setup, out = setup_of(tmp_path), tmp_path / 'd'
    convert_bags([tmp_path / 'bag0'], out, setup)
    convert_bags([tmp_path / 'bag0', tmp_path / 'bag1'], out, setup)
    reports = convert_bags([tmp_path / 'bag2', tmp_path / 'bag0'], out, setup)
    assert [e.extra['bag'] for e in Dataset(out).episodes] == ['bag0', 'bag1', 'bag2']
    assert [r['bag'] for r in reports] == ['bag0', 'bag1', 'bag2']
    before = {p: p.stat().st_mtime_ns for p in out.rglob('*') if p.is_file()}
    convert_bags([tmp_path / 'bag1'], out, setup)
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob('*') if p.is_file()}
    with pytest.raises(ValueError, match='more than one bag is named'):
        convert_bags([tmp_path / 'bag0', tmp_path / 'bag0'], out, setup)


def test_a_conversion_that_was_killed_continues(tmp_path, monkeypatch):
    entries = [*bags.recording(40), ('/policy/instruction', bags.text('put it back'), 102.0)]
    bags.write(tmp_path / 'bag', sorted(entries, key=lambda entry: entry[2]))
    setup, out, add = setup_of(tmp_path), tmp_path / 'd', None

    from vla_training.lerobot import DatasetWriter

    add, count = DatasetWriter.add_episode, 0

    def dying(self, *args):
        nonlocal count
        count += 1
        if count == 2:
            self._lock.close()  # as the end of the process does
            raise KeyboardInterrupt
        add(self, *args)

    monkeypatch.setattr(DatasetWriter, 'add_episode', dying)
    with pytest.raises(KeyboardInterrupt):
        convert_bags([tmp_path / 'bag'], out, setup)
    [report] = convert_bags([tmp_path / 'bag'], out, setup)
    assert [e.task for e in Dataset(out).episodes] == ['take it', 'put it back']
    check_frames(Dataset(out))
    assert report['episodes'] == 2


def test_a_bag_of_another_size_does_not_stop_the_others(tmp_path):
    bags.write(tmp_path / 'a', bags.recording())
    other = [
        (t, bags.image(m.header.stamp.sec + m.header.stamp.nanosec * 1e-9, 90, 32) if 'image' in t else m, time)
        for t, m, time in bags.recording()
    ]
    bags.write(tmp_path / 'b', other)
    bags.write(tmp_path / 'c', bags.recording())
    reports = convert_bags([tmp_path / n for n in 'abc'], tmp_path / 'd', setup_of(tmp_path))
    assert [bool(r['failed']) for r in reports] == [False, True, False]
    assert 'image sizes' in reports[1]['failed']
    assert [e.extra['bag'] for e in Dataset(tmp_path / 'd').episodes] == ['a', 'c']


def test_a_clock_that_goes_back_begins_a_new_episode(tmp_path):
    """As when the simulator is started anew while the recorder runs on; bag time is then of another clock."""
    entries = []
    for start, offset in ((100.0, 0.0), (50.0, 100.0)):
        for topic, message, time in bags.recording(20, start):
            entries += [('/clock', bags.clock(time), time + offset), (topic, message, time + offset)]
    bags.write(tmp_path / 'bag', entries)
    [report] = convert_bags([tmp_path / 'bag'], tmp_path / 'd', setup_of(tmp_path))
    dataset = Dataset(tmp_path / 'd')
    first, second = (dataset.episode(i).columns[features.STATE][:, 0] for i in (0, 1))
    np.testing.assert_allclose(first, 100.0 + 0.1 * np.arange(20), atol=1e-4)
    np.testing.assert_allclose(second, 50.0 + 0.1 * np.arange(20), atol=1e-4)
    assert report['messages_with_wrong_content'] == {'/clock': 1}


def test_topics_are_found_under_a_namespace(tmp_path):
    bags.write(tmp_path / 'bag', [(f'/arm{topic}', m, time) for topic, m, time in bags.recording()])
    convert_bags([tmp_path / 'bag'], tmp_path / 'd', setup_of(tmp_path, namespace='arm'))
    assert check_frames(Dataset(tmp_path / 'd')) == list(range(30))


def test_what_is_no_bag_is_reported(tmp_path):
    with pytest.raises(ValueError, match='there is no bag'):
        convert_bags([tmp_path / 'nothing'], tmp_path / 'd', setup_of(tmp_path))
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match='no rosbag2'):
        convert_bags([tmp_path / 'empty'], tmp_path / 'd', setup_of(tmp_path))
    (tmp_path / 'robot.yaml').write_text(bags.PROFILE.replace('camera_topics', 'topics_of_cameras'))
    with pytest.raises(ValueError, match='lacks topics or cameras'):
        Setup.load(tmp_path / 'robot.yaml', fps=10, actions=STATES)


# ---- damage


class Sound:
    """A bag that is whole, and what is read of a damaged one. (A class, so that failing tests do not print it.)"""

    def __init__(self, storage: str, folder: Path) -> None:
        self.file = bags.write(folder / 'bag', bags.recording(), storage)
        self.content = self.file.read_bytes()
        self.topics = {entry[0] for entry in bags.recording()}
        self.whole = {0}
        found, damage = self.read(self.content)
        assert len(found) == len(bags.recording()) and not told(damage)
        self.whole = set(found)

    def read(self, content: bytes, suffix: str = '') -> tuple[list[int], Damage]:
        """A number per message that can be read, made from all that is in it."""
        path = self.file.with_name(f'damaged{self.file.suffix}{suffix}')
        path.write_bytes(content)
        damage = Damage()
        found = messages(path, self.topics, damage, lambda n: None)
        return [hash((m.topic, m.time, bytes(bags.STORE.serialize_cdr(m.data, m.kind)))) for m in found], damage


@pytest.fixture(scope='module', params=KINDS)
def sound(request, tmp_path_factory):
    return Sound(request.param, tmp_path_factory.mktemp(request.param))


def told(damage: Damage) -> bool:
    return bool(damage.problems or damage.undecodable)


def test_files_compressed_as_a_whole_are_read(sound):
    packed = zstd.compress(sound.content)
    found, damage = sound.read(packed, '.zstd')
    assert set(found) == sound.whole and not told(damage)
    found, damage = sound.read(packed[: len(packed) // 2], '.zstd')
    assert set(found) < sound.whole and told(damage)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0.0, 0.999))
def test_a_cut_bag_gives_what_is_before_the_cut(sound, share):
    found, damage = sound.read(sound.content[: int(len(sound.content) * share)])
    assert not set(found) - sound.whole
    assert len(found) == len(sound.whole) or told(damage)


def test_a_cut_bag_loses_little(sound):
    found, _ = sound.read(sound.content[: len(sound.content) * 6 // 10])
    assert len(found) > 0.4 * len(sound.whole)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.tuples(st.floats(0.0, 0.9999), st.integers(0, 7)), min_size=1, max_size=3))
def test_flipped_bits_are_noticed_or_do_no_harm(sound, flips):
    spoilt = bytearray(sound.content)
    for place, bit in flips:
        spoilt[int(len(spoilt) * place)] ^= 1 << bit
    found, damage = sound.read(bytes(spoilt))
    assert len(found) >= len(sound.whole) or told(damage)
    if sound.file.suffix == '.mcap':
        assert not set(found) - sound.whole, 'something else than was recorded'
    else:
        assert damage.unchecked  # nothing tells what is wrong inside a row


def test_one_damaged_chunk_loses_itself_alone(tmp_path):
    file = bags.write(tmp_path / 'bag', bags.recording())
    content = bytearray(file.read_bytes())
    chunk = content.index(b'\x04\x00\x00\x00zstd', len(content) // 2)
    content[chunk + 60] ^= 0xFF  # inside the compressed data
    file.write_bytes(content)
    [report] = convert_bags([tmp_path / 'bag'], tmp_path / 'd', setup_of(tmp_path))
    numbers = check_frames(Dataset(tmp_path / 'd'))
    assert 20 <= len(numbers) < 30 and numbers[0] == 0 and numbers[-1] == 29
    assert any('is lost' in line for line in report['damage'])


def test_reading_continues_behind_damaged_structure(tmp_path):
    file = bags.write(tmp_path / 'bag', bags.recording())
    content = bytearray(file.read_bytes())
    chunk = content.index(b'\x04\x00\x00\x00zstd', len(content) // 2) - 37
    content[chunk + 4] ^= 0xFF  # the length of the record: larger than the file
    file.write_bytes(content)
    [report] = convert_bags([tmp_path / 'bag'], tmp_path / 'd', setup_of(tmp_path))
    numbers = check_frames(Dataset(tmp_path / 'd'))
    assert 20 <= len(numbers) < 30 and numbers[-1] == 29
    assert any('are damaged' in line for line in report['damage'])


@settings(max_examples=10)
@given(data=st.data())
def test_a_damaged_bag_gives_right_frames_or_an_error(tmp_path_factory, data):
    """The whole way, from the file to the pixels of the dataset."""
    folder = tmp_path_factory.mktemp('fuzz')
    file = bags.write(folder / 'bag', bags.recording(20))
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    cut = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    file.write_bytes(content[:cut])
    try:
        [report] = convert_bags([folder / 'bag'], folder / 'd', setup_of(folder))
    except ValueError as error:
        assert 'no episode could be made' in str(error)
        return
    numbers = check_frames(Dataset(folder / 'd'))
    assert len(numbers) == len(set(numbers)) == report['frames_kept']
    assert len(numbers) == 20 or report['damage'] or report['messages_undecodable']


def test_bytes_that_are_no_bag_at_all_are_reported(tmp_path):
    for suffix in ('.mcap', '.db3'):
        for content in (b'', b'nothing of the kind', bytes(5000)):
            path = tmp_path / f'x{suffix}'
            path.write_bytes(content)
            damage = Damage()
            assert list(messages(path, ['/a'], damage, lambda n: None)) == [] and damage.problems


def test_types_that_the_bag_does_not_define_are_found(tmp_path, monkeypatch):
    """As in bags of Humble, whose sqlite3 files have no definitions."""
    import sqlite3

    entries = [*bags.recording(12), ('/sim/episode', bags.episode(99.9, 'press', 7, 'press it'), 99.95)]
    file = bags.write(tmp_path / 'bag', sorted(entries, key=lambda entry: entry[2]), 'sqlite3')
    with sqlite3.connect(file) as base:
        base.execute('DROP TABLE message_definitions')
    base.close()
    share = tmp_path / 'prefix/share/vla_msgs'
    share.mkdir(parents=True)
    (share / 'msg').symlink_to(bags.MSGS)
    monkeypatch.setenv('AMENT_PREFIX_PATH', '')
    damage = Damage()
    assert (
        not list(messages(file, ['/sim/episode'], damage, lambda n: None))
        and 'source the workspace' in damage.examples[0]
    )
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(tmp_path / 'prefix'))
    convert_bags([tmp_path / 'bag'], tmp_path / 'd', setup_of(tmp_path))
    assert Dataset(tmp_path / 'd').tasks == ['press it']


@pytest.mark.parametrize('column', ['name', 'type', 'serialization_format'])
def test_a_topic_whose_row_is_damaged_costs_its_own_messages_alone(tmp_path, column):
    sound = Sound('sqlite3', tmp_path)
    with contextlib.closing(sqlite3.connect(sound.file)) as base:
        base.execute('PRAGMA ignore_check_constraints=ON')
        base.execute('PRAGMA writable_schema=ON')
        schema = base.execute("SELECT sql FROM sqlite_master WHERE name='topics'").fetchone()[0]
        base.execute("UPDATE sqlite_master SET sql=? WHERE name='topics'", (schema.replace(' NOT NULL', ''),))
        base.commit()
    with contextlib.closing(sqlite3.connect(sound.file)) as base:
        base.execute(f'UPDATE topics SET {column} = NULL WHERE id = 1')
        (lost,) = base.execute('SELECT count(*) FROM messages WHERE topic_id = 1').fetchone()
        base.commit()
    found, damage = sound.read(sound.file.read_bytes())
    assert not set(found) - sound.whole
    assert len(found) == len(sound.whole) - lost
    assert damage.undecodable.total() == lost
