"""The dataset writer and reader: what goes in comes out, files roll over, a writer that is killed loses nothing."""

import json
import multiprocessing
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vla_training.data import features
from vla_training.lerobot import Dataset, DatasetWriter, Feature, encode_video, layout, video

FPS = 10
CAMERAS = ('front', 'wrist')
JOINTS = [f'joint{i}' for i in range(1, 8)]
FEATURES = {
    **features.robot_features(JOINTS, dict.fromkeys(CAMERAS, (48, 64))),
    **features.subtask_features(),
    features.depth('front'): Feature('uint16', (6, 5), ['height', 'width']),
}


def picture(number: int, camera: int = 0) -> np.ndarray:
    """(48, 64, 3): a grey level that tells the number, and a corner that tells the camera."""
    image = np.full((48, 64, 3), 20 + 5 * (number % 40), np.uint8)
    image[:24, :32, 0] = 250 if camera else 0
    return image


def episode(length: int, first: int = 0) -> tuple[dict, dict[str, bytes]]:
    rng = np.random.default_rng(first)
    columns = {
        features.STATE: rng.normal(size=(length, 8)).astype(np.float32),
        features.VELOCITY: rng.normal(size=(length, 7)).astype(np.float32),
        features.ACTION: rng.normal(size=(length, 8)).astype(np.float32),
        features.DONE: np.arange(length) == length - 1,
        features.SUBTASK: [f'step {i}' for i in range(length)],
        features.COMPLETED: [''] * length,
        features.REMAINING: ['a; b'] * length,
        features.depth('front'): rng.integers(0, 65536, (length, 6, 5), dtype=np.uint16),
    }
    videos = {
        features.image(name): encode_video(np.stack([picture(first + i, c) for i in range(length)]), FPS)
        for c, name in enumerate(CAMERAS)
    }
    return columns, videos


def add(writer: DatasetWriter, length: int, task: str = 'press the red button') -> dict:
    columns, videos = episode(length, writer.total_frames)
    writer.add_episode(columns, videos, task, {'seed': len(writer.episodes), 'success': True, 'sim_task': 'press'})
    return columns


def check(folder, written: list[dict]) -> Dataset:
    """Every frame is what was written, pixels included."""
    dataset = Dataset(folder)
    assert [e.length for e in dataset.episodes] == [len(c[features.STATE]) for c in written]
    number = 0
    for i, columns in enumerate(written):
        found = dataset.episode(i)
        for name, values in columns.items():
            np.testing.assert_array_equal(found.columns[name], values, err_msg=name)
            if isinstance(values, np.ndarray):
                assert found.columns[name].dtype == values.dtype
        np.testing.assert_array_equal(found.columns['index'], number + np.arange(len(found)))
        for c, camera in enumerate(CAMERAS):
            frames = list(found.frames(features.image(camera)))
            assert len(frames) == len(found)
            for k, frame in enumerate(frames):
                assert np.abs(frame.astype(int) - picture(number + k, c)).mean() < 2.0, (i, camera, k)
        number += len(found)
    return dataset


def test_what_is_written_is_read(tmp_path):
    writer = DatasetWriter(tmp_path / 'd', FPS, 'panda', FEATURES)
    written = [add(writer, 7), add(writer, 1, 'stack'), add(writer, 12)]
    writer.close()
    dataset = check(tmp_path / 'd', written)
    assert len(dataset) == 20 and dataset.fps == FPS
    assert dataset.tasks == ['press the red button', 'stack']
    assert [e.task for e in dataset.episodes] == ['press the red button', 'stack', 'press the red button']
    assert dataset.episodes[1].extra == {'seed': 1, 'success': True, 'sim_task': 'press'}
    assert {n: f for n, f in dataset.features.items() if n not in layout.INDICES} == FEATURES
    assert not (tmp_path / 'd' / layout.WRITING).exists()


def test_statistics_are_those_of_all_frames(tmp_path):
    writer = DatasetWriter(tmp_path / 'd', FPS, 'panda', FEATURES)
    written = [add(writer, 7), add(writer, 30)]
    writer.close()
    stats = Dataset(tmp_path / 'd').stats
    state = np.concatenate([c[features.STATE] for c in written]).astype(float)
    found = stats[features.STATE]
    np.testing.assert_allclose(found['mean'], state.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found['std'], state.std(0), rtol=1e-6)
    np.testing.assert_array_equal(found['min'], state.min(0))
    np.testing.assert_array_equal(found['max'], state.max(0))
    assert found['count'] == [37]
    weighted = sum(len(c[features.STATE]) * np.quantile(c[features.STATE].astype(float), 0.9, axis=0) for c in written)
    np.testing.assert_allclose(found['q90'], weighted / 37, rtol=1e-6)
    image = stats[features.image('front')]
    assert np.shape(image['mean']) == (3, 1, 1) and 0 < image['q01'][1][0][0] < image['q99'][1][0][0] < 1
    assert features.SUBTASK not in stats


