import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from vla_training.data import shards


def test_rows_and_texts_count_over_all_shards(tokens):
    assert len(tokens) == 96
    assert tokens.episode.unique().tolist() == list(range(8))
    assert int(tokens.future.max()) == 95 and (tokens.future >= torch.arange(96)).all()
    assert tokens.text.decode(tokens.texts[tokens.instruction[60]]) == 'put the tomato in the blue bowl'
    assert (tokens.plan[:48:3] == -1).all() and tokens.text.decode(tokens.texts[tokens.plan[49]]).startswith('My task')


def test_a_shard_that_is_too_large_is_refused(tmp_path):
    with pytest.raises(ValueError, match='fewer episodes'):
        shards.write_shard(
            tmp_path / 'shard-00000.safetensors', {'codes': torch.zeros(5_000_000, 2, dtype=torch.int64)}
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda t: t.pop('state'), 'lacks state'),
        (lambda t: t.update(state=t['state'][:, :3].contiguous()), 'another configuration'),
        (lambda t: t.update(episode=t['episode'][:5].clone()), 'different numbers of frames'),
        (lambda t: t.update(future=t['future'] + 1000), 'different numbers of frames'),
    ],
)
def test_what_is_wrong_with_a_shard_is_named(tokens_folder, tmp_path, damage, message):
    folder = shutil.copytree(tokens_folder, tmp_path / 'tokens')
    content = load_file(shards.shard_path(folder, 1))
    damage(content)
    save_file(content, shards.shard_path(folder, 1))
    with pytest.raises(ValueError, match=f'shard-00001.*{message}'):
        shards.read(folder)


def test_a_truncated_shard_is_named(tokens_folder, tmp_path):
    folder = shutil.copytree(tokens_folder, tmp_path / 'tokens')
    path = shards.shard_path(folder, 0)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match=r'shard-00000[.]safetensors is damaged'):
        shards.read(folder)


def test_a_folder_without_shards_is_named(tokens_folder, tmp_path):
    folder = shutil.copytree(tokens_folder, tmp_path / 'tokens', ignore=shutil.ignore_patterns('shard-*'))
    with pytest.raises(FileNotFoundError, match=r'[.]/vla train tokenize'):
        shards.read(folder)


def test_folders_for_one_model_are_read_as_one(tokens_folder, tokens, tmp_path):
    more = shutil.copytree(tokens_folder, tmp_path / 'more')
    both = shards.read(tokens_folder, more)
    assert len(both) == 2 * len(tokens) and both.episode.unique().tolist() == list(range(16))
    assert torch.equal(both.future[len(tokens) :], tokens.future + len(tokens))
    said = [both.text.decode(both.texts[both.instruction[i]]) for i in (60, 60 + len(tokens))]
    assert said[0] == said[1]
    config = json.loads((more / 'config.json').read_text())
    config['robot']['dt'] *= 2
    (more / 'config.json').write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r'more has another robot than .* --keep-statistics'):
        shards.read(tokens_folder, more)
