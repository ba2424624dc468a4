import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from vla_model import decode
from vla_model.config import ModelConfig
from vla_model.families.mmact import loading
from vla_model.families.mmact.policy import MaskedPolicy
from vla_model.loading import LoadOptions
from vla_model.policy import IMAGE, PLAN, ImageOptions, PlanOptions
from vla_model.types import Chunk, Observation


@pytest.fixture(scope='module')
def nano():
    return loading.load('random-nano', LoadOptions(threads=1))


@pytest.fixture
def observation():
    rng = np.random.default_rng(3)
    return Observation(
        t_ref=0,
        images={name: rng.integers(0, 256, (256, 256, 3), dtype=np.uint8) for name in ('front', 'wrist')},
        positions=np.array([0.0, -0.78, 0.0, -2.35, 0.0, 1.57, 0.78]),
        velocities=np.zeros(7),
        gripper=0.04,
        instruction='put the banana in the red bowl',
    )


def test_act_returns_a_chunk_near_the_joints_and_is_deterministic(nano, observation):
    chunk = nano.act(observation).chunk
    robot = nano.config.robot
    assert chunk.positions.shape == (robot.horizon, 7) and chunk.gripper.shape == (robot.horizon,)
    assert (chunk.dt, chunk.frozen) == (robot.dt, 0)
    assert (np.abs(chunk.positions - observation.positions) <= 1.6 + 1e-9).all()
    assert ((chunk.gripper >= 0) & (chunk.gripper <= 0.08)).all()
    assert ((chunk.confidence > 0) & (chunk.confidence <= 1)).all()
    assert np.array_equal(nano.act(observation).chunk.positions, chunk.positions)
    again = loading.load('random-nano', LoadOptions(threads=1)).act(observation).chunk
    assert np.array_equal(again.positions, chunk.positions)


def test_images_state_and_instruction_reach_the_network(nano, observation):
    def confidence(o):
        return nano.act(o).chunk.confidence

    base = confidence(observation)
    black = observation.images | {'wrist': np.zeros((256, 256, 3), np.uint8)}
    assert not np.array_equal(base, confidence(replace(observation, images=black)))
    assert not np.array_equal(base, confidence(replace(observation, gripper=0.0)))
    assert not np.array_equal(base, confidence(replace(observation, instruction='press the red button')))


def test_views_of_any_size_are_taken(nano, observation):
    images = observation.images | {'front': np.zeros((480, 640, 3), np.uint8)}
    assert nano.act(replace(observation, images=images)).chunk.positions.shape == (8, 7)


@pytest.mark.parametrize('d', [1, 5, 7])
def test_a_prefix_comes_back_bit_identical_and_conditions_the_rest(nano, observation, d):
    rng = np.random.default_rng(d)
    prefix = Chunk(observation.positions + rng.uniform(-0.9, 0.9, (d, 7)), rng.uniform(0, 0.08, d), dt=0.2)
    free, chunk = nano.act(observation).chunk, nano.act(observation, prefix).chunk
    assert chunk.frozen == d
    assert chunk.positions[:d].tobytes() == prefix.positions.tobytes()
    assert chunk.gripper[:d].tobytes() == prefix.gripper.tobytes()
    assert (chunk.confidence[:d] == 1).all() and (chunk.confidence[d:] < 1).all()
    assert not np.array_equal(chunk.confidence[d:], free.confidence[d:])


def test_decode_keeps_the_given_bins(nano):
    v = nano.config.vocabulary
    ids = torch.full((1, 40), v.mask)
    ids[0, 4:12] = torch.arange(8) + v.bins_offset
    with torch.inference_mode():
        bins, probability = decode.run(decode.action(nano.network, v, ids, slice(4, 36), given=8))
        all_given, ones = decode.run(decode.action(nano.network, v, ids, slice(4, 12), given=8))
    assert bins[:8].tolist() == all_given.tolist() == list(range(8))
    assert ((bins >= 0) & (bins < v.bins)).all()
    assert (probability[:8] == 1).all() and (probability[8:] < 1).all() and (ones == 1).all()


