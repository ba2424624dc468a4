"""Loads a released RynnVLA-002 folder. It needs, beside the released config.json, tokenizer.json and shards:

- `robot.json`, see robot.RobotFile: which constants, which cameras;
- `vqgan/model.safetensors`, the Chameleon image tokenizer, and `vqgan/config.json` with the content of its `vqgan.yaml`
  (`ddconfig`, `n_embed`, `embed_dim`). `vqgan.ckpt` is a pickle, which is not read here: `./vla convert-vqgan` makes
  both files of it, see convert.py.
"""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vla_model.checkpoints import checkpoint
from vla_model.checkpoints.checkpoint import Stored
from vla_model.checkpoints.memory import MemoryPlan
from vla_model.checkpoints.memory import check as check_memory
from vla_model.config import Quantization, read, read_json
from vla_model.engines.subject import device_of, set_threads
from vla_model.families.rynnvla import engine, memory, preprocess
from vla_model.families.rynnvla.action_head import HEADS, SHRINK, ActionHead
from vla_model.families.rynnvla.policy import RynnVlaPolicy
from vla_model.families.rynnvla.robot import FILE, RobotFile
from vla_model.families.rynnvla.tokens import VOCABULARY
from vla_model.families.rynnvla.vqgan import Vqgan, VqganConfig
from vla_model.families.rynnvla.weights import head_shape, network_config, released_name, vqgan_config
from vla_model.loading import PLAIN, LoadOptions
from vla_model.policy import IMAGE, WORLD, PolicyInfo
from vla_model.tokens.text_tokenizer import TextTokenizer

VQGAN, HEAD = 'vqgan', 'action_head.'
CONVERT = './vla convert-vqgan CKPT FOLDER makes its files of vqgan.ckpt and vqgan.yaml'
_POSITIONS = 4096  # of the reference's configuration, where config.json has none
_IGNORED = ('loss.', 'model.vqmodel.')  # a discriminator; the encoder half of the image tokenizer, which is not asked
_log = logging.getLogger(__name__)
_DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}


def describe(reference: str | Path, options: LoadOptions = PLAIN) -> PolicyInfo:
    """What the policy would be, without its weights: model_id is the folder's name alone."""
    folder = Path(reference)
    content, robot = files(folder)
    return _info(folder.name, content, robot)


def load(reference: str | Path, options: LoadOptions = PLAIN) -> RynnVlaPolicy:
    """The policy of a released folder. Raises FileNotFoundError or ValueError naming file, tensor or field."""
    folder, device = Path(reference), device_of(options.device)
    if options.kv_reuse != 1 or options.act_steps != 1:
        raise ValueError('RynnVLA-002 runs with act_steps 1 and kv_reuse 1')
    precision = options.dtype if options.dtype != 'auto' else 'bfloat16' if device.type == 'cuda' else 'float32'
    if precision not in _DTYPES:
        raise ValueError(f"dtype must be 'auto' or one of {list(_DTYPES)}, got {options.dtype!r}")
    engine.check(options.engine, device.type, precision)
    set_threads(options.threads)
    content, robot = files(folder)
    text = TextTokenizer.load(folder / 'tokenizer.json')
    place = Path(options.image_tokenizer) if options.image_tokenizer is not None else folder / VQGAN
    horizon, dims = head_shape(content)
    quantization = stored_quantization(content)
    network = memory.make_network(content, robot, quantization)
    with torch.device('meta'):
        head = ActionHead(network.config.d_model, horizon, dims)
    stored = stored_tensors(folder)
    if not any(name.startswith(HEAD) for name in stored):
        raise ValueError(f'{folder} has no tensors {HEAD}*: a checkpoint without an action head is not of RynnVLA-002')
    if not robot.needs_logits:
        stored = {name: s for name, s in stored.items() if not name.startswith('lm_head.')}
    dtype = _DTYPES[precision]
    needed = memory.plan(content, robot, read_vqgan_config(place), quantization, dtype, device.type)
    _log.info('memory: %s', needed)
    check_memory(needed, device)
    of_head = {name: s for name, s in stored.items() if name.startswith(HEAD)}
    backbone = {name: s for name, s in stored.items() if name not in of_head}
    vqgan, digests = load_vqgan(place, device)
    digests |= checkpoint.load_into(network, backbone, device, dtype, folder, released_name)
    digests |= checkpoint.load_into(head, of_head, device, torch.float32, folder, (HEAD + '{}').format)
    text_of = '\n'.join([str(content), str(robot), *(f'{name} {digests[name]}' for name in sorted(digests))])
    model_id = f'{folder.name}-{hashlib.sha256(text_of.encode()).hexdigest()[:12]}'
    positions = content.get('max_position_embeddings') or _POSITIONS
    return RynnVlaPolicy(_info(model_id, content, robot), robot, text, network, head, vqgan, positions, options.engine)


