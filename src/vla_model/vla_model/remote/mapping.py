"""The mapping between a robot and a policy server: keys, images, units, and what the numbers of an action mean.

A mapping is a YAML file of the user, or a shipped one by name. docs/reference/mapping.md describes all fields.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vla_model.remote.rotations import FORMS

FOLDER = Path(__file__).parent / 'mappings'
VELOCITY = 'joint_velocity'  # beside config.ACTION_SPACES: each step is the one before plus velocity * dt
JOINT_SPACES = ('joint_position', 'joint_delta', VELOCITY)
Space = Literal[
    'joint_position', 'joint_delta', 'joint_velocity', 'ee_position', 'ee_relative', 'ee_delta', 'osc_delta'
]
Form = Literal[
    'rotation_vector', 'rotation_vector_positive_x', 'euler_xyz', 'quaternion_wxyz', 'quaternion_xyzw', 'columns'
]  # the keys of FORMS
Key = str | Annotated[tuple[str, ...], Field(min_length=1)]  # several: of dicts inside each other
Index = Annotated[int, Field(ge=0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[Finite, Field(gt=0)]


# Fields of each part of the state.
_FIELDS = {
    'joints': {'columns'}, 'velocities': {'columns'}, 'gripper': {'closed', 'open'}, 'constant': {'values'},
    'tool_position': {'offset', 'along'}, 'tool_rotation': {'form'},
}  # fmt: skip


class Strict(BaseModel):
    """Fields are constant, and unknown ones are refused."""

    model_config = ConfigDict(frozen=True, extra='forbid')


class Picture(Strict):
    """An image of the request."""

    camera: str  # of the robot
    key: Key
    size: tuple[Annotated[int, Field(ge=1, le=8192)], Annotated[int, Field(ge=1, le=8192)]] | None = None  # [px] h, w
    fit: Literal['letterbox', 'stretch'] = 'letterbox'  # letterbox: black borders keep the ratio of the edges
    flip: Literal['none', 'horizontal', 'vertical', 'both'] = 'none'  # both: turned by 180 degrees
    layout: Literal['hwc', 'chw'] = 'hwc'


class Joints(Strict):
    """The joints of the robot, in the units of the server: number = sign * unit(q) + zero. Lists: one per joint.

    percent: -100 and 100 at the ends low and high of the calibrated range, as LeRobot counts without degrees.
    """

    count: Annotated[int, Field(ge=1)]
    names: tuple[str, ...] = ()  # of the robot profile, in its order; empty: not checked
    unit: Literal['rad', 'deg', 'percent'] = 'rad'
    low: tuple[Finite, ...] = ()  # [rad] percent: the joint at -100
    high: tuple[Finite, ...] = ()  # [rad] and at 100
    sign: tuple[Literal[1, -1], ...] = ()
    zero: tuple[Finite, ...] = ()  # what the server calls the zero of the robot
    rest: tuple[Finite, ...] = ()  # [rad] a pose of the robot, for the first request

    @model_validator(mode='after')
    def _check(self) -> 'Joints':
        for name in ('names', 'sign', 'zero', 'rest', 'low', 'high'):
            value = getattr(self, name)
            if value and len(value) != self.count:
                raise ValueError(f'{name} needs {self.count} entries, one per joint, got {len(value)}')
        ends = np.array(self.high) - np.array(self.low) if len(self.low) == len(self.high) else np.zeros(1)
        if (self.unit == 'percent') != bool(self.low) or not (ends > 0).all():
            raise ValueError('low and high are for unit percent, which needs both, low below high')
        return self

    @property
    def line(self) -> tuple[np.ndarray, np.ndarray]:
        """Factor and bias, (count,) each: number of the server = factor * position [rad] + bias."""
        factor, bias = np.ones(self.count), np.zeros(self.count)
        if self.unit == 'deg':
            factor *= 180 / np.pi
        elif self.unit == 'percent':
            factor = 200 / (np.array(self.high) - self.low)
            bias = -100 - factor * self.low
        sign = np.array(self.sign or factor**0)
        return factor * sign, bias * sign + np.array(self.zero or 0.0)


class Gripper(Strict):
    """Openings between the fingers [m]: of the closed and of the open gripper."""

    closed: Annotated[Finite, Field(ge=0)] = 0.0
    open: Positive | None = None  # None: the numbers of the server are openings [m] themselves

    @model_validator(mode='after')
    def _check(self) -> 'Gripper':
        if self.open is not None and not self.closed < self.open:
            raise ValueError(f'closed must be below open, got {self.closed} and {self.open}')
        return self


class Part(Strict):
    """Numbers of the state that stand beside each other."""

    part: Literal['joints', 'velocities', 'gripper', 'tool_position', 'tool_rotation', 'constant']
    columns: tuple[Index, ...] = ()  # joints, velocities: which ones, in the order of the server; empty: all
    closed: Finite = 0.0  # gripper: the server's number when it is closed
    open: Finite = 1.0
    offset: tuple[Finite, Finite, Finite] = (0.0, 0.0, 0.0)  # tool_position: [m] added, in the base frame
    along: Finite = 0.0  # tool_position: [m] added along the z axis of the tool
    form: Form = 'rotation_vector'  # tool_rotation
    values: tuple[Finite, ...] = ()  # constant

    @model_validator(mode='after')
    def _check(self) -> 'Part':
        if strangers := sorted(self.model_fields_set - {'part'} - _FIELDS[self.part]):
            raise ValueError(f'{strangers[0]} is not for a part {self.part!r}')
        if self.part == 'constant' and not self.values:
            raise ValueError("a part 'constant' needs values")
        return self


class State(Strict):
    """One array of the request."""

    key: Key
    parts: Annotated[tuple[Part, ...], Field(min_length=1)]
    dtype: Literal['float32', 'float64'] = 'float32'


class GripperAction(Strict):
    """The number of an action for the gripper."""

    column: Index
    closed: Finite = 0.0  # its number for the closed gripper
    open: Finite = 1.0
    threshold: Finite | None = None  # closed or open, by the side of this number; None: every opening between

    @model_validator(mode='after')
    def _check(self) -> 'GripperAction':
        if self.closed == self.open:
            raise ValueError(f'closed and open must differ, both are {self.open}')
        return self


class Actions(Strict):
    """What the numbers of the reply mean: clipped, times scale, in the units of the joints, in the space."""

    key: Key = 'actions'
    space: Space
    columns: tuple[Index, ...] = ()  # of the arm, in the order of the robot's joints; empty: the first ones
    width: Annotated[int, Field(ge=0)] = 0  # numbers of a step; 0: any that has the columns
    clip: Positive | None = None  # larger numbers are clipped to it
    norm: Positive | None = None  # a step whose numbers have a larger Euclidean norm is scaled down to it
    scale: Finite | tuple[Finite, ...] = 1.0  # of numbers that are no absolute joint positions; a tuple: per column
    form: Form = 'rotation_vector'  # of the rotation in actions of the tool
    offset: tuple[Finite, Finite, Finite] = (0.0, 0.0, 0.0)  # ee_position: as in the state, [m]
    gripper: GripperAction | None = None

    @property
    def joints(self) -> bool:
        """Whether the numbers are of the joints."""
        return self.space in JOINT_SPACES


class Mapping(Strict):
    """All of a mapping file."""

    name: str
    dt: Positive  # [s] between two steps
    steps: Annotated[int, Field(ge=1)]  # of a reply that are used
    prompt: Key = 'prompt'
    joints: Joints
    gripper: Gripper | None = None
    cameras: Annotated[tuple[Picture, ...], Field(min_length=1)]
    state: tuple[State, ...] = ()
    constants: dict[str, Any] = {}  # more entries of the request
    actions: Actions

    @model_validator(mode='after')
    def _check(self) -> 'Mapping':
        entries = (self.prompt, *(c.key for c in self.cameras), *(s.key for s in self.state), *self.constants)
        keys = [path_of(key) for key in entries]
        for i, key in enumerate(keys):
            if any(key == other[: len(key)] or other == key[: len(other)] for other in keys[:i]):
                raise ValueError(f'the key {"/".join(key)!r} is used twice')
        names = self.camera_names
        if len(set(names)) != len(names):
            raise ValueError(f'each camera may be named once, got {list(names)}')
        for part in (p for s in self.state for p in s.parts):
            if part.part == 'gripper' and self.gripper is None:
                raise ValueError('the state has a gripper: give gripper with its openings [m]')
            if max(part.columns, default=0) >= self.joints.count:
                raise ValueError(f'columns {list(part.columns)} of the state: the robot has {self.joints.count} joints')
        if (self.gripper is None) != (self.actions.gripper is None):
            raise ValueError('gripper and actions.gripper go together: give both, or none')
        if self.gripper is not None and self.gripper.open is None:
            grippers = [self.actions.gripper, *(p for s in self.state for p in s.parts if p.part == 'gripper')]
            if any(g is not None and g.model_fields_set & {'closed', 'open', 'threshold'} for g in grippers):
                raise ValueError('without gripper.open the numbers are openings [m]: closed and open have no meaning')
        self._check_actions()
        return self

    def _check_actions(self) -> None:
        actions, needed = self.actions, self.arm_numbers
        if actions.columns and len(actions.columns) != needed:
            raise ValueError(f'actions.columns: {actions.space} needs {needed}, got {len(actions.columns)}')
        if isinstance(actions.scale, tuple) and len(actions.scale) != needed:
            raise ValueError(f'actions.scale: one number, or {needed}, got {len(actions.scale)}')
        given = [name for name in ('clip', 'norm', 'scale') if name in actions.model_fields_set]
        if actions.space == 'joint_position' and given:
            raise ValueError(
                f'{", ".join(given)} of actions are not for joint_position: unit, sign and zero of joints are'
            )
        if actions.space != 'ee_position' and 'offset' in actions.model_fields_set:
            raise ValueError('actions.offset is for ee_position')
        if actions.width and actions.width < self.width:
            raise ValueError(f'actions.width {actions.width}: the columns need {self.width}')
        if actions.joints and actions.form != 'rotation_vector':
            raise ValueError('actions.form is for actions of the tool')

    @property
    def arm_numbers(self) -> int:
        """Numbers of a step for the arm, as the server counts them."""
        return self.joints.count if self.actions.joints else 3 + FORMS[self.actions.form][0]

    @property
    def columns(self) -> tuple[int, ...]:
        """Columns of the arm in a step."""
        return self.actions.columns or tuple(range(self.arm_numbers))

    @property
    def width(self) -> int:
        """Numbers that a step has at least."""
        gripper = self.actions.gripper
        return max(*self.columns, gripper.column if gripper else 0) + 1

    @property
    def camera_names(self) -> tuple[str, ...]:
        return tuple(p.camera for p in self.cameras)

    @property
    def needs_tool(self) -> bool:
        """Whether the state has the pose of the tool."""
        return any(p.part.startswith('tool') for s in self.state for p in s.parts)

    @property
    def rest(self) -> np.ndarray:
        """(joints,) [rad] a pose for the first request."""
        return np.array(self.joints.rest or [0.0] * self.joints.count)


def path_of(key: Key) -> tuple[str, ...]:
    """Return the keys of the dicts inside each other that lead to an entry."""
    return (key,) if isinstance(key, str) else key


def shipped() -> list[str]:
    """Return the names of the mappings that come with the suite."""
    return sorted(path.stem for path in FOLDER.glob('*.yaml'))


def load_mapping(name: str | Path) -> Mapping:
    """Return the mapping of a file or of a shipped name. Raises FileNotFoundError or ValueError naming the field."""
    path = Path(name).expanduser()
    if not path.is_file():
        path = FOLDER / f'{name}.yaml'
    if not path.is_file():
        raise FileNotFoundError(f'there is no mapping {name}: give a file, or one of {", ".join(shipped())}')
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f'mapping {path} is not YAML ({error}): mend it') from None
    return parse_mapping(content, f'mapping {path}')


def parse_mapping(content: Any, source: str) -> Mapping:
    """Return the mapping of a parsed file. Raises ValueError naming the source and the wrong field."""
    try:
        return Mapping.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = '.'.join(str(word) for word in first['loc'] if not str(word).startswith(('tuple[', 'constrained-')))
        text = first['msg'].removeprefix('Value error, ')
        got = '' if first['type'] in ('missing', 'value_error') else f', got {first["input"]!r}'
        if first['type'] == 'extra_forbidden':
            text, got = 'is not known: remove it, or correct its name', ''
        raise ValueError(f'{source}: {field + ": " if field else ""}{text}{got}') from None
