"""The outputs and inputs that a masked model may have beside chunks, plans and images. Weights are random."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from vla_model import loading
from vla_model.checkpoints import nano
from vla_model.config import ImageTokenizerConfig, ModelConfig, NetworkConfig
from vla_model.families.mmact import loading as mmact
from vla_model.families.mmact.policy import MaskedPolicy
from vla_model.families.mmact.steering import CYAN, line_on
from vla_model.image_tokenizer import ImageTokenizer
from vla_model.loading import LoadOptions
from vla_model.network import Network
from vla_model.observation import along, check_trace
from vla_model.policy import DEPTH, TRACE, WORLD, ImageOptions, WorldOptions, finish
from vla_model.quantization.quantize import plan_layers
from vla_model.tokens.depth_tokenizer import DepthTokenizer, DepthTokenizerConfig
from vla_model.tokens.text_tokenizer import NANO_FILE, TextTokenizer
from vla_model.tokens.vocabulary import Vocabulary
from vla_model.types import Chunk, Trace

TEXT = TextTokenizer.load(NANO_FILE)
IMAGES = ImageTokenizerConfig(32, 8, 8, 6, (1, 1, 1, 1), (0, 0, 0, 0), (1, 1, 1, 1), (0, 0, 0, 0))


def make(**changes) -> MaskedPolicy:
    """A tiny model with all outputs; changes: fields of ModelConfig."""
    base = nano.config(TEXT.size, 'joint_delta', points=1)
    v = Vocabulary.small(TEXT.size, 2**IMAGES.z_channels, 64, depth=16)
    network = NetworkConfig(32, 2, 2, 2, 48, 10000.0, 1e-5, v.size, action_layers=1)
    fields = {'world': True, 'steering': 'tokens', 'robot': replace(base.robot, trace=5)} | changes
    config = replace(base, vocabulary=v, network=network, image_tokenizer=IMAGES, **fields)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made, images = Network(network), ImageTokenizer(IMAGES)
    nano.init_weights(made, 1)
    nano.init_weights(images, 1)
    made.model['action_head'].out.weight.data *= 0.1  # within the range
    depth = DepthTokenizer(DepthTokenizerConfig(side=32, codes=16, width=4, channels=4)).eval()
    return MaskedPolicy(config, TEXT, made, images, 'tiny', depth)


@pytest.fixture(scope='module')
def policy():
    return make()


@pytest.fixture
def seen(policy):
    rng = np.random.default_rng(0)
    images = {c: rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for c in ('front', 'wrist')}
    return replace(policy.example(), images=images, instruction='press the red button')


def trace(*points, camera='front'):
    return Trace(camera, np.array(points, float), 64, 48)


def chunk_of(policy, seen, steps=8, move=0.1):
    robot = policy.config.robot
    return Chunk(seen.positions + np.linspace(0, move, steps)[:, None] * np.ones(7), np.full(steps, 0.04), robot.dt)


def test_a_prediction_has_a_trace_in_the_first_view(policy, seen):
    found = policy.act(seen)
    assert policy.info.outputs >= {TRACE, DEPTH, WORLD} and policy.info.predicted >= {TRACE}
    assert found.trace.camera == 'front' and (found.trace.width, found.trace.height) == (64, 48)
    assert found.trace.points.shape == (5, 2)
    assert found.points.shape == (2, 1, 2)  # the slots of points and trace are apart


def test_a_trace_to_follow_reaches_the_network(policy, seen):
    free = policy.act(seen).chunk.confidence
    one = policy.act(replace(seen, steering=trace((5, 5), (60, 40)))).chunk.confidence
    other = policy.act(replace(seen, steering=trace((60, 40), (5, 5)))).chunk.confidence
    assert not np.array_equal(free, one) and not np.array_equal(one, other)
    # Twice as large an image, the same line.
    large = Trace('front', np.array([(10.5, 10.5), (120.5, 80.5)]), 128, 96)
    assert np.array_equal(policy.act(replace(seen, steering=large)).chunk.confidence, one)


def test_a_line_is_drawn_on_the_first_view_alone(seen):
    drawn = make(steering='line')
    free = drawn.act(seen).chunk.confidence
    assert not np.array_equal(drawn.act(replace(seen, steering=trace((5, 5), (60, 40)))).chunk.confidence, free)
    picture = line_on(np.zeros((48, 64, 3), np.uint8), np.array([(5, 5), (60, 40)]))
    assert (picture[5, 5] == CYAN).all() and (picture[40, 60] == CYAN).all() and not picture[40, 5].any()


@pytest.mark.parametrize(
    ('bad', 'message'),
    [
        (trace((5, 5)), 'two or more points'),
        (trace((5, 5), (90, 5)), 'outside the image of 64 x 48'),
        (trace((5, 5), (np.nan, 5)), 'not finite'),
        (trace((5, 5), (9, 9), camera='wrist'), "of camera 'wrist'"),
    ],
)
def test_a_trace_that_cannot_be_followed_is_refused(policy, seen, bad, message):
    with pytest.raises(ValueError, match=message):
        policy.act(replace(seen, steering=bad))


def test_a_model_that_follows_no_traces_refuses_them(seen):
    with pytest.raises(ValueError, match='does not follow traces'):
        make(steering='').act(replace(seen, steering=trace((5, 5), (60, 40))))


def test_points_along_a_line_are_equally_far_apart():
    points = along(np.array([(0, 0), (3, 0), (3, 3)]), 5)
    assert np.allclose(points, [(0, 0), (1.5, 0), (3, 0), (3, 1.5), (3, 3)])
    assert np.allclose(along(np.array([(2, 2)]), 3), 2)
    assert len(check_trace(trace((-0.5, 0), (63.5, 47)), 'front')) == 2  # up to the edges of the pixels


def test_images_after_given_actions_depend_on_these_actions(policy, seen):
    def views(chunk, after=0):
        return finish(policy.start(WORLD, seen, WorldOptions(chunk, after, steps=2)))

    still, moved = views(chunk_of(policy, seen, move=0.0)), views(chunk_of(policy, seen, move=1.0))
    assert set(still.images) == {'front', 'wrist'} and still.images['wrist'].shape == (32, 32, 3)
    assert still.due == seen.t_ref + round(8 * 0.2e9)
    assert any(not np.array_equal(still.images[c], moved.images[c]) for c in still.images)
    early = views(chunk_of(policy, seen), after=2)
    assert early.due == seen.t_ref + round(2 * 0.2e9)
    # Later steps do not matter.
    far = chunk_of(policy, seen)
    far = replace(far, positions=np.vstack([far.positions[:2], far.positions[2:] + 0.5]))
    assert all(np.array_equal(early.images[c], views(far, after=2).images[c]) for c in early.images)


def test_actions_of_the_tool_need_the_joints_that_they_lead_to(seen):
    robot = replace(nano.config(TEXT.size, 'ee_relative').robot, trace=0)
    tool = make(robot=robot)
    chunk = Chunk(np.zeros((8, 6)), np.full(8, 0.04), 0.2, space='tool')
    with pytest.raises(ValueError, match=r'give options\.target'):
        tool.start(WORLD, seen, WorldOptions(chunk))
    here = np.append(seen.positions, 0.04)
    one = finish(tool.start(WORLD, seen, WorldOptions(chunk, target=here, steps=1))).images
    other = finish(tool.start(WORLD, seen, WorldOptions(chunk, target=here * 0.5, steps=1))).images
    assert any(not np.array_equal(one[c], other[c]) for c in one)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'after': 9}, 'after 9 steps'),
        ({'steps_of_chunk': 3, 'after': 4}, 'the chunk has 3'),
        ({'move': 9.0}, 'as far as the actions that the model knows'),
        ({'move': np.nan}, 'not finite'),
        ({'dims': 6}, 'chunk positions must be'),
    ],
)
def test_a_chunk_whose_images_are_unknown_is_refused(policy, seen, change, message):
    chunk = chunk_of(policy, seen, change.get('steps_of_chunk', 8), change.get('move', 0.1))
    chunk = replace(chunk, positions=chunk.positions[:, : change.get('dims', 7)])
    with pytest.raises(ValueError, match=message):
        policy.start(WORLD, seen, WorldOptions(chunk, change.get('after', 0)))


def test_world_needs_its_options(policy, seen):
    for options in (None, ImageOptions()):
        with pytest.raises(ValueError, match='not the options'):
            policy.start(WORLD, seen, options)
    with pytest.raises(ValueError, match='no output'):
        make(world=False).start(WORLD, seen, WorldOptions(chunk_of(policy, seen)))


def test_the_depth_map_is_in_metres(policy, seen):
    found = finish(policy.start(DEPTH, seen))
    assert found.codes.shape == (4, 4) and ((found.codes >= 0) & (found.codes < 16)).all()
    assert found.metric and found.depth.shape == (32, 32)
    c = policy.depth_tokenizer.config
    assert (found.depth >= c.near).all() and (found.depth <= c.far).all()


def test_either_action_head_makes_the_chunk(policy, seen):
    discrete = policy.act(seen)
    other = make(action_head='continuous').act(seen)
    assert not np.array_equal(discrete.chunk.positions, other.chunk.positions)
    assert discrete.disagreement.shape == (8,) and np.array_equal(discrete.disagreement, other.disagreement)
    prefix = Chunk(seen.positions + 0.01 * np.ones((2, 7)), np.full(2, 0.04), 0.2)
    held = make(action_head='continuous').act(seen, prefix)
    assert np.array_equal(held.chunk.positions[:2], prefix.positions)
    assert not np.array_equal(held.chunk.positions[2:], other.chunk.positions[2:])


def test_quantization_leaves_the_continuous_head_in_floating_point(policy):
    layers = plan_layers(policy.config.network, 'int8', None)
    assert layers and not any('action_head' in name for name in layers)


def test_a_checkpoint_with_all_outputs_is_the_same_again(policy, seen, tmp_path):
    mmact.save(policy, tmp_path)
    again = loading.load(tmp_path, LoadOptions(threads=1))
    assert again.info == replace(policy.info, model_id=again.info.model_id)
    a, b = policy.act(seen), again.act(seen)
    assert np.array_equal(a.chunk.positions, b.chunk.positions) and np.array_equal(a.disagreement, b.disagreement)
    assert np.array_equal(finish(policy.start(DEPTH, seen)).depth, finish(again.start(DEPTH, seen)).depth)
    with pytest.raises(ValueError, match='action_head must be'):
        loading.load(tmp_path, LoadOptions(threads=1, action_head='smooth'))
    continuous = loading.load(tmp_path, LoadOptions(threads=1, action_head='continuous'))
    assert not np.array_equal(continuous.act(seen).chunk.positions, a.chunk.positions)
    (tmp_path / 'depth_tokenizer.safetensors').write_bytes(b'x' * 64)
    with pytest.raises(ValueError, match='not a depth tokenizer'):
        loading.load(tmp_path)
    (tmp_path / 'depth_tokenizer.safetensors').unlink()
    with pytest.raises(FileNotFoundError, match=r'depth_tokenizer\.safetensors is missing'):
        loading.load(tmp_path)


def test_the_configuration_of_older_models_is_unchanged(policy):
    older = nano.config(TEXT.size, points=1)
    text = older.to_json()
    assert not any(name in text for name in ('depth', 'trace', 'world', 'steering', 'action_head'))
    assert ModelConfig.of_json(json.loads(text), None) == older
    config = policy.config
    assert ModelConfig.of_json(json.loads(config.to_json()), None) == config
    with pytest.raises(ValueError, match='no such head'):
        replace(older, action_head='continuous')
    with pytest.raises(ValueError, match='steering must be'):
        replace(older, steering='voice')


def test_depth_codes_come_back(policy):
    tokenizer = DepthTokenizer(DepthTokenizerConfig(side=32, codes=16, width=4, channels=4)).eval()
    far = tokenizer.prepare(np.array([[[0.0, np.nan], [np.inf, 9.0]]]))
    assert (far == 1).all()
    codes = tokenizer.encode(np.full((2, 64, 64), 0.5, np.float32))
    assert codes.shape == (2, 16) and torch.equal(codes[0], codes[1])
    assert tokenizer.decode(codes).shape == (2, 32, 32)
    with pytest.raises(ValueError, match='multiple of'):
        DepthTokenizerConfig(side=30)
