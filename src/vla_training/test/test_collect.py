import json

import numpy as np
import pytest

from vla_core.motion.config import ExecutorConfig
from vla_core.profile import RobotProfile
from vla_model.policy import Prediction
from vla_model.types import Chunk
from vla_sim.expert import Expert
from vla_sim.kinematics import tool_down
from vla_sim.rollout import FRAME, TICK
from vla_sim.world import World
from vla_training.collect.collect import CollectSettings, collect
from vla_training.collect.dagger import Dagger, RolloutPolicy
from vla_training.collect.dart import Disturbance, Push
from vla_training.collect.episode import record_episode
from vla_training.collect.scenes import HELD_OUT, StartPose, randomise_start
from vla_training.data import features
from vla_training.data.features import (
    ACTION,
    COMPLETED,
    DONE,
    EXECUTED,
    FPS,
    GROUNDING_POINTS,
    REMAINING,
    STATE,
    SUBTASK,
    SUCCESS,
    split,
)
from vla_training.lerobot import Dataset, DatasetWriter


@pytest.fixture(scope='module')
def profile(request):
    root = request.config.rootpath
    return RobotProfile.load(root / 'src' / 'vla_bringup' / 'config' / 'robots' / 'sim_panda.yaml')


@pytest.fixture(scope='module')
def stage(profile):
    world = World('press_button', image_size=64)
    cameras = world.cameras()
    yield world, cameras, Expert(profile)
    cameras.close()


def test_a_data_set_has_a_frame_for_each_image_of_the_cameras():
    assert FPS == 1000 / (FRAME * TICK)


def test_an_undisturbed_episode(stage):
    world, cameras, expert = stage
    recording = record_episode(world, cameras, expert, seed=3)
    columns = recording.columns()
    n = len(recording.rows)
    assert recording.success and n > 40
    assert all(len(frames) == n and frames[0].shape == (64, 64, 3) for frames in recording.images.values())
    # Nothing was put in, and the arm gets to where it is sent.
    assert np.array_equal(columns[ACTION], columns[EXECUTED])
    lag = np.abs(columns[STATE][1:, :7] - columns[ACTION][:-1, :7])
    assert lag.max() < 0.15 and lag[-1].max() < 0.01
    assert columns[DONE].sum() == 1 and columns[DONE][-1] and columns[SUCCESS][-1] and not columns[SUCCESS][0]
    # Sub-tasks are passed through in order, and each frame knows them all.
    rows = zip(columns[COMPLETED], columns[SUBTASK], columns[REMAINING], strict=True)
    everything = [[*split(c), s, *split(r)] for c, s, r in rows if s]
    assert all(sequence == everything[0] for sequence in everything) and len(everything[0]) == 3
    # What is pressed is where its name points: a button of that colour, in the front view.
    wanted = next(p for p in world.episode.placements if p.name == world.episode.goal.object)
    x, y = json.loads(columns[GROUNDING_POINTS][0])['front'][wanted.name.replace('_', ' ')]
    picture = recording.images['front'][0]
    scale = picture.shape[0] / world.camera_info('front').height
    seen = picture[round(y * scale), round(x * scale)] / 255.0
    assert np.abs(seen / seen.sum() - np.array(wanted.rgb) / sum(wanted.rgb)).max() < 0.2


def test_pushes_are_in_what_was_sent_and_not_in_what_was_wanted(stage):
    world, cameras, expert = stage
    recording = record_episode(world, cameras, expert, seed=3, push=Push(start_share=1.0), time_limit=150)
    columns = recording.columns()
    error = columns[EXECUTED] - columns[ACTION]
    assert np.abs(error[:, :7]).max() > 0.02 and not error[:, 7].any()
    away = columns[STATE][1:, :7] - columns[ACTION][:-1, :7]
    assert np.corrcoef(away[3:].ravel(), error[3:-1, :7].ravel())[0, 1] > 0.5  # the arm was where it was pushed to
    assert not recording.success


