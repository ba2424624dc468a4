"""The report and its pictures, from a bag made by hand with known content."""

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rosbags.rosbag2 import StoragePlugin, Writer

from vla_bringup.bags.message_types import MessageTypes
from vla_bringup.demo.pictures import CAPTION, LINE, PLAN_LINES, VIEW, write_joints, write_videos
from vla_bringup.demo.report import Series, episode_reports, missed_frames, read_run, success_time
from vla_bringup.demo.summary import row, write_summary
from vla_msgs.msg import ExecutorStatus

S = 1_000_000_000
JOINTS = ('j1', 'j2', 'j3', 'j4', 'j5', 'j6', 'j7')


class Maker:
    """Writes messages, given as nested dicts, into a bag."""

    def __init__(self, path):
        self.types, self.connections = MessageTypes(), {}
        self.writer = Writer(path, version=8, storage_plugin=StoragePlugin.MCAP)

    def message(self, kind, values):
        """A message of the type: zeros and empty strings, but for the values."""
        self.types.full_definition(kind)
        store, fields = self.types.store, {}
        for name, (node, detail) in store.fielddefs[kind][1]:
            if name in values and not isinstance(values[name], dict):
                fields[name] = values[name]
            elif int(node) == 2:
                fields[name] = self.message(detail, values.get(name, {}))
            elif int(node) == 1:
                fields[name] = {'string': '', 'bool': False}.get(detail[0], 0)
            else:
                inner = detail[0][1][0]
                fields[name] = [] if inner == 'string' else np.zeros(detail[1] if int(node) == 3 else 0, inner)
        return store.types[kind](**fields)

    def write(self, topic, kind, time, **values):
        msg = self.message(kind, values)
        if topic not in self.connections:
            self.connections[topic] = self.writer.add_connection(topic, kind, typestore=self.types.store)
        self.writer.write(self.connections[topic], time, self.types.store.serialize_cdr(msg, kind))


