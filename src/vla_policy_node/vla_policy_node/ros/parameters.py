"""Declare parameters with a description and a range in one line, and read the robot profile from parameters."""

from dataclasses import MISSING, fields
from typing import Any

import numpy as np
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node
from rclpy.parameter import Parameter

from vla_core.profile import RobotProfile, names_of

_LISTS = tuple(kind for kind in Parameter.Type if kind.name.endswith('_ARRAY'))

CHOICES = 'one of: '  # before the values that a parameter may have, in the constraints of its descriptor


def declare(
    node: Node,
    name: str,
    default: Any,
    description: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    read_only: bool = False,
    optional: bool = False,
) -> Any:
    """Declare once (a second call only reads) and return the value.

    default: a value, or a Parameter.Type for a parameter that must be given, or that is None otherwise if optional.
    An empty list may be given as [] or, where a list of texts is expected, as ['']; both return [].
    Raises ValueError naming the parameter when it is missing, of another type, outside [low, high] or not among
    choices, or when a list has an empty text among others.
    """
    kind = default if isinstance(default, Parameter.Type) else Parameter.Type.from_parameter_value(default)
    empty = _given_empty(node, name)
    if empty and kind not in _LISTS:
        raise ValueError(f'parameter {name} ({description}) was given without a value: give one, or leave it out')
    if not node.has_parameter(name):
        descriptor = ParameterDescriptor(description=description, read_only=read_only)
        if low is not None and high is not None:
            if kind is Parameter.Type.INTEGER:
                descriptor.integer_range = [IntegerRange(from_value=int(low), to_value=int(high), step=0)]
            else:
                descriptor.floating_point_range = [
                    FloatingPointRange(from_value=float(low), to_value=float(high), step=0.0)
                ]
        if choices:
            descriptor.additional_constraints = CHOICES + ', '.join(choices)
        try:
            # An empty list has no type in ROS: it stays as a list that is not set.
            node.declare_parameter(name, kind if empty else default, descriptor, ignore_override=empty)
        except Exception as error:
            raise ValueError(f'parameter {name} ({description}): {error}') from error
    parameter = node.get_parameter_or(name, None)
    if parameter is None or parameter.type_ is Parameter.Type.NOT_SET:
        if empty:
            return []
        if optional:
            return None
        raise ValueError(f'parameter {name} must be given: {description}')
    if choices and parameter.value not in choices:
        raise ValueError(f'parameter {name} is {parameter.value!r}, must be one of: {", ".join(choices)}')
    if kind is Parameter.Type.STRING_ARRAY:
        return names_of(parameter.value, f'parameter {name}')
    return parameter.value


def _given_empty(node: Node, name: str) -> bool:
    """Whether a parameter was given as an empty list, which rcl hands on as a parameter without a value."""
    given = node._parameter_overrides.get(name)  # rclpy has no other way
    return given is not None and (given.type_ is Parameter.Type.NOT_SET or given.value in ([], b''))


def refuse_unknown(node: Node, prefix: str) -> None:
    """Raise ValueError naming a parameter that was given below `prefix` and that the node has not declared.

    ROS itself ignores such a one, and a limit that is misspelt would limit nothing. Call it when all are declared; only
    for what is below a prefix, as a parameter file has the parameters of several nodes.
    """
    known = node.get_parameters_by_prefix(prefix)
    given = (name for name in node._parameter_overrides if name.startswith(f'{prefix}.'))  # rclpy has no other way
    unknown = sorted(name for name in given if name.removeprefix(f'{prefix}.') not in known)
    if unknown:
        known_names = ', '.join(sorted(known))
        raise ValueError(f'there is no parameter {", ".join(unknown)}; below {prefix} there are: {known_names}')


def refuse_renamed(node: Node, names: dict[str, str]) -> None:
    """Raise ValueError naming a parameter that was given under its former name, which ROS would ignore.

    names: former name -> name now; a name that ends in a dot is a prefix.
    """
    for given in sorted(node._parameter_overrides):  # rclpy has no other way
        for former, now in names.items():
            if given == former or (former.endswith('.') and given.startswith(former)):
                raise ValueError(f'parameter {given} is called {now}{given.removeprefix(former)} now: rename it')


ABOUT = {  # field of RobotProfile -> meaning
    'name': 'name of the robot',
    'base_frame': 'frame that the joint chain starts from',
    'tool_frame': 'link of the robot description that is the tool, or that tool_offset counts from',
    'tool_offset': 'where the tool is in the tool frame: x, y, z [m], roll, pitch, yaw [rad]; else it is that frame',
    'joint_names': 'arm joints; everything per joint is in this order',
    'position_lower': 'hard lower position limits [rad]',
    'position_upper': 'hard upper position limits [rad]',
    'velocity': 'velocity limits [rad/s]',
    'acceleration': 'acceleration limits [rad/s^2]',
    'jerk': 'jerk limits [rad/s^3]',
    'home': 'home position [rad]',
    'gripper_joint_names': 'finger joints whose positions add up to the opening; [] or [""]: no gripper',
    'gripper_max_opening': 'largest opening [m]; 0 without a gripper',
    'tool_speed': 'largest speed of the tool [m/s]',
    'workspace': 'where the tool may be in the base frame: lower x, y, z, upper x, y, z [m]; poses that a model asks '
    'for are moved onto its sides, and the collision monitor holds the arm there',
    'velocity_deceleration': 'deceleration of the velocity limit towards the ends of the position range [rad/s^2]',
    'velocity_offset': 'offset of the velocity limit towards the ends of the position range [rad/s]',
    'velocity_end_lower': 'lower end of the range that this velocity limit counts from [rad]',
    'velocity_end_upper': 'upper end of the range that this velocity limit counts from [rad]',
}


def declare_profile(node: Node) -> RobotProfile:
    """Declare the `robot.*` parameters and return them as a RobotProfile. Raises ValueError naming what is wrong."""
    values = {}
    for f in fields(RobotProfile):
        kinds: dict[Any, Parameter.Type] = {
            np.ndarray: Parameter.Type.DOUBLE_ARRAY,
            np.ndarray | None: Parameter.Type.DOUBLE_ARRAY,
            str: Parameter.Type.STRING,
            float: Parameter.Type.DOUBLE,
        }
        kind = kinds.get(f.type, Parameter.Type.STRING_ARRAY)
        about, optional = ABOUT[f.name] + ' (robot profile)', f.default is not MISSING
        values[f.name] = declare(node, f'robot.{f.name}', kind, about, read_only=True, optional=optional)
    refuse_unknown(node, 'robot')
    return RobotProfile.from_dict(values)
