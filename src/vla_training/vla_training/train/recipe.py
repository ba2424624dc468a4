"""Defines the recipe: all settings of a training run, in one YAML file."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml

from vla_model.checkpoints.checkpoint import MAX_SHARD_BYTES
from vla_model.config import ACTION_HEADS, STEERING
from vla_training.data.shards import MAX_BYTES
from vla_training.train.lora import Lora
from vla_training.train.masking import Masking
from vla_training.train.objective import MODES

T = TypeVar('T')
# Fields of earlier versions -> their names now.
RENAMED = {'glances': 'static_scenes', 'answers': 'labelled_scenes', 'points_weight': 'grounding_weight'}


@dataclass(frozen=True)
class Stage:
    """A number of steps with the same weights of the losses. Weight 0: prompts of that mode are not made."""

    steps: int
    action: float  # weight, as text and image, and those at the end; the modes are described in objective.py
    text: float
    image: float
    static_scenes: float = -1.0  # share of the contexts that are unlabelled static scenes; below 0: as in the data
    labelled_scenes: float = 0.0  # share of the contexts that are static scenes with action labels
    steer: float = 0.0
    line: float = 0.0
    world: float = 0.0
    depth: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1 or min(getattr(self, m) for m in MODES) < 0 or not self.weights:
            raise ValueError(f'a stage needs steps and at least one weight above 0, got {self}')
        share = max(self.static_scenes, 0.0) + self.labelled_scenes
        if self.labelled_scenes < 0 or share > 1 or (share == 1 and not self.action):
            raise ValueError(
                f'static_scenes and labelled_scenes are shares up to 1 together, below 1 where action is 0, got {self}'
            )
        if self.labelled_scenes and self.static_scenes < 0:
            raise ValueError(f'labelled_scenes needs a share for static_scenes, too, which may be 0, got {self}')

    @property
    def weights(self) -> dict[str, float]:
        """Return mode -> weight of the trained modes."""
        return {mode: getattr(self, mode) for mode in MODES if getattr(self, mode) > 0}


@dataclass(frozen=True)
class Network:
    """Shape of a network that starts with random weights; see NetworkConfig."""

    d_model: int = 192
    n_layers: int = 6
    n_heads: int = 3
    mlp_hidden_size: int = 576


@dataclass(frozen=True)
class Recipe:
    """All settings of a training run."""

    stages: tuple[Stage, ...]
    name: str = 'nano'
    seed: int = 0
    init: str = ''  # folder of the initial checkpoint, of this suite or released; empty: random weights
    network: Network = field(default_factory=Network)  # only for random weights
    structured_tables: bool = True  # see structure.py; only for random weights
    lora: Lora = field(default_factory=Lora)
    masking: Masking = field(default_factory=Masking)
    batch: int = 64  # contexts per step
    text_batch: int = 8  # number of them, from the first on, that also make a plan prompt
    image_batch: int = 8  # number of them, from the first on, that also make an image prompt
    steer_batch: int = 4  # number of them, evenly spread, whose action prompt has the tokens of a trace
    line_batch: int = 4  # number of the others, evenly spread, whose first view has the line of a trace
    world_batch: int = 4  # as text_batch, for the images after given actions
    depth_batch: int = 2  # as text_batch, for depth codes
    action_layers: int = 0  # blocks of the continuous action head; in a fine-tune they start with random weights
    action_head: str = 'discrete'  # that the checkpoint uses by default, see ModelConfig
    steering: str = 'tokens'  # form of a trace that the checkpoint follows, where stages have `steer` or `line`
    micro_batch: int = 0  # sequences per forward; 0: all at once
    optimizer: str = 'adamw'  # or muon (Jordan et al. 2024): Muon for the blocks' matrices, AdamW for the rest
    lr: float = 1e-3
    min_lr: float = 0.05  # share of lr at the end of the cosine
    warmup: int = 200  # steps
    weight_decay: float = 0.02
    beta2: float = 0.98
    grad_clip: float = 1.0
    ema: float = 0.999  # decay of the averaged weights; 0: no average
    amp: bool = True  # compute in bf16; trained weights stay fp32
    compile: bool = False
    recompute: bool = False  # compute blocks again in the backward pass: less memory, a third more work
    validation: float = 0.03  # share of the episodes that are held out
    log_every: int = 50  # steps
    save_every: int = 1000  # steps
    piece_bytes: int = MAX_BYTES  # largest file of a run's state
    dtype: str = 'float32'  # of the exported weights: float32 or bfloat16
    shard_bytes: int = MAX_SHARD_BYTES  # largest file of the exported weights

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError('a recipe needs at least one stage')
        for name in ('batch', 'log_every', 'save_every', 'piece_bytes', 'shard_bytes'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} must be 1 or more, got {getattr(self, name)}')
        for name in ('text_batch', 'image_batch', 'steer_batch', 'line_batch', 'world_batch', 'depth_batch'):
            if not 0 <= getattr(self, name) <= self.batch:
                raise ValueError(f'{name} is a part of batch, which is {self.batch}, got {getattr(self, name)}')
        if any(stage.action and not len(self.rows('action', stage)) for stage in self.stages):
            raise ValueError('steer_batch and line_batch leave no context without a trace: lower them')
        if self.action_head not in ACTION_HEADS or (self.action_head == 'continuous' and not self.action_layers):
            raise ValueError(
                f'action_head must be one of {list(ACTION_HEADS)}, continuous only with action_layers, '
                f'got {self.action_head!r}'
            )
        if self.steering not in STEERING:
            raise ValueError(f'steering must be one of {list(STEERING)}, got {self.steering!r}')
        if not 0 <= self.validation < 1 or not 0 <= self.ema < 1:
            raise ValueError('validation and ema must be 0 or more and below 1')
        if self.optimizer not in ('adamw', 'muon'):
            raise ValueError(f"optimizer must be 'adamw' or 'muon', got {self.optimizer!r}")
        if self.dtype not in ('float32', 'bfloat16'):
            raise ValueError(f"dtype must be 'float32' or 'bfloat16', got {self.dtype!r}")
        if self.init and self.network != Network():
            raise ValueError('the checkpoint in init has the shape of the network: remove network')
        if self.lora.rank and not self.init:
            raise ValueError('lora adapts the network of a checkpoint: name its folder in init')

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def stage(self, step: int) -> Stage:
        """Return the stage of a step."""
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        return self.stages[-1]

    def rows(self, mode: str, stage: Stage) -> list[int]:
        """Return which contexts of a step make a prompt of this mode: numbers in 0..batch - 1."""
        if mode not in ('action', 'steer', 'line'):
            return list(range(getattr(self, f'{mode}_batch')))
        steer = _spread(range(self.batch), self.steer_batch if stage.steer else 0)
        left = [i for i in range(self.batch) if i not in steer]
        line = _spread(left, self.line_batch if stage.line else 0)
        return {'steer': steer, 'line': line, 'action': [i for i in left if i not in line]}[mode]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def load(cls, path: Path) -> 'Recipe':
        """Read a recipe. Raises FileNotFoundError or ValueError naming the file and the field."""
        if not path.is_file():
            raise FileNotFoundError(f'{path} is missing: give a recipe, such as those in vla_training/recipes')
        try:
            return cls.from_dict(yaml.safe_load(path.read_text()))
        except (yaml.YAMLError, ValueError, TypeError) as error:
            raise ValueError(f'{path}: {error}') from None

    @classmethod
    def from_dict(cls, content: Any) -> 'Recipe':
        return _read(cls, content, '')


def _spread(values: Sequence[int], count: int) -> list[int]:
    """Return `count` of the values, evenly spread."""
    n = len(values)
    return [value for i, value in enumerate(values) if i * count % n < count] if count < n else list(values)


def _read(kind: type[T], content: Any, label: str) -> T:
    if not isinstance(content, dict):
        raise ValueError(f'{label or "the recipe"} must be a mapping, got {content!r}')
    content = {RENAMED.get(name, name): value for name, value in content.items()}
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(content) - known):
        raise ValueError(f'unknown field {label}{unknown[0]}; known are: {", ".join(sorted(known))}')
    hints = get_type_hints(kind)
    return kind(**{name: _convert(hints[name], value, f'{label}{name}') for name, value in content.items()})


def _convert(kind: Any, value: Any, label: str) -> Any:
    if is_dataclass(kind):
        return _read(kind, value, f'{label}.')  # type: ignore[type-var, arg-type]
    if getattr(kind, '__origin__', None) is tuple:
        return tuple(_convert(get_args(kind)[0], v, f'{label}[{i}]') for i, v in enumerate(value))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f'{label} must be {kind.__name__}, got {value!r}')
    return value