def test_image_statistics_are_those_of_the_pixels():
    from vla_training.lerobot.stats import image_stats

    images = np.random.default_rng(0).integers(0, 256, (9, 20, 30, 3), dtype=np.uint8)
    found, values = image_stats(images), images.reshape(-1, 3) / 255
    np.testing.assert_allclose(np.squeeze(found['mean']), values.mean(0))
    np.testing.assert_allclose(np.squeeze(found['std']), values.std(0))
    np.testing.assert_allclose(np.squeeze(found['q10']), np.quantile(values, 0.1, axis=0), atol=1 / 255)
    assert found['count'] == [9]


def test_files_roll_over_by_size_and_folders_by_count(tmp_path):
    writer = DatasetWriter(
        tmp_path / 'd',
        FPS,
        'panda',
        FEATURES,
        chunks_size=2,
        data_files_size_in_mb=0.02,
        video_files_size_in_mb=0.005,
    )
    written = [add(writer, 8) for _ in range(9)]
    writer.close()
    check(tmp_path / 'd', written)
    files = sorted(str(p.relative_to(tmp_path / 'd')) for p in (tmp_path / 'd').rglob('*.*') if p.suffix != '.json')
    assert 'data/chunk-000/file-001.parquet' in files
    assert 'videos/observation.images.front/chunk-001/file-000.mp4' in files
    sizes = {p.name: p.stat().st_size for p in (tmp_path / 'd' / 'videos').rglob('*.mp4')}
    assert max(sizes.values()) < 2 * 0.005 * 2**20


def test_video_files_end_before_float32_times_become_too_coarse(tmp_path, monkeypatch):
    monkeypatch.setattr('vla_training.lerobot.writer.LONGEST_FILE', 2.0)
    writer = DatasetWriter(tmp_path / 'd', FPS, 'panda', FEATURES)
    written = [add(writer, 8) for _ in range(5)]
    writer.close()
    dataset = check(tmp_path / 'd', written)
    assert max(e.row['videos/observation.images.front/to_timestamp'] for e in dataset.episodes) <= 2.0
    assert dataset.episodes[-1].row['data/file_index'] == 0


def test_a_finished_dataset_is_continued(tmp_path):
    writer = DatasetWriter(tmp_path / 'd', FPS, 'panda', FEATURES)
    written = [add(writer, 8), add(writer, 5)]
    writer.close()
    writer = DatasetWriter.resume(tmp_path / 'd')
    assert [e.extra['seed'] for e in writer.episodes] == [0, 1]
    with pytest.raises(ValueError, match='unfinished'):
        Dataset(tmp_path / 'd')
    written.append(add(writer, 6, 'another'))
    writer.close()
    dataset = check(tmp_path / 'd', written)
    assert dataset.tasks == ['press the red button', 'another']
    state = np.concatenate([c[features.STATE] for c in written])
    np.testing.assert_allclose(dataset.stats[features.STATE]['mean'], state.mean(0), rtol=1e-5)
    DatasetWriter.resume(tmp_path / 'd').close()
    check(tmp_path / 'd', written)


def _write_and_die(folder, at: str, count: int) -> None:
    """Adds episodes; ends without any clean-up when a file named `at` is to be put in place for the count-th time."""
    from pathlib import Path

    replace, seen = Path.replace, 0

    def dying(self, target):
        nonlocal seen
        if at in str(target):
            seen += 1
            if seen == count:
                os._exit(9)
        return replace(self, target)

    writer = DatasetWriter(folder, FPS, 'panda', FEATURES, video_files_size_in_mb=0.005)
    Path.replace = dying
    for _ in range(5):
        add(writer, 8)
    writer.close()
    os._exit(0)


