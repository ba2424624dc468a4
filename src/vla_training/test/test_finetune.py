"""Runs that begin with a checkpoint: whole, and with LoRA."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from vla_model.checkpoints import checkpoint
from vla_model.families.mmact import loading
from vla_model.loading import LoadOptions
from vla_model.network import Network
from vla_training.data import shards
from vla_training.train import initial, lora, run_state
from vla_training.train.distributed import World
from vla_training.train.recipe import Recipe
from vla_training.train.trainer import Trainer, train

CPU = World(torch.device('cpu'))
LORA = {'rank': 4, 'alpha': 8.0}


@pytest.fixture(scope='session')
def base(tokens_folder, tmp_path_factory):
    """A checkpoint that a few steps made."""
    return train(recipe_of({'network': {'d_model': 32, 'n_layers': 2, 'n_heads': 2, 'mlp_hidden_size': 64}}),
                 tokens_folder, tmp_path_factory.mktemp('base'), threads=1)  # fmt: skip


def recipe_of(changes) -> Recipe:
    content = {
        'stages': [{'steps': 6, 'action': 1.0, 'text': 0.05, 'image': 0.05}],
        'masking': {'plan_tokens': 32, 'state_noise': 0.0, 'label_sigma': 1.0},
        'batch': 16, 'text_batch': 4, 'image_batch': 4, 'warmup': 2, 'lr': 3e-3, 'log_every': 2, 'save_every': 3,
        'amp': False, 'validation': 0.25, 'ema': 0.5,
    }  # fmt: skip
    return Recipe.from_dict(content | changes)


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize('adapted', [{}, LORA])
def test_a_run_begins_with_the_weights_of_the_checkpoint(base, tokens, tmp_path, adapted):
    trainer = Trainer(recipe_of({'init': str(base), 'lora': adapted}), tokens, tmp_path)
    assert same(trainer.averaged(), load_file(base / 'model.safetensors'))
    trainer.run()
    assert not same(trainer.averaged(), load_file(base / 'model.safetensors'))


def test_lora_trains_little_and_leaves_the_rest_as_it_was(base, tokens, tmp_path):
    v = tokens.config.vocabulary
    trainer = Trainer(
        recipe_of({'init': str(base), 'lora': LORA | {'targets': ['q_proj', 'ff_out']}}), tokens, tmp_path
    )
    before = load_file(base / 'model.safetensors')
    assert {n.rpartition('.')[2] for n in trainer.trained} == {'lora_a', 'lora_b', 'rows'}
    trainer.run()
    after = trainer.averaged()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    tables = {'model.transformer.wte.weight', 'model.transformer.ff_out.weight'}
    blocks = {f'model.transformer.blocks.{i}.{n}.weight' for i in range(2) for n in ('q_proj', 'ff_out')}
    assert changed == tables | blocks
    assert all(torch.equal(before[n][: v.bins_offset], after[n][: v.bins_offset]) for n in tables)
    delta = after['model.transformer.blocks.0.q_proj.weight'] - before['model.transformer.blocks.0.q_proj.weight']
    assert torch.linalg.matrix_rank(delta, rtol=1e-3) <= 4
    saved = {key.partition('#')[0] for path in tmp_path.glob('step-*/*.safetensors') for key in load_file(path)}
    assert all(name.endswith(('lora_a', 'lora_b', 'rows')) for name in saved)


def test_merged_weights_compute_what_was_trained(base, tokens, tmp_path):
    trainer = Trainer(recipe_of({'init': str(base), 'lora': LORA, 'ema': 0.0}), tokens, tmp_path)
    trainer.run()
    plain = Network(trainer.network.config)
    plain.load_state_dict(trainer.averaged())
    batch = trainer.objective.draw('text', torch.arange(8), torch.Generator().manual_seed(0))
    one, other = (trainer.objective.loss(n.eval(), batch)[0] for n in (trainer.network, plain))
    assert torch.allclose(one, other, atol=1e-5)


def test_a_run_with_lora_that_was_cut_continues(base, tokens, tmp_path):
    recipe = recipe_of({'init': str(base), 'lora': LORA | {'dropout': 0.1}})
    whole = Trainer(recipe, tokens, tmp_path / 'whole')
    whole.run()
    cut = Trainer(recipe, tokens, tmp_path / 'cut')
    while cut.step < 3:
        cut.train_step()
        cut.step += 1
    cut.save()
    again = Trainer(recipe, tokens, tmp_path / 'cut')
    again.run()
    assert same(whole.averaged(), again.averaged())


def test_another_checkpoint_of_the_same_shape_is_not_continued(base, tokens, tmp_path):
    Trainer(recipe_of({'init': str(base), 'lora': LORA}), tokens, tmp_path / 'run').save()
    loaded = loading.load(base, LoadOptions(threads=1))
    with torch.no_grad():
        for p in loaded.network.parameters():
            p.mul_(1.01)
    loading.save(loaded, tmp_path / 'other')
    with pytest.raises(ValueError, match='another initial checkpoint'):
        Trainer(recipe_of({'init': str(tmp_path / 'other'), 'lora': LORA}), tokens, tmp_path / 'run')
    (tmp_path / 'moved').symlink_to(base)  # the place does not count
    Trainer(recipe_of({'init': str(tmp_path / 'moved'), 'lora': LORA}), tokens, tmp_path / 'run')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda c: replace(c, robot=replace(c.robot, horizon=5)), 'robot.horizon is 5, of the checkpoint 4'),
        (lambda c: replace(c, robot=replace(c.robot, dt=0.05)), 'robot.dt'),
        (lambda c: replace(c, image_tokenizer=replace(c.image_tokenizer, resolution=64)), 'image_tokenizer.resolution'),
    ],
)
def test_tokens_for_another_model_are_refused(base, tokens, tmp_path, change, message):
    other = replace(tokens, config=change(tokens.config))
    with pytest.raises(ValueError, match=f'{message}.*tokenize --like'):
        initial.make(recipe_of({'init': str(base)}), other, CPU)


def test_weights_are_exported_in_half_precision_and_in_files(base, tokens_folder, tmp_path):
    recipe = recipe_of({'init': str(base), 'lora': LORA, 'amp': True, 'dtype': 'bfloat16', 'shard_bytes': 20_000})
    folder = train(recipe, tokens_folder, tmp_path, threads=1)
    stored = checkpoint.list_tensors(folder)
    assert len({s.path for s in stored.values()}) > 3
    loaded = loading.load(folder, LoadOptions(threads=1))
    assert loaded.config.trained
    shape = stored['model.transformer.wte.weight'].path
    assert load_file(shape)['model.transformer.wte.weight'].dtype == torch.bfloat16


def test_recomputing_changes_nothing(base, tokens, tmp_path):
    found = []
    for i, recompute in enumerate((False, True)):
        trainer = Trainer(recipe_of({'init': str(base), 'recompute': recompute}), tokens, tmp_path / str(i))
        trainer.train_step()
        found.append(trainer.averaged())
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*(f.values() for f in found), strict=True))


def test_a_checkpoint_written_before_a_field_was_there_is_continued(tokens, tmp_path):
    recipe = recipe_of({'network': {'d_model': 32, 'n_layers': 2, 'n_heads': 2, 'mlp_hidden_size': 64}})
    path = Trainer(recipe, tokens, tmp_path).save() / 'training.json'
    content = json.loads(path.read_text())
    for name in ('init', 'lora', 'recompute', 'piece_bytes', 'dtype', 'shard_bytes'):
        del content['recipe'][name]
    del content['base']
    path.write_text(json.dumps(content))
    Trainer(recipe, tokens, tmp_path)
    path.write_text('{"step": 3}')
    with pytest.raises(ValueError, match='is damaged'):
        Trainer(recipe, tokens, tmp_path)


def test_a_tensor_that_a_run_lacks_is_named(base, tokens, tmp_path):
    recipe = recipe_of({'init': str(base), 'ema': 0.0})
    trainer = Trainer(recipe, tokens, tmp_path)
    folder = trainer.save()
    (folder / 'state-00000.safetensors').unlink()
    with pytest.raises(ValueError, match=r'lacks weight\.model\.transformer'):
        run_state.restore(folder, trainer.trained, trainer.average, trainer.optimizers)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'lora': {'rank': 4}}, 'name its folder in init'),
        ({'init': 'x', 'lora': {'rank': 4, 'targets': ['wte']}}, 'lora.targets has wte'),
        ({'init': 'x', 'lora': {'rank': -1}}, 'rank 0 or more'),
        ({'init': 'x', 'network': {'d_model': 32}}, 'remove network'),
        ({'dtype': 'float16'}, 'dtype must be'),
    ],
)
def test_what_is_wrong_with_a_recipe_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        recipe_of(change)


def test_first_numbers_of_lora_do_not_depend_on_anything_else():
    a = lora.first('model.transformer.blocks.0.q_proj.lora_a', torch.Size((4, 1000)), 0)
    assert abs(float(a.std()) - 1000**-0.5) < 2e-3
    assert torch.equal(a, lora.first('model.transformer.blocks.0.q_proj.lora_a', torch.Size((4, 1000)), 0))
    assert not torch.equal(a, lora.first('model.transformer.blocks.1.q_proj.lora_a', torch.Size((4, 1000)), 0))


def test_ids_of_a_large_vocabulary_fit_into_a_shard(tmp_path):
    shards.write_shard(tmp_path / 's', {'text_ids': torch.tensor([126_348, 5])})
    assert load_file(tmp_path / 's')['text_ids'].tolist() == [126_348, 5]
