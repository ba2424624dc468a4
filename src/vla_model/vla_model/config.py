"""The content of a checkpoint's config.json. Network fields have the released names; only options have defaults."""

import json
from dataclasses import MISSING, Field, asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vla_model.file_checks import check_file
from vla_model.statistics import FILE, METHODS, Statistics
from vla_model.tokens.bins import Ranges
from vla_model.tokens.vocabulary import Vocabulary

T = TypeVar('T')


QK_NORMS = ('', 'rms', 'layer')


@dataclass(frozen=True)
class NetworkConfig:
    """Shape and options of the transformer. The defaults of the options are those of MM-ACT."""

    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    mlp_hidden_size: int
    rope_theta: float
    rms_norm_eps: float
    vocab_size: int
    causal: bool = False  # positions attend to earlier ones only
    qk_norm: str = ''  # of queries and keys: one of QK_NORMS, '' is none
    qkv_bias: bool = False  # of the projections to queries, keys and values
    head_dim: int = 0  # numbers per attention head; 0: d_model / n_heads
    action_layers: int = 0  # blocks of the continuous action head; 0: the network has none

    def __post_init__(self) -> None:
        for f in fields(self):
            if f.default is MISSING and not getattr(self, f.name) > 0:
                raise ValueError(f'{f.name} must be above 0, got {getattr(self, f.name)}')
        if self.qk_norm not in QK_NORMS:
            raise ValueError(f'qk_norm must be one of {list(QK_NORMS)}, got {self.qk_norm!r}')
        if self.action_layers < 0:
            raise ValueError(f'action_layers must be 0 or more, got {self.action_layers}')
        if self.head_dim < 0 or self.head_dim % 2:
            raise ValueError(f'head_dim must be even, or 0 for d_model / n_heads, got {self.head_dim}')
        if (not self.head_dim and self.d_model % (2 * self.n_heads)) or self.n_heads % self.n_kv_heads:
            raise ValueError(
                f'd_model {self.d_model} must be a multiple of 2 * n_heads ({self.n_heads}), '
                f'and n_heads of n_kv_heads ({self.n_kv_heads})'
            )

    @property
    def head_size(self) -> int:
        """Numbers per attention head."""
        return self.head_dim or self.d_model // self.n_heads

    @property
    def options(self) -> dict[str, Any]:
        """The options that differ from their defaults, which an engine written for MM-ACT may not support."""
        return {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.default is not MISSING and getattr(self, f.name) != f.default
        }

    def refuse_options(self, what: str, remedy: str, able: tuple[str, ...] = ()) -> None:
        """Raise ValueError naming the options, other than `able`, that the engine `what` does not support."""
        if unable := {name: value for name, value in self.options.items() if name not in able}:
            given = ', '.join(f'{name} {value!r}' for name, value in unable.items())
            raise ValueError(f'{what} does not compute networks with {given}: {remedy}')


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


# Meaning of an action. joint_delta is relative to the joints of the observation, ee_relative to the tool's pose in it,
# ee_delta to the pose one step before. osc_delta is the input of LIBERO's operational-space controller, which executes
# a part of it. The others are absolute. Poses are in the base frame.
ACTION_SPACES = ('joint_delta', 'joint_position', 'ee_relative', 'ee_delta', 'osc_delta', 'ee_position')