@pytest.mark.parametrize(
    ('at', 'count', 'complete'),
    [
        ('writing/000000.parquet', 1, 0),
        ('writing/000002.observation.images.wrist', 1, 2),
        ('writing/000003.json', 1, 3),
        ('front/chunk-000/file-000.mp4', 1, 2),
        ('wrist/chunk-000/file-000.mp4', 1, 2),
        ('data/chunk-000', 1, 5),
        ('meta/episodes', 1, 5),
        ('meta/stats.json', 1, 5),
        ('meta/info.json', 1, 5),
    ],
)
def test_a_killed_writer_loses_no_complete_episode(tmp_path, at, count, complete):
    process = multiprocessing.get_context('fork').Process(target=_write_and_die, args=(tmp_path / 'd', at, count))
    process.start()
    process.join(60)
    assert process.exitcode == 9, 'the writer was to die'
    with pytest.raises(ValueError, match='unfinished'):
        Dataset(tmp_path / 'd')
    with pytest.raises(ValueError, match='not empty'):
        DatasetWriter(tmp_path / 'd', FPS, 'panda', FEATURES)
    writer = DatasetWriter.resume(tmp_path / 'd')
    assert len(writer.episodes) == complete
    written = [episode(8, 8 * i)[0] for i in range(complete)]
    written += [add(writer, 8), add(writer, 4)]
    writer.close()
    dataset = check(tmp_path / 'd', written)
    assert dataset.stats[features.STATE]['count'] == [8 * complete + 12]
    assert not list((tmp_path / 'd').rglob('*.new'))


def test_two_writers_do_not_share_a_folder(tmp_path):
    writer = DatasetWriter(tmp_path / 'd', FPS, 'panda', FEATURES)
    with pytest.raises(ValueError, match='another process'):
        DatasetWriter.resume(tmp_path / 'd')
    add(writer, 3)
    writer.close()


def _without(name):
    return lambda c, v: c.pop(name)


def _bad(name, value):
    return lambda c, v: c.update({name: value})


@pytest.mark.parametrize(
    ('spoil', 'match'),
    [
        (_without(features.ACTION), r"lacks the columns \['action'\]"),
        (_bad('color', np.zeros(5)), r"unknown columns \['color'\]"),
        (_bad(features.STATE, np.zeros((4, 8), np.float32)), '5 values, others 4'),
        (_bad(features.STATE, np.zeros((5, 9), np.float32)), r'shape \(5, 9\)'),
        (_bad(features.STATE, np.full((5, 8), np.nan)), 'not finite at frame 0'),
        (_bad(features.STATE, np.zeros((5, 8), int)), 'int64, must be float32'),
        (_bad(features.depth('front'), np.zeros((5, 6, 5), int)), 'must be uint16'),
        (_bad(features.SUBTASK, [1] * 5), 'must be strings'),
        (lambda c, v: v.pop(features.image('wrist')), 'has the videos'),
        (lambda c, v: v.update({features.image('wrist'): b'no video'}), 'this is no video'),
        (lambda c, v: v.update(episode(4)[1]), 'has 4 frames, the columns have 5'),
        (
            lambda c, v: v.update({features.image('front'): encode_video(np.zeros((5, 32, 32, 3), np.uint8), FPS)}),
            'is 32 x 32',
        ),
    ],
)
def test_a_wrong_episode_is_refused_and_leaves_nothing(tmp_path, spoil, match):
    writer = DatasetWriter(tmp_path / 'd', FPS, 'panda', FEATURES)
    columns, videos = episode(5)
    spoil(columns, videos)
    with pytest.raises(ValueError, match=match):
        writer.add_episode(columns, videos, 'task', {'seed': 0})
    written = [add(writer, 5)]
    writer.close()
    check(tmp_path / 'd', written)


