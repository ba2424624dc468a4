"""What a policy says about recorded frames, with policies that know the answer."""

from dataclasses import replace

import numpy as np
import pytest

from vla_model.checkpoints import nano
from vla_model.families.mmact.policy import info_of
from vla_model.image_tokenizer import ImageTokenizer
from vla_model.policy import PLAN, Prediction
from vla_model.types import Chunk, Plan, PredictedImage
from vla_training.data.annotate import plan_texts
from vla_training.data.features import ACTION, DONE, GROUNDING_POINTS, STATE, SUBTASK, VELOCITY, image, robot_features
from vla_training.evaluate.offline import NOT_TRAINED, recorded_frames
from vla_training.lerobot import Dataset, DatasetWriter, Feature, encode_video

JOINTS, SIZE, LENGTH = [f'j{i}' for i in range(1, 8)], 64, 20


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    """Two episodes, one of which was trained on; the grey of the images grows with time."""
    folder = tmp_path_factory.mktemp('data') / 'set'
    features = robot_features(JOINTS, {'front': (SIZE, SIZE), 'wrist': (SIZE, SIZE)}) | {SUBTASK: Feature('string')}
    features |= {GROUNDING_POINTS: Feature('string')}
    writer = DatasetWriter(folder, 10, 'panda', features)
    for seed in (5, NOT_TRAINED + 5):
        state = np.tile(np.linspace(0.0, 0.5, LENGTH)[:, None], 8).astype(np.float32)
        grey = np.linspace(40, 200, LENGTH).astype(np.uint8)
        video = encode_video(np.tile(grey[:, None, None, None], (1, SIZE, SIZE, 3)), 10)
        columns = {
            STATE: state,
            ACTION: state + np.float32(seed % 2) * np.float32(0.1),
            VELOCITY: np.zeros((LENGTH, 7), np.float32),
            DONE: np.arange(LENGTH) == LENGTH - 1,
            SUBTASK: ['move above the red button'] * 10 + ['press the red button'] * 10,
            GROUNDING_POINTS: ['{"front": {"red button": [31.5, 15.5]}, "wrist": {"red button": [700, 20]}}'] * LENGTH,
        }
        writer.add_episode(
            columns, {image(c): video for c in ('front', 'wrist')}, 'press the red button', {'seed': seed}
        )
    writer.close()
    return folder


class Done:
    """A job that has nothing left to do."""

    def __init__(self, result):
        self.result = result

    def step(self):
        return True


class Knows:
    """Gives the recorded answers, which it looks up by time."""

    def __init__(self, folder, config, shift=0.0):
        data = Dataset(folder)
        self.info, self.shift = info_of(config, 'knows'), shift
        self.pointed = np.zeros((2, config.robot.points, 2))
        self.episode = data.episode(1)
        self.pictures = list(self.episode.frames(image('front')))

    def _at(self, observation):
        return round(observation.t_ref * 1e-8)

    def act(self, observation, prefix=None):
        t, h = self._at(observation), self.info.horizon
        actions = np.asarray(self.episode.columns[ACTION], np.float64)[t + 1 : t + 2 * h : 2]  # two frames a step
        assert observation.positions == pytest.approx(self.episode.columns[STATE][t, :7])
        assert set(observation.images) == {'front', 'wrist'}
        return Prediction(Chunk(actions[:, :7] + self.shift, actions[:, 7], self.info.dt), self.pointed)

    def text(self, observation):
        return plan_texts(self.episode)[self._at(observation)] + ' '

    def picture(self, observation):
        return self.pictures[self._at(observation) + 2 * self.info.horizon]

    def start(self, output, observation, options=None):
        if output == PLAN:
            return Done(Plan(observation.t_ref, self.text(observation), 1.0))
        return Done(PredictedImage(0, 0, self.picture(observation)[::2, ::2], 1.0))