def test_an_empty_prefix_is_no_prefix(nano, observation):
    empty = Chunk(np.zeros((0, 7)), np.zeros(0), dt=0.2)
    assert np.array_equal(nano.act(observation, empty).chunk.positions, nano.act(observation).chunk.positions)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'images': {'front': np.zeros((256, 256, 3), np.uint8)}}, "camera 'wrist' is missing"),
        ({'front': np.zeros((256, 256, 3), np.float32)}, "'front' must be .* uint8 RGB, got .* float32"),
        ({'front': np.zeros((256, 256, 4), np.uint8)}, "'front' must be .* uint8 RGB"),
        ({'front': np.zeros((256, 256), np.uint8)}, "'front' must be .* uint8 RGB"),
        ({'front': np.zeros((0, 256, 3), np.uint8)}, "'front' is 256 x 0 px"),
        ({'positions': np.zeros(6)}, 'needs 7 joint positions'),
        ({'positions': np.array([0, 0, np.nan, -1, 0, 1, 0])}, 'position of joint 3 is not finite'),
        ({'positions': np.array([0, 0, 45.0, -1, 0, 1, 0])}, 'position of joint 3 is 45, far outside'),
        ({'gripper': float('inf')}, 'gripper opening is not finite'),
        ({'gripper': 40.0}, 'gripper opening is 40, far outside'),
        ({'instruction': ''}, 'instruction is empty'),
        ({'instruction': 'red ' * 500}, 'instruction has .* tokens, there is room for'),
    ],
)
def test_a_bad_observation_is_named(nano, observation, changes, message):
    if 'front' in changes:
        changes = {'images': observation.images | {'front': changes['front']}}
    with pytest.raises(ValueError, match=message):
        nano.act(replace(observation, **changes))


@pytest.mark.parametrize(
    ('prefix', 'message'),
    [
        (Chunk(np.zeros((2, 6)), np.zeros(2), dt=0.2), r'prefix positions must be \(n, 7\)'),
        (Chunk(np.zeros((8, 7)), np.zeros(8), dt=0.2), 'n at most 7'),
        (Chunk(np.zeros((2, 7)), np.zeros(0), dt=0.2), 'prefix.gripper must have 2'),
        (Chunk(np.zeros((2, 7)), np.zeros(2), dt=0.05), 'prefix.dt is 0.05'),
        (Chunk(np.full((2, 7), np.nan), np.zeros(2), dt=0.2), 'not finite'),
        (Chunk(np.zeros((2, 7)), np.zeros(2), dt=0.2, space='tool'), "space 'tool', the model works in 'joints'"),
    ],
)
def test_a_bad_prefix_is_named(nano, observation, prefix, message):
    with pytest.raises(ValueError, match=message):
        nano.act(observation, prefix)


def test_warm_up_and_other_seeds(nano, observation):
    nano.warm_up(runs=1)
    other = loading.load('random-nano', LoadOptions(seed=1))
    assert other.model_id != nano.model_id and nano.model_id.startswith('random-nano-')
    assert not other.config.trained


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'device': 'tpu'}, 'device must be'),
        ({'dtype': 'int3'}, 'dtype must be'),
        ({'threads': -1}, 'threads must be'),
    ],
)
def test_bad_load_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        loading.load('random-nano', LoadOptions(**arguments))


@pytest.mark.skipif(torch.cuda.is_available(), reason='this machine has a GPU')
def test_a_missing_gpu_is_named():
    with pytest.raises(ValueError, match="use 'cpu'"):
        loading.load('random-nano', LoadOptions(device='cuda'))


def test_threads_leave_a_core_free_by_default(nano):
    loading.load('random-nano', LoadOptions(threads=2))
    assert torch.get_num_threads() == 2
    loading.load('random-nano')
    assert torch.get_num_threads() == max(1, len(os.sched_getaffinity(0)) - 1)


def test_bfloat16_works(observation):
    chunk = loading.load('random-nano', LoadOptions(dtype='bfloat16', threads=1)).act(observation).chunk
    assert np.isfinite(chunk.positions).all()


