import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vla_core.kinematics.arm import load_kinematics
from vla_core.profile import RobotProfile
from vla_model.checkpoints import checkpoint, nano
from vla_model.checkpoints.checkpoint import IMAGE_FILE
from vla_model.image_tokenizer import ImageTokenizer, preprocess
from vla_model.network import Network
from vla_model.tokens import bins
from vla_model.tokens.text_tokenizer import NANO_FILE, TextTokenizer
from vla_sim.assets.robot import urdf_text
from vla_training.data import shards
from vla_training.data.features import (
    ACTION,
    COMPLETED,
    EXECUTED,
    EXECUTED_BEFORE,
    FPS,
    GROUNDING_POINTS,
    REMAINING,
    STATE,
    SUBTASK,
    SUCCESS,
    image,
    simulator_features,
)
from vla_training.lerobot import Dataset, DatasetWriter, encode_video
from vla_training.train.chunks import LONGEST_REST, TAIL, actions_of, chunks_of, frames_used, starts
from vla_training.train.labels import names_in
from vla_training.train.target_model import Arm
from vla_training.train.tokenize import tokenize

ARM = Arm(RobotProfile.load(Path(__file__).parents[2] / 'vla_bringup/config/robots/sim_panda.yaml'), urdf_text)
JOINTS = tuple(f'joint{i}' for i in range(1, 8))
LENGTHS = (14, 11)


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    """Two episodes: joints that move evenly, one set-point that was disturbed."""
    folder = tmp_path_factory.mktemp('data') / 'set'
    features = simulator_features(JOINTS, ('front', 'wrist'))
    writer = DatasetWriter(folder, FPS, 'panda', features)
    rng = np.random.default_rng(0)
    for length in LENGTHS:
        columns = {}
        for name, feature in features.items():
            if feature.dtype == 'string':
                columns[name] = ['press the button'] * length
            elif feature.dtype != 'video':
                shape = () if feature.shape == (1,) else feature.shape
                columns[name] = np.zeros((length, *shape), feature.dtype)
        columns[COMPLETED], columns[REMAINING] = [''] * length, ['move away'] * length
        columns[SUBTASK][-1] = ''
        seen = {'the': [40.0, 100.0], 'red button': [63.5, 127.5], 'blue button': [0, 0], 'button': [500, 64]}
        columns[GROUNDING_POINTS] = [json.dumps({'front': seen}) for _ in range(length)]
        columns[STATE] = (np.arange(length)[:, None] * 0.01 * np.arange(1, 9)).astype(np.float32)
        columns[STATE][:, 3] = -1 + columns[STATE][:, 3] / 10
        columns[STATE][:, 5] += 1
        columns[STATE][:, 7] = 0.04
        columns[ACTION] = columns[STATE] + np.float32(0.01) * np.array([*range(1, 8), 0], np.float32)
        columns[EXECUTED] = columns[ACTION].copy()
        columns[EXECUTED][4, 0] += 0.1
        videos = {
            image(camera): encode_video(rng.integers(0, 256, (length, 256, 256, 3), dtype=np.uint8), FPS)
            for camera in ('front', 'wrist')
        }
        writer.add_episode(columns, videos, 'press the red button')
    writer.close()
    return folder


@pytest.fixture(scope='module')
def images(tmp_path_factory, config):
    folder = tmp_path_factory.mktemp('images')
    model = ImageTokenizer(config.image_tokenizer)
    nano.init_weights(model, 0)
    save_file(model.state_dict(), folder / IMAGE_FILE)
    (folder / 'config.json').write_text(json.dumps(asdict(config.image_tokenizer)))
    return folder, model


def test_chunks_are_the_set_points_to_come(dataset):
    episode = Dataset(dataset).episode(0)
    chunks = chunks_of(episode, 7, horizon=8)
    wanted = episode.columns[ACTION]
    assert chunks.shape == (14, 8, 8)
    assert np.allclose(chunks[2, :, 1], wanted[2:10, 1])
    assert np.allclose(chunks[12, :, 1], [wanted[12, 1], *[wanted[13, 1]] * 7])  # the last one is held
    every_other = chunks_of(episode, 7, horizon=4, stride=2)
    assert np.allclose(every_other[2, :, 1], wanted[3:10:2, 1])  # due 2, 4, 6 and 8 frames later


