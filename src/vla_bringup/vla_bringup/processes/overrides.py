"""Parameters on top of the robot profile: ROS parameter files, and mappings that are given at launch.

They are merged here, not by ROS: there a section for one node in a file would win over what the launch decides, and a
misspelt name would be ignored. `./vla parameters` writes config/parameters.json, which has what each node declares.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from ament_index_python.packages import get_package_share_directory

from vla_core.parameter_file import parse
from vla_core.profile import profile_path
from vla_model.checkpoints.shipped import KNOWN, RANDOM

Value = bool | int | float | str | list
TABLE = Path('config', 'parameters.json')
ROS = ('use_sim_time', 'start_type_description_service')  # what every node has
TYPES = {
    'bool': (bool,), 'int': (int,), 'float': (float,), 'text': (str,), 'float list': (list,), 'text list': (list,),
}  # fmt: skip
_FLOAT = re.compile(r'[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+')  # a number to ROS, text to PyYAML


def known() -> dict[str, dict[str, dict[str, Any]]]:
    """Node -> parameter -> type and, where there are such, low, high and choices. Empty without the table."""
    path = Path(get_package_share_directory('vla_bringup'), TABLE)
    return json.loads(path.read_text()) if path.is_file() else {}


def of_text(text: str, node: str, source: str) -> dict[str, Value]:
    """Parameters of a node from a YAML mapping, '{engine: eager, rate: 5.0}'. source: the argument that has it.

    Raises ValueError naming a parameter that the node does not have, or a value that it cannot have.
    """
    try:
        content = parse(text)
    except yaml.YAMLError as error:
        raise ValueError(f'{source} is no YAML mapping, {{name: value, ...}}: {error}') from None
    if content is not None and not isinstance(content, dict):
        raise ValueError(f'{source} is {text!r}: must be a YAML mapping, {{name: value, ...}}')
    return checked(_flat(content or {}), node, source)


def checked(values: Mapping[str, Any], node: str, source: str) -> dict[str, Value]:
    """Parameters that are for this node alone, integers as floats where it has floats. Raises as of_text."""
    _refuse_unknown(values, [node], source)
    return _typed(values, node, source)


def of_file(path: str, node: str, namespace: str, *, ours: bool = True) -> dict[str, Value]:
    """What a ROS parameter file has for a node, by name, later sections over earlier ones.

    ours: each section must be for nodes of the suite in this namespace. Raises ValueError naming file, section and
    parameter: a file that is none, a section for no node, a parameter that no node has, a value that it cannot have.
    """
    table, found = known(), dict[str, Any]()
    for section, values in _sections(path):
        pattern = _pattern(section)
        nodes = [name for name in table if pattern.fullmatch(f'{namespace}/{name}')]
        if table and not nodes:
            if not ours:
                continue
            named = ', '.join(f'{namespace}/{name}' for name in table)
            raise ValueError(f'{path}: section {section} is for none of the nodes: give /** or one of {named}')
        _refuse_unknown(values, nodes, path)
        if pattern.fullmatch(f'{namespace}/{node}'):
            found |= values
    return _typed(found, node, path)


def merged(
    node: str, namespace: str, robot: str, params_file: str, arguments: Mapping[str, Value],
    more: Mapping[str, Value] | None = None, defaults: Mapping[str, Value] | None = None,
) -> dict[str, Value]:  # fmt: skip
    """All parameters of a node: defaults, the profile of the robot, params_file (may be ''), arguments, and `more`.

    The later one wins; but params_file and `more` must not have another value than an argument, which says what the
    launch is for (drive, say). Raises ValueError as of_file, and where they do.
    """
    file = of_file(params_file, node, namespace) if params_file else {}
    more = checked(more or {}, node, f'{node}_parameters')
    for source, values in ((params_file, file), (f'{node}_parameters', more)):
        for name in values.keys() & arguments.keys():
            if values[name] != arguments[name]:
                raise ValueError(
                    f'{source} sets {name} of {node} to {values[name]!r}, but {name} is an argument of its own, and '
                    f'that is {arguments[name]!r}: leave it out, or give the argument'
                )
    base = of_file(profile_path(robot), node, namespace, ours=False)
    return {**(defaults or {}), **base, **file, **arguments, **more}


# Launch arguments that choose the model, and those that set parameters: name -> what it is for.
MODEL = {
    'model': f'{KNOWN}; empty: as the parameters have it, else {RANDOM}',
    'device': 'torch device of the model: cpu, cuda, cuda:1; empty: as the parameters have it, else cpu',
}
ARGUMENTS = {
    'params_file': 'ROS parameter file on top of the robot profile; empty: none',
    'executor_parameters': 'of the executor, on top of that: a YAML mapping, "{rate: 200.0, seams: cross_fade}"',
    'policy_parameters': 'of the policy, on top of that: a YAML mapping, "{engine: eager, plan_rate: 0.0}"',
    'velocity_fraction': 'of the executor: largest speed, as a fraction of the limits; 0.2 for a first motion; empty: '
    'as the parameters have it',
}


def of_arguments(values: Mapping[str, str], prefix: str = '') -> dict[str, Any]:
    """What the launch arguments of these names, behind the prefix, give to nodes.policy_nodes. Raises as of_text."""
    text = {name: values.get(prefix + name, '').strip() for name in ARGUMENTS}
    found: dict[str, Any] = {'params_file': str(Path(text['params_file']).absolute()) if text['params_file'] else ''}
    for node in ('executor', 'policy'):
        name = f'{node}_parameters'
        found[name] = of_text(text[name], node, prefix + name)
    if text['velocity_fraction']:
        name = 'velocity_fraction'
        only = of_text(f'{{{name}: {text[name]}}}', 'executor', prefix + name)
        if found['executor_parameters'].get(name, only[name]) != only[name]:
            raise ValueError(f'{prefix}{name} and {prefix}executor_parameters give two values of {name}: leave one out')
        found['executor_parameters'] |= only
    return found


def _sections(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(full name of nodes, may have * and **; their parameters, flat) in the order of the file."""
    try:
        content = parse(Path(path).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f'parameter file {path} cannot be read: {error}') from None
    except yaml.YAMLError as error:
        raise ValueError(f'parameter file {path} is not YAML: {error}') from None
    found = list(_below(content, '')) if isinstance(content, dict) else []
    if not found:
        raise ValueError(f'{path} is no ROS parameter file: it needs a node, or /**, and below it ros__parameters')
    yield from found