def test_the_types_cost_no_torch():
    code = 'import sys, vla_model, vla_model.types, vla_model.config; sys.exit("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0


class Encodes:
    """Counts what the image tokenizer is asked to encode."""

    def __init__(self, policy, monkeypatch):
        self.count, encode = 0, policy.engine.encode

        def counting(pixels):
            self.count += len(pixels)
            return encode(pixels)

        monkeypatch.setattr(policy.engine, 'encode', counting)


def test_a_frame_that_repeats_is_not_encoded_again(nano, observation, monkeypatch):
    encodes = Encodes(nano, monkeypatch)
    first = nano.act(observation).chunk
    assert encodes.count == 2
    copies = {name: image.copy() for name, image in observation.images.items()}
    assert np.array_equal(nano.act(replace(observation, images=copies)).chunk.positions, first.positions)
    nano.start(PLAN, observation, PlanOptions(length=8))
    assert encodes.count == 2
    observation.images['wrist'][3, 4, 0] ^= 255  # in place: the policy must not believe its own copy
    nano.act(observation)
    assert encodes.count == 3


def test_a_plan_is_a_job_between_acts(nano, observation):
    job = nano.start(PLAN, observation, PlanOptions(length=12, steps=4))
    forwards = 0
    while not job.step():
        forwards += 1
        nano.act(observation)
    assert forwards <= 3
    assert job.result.t_ref == observation.t_ref and isinstance(job.result.text, str)
    assert 0 < job.result.confidence <= 1
    assert job.result == nano.start(PLAN, observation, PlanOptions(length=12, steps=4)).run()
    exact = nano.start(PLAN, observation, PlanOptions(length=12, steps=4, threshold=1.0, cached=True)).run()
    assert 0 < exact.confidence <= 1


def test_plans_are_as_long_as_the_checkpoint_was_trained_with(nano, observation, monkeypatch):
    asked = []

    def text(network, vocabulary, ids, block, steps, *_, **__):
        asked.append((block.stop - block.start, steps))
        yield from ()
        return ids[0, block], torch.ones(1)

    monkeypatch.setattr(decode, 'text', text)
    for tokens, steps in ((112, 32), (24, 6)):
        monkeypatch.setattr(nano, 'config', replace(nano.config, plan_tokens=tokens, plan_steps=steps))
        for options in (PlanOptions(), PlanOptions(length=5), PlanOptions(steps=2)):
            nano.start(PLAN, observation, options).run()
    assert asked == [(112, 32), (5, 5), (112, 2), (24, 6), (5, 5), (24, 2)]


def test_the_configuration_has_the_length_of_plans_where_it_is_not_the_usual_one(nano):
    config = nano.config
    assert 'plan_' not in config.to_json(), 'checkpoints of before keep their configuration, and with it their id'
    other = replace(config, plan_tokens=24, plan_steps=6)
    assert ModelConfig.of_json(json.loads(other.to_json()), other.statistics) == other
    assert ModelConfig.of_json(json.loads(config.to_json()), config.statistics) == config
    with pytest.raises(ValueError, match='plan_steps must be 1 to plan_tokens, which is 24, got 25'):
        replace(config, plan_tokens=24, plan_steps=25)


def test_plan_text_holds_no_marks(nano, observation, monkeypatch):
    v = nano.config.vocabulary
    words = nano.text.encode('go to the bowl')
    ids = torch.tensor([*words, v.bins_offset, v.mask, v.eos])

    def text(*_, **__):
        yield from ()
        return ids, torch.full((len(ids),), 0.5)

    monkeypatch.setattr(decode, 'text', text)
    plan = nano.start(PLAN, observation).run()
    assert (plan.text, plan.confidence) == ('go to the bowl', 0.5)


