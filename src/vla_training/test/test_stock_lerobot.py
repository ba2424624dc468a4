"""Stock lerobot opens and edits what is written here, and the other way round.

It needs an environment of its own, as the steps of .github/workflows/lerobot.yml make it. Where there is no
lerobot it is skipped.
"""

import os

import numpy as np
import pytest

os.environ['HF_HUB_OFFLINE'] = '1'
stock = pytest.importorskip('lerobot.datasets.lerobot_dataset', reason='lerobot is not installed')
torch = pytest.importorskip('torch')

from lerobot.configs.video import RGBEncoderConfig  # noqa: E402
from lerobot.datasets import dataset_tools  # noqa: E402
from lerobot.utils.feature_utils import dataset_to_policy_features  # noqa: E402

from vla_training.data import features  # noqa: E402
from vla_training.lerobot import Dataset, DatasetWriter, encode_video  # noqa: E402

FPS, SIDE = 10, features.PIXELS
CAMERAS = ('front', 'wrist')
LENGTHS = (20, 31, 17, 40, 25, 22)
TASKS = ('press the red button', 'stack the red block on the blue block')
FEATURES = features.simulator_features([f'joint{i}' for i in range(1, 8)], CAMERAS, depth_map=True)
FRONT, DEPTH = features.image('front'), features.depth('front')