@dataclass(frozen=True)
class RobotInterface:
    """Inputs of the model from the robot, and the units and ranges of its actions."""

    cameras: tuple[str, ...]  # in prompt order: head or third person view first, then wrist views
    action_space: str  # see ACTION_SPACES
    dof: int
    gripper: bool  # one more dimension in state and action, last: the opening [m]
    horizon: int  # steps per chunk
    dt: float  # [s] between steps
    normalization: str  # ends of [-1, 1]: 'limits' below, or one of statistics.METHODS; a gripper: always its limits
    state_low: tuple[float, ...]  # [rad], [m]; a state far outside is refused
    state_high: tuple[float, ...]
    action_low: tuple[float, ...]  # [rad], [m]; low is above high for a gripper whose sign is reversed in the model
    action_high: tuple[float, ...]
    max_prompt_tokens: int  # of the prompt before the action block; bounds the length of an instruction
    # Grounding points: objects of the instruction, in its order, located in every view. They follow the chunk.
    points: int = 0
    # Points of the predicted trace: the way of the tool in the first view. They follow the grounding points.
    trace: int = 0

    def __post_init__(self) -> None:
        if self.action_space not in ACTION_SPACES:
            raise ValueError(f'robot.action_space must be one of {list(ACTION_SPACES)}, got {self.action_space!r}')
        if self.normalization not in ('limits', *METHODS):
            raise ValueError(
                f"robot.normalization must be 'limits' or one of {list(METHODS)}, got {self.normalization!r}"
            )
        if not 1 <= len(self.cameras) <= 3 or len(set(self.cameras)) != len(self.cameras):
            raise ValueError(f'robot.cameras needs one to three distinct names, got {list(self.cameras)}')
        if self.points < 0 or self.trace < 0 or self.trace == 1:
            raise ValueError(
                f'robot.points must be 0 or more, and robot.trace 0, 2 or more, got {self.points} and {self.trace}'
            )
        if self.dof < 1 or self.horizon < 1 or not 0 < self.dt < float('inf'):
            raise ValueError(f'robot.dof, horizon and dt must be above 0, got {self.dof}, {self.horizon}, {self.dt}')
        for kind in ('state', 'action'):
            limits = self.limits(kind)
            joints = slice(None, -1) if self.gripper else slice(None)
            if not (limits.low[joints] < limits.high[joints]).all():
                raise ValueError(f'robot.{kind}_low must be below {kind}_high for every joint')
            if self.joints and len(limits.low) != self.dof + self.gripper:
                raise ValueError(
                    f'robot.{kind}_low and _high need {self.dof + self.gripper} numbers, got {len(limits.low)}'
                )

    @property
    def joints(self) -> bool:
        """Whether actions are joint set-points, which a controller can execute."""
        return self.action_space.startswith('joint')

    @property
    def state_dim(self) -> int:
        return len(self.state_low)

    @property
    def action_dim(self) -> int:
        """Numbers per step of a chunk."""
        return len(self.action_low)

    @property
    def chunk_tokens(self) -> int:
        return self.horizon * self.action_dim

    @property
    def block_tokens(self) -> int:
        """Tokens of the chunk and of what follows it: grounding points, then the trace; x and y of each point."""
        return self.chunk_tokens + self.point_tokens + 2 * self.trace

    @property
    def point_tokens(self) -> int:
        """Tokens of the grounding points: per view, per object, x and y."""
        return 2 * len(self.cameras) * self.points

    def limits(self, kind: str) -> Ranges:
        """Return the limits of 'state' or 'action', in robot units."""
        return Ranges(np.array(getattr(self, f'{kind}_low')), np.array(getattr(self, f'{kind}_high')))


# How one layer is stored and computed, see docs/reference/quantization.md.
LAYER_SCHEMES = ('int8', 'fp8', 'int4', 'int8-weight')
ACTIVATIONS = ('token', 'tensor', 'none')


@dataclass(frozen=True)
class Quantization:
    """Storage of the weights of a quantized checkpoint; layers without a scheme keep their floating point."""

    scheme: str  # requested scheme: int8, fp8, int4 or mixed
    group: int  # inputs that share a scale in int4; 0 without int4 layers
    activations: str  # scale of the inputs of int8 layers: per 'token', per 'tensor', or 'none' without int8 layers
    layers: dict  # name of the module -> one of LAYER_SCHEMES
    made_from: str  # model id of the original
    gate: dict  # measured differences from the original; not part of the model's id

    def __post_init__(self) -> None:
        if self.activations not in ACTIVATIONS:
            raise ValueError(f'quantization.activations must be one of {list(ACTIVATIONS)}, got {self.activations!r}')
        for name, scheme in self.layers.items():
            if scheme not in LAYER_SCHEMES:
                raise ValueError(f'quantization.layers: {name} must be one of {list(LAYER_SCHEMES)}, got {scheme!r}')
        if ('int4' in self.layers.values()) != (self.group > 0) or self.group % 2:
            raise ValueError(f'quantization.group must be even and above 0 for int4, 0 without, got {self.group}')


