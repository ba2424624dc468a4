import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vla_model.checkpoints import checkpoint
from vla_model.families.mmact import loading
from vla_model.loading import LoadOptions
from vla_model.types import Observation


@pytest.fixture(scope='module')
def nano():
    return loading.load('random-nano', LoadOptions(threads=1))


@pytest.fixture(scope='module')
def saved(nano, tmp_path_factory):
    folder = tmp_path_factory.mktemp('checkpoint')
    loading.save(nano, folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / 'copy')


def change_config(folder, change):
    path = folder / 'config.json'
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def change_weights(folder, change):
    path = folder / 'model.safetensors'
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_round_trip(nano, saved):
    again = loading.load(saved)
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (256, 256, 3), dtype=np.uint8) for name in ('front', 'wrist')}
    joints = np.array([0.0, -0.78, 0.0, -2.35, 0.0, 1.57, 0.78])
    observation = Observation(0, images, joints, np.zeros(7), 0.04, 'press the red button')
    assert again.model_id == nano.model_id
    assert again.config == nano.config
    a, b = nano.act(observation).chunk, again.act(observation).chunk
    assert np.array_equal(a.positions, b.positions) and np.array_equal(a.confidence, b.confidence)
    assert sorted(p.name for p in saved.iterdir()) == [
        'config.json',
        'image_tokenizer.safetensors',
        'model.safetensors',
        'tokenizer.json',
    ]


def test_sharded_weights_are_one_model(nano, folder):
    tensors = load_file(folder / 'model.safetensors')
    names = sorted(tensors)
    (folder / 'model.safetensors').unlink()
    save_file({n: tensors[n] for n in names[::2]}, folder / 'model-00001-of-00002.safetensors')
    save_file({n: tensors[n] for n in names[1::2]}, folder / 'model-00002-of-00002.safetensors')
    assert loading.load(folder).model_id == nano.model_id


def test_weights_are_written_in_files_of_at_most_some_size(nano, saved, folder):
    tensors = load_file(folder / 'model.safetensors')
    image = load_file(folder / checkpoint.IMAGE_FILE)
    checkpoint.write(folder, nano.config, nano.text, iter(tensors.items()), image, max_shard_bytes=5_000_000)
    index = json.loads((folder / checkpoint.INDEX).read_text())
    files = sorted(folder.glob('model*.safetensors'))
    assert [f.name for f in files] == sorted(set(index['weight_map'].values())) and len(files) > 3
    assert files[0].name == f'model-00001-of-{len(files):05d}.safetensors'
    largest = max(t.numel() * t.element_size() for t in tensors.values())
    assert all(f.stat().st_size <= max(5_000_000, largest) + 10_000 for f in files)
    assert index['metadata']['total_size'] == sum(t.numel() * t.element_size() for t in tensors.values())
    assert loading.load(folder).model_id == nano.model_id
    checkpoint.write(folder, nano.config, nano.text, tensors, image)  # in one piece again
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in saved.iterdir())
    assert all(p.stat().st_mode & 0o444 == 0o444 for p in folder.iterdir())  # who trains it need not be who runs it


def test_a_changed_weight_changes_the_model_id(nano, folder):
    change_weights(folder, lambda t: t['model.transformer.ln_f.weight'].mul_(1.001))
    assert loading.load(folder).model_id != nano.model_id


def test_no_such_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*nowhere.*'random-nano'"):
        loading.load(tmp_path / 'nowhere')


def test_a_pickle_file(tmp_path):
    path = tmp_path / 'weights.pt'
    torch.save({}, path)
    with pytest.raises(ValueError, match=r'weights.pt is an archive as torch.save writes it, a pickle'):
        loading.load(path)


def test_a_folder_of_pickles(folder):
    for path in folder.glob('*.safetensors'):
        path.rename(path.with_suffix('.bin'))
    with pytest.raises(FileNotFoundError, match='a pickle, which is not read: convert it to safetensors'):
        loading.load(folder)


