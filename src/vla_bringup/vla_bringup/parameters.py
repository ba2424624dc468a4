"""Writes docs/reference/parameters.md from the running nodes, and the table that `overrides` checks against."""

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import domain_coordinator
from lifecycle_msgs.msg import Transition
from rcl_interfaces.msg import ParameterDescriptor, ParameterType, ParameterValue
from rcl_interfaces.srv import DescribeParameters, GetParameters, ListParameters
from rclpy.parameter import parameter_value_to_python

from vla_bringup.processes.nodes import NodeSpec, policy_nodes, recorder_node, show_node, sim_nodes
from vla_bringup.processes.overrides import Value
from vla_bringup.processes.probe import BRING_UP, Probe
from vla_bringup.processes.supervisor import Supervisor
from vla_core.profile import profile_parameters
from vla_policy_node.ros.parameters import CHOICES

# Parameters that rclpy adds to every node, and use_sim_time, which the launch sets.
_SKIP = ('qos_overrides.', 'use_sim_time', 'start_type_description_service')
_TYPES = {
    ParameterType.PARAMETER_BOOL: 'bool',
    ParameterType.PARAMETER_INTEGER: 'int',
    ParameterType.PARAMETER_DOUBLE: 'float',
    ParameterType.PARAMETER_STRING: 'text',
    ParameterType.PARAMETER_DOUBLE_ARRAY: 'float list',
    ParameterType.PARAMETER_STRING_ARRAY: 'text list',
}
Declared = list[tuple[ParameterDescriptor, ParameterValue | None]]  # the parameters of a node
_HEAD = """\
# Parameters

Written by `./vla parameters`, which asks the running nodes. The values shown are the defaults, or those of the robot
profile `sim_panda`. Ranges are enforced by the nodes. Parameters of `executor` and `policy` are read when the node is
configured; setting one later is refused.
"""


def write_parameters(out: Path, table: Path) -> bool:
    """Ask every node for its parameters; write the page and the table. Raises the errors of Supervisor."""
    # Without the table no parameter is refused: a profile may have one that is new to the node.
    table.unlink(missing_ok=True)
    asked = ask_nodes()
    table.write_text(table_text(asked))
    rows = {name: [_row(d, value) for d, value in found] for name, found in asked.items()}
    text = _HEAD + _section('robot profile', [row for row in rows['executor'] if row.startswith('| `robot.')])
    for name, own in rows.items():
        text += _section(name, [row for row in own if not row.startswith('| `robot.')])
    out.write_text(text)
    return True


def ask_nodes(policy_parameters: Mapping[str, Value] | None = None) -> dict[str, Declared]:
    """Start all nodes in their own ROS domain and return their parameters by node. Raises the errors of Supervisor."""
    with domain_coordinator.domain_id() as domain, tempfile.TemporaryDirectory() as temporary:
        os.environ['ROS_DOMAIN_ID'] = str(domain)
        policy = policy_nodes('sim_panda', use_sim_time=True, policy_parameters=policy_parameters)
        show = show_node('sim_panda', use_sim_time=True)
        recorder = recorder_node('sim_panda', Path(temporary, 'bag'), use_sim_time=True)
        with Supervisor(Path(temporary, 'logs')) as supervisor, Probe('parameters') as probe:
            specs = [*policy, show, *sim_nodes(), recorder]
            for spec in specs:
                supervisor.start(spec)
            probe.check = supervisor.check
            asked = {spec.name: _ask(probe, spec) for spec in specs}
    for descriptor, value in asked['recorder']:
        if descriptor.name == 'path' and value is not None:
            value.string_value = '/bag'  # the temporary folder is no default
    return asked


def table_text(asked: Mapping[str, Declared]) -> str:
    """Return type, range and choices of every parameter as JSON, one line each, for `overrides`."""
    cameras = '|'.join(profile_parameters('sim_panda')['cameras'])  # names in other parameters' names
    nodes = []
    for node, found in asked.items():
        facts = {re.sub(rf'[.]({cameras})$', '.*', d.name): json.dumps(_facts(d, value)) for d, value in found}
        lines = ',\n'.join(f' {json.dumps(name)}: {fact}' for name, fact in sorted(facts.items()))
        nodes.append(f'{json.dumps(node)}: {{\n{lines}\n}}')
    return '{\n' + ',\n'.join(nodes) + '\n}\n'


def _section(title: str, rows: list[str]) -> str:
    return '\n'.join(
        ['', f'## {title}', '', '| parameter | type | value | range | meaning |', '|---|---|---|---|---|', *rows, '']
    )


def _ask(probe: Probe, spec: NodeSpec) -> Declared:
    """Return the parameters of a node with their values; a lifecycle node is configured, as it declares them then."""
    if spec.lifecycle:
        probe.call(ListParameters, f'{spec.full_name}/list_parameters', ListParameters.Request(), BRING_UP)
        probe.transition(spec.full_name, Transition.TRANSITION_CONFIGURE)
    found = probe.call(ListParameters, f'{spec.full_name}/list_parameters', ListParameters.Request(), BRING_UP)
    names = sorted(n for n in found.result.names if not n.startswith(_SKIP))
    about = probe.call(
        DescribeParameters, f'{spec.full_name}/describe_parameters', DescribeParameters.Request(names=names)
    ).descriptors
    asked = []
    for descriptor in about:
        # A request each: an answer ends at the first parameter without a value.
        request = GetParameters.Request(names=[descriptor.name])
        values = probe.call(GetParameters, f'{spec.full_name}/get_parameters', request).values
        asked.append((descriptor, values[0] if values else None))
    return asked


def _type(descriptor: ParameterDescriptor, value: ParameterValue | None) -> str:
    return _TYPES.get(descriptor.type if value is None else value.type, 'unset')


def _row(descriptor: ParameterDescriptor, value: ParameterValue | None) -> str:
    shown = '' if value is None else parameter_value_to_python(value)
    text = f'`{shown}`' if shown not in ('', []) else ''
    return (
        f'| `{descriptor.name}` | {_type(descriptor, value)} | {text} | {_range(descriptor)} '
        f'| {descriptor.description.replace("|", "/")}{", read only" if descriptor.read_only else ""} |'
    )


def _facts(descriptor: ParameterDescriptor, value: ParameterValue | None) -> dict[str, Any]:
    """Return type, range and choices of a parameter, which `overrides` checks."""
    found: dict[str, Any] = {'type': _type(descriptor, value)}
    for limits in (*descriptor.floating_point_range, *descriptor.integer_range):
        found |= {'low': limits.from_value, 'high': limits.to_value}
    if descriptor.additional_constraints:
        found['choices'] = descriptor.additional_constraints.removeprefix(CHOICES).split(', ')
    return found


def _range(descriptor: ParameterDescriptor) -> str:
    for limits in (*descriptor.floating_point_range, *descriptor.integer_range):
        return f'{limits.from_value:g} to {limits.to_value:g}'
    return descriptor.additional_constraints