@pytest.mark.parametrize('options', [{}, {'guidance': 1.5}, {'cached': True}])
def test_an_image_is_a_job(nano, observation, options):
    job = nano.start(IMAGE, replace(observation, t_ref=10**9), ImageOptions(steps=3, **options))
    steps = 1
    while not job.step():
        steps += 1
    assert steps == 4  # three forwards, and the image decoder
    side = nano.config.image_tokenizer.resolution
    assert job.result.image.shape == (side, side, 3) and job.result.image.dtype == np.uint8
    assert job.result.due == 10**9 + 1_600_000_000 and 0 < job.result.confidence <= 1


@pytest.mark.parametrize('output', [PLAN, IMAGE])
def test_jobs_name_what_is_wrong_with_an_observation(nano, observation, output):
    with pytest.raises(ValueError, match='instruction is empty'):
        nano.start(output, replace(observation, instruction=''))
    with pytest.raises(ValueError, match="camera 'wrist' is missing"):
        nano.start(output, replace(observation, images={'front': observation.images['front']}))


def test_several_forwards_per_chunk(observation):
    slow = loading.load('random-nano', LoadOptions(threads=1, act_steps=4))
    prefix = Chunk(np.tile(observation.positions, (5, 1)), np.full(5, 0.03), dt=0.2)
    chunk = slow.act(observation, prefix).chunk
    assert chunk.frozen == 5 and chunk.positions[:5].tobytes() == prefix.positions.tobytes()
    once = loading.load('random-nano').act(observation).chunk
    assert not np.array_equal(slow.act(observation).chunk.positions, once.positions)
    with pytest.raises(ValueError, match=r"action_decoding must be one of \['median', 'mode'\], got 'mean'"):
        loading.load('random-nano', LoadOptions(action_decoding='mean'))
    with pytest.raises(ValueError, match='act_steps must be 1 or more'):
        loading.load('random-nano', LoadOptions(act_steps=0))


def test_absolute_joint_actions(nano, observation):
    robot = replace(
        nano.config.robot,
        action_space='joint_position',
        action_low=nano.config.robot.state_low,
        action_high=nano.config.robot.state_high,
    )
    config = replace(nano.config, robot=robot)
    absolute = MaskedPolicy(config, nano.text, nano.network, nano.image_tokenizer, 'x')
    chunk = absolute.act(observation).chunk
    low, high = np.array(robot.state_low[:7]), np.array(robot.state_high[:7])
    assert ((chunk.positions >= low - 1e-9) & (chunk.positions <= high + 1e-9)).all()
    delta = nano.act(observation).chunk.positions - observation.positions
    share = (chunk.positions - low) / (high - low)
    assert np.allclose(share, (delta + 1.6) / 3.2), 'the same bins, over another range'


def test_a_model_points_at_what_the_instruction_names(nano, observation):
    assert nano.act(observation).points.shape == (2, 0, 2)
    config = replace(nano.config, robot=replace(nano.config.robot, points=2))
    pointing = MaskedPolicy(config, nano.text, nano.network, nano.image_tokenizer, 'pointing')
    prefix = pointing.act(observation).chunk
    prefix = Chunk(prefix.positions[:3], prefix.gripper[:3], prefix.dt)
    found = pointing.act(observation, prefix)
    chunk, points = found.chunk, found.points
    assert chunk.positions.shape == (8, 7) and chunk.confidence.shape == (8,) and chunk.frozen == 3
    assert points.shape == (2, 2, 2) and ((points >= 0) & (points <= 1)).all()
    assert pointing.info.outputs == {'plan', 'image', 'points'} and nano.info.outputs == {'plan', 'image'}
    assert pointing.example().instruction and pointing.prompts.block_tokens == 64 + 8
    pointing.act_steps = 3
    assert np.array_equal(pointing.act(observation, prefix).chunk.positions[:3], prefix.positions)


def test_a_configuration_may_leave_out_what_has_a_default(nano):
    content = json.loads(nano.config.to_json())
    del content['robot']['points']
    assert ModelConfig.of_json(content, None) == nano.config
    del content['robot']['dt']
    with pytest.raises(ValueError, match=r'field robot\.dt is missing'):
        ModelConfig.of_json(content, None)
