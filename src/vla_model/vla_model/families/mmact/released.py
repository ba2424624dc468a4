"""Reads the folders of the released checkpoints, whose config.json describes the network only.

`robot.json` beside it has the fields of `RobotInterface`. The image tokenizer is in its own folder, as released
(showlab/magvitv2), or in `image_tokenizer/` of the checkpoint.
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from vla_model.checkpoints.checkpoint import Stored, check_has_weights, list_tensors
from vla_model.config import ImageTokenizerConfig, ModelConfig, NetworkConfig, RobotInterface, read, read_json
from vla_model.statistics import FILE, Statistics
from vla_model.tokens.vocabulary import Vocabulary

ROBOT_FILE = 'robot.json'
IMAGE_FOLDER = 'image_tokenizer'
# The variant of the network in the released checkpoints; no other one is supported.
VARIANT = {
    'activation_type': ('silu',),
    'alibi': (False,),
    'attention_layer_norm': (False,),
    'bias_for_layer_norm': (False, None),
    'block_group_size': (1,),
    'block_type': ('llama',),
    'include_bias': (False,),
    'include_qkv_bias': (False, None),
    'input_emb_norm': (False,),
    'layer_norm_type': ('rms',),
    'layer_norm_with_affine': (True,),
    'multi_query_attention': (None, False),
    'rope': (True,),
    'rope_full_precision': (True,),
    'scale_logits': (False,),
    'weight_tying': (False,),
}


def is_released(content: Mapping[str, Any]) -> bool:
    """Return whether a config.json is a released one, in contrast to one that `loading.save` wrote."""
    return 'vocabulary' not in content and 'llm_vocab_size' in content


def check_config(content: Mapping[str, Any]) -> NetworkConfig:
    """Return the shape of the network.

    Raises ValueError naming a field that is missing, or set to an unsupported variant of the network.
    """
    for name, allowed in VARIANT.items():
        if name not in content:
            raise ValueError(f'field {name} is missing: restore the config.json that was released with the weights')
        if content[name] not in allowed:
            raise ValueError(f'field {name} is {content[name]!r}, only {allowed[0]!r} is supported')
    if 'n_kv_heads' in content and content['n_kv_heads'] is None:  # in released files: equal to n_heads
        content = {**content, 'n_kv_heads': content.get('n_heads')}
    network = read(NetworkConfig, dict(content), '')
    if content.get('embedding_size', network.vocab_size) != network.vocab_size:
        raise ValueError(f'embedding_size {content["embedding_size"]} is not vocab_size {network.vocab_size}')
    return network


def read_config(folder: Path, content: Mapping[str, Any], text: int, image: ImageTokenizerConfig) -> ModelConfig:
    """Return the configuration of a released folder. text: length of the tokenizer; image: its image tokenizer.

    Raises FileNotFoundError or ValueError naming the file, the field and the remedy.
    """
    try:
        network = check_config(content)
        vocabulary = Vocabulary.of_released(content, text)
    except ValueError as error:
        raise ValueError(f'{folder / "config.json"}: {error}') from None
    path = folder / ROBOT_FILE
    if not path.is_file():
        names = ', '.join(f.name for f in fields(RobotInterface))
        raise FileNotFoundError(f'{path} is missing: a released checkpoint does not describe its robot; write {names}')
    try:
        robot = read(RobotInterface, read_json(path), '', exact=True)
        statistics = Statistics.load(folder / FILE) if robot.normalization != 'limits' else None
        return ModelConfig(folder.name, True, network, vocabulary, image, robot, statistics)
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from None


def list_image_tokenizer(folder: Path, elsewhere: Path | None) -> tuple[ImageTokenizerConfig, dict[str, Stored]]:
    """Return shape and tensors of the image tokenizer in `elsewhere`, or in `image_tokenizer/` of the checkpoint."""
    place = elsewhere or folder / IMAGE_FOLDER
    check_has_weights(place, 'put pytorch_model.safetensors of the released image tokenizer there')
    stored = list_tensors(place)
    name = 'encoder.conv_in.weight'
    if name not in stored or len(stored[name].shape) != 4:
        raise ValueError(f'{place}: tensor {name} is missing: these are not the weights of an image tokenizer')
    return ImageTokenizerConfig.released(stored[name].shape[0]), stored