def test_damaged_files_are_named(tmp_path):
    writer = DatasetWriter(tmp_path / 'd', FPS, 'panda', FEATURES)
    add(writer, 6)
    writer.close()
    damage = {
        'meta/info.json': 'info.json cannot be read',
        'meta/tasks.parquet': 'tasks.parquet cannot be read',
        'meta/episodes/chunk-000/file-000.parquet': 'file-000.parquet cannot be read',
        'data/chunk-000/file-000.parquet': 'data/chunk-000/file-000.parquet cannot be read',
        'videos/observation.images.front/chunk-000/file-000.mp4': r'file-000.mp4 (cannot be decoded|lacks the frame)',
    }
    for name, match in damage.items():
        path = tmp_path / 'd' / name
        content = path.read_bytes()
        for spoilt in (content[: len(content) // 3], b''):
            path.write_bytes(spoilt)
            with pytest.raises(ValueError, match=match):
                list(Dataset(tmp_path / 'd').episode(0).frames(features.image('front')))
        path.write_bytes(content)
    with pytest.raises(ValueError, match='no colour camera nothing'):
        next(Dataset(tmp_path / 'd').episode(0).frames('nothing'))
    with pytest.raises(IndexError, match='has 1 episodes'):
        Dataset(tmp_path / 'd').episode(1)
    with pytest.raises(ValueError, match='no LeRobot dataset'):
        Dataset(tmp_path)


def test_variants_of_stock_lerobot_are_read(tmp_path):
    """Another name of the index of tasks, fps per feature, scalars as lists, several episodes in a row group."""
    folder = tmp_path / 'd'
    writer = DatasetWriter(folder, FPS, 'panda', FEATURES)
    written = [add(writer, 6), add(writer, 4)]
    writer.close()
    tasks = pq.read_table(folder / layout.TASKS)
    pq.write_table(tasks.rename_columns(['task_index', 'task']).cast(
        pa.schema([('task_index', pa.int64()), ('task', pa.large_string())])), folder / layout.TASKS)  # fmt: skip
    info = json.loads((folder / layout.INFO).read_text())
    for feature in info['features'].values():
        feature['fps'] = 10.0
    info['features'][features.STATE]['names'] = {'motors': JOINTS}
    info.pop('chunks_size')
    (folder / layout.INFO).write_text(json.dumps(info))
    data = folder / 'data/chunk-000/file-000.parquet'
    table = pq.read_table(data)
    table = table.set_column(
        table.schema.get_field_index(features.STATE),
        features.STATE,
        table[features.STATE].cast(pa.list_(pa.float32())),
    )
    table = table.set_column(
        table.schema.get_field_index('timestamp'),
        'timestamp',
        pa.array([[t] for t in table['timestamp'].to_pylist()], pa.list_(pa.float32(), 1)),
    )
    pq.write_table(table, data, row_group_size=7)
    check(folder, written)


def test_what_tools_of_stock_lerobot_leave_out_is_found_elsewhere(tmp_path):
    """Its change from images to videos writes meta/episodes without instructions and without its own place."""
    folder = tmp_path / 'd'
    writer = DatasetWriter(folder, FPS, 'panda', FEATURES)
    written = [add(writer, 6), add(writer, 4, 'stack')]
    writer.close()
    path = folder / 'meta/episodes/chunk-000/file-000.parquet'
    table = pq.read_table(path).drop_columns(['tasks', *layout.EPISODES_PLACE])
    pq.write_table(table, path)
    dataset = check(folder, written)
    assert [e.tasks for e in dataset.episodes] == [(), ()] and dataset.episode(1).task == 'stack'
    writer = DatasetWriter.resume(folder)
    written.append(add(writer, 5))
    writer.close()
    assert check(folder, written).episode(2).task == 'press the red button'
    pq.write_table(table.drop_columns(['data/file_index']), path)
    with pytest.raises(ValueError, match=r"file-000.parquet lacks the columns \['data/file_index'\]"):
        Dataset(folder)


def test_depth_videos_and_columns_of_structures_are_passed_over(tmp_path):
    """Stock lerobot keeps depth as a video of one channel, and annotations as lists of structures."""
    folder = tmp_path / 'd'
    writer = DatasetWriter(folder, FPS, 'panda', FEATURES)
    written = [add(writer, 6)]
    writer.close()
    data, info = folder / 'data/chunk-000/file-000.parquet', json.loads((folder / layout.INFO).read_text())
    events = pa.array([[{'role': 'user', 'content': 'now'}]] * 6)
    pq.write_table(pq.read_table(data).append_column('language_events', events), data)
    info['features']['language_events'] = {'dtype': 'language', 'shape': [1], 'names': None}
    info['features']['observation.images.depth'] = {'dtype': 'video', 'shape': [48, 64, 1], 'names': None}
    (folder / layout.INFO).write_text(json.dumps(info))
    dataset = check(folder, written)
    assert dataset.video_keys == [features.image(name) for name in CAMERAS]
    assert 'language_events' not in dataset.episode(0).columns
    with pytest.raises(ValueError, match=r'no colour camera observation\.images\.depth'):
        next(dataset.episode(0).frames('observation.images.depth'))


def test_an_episode_with_two_instructions_is_cut_where_they_change(tmp_path, second_task):
    folder = tmp_path / 'd'
    writer = DatasetWriter(folder, FPS, 'panda', FEATURES)
    written = [add(writer, 5), add(writer, 8), add(writer, 4)]
    writer.close()
    second_task(folder, 1, 3, 'stack it')
    dataset = check(folder, written)
    assert dataset.episodes[0].task == 'press the red button'
    with pytest.raises(ValueError, match=r"has the instructions .*'stack it'.*: read it frame by frame"):
        dataset.episode(1).task  # noqa: B018
    first, second = dataset.episode(1).by_task()
    assert [(p.task, len(p), p.info.index) for p in (first, second)] == [
        ('press the red button', 3, 1),
        ('stack it', 5, 1),
    ]
    for piece, at in ((first, 0), (second, 3)):
        for name, values in written[1].items():
            np.testing.assert_array_equal(piece.columns[name], values[at : at + len(piece)], err_msg=name)
        for k, frame in enumerate(piece.frames(features.image('front'))):
            assert np.abs(frame.astype(int) - picture(5 + at + k)).mean() < 2.0
    assert [len(p) for p in dataset.episode(2).by_task()] == [4]


def test_task_numbers_that_are_not_described_are_refused(tmp_path):
    folder = tmp_path / 'd'
    writer = DatasetWriter(folder, FPS, 'panda', FEATURES)
    add(writer, 3)
    add(writer, 3, 'stack')
    writer.close()
    tasks = pq.read_table(folder / layout.TASKS)
    pq.write_table(tasks.slice(0, 1), folder / layout.TASKS)
    with pytest.raises(ValueError, match=r'episode 1 has the tasks \[1\]'):
        Dataset(folder).episode(1)
    pq.write_table(tasks.slice(1, 1), folder / layout.TASKS)
    with pytest.raises(ValueError, match=r'has the task indices \[1\]'):
        Dataset(folder)


@pytest.mark.parametrize(('version', 'says'), [('v2.1', 'lerobot.scripts.convert_dataset_v21'), ('v2.0', 'to v2.1')])
def test_another_version_is_refused_with_the_remedy(tmp_path, version, says):
    (tmp_path / 'meta').mkdir()
    (tmp_path / layout.INFO).write_text(json.dumps({'codebase_version': version}))
    with pytest.raises(ValueError, match=says):
        Dataset(tmp_path)


def test_datasets_kept_as_images_are_read(tmp_path):
    """As many published ones are: a column of PNG files, no videos."""
    from io import BytesIO

    from PIL import Image

    folder = tmp_path / 'd'
    writer = DatasetWriter(folder, FPS, 'panda', {features.STATE: Feature('float32', (8,))})
    for n in (3, 2):
        writer.add_episode({features.STATE: np.zeros((n, 8), np.float32)}, {}, 'task')
    writer.close()
    data = folder / 'data/chunk-000/file-000.parquet'
    cells = []
    for k in range(5):
        buffer = BytesIO()
        Image.fromarray(picture(k)).save(buffer, 'png')
        cells.append({'bytes': buffer.getvalue(), 'path': f'{k}.png'})
    pq.write_table(pq.read_table(data).append_column('observation.images.front', pa.array(cells)), data)
    info = json.loads((folder / layout.INFO).read_text())
    info['features']['observation.images.front'] = {'dtype': 'image', 'shape': [48, 64, 3], 'names': None}
    info['video_path'] = None
    (folder / layout.INFO).write_text(json.dumps(info))
    frames = list(Dataset(folder).episode(1).frames(features.image('front')))
    np.testing.assert_array_equal(frames, [picture(3), picture(4)])


def test_frames_are_put_together_without_encoding_anew(tmp_path):
    clips = [encode_video(np.stack([picture(10 * c + k) for k in range(5)]), FPS) for c in range(3)]
    paths = []
    for c, clip in enumerate(clips):
        paths.append(tmp_path / f'{c}.mp4')
        paths[-1].write_bytes(clip)
    video.concatenate(paths, tmp_path / 'all.mp4', FPS)
    alone = [frame for path in paths for frame in video.decode(path, 0.0, 5, FPS)]
    together = list(video.decode(tmp_path / 'all.mp4', 0.0, 15, FPS))
    np.testing.assert_array_equal(alone, together)
    np.testing.assert_array_equal(list(video.decode(tmp_path / 'all.mp4', 0.7, 2, FPS)), together[7:9])


@pytest.mark.parametrize('shape', [(0, 4, 4, 3), (2, 5, 4, 3), (2, 4, 4)])
def test_frames_that_cannot_be_encoded_are_refused(shape):
    with pytest.raises(ValueError, match=r'must be \(T, H, W, 3\)|even sizes'):
        encode_video(np.zeros(shape, np.uint8), FPS)