def test_a_pickle_under_another_name(folder):
    torch.save({'a': torch.zeros(3)}, folder / 'model.safetensors')
    with pytest.raises(ValueError, match=r'model.safetensors is an archive as torch.save writes it'):
        loading.load(folder)


@pytest.mark.parametrize('keep', [4, 1000, -100])
def test_truncated_weights(folder, keep):
    path = folder / 'model.safetensors'
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r'model.safetensors is damaged'):
        loading.load(folder)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda t: t.pop('model.transformer.blocks.1.q_proj.weight'), r'1 missing \(model.*blocks.1.q_proj.weight\)'),
        (lambda t: t.update(extra=torch.zeros(1)), r'1 unexpected \(extra\)'),
        (
            lambda t: t.update({'model.transformer.ln_f.weight': torch.zeros(3)}),
            r'ln_f.weight is \(3,\) .*\(192,\)',
        ),
        (lambda t: t['model.transformer.wte.weight'].fill_(float('nan')), 'wte.weight is not finite'),
    ],
)
def test_wrong_tensors_are_named(folder, change, message):
    change_weights(folder, change)
    with pytest.raises(ValueError, match=message):
        loading.load(folder)


def test_a_tensor_in_two_files(folder):
    shutil.copy(folder / 'model.safetensors', folder / 'other.safetensors')
    with pytest.raises(ValueError, match='is in another file of the folder too'):
        loading.load(folder)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda c: c.pop('n_layers'), 'field n_layers is missing'),
        (lambda c: c['robot'].pop('dt'), r'field robot\.dt is missing'),
        (lambda c: c['vocabulary'].pop('mask'), r'field vocabulary\.mask is missing'),
        (lambda c: c.update(image_tokenizer=[]), 'field image_tokenizer must be dict'),
        (lambda c: c.update(n_heads='four'), "field n_heads must be int, got 'four'"),
        (lambda c: c.update(n_heads=5), 'd_model 192 must be a multiple'),
        (lambda c: c.update(n_heads=0), 'n_heads must be above 0'),
        (lambda c: c.update(vocab_size=5), 'vocab_size is 5, the vocabulary has'),
        (lambda c: c['robot'].update(action_space='joint_torque'), 'must be one of .*joint_delta'),
        (lambda c: c['robot'].update(state_low=[0.0]), 'two different finite ends'),
        (lambda c: c['robot'].update(dof=6), 'need 7 numbers, got 8'),
        (lambda c: c['robot'].update(cameras=['front', 'front']), 'distinct names'),
    ],
)
def test_a_wrong_config_is_named(folder, change, message):
    change_config(folder, change)
    with pytest.raises(ValueError, match=r'config.json: .*' + message):
        loading.load(folder)


def test_a_config_that_is_not_json(folder):
    (folder / 'config.json').write_text('{')
    with pytest.raises(ValueError, match=r'config.json is not JSON'):
        loading.load(folder)


@pytest.mark.parametrize('name', ['config.json', 'tokenizer.json'])
def test_a_missing_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f'{name} is missing'):
        loading.load(folder)


def test_a_damaged_tokenizer(folder):
    (folder / 'tokenizer.json').write_text('{}')
    with pytest.raises(ValueError, match=r'tokenizer.json is not a tokenizer file'):
        loading.load(folder)


def test_a_tokenizer_of_another_length(folder):
    path = folder / 'tokenizer.json'
    content = json.loads(path.read_text())
    content['model']['vocab']['zzzz'] = len(content['model']['vocab'])
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r'tokens, config.json'):
        loading.load(folder)


def test_a_folder_names_its_family_or_is_of_the_usual_one(saved, tmp_path, nano):
    folder = shutil.copytree(saved, tmp_path / 'copy')
    content = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps(content | {'family': 'mmact'}))
    assert loading.load(folder).model_id == nano.model_id
    (folder / 'config.json').write_text(json.dumps(content | {'family': 'other'}))
    with pytest.raises(ValueError, match="of the family 'other': this is for the family 'mmact' alone"):
        loading.load(folder)
