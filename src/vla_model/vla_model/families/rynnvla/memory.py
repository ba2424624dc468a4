"""Computes the memory that a RynnVLA-002 policy will need, before it is loaded."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from vla_model.checkpoints.checkpoint import cast
from vla_model.checkpoints.memory import CUDA_CONTEXT, GIB, MemoryPlan, size_of
from vla_model.config import Quantization
from vla_model.families.rynnvla.action_head import ActionHead
from vla_model.families.rynnvla.preprocess import TRAINED
from vla_model.families.rynnvla.robot import RobotFile
from vla_model.families.rynnvla.tokens import PATCH, image_length
from vla_model.families.rynnvla.vqgan import Vqgan, VqganConfig
from vla_model.families.rynnvla.weights import head_shape, network_config
from vla_model.network import Network
from vla_model.quantized import put_layers

LM_HEAD = 'model.transformer.ff_out'
TEXT = 64  # tokens of an instruction and a state, generously


def make_network(content: Mapping[str, Any], robot: RobotFile, quantization: Quantization | None) -> Network:
    """Return a policy's network on the meta device, without `lm_head` where nothing is decided by tokens."""
    with torch.device('meta'):
        network = Network(network_config(content))
    if not robot.needs_logits:
        network.model['transformer'].ff_out = nn.Identity()  # type: ignore[union-attr]
    if quantization is not None:
        layers = {n: s for n, s in quantization.layers.items() if robot.needs_logits or n != LM_HEAD}
        put_layers(network, replace(quantization, layers=layers))
    return network


def plan(
    content: Mapping[str, Any],
    robot: RobotFile,
    vqgan: VqganConfig,
    quantization: Quantization | None = None,
    dtype: torch.dtype = torch.bfloat16,
    device: str = 'cuda',
) -> MemoryPlan:
    """Return the memory of the policy of a config.json and a robot.json; weights are exact, the rest is estimated."""
    network, (horizon, dims) = make_network(content, robot, quantization), head_shape(content)
    with torch.device('meta'):
        head, tokenizer = ActionHead(network.config.d_model, horizon, dims), Vqgan(vqgan)
    cast(network, dtype)
    c, side = network.config, TRAINED // PATCH
    views = len(robot.cameras)
    tokens = TEXT + views * robot.history * image_length(side, side)
    keys = 0
    if robot.needs_logits:  # a discrete chunk behind its prompt, or images and their next ones
        answer = max(horizon * (dims + 2), views * image_length(side, side) if robot.world else 0)
        keys = 2 * c.n_layers * (tokens + answer) * c.n_kv_heads * c.head_size * dtype.itemsize
    # Residual, its norm in float32, queries, keys, values and the result of attention; then gate, up and their product.
    block = tokens * max(
        c.d_model * (7 * dtype.itemsize + 8), c.d_model * 3 * dtype.itemsize + 3 * c.mlp_hidden_size * 4
    )
    mask = tokens**2
    images = 5 * TRAINED**2 * vqgan.channels * 4
    return MemoryPlan(
        weights=size_of(network) + size_of(head),
        image_tokenizer=size_of(tokenizer),
        copies=0,
        keys_values=keys,
        activations=max(block + mask, images),
        workspace=int(CUDA_CONTEXT * GIB) if device == 'cuda' else 0,
    )