def test_actions_of_each_space(dataset, config):
    episode, kinematics = Dataset(dataset).episode(0), load_kinematics(urdf_text(), ARM.profile)
    state, chunks = episode.columns[STATE], chunks_of(episode, 7, horizon=4)

    def actions(space, size):
        ends = {'action_low': (-1.0,) * size, 'action_high': (1.0,) * size}
        return actions_of(episode, replace(config.robot, action_space=space, **ends), 1, kinematics, 12)

    assert np.array_equal(actions('joint_position', 8), chunks[:12])
    relative = actions('joint_delta', 8)
    assert np.allclose(relative[:, :, :7] + state[:12, None, :7], chunks[:12, :, :7])
    at = np.array([kinematics(q)[0] for q in state[:12, :7].astype(float)])
    there = np.array([[kinematics(q)[0] for q in chunk[:, :7]] for chunk in chunks[:12]])
    assert np.allclose(actions('ee_relative', 7)[:, :, :3], there - at[:, None])
    assert np.allclose(actions('ee_delta', 7)[:, 1:, :3], np.diff(there, axis=1))
    assert np.allclose(actions('ee_position', 7)[:, :, :3], there)
    for space in ('ee_relative', 'ee_delta', 'ee_position'):
        assert np.array_equal(actions(space, 7)[:, :, 6], chunks[:12, :, 7])  # an opening is absolute
    assert np.allclose(relative[:, :, 7], chunks[:12, :, 7])


def test_actions_of_the_tool_need_a_robot(dataset, images, tmp_path):
    with pytest.raises(ValueError, match='ee_relative actions need the robot: give its profile and its URDF'):
        tokenize(dataset, images[0], tmp_path)


def test_a_chunk_leads_back_from_where_the_arm_was_pushed(dataset):
    episode = Dataset(dataset).episode(0)
    chunks = chunks_of(episode, 7, horizon=8)
    more = chunks[5, :, 0] - episode.columns[ACTION][5:13, 0]
    assert np.allclose(more, 0.1 * 0.5 ** np.arange(1, 9), atol=1e-6)
    assert np.allclose(chunks[4, :, 0], episode.columns[ACTION][4:12, 0])


@dataclass
class Columns:
    """An episode without images."""

    columns: dict

    def __len__(self) -> int:
        return len(self.columns[STATE])


def rests(arm, gripper, fingers):
    """Starts of an episode in which joint 0 is sent along `arm` [rad], measured one frame behind."""
    wanted, state = np.zeros((len(arm), 8)), np.zeros((len(arm), 8))
    wanted[:, 0], wanted[:, 7] = arm, gripper
    state[1:, 0], state[0, 0], state[:, 7] = arm[:-1], arm[0], fingers
    return starts(Columns({ACTION: wanted, STATE: state}), 7).tolist()


def test_a_chunk_leaves_out_a_rest():
    arm = [0.0, 0.0, 0.001, 0.02, 0.05, 0.05, 0.05, 0.1]
    assert rests(arm, 0.04, 0.04) == [3, 3, 3, 3, 4, 7, 7, 7]
    assert rests([0.0] * 9 + [1.0], 0.04, 0.04)[0] == LONGEST_REST
    assert rests([0.0] * 4, 0.04, 0.04) == [3, 3, 3, 3]  # the end is no reason to leave the episode