def test_a_policy_with_the_right_outputs_makes_no_errors(dataset, config):
    tokenizer = ImageTokenizer(config.image_tokenizer)
    nano.init_weights(tokenizer, 0)
    found = recorded_frames(Knows(dataset, config), dataset, frames=8, decoded=4, tokenizer=tokenizer)
    assert 'tokenizer PSNR [dB]' in found
    assert found['frames'] == 8 and found['frames with plan and image'] == 4
    for name in ('action error [rad]', 'action error of the last step [rad]', 'gripper error [m]'):
        assert found[name] == pytest.approx(0.0, abs=1e-6)
    assert found['plan text exact'] == found['current sub-task right'] == 1.0
    assert found['imagined PSNR [dB]'] > 40 > found['present image PSNR [dB]']
    assert found['imagined SSIM'] > 0.99


def test_outputs_that_a_policy_does_not_have_are_left_out(dataset, config):
    policy = Knows(dataset, config)
    policy.info = replace(policy.info, outputs=frozenset())
    found = recorded_frames(policy, dataset, frames=4, decoded=2)
    assert set(found) == {'frames', 'frames with plan and image', *(name for name in found if 'error' in name)}


def test_errors_are_those_of_the_policy(dataset, config):
    policy = Knows(dataset, config, shift=0.05)
    policy.text = lambda observation: 'So now I should continue to rest.'
    found = recorded_frames(policy, dataset, frames=4, decoded=4)
    assert found['action error [rad]'] == pytest.approx(0.05)
    assert found['plan text exact'] == found['current sub-task right'] == 0.0


def test_the_grounding_error_is_the_distance_to_the_object(dataset, config):
    policy = Knows(dataset, replace(config, robot=replace(config.robot, points=2)))
    policy.pointed[0, 0] = 0.5, 0.55  # the button is at 0.5, 0.25 of the front camera's view
    policy.pointed[:, 1] = 0.9  # nothing else is named, and what is out of the wrist's view does not count
    found = recorded_frames(policy, dataset, frames=4, decoded=1)
    assert found['grounding error [share of the view]'] == pytest.approx(0.3, abs=0.01)  # 64 bins
    assert found['grounding error below 0.05'] == 0.0
    policy_without = Knows(dataset, replace(config, robot=replace(config.robot, points=0)))
    assert 'grounding error below 0.05' not in recorded_frames(policy_without, dataset, frames=4, decoded=1)


def test_a_frame_whose_chunk_reaches_into_another_task_does_not_count(dataset, config, tmp_path, second_task):
    import shutil

    shutil.copytree(dataset, tmp_path / 'd')
    second_task(tmp_path / 'd', 1, 10, 'let go')
    asked = []

    class Asked(Knows):
        def act(self, observation, prefix=None):
            asked.append((round(observation.t_ref * 1e-8), observation.instruction, float(observation.positions[0])))
            h = self.info.horizon
            return Prediction(Chunk(np.zeros((h, 7)), np.zeros(h), self.info.dt), self.pointed)

        def picture(self, observation):
            return self.pictures[0]

    policy = Asked(dataset, config)
    found = recorded_frames(policy, tmp_path / 'd', frames=100, decoded=1)
    state = policy.episode.columns[STATE][:, 0]
    span = 2 * config.robot.horizon
    first, second = (LENGTH // 2 - span, LENGTH // 2 - span)
    assert found['frames'] == len(asked) == first + second
    assert asked == [
        *((t, 'press the red button', pytest.approx(state[t])) for t in range(first)),
        *((t, 'let go', pytest.approx(state[10 + t])) for t in range(second)),
    ]


def test_what_was_trained_on_does_not_count(dataset, config, tmp_path):
    with pytest.raises(ValueError, match='is no LeRobot dataset'):
        recorded_frames(Knows(dataset, config), tmp_path)
    long = replace(config, robot=replace(config.robot, horizon=LENGTH))
    with pytest.raises(ValueError, match=f'--seed {NOT_TRAINED}'):
        recorded_frames(Knows(dataset, long), dataset)
    slow = replace(config, robot=replace(config.robot, dt=0.25))
    with pytest.raises(ValueError, match=r'the model steps of 0\.25 s'):
        recorded_frames(Knows(dataset, slow), dataset)
