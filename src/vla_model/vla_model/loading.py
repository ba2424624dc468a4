"""Loads policies of all families from folders, names and URLs. Importing this costs no torch."""

import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol

from vla_model.checkpoints.shipped import KNOWN, model_path
from vla_model.config import read_json
from vla_model.policy import Policy, PolicyInfo

# The loader of each family: a module with the functions of `Loader`. A new family is one more line.
FAMILIES = {  # by the field 'family' of a folder's config.json
    'mmact': 'vla_model.families.mmact.loading',
    'molmoact': 'vla_model.families.molmoact.loading',
    'rynnvla': 'vla_model.families.rynnvla.loading',
}
RELEASED = {'chameleon': 'rynnvla', 'molmoact': 'molmoact'}  # family of a released folder, by the field 'model_type'
SCHEMES = dict.fromkeys(('ws', 'wss', 'act'), 'vla_model.remote.loading')  # by the scheme of a URL
USUAL = 'mmact'  # the family of checkpoints without that field


@dataclass(frozen=True)
class LoadOptions:
    """Options of loading. Each family refuses the values that it does not support."""

    device: str = 'cpu'  # or cuda
    dtype: str = 'auto'  # precision of the network; auto: bfloat16 on a GPU, float32 on a CPU
    threads: int = 0  # CPU threads of torch in this process; 0: all cores but one
    seed: int = 0  # of random weights
    engine: str = 'eager'  # of the network, one of select.NAMES; auto: the fastest one here that is close to eager
    image_dtype: str = 'float32'  # precision of the image encoder, or auto
    image_engine: str = 'eager'  # of the image encoder, one of image.NAMES
    act_steps: int = 1  # forwards per chunk
    kv_reuse: int = 1  # acts per full forward; the others compute only the tokens that changed
    image_tokenizer: str | Path | None = None  # its folder, where the folder of a released checkpoint lacks it
    action_decoding: str = 'median'  # value taken from the probabilities of a set-point: median or mode
    action_head: str = 'auto'  # source of set-points: discrete or continuous; auto: that of config.json
    gripper: bool = True  # of the arm of 'random-nano'


PLAIN = LoadOptions()


class Loader(Protocol):
    """The module of a family or a scheme."""

    def load(self, reference: str, options: LoadOptions) -> Policy:
        """Return the policy. Raises FileNotFoundError or ValueError naming the fault and the remedy."""

    def describe(self, reference: str, options: LoadOptions) -> PolicyInfo:
        """Return the info of the policy without reading weights. Raises as `load`. Optional where `load` is fast."""


def load(reference: str | Path = '', options: LoadOptions = PLAIN) -> Policy:
    """Return the policy of a reference: a checkpoint folder, a name of `shipped`, or a URL.

    Raises FileNotFoundError or ValueError naming the file, field or option, and the remedy.
    """
    text = model_path(reference)
    return loader(text).load(text, options)


def describe(reference: str | Path = '', options: LoadOptions = PLAIN) -> PolicyInfo:
    """Return the info of a policy without loading it; its model_id may be the name alone. Raises as `load`."""
    text = model_path(reference)
    found = loader(text)
    if hasattr(found, 'describe'):
        return found.describe(text, options)
    policy = found.load(text, options)
    policy.close()
    return policy.info


def loader(reference: str | Path) -> Loader:
    """Return the loader of a reference. Raises ValueError naming an unknown scheme or family."""
    if scheme := scheme_of(reference):
        if scheme not in SCHEMES:
            known = ', '.join(f'{s}:' for s in SCHEMES)
            raise ValueError(f'{reference}: the scheme {scheme}: is not known (known are: {known}); give {KNOWN}')
        return _module(SCHEMES[scheme])
    family = family_of(reference)
    if family not in FAMILIES:
        raise ValueError(f'{reference}: the family {family!r} of its config.json is not known, only {list(FAMILIES)}')
    return _module(FAMILIES[family])


def scheme_of(reference: str | Path) -> str:
    """Return the scheme of a URL; '' for a folder or a name."""
    found = re.match(r'([a-z][a-z0-9+.-]+):', str(reference))
    return found[1] if found and not Path(reference).exists() else ''


def family_of(folder: str | Path) -> str:
    """Return the family that the config.json of a folder names; USUAL where it names none."""
    path = Path(folder) / 'config.json'
    content = read_json(path) if path.is_file() else {}
    return str(content.get('family') or RELEASED.get(content.get('model_type', ''), USUAL))


def _module(name: str) -> Loader:
    return import_module(name)  # type: ignore[return-value]
