"""Loads masked models from checkpoint folders and by name, and saves them."""

import logging
from pathlib import Path

import torch

from vla_model.checkpoints import checkpoint, memory, nano
from vla_model.config import ACTION_HEADS
from vla_model.engines.choice import choose
from vla_model.engines.image import DTYPES
from vla_model.engines.select import check as check_engine
from vla_model.engines.subject import device_of, set_threads, trial_subject
from vla_model.families.folder import Opened, open_model
from vla_model.families.mmact.policy import ACTION_DECODINGS, MaskedPolicy, info_of
from vla_model.image_tokenizer import ImageTokenizer
from vla_model.loading import PLAIN, LoadOptions
from vla_model.network import Network
from vla_model.policy import PolicyInfo
from vla_model.quantized import plain_layers, put_layers
from vla_model.tokens.depth_tokenizer import load_depth_tokenizer

_log = logging.getLogger(__name__)


def describe(reference: str | Path, options: LoadOptions = PLAIN) -> PolicyInfo:
    """Return the info of the policy without reading its weights; its model_id is the name alone."""
    config = _open(reference, options).config
    return info_of(config, config.name)


def load(reference: str | Path, options: LoadOptions = PLAIN) -> MaskedPolicy:
    """Return the policy of a checkpoint folder or of a name of `shipped`, ready for `warm_up`.

    Engines other than eager are first tried in a child process, see trial.py; the log names those that died there.
    Raises FileNotFoundError or ValueError naming the file, tensor, field or option, and the remedy.
    """
    o, target = options, device_of(options.device)
    precision = _check(o, target)
    set_threads(o.threads)
    found = _open(reference, o)
    if o.action_head == 'continuous' and not found.config.network.action_layers:
        raise ValueError(f"{reference} has no continuous action head: take action_head 'discrete' or 'auto'")
    # Trials run before this process loads weights, so that they have the memory for themselves.
    subject = trial_subject(reference, o.device, precision, o.seed, _elsewhere(o), o.gripper, found)
    choice = choose(subject, o.engine, o.image_dtype, o.image_engine)
    for remark in choice.remarks:
        _log.warning('%s', remark)
    if found.folder is None:
        policy = _random_nano(found, o.seed, target, DTYPES[precision])
    else:
        needed = memory.plan(
            found.config, DTYPES[precision], DTYPES.get(choice.image_dtype, torch.bfloat16), target.type, choice.engine
        )
        _log.info('memory: %s', needed)
        memory.check(needed, target)
        policy = _from_folder(found.folder, found, target, DTYPES[precision])
    policy.use(choice.engine, choice.image_dtype, choice.image_engine)
    _log.info('engine %s, image_engine %s in %s', choice.engine, choice.image_engine, choice.image_dtype)
    policy.act_steps, policy.kv_reuse, policy.action_decoding = o.act_steps, o.kv_reuse, o.action_decoding
    if o.action_head != 'auto':
        policy.action_head = o.action_head
    return policy


def _check(o: LoadOptions, target: torch.device) -> str:
    """Return the precision of the network. Raises ValueError naming a wrong option."""
    if o.dtype != 'auto' and o.dtype not in DTYPES:
        raise ValueError(f"dtype must be 'auto' or one of {list(DTYPES)}, got {o.dtype!r}")
    precision = o.dtype if o.dtype != 'auto' else 'bfloat16' if target.type == 'cuda' else 'float32'
    check_engine(o.engine, target.type, precision, o.image_dtype, o.image_engine)
    if o.threads < 0:
        raise ValueError(f'threads must be 0 or more, got {o.threads}')
    if o.act_steps < 1:
        raise ValueError(f'act_steps must be 1 or more, got {o.act_steps}')
    if o.action_decoding not in ACTION_DECODINGS:
        raise ValueError(f'action_decoding must be one of {list(ACTION_DECODINGS)}, got {o.action_decoding!r}')
    if o.action_head not in ('auto', *ACTION_HEADS):
        raise ValueError(f"action_head must be 'auto' or one of {list(ACTION_HEADS)}, got {o.action_head!r}")
    if o.kv_reuse < 1 or (o.kv_reuse > 1 and (o.act_steps > 1 or o.engine != 'eager')):
        raise ValueError(f"kv_reuse must be 1, or more with engine 'eager' and act_steps 1, got {o.kv_reuse}")
    return precision


def _open(reference: str | Path, o: LoadOptions) -> Opened:
    return open_model(reference, _elsewhere(o), o.gripper)


def _elsewhere(o: LoadOptions) -> Path | None:
    return Path(o.image_tokenizer) if o.image_tokenizer is not None else None


def _from_folder(folder: Path, found: Opened, device: torch.device, dtype: torch.dtype) -> MaskedPolicy:
    with torch.device('meta'):
        network, image = Network(found.config.network), ImageTokenizer(found.config.image_tokenizer)
    if found.config.quantization is not None:
        put_layers(network, found.config.quantization, ('model.',))
        put_layers(image, found.config.quantization, checkpoint.IMAGE_PREFIXES)
    digests = checkpoint.load_into(network, found.network, device, dtype, folder)
    digests |= checkpoint.load_into(image, found.image, device, torch.float32, folder)
    plain_layers(image)  # convolutions are stored in 8 bits and computed in float32
    depth = load_depth_tokenizer(folder, device) if found.config.vocabulary.depth else None
    if depth is not None:
        digests |= {f'depth.{name}': checkpoint.digest(t) for name, t in depth.state_dict().items()}
    model_id = f'{found.config.name}-{checkpoint.content_hash(found.config, digests)}'
    return MaskedPolicy(found.config, found.text, network, image, model_id, depth)


def save(policy: MaskedPolicy, folder: str | Path) -> None:
    """Write the policy as a checkpoint folder, which `load` reads. Raises ValueError for a quantized one."""
    if policy.config.quantization is not None:
        raise ValueError(f'{policy.config.name} is quantized: copy the folder it was loaded from')
    network, image = policy.network.state_dict(), policy.image_tokenizer.state_dict()
    checkpoint.write(Path(folder), policy.config, policy.text, network, image, depth=policy.depth_tokenizer)


def _random_nano(found: Opened, seed: int, device: torch.device, dtype: torch.dtype) -> MaskedPolicy:
    config = found.config
    network, image_tokenizer = Network(config.network), ImageTokenizer(config.image_tokenizer)
    nano.init_weights(network, seed)
    nano.init_weights(image_tokenizer, seed)
    tensors = network.state_dict() | image_tokenizer.state_dict()
    digests = {name: checkpoint.digest(tensor) for name, tensor in tensors.items()}
    model_id = f'{config.name}-{checkpoint.content_hash(config, digests)}'
    return MaskedPolicy(config, found.text, network.to(device, dtype), image_tokenizer.to(device), model_id)
