"""Bags with faults of the world: clocks that are set, images that are lost, wrong topics, names that come twice."""

import dataclasses
import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from vla_training.cli import app
from vla_training.convert.convert import REPORT, NothingConverted, convert_bags
from vla_training.convert.recording import SET_POINTS, STATES, Setup
from vla_training.convert.report import notes
from vla_training.data import features
from vla_training.lerobot import Dataset

spec = importlib.util.spec_from_file_location('bags', Path(__file__).parent / 'bags.py')
bags = importlib.util.module_from_spec(spec)
sys.modules['bags'] = bags
spec.loader.exec_module(bags)

START = 1000.0


def setup_of(folder: Path, **changes) -> Setup:
    path = folder / 'robot.yaml'
    path.write_text(bags.PROFILE)
    return Setup.load(path, **{'fps': 10, 'actions': STATES, 'shortest': 3, **changes})


def convert(folder: Path, entries, storage: str = 'mcap', **changes) -> tuple[Dataset, dict]:
    bags.write(folder / 'bag', entries, storage)
    [report] = convert_bags([folder / 'bag'], folder / 'd', setup_of(folder, **changes))
    return Dataset(folder / 'd'), report


def restamped(entries, clock, topics=None, recorder=True):
    """With stamps put on another clock, a function of true time; of these topics only, and the recorder's or not."""
    found = []
    for topic, message, time in entries:
        if hasattr(message, 'header') and (topics is None or topic in topics):
            stamp = message.header.stamp
            message = dataclasses.replace(message, header=bags.header(clock(stamp.sec + stamp.nanosec / bags.NS)))
        found.append((topic, message, clock(time) if recorder else time))
    return found


def set_back(by: float, after: float = 2.0):
    return lambda time: time - by if time > START + after else time


def true_times(dataset: Dataset) -> list[np.ndarray]:
    """Of the frames of each episode, by joint a, which is the time itself. Checks images and actions against it."""
    found = []
    for info in dataset.episodes:
        episode = dataset.episode(info.index)
        state, action = episode.columns[features.STATE], episode.columns[features.ACTION]
        np.testing.assert_allclose(action[:, 0] - state[:, 0], 0.1, atol=0.021)
        numbers = np.rint((state[:, 0] - START) / 0.1).astype(int)
        for camera in ('front', 'wrist'):
            grey = [pixels.mean() for pixels in episode.frames(features.image(camera))]
            np.testing.assert_allclose(grey, [bags.level(n) for n in numbers], atol=3.0)
        np.testing.assert_allclose(np.diff(state[:, 0]), 0.1, atol=0.021)
        found.append(state[:, 0])
    return found


# ---- clocks


@pytest.mark.parametrize('by', [0.1, 0.2, 0.5, 1.0, 3.0, 100.0])
@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
def test_a_clock_that_was_set_back_ends_the_episode_and_nothing_is_mixed_or_lost(tmp_path, by, storage):
    entries = restamped(bags.recording(40, START), set_back(by))
    dataset, report = convert(tmp_path, entries, storage)
    first, second = true_times(dataset)
    assert first[-1] < START + 2.0 < second[0] + 0.1 and len(first) + len(second) >= 38
    [line] = report['order']
    size = float(line.split('set back by ')[1].split(' s')[0])
    assert size == pytest.approx(by, abs=0.02) and line.startswith('after 2.1 s of the bag, ')
    starts = [e.extra['start'] for e in dataset.episodes]
    assert starts == pytest.approx([0.1, second[0] - START + 0.1], abs=0.05)  # counted on from the first message


@pytest.mark.parametrize('by', [0.1, 3.0])
def test_images_from_before_the_step_of_the_clock_that_come_after_it_are_no_fault(tmp_path, by):
    late = [(t, m, time + 0.15 * ('image' in t)) for t, m, time in bags.recording(40, START)]  # 1 or 2 are under way
    dataset, report = convert(tmp_path, restamped(sorted(late, key=lambda e: e[2]), set_back(by)))
    assert len(report['order']) == 1 and report['messages_with_wrong_content'] == {}
    assert [e.length for e in dataset.episodes] == [19, 19] and len(true_times(dataset)) == 2