def load_vqgan(place: Path, device: torch.device) -> tuple[Vqgan, dict[str, str]]:
    """Return the image tokenizer in `place`, in float32, and the digests of its tensors."""
    with torch.device('meta'):
        vqgan = Vqgan(read_vqgan_config(place))
    return vqgan, checkpoint.load_into(vqgan, stored_tensors(place), device, torch.float32, place)


def read_vqgan_config(place: Path) -> VqganConfig:
    """Return the shape of the image tokenizer in a folder, which has its weights. Errors name the remedy."""
    if not any(place.glob('*.safetensors')):
        raise FileNotFoundError(f'{place} has no *.safetensors of the image tokenizer: {CONVERT}')
    return _read(place / 'config.json', vqgan_config)


def memory_plan(folder: Path, dtype: torch.dtype, device: str) -> MemoryPlan:
    """Return the memory of a folder's policy. Raises FileNotFoundError or ValueError naming a file or field."""
    content, robot = files(folder)
    image = read_vqgan_config(folder / VQGAN)
    return memory.plan(content, robot, image, stored_quantization(content), dtype, device)


def stored_quantization(content: Mapping[str, Any]) -> Quantization | None:
    """Return how the weights of a folder that `./vla quantize` wrote are stored; None for another one."""
    found = content.get('quantization')
    return None if found is None else read(Quantization, dict(found), 'quantization.')


def _info(model_id: str, content: Mapping[str, Any], robot: RobotFile) -> PolicyInfo:
    horizon, dims = head_shape(content)
    kind = robot.kind
    if len(kind.action.low) != dims:
        raise ValueError(f'{FILE}: constants {robot.constants!r} are for {len(kind.action.low)} dimensions, not {dims}')
    return PolicyInfo(
        model_id, True, robot.cameras, kind.dof, horizon, robot.dt, gripper=True, name='rynnvla-002',
        action_space=kind.action_space, state_dim=len(kind.state.low), action_dim=dims,
        outputs=frozenset({IMAGE, WORLD} if robot.world else ()), picture_size=preprocess.TRAINED,
        history=robot.dt if robot.history > 1 else 0.0, needs_tool=kind.tool,
    )  # fmt: skip


def files(folder: Path) -> tuple[dict[str, Any], RobotFile]:
    """Return config.json and robot.json of a folder. Raises FileNotFoundError or ValueError naming file and field."""
    checkpoint.check_folder(folder)
    content = _read(folder / 'config.json', _checked)
    path = folder / FILE
    if not path.is_file():
        raise FileNotFoundError(f'{path} is missing: a released folder does not know its robot, see {__name__}')
    return content, _read(path, lambda found: read(RobotFile, dict(found), '', exact=True))


def _checked(content: dict[str, Any]) -> dict[str, Any]:
    """Return a config.json that a policy can be made of. Raises ValueError naming a field."""
    config, _ = network_config(content), head_shape(content)
    if config.vocab_size != VOCABULARY:
        raise ValueError(f'vocab_size is {config.vocab_size}, the vocabulary of Chameleon has {VOCABULARY} ids')
    if config.d_model % (SHRINK * HEADS):
        raise ValueError(f'hidden_size {config.d_model} must be a multiple of {SHRINK * HEADS}, for the action head')
    return content


def _read(path: Path, make: Any) -> Any:
    """Return what `make` makes of a JSON file. Errors name the file."""
    if not path.is_file():
        remedy = CONVERT if path.parent.name == VQGAN else f'see {__name__}'
        raise FileNotFoundError(f'{path} is missing: {remedy}')
    try:
        return make(read_json(path))
    except KeyError as error:
        raise ValueError(f'{path}: field {error} is missing') from None
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from None


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Return the tensors of a folder that are used, by their released names."""
    return {name: s for name, s in checkpoint.list_tensors(folder).items() if not name.startswith(_IGNORED)}