def _below(tree: dict[str, Any], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for key, value in tree.items():
        if key == 'ros__parameters' and name:
            yield name, _flat(value or {})
        elif isinstance(value, dict):
            yield from _below(value, f'{name}/{str(key).strip("/")}')


def _pattern(section: str) -> re.Pattern[str]:
    """Of the nodes that a section is for: * is one name, ** any number of them, as in ROS."""
    parts = ['(/[^/]+)*' if p == '**' else '/[^/]+' if p == '*' else '/' + re.escape(p) for p in section[1:].split('/')]
    return re.compile(''.join(parts))


def _flat(tree: dict[str, Any], prefix: str = '') -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _flat(value, f'{prefix}{key}.') if isinstance(value, dict) else {f'{prefix}{key}': value}
    return found


def _refuse_unknown(values: Mapping[str, Any], nodes: list[str], source: str) -> None:
    table = known()
    names = {name for node in nodes for name in table.get(node, ())}
    groups = {name.removesuffix('*') for name in names if name.endswith('.*')}
    for name in values if table else ():
        if name in names or name in ROS or name.startswith(('qos_overrides.', *groups)):
            continue
        close = difflib.get_close_matches(name, names, 2)
        hint = f'did you mean {" or ".join(close)}?' if close else 'docs/reference/parameters.md lists them'
        who = f'{nodes[0]} has no' if len(nodes) == 1 else 'no node has a'
        raise ValueError(f'{source}: {who} parameter {name}: {hint}')


def _typed(values: Mapping[str, Any], node: str, source: str) -> dict[str, Value]:
    table = known().get(node, {})
    return {name: _value(value, table.get(name, {}), f'{source}: {name} of {node}') for name, value in values.items()}


def _value(value: Any, about: Mapping[str, Any], label: str) -> Value:
    kind = about.get('type', '')
    if kind == 'float':
        value = _number(value)
    elif kind == 'float list' and isinstance(value, list):
        value = [_number(v) for v in value]
    wanted: Any = TYPES.get(kind, (bool, int, float, str, list))
    if not isinstance(value, wanted) or (kind == 'int' and isinstance(value, bool)):
        raise ValueError(f'{label} is {value!r}: must be {kind or "a bool, number, text or list"}')
    each = {'float list': float, 'text list': str}.get(kind)
    if each and isinstance(value, list) and not all(isinstance(v, each) for v in value):
        raise ValueError(f'{label} is {value!r}: must be a {kind}')
    if 'low' in about and not about['low'] <= value <= about['high']:
        raise ValueError(f'{label} is {value:g}: must be {about["low"]:g} to {about["high"]:g}')
    if about.get('choices') and value not in about['choices']:
        raise ValueError(f'{label} is {value!r}: must be one of {", ".join(about["choices"])}')
    return value


def _number(value: Any) -> Any:
    """A float where ROS would take one."""
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return float(value) if isinstance(value, str) and _FLOAT.fullmatch(value) else value
