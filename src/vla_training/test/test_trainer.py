import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes

from vla_model.families.mmact import loading
from vla_model.loading import LoadOptions
from vla_model.tokens.vocabulary import Vocabulary
from vla_model.types import Observation
from vla_training.plot import plot_log
from vla_training.train import recipe as recipe_module
from vla_training.train import structure
from vla_training.train.recipe import Recipe
from vla_training.train.trainer import Trainer, train

STAGES = [
    {'steps': 2, 'action': 0.0, 'text': 0.1, 'image': 0.1},
    {'steps': 6, 'action': 1.0, 'text': 0.05, 'image': 0.05},
]


def recipe(**changes) -> Recipe:
    content = {
        'stages': STAGES,
        'network': {'d_model': 32, 'n_layers': 2, 'n_heads': 2, 'mlp_hidden_size': 64},
        'masking': {'plan_tokens': 32, 'state_noise': 0.0, 'label_sigma': 1.0},
        'batch': 16, 'text_batch': 4, 'image_batch': 4, 'warmup': 2, 'log_every': 2, 'save_every': 4, 'amp': False,
        'validation': 0.25,
    }  # fmt: skip
    return Recipe.from_dict(content | changes)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in trainer.network.named_parameters()}


@pytest.mark.parametrize('optimizer', ['adamw', 'muon'])
def test_it_learns(tokens, tmp_path, optimizer):
    stage = {'steps': 60, 'action': 1.0, 'text': 0.0, 'image': 0.0}
    changes = {'stages': [stage], 'lr': 3e-3, 'warmup': 10, 'save_every': 60, 'log_every': 10, 'optimizer': optimizer}
    trainer = Trainer(recipe(**changes), tokens, tmp_path)
    trainer.run()
    with (tmp_path / 'log.csv').open() as file:
        losses = [float(row['action_loss']) for row in csv.DictReader(file)]
    assert losses[-1] < 0.9 * losses[0]


def test_a_stage_sets_the_share_of_static_scenes(tokens, tmp_path):
    static = torch.arange(len(tokens)) % 2 == 1
    action = torch.where(static[:, None, None], -1, tokens.action)
    mixed = replace(tokens, action=action, static=static)
    stages = [{'steps': 2, 'action': 1.0, 'text': 0.1, 'image': 0.1, 'static_scenes': g} for g in (0.0, 0.75, -1.0)]
    trainer = Trainer(recipe(stages=stages), mixed, tmp_path)
    counts, seen = [], set()
    for _ in range(6):
        rows = trainer._rows()
        counts.append(int(static[rows].sum()))
        seen |= set(rows[: 16 - counts[-1]].tolist())
        if counts[-1] == 12:
            assert not static[rows[:4]].any(), 'the first ones make plans and images'
        trainer.train_step()
        trainer.step += 1
    assert counts[:4] == [0, 0, 12, 12] and 0 < counts[4] < 16 and len(seen) > 16
    with pytest.raises(ValueError, match='has no static-scene samples: make some'):
        Trainer(recipe(stages=stages[1:]), tokens, tmp_path / 'none')._rows()
    with pytest.raises(ValueError, match='static_scenes and labelled_scenes are shares up to 1'):
        recipe(stages=[stages[0] | {'action': 0.0, 'static_scenes': 1.0}])


def test_a_stage_sets_the_share_of_labelled_scenes(tokens, tmp_path):
    static, labelled = torch.arange(len(tokens)) % 2 == 1, torch.arange(len(tokens)) % 4 == 1
    action = torch.where((static & ~labelled)[:, None, None], -1, tokens.action)
    mixed = replace(tokens, action=action, static=static)
    stage = {'steps': 2, 'action': 1.0, 'text': 0.1, 'image': 0.1, 'static_scenes': 0.25, 'labelled_scenes': 0.5}
    trainer = Trainer(recipe(stages=[stage]), mixed, tmp_path)
    rows = trainer._rows()
    assert (~static[rows]).tolist() == [True] * 4 + [False] * 12
    assert labelled[rows].tolist() == [False] * 4 + [True] * 8 + [False] * 4
    with pytest.raises(ValueError, match='has no labelled static-scene samples: make some'):
        Trainer(recipe(stages=[stage]), replace(mixed, action=tokens.action * 0 - 1), tmp_path / 'none')._rows()
    for wrong, message in (
        ({'labelled_scenes': 0.8}, 'shares up to 1'),
        ({'labelled_scenes': -0.1}, 'shares up to 1'),
        ({'static_scenes': -1.0}, 'needs a share for static_scenes'),
    ):
        with pytest.raises(ValueError, match=message):
            recipe(stages=[stage | wrong])


@pytest.mark.parametrize('optimizer', ['adamw', 'muon'])
def test_a_run_that_was_cut_continues_as_if_it_had_not_been(tokens, tmp_path, optimizer):
    chosen = recipe(optimizer=optimizer)
    whole = Trainer(chosen, tokens, tmp_path / 'whole')
    whole.run()
    cut = Trainer(chosen, tokens, tmp_path / 'cut')
    cut.run(until=0)  # nothing yet
    while cut.step < 4:
        cut.train_step()
        cut.step += 1
    cut.save()
    again = Trainer(chosen, tokens, tmp_path / 'cut')
    assert again.step == 4
    again.run()
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(again)[name]), name
        assert torch.equal(whole.average[name], again.average[name]), name


def test_another_recipe_does_not_continue_it(tokens, tmp_path):
    Trainer(recipe(), tokens, tmp_path).save()
    with pytest.raises(ValueError, match='trained with another lr'):
        Trainer(recipe(lr=0.5), tokens, tmp_path)
    Trainer(recipe(save_every=3), tokens, tmp_path)


