"""What stands where a checkpoint should be is named, with what to do: pointers, links, shards, the work of others."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from vla_model.families.mmact import loading
from vla_model.loading import LoadOptions

LFS = f'version https://git-lfs.github.com/spec/v1\noid sha256:{0:064d}\nsize 16123456\n'


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp('saved')
    loading.save(loading.load('random-nano', LoadOptions(threads=1)), folder)
    config = json.loads((folder / 'config.json').read_text())
    config['robot']['normalization'] = 'min_max'  # needs statistics
    return folder, config


@pytest.fixture
def folder(saved, tmp_path):
    """A checkpoint whose files are links into another folder, as in the cache of Hugging Face."""
    for path in saved[0].iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def replace(path, content):
    path.unlink(missing_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


FILES = ['model.safetensors', 'image_tokenizer.safetensors', 'tokenizer.json', 'config.json', 'statistics.json']
NOT_THE_FILE = [
    (LFS, 'is a Git LFS pointer, not the .*: run `git lfs pull`'),
    ('# xet version 0\n', 'is a pointer of Xet, not the .*: download it with `hf download`'),
    ('/annex/objects/SHA256E-s1--0.safetensors\n', 'is a pointer of git-annex, not the .*: run `git annex get`'),
    ('<!DOCTYPE html><html>', 'is a web page, not the .*: download the file itself'),
    ('', 'is empty: copy it again'),
]


@pytest.mark.parametrize(('content', 'message'), NOT_THE_FILE, ids=['lfs', 'xet', 'annex', 'web', 'empty'])
@pytest.mark.parametrize('name', FILES)
def test_what_is_not_the_file_itself_is_named(saved, folder, name, content, message):
    if name == 'statistics.json':
        replace(folder / 'config.json', json.dumps(saved[1]))
    replace(folder / name, content)
    with pytest.raises(ValueError, match=f'{name} {message}'):
        loading.load(folder)


@pytest.mark.parametrize('name', FILES[:4])
def test_a_link_to_nothing_is_named_with_its_target(folder, name):
    (folder / name).unlink()
    (folder / name).symlink_to('../../blobs/0123')
    with pytest.raises(
        FileNotFoundError, match=f'{name} is a link to ../../blobs/0123, which is not there: copy the folder'
    ):
        loading.load(folder)


@pytest.mark.parametrize('indexed', [True, False])
def test_the_shard_that_is_missing_is_named(folder, indexed):
    tensors = load_file(folder / 'model.safetensors')
    names = sorted(tensors)
    save_file({n: tensors[n] for n in names[::2]}, folder / 'model-00001-of-00002.safetensors')
    (folder / 'model.safetensors').unlink()
    if indexed:
        where = {n: f'model-0000{1 + i % 2}-of-00002.safetensors' for i, n in enumerate(names)}
        (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': where}))
    with pytest.raises(FileNotFoundError, match=r'model-00002-of-00002.safetensors is missing: .*copy it again'):
        loading.load(folder)


def test_a_shard_that_is_a_pointer_is_named(folder):
    tensors = load_file(folder / 'model.safetensors')
    (folder / 'model.safetensors').unlink()
    save_file(tensors, folder / 'model-00001-of-00002.safetensors')
    (folder / 'model-00002-of-00002.safetensors').write_text(LFS)
    with pytest.raises(ValueError, match=r'model-00002-of-00002.safetensors is a Git LFS pointer, not the weights'):
        loading.load(folder)


@pytest.mark.parametrize(
    ('rename', 'message'),
    [
        (lambda n: f'module.{n}', "have 'module.' of DistributedDataParallel: save the state_dict"),
        (lambda n: f'_orig_mod.{n}', "have '_orig_mod.' of torch.compile: save the state_dict"),
        (lambda n: n.replace('blocks.', 'blocks._orig_mod.'), "have '_orig_mod.' of torch.compile"),
        (lambda n: f'policy.inner.{n}', "begin with 'policy.inner.': save the inner model, or rename them"),
        (lambda n: f'base_model.model.{n}', "begin with 'base_model.model.' of PEFT: merge it"),
        (lambda n: n.removeprefix('model.'), "lack 'model.' at the beginning"),
        (lambda n: n.replace('q_proj.weight', 'q_proj.lora_A.weight'), 'those of a LoRA adapter that is not merged'),
        (lambda n: f'x{n}', 'weights and config.json are of different models'),
    ],
)
def test_names_that_a_wrapper_changed_are_explained(folder, rename, message):
    tensors = load_file(folder / 'model.safetensors')
    (folder / 'model.safetensors').unlink()
    save_file({rename(n): t for n, t in tensors.items()}, folder / 'model.safetensors')
    with pytest.raises(ValueError, match=message):
        loading.load(folder)


@pytest.mark.parametrize(
    ('files', 'message'),
    [
        ({'adapter_config.json': '{"base_model_name_or_path": "a/b"}', 'adapter_model.safetensors': 'x'},
         'is a LoRA adapter of PEFT for a/b, not a whole model: merge it'),
        ({'config.json': '{"type": "act", "input_features": {}}', 'model.safetensors': 'x'},
         r'is a policy of LeRobot \(act\), which is not loaded'),
        ({'pretrained_model/config.json': '{}', 'training_state/x': 'x'}, 'a training run: give .*/pretrained_model'),
        ({'checkpoint/config.json': '{}', 'log.csv': 'x'}, 'a training run: give .*/checkpoint'),
        ({'params/_METADATA': '{}', 'assets/x': 'x'}, 'is a JAX checkpoint'),
        ({'snapshots/0/config.json': '{}', 'refs/main': '0'}, 'in the cache of Hugging Face: give a folder below'),
        ({'model.gguf': 'GGUF'}, 'holds GGUF files'),
        ({'config.json': '{"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}', 'model.safetensors': 'x'},
         r'is a model of Transformers \(Qwen2ForCausalLM\)'),
        ({'zero_to_fp32.py': 'x'}, 'the shards of a training run'),
        ({'act.onnx': 'x'}, 'holds an exported network'),
        ({'config.json': '{}', 'pytorch_model.bin': 'x'}, 'has no .*safetensors: only pytorch_model.bin, a pickle'),
        ({'notes.txt': 'x'}, 'config.json is missing: give the folder of a checkpoint'),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else '',
)  # fmt: skip
def test_the_folder_of_something_else_is_named(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        loading.load(tmp_path)


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('model.gguf', 'is a GGUF file'),
        ('model.tar.gz', 'is an archive: unpack it'),
        ('model.safetensors', 'is a file of a checkpoint: give its folder'),
        ('model.onnx', 'is an exported network'),
        ('model.pt', 'may be a pickle'),
        ('model', 'is a file: give the folder of a checkpoint'),
    ],
)
def test_a_single_file_is_named(tmp_path, name, message):
    (tmp_path / name).write_text('x')
    with pytest.raises(ValueError, match=message):
        loading.load(tmp_path / name)


def test_a_pickle_in_the_place_of_weights_is_never_read(folder):
    path = folder / 'model.safetensors'
    path.unlink()
    torch.save({'a': torch.zeros(1)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r'model.safetensors is a pickle, which can run code'):
        loading.load(folder)
