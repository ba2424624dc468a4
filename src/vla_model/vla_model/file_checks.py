"""Recognises files and folders that are no checkpoint, and writes the error: what was found, and the remedy."""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

PICKLES = ('.bin', '.pt', '.pth', '.ckpt', '.pkl')
SHARD = re.compile(r'(.+)-(\d+)-of-(\d+)\.safetensors')
_PICKLED = 'a pickle, which can run code when it is read: convert it to safetensors'
# First bytes of a file, and the error text.
_BEGINNINGS = (
    (b'version https://git-lfs', 'a Git LFS pointer, not {what}: run `git lfs pull` where it was cloned'),
    (b'# xet version', 'a pointer of Xet, not {what}: download it with `hf download`'),
    (b'/annex/objects/', 'a pointer of git-annex, not {what}: run `git annex get` where it was cloned'),
    (b'../.git/annex/', 'a pointer of git-annex, not {what}: run `git annex get` where it was cloned'),
    (b'<!DOCTYPE', 'a web page, not {what}: download the file itself, signed in if it asks for that'),
    (b'<!doctype', 'a web page, not {what}: download the file itself, signed in if it asks for that'),
    (b'<html', 'a web page, not {what}: download the file itself, signed in if it asks for that'),
    (b'GGUF', 'a GGUF file, of llama.cpp, not {what}: give the folder of the model that it was made from'),
    (b'PK\x03\x04', f'an archive as torch.save writes it, {_PICKLED}'),
    (b'\x80\x02', _PICKLED),
    (b'\x80\x04', _PICKLED),
)
_MERGE = 'merge it (peft: merge_and_unload, then save_pretrained) and give the folder of the whole model'
# Prefix or infix that a wrapper adds to the names of tensors -> the wrapper.
_WRAPPERS = {
    'module.': 'DistributedDataParallel',
    '_orig_mod.': 'torch.compile',
    '_fsdp_wrapped_module.': 'FSDP',
    '_forward_module.': 'Lightning Fabric',
}
_GIVE = 'give a checkpoint of the suite, or a released one of MM-ACT'
_ORBAX = {'_METADATA', '_CHECKPOINT_METADATA', '_sharding', 'manifest.ocdbt'}
_LEROBOT = ('train_config.json', 'policy_preprocessor.json', 'policy_postprocessor.json')


def check_file(path: Path, what: str, remedy: str) -> None:
    """Raise FileNotFoundError or ValueError where `path` is no readable file, naming its content and the remedy.

    what: the expected content, such as 'the weights'. remedy: of a missing file.
    """
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(
            f'{path} is a link to {path.readlink()}, which is not there: copy the folder with what its links lead to '
            '(cp -rL), or download it with `hf download --local-dir`'
        )
    if not path.is_file():
        raise FileNotFoundError(f'{path} is missing: {remedy}')
    try:
        with path.open('rb') as file:
            head = file.read(32)
    except OSError as error:
        raise ValueError(f'{path} cannot be read ({error.strerror}): let this user read it') from None
    if not head:
        raise ValueError(f'{path} is empty: copy it again')
    for beginning, text in _BEGINNINGS:
        if head.startswith(beginning):
            raise ValueError(f'{path} is {text.format(what=what)}')


def check_shards(paths: Iterable[Path]) -> None:
    """Raise FileNotFoundError naming a missing file of model-00001-of-0000N.safetensors and similar series."""
    there: dict[tuple[Path, str, str], set[int]] = {}
    for path in paths:
        if found := SHARD.fullmatch(path.name):
            there.setdefault((path.parent, found[1], found[3]), set()).add(int(found[2]))
    for (folder, name, count), numbers in there.items():
        for number in range(1, int(count) + 1):
            if number not in numbers:
                missing = folder / f'{name}-{number:0{len(count)}d}-of-{count}.safetensors'
                raise FileNotFoundError(f'{missing} is missing: copy it again')