@pytest.mark.parametrize('by', [1.0, 100.0])
def test_a_clock_that_was_set_forward_ends_the_episode_and_is_reported(tmp_path, by):
    dataset, report = convert(tmp_path, restamped(bags.recording(40, START), set_back(-by)))
    first, second = true_times(dataset)
    assert len(first) + len(second) >= 38
    assert any(f'no message of any topic came for {by:.1f}' in line for line in report['order'])


@pytest.mark.parametrize('topic', ['/front/image_raw', '/joint_states'])
@pytest.mark.parametrize('by', [0.2, 2.0])
def test_a_sender_whose_clock_was_set_back_ends_the_episode_and_is_reported(tmp_path, topic, by):
    entries = restamped(bags.recording(40, START), set_back(by), [topic], recorder=False)
    dataset, report = convert(tmp_path, entries)
    first = Dataset(tmp_path / 'd').episode(0).columns[features.STATE][:, 0]
    assert len(first) in (20, 21) and first[-1] < START + 2.01
    assert sum(e.length for e in dataset.episodes[1:]) in (
        0,
        16,
        17,
        18,
        19,
    )  # images 0.2 s old may be used, by their limit
    [line] = report['order']
    assert f'on {topic} was set back by {by:.1f}' in line and line.startswith('after 2.')


def test_a_sender_whose_clock_was_set_forward_ends_the_episode_and_is_reported(tmp_path):
    late = [(t, m, time + 0.2 * ('front' in t)) for t, m, time in bags.recording(40, START)]  # images are 0.22 s old
    entries = restamped(sorted(late, key=lambda e: e[2]), set_back(-0.15), ['/front/image_raw'], recorder=False)
    dataset, report = convert(tmp_path, entries)
    assert len(dataset.episodes) == 2
    assert 'front on /front/image_raw was set forward by 0.150 s' in report['order'][0]


def test_set_points_of_a_clock_that_was_set_are_not_mixed(tmp_path):
    back = restamped(bags.recording(40, START), set_back(2.0), ['/target_joint'], recorder=False)
    dataset, report = convert(tmp_path / 'a', back, actions=SET_POINTS)
    assert 'set-points on /target_joint was set back by 2.0' in report['order'][0]
    for info in dataset.episodes:
        columns = dataset.episode(info.index).columns
        ahead = columns[features.ACTION][:, 0] - columns[features.STATE][:, 0]
        assert np.ptp(ahead) < 0.021
    forward = restamped(bags.recording(40, START), lambda time: time + 0.5, ['/target_joint'], recorder=False)
    with pytest.raises(NothingConverted, match='set-points on /target_joint is stamped'):
        convert(tmp_path / 'b', forward, actions=SET_POINTS)


def test_clocks_that_differ_within_the_tolerance_are_reported(tmp_path):
    _, report = convert(tmp_path, restamped(bags.recording(), lambda t: t + 0.07, ['/front/image_raw'], recorder=False))
    assert report['episodes'] == 1
    assert report['ahead'] == [
        'front on /front/image_raw is stamped 0.050 s ahead of the clock: synchronise the clocks'
    ]
    assert report['streams']['front']['lag'] == pytest.approx(-0.05, abs=0.001)


@pytest.mark.parametrize('by', [0.3, 5.0])
def test_images_that_are_stamped_ahead_are_not_used(tmp_path, by):
    entries = restamped(bags.recording(), lambda t: t + by, ['/wrist/image_raw'], recorder=False)
    with pytest.raises(NothingConverted, match=f'wrist on /wrist/image_raw is stamped {by - 0.02:.3f} s ahead'):
        convert(tmp_path, entries)


