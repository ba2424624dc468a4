"""Loads a released MolmoAct-7B-D folder. It needs, beside the released config.json, tokenizer.json and shards,
`robot.json`, see robot.RobotFile: which cameras, which statistics, what its actions are. No code of the folder is run.
With the sub-folder DEPTH_FOLDER, predicted depth codes become an image.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vla_model.checkpoints import checkpoint
from vla_model.config import read, read_json
from vla_model.engines.subject import set_threads
from vla_model.families.molmoact import weights
from vla_model.families.molmoact.depth import DepthConfig, DepthTokenizer
from vla_model.families.molmoact.grammar import template
from vla_model.families.molmoact.policy import MolmoActPolicy
from vla_model.families.molmoact.robot import FILE, NUMBERS, RobotFile
from vla_model.families.molmoact.tokens import ADDED, VOCABULARY, ActionStatistics
from vla_model.families.molmoact.vision import VisionConfig, VisionTower
from vla_model.loading import PLAIN, LoadOptions
from vla_model.network import Network
from vla_model.policy import DEPTH, TRACE, PolicyInfo
from vla_model.tokens.text_tokenizer import TextTokenizer

_DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}
DEPTH_FOLDER = 'depth'  # of the depth tokenizer, where the folder has it: *.safetensors of `vae-final.pt`
_POSITIONS = 4096  # of the reference's configuration, where config.json has none


def describe(reference: str | Path, options: LoadOptions = PLAIN) -> PolicyInfo:
    """What the policy would be, without its weights: model_id is the folder's name alone."""
    folder = Path(reference)
    _, robot, _ = _files(folder)
    return _info(folder.name, robot)


def load(reference: str | Path, options: LoadOptions = PLAIN) -> MolmoActPolicy:
    """The policy of a released folder. Raises FileNotFoundError or ValueError naming file, tensor or field."""
    folder, device = Path(reference), torch.device(options.device)
    if options.engine not in ('eager', 'auto') or options.kv_reuse != 1 or options.act_steps != 1:
        raise ValueError('MolmoAct runs with engine eager, act_steps 1 and kv_reuse 1')
    precision = options.dtype if options.dtype != 'auto' else 'bfloat16' if device.type == 'cuda' else 'float32'
    if precision not in _DTYPES:
        raise ValueError(f"dtype must be 'auto' or one of {list(_DTYPES)}, got {options.dtype!r}")
    set_threads(options.threads)
    content, robot, statistics = _files(folder)
    text = TextTokenizer.load(folder / 'tokenizer.json')
    config, vision = _checked(folder / 'config.json', lambda: (weights.network_config(content), _vision(content)))
    with torch.device('meta'):
        network, tower = Network(config), VisionTower(vision)
        shapes = {name: torch.empty(shape) for name, shape in weights.released_shapes(config, ADDED).items()}
        shapes |= {weights.VISION + name: t for name, t in tower.state_dict().items()}
    stored = checkpoint.list_tensors(folder)
    checkpoint.check_names(shapes, stored, folder)
    seen = {name: s for name, s in stored.items() if name.startswith(weights.VISION)}
    rest = {name: s for name, s in stored.items() if name not in seen}
    dtype = _DTYPES[precision]
    digests = checkpoint.load_parts(
        network, rest, device, dtype, folder, {n: shapes[n] for n in rest}, lambda n, t: weights.ours(n, t, config)
    )
    digests |= checkpoint.load_into(tower, seen, device, dtype, folder, (weights.VISION + '{}').format)
    lines = [str(content), str(robot), *(f'{name} {digests[name]}' for name in sorted(digests))]
    model_id = f'{folder.name}-{hashlib.sha256(chr(10).join(lines).encode()).hexdigest()[:12]}'
    positions = content['llm_config'].get('max_position_embeddings') or _POSITIONS
    return MolmoActPolicy(
        _info(model_id, robot), robot, statistics, text, network, tower, positions, _depth_tokenizer(folder)
    )


def _info(model_id: str, robot: RobotFile) -> PolicyInfo:
    wording = robot.template or template(len(robot.cameras), steered=False)
    outputs = frozenset(name for name in (TRACE, DEPTH) if f'{{{name}}}' in wording)
    return PolicyInfo(
        model_id, True, robot.cameras, robot.dof, robot.actions, robot.dt, gripper=True, name='molmoact',
        action_space=robot.action_space, action_dim=NUMBERS, picture_size=robot.side, outputs=outputs,
        predicted=outputs, steers=True,
    )  # fmt: skip


def _depth_tokenizer(folder: Path) -> DepthTokenizer | None:
    """Return the depth tokenizer of the folder's sub-folder, on the CPU; None where there is none."""
    place = folder / DEPTH_FOLDER
    if not place.is_dir():
        return None
    stored = checkpoint.list_tensors(place)
    config = _checked(place, lambda: DepthConfig.of({name: s.shape for name, s in stored.items()}))
    with torch.device('meta'):
        tokenizer = DepthTokenizer(config)
    checkpoint.load_into(tokenizer, stored, torch.device('cpu'), torch.float32, place)
    return tokenizer.eval()


def _vision(content: Mapping[str, Any]) -> VisionConfig:
    c = content['llm_config']
    found = c['vocab_size'], c['additional_vocab_size']
    if found != (VOCABULARY, ADDED):
        raise ValueError(f'vocab_size and additional_vocab_size are {found}, only {(VOCABULARY, ADDED)} are supported')
    return VisionConfig.read(content)


def _files(folder: Path) -> tuple[dict[str, Any], RobotFile, ActionStatistics]:
    checkpoint.check_folder(folder)
    content = read_json(folder / 'config.json')
    path = folder / FILE
    if not path.is_file():
        raise FileNotFoundError(f'{path} is missing: a released folder does not know its robot, see {__name__}')
    robot = _checked(path, lambda: read(RobotFile, read_json(path), '', exact=True))
    return content, robot, _checked(folder / 'config.json', lambda: _statistics(content, robot))


def _statistics(content: Mapping[str, Any], robot: RobotFile) -> ActionStatistics:
    stats = content.get('norm_stats')
    if not isinstance(stats, dict) or not stats:
        raise ValueError('norm_stats is missing: without it no action has a unit')
    try:
        found = ActionStatistics.read(stats, robot.statistics or None)
    except ValueError as error:
        raise ValueError(f'{error} ({FILE}: statistics)') from None
    if found.dims != NUMBERS:
        raise ValueError(f'an action has {found.dims} numbers, {NUMBERS} are needed: one arm and its gripper')
    return found


def _checked(path: Path, make: Any) -> Any:
    """What `make` gives. Errors name the file."""
    try:
        return make()
    except KeyError as error:
        raise ValueError(f'{path}: field {error} is missing: restore the released one') from None
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from None
