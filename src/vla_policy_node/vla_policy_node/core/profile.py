"""The robot profile: everything about one robot that is not code. Read from a ROS parameter file."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml


@dataclass(frozen=True)
class RobotProfile:
    """Facts of one robot. Arrays are (dof,) in the order of joint_names."""

    name: str
    base_frame: str
    tool_frame: str
    joint_names: tuple[str, ...]
    position_lower: np.ndarray  # [rad] hard limits
    position_upper: np.ndarray  # [rad]
    velocity: np.ndarray  # [rad/s] largest magnitude
    acceleration: np.ndarray  # [rad/s^2] largest magnitude
    home: np.ndarray  # [rad]
    gripper_joint_names: tuple[str, ...]  # their positions add up to the opening; empty: no gripper
    gripper_max_opening: float  # [m]

    def __post_init__(self) -> None:
        dof = len(self.joint_names)
        if dof == 0 or len(set(self.joint_names)) != dof:
            raise ValueError(f'robot.joint_names must be distinct and not empty, got {list(self.joint_names)}')
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, np.ndarray) and (value.shape != (dof,) or not np.isfinite(value).all()):
                raise ValueError(f'robot.{f.name} needs {dof} finite numbers, one per joint, got {value.tolist()}')
        if not (self.position_lower < self.position_upper).all():
            raise ValueError('robot.position_lower must be below robot.position_upper for every joint')
        if (self.velocity <= 0).any() or (self.acceleration <= 0).any():
            raise ValueError('robot.velocity and robot.acceleration must be above zero for every joint')
        if ((self.home < self.position_lower) | (self.home > self.position_upper)).any():
            raise ValueError('robot.home lies outside the position limits')

    @property
    def dof(self) -> int:
        return len(self.joint_names)

    @classmethod
    def from_dict(cls, robot: dict[str, Any]) -> 'RobotProfile':
        """From the `robot` mapping of a profile. Raises ValueError naming the missing or wrong entry."""
        values: dict[str, Any] = {}
        for f in fields(cls):
            if f.name not in robot:
                raise ValueError(f'the robot profile lacks robot.{f.name}')
            value = robot[f.name]
            if f.type is np.ndarray:
                value = np.asarray(value, float)
            elif f.name.endswith('joint_names'):
                value = tuple(value)
            values[f.name] = value
        return cls(**values)

    @classmethod
    def load(cls, path: str | Path) -> 'RobotProfile':
        """From a profile file, the one the nodes get as their parameter file."""
        content = yaml.safe_load(Path(path).read_text())
        try:
            return cls.from_dict(content['/**']['ros__parameters']['robot'])
        except (KeyError, TypeError):
            raise ValueError(f'{path} is no robot profile: it lacks /** ros__parameters robot') from None