def test_a_push_is_not_taken_for_something_in_the_way(stage):
    world, cameras, expert = stage
    recording = record_episode(world, cameras, expert, seed=3, push=Push(start_size=0.1, start_share=1.0), tail=0.5)
    columns = recording.columns()
    pushed = np.abs(columns[STATE][1:, :7] - columns[ACTION][:-1, :7]).max()
    assert pushed > 1.2 * ExecutorConfig().tracking_limit and recording.success


def test_an_episode_may_start_elsewhere_and_end_soon_after_success(stage):
    world, cameras, expert = stage
    begun, after = [], 0.5
    for seed in (11, 12):
        columns = record_episode(world, cameras, expert, seed, start=StartPose(share=1.0), tail=after).columns()
        begun.append(columns[STATE][0, :7])
        assert columns[SUCCESS][-1] and after * FPS <= columns[SUCCESS].sum() <= after * FPS + 2
    assert all(np.abs(q - expert.profile.home).max() > 0.1 for q in begun) and np.abs(begun[0] - begun[1]).max() > 0.1


def test_an_arm_starts_above_the_named_object_turned_any_way(stage):
    world, _, expert = stage
    turns, far = [], []
    for seed in range(20):
        world.reset(seed)
        randomise_start(world, expert, StartPose.near_object(), np.random.default_rng(seed))
        (x, y, z), rotation = world.tool_pose()
        named = world.objects()[world.episode.goal.object][0]
        far.append(np.hypot(x - named[0], y - named[1]))
        w, i, j, k = rotation  # of the tool's x axis, seen from above
        turns.append(np.arctan2(2 * (i * j + w * k), 1 - 2 * (j * j + k * k)) - np.arctan2(y, x))
        assert z < 0.35
    assert np.median(far) < 0.05 and max(far) < 0.15
    assert min(turns) < -0.8 and max(turns) > 0.8


class Sideways:
    """A policy that turns the base and looks at nothing."""

    def act(self, observation, prefix=None):
        steps = np.tile(observation.positions, (8, 1))
        steps[:, 0] += 0.08 * np.arange(1, 9)
        return Prediction(Chunk(steps, np.zeros(8), 0.2))


def test_the_expert_continues_from_where_a_policy_drove(stage):
    world, cameras, expert = stage
    rollout = RolloutPolicy.__new__(RolloutPolicy)
    rollout.dagger, rollout.profile, rollout.policy = (
        Dagger('', share=1.0, seconds=(2.0, 2.0)),
        expert.profile,
        Sideways(),
    )
    recording = record_episode(world, cameras, expert, seed=3, tail=0.5, rollout_policy=rollout)
    first = recording.rows[0]
    assert first[STATE][0] > 0.25 + expert.profile.home[0], 'the record begins where it led to'
    assert np.abs(recording.rows[1][STATE] - first[STATE]).max() < 0.03, 'at rest'
    assert recording.success and not first[SUCCESS] and first[SUBTASK]
    # Where nothing is left to do the episode begins anew; so does one that the seed leaves to the expert.
    world.success = lambda: True
    try:
        assert not rollout.drive(world, cameras, 3)
    finally:
        del world.success
    assert world.joint_positions == pytest.approx(expert.profile.home + world.episode.joint_offset)
    rollout.dagger = Dagger('', share=0.0)
    assert not rollout.drive(world, cameras, 3)


def test_an_arm_starts_over_the_table_without_contact(stage):
    world, _, expert = stage
    heights = []
    for seed in range(30):
        world.reset(seed)
        randomise_start(world, expert, StartPose(), np.random.default_rng(seed))
        (x, y, z), _ = world.tool_pose()
        assert 0.15 < x < 0.9 and abs(y) < 0.6
        heights.append(z)
        before = {name: pose[0].copy() for name, pose in world.objects().items()}
        world.step(20)
        assert all(np.abs(pose[0] - before[name]).max() < 1e-3 for name, pose in world.objects().items())
    assert min(heights) < 0.12 and max(heights) > 0.3
    q = world.joint_positions.copy()
    below, _ = world.tool_pose()
    assert not world.put_arm(expert.kinematics.inverse(below * [1, 1, 0], tool_down(0.0), expert.kinematics.home), 0.08)
    assert np.array_equal(world.joint_positions, q)


