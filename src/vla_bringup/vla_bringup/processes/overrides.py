"""Parameters on top of the robot profile: ROS parameter files, and mappings of launch arguments.

They are merged here and not by ROS: with ROS a section for one node would override the launch arguments, and a misspelt
name would be ignored. `./vla parameters` writes config/parameters.json with the declared parameters of each node.
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
ROS = ('use_sim_time', 'start_type_description_service')  # of every node
TYPES = {
    'bool': (bool,), 'int': (int,), 'float': (float,), 'text': (str,), 'float list': (list,), 'text list': (list,),
}  # fmt: skip
_FLOAT = re.compile(r'[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+')  # a number for ROS, text for PyYAML


def known() -> dict[str, dict[str, dict[str, Any]]]:
    """Return node -> parameter -> type and, if declared, low, high and choices. Empty without the table."""
    path = Path(get_package_share_directory('vla_bringup'), TABLE)
    return json.loads(path.read_text()) if path.is_file() else {}


def of_text(text: str, node: str, source: str) -> dict[str, Value]:
    """Return the parameters of a node from a YAML mapping, e.g. '{engine: eager, rate: 5.0}'.

    source: name of the argument, for errors. Raises ValueError for an unknown parameter or a value out of range.
    """
    try:
        content = parse(text)
    except yaml.YAMLError as error:
        raise ValueError(f'{source} is no YAML mapping, {{name: value, ...}}: {error}') from None
    if content is not None and not isinstance(content, dict):
        raise ValueError(f'{source} is {text!r}: must be a YAML mapping, {{name: value, ...}}')
    return checked(_flat(content or {}), node, source)


def checked(values: Mapping[str, Any], node: str, source: str) -> dict[str, Value]:
    """Return the checked parameters of a node; integers become floats where it declares floats.

    Raises the errors of `of_text`.
    """
    _refuse_unknown(values, [node], source)
    return _typed(values, node, source)


def of_file(path: str, node: str, namespace: str, *, ours: bool = True) -> dict[str, Value]:
    """Return the parameters of a ROS parameter file for a node; a later section overrides an earlier one.

    ours: require that each section is for nodes of the suite in this namespace. Raises ValueError with file, section
    and parameter for a wrong file, a section without a node, an unknown parameter, or a value out of range.
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
    """Return all parameters of a node: defaults, robot profile, params_file (may be ''), arguments, `more`.

    A later source overrides an earlier one. But params_file and `more` must not contradict an argument, such as drive.
    Raises the errors of `of_file`, and ValueError for such a contradiction.
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


# Launch arguments for the model, and those that set parameters: name -> description.
MODEL = {
    'model': f'{KNOWN}; empty: the value of the parameter files, else {RANDOM}',
    'device': 'torch device of the model: cpu, cuda, cuda:1; empty: the value of the parameter files, else cpu',
}
ARGUMENTS = {
    'params_file': 'ROS parameter file on top of the robot profile; empty: none',
    'executor_parameters': 'executor parameters on top of params_file: a YAML mapping, "{rate: 200.0}"',
    'policy_parameters': 'policy parameters on top of params_file: a YAML mapping, "{engine: eager, plan_rate: 0.0}"',
    'velocity_fraction': 'largest speed of the executor as a fraction of the limits; 0.2 for a first motion; empty: '
    'the value of the parameter files',
}


def of_arguments(values: Mapping[str, str], prefix: str = '') -> dict[str, Any]:
    """Return the keyword arguments for nodes.policy_nodes from launch arguments with a prefix.

    Raises the errors of `of_text`.
    """
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
    """Yield (full node name, may contain * and **; its parameters by dotted name) in the order of the file."""
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
    """Return the pattern of the full node names of a section: * is one name, ** any number, as in ROS."""
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
        owner = f'{nodes[0]} has no' if len(nodes) == 1 else 'no node has a'
        raise ValueError(f'{source}: {owner} parameter {name}: {hint}')


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
    """Return the text as a float where ROS reads a number; else the value."""
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return float(value) if isinstance(value, str) and _FLOAT.fullmatch(value) else value
