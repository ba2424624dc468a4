import itertools

import pytest

from vla_training import ablate
from vla_training.ablate import Result, gain, runs, table
from vla_training.train.recipe import Recipe

STAGES = [
    {'steps': 2, 'action': 0.0, 'text': 0.1, 'image': 0.1},
    {'steps': 3, 'action': 1.0, 'text': 0.05, 'image': 0.05},
]


def recipe(**changes) -> Recipe:
    network = {'d_model': 32, 'n_layers': 1, 'n_heads': 2, 'mlp_hidden_size': 64}
    batches = {'batch': 8, 'text_batch': 2, 'image_batch': 2}
    content = {
        'stages': STAGES,
        'network': network,
        'masking': {'plan_tokens': 32},
        'warmup': 1,
        'amp': False,
        **batches,
    }
    return Recipe.from_dict(content | changes)


def test_variants_differ_in_what_is_learned_and_in_nothing_else(tmp_path):
    made = {run.variant: run.recipe for run in runs(recipe(), tmp_path, seeds=1)}
    assert [s.weights for s in made['action'].stages] == [{'action': 1.0}]  # the first stage would teach nothing
    assert [s.weights for s in made['+ text'].stages] == [{'text': 0.1}, {'action': 1.0, 'text': 0.05}]
    assert [s.weights for s in made['+ image'].stages] == [{'image': 0.1}, {'action': 1.0, 'image': 0.05}]
    assert made['+ both'].stages == recipe().stages
    static = recipe(stages=[{**STAGES[1], 'static_scenes': 0.5}])
    assert {run.recipe.stages[0].static_scenes for run in runs(static, tmp_path, 1)} == {0.5}
    budget = {v: sum(s.steps * r.batch for s in r.stages if s.action) for v, r in made.items()}
    assert set(budget.values()) == {24}


def test_seeds_are_complete_one_after_the_other(tmp_path):
    made = runs(recipe(seed=5), tmp_path, seeds=2)
    assert [run.seed for run in made] == [5] * 4 + [6] * 4
    assert len({run.folder for run in made}) == 8 and all(run.recipe.seed == run.seed for run in made)


def test_a_recipe_without_actions_is_refused(tmp_path):
    with pytest.raises(ValueError, match='no stage of the recipe learns action'):
        runs(recipe(stages=STAGES[:1]), tmp_path, 1)


def test_studies_of_world_and_heads_differ_in_what_they_are_about(tmp_path):
    world = recipe(stages=[{**STAGES[1], 'world': 0.5}])
    made = {run.variant: run.recipe for run in runs(world, tmp_path, 1, 'world')}
    assert [set(r.stages[0].weights) for r in made.values()] == [{'action'}, {'action', 'world'}, {'world'}]
    with pytest.raises(ValueError, match='no stage of the recipe learns world'):
        runs(recipe(), tmp_path, 1, 'world')
    heads = {run.variant: run.recipe for run in runs(recipe(), tmp_path, 1, 'heads')}
    assert [(r.action_head, r.action_layers, r.masking.discrete, r.masking.continuous) for r in heads.values()] == [
        ('discrete', 0, 1.0, 0.0), ('continuous', 1, 1.0, 10.0), ('continuous', 1, 0.0, 10.0)
    ]  # fmt: skip
    assert len({run.folder for run in runs(recipe(), tmp_path, 1, 'heads')}) == 3
    with pytest.raises(ValueError, match='no study'):
        runs(recipe(), tmp_path, 1, 'weather')


def test_the_table_has_images_and_jumps_where_they_were_measured(tmp_path):
    world = recipe(stages=[{**STAGES[1], 'world': 0.5}])
    action, both, alone = runs(world, tmp_path, 1, 'world')
    results = [
        Result(action, outcomes(3), jump=0.02),
        Result(both, outcomes(4), jump=0.03, world=(24.0, 21.0)),
        Result(alone, {}, world=(23.0, 20.0)),
    ]
    head, rows = table(results)
    assert head[-3:] == ['jump p95 [mrad] +- deviation', 'images after the chunk [dB]', 'the same on the arm [dB]']
    assert [row[-3:] for row in rows] == [['20.0', '', ''], ['30.0', '24.0', '21.0'], ['', '23.0', '20.0']]
    assert rows[2][1:4] == ['', '', '']  # it learned no actions


def test_every_run_gets_a_checkpoint(tokens_folder, tmp_path):
    found = list(ablate.fit(recipe(), tokens_folder, tmp_path, seeds=1, processes=2))
    assert len(found) == 4 and all((folder / 'config.json').is_file() for folder in found)
    logs = [(folder.parent / 'log.csv').read_text() for folder in found]
    assert list(ablate.fit(recipe(), tokens_folder, tmp_path, seeds=1, threads=1)) == found
    assert [(folder.parent / 'log.csv').read_text() for folder in found] == logs  # nothing was left to train
    with pytest.raises(FileNotFoundError, match='train it first'):
        ablate.evaluate(recipe(), tmp_path / 'elsewhere', tmp_path / 'none.yaml')


def outcomes(good: int, of: int = 10) -> dict:
    return {('press_button', 2_000_000 + i): i < good for i in range(of)}


def test_the_table_pools_episodes_and_has_the_spread_of_seeds(tmp_path):
    good = {'action': (2, 4), '+ text': (3, 5), '+ image': (6, 8), '+ both': (9, 9)}
    results = [Result(run, outcomes(good[run.variant][run.seed])) for run in runs(recipe(), tmp_path, seeds=2)]
    head, rows = table(results)
    assert head[:2] == ['learned', 'press_button']
    assert [row[0] for row in rows] == ['action', '+ text', '+ image', '+ both']
    assert rows[0][1].startswith('30.0 % (') and rows[0][2] == '30.0 +- 14.1 %'
    assert rows[3][1].startswith('90.0 %') and rows[3][2] == '90.0 +- 0.0 %'
    assert head[3].startswith('gain over') and rows[0][3] == '' and rows[3][3].startswith('+60.0 (+')


def test_the_table_has_the_errors_of_chunks_where_they_were_measured(tmp_path):
    made = runs(recipe(), tmp_path, seeds=2)
    results = [Result(run, outcomes(1, 2), 0.010 + 0.002 * run.seed) for run in made]
    head, rows = table(results)
    assert head[-1].startswith('action error') and rows[0][-1] == '11.0 +- 1.4'
    assert len(table([Result(run, outcomes(1, 2)) for run in made])[0]) == len(head) - 1


def test_a_gain_is_paired_by_scene_and_its_interval_covers_seeds_and_scenes(tmp_path):
    run = runs(recipe(), tmp_path, seeds=1)[0]
    tasks = ('press_button', 'stack_block')
    scenes = list(itertools.product(tasks, range(2_000_000, 2_000_025)))

    def result(offset):  # the same scenes are hard for everybody
        return Result(run, {(task, seed): seed % 25 < 12 + offset for task, seed in scenes})

    more, low, high = gain([result(5), result(5)], [result(0), result(0)], draws=500)
    assert more == pytest.approx(20.0)
    assert 5.0 < low < 20.0 < high < 35.0
    assert gain([result(5), result(-5)], [result(0), result(0)], draws=500)[1] < -10.0  # seeds differ more than scenes
    assert gain([result(0)] * 3, [result(0)] * 3, draws=100) == (0.0, 0.0, 0.0)
