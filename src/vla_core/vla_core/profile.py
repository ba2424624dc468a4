"""The robot profile: all values of one robot that are not code. It is read from a ROS parameter file.

A robot is given by the name of a profile of the suite, or by the path of a file. `profile_path` finds both, for every
command and launch file.
"""

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from ament_index_python.packages import PackageNotFoundError, get_package_share_directory

from vla_core.parameter_file import parse

_LAW = ('velocity_deceleration', 'velocity_offset', 'velocity_end_lower', 'velocity_end_upper')
_SIX = {'workspace': (6, 'two corners'), 'tool_offset': (6, 'x, y, z, roll, pitch, yaw')}


@dataclass(frozen=True)
class RobotProfile:
    """Values of one robot. Arrays are (dof,) in the order of joint_names. Raises ValueError naming a wrong one."""

    name: str
    base_frame: str
    tool_frame: str
    joint_names: tuple[str, ...]
    position_lower: np.ndarray  # [rad] hard limits
    position_upper: np.ndarray  # [rad]
    velocity: np.ndarray  # [rad/s] largest magnitude
    acceleration: np.ndarray  # [rad/s^2] largest magnitude
    jerk: np.ndarray  # [rad/s^3] largest magnitude
    home: np.ndarray  # [rad]
    gripper_joint_names: tuple[str, ...]  # their positions add up to the opening; empty: no gripper
    tool_speed: float  # [m/s] largest speed of the tool
    gripper_max_opening: float = 0.0  # [m] above zero with a gripper
    # Pose of the tool in the tool frame, where the robot description lacks it: x, y, z [m], roll, pitch, yaw [rad].
    # None: the tool is at the tool frame.
    tool_offset: np.ndarray | None = None
    # Box for the tool: lower x, y, z, upper x, y, z in the base frame [m]. The collision monitor keeps the tool inside;
    # poses of a model outside are moved onto its sides.
    workspace: np.ndarray | None = None
    # Velocity limits that fall towards the ends of the position range, as the FR3 has them; all four or none. Upwards
    # v(q) = min(velocity, max(0, -offset + sqrt(2 deceleration (end_upper - q)))), downwards alike with q - end_lower.
    velocity_deceleration: np.ndarray | None = None  # [rad/s^2]
    velocity_offset: np.ndarray | None = None  # [rad/s]
    velocity_end_lower: np.ndarray | None = None  # [rad] end of the range that the formula counts from
    velocity_end_upper: np.ndarray | None = None  # [rad]

    def __post_init__(self) -> None:
        dof = len(self.joint_names)
        if dof == 0 or len(set(self.joint_names)) != dof:
            raise ValueError(f'robot.joint_names must be distinct and not empty, got {list(self.joint_names)}')
        if self.gripper_joint_names and not self.gripper_max_opening > 0:
            raise ValueError(
                f'robot.gripper_max_opening must be above zero for the finger joints {list(self.gripper_joint_names)}, '
                f'got {self.gripper_max_opening}'
            )
        for f in fields(self):
            value = getattr(self, f.name)
            size, each = _SIX.get(f.name, (dof, 'one per joint'))
            if isinstance(value, np.ndarray) and (value.shape != (size,) or not np.isfinite(value).all()):
                raise ValueError(f'robot.{f.name} needs {size} finite numbers, {each}, got {value.tolist()}')
        if not (self.position_lower < self.position_upper).all():
            raise ValueError('robot.position_lower must be below robot.position_upper for every joint')
        for name in ('velocity', 'acceleration', 'jerk', 'tool_speed'):
            if not (getattr(self, name) > 0 if name == 'tool_speed' else (getattr(self, name) > 0).all()):
                raise ValueError(f'robot.{name} must be above zero')
        if self.workspace is not None and not (self.workspace[:3] < self.workspace[3:]).all():
            raise ValueError(f'robot.workspace {self.workspace.tolist()}: must be lower x, y, z, then upper x, y, z')
        given = [n for n in _LAW if getattr(self, n) is not None]
        if len(given) not in (0, len(_LAW)):
            raise ValueError(f'robot.{", ".join(given)} given, but not all of {", ".join(_LAW)}: give all or none')
        law = self.velocity_law
        if law is not None and ((law[0] <= 0).any() or (law[1] < 0).any()):
            raise ValueError('robot.velocity_deceleration must be above zero, robot.velocity_offset not below')
        if ((self.home < self.position_lower) | (self.home > self.position_upper)).any():
            raise ValueError('robot.home is outside the position limits')

    @property
    def velocity_law(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
        """deceleration, offset, end_lower and end_upper of the velocity law, (dof,) each; None without one."""
        a, offset, lower, upper = (getattr(self, name) for name in _LAW)
        return None if a is None else (a, offset, lower, upper)

    @property
    def dof(self) -> int:
        return len(self.joint_names)

    @classmethod
    def from_dict(cls, robot: dict[str, Any]) -> 'RobotProfile':
        """Return the profile of a `robot` mapping. Raises ValueError naming the missing or wrong entry."""
        values: dict[str, Any] = {}
        for f in fields(cls):
            value = robot.get(f.name)
            if value is None:
                if f.default is MISSING:
                    raise ValueError(f'the robot profile lacks robot.{f.name}')
                continue
            if f.type in (np.ndarray, np.ndarray | None):
                value = np.asarray(value, float)
            elif f.name.endswith('joint_names'):
                value = tuple(names_of(value, f'robot.{f.name}'))
            values[f.name] = value
        return cls(**values)

    @classmethod
    def load(cls, robot: str | Path) -> 'RobotProfile':
        """Return the profile of a robot, by name or file. Raises ValueError naming the missing or wrong entry."""
        return cls.from_dict(profile_parameters(robot)['robot'])


def _shipped() -> list[Path]:
    """Return the files of the suite's profiles; none where vla_bringup, which contains them, is not installed."""
    try:
        folder = Path(get_package_share_directory('vla_bringup'), 'config', 'robots')
    except PackageNotFoundError:
        return []
    return sorted(folder.glob('*.yaml'))


def profile_names() -> list[str]:
    """Return the names of the suite's robot profiles."""
    return [path.stem for path in _shipped()]


def profile_path(robot: str | Path) -> str:
    """Return the file of a robot profile, given by name (sim_panda) or by path. Raises ValueError without one."""
    if Path(robot).is_file():
        return str(Path(robot).absolute())
    for path in _shipped():
        if path.stem == str(robot):
            return str(path)
    raise ValueError(f"no robot profile '{robot}': give a file, or one of {', '.join(profile_names())}")


def profile_parameters(robot: str | Path) -> dict[str, Any]:
    """Return the parameters in a robot profile, by name or file. Raises ValueError for a file that is none."""
    path = profile_path(robot)
    try:
        parameters = parse(Path(path).read_text())['/**']['ros__parameters']
        if isinstance(parameters['robot'], dict):
            return parameters
    except (KeyError, TypeError, UnicodeDecodeError):
        pass
    except yaml.YAMLError as error:
        raise ValueError(f'{path} is not YAML ({error}): mend it') from None
    raise ValueError(f'{path} is no robot profile: it lacks /** ros__parameters robot')


def names_of(value: Sequence[str], what: str) -> list[str]:
    """Return the names in a list; [''] means none, because ROS drops a list that is written [].

    what: name of the list for ValueError, which is raised for a text in its place, and for empty names.
    """
    if isinstance(value, str):
        raise ValueError(f'{what} must be a list of names, got {value!r}')
    names = [] if list(value) == [''] else list(value)
    if '' in names:
        raise ValueError(f'{what} has an empty name among others: {names}')
    return names
