"""Joint limits of a URDF, and a robot profile that is narrowed to them. No ROS."""

import xml.etree.ElementTree as ET
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vla_core.profile import RobotProfile

_SAME = 1e-4  # limits that are closer than this agree: profiles are rounded
_NARROW_IS_MORE = ('position_lower', 'velocity_offset', 'velocity_end_lower')


@dataclass(frozen=True)
class DescribedLimits:
    """Limits of joints in a URDF; arrays are (dof,) in the requested order.

    deceleration, velocity_offset: of libfranka's <position_based_velocity_limits>, None unless every joint has it. The
    velocity limit is v(q) = min(velocity, max(0, -offset + sqrt(2 deceleration (upper - q)))), and alike to lower.
    """

    position_lower: np.ndarray  # [rad]
    position_upper: np.ndarray  # [rad]
    velocity: np.ndarray  # [rad/s]
    effort: np.ndarray  # [Nm]
    deceleration: np.ndarray | None = None  # [rad/s^2]
    velocity_offset: np.ndarray | None = None  # [rad/s]


def joint_limits(urdf: str, joint_names: tuple[str, ...]) -> DescribedLimits:
    """Return the limits of these joints. Raises ValueError naming the joint and the missing or wrong entry."""
    try:
        robot = ET.fromstring(urdf)
    except ET.ParseError as error:
        raise ValueError(f'the robot description is not XML: {error}') from None
    joints = {joint.get('name'): joint for joint in robot.findall('joint')}
    if missing := [name for name in joint_names if name not in joints]:
        raise ValueError(
            f'the robot description {robot.get("name", "")!r} has no joint {", ".join(missing)}: is the robot profile '
            'the one of this robot?'
        )
    rows, slopes = [], []
    for name in joint_names:
        joint = joints[name]
        row = _numbers(joint.find('limit'), ('lower', 'upper', 'velocity', 'effort'), name, 'limit')
        if joint.get('type') != 'revolute':
            raise ValueError(f'joint {name} of the robot description is {joint.get("type")}, must be revolute')
        if not (row[0] < row[1] and row[2] > 0):
            raise ValueError(f'joint {name} of the robot description has the limits {row}: they allow no motion')
        rows.append(row)
        slope = joint.find('position_based_velocity_limits')
        if slope is not None:
            wanted = ('deceleration_limit', 'velocity_offset')
            slopes.append(_numbers(slope, wanted, name, 'position_based_velocity_limits'))
    if slopes and len(slopes) != len(rows):
        raise ValueError(
            f'{len(slopes)} of {len(rows)} joints of the robot description have position_based_velocity_limits: '
            'all or none must'
        )
    lower, upper, velocity, effort = np.array(rows).T
    deceleration, offset = np.array(slopes).T if slopes else (None, None)
    return DescribedLimits(lower, upper, velocity, effort, deceleration, offset)


def narrowed(profile: RobotProfile, limits: DescribedLimits) -> tuple[RobotProfile, list[str]]:
    """Return the profile with the narrower of both limits for each joint, and one sentence per difference."""
    described: dict[str, np.ndarray] = {
        'position_lower': limits.position_lower,
        'position_upper': limits.position_upper,
        'velocity': limits.velocity,
    }
    if limits.deceleration is not None and limits.velocity_offset is not None:
        described |= {
            'velocity_deceleration': limits.deceleration,
            'velocity_offset': limits.velocity_offset,
            'velocity_end_lower': limits.position_lower,
            'velocity_end_upper': limits.position_upper,
        }
    changes: dict[str, Any] = {}
    notes = []
    for name, theirs in described.items():
        ours = getattr(profile, name)
        if ours is None:
            changes[name] = theirs
            notes.append(f'{name} {theirs.tolist()} is taken from the robot description, the robot profile has none')
            continue
        changes[name] = (np.maximum if name in _NARROW_IS_MORE else np.minimum)(ours, theirs)
        notes += [
            f'{name} of {joint}: robot profile {a:.4f}, robot description {b:.4f}; the narrower counts'
            for joint, a, b in zip(profile.joint_names, ours, theirs, strict=True)
            if abs(a - b) > _SAME
        ]
    return replace(profile, **changes), notes


def _numbers(element: ET.Element | None, names: tuple[str, ...], joint: str, tag: str) -> list[float]:
    if element is None:
        raise ValueError(f'joint {joint} of the robot description has no <{tag}>')
    try:
        values = [float(element.get(name, 'nan')) for name in names]
    except ValueError as error:
        raise ValueError(f'joint {joint} of the robot description, <{tag}>: {error}') from None
    for name, value in zip(names, values, strict=True):
        if not np.isfinite(value):
            raise ValueError(f'joint {joint} of the robot description, <{tag}>: {name} is missing or not finite')
    return values
