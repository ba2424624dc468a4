"""Training of what a model may learn beside chunks, plans and images: traces, steering, world, depth, two heads."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vla_model import loading
from vla_model.config import read_json
from vla_model.loading import LoadOptions
from vla_model.policy import DEPTH, TRACE, WORLD
from vla_model.tokens.depth_tokenizer import DepthTokenizer, DepthTokenizerConfig, save_depth_tokenizer
from vla_training.data import shards, traces
from vla_training.data.shards import LEVELS, LINE, NOWHERE
from vla_training.train import labels
from vla_training.train.masking import Masking
from vla_training.train.objective import Objective
from vla_training.train.recipe import Recipe
from vla_training.train.target_model import OUTPUTS, extended
from vla_training.train.trainer import Trainer, train

CPU = torch.device('cpu')
CLEAN = Masking(state_noise=0, code_drop=0, code_flip=0, plan_tokens=32, prefix=0.0)
VAGUE, RED = 3, 4  # rows of the texts that `extended_folder` adds


@pytest.fixture(scope='module')
def extended_folder(tokens_folder, config, tmp_path_factory):
    """The tokens of conftest with all labels: the line of a frame begins at its row, its depth code is its row."""
    folder = tmp_path_factory.mktemp('extended')
    shutil.copytree(tokens_folder, folder, dirs_exist_ok=True)
    made = extended(config, OUTPUTS)
    (folder / 'config.json').write_text(made.to_json())
    tokenizer = DepthTokenizer(DepthTokenizerConfig(side=80, width=4, channels=2))
    save_depth_tokenizer(tokenizer, folder / 'depth_tokenizer.safetensors')
    rng, text = np.random.default_rng(1), shards.TextTokenizer.load(folder / 'tokenizer.json')
    more = [text.encode(t) for t in ('press a button', 'press the green button')]
    for path in sorted(folder.glob('shard-*')):
        shard = load_file(path)
        n = len(shard['codes'])
        row = torch.arange(n)
        line = torch.from_numpy(np.sort(rng.integers(0, 64, (n, LINE, 2)), 1))
        line[::5] = NOWHERE
        instruction = torch.where(row // 12 % 2 == 0, torch.where(row % 2 == 0, 0, RED), 1)
        shard |= {
            'exact': torch.from_numpy(rng.integers(0, LEVELS, (n, 4, 8))),
            'sent': torch.from_numpy(rng.integers(0, LEVELS, (n, 4, 8))),
            'ahead': torch.where((row % 12 < 8)[:, None], row[:, None] + torch.arange(1, 5), -1),
            'trace': line,
            'drawn': line,
            'lined': torch.from_numpy(rng.integers(0, 16, (n, 4))),
            'vague': torch.where(row // 12 % 2 == 0, VAGUE, -1),
            'depth': row[:, None].expand(-1, 100),
            'instruction': instruction,
            'text_ids': torch.cat((shard['text_ids'], torch.tensor([i for ids in more for i in ids]))),
            'text_ends': torch.cat(
                (shard['text_ends'], shard['text_ends'][-1] + torch.tensor([len(i) for i in more]).cumsum(0))
            ),
        }
        path.unlink()
        shards.write_shard(path, shard)
    return folder


@pytest.fixture(scope='module')
def extended_tokens(extended_folder):
    return shards.read(extended_folder)


def drawn(tokens, mode, rows, masking=CLEAN):
    objective = Objective(tokens, masking, CPU)
    return objective, objective.draw(mode, torch.tensor(rows), torch.Generator().manual_seed(0))


def test_older_shards_have_unknown_labels(tokens, extended_tokens):
    assert (tokens.trace == -1).all() and (tokens.ahead == -1).all() and (tokens.vague == -1).all()
    assert extended_tokens.ahead[48, 0] == 49  # rows count over all shards
    assert extended_tokens.vague.max() == 2 * 5 - 2  # texts, too


def test_images_after_given_actions_show_the_actions_up_to_a_step(extended_tokens):
    t, v = extended_tokens, extended_tokens.config.vocabulary
    objective, batch = drawn(
        t, 'world', [0, 1, 8, 50], replace(CLEAN, world_whole=1.0, world_end=0.0, world_state_noise=0.0)
    )
    assert len(batch) == 3  # the chunk of row 8 ends behind its episode
    start, length = objective.prompts['world'].slots['actions']
    given = batch.ids[:, int(start[0]) : int(start[0]) + length].view(3, 4, 8)
    known = given != v.mask
    after = known[:, :, 0].sum(1)
    assert (after >= 1).all() and (known == (torch.arange(4) < after[:, None])[..., None]).all()
    first, size = objective.prompts['world'].slots['state']
    for i, row in enumerate((0, 1, 50)):
        reached = t.state[t.ahead[row, int(after[i]) - 1]] + v.bins_offset  # the state is that after the actions
        assert torch.equal(batch.ids[i, int(first[0]) : int(first[0]) + size], reached.long())
        expected = t.codes[t.ahead[row, int(after[i]) - 1]].flatten()
        assert torch.equal(batch.label[i], expected.long())
        bins = (t.sent[row].float() / LEVELS * (v.bins - 1)).round().long() + v.bins_offset
        assert torch.equal(given[i][: int(after[i])], bins[: int(after[i])])
    changed = batch.label != torch.stack([t.codes[row].flatten() for row in (0, 1, 50)])
    weights = batch.weight[changed].unique()
    assert len(weights) == 1 and (batch.weight[~changed] < weights).all()


def test_a_trace_in_the_prompt_is_near_that_of_the_label(extended_tokens):
    t, v = extended_tokens, extended_tokens.config.vocabulary
    rows = [i for i in range(1, 11) if i % 5]
    objective, batch = drawn(t, 'steer', [0, *rows])
    assert len(batch) == len(rows)  # row 0 has no trace
    prompts = objective.prompts['steer']
    start, length = prompts.slots['trace']  # all prompts end at the same place, and so do their traces
    first = int(start[0]) - (prompts.ids.shape[1] - batch.ids.shape[1])
    trace = batch.ids[:, first : first + length].view(-1, 5, 2) - v.bins_offset
    assert ((trace >= 0) & (trace < v.bins)).all()
    ends = t.trace[rows][:, -1]
    assert (trace[:, -1] - ends).abs().float().mean() < 0.05 * v.bins


def test_words_beside_a_trace_may_be_vague_or_name_another_object(extended_tokens):
    t = extended_tokens
    rows = [i for i in range(1, 48) if i % 5 and t.vague[i] >= 0 and i % 2 == 0] * 8
    for share, expected in (
        ({'steered_vague': 1.0, 'steered_contrary': 0.0}, {VAGUE}),
        ({'steered_vague': 0.0, 'steered_contrary': 1.0}, {RED}),
        ({'steered_vague': 0.0, 'steered_contrary': 0.0}, {0}),
    ):
        objective = Objective(t, replace(CLEAN, **share), CPU)
        text, named = objective._steered_text(torch.tensor(rows), torch.Generator().manual_seed(0))
        used = torch.cat((t.instruction.unique(), t.vague[t.vague >= 0].unique())).unique()
        found = [t.text.decode(t.texts[used[i]]).strip() for i in text.tolist()]
        wanted = {t.text.decode(t.texts[i]).strip() for i in expected}
        # Another object is drawn from 16 rows: now and then none of them fits.
        assert np.mean([f in wanted for f in found]) > 0.8
        assert named.float().mean() > 0.8 if expected == {0} else named.float().mean() < 0.2
    # Objects of a task that has no vague sentence are never exchanged.
    other = torch.tensor([i for i in range(48) if t.vague[i] < 0])
    text, named = Objective(t, replace(CLEAN, steered_vague=0.0, steered_contrary=1.0), CPU)._steered_text(
        other, torch.Generator().manual_seed(0)
    )
    assert named.all()


def test_a_line_is_on_the_first_view_alone(extended_tokens):
    t, v = extended_tokens, extended_tokens.config.vocabulary
    objective, batch = drawn(t, 'line', [1, 2], replace(CLEAN, steered_vague=0.0, steered_contrary=0.0))
    views = objective.prompts['line'].views[objective.instruction[[1, 2]]]
    cut = objective.prompts['line'].ids.shape[1] - batch.ids.shape[1]
    for i, row in enumerate((1, 2)):
        first, second = (batch.ids[i, int(p) - cut : int(p) - cut + 4] - v.image_offset for p in views[i])
        assert torch.equal(first, t.lined[row].long()) and torch.equal(second, t.codes[row, 1].long())


def test_the_block_ends_with_the_trace_and_depth_has_codes_of_its_own(extended_tokens):
    t, v = extended_tokens, extended_tokens.config.vocabulary
    _, batch = drawn(t, 'action', [1, 5])
    way = batch.label[:, -10:].view(2, 5, 2)
    assert torch.equal(way[0, 0], t.trace[1, 0].long()) and torch.equal(way[0, -1], t.trace[1, -1].long())
    assert (batch.counted[0, -10:] > 0).all() and (batch.counted[1, -10:] == 0).all()  # row 5 has no trace
    _, batch = drawn(t, 'depth', [7])
    assert (batch.part.start, batch.part.stop) == (v.bins_offset - 128, v.bins_offset)
    assert (batch.label == 7).all()


def test_the_continuous_head_learns_the_numbers_and_may_learn_alone(extended_tokens):
    t = extended_tokens
    _, batch = drawn(t, 'action', [1, 2])
    expected = t.exact[[1, 2]].flatten(1) / LEVELS * 2 - 1
    assert torch.allclose(batch.exact[:, :32], expected, atol=1e-6)
    assert float(batch.exact_weight.sum()) == pytest.approx(10.0)
    assert (batch.exact_weight[:, 32:] == 0).all()
    _, alone = drawn(t, 'action', [1, 2], replace(CLEAN, discrete=0.0))
    assert (alone.weight[:, :32] == 0).all() and (alone.weight[:, 32:] > 0).any()


def recipe(**changes) -> Recipe:
    content = {
        'stages': [{'steps': 4, 'action': 1.0, 'text': 0.0, 'image': 0.0}],
        'masking': {'plan_tokens': 32, 'label_sigma': 1.0},
        'batch': 8, 'text_batch': 2, 'image_batch': 2, 'steer_batch': 2, 'line_batch': 2, 'world_batch': 2,
        'warmup': 1, 'log_every': 2, 'save_every': 4, 'amp': False, 'validation': 0.25, 'ema': 0.5,
    }  # fmt: skip
    return Recipe.from_dict(content | changes)


def test_contexts_of_a_step_are_shared_by_the_ways_to_act():
    stage = {'steps': 1, 'action': 1.0, 'text': 0.1, 'image': 0.0, 'steer': 1.0, 'line': 1.0, 'world': 0.1}
    r = recipe(stages=[stage])
    parts = {mode: r.rows(mode, r.stages[0]) for mode in ('action', 'steer', 'line')}
    assert sorted(i for part in parts.values() for i in part) == list(range(8))
    assert parts['steer'] == [0, 4] and r.rows('world', r.stages[0]) == [0, 1]
    assert recipe().rows('action', recipe().stages[0]) == list(range(8))
    with pytest.raises(ValueError, match='leave no context without a trace'):
        recipe(stages=[stage], steer_batch=8)
    with pytest.raises(ValueError, match='action_layers'):
        recipe(action_head='continuous')


def test_a_checkpoint_grows_by_all_outputs_and_keeps_what_it_knew(tokens_folder, extended_folder, tmp_path):
    network = {'d_model': 32, 'n_layers': 2, 'n_heads': 2, 'mlp_hidden_size': 64}
    base = train(recipe(network=network, structured_tables=False), tokens_folder, tmp_path / 'base', threads=1)
    stage = {
        'steps': 4,
        'action': 1.0,
        'text': 0.1,
        'image': 0.1,
        'steer': 1.0,
        'line': 0.5,
        'world': 0.5,
        'depth': 0.2,
    }
    grown = recipe(init=str(base), stages=[stage], action_layers=1)
    trainer = Trainer(grown, shards.read(extended_folder), tmp_path / 'grown')
    before, v = load_file(base / 'model.safetensors'), trainer.tokens.config.vocabulary
    after = trainer.averaged()
    for name, old in before.items():
        new = after[name]
        if len(new) != len(old):  # a table of the vocabulary: the depth codes are between image codes and bins
            assert len(new) == len(old) + 128
            new = torch.cat((new[: v.depth_offset], new[v.bins_offset :]))
        assert torch.equal(new, old), name
    made = train(grown, extended_folder, tmp_path / 'grown', threads=1)
    content = read_json(made / 'config.json')
    assert (content['world'], content['steering'], content['action_layers']) == (True, 'tokens', 1)
    policy = loading.load(made, LoadOptions(threads=1))
    assert policy.info.outputs >= {TRACE, DEPTH, WORLD} and policy.info.steers
    assert policy.act(policy.example()).disagreement.shape == (4,)
    with pytest.raises(ValueError, match='needs tokens with it'):
        train(replace(grown, init='', action_layers=0), tokens_folder, tmp_path / 'plain', threads=1)


def test_a_trace_ends_where_the_hand_has_something_to_do():
    opening = np.array([0.08, 0.0, *[0.07] * 20, *[0.0] * 15, *[0.07] * 8])
    ends = traces.ends(opening, 0.1)
    assert set(ends[:22]) == {22}  # the first changes are within the time of the start
    assert set(ends[22:37]) == {37} and set(ends[37:]) == {len(opening) - 1}
    assert (ends[:-1] > np.arange(len(opening) - 1)).all()


def test_lines_have_equal_distances_and_drawn_ones_are_near(extended_tokens):
    places = np.column_stack([np.linspace(0.1, 0.9, 40) ** 2, np.linspace(0.2, 0.6, 40)])
    line = traces.line(places)
    gaps = np.linalg.norm(np.diff(line, axis=0), axis=1)
    assert line.shape == (LINE, 2) and gaps.max() < 1.05 * gaps.min()
    assert traces.line(np.full((5, 2), 0.4)) is None
    rng = np.random.default_rng(0)
    for _ in range(20):
        hand = traces.disturbed(line, rng)
        assert hand.shape == (LINE, 2) and np.abs(hand[-1] - line[-1]).max() < 0.05
    assert (labels.drawn(np.full((2, LINE, 2), NOWHERE), 64, rng) == NOWHERE).all()