@pytest.mark.parametrize('simulated', [False, True])
def test_a_bag_with_a_clock_of_its_own_goes_by_that(tmp_path, simulated):
    """The recorder's clock is set back, or follows /clock back when the simulator begins anew."""
    entries = []
    for start, log in ((START, 0.0), (START - 50.0 if simulated else START + 3.0, 0.0 if simulated else -30.0)):
        for topic, message, time in bags.recording(29, start):
            if start != START + 3.0 or topic != '/policy/instruction':
                entries += [('/clock', bags.clock(time), time + log), (topic, message, time + log)]
    entries = [e for i, e in enumerate(entries) if i < 1 or not (e[0] == '/clock' and entries[i - 1][0] == '/clock')]
    _, report = convert(tmp_path, entries)
    assert [len(e['order']) for e in [report]] == [1] and report['episodes'] == 2
    assert report['messages_with_wrong_content'] == {}


# ---- single images that are lost


def lose(entries, camera: str, first: float, last: float):
    return [e for e in entries if not (camera in e[0] and START + first - 0.01 < e[2] - 0.02 < START + last + 0.01)]


@pytest.mark.parametrize('camera', ['front', 'wrist', 'image_raw'])
def test_a_missing_image_does_not_end_an_episode_unless_that_is_asked_for(tmp_path, camera):
    entries = lose(bags.recording(30, START), camera, 1.2, 1.2)
    dataset, report = convert(tmp_path, entries)
    [info] = dataset.episodes
    episode = dataset.episode(0)
    np.testing.assert_allclose(episode.columns[features.STATE][:, 0], START + 0.1 * np.arange(30), atol=0.021)
    np.testing.assert_allclose(episode.columns[features.ACTION][:, 0], START + 0.1 + 0.1 * np.arange(30), atol=0.021)
    for name in ('front', 'wrist'):
        grey = [pixels.mean() for pixels in episode.frames(features.image(name))]
        shown = [n - (n == 12 and camera in (name, 'image_raw')) for n in range(30)]
        np.testing.assert_allclose(grey, [bags.level(n) for n in shown], atol=2.0)
    hit = {'image_raw': {'front': 1, 'wrist': 1}}.get(camera, {camera: 1})
    assert info.length == 30 and report['frames_with_an_older_image'] == hit
    assert report['oldest_image'] == pytest.approx(0.1, abs=0.01)

    [report] = convert_bags([tmp_path / 'bag'], tmp_path / 'e', setup_of(tmp_path, camera_gap=0.05))
    assert [e.length for e in Dataset(tmp_path / 'e').episodes] == [12, 17]
    assert report['frames_with_an_older_image'] == {} and report['gaps_that_ended_an_episode']['count'] == 1


def test_more_than_its_age_allows_ends_the_episode(tmp_path):
    dataset, report = convert(tmp_path, lose(bags.recording(30, START), 'wrist', 1.2, 1.5))
    assert [e.length for e in dataset.episodes] == [12, 14] and report['frames_with_an_older_image'] == {}


def test_a_camera_that_is_too_slow_is_not_stood_in_for(tmp_path):
    entries = [e for e in bags.recording(40, START) if 'wrist' not in e[0] or round((e[2] - 0.02) * 10) % 2]
    with pytest.raises(NothingConverted, match='wrist on /wrist/image_raw gives 5 frames/s, --fps asks for 10'):
        convert(tmp_path, entries, shortest=10)


def test_joints_that_are_missing_as_well_end_the_episode(tmp_path):
    entries = lose(bags.recording(30, START), 'image_raw', 1.2, 1.2)
    entries = [e for e in entries if not (e[0] == '/joint_states' and START + 1.13 < e[2] < START + 1.25)]
    dataset, _ = convert(tmp_path, entries)
    assert len(dataset.episodes) == 2


# ---- what is told