def test_a_rest_for_the_gripper_is_kept():
    arm, closing = [0.0] * 6 + [0.1, 0.2], [0.04, 0.04, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    fingers = [0.04, 0.04, 0.04, 0.03, 0.02, 0.02, 0.02, 0.02]
    # Up to the command; while the fingers move each frame is its own start; then on to the motion.
    assert rests(arm, closing, fingers) == [2, 2, 2, 3, 6, 6, 6, 7]


def test_what_follows_success_is_cut_and_so_is_the_end_of_the_way_back():
    state = np.linspace(0, 5, 100)[:, None].repeat(8, 1)
    assert frames_used(Columns({STATE: state}), 7, 10.0) == 100
    reached = np.zeros(100, bool)
    reached[20:25] = reached[60:] = True  # at first it did not last
    assert frames_used(Columns({STATE: state, SUCCESS: reached}), 7, 10.0) == 60 + TAIL * 10
    assert frames_used(Columns({STATE: state, SUCCESS: np.zeros(100, bool)}), 7, 10.0) == 100
    back = np.concatenate([state[:50], state[:50][::-1]])
    assert frames_used(Columns({STATE: back}), 7, 10.0) == 96  # those nearer than BACK are gone: 4 frames of 0.05 rad


def test_shards_hold_what_the_policy_would_see(dataset, images, tmp_path):
    folder, model = images
    print(tokenize(dataset, folder, tmp_path, arm=ARM))
    tokens = shards.read(tmp_path)
    data = Dataset(dataset)
    assert len(tokens) == sum(LENGTHS) - 2 and tokens.episode.tolist() == [0] * 13 + [1] * 10  # not what is done
    frame = next(iter(data.episode(1).frames(image('wrist'))))
    codes = model.eval().encode(preprocess(frame, model.config.resolution)[None])[0]
    assert torch.equal(tokens.codes[13, 1].long(), codes)
    assert tokens.future.tolist() == [min(i + 16, 12) for i in range(13)] + [min(i + 16, 9) + 13 for i in range(10)]
    state = bins.dequantize(tokens.state.numpy(), tokens.config.vocabulary.bins)
    back = tokens.config.ranges('state').denormalize(state)
    assert np.allclose(back[:13], data.episode(0).columns[STATE][:13], atol=2e-3)
    action = bins.dequantize(tokens.action.numpy(), tokens.config.vocabulary.bins)
    back = tokens.config.ranges('action').denormalize(action)
    kinematics = load_kinematics(urdf_text(), ARM.profile)
    assert np.allclose(back[13:], actions_of(data.episode(1), tokens.config.robot, 2, kinematics, 10), atol=1e-3)
    assert tokens.text.decode(tokens.texts[tokens.plan[0]]).endswith('I should continue to press the button.')
    assert tokens.text.decode(tokens.texts[tokens.instruction[20]]) == 'press the red button'


def test_an_episode_with_two_instructions_is_two_to_learn_from(dataset, images, tmp_path, second_task):
    shutil.copytree(dataset, tmp_path / 'd')
    second_task(tmp_path / 'd', 0, 7, 'press the blue button')
    tokenize(tmp_path / 'd', images[0], tmp_path / 't', action_space='joint_delta')
    tokens, pieces = shards.read(tmp_path / 't'), Dataset(tmp_path / 'd').episode(0).by_task()
    a, b = (frames_used(piece, 7, FPS) for piece in pieces)
    assert 0 < a <= 7 and 0 < b <= 7
    said = [tokens.text.decode(tokens.texts[i]) for i in tokens.instruction]
    assert said == ['press the red button'] * a + ['press the blue button'] * b + ['press the red button'] * 10
    assert tokens.episode.tolist() == [0] * (a + b) + [1] * 10  # held out together
    assert tokens.future[: a + b].tolist() == [a - 1] * a + [a + b - 1] * b  # a chunk ends with its task
    assert tokens.text.decode(tokens.texts[tokens.plan[a]]).startswith('My task is press the blue button.')


def test_the_name_that_earlier_versions_gave_to_what_was_sent_is_read(dataset):
    episode = Dataset(dataset).episode(0)
    columns = dict(episode.columns)
    columns[EXECUTED_BEFORE] = columns.pop(EXECUTED)
    old = replace(episode, columns=columns)
    assert np.array_equal(chunks_of(old, 7, horizon=8), chunks_of(episode, 7, horizon=8))
    del columns[EXECUTED_BEFORE]
    assert not np.array_equal(chunks_of(old, 7, horizon=8), chunks_of(episode, 7, horizon=8))


def test_grounding_points_follow_the_order_of_the_instruction(dataset, images, tmp_path):
    tokenize(dataset, images[0], tmp_path, action_space='joint_delta')
    tokens = shards.read(tmp_path)
    assert tokens.config.robot.points == 2 and tokens.points.shape == (len(tokens), 2, 2, 2)
    # 'press the red button': 'the' comes first, then 'red button'; 'button' would be the third. Nobody saw the wrist.
    shares = (bins.dequantize(tokens.points[0, 0].numpy(), tokens.config.vocabulary.bins) + 1) / 2
    assert np.allclose(shares, [[40.5 / 256, 100.5 / 256], [0.25, 0.5]], atol=1e-3)
    assert (tokens.points[:, 1] == -1).all()
    assert names_in('put the tomato in the red bowl', ['red bowl', 'lemon', 'tomato']) == ['tomato', 'red bowl']


def test_copies_differ_in_their_images_alone(dataset, images, tmp_path):
    tokenize(dataset, images[0], tmp_path, copies=1, action_space='joint_delta')
    tokens = shards.read(tmp_path)
    assert len(tokens) == 2 * (sum(LENGTHS) - 2)
    one, other = slice(0, 13), slice(13, 26)
    assert torch.equal(tokens.action[one], tokens.action[other]) and torch.equal(tokens.state[one], tokens.state[other])
    assert not torch.equal(tokens.codes[one], tokens.codes[other])
    assert tokens.future[other].tolist() == [13 + min(i + 16, 12) for i in range(13)]


def test_shards_that_are_there_are_kept(dataset, images, tmp_path):
    tokenize(dataset, images[0], tmp_path, arm=ARM)
    path = shards.shard_path(tmp_path, 0)
    before = path.stat().st_mtime_ns
    tokenize(dataset, images[0], tmp_path, arm=ARM)
    assert path.stat().st_mtime_ns == before


def checkpoint_of(folder, config, images):
    network = Network(config.network)
    nano.init_weights(network, 1)
    checkpoint.write(folder, config, TextTokenizer.load(NANO_FILE), network.state_dict(), images[1].state_dict())
    return folder


def test_tokens_like_a_checkpoint_have_its_prompts_and_statistics_of_the_data(dataset, images, config, tmp_path):
    like = checkpoint_of(tmp_path / 'base', config, images)
    tokenize(dataset, None, tmp_path / 'limits', like=like)
    tokens = shards.read(tmp_path / 'limits')
    assert tokens.config == config and tokens.action.shape == (sum(LENGTHS) - 2, 4, 8)

    tokenize(dataset, images[0], tmp_path / 'nano', action_space='joint_delta')
    data = shards.read(tmp_path / 'nano').config
    scaled = replace(config, robot=data.robot, statistics=data.statistics, network=data.network,
                     vocabulary=data.vocabulary)  # fmt: skip
    narrow = {name: tuple(0.9 * x for x in values) for name, values in data.statistics.action.items()}
    other = replace(scaled, statistics=replace(data.statistics, action=narrow))
    like = checkpoint_of(tmp_path / 'scaled', other, images)
    tokenize(dataset, None, tmp_path / 'kept', like=like, keep_statistics=True)
    tokenize(dataset, None, tmp_path / 'own', like=like)
    kept, own = (shards.read(tmp_path / name).config.statistics for name in ('kept', 'own'))
    assert kept == other.statistics and own == data.statistics


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'cameras': ('front', 'left')}, 'needs observation.images.left'),
        ({'state_low': (-1.0,) * 7, 'state_high': (1.0,) * 7, 'action_low': (-1.0,) * 7, 'action_high': (1.0,) * 7,
          'gripper': False}, r'observation.state is \(8,\), the model has \(7,\)'),
        ({'dt': 0.05}, 'has 10 frames/s, the model steps of 0.05 s'),
    ],
)  # fmt: skip
def test_a_data_set_of_another_robot_is_refused(dataset, images, config, tmp_path, change, message):
    like = checkpoint_of(tmp_path / 'base', replace(config, robot=replace(config.robot, **change)), images)
    with pytest.raises(ValueError, match=message):
        tokenize(dataset, None, tmp_path / 'tokens', like=like)


def test_shards_for_another_model_are_not_mixed(dataset, images, config, tmp_path):
    tokenize(dataset, None, tmp_path / 'tokens', like=checkpoint_of(tmp_path / 'base', config, images))
    with pytest.raises(ValueError, match='shards of other data or for another model'):
        tokenize(dataset, images[0], tmp_path / 'tokens', arm=ARM)
