"""Makes the initial network of a run: random, or from a checkpoint, with or without LoRA."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from vla_model.checkpoints import checkpoint, nano
from vla_model.config import NetworkConfig
from vla_model.families.folder import Opened, open_folder
from vla_model.network import Network
from vla_model.tokens.vocabulary import Vocabulary
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
        network = Network(grown(base.config.network, recipe, tokens))
    new = {name for name in network.state_dict() if name.startswith(HEAD) and name not in base.network}
    wanted = {name: t for name, t in network.state_dict().items() if name not in new}
    more = tokens.config.vocabulary.depth - base.config.vocabulary.depth
    checkpoint.check_names({n: _before(n, t, more) for n, t in wanted.items()}, base.network, folder)
    if recipe.lora.rank:
        lora.attach(network, tokens.config.vocabulary, recipe.lora)
        if recipe.amp:  # frozen weights need no more precision than the computation
            for p in network.parameters():
                if not p.requires_grad:
                    p.data = p.data.bfloat16()
    _prepare(network, recipe, world)
    network.to_empty(device=world.device)
    return network, _fill(network, base, recipe, folder, tokens.config.vocabulary, more)


HEAD = 'model.action_head.'  # start of the names of the continuous action head
TABLES = ('.wte.weight', '.ff_out.weight')  # of the vocabulary; blocks have an ff_out, too


def grown(config: NetworkConfig, recipe: Recipe, tokens: Tokens) -> NetworkConfig:
    """Return the configuration of a checkpoint's network with what the recipe and the tokens add to it."""
    layers = max(config.action_layers, recipe.action_layers)
    return replace(config, vocab_size=tokens.config.vocabulary.size, action_layers=layers)


def _is_table(name: str) -> bool:
    return name.endswith(TABLES) and '.blocks.' not in name


def _before(name: str, tensor: Tensor, more: int) -> Tensor:
    """Return a tensor of the shape that the checkpoint must have. more: ids that the tokens add to its vocabulary."""
    return tensor[: len(tensor) - more] if _is_table(name) else tensor


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
        action_layers=recipe.action_layers,
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
    """Return all settings on which ids and their places in prompts depend. Camera names and joint ranges do not.

    Depth codes may be added to a vocabulary, and a trace to the end of an action block.
    """
    config, robot = opened.config, opened.config.robot
    v = config.vocabulary
    plain = replace(v, size=v.size - v.depth, depth=0)
    out: dict[str, object] = {f'vocabulary.{name}': value for name, value in asdict(plain).items()}
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


def _fill(network: Network, base: Opened, recipe: Recipe, folder: Path, v: Vocabulary, more: int) -> str:
    """Read the weights tensor by tensor, and initialise what is new. Return a digest of some weights.

    more: depth codes that the vocabulary `v` has and the checkpoint has not. LoRA, the continuous action head and the
    rows of new ids start with random weights.
    """
    targets: dict[str, dict[str, Tensor]] = {}
    for name, p in network.named_parameters():
        targets.setdefault(lora.plain_name(name), {})[name] = p
    seen = hashlib.sha256()
    for name, tensor in checkpoint.read_tensors(base.network):
        checkpoint.check_finite(name, tensor, tensor.dtype, folder)
        seen.update(checkpoint.digest(tensor[:1]).encode())
        if more and _is_table(name):
            tensor = _with_rows(tensor, v, more, recipe.seed)
        for own, target in targets.pop(name).items():
            if own.endswith(('lora_a', 'lora_b')):
                put(target, lora.first(own, target.shape, recipe.seed))
            else:
                put(target, tensor[-len(target) :])  # the last rows, or all
        del tensor
    generator = torch.Generator().manual_seed(recipe.seed)
    for own, target in ((own, t) for group in targets.values() for own, t in group.items()):
        norm = target.ndim == 1 and own.endswith('weight')
        scale = target[0].numel() ** -0.5 if target.ndim > 1 else 0.0
        value = torch.randn(target.shape, generator=generator) * scale
        if own.endswith(('attn_out.weight', '.ff_out.weight')):
            value = value * (2 * recipe.action_layers) ** -0.5
        put(target, torch.ones(target.shape) if norm else value)
    return seen.hexdigest()[:12]


def _with_rows(table: Tensor, v: Vocabulary, more: int, seed: int) -> Tensor:
    """Return a table (size, d) with random rows for the depth codes, which are before the bins."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(more, table.shape[1], generator=generator) * table.float().std()
    return torch.cat((table[: v.depth_offset], rows.to(table.dtype), table[v.depth_offset :]))
