"""Makes the initial network of a run: random, or from a checkpoint, with or without LoRA."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from vla_model.checkpoints import checkpoint, nano
from vla_model.config import NetworkConfig
from vla_model.families.folder import Opened, open_folder
from vla_model.network import Network
from vla_training.data.shards import Tokens
from vla_training.train import lora, structure
from vla_training.train.distributed import World, put
from vla_training.train.recipe import Recipe


def make(recipe: Recipe, tokens: Tokens, world: World) -> tuple[Network, str]:
    """Return the network on the device, and a digest of its checkpoint; the digest is empty without a checkpoint.

    Raises FileNotFoundError or ValueError where the checkpoint is missing, is damaged, or does not fit the tokens.
    """
    if not recipe.init:
        network = from_nothing(recipe, tokens)
        _prepare(network, recipe, world)
        return network.to(world.device), ''
    folder = Path(recipe.init)
    base = open_folder(folder)
    check_tokens(base, tokens, folder)
    with torch.device('meta'):
        network = Network(base.config.network)
    checkpoint.check_names(network.state_dict(), base.network, folder)
    if recipe.lora.rank:
        lora.attach(network, tokens.config.vocabulary, recipe.lora)
        if recipe.amp:  # frozen weights need no more precision than the computation
            for p in network.parameters():
                if not p.requires_grad:
                    p.data = p.data.bfloat16()
    _prepare(network, recipe, world)
    network.to_empty(device=world.device)
    return network, _fill(network, base, recipe, folder)


def from_nothing(recipe: Recipe, tokens: Tokens) -> Network:
    """Return a randomly initialised network of the recipe's shape, on the CPU."""
    shape, vocabulary = recipe.network, tokens.config.vocabulary
    config = NetworkConfig(
        d_model=shape.d_model,
        n_layers=shape.n_layers,
        n_heads=shape.n_heads,
        n_kv_heads=shape.n_heads,
        mlp_hidden_size=shape.mlp_hidden_size,
        rope_theta=10000.0,
        rms_norm_eps=1e-5,
        vocab_size=vocabulary.size,
    )
    network = Network(config)
    nano.init_weights(network, recipe.seed)
    with torch.no_grad():  # residual branches start small, else their sum grows with depth (GPT-2)
        for block in blocks(network):
            for out in (block.attn_out, block.ff_out):
                out.weight.mul_((2 * shape.n_layers) ** -0.5)  # type: ignore[operator, union-attr]
    if recipe.structured_tables:
        structure.attach(network, vocabulary, recipe.seed)
    return network


def blocks(network: Network) -> list[nn.Module]:
    return list(network.model['transformer'].blocks)  # type: ignore[arg-type, union-attr]


def check_tokens(base: Opened, tokens: Tokens, folder: Path) -> None:
    """Raise ValueError naming the differences between the tokens and the checkpoint."""
    then, now = _layout(base), _layout(Opened(tokens.config, tokens.text, {}, {}, None))
    changed = [f'{name} is {now[name]}, of the checkpoint {then[name]}' for name in then if now[name] != then[name]]
    if not changed and base.text.tokenizer.to_str() != tokens.text.tokenizer.to_str():
        changed = ['tokenizer.json differs']
    if changed:
        raise ValueError(
            f'{tokens.folder} was not made for {folder}: {"; ".join(changed[:3])}{"; ..." if changed[3:] else ""}. '
            f'Make it with ./vla train tokenize --like {folder}'
        )


def _layout(opened: Opened) -> Mapping[str, object]:
    """Return all settings on which ids and their places in prompts depend. Camera names and joint ranges do not."""
    config, robot = opened.config, opened.config.robot
    out: dict[str, object] = {f'vocabulary.{name}': value for name, value in asdict(config.vocabulary).items()}
    out |= {f'image_tokenizer.{name}': value for name, value in asdict(config.image_tokenizer).items()}
    names = (
        'action_space',
        'dof',
        'gripper',
        'horizon',
        'dt',
        'state_dim',
        'action_dim',
        'max_prompt_tokens',
        'points',
    )
    return out | {f'robot.{name}': getattr(robot, name) for name in names} | {'cameras': len(robot.cameras)}


def _prepare(network: Network, recipe: Recipe, world: World) -> None:
    """Apply recomputing, compiling and splitting, in the order in which they wrap each other."""
    for block in blocks(network):
        if recipe.recompute:
            block.forward = partial(recompute, block.forward, use_reentrant=False)  # type: ignore[method-assign]
        if recipe.compile and world.mesh is not None:  # else the whole step is compiled
            block.compile()
    world.shard(network, blocks(network), recipe.amp)


def _fill(network: Network, base: Opened, recipe: Recipe, folder: Path) -> str:
    """Read the weights tensor by tensor and initialise LoRA. Return a digest of some weights."""
    targets: dict[str, dict[str, Tensor]] = {}
    for name, p in network.named_parameters():
        targets.setdefault(lora.plain_name(name), {})[name] = p
    seen = hashlib.sha256()
    for name, tensor in checkpoint.read_tensors(base.network):
        checkpoint.check_finite(name, tensor, tensor.dtype, folder)
        seen.update(checkpoint.digest(tensor[:1]).encode())
        for own, target in targets[name].items():
            if own.endswith(('lora_a', 'lora_b')):
                put(target, lora.first(own, target.shape, recipe.seed))
            else:
                put(target, tensor[-len(target) :])  # the last rows, or all
        del tensor
    return seen.hexdigest()[:12]
