"""Writes tiny folders of RynnVLA-002 with random weights, under the released names."""

import json

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from vla_model.families.rynnvla import weights
from vla_model.families.rynnvla.action_head import ActionHead
from vla_model.families.rynnvla.vqgan import Vqgan
from vla_model.network import Network

VQGAN = {
    'ddconfig': {'ch': 32, 'ch_mult': [1, 1, 1, 1, 1], 'num_res_blocks': 1, 'z_channels': 8},
    'n_embed': 8192, 'embed_dim': 8,
}  # fmt: skip
LIBERO = {
    'constants': 'libero', 'cameras': ['front', 'wrist'], 'dt': 0.05, 'gripper_low': 0.08, 'gripper_high': 0.0,
    'history': 2,
}  # fmt: skip
SO100 = {'constants': 'so100', 'cameras': ['front'], 'dt': 0.033, 'gripper_low': 0.0, 'gripper_high': 0.09}


def write(folder, robot, horizon, dims, std=0.3, **shape):
    """Write a folder with random weights. shape: fields of config.json. Returns the folder."""
    config = {
        'model_type': 'chameleon', 'hidden_size': 32, 'num_hidden_layers': 2, 'num_attention_heads': 4,
        'intermediate_size': 48, 'rope_theta': 1e4, 'rms_norm_eps': 1e-5, 'vocab_size': 65536,
        'time_horizon': horizon, 'action_dim': dims,
    } | shape  # fmt: skip
    torch.manual_seed(0)
    network, head = Network(weights.network_config(config)), ActionHead(config['hidden_size'], horizon, dims)
    vqgan = Vqgan(weights.vqgan_config(VQGAN))
    for module in (network, head, vqgan):
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=std)
    tensors = {weights.released_name(n): t for n, t in network.state_dict().items()}
    tensors |= {f'action_head.{n}': t for n, t in head.state_dict().items()}
    save_file({n: t.bfloat16().contiguous() for n, t in tensors.items()}, folder / 'model.safetensors')
    (folder / 'config.json').write_text(json.dumps(config))
    (folder / 'robot.json').write_text(json.dumps(robot))
    (folder / 'vqgan').mkdir()
    extra = {'loss.discriminator.main.0.weight': torch.zeros(2)}
    save_file(vqgan.state_dict() | extra, folder / 'vqgan' / 'model.safetensors')
    (folder / 'vqgan' / 'config.json').write_text(json.dumps(VQGAN))
    words = Tokenizer(models.WordLevel({'[UNK]': 17000}, unk_token='[UNK]'))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(folder / 'tokenizer.json'))
    return folder
