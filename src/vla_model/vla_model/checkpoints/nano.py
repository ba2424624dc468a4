"""The nano configuration: the complete model in a size for one CPU core, for a Franka with two cameras."""

import torch
from torch import nn

from vla_model.checkpoints.shipped import RANDOM
from vla_model.config import ImageTokenizerConfig, ModelConfig, NetworkConfig, RobotInterface
from vla_model.tokens.vocabulary import Vocabulary

# Action space of nano models -> low and high ends of an action, without the gripper.
ACTIONS = {
    # 1 rad/s for the 1.6 s of a chunk: 1.6 mrad between bins.
    'joint_delta': ((-1.6,) * 7, (1.6,) * 7),
    # Half a metre per second, and half a turn: 0.8 mm and 3 mrad between bins.
    'ee_relative': ((-0.8,) * 3 + (-3.2,) * 3, (0.8,) * 3 + (3.2,) * 3),
}


def config(text: int, action_space: str = 'joint_delta', points: int = 0, gripper: bool = True) -> ModelConfig:
    """Return the configuration. text: length of the text tokenizer. action_space: one of ACTIONS.

    points, gripper: see RobotInterface.
    """
    image_tokenizer = ImageTokenizerConfig(
        resolution=128,
        channels=16,
        groups=8,
        z_channels=13,
        encoder_mult=(1, 2, 4, 8, 12),  # 128 px to 8 x 8 codes
        encoder_blocks=(0, 0, 1, 1, 1),  # a block at full resolution would cost as much as all the others
        decoder_mult=(1, 2, 4, 8, 12),
        decoder_blocks=(0, 1, 1, 1, 1),
    )
    vocabulary = Vocabulary.small(text, codes=2**image_tokenizer.z_channels, bins=2048)
    network = NetworkConfig(
        d_model=192,
        n_layers=6,
        n_heads=3,
        n_kv_heads=3,
        mlp_hidden_size=576,
        rope_theta=10000.0,
        rms_norm_eps=1e-5,
        vocab_size=vocabulary.size,
    )
    low, high = ACTIONS[action_space]
    robot = RobotInterface(
        cameras=('front', 'wrist'),
        action_space=action_space,
        dof=7,
        gripper=gripper,
        horizon=8,
        dt=0.2,
        normalization='limits',
        # Widest position limits of Panda and FR3, and the opening of their gripper.
        state_low=(-2.9007, -1.7837, -2.9007, -3.0718, -2.8973, -0.0175, -3.0159, *[0.0] * gripper),
        state_high=(2.9007, 1.7837, 2.9007, -0.0698, 2.8973, 4.5169, 3.0159, *[0.08] * gripper),
        action_low=(*low, *[0.0] * gripper),
        action_high=(*high, *[0.08] * gripper),
        max_prompt_tokens=256,
        points=points,
    )
    return ModelConfig(RANDOM, False, network, vocabulary, image_tokenizer, robot)


@torch.no_grad()
def init_weights(module: nn.Module, seed: int) -> None:
    """Set random weights by a seed: norms 1, biases 0, embeddings std 0.02, all others std 1 / sqrt(inputs)."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        if p.ndim == 1:
            p.fill_(float(name.endswith('weight')))
        elif name.endswith('wte.weight'):
            p.normal_(0, 0.02, generator=generator)
        else:
            p.normal_(0, p[0].numel() ** -0.5, generator=generator)