def stamp(time):
    return {'stamp': {'sec': time // S, 'nanosec': time % S}}


@pytest.fixture(scope='module')
def bag(tmp_path_factory):
    """Two episodes of 3 s: press_button succeeds after 2 s, stack_block does not. Red front, green wrist images."""
    path = tmp_path_factory.mktemp('run') / 'bag'
    maker = Maker(path)
    with maker.writer:
        for index, (task, start) in enumerate((('press_button', 1 * S), ('stack_block', 4 * S))):
            maker.write(
                '/sim/episode', 'vla_msgs/msg/Episode', start,
                header=stamp(start), index=index, task=task, seed=5, instruction=f'do {task}',
            )  # fmt: skip
            maker.write('/sim/success', 'std_msgs/msg/Bool', start, data=False)
            for i in range(30):
                time = start + i * S // 10
                q = np.full(7, 0.1 * i)
                maker.write(
                    '/joint_states',
                    'sensor_msgs/msg/JointState',
                    time,
                    header=stamp(time),
                    name=list(JOINTS)[::-1],
                    position=q + np.arange(7)[::-1],
                )
                maker.write(
                    '/target_joint',
                    'sensor_msgs/msg/JointState',
                    time,
                    header=stamp(time),
                    name=list(JOINTS),
                    position=q + np.arange(7),
                )
                counts = np.zeros(ExecutorStatus.REJECT_COUNT, np.uint32)
                counts[[ExecutorStatus.ACCEPTED, ExecutorStatus.REJECT_SHADOW, ExecutorStatus.REJECT_OLD_EPOCH]] = (
                    i,
                    2 * i,
                    i // 10,
                )
                maker.write(
                    '/executor/status', 'vla_msgs/msg/ExecutorStatus', time, header=stamp(time), verdict_counts=counts,
                    state=ExecutorStatus.STATE_EXECUTING if i > 5 else ExecutorStatus.STATE_HOLDING,
                    seam_position=0.001 * i, tracking_error=0.002 * i,
                )  # fmt: skip
                maker.write(
                    '/action_chunk', 'vla_msgs/msg/ActionChunk', time,
                    source='/policy' if i % 3 else '/expert', shadow=bool(i % 3),
                    horizon=16, inference_time={'sec': 0, 'nanosec': 100_000_000}, model_id='nano',
                )  # fmt: skip
                if i == 7 and index == 0:
                    continue  # one camera frame is lost
                for camera, colour in (('front', (250, 0, 0)), ('wrist', (0, 200, 0))):
                    pixels = np.tile(np.array(colour, np.uint8), 32 * 32)
                    size = {'height': 32, 'width': 32}
                    maker.write(
                        f'/{camera}/image_raw',
                        'sensor_msgs/msg/Image',
                        time,
                        header=stamp(time),
                        encoding='rgb8',
                        step=96,
                        data=pixels,
                        **size,
                    )
                    maker.write(
                        f'/{camera}/camera_info', 'sensor_msgs/msg/CameraInfo', time, header=stamp(time), **size
                    )
            if index == 0:
                maker.write('/sim/success', 'std_msgs/msg/Bool', start + 2 * S, data=True)
    return path


def test_the_table_reports_what_is_in_the_bag(bag):
    press, stack = episode_reports(read_run(bag, JOINTS))
    assert (press.task, press.seed, press.instruction) == ('press_button', 5, 'do press_button')
    assert press.success and not stack.success
    assert press.time == pytest.approx(2.0)
    assert stack.time == pytest.approx(2.9)
    assert (press.driver, press.chunks, press.shadow_chunks) == ('/expert', 10, 20)
    assert press.inference_p50 == pytest.approx(0.1)
    assert press.seam_position == pytest.approx(0.029)
    assert press.tracking_error == pytest.approx(0.058)
    assert press.refused == 2  # neither accepted nor shadow
    assert (press.frames_missed, stack.frames_missed) == (2, 0)  # one of each camera
    assert row(press)[2:] == ('yes', '2.0 s', '10 + 20', '100 / 100 ms', '29.0 mrad', '2 + 2')
    assert row(stack)[2] == 'NO'


def test_joints_are_matched_by_name(bag):
    run = read_run(bag, JOINTS)
    np.testing.assert_allclose(run.measured.values[3], 0.3 + np.arange(7))
    np.testing.assert_allclose(run.commanded.values[3], run.measured.values[3])


def test_another_namespace_has_nothing(bag):
    assert episode_reports(read_run(bag, JOINTS, namespace='/arm')) == []


def test_a_video_shows_the_cameras_side_by_side_for_as_long_as_the_episode(bag, tmp_path):
    run = read_run(bag, JOINTS)
    names = write_videos(bag, run, episode_reports(run), tmp_path)
    assert names == {0: '00_press_button.mp4', 1: '01_stack_block.mp4'}
    with av.open(str(tmp_path / names[0])) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 29
    assert frames[-1].time == pytest.approx(2.9, abs=0.01)
    pixels = frames[10].to_ndarray(format='rgb24')
    assert pixels.shape == (VIEW + CAPTION, 2 * VIEW, 3)
    assert np.abs(pixels[VIEW // 2, VIEW // 2].astype(int) - (250, 0, 0)).max() < 12
    assert np.abs(pixels[VIEW // 2, VIEW + VIEW // 2].astype(int) - (0, 200, 0)).max() < 12
    caption = pixels[VIEW:]
    assert caption.max() > 200 and np.median(caption) < 40  # light text on dark ground


def test_the_figure_and_the_summary_are_written(bag, tmp_path):
    run = read_run(bag, JOINTS)
    reports = episode_reports(run)
    write_joints(run, reports, JOINTS, tmp_path / 'joints.png')
    assert (tmp_path / 'joints.png').stat().st_size > 20_000
    write_summary(
        tmp_path, reports, videos={0: 'a.mp4'}, machine={'cores': '2'}, command='./vla demo', bag_counts={'/x': 3},
        trouble=['/sim was killed'], model='nano', wall=1.0,
    )  # fmt: skip
    text = (tmp_path / 'summary.md').read_text()
    assert '1 of 2 episodes succeeded' in text
    assert (
        'scripted expert moved' in text and '[mp4](a.mp4)' in text and '/sim was killed' in text and '`/x` | 3' in text
    )


def test_a_video_shows_the_plans_and_predicted_images_of_the_policy(tmp_path):
    """One episode; from 1 s on there is a plan text, from 1.5 s on a blue image that it expects to see."""
    maker, start = Maker(tmp_path / 'bag'), 10 * S
    size = {'height': 32, 'width': 32, 'encoding': 'rgb8', 'step': 96}
    with maker.writer:
        maker.write('/sim/episode', 'vla_msgs/msg/Episode', start, header=stamp(start), index=3, task='fill_bowl')
        for i in range(20):
            time = start + i * S // 10
            for camera in ('front', 'wrist'):
                maker.write(
                    f'/{camera}/image_raw', 'sensor_msgs/msg/Image', time, header=stamp(time), **size,
                    data=np.full(3072, 90, np.uint8),
                )  # fmt: skip
            maker.write('/sim/success', 'std_msgs/msg/Bool', time, data=False)
            if i == 10:
                said = 'My task is to tidy up. ' * 12
                maker.write('/policy/plan_text', 'std_msgs/msg/String', time, data=said)
            if i == 15:
                blue = np.tile(np.array((0, 0, 250), np.uint8), 32 * 32)
                due = stamp(time + S)
                maker.write('/policy/predicted_image', 'sensor_msgs/msg/Image', time, header=due, **size, data=blue)
    run = read_run(tmp_path / 'bag', JOINTS)
    names = write_videos(tmp_path / 'bag', run, episode_reports(run), tmp_path)
    with av.open(str(tmp_path / names[3])) as container:
        frames = [frame.to_ndarray(format='rgb24') for frame in container.decode(video=0)]
    assert len(frames) == 20 and frames[0].shape == (VIEW + CAPTION + PLAN_LINES * LINE, 3 * VIEW, 3)
    imagined = [frame[VIEW // 2, 5 * VIEW // 2] for frame in frames]
    assert imagined[5][2] < 60 and imagined[18][2] > 220
    texts = [frame[VIEW + CAPTION :, : 2 * VIEW].max() for frame in frames]
    assert texts[5] < 60 and texts[12] > 180


def series(*pairs):
    s = Series()
    for time, value in pairs:
        s.add(int(time * S), value)
    return s


@pytest.mark.parametrize(
    ('pairs', 'expected'),
    [
        ([(0, False), (3, True)], 3),
        ([(0, False), (3, True), (4, False)], None),  # it fell down again
        ([(0, False), (3, True), (4, False), (5, True)], 5),
        ([(0, False), (3, True), (9.99, False)], 3),  # of the next episode's reset
        ([(11, True)], None),
        ([], None),
    ],
)
def test_success_counts_if_it_holds_to_the_end(pairs, expected):
    assert success_time(series(*pairs), 0, 10 * S) == (None if expected is None else expected * S)


@given(st.sets(st.integers(1, 28)))
def test_every_missing_frame_between_others_is_counted_unless_most_are_missing(lost):
    stamps = [i * S // 10 for i in range(30) if i not in lost]
    gaps = np.diff(stamps)
    if len(lost) < 30 and np.median(gaps) == S // 10:
        assert missed_frames(stamps, 0, 3 * S) == len(lost)


def test_the_newest_value_not_later_than_a_time():
    s = series((1, 'a'), (2, 'b'))
    assert (s.at(S - 1), s.at(S), s.at(2 * S - 1), s.at(9 * S)) == (None, 'a', 'a', 'b')
    assert s.between(S, 2 * S) == ['a']
