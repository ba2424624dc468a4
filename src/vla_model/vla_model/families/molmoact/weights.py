"""Tensor names of a released MolmoAct folder, and the shape of its network."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from vla_model.config import NetworkConfig

PREFIX, VISION = 'model.transformer.', 'model.vision_backbone.'
_PLAIN = {'self_attn.attn_out': 'attn_out', 'attn_norm': 'attn_norm', 'mlp.ff_out': 'ff_out', 'ff_norm': 'ff_norm'}
# Settings that are not built: value that is.
_VARIANT = {
    'use_qk_norm': False,
    'norm_after': False,
    'tie_word_embeddings': False,
    'rope_scaling': None,
    'hidden_act': 'silu',
}


def network_config(content: Mapping[str, Any]) -> NetworkConfig:
    """Shape of the network in a released config.json, with the added embeddings.

    Raises ValueError naming the field that does not fit.
    """
    if content.get('model_type') != 'molmoact':
        raise ValueError(f'model_type is {content.get("model_type")!r}, not molmoact')
    c = content['llm_config']
    for name, value in _VARIANT.items():
        if c.get(name, value) != value:
            raise ValueError(f'{name} is {c[name]!r}, only {value!r} is supported')
    return NetworkConfig(
        d_model=c['hidden_size'], n_layers=c['num_hidden_layers'], n_heads=c['num_attention_heads'],
        n_kv_heads=c['num_key_value_heads'], mlp_hidden_size=c['intermediate_size'], rope_theta=c['rope_theta'],
        rms_norm_eps=c['layer_norm_eps'], vocab_size=c['vocab_size'] + c['additional_vocab_size'], causal=True,
        qkv_bias=c['qkv_bias'], head_dim=c['head_dim'],
    )  # fmt: skip


def released_shapes(c: NetworkConfig, added: int) -> dict[str, tuple[int, ...]]:
    """Released names and shapes of the network's tensors. added: rows of the embedding that no answer can have."""
    heads, kv = c.n_heads * c.head_size, c.n_kv_heads * c.head_size
    shapes: dict[str, tuple[int, ...]] = {
        'lm_head.weight': (c.vocab_size - added, c.d_model),
        f'{PREFIX}wte.embedding': (c.vocab_size - added, c.d_model),
        f'{PREFIX}wte.new_embedding': (added, c.d_model),
        f'{PREFIX}ln_f.weight': (c.d_model,),
    }
    for i in range(c.n_layers):
        block = f'{PREFIX}blocks.{i}.'
        shapes |= {
            f'{block}self_attn.att_proj.weight': (heads + 2 * kv, c.d_model),
            f'{block}self_attn.attn_out.weight': (c.d_model, heads),
            f'{block}attn_norm.weight': (c.d_model,),
            f'{block}mlp.ff_proj.weight': (2 * c.mlp_hidden_size, c.d_model),
            f'{block}mlp.ff_out.weight': (c.d_model, c.mlp_hidden_size),
            f'{block}ff_norm.weight': (c.d_model,),
        }
        if c.qkv_bias:
            shapes[f'{block}self_attn.att_proj.bias'] = (heads + 2 * kv,)
    return shapes


def ours(name: str, tensor: Tensor, c: NetworkConfig) -> Iterator[tuple[str, slice, Tensor]]:
    """Where a released tensor goes: our names, the rows of each, and what they get."""
    everything = slice(None)
    if name == 'lm_head.weight':
        rows = slice(len(tensor), c.vocab_size)  # of ids that no answer can have
        yield f'{PREFIX}ff_out.weight', slice(0, len(tensor)), tensor
        yield f'{PREFIX}ff_out.weight', rows, tensor.new_zeros(()).expand(rows.stop - rows.start, c.d_model)
    elif name == f'{PREFIX}wte.embedding':
        yield f'{PREFIX}wte.weight', slice(0, len(tensor)), tensor
    elif name == f'{PREFIX}wte.new_embedding':
        yield f'{PREFIX}wte.weight', slice(c.vocab_size - len(tensor), c.vocab_size), tensor
    elif m := re.fullmatch(r'model\.transformer\.blocks\.(\d+)\.(.+)\.(weight|bias)', name):
        block = f'{PREFIX}blocks.{m[1]}.'
        if m[2] == 'self_attn.att_proj':
            heads, kv = c.n_heads * c.head_size, c.n_kv_heads * c.head_size
            for part, value in zip('qkv', tensor.split((heads, kv, kv)), strict=True):
                yield f'{block}{part}_proj.{m[3]}', everything, value
        elif m[2] == 'mlp.ff_proj':
            up, gate = tensor.chunk(2)
            yield f'{block}up_proj.{m[3]}', everything, up
            yield f'{block}ff_proj.{m[3]}', everything, gate
        else:
            yield f'{block}{_PLAIN[m[2]]}.{m[3]}', everything, tensor
    else:
        yield name, everything, tensor


@torch.no_grad()
def put(network: torch.nn.Module, name: str, tensor: Tensor) -> None:
    """Copies a released tensor into the network's parameters."""
    state = network.state_dict()
    for target, rows, value in ours(name, tensor, network.config):  # type: ignore[arg-type]
        state[target][rows].copy_(value)