def test_the_same_seed_is_the_same_episode(stage):
    world, cameras, expert = stage
    a, b = (record_episode(world, cameras, expert, 5, Push(), time_limit=60).columns() for _ in range(2))
    assert all(np.array_equal(a[name], b[name]) for name in (STATE, ACTION, EXECUTED))


def test_a_depth_map_is_recorded_where_it_is_asked_for(stage):
    world, cameras, expert = stage
    name = features.depth('front')
    assert name not in record_episode(world, cameras, expert, 5, time_limit=20).columns()
    found = record_episode(world, cameras, expert, 5, time_limit=20, depth_map=True).columns()[name]
    assert found.shape[1:] == features.simulator_features(['a'], ['front'], depth_map=True)[name].shape
    assert found.dtype == np.uint16 and 300 < np.median(found) < 3000  # [mm]


def test_what_training_alone_may_know_is_neither_observation_nor_action():
    """By these beginnings of names stock lerobot chooses the inputs and outputs of a policy."""
    found = features.simulator_features(['a'], ['front', 'wrist'], depth_map=True)
    seen = {name for name in found if name.startswith(('observation', 'action'))}
    assert seen == {STATE, features.VELOCITY, ACTION, features.image('front'), features.image('wrist')}
    assert all(len(feature.shape) == 1 or feature.is_pixels for feature in found.values())


def test_a_data_set_that_was_edited_elsewhere_is_not_continued(profile, tmp_path):
    writer = DatasetWriter(tmp_path / 'd', features.FPS, 'x', {STATE: features.robot_features(['a'], {})[STATE]})
    writer.add_episode({STATE: np.zeros((2, 2), np.float32)}, {}, 'press it')
    writer.close()
    with pytest.raises(ValueError, match='Give another folder'):
        collect(tmp_path / 'd', profile, ('press_button',), range(2), settings=CollectSettings())
    assert len(Dataset(tmp_path / 'd')) == 2  # and it is left as it was


def test_a_push_is_smooth_and_small_near_the_table():
    def errors(height):
        d = Disturbance(Push(), np.random.default_rng(0), 7)
        return np.stack([d.advance(height) for _ in range(2000)])

    high, low = errors(0.4), errors(0.0)
    assert np.abs(np.diff(high, axis=0)).max() < 0.02  # [rad] per 10 ms
    assert low.std() < 0.5 * high.std()


def test_held_out_seeds_are_refused(profile, tmp_path):
    with pytest.raises(ValueError, match='held out for evaluation'):
        collect(
            tmp_path / 'out', profile, ('press_button',), range(HELD_OUT - 1, HELD_OUT + 1), settings=CollectSettings()
        )
    assert not (tmp_path / 'out').exists()


@pytest.mark.slow
def test_a_data_set_is_continued(profile, tmp_path):
    out = tmp_path / 'data'
    found = collect(out, profile, ('press_button',), range(2), settings=CollectSettings(push=None, start=None))
    assert found == {'press_button': (2, 2)}
    assert collect(out, profile, ('press_button',), range(3), settings=CollectSettings(push=None, start=None)) == {
        'press_button': (1, 1)
    }
    data = Dataset(out)
    assert [e.extra['seed'] for e in data.episodes] == [0, 1, 2]
    assert data.episode(2).task in {'press the red button'} | {e.task for e in data.episodes}
    assert sum(1 for _ in data.episode(1).frames('observation.images.wrist')) == data.episodes[1].length
