"""Loads policies from checkpoint folders and by name, and saves them."""

import logging
from pathlib import Path

import torch

from vla_model.checkpoints import checkpoint, memory, nano
from vla_model.checkpoints.shipped import RANDOM, model_path
from vla_model.engines.choice import choose
from vla_model.engines.image import DTYPES
from vla_model.engines.select import check as check_engine
from vla_model.engines.subject import set_threads, trial_subject
from vla_model.families.folder import Opened, open_folder
from vla_model.families.mmact.policy import ESTIMATES, MaskedPolicy
from vla_model.image_tokenizer import ImageTokenizer
from vla_model.network import Network
from vla_model.quantized import plain_layers, put_layers
from vla_model.tokens.text_tokenizer import NANO_FILE, TextTokenizer

_log = logging.getLogger(__name__)


def load(
    path_or_name: str | Path,
    device: str = 'cpu',
    dtype: str = 'auto',
    threads: int = 0,
    seed: int = 0,
    engine: str = 'eager',
    image_dtype: str = 'float32',
    image_engine: str = 'eager',
    act_steps: int = 1,
    reuse: int = 1,
    image_tokenizer: str | Path | None = None,
    estimate: str = 'median',
    gripper: bool = True,
) -> MaskedPolicy:
    """A policy, from a checkpoint folder or by name.

    The names are those of `shipped`; 'random-nano' has random weights from `seed`: real computation, meaningless
    actions (config.trained is False), and a gripper only with `gripper`. dtype is the network's
    precision; 'auto': bfloat16 on a GPU, float32 on a CPU.
    image_dtype, or 'auto', is that of the image encoder, which image_engine runs, one of `image_engine.NAMES`. threads:
    CPU threads of torch in this process, 0 is all cores but one. engine: what runs the network, one of `engine.NAMES`;
    'auto' is the fastest one here that is close to 'eager'. Engines other than eager are tried in a child process
    before, see trial.py, and the log names those that died there. act_steps: forwards per chunk. reuse: acts per
    full forward, see `MaskedPolicy.reuse`. estimate: how a set-point is read from what the network says,
    one of ESTIMATES. image_tokenizer: its folder, where it is not in that of a released checkpoint.
    Raises FileNotFoundError or ValueError naming the file, tensor or field, and the remedy.
    """
    target = _device(device)
    if dtype != 'auto' and dtype not in DTYPES:
        raise ValueError(f"dtype must be 'auto' or one of {list(DTYPES)}, got {dtype!r}")
    precision = dtype if dtype != 'auto' else 'bfloat16' if target.type == 'cuda' else 'float32'
    check_engine(engine, target.type, precision, image_dtype, image_engine)
    if threads < 0:
        raise ValueError(f'threads must be 0 or more, got {threads}')
    if act_steps < 1:
        raise ValueError(f'act_steps must be 1 or more, got {act_steps}')
    if estimate not in ESTIMATES:
        raise ValueError(f'estimate must be one of {list(ESTIMATES)}, got {estimate!r}')
    if reuse < 1 or (reuse > 1 and (act_steps > 1 or engine != 'eager')):
        raise ValueError(f"reuse must be 1, or more with engine 'eager' and act_steps 1, got {reuse}")
    set_threads(threads)
    path = model_path(path_or_name)
    elsewhere = Path(image_tokenizer) if image_tokenizer is not None else None
    found = None if path == RANDOM else open_folder(Path(path), elsewhere)
    # Before any weight is here: the process that tries engines has the memory to itself.
    subject = trial_subject(path, device, precision, seed, elsewhere, gripper, found)
    choice = choose(subject, engine, image_dtype, image_engine)
    for remark in choice.remarks:
        _log.warning('%s', remark)
    if found is None:
        policy = _random_nano(seed, target, DTYPES[precision], gripper)
    else:
        needed = memory.plan(
            found.config, DTYPES[precision], DTYPES.get(choice.image_dtype, torch.bfloat16), target.type, choice.engine
        )
        _log.info('memory: %s', needed)
        memory.check(needed, target)
        policy = _from_folder(Path(path), found, target, DTYPES[precision])
    policy.use(choice.engine, choice.image_dtype, choice.image_engine)
    _log.info('engine %s, image_engine %s in %s', choice.engine, choice.image_engine, choice.image_dtype)
    policy.act_steps, policy.reuse, policy.estimate = act_steps, reuse, estimate
    return policy


def _from_folder(folder: Path, found: Opened, device: torch.device, dtype: torch.dtype) -> MaskedPolicy:
    with torch.device('meta'):
        network, image = Network(found.config.network), ImageTokenizer(found.config.image_tokenizer)
    if found.config.quantization is not None:
        put_layers(network, found.config.quantization, ('model.',))
        put_layers(image, found.config.quantization, checkpoint.IMAGE_PREFIXES)
    digests = checkpoint.load_into(network, found.network, device, dtype, folder)
    digests |= checkpoint.load_into(image, found.image, device, torch.float32, folder)
    plain_layers(image)  # convolutions are stored in 8 bits to be small, and computed as ever
    model_id = f'{found.config.name}-{checkpoint.content_hash(found.config, digests)}'
    return MaskedPolicy(found.config, found.text, network, image, model_id)


def save(policy: MaskedPolicy, folder: str | Path) -> None:
    """Writes the policy as a checkpoint folder that `load` reads. Raises ValueError for a quantized one."""
    if policy.config.quantization is not None:
        raise ValueError(f'{policy.config.name} is quantized: copy the folder it was loaded from')
    network, image = policy.network.state_dict(), policy.image_tokenizer.state_dict()
    checkpoint.write(Path(folder), policy.config, policy.text, network, image)


def _random_nano(seed: int, device: torch.device, dtype: torch.dtype, gripper: bool) -> MaskedPolicy:
    text = TextTokenizer.load(NANO_FILE)
    config = nano.config(text.size, gripper=gripper)
    network, image_tokenizer = Network(config.network), ImageTokenizer(config.image_tokenizer)
    nano.init_weights(network, seed)
    nano.init_weights(image_tokenizer, seed)
    tensors = network.state_dict() | image_tokenizer.state_dict()
    digests = {name: checkpoint.digest(tensor) for name, tensor in tensors.items()}
    model_id = f'{config.name}-{checkpoint.content_hash(config, digests)}'
    return MaskedPolicy(config, text, network.to(device, dtype), image_tokenizer.to(device), model_id)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be 'cpu' or 'cuda', got {name!r}") from None
    if device.type not in ('cpu', 'cuda'):
        raise ValueError(f"device must be 'cpu' or 'cuda', got {name!r}")
    if device.type == 'cuda' and not torch.cuda.is_available():
        raise ValueError(f"device is {name!r}, but torch finds no usable GPU: use 'cpu', or mend the GPU driver")
    return device
