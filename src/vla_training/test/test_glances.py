"""Scenes that are only looked at: what their rows say, and what training takes from them."""

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
from vla_training.collect.scenes import Away
from vla_training.collect.static_scenes import Look, Looker, glances
from vla_training.data import shards
from vla_training.train.objective import Masking, Objective
from vla_training.train.tokenize import Arm

PROFILE = RobotProfile.load(Path(__file__).parents[2] / 'vla_bringup' / 'config' / 'robots' / 'sim_panda.yaml')
ARM = Arm(PROFILE, urdf_text)
NANO = Path(__file__).parents[2] / 'vla_model' / 'vla_model' / 'data' / 'nano'
SEEDS = range(500, 502)


@pytest.fixture(scope='module')
def folder(tokens_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp('glances') / 'tokens'
    shutil.copytree(tokens_folder, out)
    assert glances(out, ARM, SEEDS).startswith('6 scenes, 12 rows')
    return out


def test_rows_ask_for_things_of_their_scene(folder, tokens):
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
        things = {p.name for p in sample_episode(task, seed).placements}
        assert goal.task == task and {goal.object, goal.target} - {''} <= things
        known = (both.points[row] >= 0).all(-1)
        assert known.all(0).tolist() == [True, bool(goal.target)], 'what is named has a place in every view'
        assert torch.equal(both.codes[row], both.codes[row - i % 2]), 'sentences about one scene'
    # Arm at home, more or less: the button that is named is in the front picture, as far right as it is to the arm's.
    assert len({tuple(p.flatten().tolist()) for p in both.points[rows]}) > 6


def test_the_place_is_that_of_the_thing(folder, tokens):
    """To the front camera, which looks at the arm, left of the base is right in the picture."""
    both = shards.read(folder)
    count = both.config.vocabulary.bins
    across, right = [], []
    for i in range(12):
        row = len(tokens) + i
        goal = parse_instruction(both.text.decode(both.texts[both.instruction[row]]))
        episode = sample_episode(TASKS[i // 2 % 3], SEEDS[i // 6])
        at = {p.name: p for p in episode.placements}
        names = [goal.object, goal.target] if goal.target else [goal.object]
        said = both.text.decode(both.texts[both.instruction[row]])
        names.sort(key=lambda name: said.find(name.replace('_', ' ')))
        for k, name in enumerate(names):
            across.append(at[name].y)
            right.append(float(bins.dequantize(both.points[row, 0, k, 0].numpy(), count)))
    found = torch.corrcoef(torch.tensor([across, right]))[0, 1]
    assert abs(found) > 0.9


def test_files_that_are_there_are_kept(folder):
    (file,) = folder.glob('glances-*')
    before = file.stat().st_mtime_ns
    glances(folder, ARM, SEEDS)
    assert file.stat().st_mtime_ns == before


def test_only_places_are_learned_from_a_glance(folder, tokens):
    both = shards.read(folder)
    objective = Objective(both, Masking(plan_tokens=32, points_weight=3.0), torch.device('cpu'))
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


def test_an_answer_leads_to_what_is_named(tokens):
    """Looks of the shipped model's kind: its chunks are fine enough to be followed."""
    looker = Looker(NANO, ARM, Look(away=Away.over(), answers=True))
    config, seeds = looker.config, range(700, 710)
    kinematics, robot = load_kinematics(urdf_text(), PROFILE), config.robot
    closer = []
    for seed in seeds:
        rows, sentences = looker.look(('fill_bowl', seed))
        world = World('fill_bowl')
        world.reset(seed)
        assert sentences[0] == world.instruction
        state = config.ranges('state').denormalize(bins.dequantize(rows['state'][0], config.vocabulary.bins))
        q = state[: robot.dof]
        begins, _, _ = kinematics(q)
        for sentence, action in zip(sentences, rows['action'], strict=True):
            values = config.ranges('action').denormalize(bins.dequantize(action, config.vocabulary.bins))
            ends = to_poses(kinematics, robot, q, q, values)[0][-1]
            named = parse_instruction(sentence).object
            there, _ = world.objects()[named]
            if sentence == sentences[0]:
                away = np.hypot(*(begins - there)[:2])
                assert away < 0.12, 'the arm is over it'
                assert away > 0.05 or np.hypot(*(ends - there)[:2]) < 0.02, 'and goes to its middle'
            closer.append(np.linalg.norm(ends - there) < np.linalg.norm(begins - there) + 0.05)
            assert values[0, -1] > 0.05, 'an open hand'
    assert np.mean(closer) > 0.9


def test_answers_are_files_of_their_own(folder):
    looks = Look(('stack_block',), 2, Away.over(), answers=True)
    before = shards.read(folder)
    assert glances(folder, ARM, SEEDS, looks).startswith('2 scenes, 4 rows')
    both = shards.read(folder)
    assert len(both) == len(before) + 4 and int(both.glance.sum()) == int(before.glance.sum()) + 4
    rows = (both.glance & (both.action[:, 0, 0] >= 0)).nonzero()[:, 0]
    assert len(rows) == 4 and (both.points[rows, :, 0] >= 0).all()
    objective = Objective(both, Masking(plan_tokens=32), torch.device('cpu'))
    generator = torch.Generator().manual_seed(0)
    assert objective.draw('image', rows, generator) is None and objective.draw('text', rows, generator) is None
    assert objective.draw('action', rows, generator).weight[:, : both.config.robot.chunk_tokens].any()


def test_what_cannot_be_looked_at_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match='held out for evaluation, got 2000000'):
        glances(folder, ARM, range(1_999_999, 2_000_001))
    with pytest.raises(FileNotFoundError):
        glances(tmp_path, ARM, SEEDS)