STEERING = ('tokens', 'line')  # a trace as tokens of the prompt, or as a line on the first view
ACTION_HEADS = ('discrete', 'continuous')  # set-points from the probabilities of bins, or by regression


@dataclass(frozen=True)
class ModelConfig:
    name: str
    trained: bool  # False: random weights, for shadow mode only (chunks are published and never executed)
    network: NetworkConfig
    vocabulary: Vocabulary
    image_tokenizer: ImageTokenizerConfig
    robot: RobotInterface
    statistics: Statistics | None = None  # a file of its own; None where normalization is 'limits'
    quantization: Quantization | None = None
    inpaints: bool = False  # trained to continue an action prefix without following it blindly
    plan_tokens: int = 112  # length of a plan's block in training; plans of another length are worse
    plan_steps: int = 32  # default limit of the forwards of a plan
    world: bool = False  # trained to predict the next image of every view for given actions
    world_steps: int = 8  # default number of forwards of such images
    steering: str = ''  # form of a trace that the model follows, one of STEERING; '': it follows none
    action_head: str = 'discrete'  # that `act` uses by default: one of ACTION_HEADS

    def __post_init__(self) -> None:
        if self.network.vocab_size != self.vocabulary.size:
            raise ValueError(f'vocab_size is {self.network.vocab_size}, the vocabulary has {self.vocabulary.size} ids')
        if 2**self.image_tokenizer.z_channels != self.vocabulary.codes:
            raise ValueError(
                f'image_tokenizer.z_channels {self.image_tokenizer.z_channels} makes '
                f'{2**self.image_tokenizer.z_channels} codes, the vocabulary has {self.vocabulary.codes}'
            )
        if (self.statistics is None) != (self.robot.normalization == 'limits'):
            raise ValueError(f'robot.normalization is {self.robot.normalization!r}: {FILE} must go with all but limits')
        if not 1 <= self.plan_steps <= self.plan_tokens:
            raise ValueError(
                f'plan_steps must be 1 to plan_tokens, which is {self.plan_tokens}, got {self.plan_steps}: a forward '
                'writes at least one token'
            )
        if self.world_steps < 1:
            raise ValueError(f'world_steps must be 1 or more, got {self.world_steps}')
        if self.steering not in ('', *STEERING):
            raise ValueError(f'steering must be empty or one of {list(STEERING)}, got {self.steering!r}')
        if self.action_head not in ACTION_HEADS:
            raise ValueError(f'action_head must be one of {list(ACTION_HEADS)}, got {self.action_head!r}')
        if self.action_head == 'continuous' and not self.network.action_layers:
            raise ValueError('action_head is continuous, but the network has no such head: action_layers is 0')
        self.ranges('state')
        self.ranges('action')

    def ranges(self, kind: str) -> Ranges:
        """Return the values of 'state' or 'action' that become -1 and +1, (dim,) in robot units.

        Raises ValueError where the statistics do not match the limits of this robot.
        """
        limits = self.robot.limits(kind)
        if self.statistics is None:
            return limits
        low, high = self.statistics.span(kind, self.robot.normalization)
        if len(low) != len(limits.low):
            raise ValueError(f'{FILE}: {kind} has {len(low)} numbers, the robot has {len(limits.low)}')
        # Data sets count openings in different units and signs: the gripper always uses its limits, never statistics.
        if self.robot.gripper:
            low[-1], high[-1] = limits.low[-1], limits.high[-1]
        for i in np.flatnonzero(np.abs(limits.normalize((low + high) / 2)) > 2):
            raise ValueError(
                f'{FILE}: dimension {i + 1} of {kind} is around {(low[i] + high[i]) / 2:g}, the limits of the robot '
                f'are {limits.low[i]:g} to {limits.high[i]:g}: check its unit and the joint order'
            )
        return Ranges(low, high)

    def to_json(self) -> str:
        # Fields that came later are left out at their default, too.
        vocabulary = {name: value for name, value in asdict(self.vocabulary).items() if (name, value) != ('depth', 0)}
        robot = {name: value for name, value in asdict(self.robot).items() if (name, value) != ('trace', 0)}
        content = {'name': self.name, 'trained': self.trained, 'inpaints': self.inpaints}
        # Options at their default are left out, so that the text and the model id of older models are unchanged.
        shape = {f.name: getattr(self.network, f.name) for f in fields(self.network) if f.default is MISSING}
        content |= shape | self.network.options
        content |= {f.name: getattr(self, f.name) for f in _later_fields() if getattr(self, f.name) != f.default}
        content |= {'vocabulary': vocabulary, 'image_tokenizer': asdict(self.image_tokenizer)}
        if self.quantization is not None:
            content['quantization'] = asdict(self.quantization)
        return json.dumps(content | {'robot': robot}, indent=2) + '\n'

    @classmethod
    def of_json(cls, content: dict[str, Any], statistics: Statistics | None) -> 'ModelConfig':
        """Return the configuration of a JSON object. Raises ValueError naming the wrong field."""
        return cls(
            name=_typed(content, 'name', str, 'name'),
            trained=_typed(content, 'trained', bool, 'trained'),
            network=read(NetworkConfig, content, ''),
            vocabulary=read(Vocabulary, _typed(content, 'vocabulary', dict, 'vocabulary'), 'vocabulary.'),
            image_tokenizer=read(
                ImageTokenizerConfig, _typed(content, 'image_tokenizer', dict, 'image_tokenizer'), 'image_tokenizer.'
            ),
            robot=read(RobotInterface, _typed(content, 'robot', dict, 'robot'), 'robot.'),
            statistics=statistics,
            quantization=read(Quantization, _typed(content, 'quantization', dict, 'quantization'), 'quantization.')
            if 'quantization' in content
            else None,
            inpaints='inpaints' in content and _typed(content, 'inpaints', bool, 'inpaints'),
            **{f.name: _typed(content, f.name, type(f.default), f.name) for f in _later_fields() if f.name in content},
        )