@pytest.mark.parametrize('rate', [3.0, 5.0, 10.0])
def test_a_slow_gripper_loses_frames_only_below_its_limit(tmp_path, rate):
    fingers = [
        ('/fingers', bags.joints(START + k / rate - 1, ['f'], [0.04], False), START + k / rate - 1)
        for k in range(int(5 * rate))
    ]
    entries = [
        e if e[0] != '/joint_states' else (e[0], bags.joints(e[2], bags.JOINTS, [e[2], -e[2]]), e[2])
        for e in bags.recording(30, START)
    ]
    (tmp_path / 'robot.yaml').write_text(
        bags.PROFILE.replace('gripper_joint_states: joint_states', 'gripper_joint_states: fingers')
    )
    bags.write(tmp_path / 'bag', sorted([*entries, *fingers], key=lambda e: e[2]))
    setup = Setup.load(tmp_path / 'robot.yaml', fps=10, actions=STATES, shortest=3)
    if rate > 4:
        [report] = convert_bags([tmp_path / 'bag'], tmp_path / 'd', setup)
        assert report['frames_kept'] >= 29 and not report['slow_cameras']
    else:
        with pytest.raises(NothingConverted, match=r'gripper on /fingers gives 3 states/s.*0.3 s \(gripper_max_age\)'):
            convert_bags([tmp_path / 'bag'], tmp_path / 'd', setup)


def why(folder, entries, **changes) -> str:
    with pytest.raises(NothingConverted) as error:
        convert(folder, entries, **changes)
    [report] = error.value.reports
    assert report['failed'] and report['failed'] in str(error.value)
    return report['failed']


def test_why_a_bag_gave_nothing(tmp_path):
    entries = bags.recording(30, 1e9)
    elsewhere = [(t.replace('/wrist', '/camera/wrist'), m, time) for t, m, time in entries]
    assert 'no wrist received on /wrist/image_raw' in (found := why(tmp_path / 'a', elsewhere))
    assert 'topics in the bag: /camera/wrist/image_raw, /front/image_raw' in found
    prefixed = [
        (t, dataclasses.replace(m, name=[f'left_{n}' for n in m.name]) if t == '/joint_states' else m, time)
        for t, m, time in entries
    ]
    assert "lacks ['a', 'b'], it has ['left_a', 'left_b', 'left_f']" in why(tmp_path / 'b', prefixed)
    zero = restamped(entries, lambda t: 0.0, ['/front/image_raw'], recorder=False)
    assert 'front on /front/image_raw: its header.stamp is zero' in why(tmp_path / 'c', zero)
    simulated = restamped(entries, lambda t: t - 1e9 + 50, recorder=False)
    assert 'simulation time need /clock' in why(tmp_path / 'd', simulated)
    assert 'gives 10 frames/s, --fps asks for 30' in why(tmp_path / 'e', entries, fps=30, shortest=10)
    silent = [e for e in entries if e[0] != '/policy/instruction']
    assert '30 frames dropped: no instruction' in why(tmp_path / 'f', silent)


def test_an_arm_that_never_moved_is_reported(tmp_path):
    noise = np.random.default_rng(0)
    entries = [
        (t, dataclasses.replace(m, position=noise.normal([1.0, 2.0, 0.04], 1e-4)) if t == '/joint_states' else m, time)
        for t, m, time in bags.recording(30, START)
    ]
    _, report = convert(tmp_path, entries)
    assert any(line.startswith('the arm never moved: no joint by more than 0.') for line in notes(report))
    (tmp_path / 'moving').mkdir()
    _, report = convert(tmp_path / 'moving', bags.recording(30, START))
    assert report['motion'] == pytest.approx(3.38, abs=0.01) and not any(
        'never moved' in line for line in notes(report)
    )


def test_colours_whose_order_is_not_given_need_it(tmp_path):
    def image(time, k):
        px = np.full((16, 16, 3), (200, 40, 90), np.uint8)
        return dataclasses.replace(bags.image(time, 0), encoding='8UC3', data=px.reshape(-1))

    entries = [(t, image(time - 0.02, 0) if 'image' in t else m, time) for t, m, time in bags.recording(30, START)]
    assert '--encoding rgb8 or bgr8' in why(tmp_path, entries)
    convert_bags([tmp_path / 'bag'], tmp_path / 'd', setup_of(tmp_path, encoding='bgr8'))
    pixels = next(iter(Dataset(tmp_path / 'd').episode(0).frames(features.image('front'))))
    np.testing.assert_allclose(pixels.mean((0, 1)), [90, 40, 200], atol=4)


# ---- bags of one name, and exit codes


