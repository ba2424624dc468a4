"""Tensor names of a released RynnVLA-002 folder, and the shape of its network."""

import re
from collections.abc import Mapping
from typing import Any

from vla_model.config import NetworkConfig
from vla_model.families.rynnvla.tokens import CODES, PATCH
from vla_model.families.rynnvla.vqgan import GROUPS, VqganConfig

_LAYER = {
    'self_attn.q_proj': 'q_proj', 'self_attn.k_proj': 'k_proj', 'self_attn.v_proj': 'v_proj',
    'self_attn.o_proj': 'attn_out',
    'self_attn.q_norm': 'q_norm', 'self_attn.k_norm': 'k_norm', 'input_layernorm': 'attn_norm',
    'post_attention_layernorm': 'ff_norm',
    'mlp.gate_proj': 'ff_proj', 'mlp.up_proj': 'up_proj', 'mlp.down_proj': 'ff_out',
}  # fmt: skip
_OUTSIDE = {'model.embed_tokens': 'wte', 'model.norm': 'ln_f', 'lm_head': 'ff_out'}
_BACK = {ours: theirs for theirs, ours in _LAYER.items()}, {ours: theirs for theirs, ours in _OUTSIDE.items()}
# Settings of the released class that are not built: value that is.
_VARIANT = {
    'hidden_act': 'silu', 'attention_bias': False, 'mlp_bias': False, 'rope_scaling': None,
    'tie_word_embeddings': False, 'swin_norm': False, 'model_parallel_size': 1,
}  # fmt: skip


def released_name(ours: str) -> str:
    """The released name of one of the Network's parameters."""
    inner, kind = ours.removeprefix('model.transformer.').rsplit('.', 1)
    if m := re.fullmatch(r'blocks\.(\d+)\.(.+)', inner):
        return f'model.layers.{m[1]}.{_BACK[0][m[2]]}.{kind}'
    return f'{_BACK[1][inner]}.{kind}'


def network_config(content: Mapping[str, Any]) -> NetworkConfig:
    """Shape of the network in a released config.json. Raises ValueError naming the field that does not fit."""
    if content.get('model_type') != 'chameleon':
        raise ValueError(f'model_type is {content.get("model_type")!r}, that of RynnVLA-002 is chameleon')
    for name, value in _VARIANT.items():
        if content.get(name, value) != value:
            raise ValueError(f'{name} is {content[name]!r}, only {value!r} is supported')
    try:
        return NetworkConfig(
            d_model=content['hidden_size'],
            n_layers=content['num_hidden_layers'],
            n_heads=content['num_attention_heads'],
            n_kv_heads=content.get('num_key_value_heads') or content['num_attention_heads'],
            mlp_hidden_size=content['intermediate_size'],
            rope_theta=content['rope_theta'],
            rms_norm_eps=content['rms_norm_eps'],
            vocab_size=content['vocab_size'],
            causal=True,
            qk_norm='layer',
        )
    except KeyError as error:
        raise ValueError(
            f'field {error} is missing: restore the config.json that was released with the weights'
        ) from None


def head_shape(content: Mapping[str, Any]) -> tuple[int, int]:
    """(Steps of a chunk, dimensions of an action). Raises ValueError where they are missing."""
    sizes = content.get('time_horizon'), content.get('action_dim')
    if not all(isinstance(n, int) and n > 0 for n in sizes):
        raise ValueError(
            'time_horizon and action_dim must be whole numbers above 0: this checkpoint has no action head'
        )
    return sizes  # type: ignore[return-value]


def vqgan_config(content: Mapping[str, Any]) -> VqganConfig:
    """Shape of the image tokenizer, from its `vqgan` entry or `vqgan.yaml`."""
    d = content['ddconfig']
    for name, value in (('in_channels', 3), ('out_ch', 3)):
        if d.get(name, value) != value:
            raise ValueError(f'ddconfig: {name} is {d[name]}, pictures have {value} channels')
    if PATCH >> (len(d['ch_mult']) - 1) != 1:
        raise ValueError(f'ddconfig: ch_mult must have 5 numbers, as a code is of {PATCH} x {PATCH} px: {d["ch_mult"]}')
    if d['ch'] % GROUPS or content['n_embed'] != CODES:
        raise ValueError(
            f'ch must be a multiple of {GROUPS} and n_embed {CODES}, got {d["ch"]} and {content["n_embed"]}'
        )
    if d.get('attn_resolutions') or d.get('double_z'):
        raise ValueError('ddconfig: attn_resolutions must be empty and double_z false, as in the released tokenizer')
    return VqganConfig(
        d['ch'], tuple(d['ch_mult']), d['num_res_blocks'], d['z_channels'], content['n_embed'], content['embed_dim']
    )
