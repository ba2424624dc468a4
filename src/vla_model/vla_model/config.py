"""What a checkpoint's config.json says. Network fields carry the released names; nothing has a default."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .bins import Ranges
from .vocabulary import Vocabulary

T = TypeVar('T')


@dataclass(frozen=True)
class NetworkConfig:
    """Shape of the transformer."""

    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    mlp_hidden_size: int
    rope_theta: float
    rms_norm_eps: float
    vocab_size: int

    def __post_init__(self) -> None:
        for f in fields(self):
            if not getattr(self, f.name) > 0:
                raise ValueError(f'{f.name} must be above 0, got {getattr(self, f.name)}')
        if self.d_model % (2 * self.n_heads) or self.n_heads % self.n_kv_heads:
            raise ValueError(
                f'd_model {self.d_model} must be a multiple of 2 * n_heads ({self.n_heads}), '
                f'and n_heads of n_kv_heads ({self.n_kv_heads})'
            )


@dataclass(frozen=True)
class ImageTokenizerConfig:
    """Shape of the image tokenizer. Level i works at resolution / 2^i; its codebook has 2^z_channels codes."""

    resolution: int  # [px] side of the square it encodes
    channels: int  # base width
    groups: int  # of every group norm
    z_channels: int
    encoder_mult: tuple[int, ...]  # width of level i in base widths
    encoder_blocks: tuple[int, ...]  # residual blocks of level i
    decoder_mult: tuple[int, ...]
    decoder_blocks: tuple[int, ...]

    def __post_init__(self) -> None:
        sizes = (self.resolution, self.channels, self.groups, self.z_channels, *self.encoder_mult, *self.decoder_mult)
        if min(sizes) < 1 or min((0, *self.encoder_blocks, *self.decoder_blocks)) < 0:
            raise ValueError('image_tokenizer: sizes must be above 0, and blocks not below')
        levels = {len(self.encoder_mult), len(self.encoder_blocks), len(self.decoder_mult), len(self.decoder_blocks)}
        if len(levels) != 1 or self.resolution % 2 ** (len(self.encoder_mult) - 1):
            raise ValueError(
                'image_tokenizer: mult and blocks lists need one length n, and resolution a multiple of 2^(n-1)'
            )
        if self.channels % self.groups:
            raise ValueError(f'image_tokenizer: channels {self.channels} must be a multiple of groups {self.groups}')

    @classmethod
    def released(cls, channels: int = 128) -> 'ImageTokenizerConfig':
        """The released MAGVIT-v2: 256 px to 16 x 16 codes of 13 bits. Its base width is 128."""
        return cls(256, channels, 32, 13, (1, 2, 2, 4, 4), (4, 3, 4, 3, 4), (1, 1, 2, 2, 4), (4, 4, 3, 4, 3))

    @property
    def tokens(self) -> int:
        """Codes per image."""
        return (self.resolution >> (len(self.encoder_mult) - 1)) ** 2


@dataclass(frozen=True)
class RobotInterface:
    """What the model sees of the robot and how its numbers become set-points."""

    cameras: tuple[str, ...]  # in prompt order: head or third person view first, then wrist views
    action_space: str  # joint_delta: joint set-points relative to the joint positions of the observation
    dof: int
    gripper: bool  # one more dimension in state and action, last: the opening [m]
    horizon: int  # steps per chunk
    dt: float  # [s] between steps
    state_low: tuple[float, ...]  # (dof + gripper,) [rad] and [m]; become -1
    state_high: tuple[float, ...]  # become +1
    action_low: tuple[float, ...]  # (dof + gripper,) [rad] and [m]
    action_high: tuple[float, ...]
    max_prompt_tokens: int  # everything before the action block; bounds the length of an instruction

    def __post_init__(self) -> None:
        if self.action_space != 'joint_delta':
            raise ValueError(f"robot.action_space must be 'joint_delta', got {self.action_space!r}")
        if not 1 <= len(self.cameras) <= 3 or len(set(self.cameras)) != len(self.cameras):
            raise ValueError(f'robot.cameras needs one to three distinct names, got {list(self.cameras)}')
        if self.dof < 1 or self.horizon < 1 or not 0 < self.dt < float('inf'):
            raise ValueError(f'robot.dof, horizon and dt must be above 0, got {self.dof}, {self.horizon}, {self.dt}')
        for name in ('state', 'action'):
            ranges = getattr(self, f'{name}_ranges')
            if len(ranges.low) != self.dim:
                raise ValueError(f'robot.{name}_low and _high need {self.dim} numbers, got {len(ranges.low)}')

    @property
    def dim(self) -> int:
        """Numbers per state and per step of a chunk."""
        return self.dof + self.gripper

    @property
    def state_ranges(self) -> Ranges:
        return Ranges(np.array(self.state_low), np.array(self.state_high))

    @property
    def action_ranges(self) -> Ranges:
        return Ranges(np.array(self.action_low), np.array(self.action_high))


@dataclass(frozen=True)
class ModelConfig:
    name: str
    trained: bool  # False: random weights, fit for shadow only
    network: NetworkConfig
    vocabulary: Vocabulary
    image_tokenizer: ImageTokenizerConfig
    robot: RobotInterface

    def __post_init__(self) -> None:
        if self.network.vocab_size != self.vocabulary.size:
            raise ValueError(f'vocab_size is {self.network.vocab_size}, the vocabulary has {self.vocabulary.size} ids')
        if 2**self.image_tokenizer.z_channels != self.vocabulary.codes:
            raise ValueError(
                f'image_tokenizer.z_channels {self.image_tokenizer.z_channels} makes '
                f'{2**self.image_tokenizer.z_channels} codes, the vocabulary has {self.vocabulary.codes}'
            )

    def to_json(self) -> str:
        vocabulary = asdict(self.vocabulary)
        content = {'name': self.name, 'trained': self.trained} | asdict(self.network)
        content |= {'vocabulary': vocabulary, 'image_tokenizer': asdict(self.image_tokenizer)}
        return json.dumps(content | {'robot': asdict(self.robot)}, indent=2) + '\n'

    @classmethod
    def load(cls, path: Path) -> 'ModelConfig':
        """From a config.json. Raises ValueError naming the file and the field that is missing or wrong."""
        try:
            content = json.loads(path.read_text())
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f'{path} is not JSON ({error}): restore the checkpoint') from None
        if not isinstance(content, dict):
            raise ValueError(f'{path} must hold one JSON object, got a {type(content).__name__}')
        try:
            return cls(
                name=_typed(content, 'name', str, 'name'),
                trained=_typed(content, 'trained', bool, 'trained'),
                network=_read(NetworkConfig, content, ''),
                vocabulary=_read(Vocabulary, _typed(content, 'vocabulary', dict, 'vocabulary'), 'vocabulary.'),
                image_tokenizer=_read(
                    ImageTokenizerConfig,
                    _typed(content, 'image_tokenizer', dict, 'image_tokenizer'),
                    'image_tokenizer.',
                ),
                robot=_read(RobotInterface, _typed(content, 'robot', dict, 'robot'), 'robot.'),
            )
        except ValueError as error:
            raise ValueError(f'{path}: {error}') from None


def _typed(mapping: dict[str, Any], key: str, kind: Any, label: str) -> Any:
    """mapping[key] as `kind`: a type, or tuple[type, ...] for a list. ValueError if missing or of another type."""
    if key not in mapping:
        raise ValueError(f'field {label} is missing: restore the config.json that was saved with the weights')
    value = mapping[key]
    if getattr(kind, '__origin__', None) is tuple:
        if not isinstance(value, list):
            raise ValueError(f'field {label} must be a list, got {value!r}')
        return tuple(_typed({key: v}, key, kind.__args__[0], label) for v in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f'field {label} must be {kind.__name__}, got {value!r}')
    return value


def _read(cls: type[T], mapping: dict[str, Any], label: str) -> T:
    return cls(**{f.name: _typed(mapping, f.name, f.type, label + f.name) for f in fields(cls)})  # type: ignore[arg-type]