def picture(number: int, camera: int) -> np.ndarray:
    """(SIDE, SIDE, 3): the bits of the number as bright and dark bars, so that no other frame looks like it."""
    bars = np.repeat([(number >> bit) & 1 for bit in range(8)], SIDE // 8)
    image = np.broadcast_to((40 + 150 * bars)[None, :, None], (SIDE, SIDE, 3)).astype(np.uint8)
    return image[::-1].copy() if camera == 0 else np.transpose(image, (1, 0, 2)).copy()


def episode(length: int, first: int) -> tuple[dict, dict[str, bytes]]:
    rng = np.random.default_rng(first)
    numbers = np.arange(first, first + length)
    columns: dict = {}
    for name, feature in FEATURES.items():
        if feature.dtype == 'string':
            columns[name] = [f'{name} {n}' for n in numbers]
        elif feature.dtype == 'bool':
            columns[name] = numbers % 2 == 0
        elif feature.dtype == 'uint16':
            columns[name] = rng.integers(0, 65536, (length, *feature.shape), dtype=np.uint16)
        elif feature.dtype == 'float32':
            columns[name] = np.repeat(numbers[:, None], feature.shape[0], 1).astype(np.float32)
    videos = {
        features.image(name): encode_video(np.stack([picture(n, c) for n in numbers]), FPS)
        for c, name in enumerate(CAMERAS)
    }
    return columns, videos


@pytest.fixture(scope='module', params=['one file', 'many files'])
def folder(request, tmp_path_factory):
    """A dataset of six episodes, the last two of which a second writer added."""
    path = tmp_path_factory.mktemp('lerobot') / 'dataset'
    limits = {'chunks_size': 2, 'data_files_size_in_mb': 0.4, 'video_files_size_in_mb': 0.01}
    writer = DatasetWriter(path, FPS, 'franka_panda', FEATURES, **(limits if request.param == 'many files' else {}))
    for e, length in enumerate(LENGTHS):
        if e == 4:
            writer.close()
            writer = DatasetWriter.resume(path)
        writer.add_episode(*episode(length, writer.total_frames), TASKS[e % 2], {'seed': e, 'sim_task': 'x'})
    writer.close()
    files = len(list((path / 'videos' / FRONT).rglob('*.mp4')))
    assert files > 2 if request.param == 'many files' else files == 2
    return path


def open_stock(folder, **kwargs):
    return stock.LeRobotDataset('local/test', root=folder, video_backend='pyav', **kwargs)


def check_frame(item: dict, number: int) -> None:
    assert int(item['index']) == number
    assert float(item[features.ACTION].flatten()[0]) == number
    assert item[features.SUBTASK] == f'{features.SUBTASK} {number}'
    for c, camera in enumerate(CAMERAS):
        pixels = (item[features.image(camera)] * 255).permute(1, 2, 0).numpy()
        assert np.abs(pixels - picture(number, c)).mean() < 3.0, (number, camera)


def test_every_frame_is_indexed(folder):
    dataset = open_stock(folder)
    assert (len(dataset), dataset.num_episodes, dataset.fps) == (sum(LENGTHS), len(LENGTHS), FPS)
    ours = Dataset(folder)
    depth = np.concatenate([ours.episode(e).columns[DEPTH] for e in range(len(LENGTHS))])
    for i in range(len(dataset)):
        item = dataset[i]
        check_frame(item, i)
        assert item['task'] == TASKS[int(item['episode_index']) % 2]
        assert item[features.DONE].dtype == torch.bool
        np.testing.assert_array_equal(item[DEPTH].numpy(), depth[i])


def test_windows_of_time_stop_at_the_ends_of_episodes(folder):
    window = [k / FPS for k in range(8)]
    dataset = open_stock(folder, delta_timestamps={features.ACTION: window, FRONT: [-0.1, 0.0]})
    item = dataset[25]
    assert item[features.ACTION][:, 0].tolist() == list(range(25, 33))
    assert item[FRONT].shape == (2, 3, SIDE, SIDE) and not item['action_is_pad'].any()
    item = dataset[LENGTHS[0] + LENGTHS[1] - 2]
    assert item['action_is_pad'].tolist() == [False] * 2 + [True] * 6
    assert item[features.ACTION][:, 0].tolist() == [49] + [50] * 7


def test_chosen_episodes(folder):
    dataset = open_stock(folder, episodes=[1, 4])
    first, second = LENGTHS[0], sum(LENGTHS[:4])
    numbers = [*range(first, first + LENGTHS[1]), *range(second, second + LENGTHS[4])]
    assert len(dataset) == len(numbers)
    for i, number in enumerate(numbers):
        check_frame(dataset[i], number)


def test_a_shuffled_loader_gives_every_frame_once(folder):
    loader = torch.utils.data.DataLoader(open_stock(folder), batch_size=16, shuffle=True, num_workers=0)
    seen = []
    for batch in loader:
        seen += batch['index'].tolist()
        assert batch[features.ACTION][:, 0].tolist() == batch['index'].tolist()
    assert sorted(seen) == list(range(sum(LENGTHS)))


def test_statistics_and_episodes_are_understood(folder):
    from lerobot.datasets.compute_stats import aggregate_stats

    meta = open_stock(folder).meta
    assert aggregate_stats([meta.stats, meta.stats])[features.ACTION]['count'][0] == 2 * sum(LENGTHS)
    assert meta.stats[FRONT]['q01'].shape == (3, 1, 1) and meta.stats[features.STATE]['q99'].shape == (8,)
    assert meta.episodes['seed'] == list(range(len(LENGTHS)))
    assert meta.total_tasks == 2


def test_stock_continues_our_dataset_and_we_with_that(folder, tmp_path):
    import shutil

    path = tmp_path / 'copy'
    shutil.copytree(folder, path)
    theirs = stock.LeRobotDataset.resume(
        'local/test', root=path, video_backend='pyav', rgb_encoder=RGBEncoderConfig(vcodec='h264')
    )
    total = sum(LENGTHS)
    columns, _ = episode(9, total)
    for i in range(9):
        frame = {n: v[i] if isinstance(v, list) else np.atleast_1d(v[i]) for n, v in columns.items()}
        frame |= {features.image(name): picture(total + i, c) for c, name in enumerate(CAMERAS)}
        theirs.add_frame({**frame, 'task': 'another task' if i < 5 else 'the way back'})
    theirs.save_episode(parallel_encoding=False)
    theirs.finalize()
    del theirs

    found = Dataset(path).episode(len(LENGTHS))
    assert set(found.info.tasks) == {'another task', 'the way back'}
    assert [(p.task, len(p)) for p in found.by_task()] == [('another task', 5), ('the way back', 4)]
    for piece, first in zip(found.by_task(), (0, 5), strict=True):
        for k, frame in enumerate(piece.frames(FRONT)):
            assert np.abs(frame.astype(int) - picture(total + first + k, 0)).mean() < 3.0
    for name, values in columns.items():
        np.testing.assert_array_equal(found.columns[name], values, err_msg=name)
    for k, frame in enumerate(found.frames(FRONT)):
        assert np.abs(frame.astype(int) - picture(total + k, 0)).mean() < 3.0

    writer = DatasetWriter.resume(path)
    writer.add_episode(*episode(5, writer.total_frames), TASKS[0], dict(writer.episodes[-1].extra))
    writer.close()
    again = open_stock(path)
    assert len(again) == total + 14
    for i in (0, total - 1, total, total + 8, total + 9, total + 13):
        check_frame(again[i], i)


def numbers_of(dataset, indices) -> None:
    """Frames i of the data set are those that `episode` made with these numbers, pixels included."""
    for i, number in indices:
        item = dataset[i]
        assert float(item[features.ACTION].flatten()[0]) == number
        assert np.abs((item[FRONT] * 255).permute(1, 2, 0).numpy() - picture(number, 0)).mean() < 3.0


def test_stock_deletes_episodes_and_we_read_the_rest(folder, tmp_path):
    left = dataset_tools.delete_episodes(open_stock(folder), [1, 3], output_dir=tmp_path / 'd', repo_id='local/left')
    starts = np.cumsum([0, *LENGTHS])
    kept = [n for e in (0, 2, 4, 5) for n in range(starts[e], starts[e + 1])]
    assert len(left) == len(kept)
    numbers_of(left, list(enumerate(kept))[::7])
    ours = Dataset(tmp_path / 'd')
    assert [e.length for e in ours.episodes] == [LENGTHS[e] for e in (0, 2, 4, 5)]
    again = np.concatenate([ours.episode(e).columns[features.ACTION][:, 0] for e in range(4)])
    np.testing.assert_array_equal(again, kept)
    depth = Dataset(folder).episode(2).columns[DEPTH]
    np.testing.assert_array_equal(ours.episode(1).columns[DEPTH], depth)
    assert [ours.episode(e).task for e in range(4)] == [TASKS[e % 2] for e in (0, 2, 4, 5)]
    for k, frame in enumerate(ours.episode(3).frames(FRONT)):
        assert np.abs(frame.astype(int) - picture(starts[5] + k, 0)).mean() < 3.0


def test_stock_splits_a_data_set(folder, tmp_path):
    parts = dataset_tools.split_dataset(
        open_stock(folder), {'train': [0, 1, 2, 3], 'val': [4, 5]}, output_dir=tmp_path / 'd'
    )
    first = sum(LENGTHS[:4])
    assert (len(parts['train']), len(parts['val'])) == (first, sum(LENGTHS[4:]))
    numbers_of(parts['val'], [(i, first + i) for i in range(0, LENGTHS[4] + LENGTHS[5], 9)])
    assert len(Dataset(parts['val'].root)) == sum(LENGTHS[4:])


@pytest.mark.parametrize('name', [features.EXECUTED, DEPTH, features.SUBTASK, features.image('wrist')])
def test_stock_removes_a_column(folder, tmp_path, name):
    left = dataset_tools.remove_feature(open_stock(folder), name, output_dir=tmp_path / 'd', repo_id='local/left')
    assert name not in left.features and len(left) == sum(LENGTHS)
    numbers_of(left, [(i, i) for i in range(0, sum(LENGTHS), 31)])
    assert name not in Dataset(tmp_path / 'd').features


def test_stock_makes_nothing_that_only_training_knows_an_input_or_an_output(folder):
    found = dataset_to_policy_features(open_stock(folder).meta.features)
    images = {features.image(name) for name in CAMERAS}
    assert set(found) == {features.STATE, features.VELOCITY, features.ACTION, *images}
