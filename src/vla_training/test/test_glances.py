"""Scenes that are only looked at: what their rows say, and what training takes from them."""

import shutil
from pathlib import Path

import pytest
import torch

from vla_model import bins
from vla_policy_node.core.profile import RobotProfile
from vla_sim.tasks import TASKS, parse_instruction, sample_episode
from vla_training import shards
from vla_training.glances import glances
from vla_training.objective import Masking, Objective

PROFILE = RobotProfile.load(Path(__file__).parents[2] / 'vla_bringup' / 'config' / 'robots' / 'sim_panda.yaml')
SEEDS = range(500, 502)


@pytest.fixture(scope='module')
def folder(tokens_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp('glances') / 'tokens'
    shutil.copytree(tokens_folder, out)
    assert glances(out, PROFILE, SEEDS, sentences=2).startswith('6 scenes, 12 rows')
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
    glances(folder, PROFILE, SEEDS, sentences=2)
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


def test_what_cannot_be_looked_at_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match='held out for evaluation, got 2000000'):
        glances(folder, PROFILE, range(1_999_999, 2_000_001))
    with pytest.raises(FileNotFoundError):
        glances(tmp_path, PROFILE, SEEDS)
