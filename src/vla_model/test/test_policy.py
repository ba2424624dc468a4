import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from vla_model import decode, policy
from vla_model.types import Chunk, Observation


@pytest.fixture(scope='module')
def nano():
    return policy.load('random-nano', threads=1)


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
    chunk = nano.act(observation)
    robot = nano.config.robot
    assert chunk.positions.shape == (robot.horizon, 7) and chunk.gripper.shape == (robot.horizon,)
    assert (chunk.dt, chunk.frozen) == (robot.dt, 0)
    assert (np.abs(chunk.positions - observation.positions) <= 0.8 + 1e-9).all()
    assert ((chunk.gripper >= 0) & (chunk.gripper <= 0.08)).all()
    assert ((chunk.confidence > 0) & (chunk.confidence <= 1)).all()
    assert np.array_equal(nano.act(observation).positions, chunk.positions)
    assert np.array_equal(policy.load('random-nano', threads=1).act(observation).positions, chunk.positions)


def test_images_state_and_instruction_reach_the_network(nano, observation):
    def confidence(o):
        return nano.act(o).confidence

    base = confidence(observation)
    black = observation.images | {'wrist': np.zeros((256, 256, 3), np.uint8)}
    assert not np.array_equal(base, confidence(replace(observation, images=black)))
    assert not np.array_equal(base, confidence(replace(observation, gripper=0.0)))
    assert not np.array_equal(base, confidence(replace(observation, instruction='press the red button')))


def test_views_of_any_size_are_taken(nano, observation):
    images = observation.images | {'front': np.zeros((480, 640, 3), np.uint8)}
    assert nano.act(replace(observation, images=images)).positions.shape == (16, 7)


@pytest.mark.parametrize('d', [1, 5, 15])
def test_a_prefix_comes_back_bit_identical_and_conditions_the_rest(nano, observation, d):
    rng = np.random.default_rng(d)
    prefix = Chunk(observation.positions + rng.uniform(-0.9, 0.9, (d, 7)), rng.uniform(0, 0.08, d), dt=0.05)
    free, chunk = nano.act(observation), nano.act(observation, prefix)
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
    empty = Chunk(np.zeros((0, 7)), np.zeros(0), dt=0.05)
    assert np.array_equal(nano.act(observation, empty).positions, nano.act(observation).positions)


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
        (Chunk(np.zeros((2, 6)), np.zeros(2), dt=0.05), r'prefix positions must be \(d, 7\)'),
        (Chunk(np.zeros((16, 7)), np.zeros(16), dt=0.05), 'd < 16'),
        (Chunk(np.zeros((2, 7)), np.zeros(0), dt=0.05), 'prefix.gripper must have 2'),
        (Chunk(np.zeros((2, 7)), np.zeros(2), dt=0.1), 'prefix.dt is 0.1'),
        (Chunk(np.full((2, 7), np.nan), np.zeros(2), dt=0.05), 'not finite'),
    ],
)
def test_a_bad_prefix_is_named(nano, observation, prefix, message):
    with pytest.raises(ValueError, match=message):
        nano.act(observation, prefix)


def test_warm_up_and_other_seeds(nano, observation):
    nano.warm_up(runs=1)
    other = policy.load('random-nano', seed=1)
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
        policy.load('random-nano', **arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason='this machine has a GPU')
def test_a_missing_gpu_is_named():
    with pytest.raises(ValueError, match="use 'cpu'"):
        policy.load('random-nano', device='cuda')


def test_threads_leave_a_core_free_unless_told(nano):
    policy.load('random-nano', threads=2)
    assert torch.get_num_threads() == 2
    policy.load('random-nano')
    assert torch.get_num_threads() == max(1, len(os.sched_getaffinity(0)) - 1)


def test_bfloat16_works(observation):
    chunk = policy.load('random-nano', dtype='bfloat16', threads=1).act(observation)
    assert np.isfinite(chunk.positions).all()


def test_the_types_cost_no_torch():
    code = 'import sys, vla_model, vla_model.types, vla_model.config; sys.exit("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0