def explain_file(path: Path) -> str:
    """Return the error text for a file given in place of a checkpoint folder; empty where its type is unknown."""
    suffix = path.suffix.lower()
    if suffix in PICKLES:
        return f'{path} may be {_PICKLED}'
    if suffix == '.gguf':
        return f'{path} is a GGUF file, of llama.cpp: give the folder of the model that it was made from'
    if suffix in ('.zip', '.tar', '.gz', '.tgz', '.zst', '.xz'):
        return f'{path} is an archive: unpack it, and give the folder'
    if suffix in ('.onnx', '.engine', '.plan', '.xml'):
        return f'{path} is an exported network: give the folder of the checkpoint that it was made from'
    if suffix in ('.safetensors', '.json'):
        return f'{path} is a file of a checkpoint: give its folder, {path.parent}'
    return ''


def explain_folder(folder: Path) -> str:
    """Return the error text for a folder without a checkpoint of the suite; empty where its type is unknown."""
    names = {p.name for p in folder.iterdir()}
    config = _json(folder / 'config.json')
    for inner in ('checkpoint', 'pretrained_model'):
        if 'config.json' not in names and (folder / inner / 'config.json').is_file():
            return f'{folder} is the folder of a training run: give {folder / inner}'
    if 'adapter_config.json' in names or any(n.startswith('adapter_model.') for n in names):
        base = _json(folder / 'adapter_config.json').get('base_model_name_or_path')
        return f'{folder} is a LoRA adapter of PEFT for {base or "another model"}, not a whole model: {_MERGE}'
    if names.intersection(_LEROBOT) or ('type' in config and 'input_features' in config):
        kind = f' ({config["type"]})' if 'type' in config else ''
        return f'{folder} is a policy of LeRobot{kind}, which is not loaded: {_GIVE}'
    if names & _ORBAX or (folder / 'params' / '_METADATA').exists():
        return f'{folder} is a JAX checkpoint (Orbax, as openpi writes them), which is not loaded: {_GIVE}'
    if {'refs', 'snapshots'} <= names:
        return f'{folder} is a repository in the cache of Hugging Face: give a folder below {folder / "snapshots"}'
    if any(n.endswith('.gguf') for n in names):
        return f'{folder} holds GGUF files, of llama.cpp: give the folder of the model that they were made from'
    if 'zero_to_fp32.py' in names or any(n.endswith('.distcp') for n in names):
        return f'{folder} holds the shards of a training run: merge them to one checkpoint in safetensors'
    if 'model.safetensors.index.json' not in names and any(n.endswith(('.onnx', '.engine')) for n in names):
        return f'{folder} holds an exported network: give the folder of the checkpoint that it was made from'
    if model := config.get('model_type'):
        made = ', '.join(config.get('architectures') or [str(model)])
        return f'{folder} is a model of Transformers ({made}), which is not loaded: {_GIVE}'
    return ''


def explain_names(expected: Collection[str], found: Collection[str]) -> str:
    """Return the error text for unexpected names of tensors; empty where no wrapper or adapter explains them."""
    if any('.lora_A' in name or '.lora_B' in name for name in found):
        return f'the names of tensors are those of a LoRA adapter that is not merged: {_MERGE}'
    for mark, wrapper in _WRAPPERS.items():
        plain = {name.replace(mark, '') for name in found}
        if mark in ''.join(found) and _explains(expected, plain):
            return f'the names of tensors have {mark!r} of {wrapper}: save the state_dict() of the model that it wraps'
    prefixes = Counter(
        name[:i] for name in found for i in _starts(name) if name[i:] in expected and name not in expected
    )
    if prefixes:
        prefix, _ = prefixes.most_common(1)[0]
        if _explains(expected, {name.removeprefix(prefix) for name in found}):
            if prefix.startswith('base_model.'):
                return f'the names of tensors begin with {prefix!r} of PEFT: {_MERGE}'
            return f'the names of tensors begin with {prefix!r}: save the inner model, or rename them'
    short = Counter(name[:i] for name in expected for i in _starts(name) if name[i:] in found)
    if short:
        prefix, _ = short.most_common(1)[0]
        if _explains({name.removeprefix(prefix) for name in expected}, found):
            return f'the names of tensors lack {prefix!r} at the beginning: save the whole model, or rename them'
    return ''


def _starts(name: str) -> Iterable[int]:
    """Return the positions behind the dots of a name."""
    return (i + 1 for i, c in enumerate(name) if c == '.')


def _explains(expected: Collection[str], names: Collection[str]) -> bool:
    return 10 * len(set(expected) & set(names)) >= 9 * len(expected)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
