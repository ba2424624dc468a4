"""One way to load a policy, whatever it is: a folder, a name, or a URL. Importing this costs no torch."""

import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol

from vla_model.checkpoints.shipped import KNOWN, model_path
from vla_model.config import read_json
from vla_model.policy import Policy, PolicyInfo

# Where the loader of a kind of policy is: a module with the functions of `Loader`. To add one is to add a line.
FAMILIES = {  # by the field 'family' of a folder's config.json
    'mmact': 'vla_model.families.mmact.loading',
    'rynnvla': 'vla_model.families.rynnvla.loading',
}
RELEASED = {'chameleon': 'rynnvla'}  # family of a released folder, by the field 'model_type'
SCHEMES: dict[str, str] = {}  # by the scheme of a URL
USUAL = 'mmact'  # checkpoints without that field are of this family


@dataclass(frozen=True)
class LoadOptions:
    """How a policy is loaded. A family takes what it knows, and refuses what it cannot do."""

    device: str = 'cpu'  # or cuda
    dtype: str = 'auto'  # precision of the network; auto: bfloat16 on a GPU, float32 on a CPU
    threads: int = 0  # CPU threads of torch in this process; 0: all cores but one
    seed: int = 0  # of random weights
    engine: str = 'eager'  # what runs the network, one of engine.NAMES; auto: the fastest here that is close to eager
    image_dtype: str = 'float32'  # precision of the image encoder, or auto
    image_engine: str = 'eager'  # what runs the image encoder, one of image_engine.NAMES
    act_steps: int = 1  # forwards per chunk
    kv_reuse: int = 1  # acts per full forward: above 1, what did not change in between is not computed again
    image_tokenizer: str | Path | None = None  # its folder, where it is not in that of a released checkpoint
    action_decoding: str = 'median'  # how a set-point is read from what is probable: median or mode
    gripper: bool = True  # whether random weights are for an arm with a gripper


PLAIN = LoadOptions()


class Loader(Protocol):
    """The module of a family or a scheme."""

    def load(self, reference: str, options: LoadOptions) -> Policy:
        """The policy. Raises FileNotFoundError or ValueError naming what is wrong, and the remedy."""

    def describe(self, reference: str, options: LoadOptions) -> PolicyInfo:
        """What the policy would be, without its weights; errors as those of `load`. Not needed where that is quick."""


def load(reference: str | Path = '', options: LoadOptions = PLAIN) -> Policy:
    """The policy that a reference stands for: a checkpoint folder, a name of `shipped`, or a URL.

    Raises FileNotFoundError or ValueError naming the file, field or option, and the remedy.
    """
    text = model_path(reference)
    return loader(text).load(text, options)


def describe(reference: str | Path = '', options: LoadOptions = PLAIN) -> PolicyInfo:
    """What the policy would be, without loading it: its model_id may be the name alone. Raises as `load`."""
    text = model_path(reference)
    found = loader(text)
    if hasattr(found, 'describe'):
        return found.describe(text, options)
    policy = found.load(text, options)
    policy.close()
    return policy.info


def loader(reference: str | Path) -> Loader:
    """The loader of what a reference stands for. Raises ValueError naming a scheme or a family that is not known."""
    scheme = re.match(r'([a-z][a-z0-9+.-]+):', str(reference))
    if scheme and not Path(reference).exists():
        if scheme[1] not in SCHEMES:
            known = ', '.join(f'{s}:' for s in SCHEMES) or 'none'
            raise ValueError(f'{reference}: the scheme {scheme[1]}: is not known (known are: {known}); give {KNOWN}')
        return _module(SCHEMES[scheme[1]])
    family = family_of(reference)
    if family not in FAMILIES:
        raise ValueError(f'{reference}: the family {family!r} of its config.json is not known, only {list(FAMILIES)}')
    return _module(FAMILIES[family])


def family_of(folder: str | Path) -> str:
    """The family that a folder's config.json names, or the usual one."""
    path = Path(folder) / 'config.json'
    content = read_json(path) if path.is_file() else {}
    return str(content.get('family') or RELEASED.get(content.get('model_type', ''), USUAL))


def _module(name: str) -> Loader:
    return import_module(name)  # type: ignore[return-value]