def test_validation_uses_episodes_that_are_not_trained_on(tokens, tmp_path):
    split = Trainer(recipe(), tokens, tmp_path).split
    assert len(split.validation) == 24
    assert not set(tokens.episode[split.train].tolist()) & set(tokens.episode[split.validation].tolist())


def test_an_epoch_sees_every_row_once(tokens, tmp_path):
    trainer = Trainer(recipe(batch=24), tokens, tmp_path)
    seen = []
    for trainer.step in range(3):
        seen += trainer._rows().tolist()
    assert sorted(seen) == sorted(trainer.split.train.tolist())


def test_the_checkpoint_is_one_that_the_policy_loads(tokens_folder, tokens, tmp_path):
    folder = train(recipe(), tokens_folder, tmp_path, threads=1)
    loaded = loading.load(folder, LoadOptions(threads=1))
    assert loaded.config.trained and loaded.config.name == 'nano'
    trainer = Trainer(recipe(), tokens, tmp_path)
    state = loaded.network.state_dict()
    for name, value in trainer.averaged().items():
        assert torch.equal(state[name], value)
    images = {name: np.zeros((32, 32, 3), np.uint8) for name in ('front', 'wrist')}
    observation = Observation(0, images, np.array([0, 0, 0, -1, 0, 1.0, 0]), np.zeros(7), 0.04, 'press the red button')
    assert loaded.act(observation).chunk.positions.shape == (4, 7)
    content = json.loads((folder / 'config.json').read_text())
    assert (content['plan_tokens'], 'plan_steps' in content) == (32, False)  # those of the recipe
    assert json.loads((folder / 'training.json').read_text())['step'] == 8
    header = (tmp_path / 'log.csv').read_text().splitlines()
    assert len(header) == 1 + 4 and 'val_action_loss' in header[0]


def test_structured_tables_fold_into_plain_ones(tokens, tmp_path, config):
    trainer = Trainer(recipe(), tokens, tmp_path)
    network = trainer.network.model['transformer']
    folded = structure.fold({n: p.detach() for n, p in trainer.network.named_parameters()}, config.vocabulary)
    assert torch.equal(folded['model.transformer.wte.weight'], network.wte.weight.detach())
    assert torch.equal(folded['model.transformer.ff_out.weight'], network.ff_out.weight.detach())
    assert not any('parametrizations' in name for name in folded)
    plain = Trainer(recipe(structured_tables=False), tokens, tmp_path / 'plain')
    assert set(plain.averaged()) == set(folded)


def test_neighbouring_bins_and_codes_have_similar_features():
    v = Vocabulary.small(600, codes=16, bins=512)
    rows = structure.features(v)
    assert not rows[: v.image_offset].any()
    bins = torch.nn.functional.normalize(rows[v.bins_offset :], dim=1)
    assert bins[10] @ bins[11] > 0.9 > bins[10] @ bins[300]
    codes = rows[v.image_offset : v.bins_offset]
    assert codes[5] @ codes[4] == 2 and codes[5] @ codes[10] == -4  # one bit, four bits of four differ


def test_a_gradient_that_is_not_finite_stops_the_run(tokens, tmp_path):
    trainer = Trainer(recipe(), tokens, tmp_path)
    with torch.no_grad():
        next(trainer.network.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match='not finite'):
        for _ in range(8):
            trainer.train_step()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'lrr': 1.0}, 'unknown field lrr'),
        ({'batch': '7'}, 'batch must be int'),
        ({'stages': []}, 'at least one stage'),
        ({'stages': [{'steps': 5, 'action': 0.0, 'text': 0.0, 'image': 0.0}]}, 'at least one weight'),
        ({'masking': {'prefixes': 1.0}}, 'unknown field masking.prefixes'),
        ({'text_batch': 17}, 'part of batch'),
    ],
)
def test_what_is_wrong_with_a_recipe_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        recipe(**change)


def test_recipes_of_earlier_versions_are_read():
    stage = {'steps': 2, 'action': 1.0, 'text': 0.1, 'image': 0.1}
    old = {'stages': [stage | {'glances': 0.25, 'answers': 0.5}], 'masking': {'points_weight': 3.0}}
    new = {
        'stages': [stage | {'static_scenes': 0.25, 'labelled_scenes': 0.5}],
        'masking': {'grounding_weight': 3.0},
    }
    assert Recipe.from_dict(old) == Recipe.from_dict(new)


def test_lr_warms_up_and_falls(tokens, tmp_path):
    trainer = Trainer(replace(recipe(), lr=1.0), tokens, tmp_path)
    rates = [trainer.lr(i) for i in range(9)]
    assert rates[:2] == [0.5, 1.0] and rates[1:] == sorted(rates[1:], reverse=True)
    assert abs(rates[8] - 0.05) < 1e-9


@pytest.mark.parametrize(
    'path', sorted(Path(recipe_module.__file__).parent.glob('recipes/*.yaml')), ids=lambda p: p.stem
)
def test_the_recipes_that_are_shipped_are_right(path):
    assert Recipe.load(path).steps > 1000


def test_curves_have_a_line_per_modality_and_split(tokens, tmp_path, monkeypatch):
    labels = []
    monkeypatch.setattr(Axes, 'plot', lambda axes, *a, label, **k: labels.append((axes.get_gridspec().nrows, label)))
    Trainer(recipe(), tokens, tmp_path).run()
    names = ['action', 'action, validation', 'text', 'text, validation', 'image', 'image, validation']
    assert [label for _, label in labels[-12:]] == names * 2
    assert (tmp_path / 'loss.png').stat().st_size > 1000
    (tmp_path / 'log.csv').write_text('step,action_loss\n')
    with pytest.raises(ValueError, match='no step to plot'):
        plot_log(tmp_path / 'log.csv', tmp_path / 'loss.png')