def test_another_bag_of_a_name_that_the_data_set_has_is_refused(tmp_path):
    for day, words in (('monday', 'open it'), ('tuesday', 'close it')):
        entries = [(t, bags.text(words) if 'instruction' in t else m, time) for t, m, time in bags.recording(12)]
        bags.write(tmp_path / day / 'take', entries)
    setup, out = setup_of(tmp_path), tmp_path / 'd'
    [report] = convert_bags([tmp_path / 'monday/take'], out, setup)
    assert 'skipped' not in report
    with pytest.raises(ValueError, match='another bag that is named take: rename'):
        convert_bags([tmp_path / 'tuesday/take'], out, setup)
    shutil.copytree(tmp_path / 'monday/take', tmp_path / 'copy')
    for same, how in (('monday/take', 'has it already'), ('copy', 'has it already, as take')):
        before = {p: p.stat().st_mtime_ns for p in out.rglob('*') if p.is_file()}
        reports = convert_bags([tmp_path / same], out, setup)
        [report] = [r for r in reports if r['bag'] == Path(same).name]
        assert report['skipped'].endswith(how) and notes(report) == [report['skipped']]
        assert before == {p: p.stat().st_mtime_ns for p in out.rglob('*') if p.is_file()}
    (tmp_path / 'tuesday/take').rename(tmp_path / 'tuesday/take2')
    convert_bags([tmp_path / 'tuesday/take2'], out, setup)
    assert Dataset(out).tasks == ['open it', 'close it']


def test_a_data_set_of_an_earlier_version_does_not_distinguish_bags_of_one_name_and_that_is_reported(tmp_path):
    bags.write(tmp_path / 'bag', bags.recording(12))
    setup, out = setup_of(tmp_path), tmp_path / 'd'
    convert_bags([tmp_path / 'bag'], out, setup)
    [report] = json.loads((out / REPORT).read_text())
    new = ('identity', 'order', 'slow_cameras', 'motion', 'causes', 'frames_with_an_older_image', 'oldest_image')
    old = {key: value for key, value in report.items() if key not in new}
    (out / REPORT).write_text(json.dumps([old]))
    [report] = convert_bags([tmp_path / 'bag'], out, setup)
    assert 'a version that did not record which one it was' in report['skipped']


def test_an_interrupted_bag_is_not_taken_for_another_of_its_name(tmp_path, monkeypatch):
    from vla_training.convert.recording import Recording

    entries = sorted([*bags.recording(40), ('/policy/instruction', bags.text('again'), 102.0)], key=lambda e: e[2])
    bags.write(tmp_path / 'a/take', entries)
    bags.write(tmp_path / 'b/take', bags.recording(20))
    setup, out = setup_of(tmp_path), tmp_path / 'd'

    def dying(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Recording, 'end', dying)
        with pytest.raises(KeyboardInterrupt):
            convert_bags([tmp_path / 'a/take'], out, setup)
    [report] = json.loads((out / REPORT).read_text())
    assert 'interrupted' in report['failed']
    with pytest.raises(ValueError, match='another bag that is named take'):
        convert_bags([tmp_path / 'b/take'], out, setup)


def test_the_command_reports_each_bag_in_tables_and_exit_codes(tmp_path):
    (tmp_path / 'robot.yaml').write_text(bags.PROFILE)
    bags.write(tmp_path / 'good', bags.recording(12))
    bags.write(tmp_path / 'bad', [e for e in bags.recording(12, 500.0) if 'wrist' not in e[0]])

    def run(*names: str):
        options = ['--robot', str(tmp_path / 'robot.yaml'), '--out', str(tmp_path / 'd'), '--shortest', '3']
        return CliRunner().invoke(app, ['convert', *(str(tmp_path / n) for n in names), *options])

    result = run('bad')
    assert result.exit_code == 1 and 'frames' in result.output and 'no wrist received' in result.output
    assert (
        '/front' not in result.output.split('no episode')[0] and 'front' in result.output
    )  # the table has its streams
    result = run('good', 'bad')
    assert result.exit_code == 1 and '1 of 2 bags could not be converted: bad' in result.output
    result = run('good')
    assert result.exit_code == 0 and 'skipped' in result.output and '1 episodes' in result.output
