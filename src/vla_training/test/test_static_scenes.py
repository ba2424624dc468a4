"""Static-scene samples (./vla train static-scenes): the content of their rows, and their use in training."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from vla_core.kinematics.arm import load_kinematics
from vla_core.profile import RobotProfile
from vla_model.tokens import bins
from vla_policy_node.policy.end_effector import to_poses
from vla_sim.assets.robot import urdf_text
from vla_sim.tasks import TASKS, parse_instruction, sample_episode
from vla_sim.world import World
from vla_training.collect.scenes import StartPose
from vla_training.collect.static_scenes import SceneSampler, SceneSettings, write_static_scenes
from vla_training.data import shards
from vla_training.train.masking import Masking
from vla_training.train.objective import Objective
from vla_training.train.target_model import Arm

PROFILE = RobotProfile.load(Path(__file__).parents[2] / 'vla_bringup' / 'config' / 'robots' / 'sim_panda.yaml')
ARM = Arm(PROFILE, urdf_text)
NANO = Path(__file__).parents[2] / 'vla_model' / 'vla_model' / 'data' / 'nano'
SEEDS = range(500, 502)


@pytest.fixture(scope='module')
def folder(tokens_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp('static') / 'tokens'
    shutil.copytree(tokens_folder, out)
    assert write_static_scenes(out, ARM, SEEDS).startswith('6 scenes, 12 rows')
    return out


def test_rows_ask_for_objects_of_their_scene(folder, tokens):
    both = shards.read(folder)
    assert len(both) == len(tokens) + 12
    rows = torch.arange(len(tokens), len(both))
    assert (both.action[rows] == -1).all() and (both.plan[rows] == -1).all()
    assert torch.equal(both.future[rows], rows)
    assert not set(both.episode[rows].tolist()) & set(tokens.episode.tolist())
    assert len(both.episode[rows].unique()) == 6
    for i, row in enumerate(rows.tolist()):
        goal = parse_instruction(both.text.decode(both.texts[both.instruction[row]]))
        task, seed = TASKS[i // 2 % 3], SEEDS[i // 6]
        objects = {p.name for p in sample_episode(task, seed).placements}
        assert goal.task == task and {goal.object, goal.target} - {''} <= objects
        known = (both.points[row] >= 0).all(-1)
        assert known.all(0).tolist() == [True, bool(goal.target)], 'a named object has a grounding point in every view'
        assert torch.equal(both.codes[row], both.codes[row - i % 2]), 'sentences about one scene'
    assert len({tuple(p.flatten().tolist()) for p in both.points[rows]}) > 6


def test_the_grounding_point_is_at_the_object(folder, tokens):
    """The front camera faces the arm, so an object left of the base is on the right of the image."""
    both = shards.read(folder)
    count = both.config.vocabulary.bins
    across, right = [], []
    for i in range(12):
        row = len(tokens) + i
        goal = parse_instruction(both.text.decode(both.texts[both.instruction[row]]))
        episode = sample_episode(TASKS[i // 2 % 3], SEEDS[i // 6])
        at = {p.name: p for p in episode.placements}
        names = [goal.object, goal.target] if goal.target else [goal.object]
        sentence = both.text.decode(both.texts[both.instruction[row]])
        names.sort(key=lambda name: sentence.find(name.replace('_', ' ')))
        for k, name in enumerate(names):
            across.append(at[name].y)
            right.append(float(bins.dequantize(both.points[row, 0, k, 0].numpy(), count)))
    found = torch.corrcoef(torch.tensor([across, right]))[0, 1]
    assert abs(found) > 0.9


def test_existing_files_are_kept(folder):
    (file,) = folder.glob('static-*')
    before = file.stat().st_mtime_ns
    write_static_scenes(folder, ARM, SEEDS)
    assert file.stat().st_mtime_ns == before


def test_an_unlabelled_sample_teaches_grounding_points_alone(folder, tokens):
    both = shards.read(folder)
    objective = Objective(both, Masking(plan_tokens=32, grounding_weight=3.0), torch.device('cpu'))
    rows, generator = torch.arange(len(tokens), len(both)), torch.Generator().manual_seed(0)
    assert objective.draw('image', rows, generator) is None and objective.draw('text', rows, generator) is None
    batch = objective.draw('action', rows, generator)
    steps = both.config.robot.chunk_tokens
    assert (batch.ids[:, batch.block] == both.config.vocabulary.mask).all()
    assert not batch.weight[:, :steps].any() and (batch.weight[:, steps:].sum(1) > 0).all()
    mixed = objective.draw('action', torch.tensor([0, len(tokens)]), generator)
    assert float(mixed.weight.sum()) == pytest.approx(1) == pytest.approx(float(mixed.counted.sum()))
    place, step = mixed.weight[:, steps:].max(), mixed.weight[0, :steps].max()
    assert float(place / step) == pytest.approx(3)


def test_an_action_label_leads_to_the_named_object(tokens):
    """Samples for the shipped model, whose bins are fine enough to follow its chunks."""
    sampler = SceneSampler(NANO, ARM, SceneSettings(start=StartPose.near_object(), label_actions=True))
    config, seeds = sampler.config, range(700, 710)
    kinematics, robot = load_kinematics(urdf_text(), PROFILE), config.robot
    closer = []
    for seed in seeds:
        rows, sentences, _ = sampler.sample(('fill_bowl', seed))
        world = World('fill_bowl')
        world.reset(seed)
        assert sentences[0] == world.instruction
        state = config.ranges('state').denormalize(bins.dequantize(rows['state'][0], config.vocabulary.bins))
        q = state[: robot.dof]
        first, _, _ = kinematics(q)
        for sentence, action in zip(sentences, rows['action'], strict=True):
            values = config.ranges('action').denormalize(bins.dequantize(action, config.vocabulary.bins))
            last = to_poses(kinematics, robot, q, q, values)[0][-1]
            named = parse_instruction(sentence).object
            there, _ = world.objects()[named]
            if sentence == sentences[0]:
                away = np.hypot(*(first - there)[:2])
                assert away < 0.12, 'the arm is above it'
                assert away > 0.05 or np.hypot(*(last - there)[:2]) < 0.02, 'and moves to its middle'
            closer.append(np.linalg.norm(last - there) < np.linalg.norm(first - there) + 0.05)
            assert values[0, -1] > 0.05, 'the hand is open'
    assert np.mean(closer) > 0.9


def test_labelled_samples_are_in_files_of_their_own(folder):
    settings = SceneSettings(('stack_block',), 2, StartPose.near_object(), label_actions=True)
    before = shards.read(folder)
    assert write_static_scenes(folder, ARM, SEEDS, settings).startswith('2 scenes, 4 rows')
    both = shards.read(folder)
    assert len(both) == len(before) + 4 and int(both.static.sum()) == int(before.static.sum()) + 4
    rows = (both.static & (both.action[:, 0, 0] >= 0)).nonzero()[:, 0]
    assert len(rows) == 4 and (both.points[rows, :, 0] >= 0).all()
    objective = Objective(both, Masking(plan_tokens=32), torch.device('cpu'))
    generator = torch.Generator().manual_seed(0)
    assert objective.draw('image', rows, generator) is None and objective.draw('text', rows, generator) is None
    assert objective.draw('action', rows, generator).weight[:, : both.config.robot.chunk_tokens].any()


def test_held_out_seeds_and_missing_folders_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match='held out for evaluation, got 2000000'):
        write_static_scenes(folder, ARM, range(1_999_999, 2_000_001))
    with pytest.raises(FileNotFoundError):
        write_static_scenes(tmp_path, ARM, SEEDS)


def test_files_of_earlier_versions_are_read_and_kept(folder, tmp_path):
    settings = SceneSettings(('stack_block',), 2, StartPose.near_object(), label_actions=True)
    old = tmp_path / 'tokens'
    shutil.copytree(folder, old)
    expected = shards.read(folder)
    for file in old.glob('static-*'):
        file.rename(old / file.name.replace('static-', 'glances-').replace('near-labelled-', 'over-answers-'))
    found = shards.read(old)
    assert torch.equal(found.static, expected.static) and torch.equal(found.codes, expected.codes)
    write_static_scenes(old, ARM, SEEDS)
    write_static_scenes(old, ARM, SEEDS, settings)
    assert not list(old.glob('static-*')) and len(list(old.glob('glances-*'))) == 2