def _later_fields() -> list[Field]:
    """Return the fields of ModelConfig that config.json has only where they are not the default."""
    names = ('plan_tokens', 'plan_steps', 'world', 'world_steps', 'steering', 'action_head')
    return [f for f in fields(ModelConfig) if f.name in names]


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raises FileNotFoundError or ValueError naming the file."""
    check_file(path, 'the configuration', 'restore the checkpoint')
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f'{path} is not JSON ({error}): restore the checkpoint') from None
    if not isinstance(content, dict):
        raise ValueError(f'{path} must hold one JSON object, got a {type(content).__name__}')
    return content


def _typed(mapping: dict[str, Any], key: str, kind: Any, label: str) -> Any:
    """Return mapping[key] as `kind`: a type, or tuple[type, ...] for a list.

    Raises ValueError naming a field that is missing or of another type.
    """
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


def read(cls: type[T], mapping: dict[str, Any], label: str, exact: bool = False) -> T:
    """Return an instance of `cls` from a JSON object. label: prefix of the names of fields in errors.

    Fields with a default may be missing. exact: a field that `cls` does not have is an error, not passed over.
    Raises ValueError naming a wrong field.
    """
    names = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    if exact and (unknown := sorted(mapping.keys() - set(names))):
        raise ValueError(f'field {label}{unknown[0]} is not known: remove it, or correct its name; known are {names}')
    asked = [f for f in fields(cls) if f.name in mapping or f.default is MISSING]  # type: ignore[arg-type]
    return cls(**{f.name: _typed(mapping, f.name, f.type, label + f.name) for f in asked})
