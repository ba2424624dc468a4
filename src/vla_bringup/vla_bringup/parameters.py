"""The parameters of every node as Markdown, asked of the nodes themselves: docs/reference/parameters.md."""

import os
import tempfile
from pathlib import Path

import domain_coordinator
from lifecycle_msgs.msg import Transition
from rcl_interfaces.msg import ParameterDescriptor, ParameterType, ParameterValue
from rcl_interfaces.srv import DescribeParameters, GetParameters, ListParameters
from rclpy.parameter import parameter_value_to_python

from vla_bringup.nodes import NodeSpec, policy_nodes, recorder_node, show_node, sim_nodes
from vla_bringup.probe import Probe
from vla_bringup.supervisor import Supervisor

# What rclpy adds to every node, and what the robot profile or the launch file says, not a default.
_SKIP = ('qos_overrides.', 'use_sim_time', 'start_type_description_service')
_TYPES = {
    ParameterType.PARAMETER_BOOL: 'bool',
    ParameterType.PARAMETER_INTEGER: 'int',
    ParameterType.PARAMETER_DOUBLE: 'float',
    ParameterType.PARAMETER_STRING: 'text',
    ParameterType.PARAMETER_DOUBLE_ARRAY: 'float list',
    ParameterType.PARAMETER_STRING_ARRAY: 'text list',
}
_HEAD = """\
# Parameters

Written by `./vla parameters`, which asks the running nodes. The values shown are the defaults, or those of the robot
profile `sim_panda`. Ranges are enforced by the nodes. Parameters of `executor` and `policy` are read when the node is
configured; setting one later is refused.
"""


def write_parameters(out: Path) -> bool:
    """Start every node in a domain of its own, ask for its parameters, write the page. Raises as Supervisor does."""
    with domain_coordinator.domain_id() as domain, tempfile.TemporaryDirectory() as temporary:
        os.environ['ROS_DOMAIN_ID'] = str(domain)
        recorder = recorder_node('sim_panda', Path(temporary, 'bag'), use_sim_time=True)
        show = show_node('sim_panda', use_sim_time=True)
        specs = [*policy_nodes('sim_panda', use_sim_time=True), show, *sim_nodes(), recorder]
        with Supervisor(Path(temporary, 'logs')) as supervisor, Probe('parameters') as probe:
            for spec in specs:
                supervisor.start(spec)
            probe.check = supervisor.check
            tables = {spec.name: _table(probe, spec) for spec in specs}
    profile = [row for row in tables['executor'] if row.startswith('| `robot.')]
    text = _HEAD + _section('robot profile', profile)
    for name, rows in tables.items():
        text += _section(name, [row for row in rows if not row.startswith('| `robot.')])
    out.write_text(text.replace(temporary, ''))  # a folder that is gone means nothing to a reader
    return True


def _section(title: str, rows: list[str]) -> str:
    return '\n'.join(
        ['', f'## {title}', '', '| parameter | type | value | range | meaning |', '|---|---|---|---|---|', *rows, '']
    )


def _table(probe: Probe, spec: NodeSpec) -> list[str]:
    """A row for each parameter of a node; a lifecycle node declares them when it is configured."""
    if spec.lifecycle:
        probe.call(ListParameters, f'{spec.full_name}/list_parameters', ListParameters.Request(), 60.0)
        probe.transition(spec.full_name, Transition.TRANSITION_CONFIGURE)
    found = probe.call(ListParameters, f'{spec.full_name}/list_parameters', ListParameters.Request(), 60.0)
    names = sorted(n for n in found.result.names if not n.startswith(_SKIP))
    about = probe.call(
        DescribeParameters, f'{spec.full_name}/describe_parameters', DescribeParameters.Request(names=names)
    ).descriptors
    rows = []
    for descriptor in about:
        # One by one: the answer ends at a parameter that has no value.
        request = GetParameters.Request(names=[descriptor.name])
        values = probe.call(GetParameters, f'{spec.full_name}/get_parameters', request).values
        value = values[0] if values else ParameterValue(type=descriptor.type)
        shown = parameter_value_to_python(value) if values else ''
        text = f'`{shown}`' if shown not in ('', []) else ''
        rows.append(
            f'| `{descriptor.name}` | {_TYPES.get(value.type, "unset")} | {text} | {_range(descriptor)} '
            f'| {descriptor.description.replace("|", "/")}{", read only" if descriptor.read_only else ""} |'
        )
    return rows


def _range(descriptor: ParameterDescriptor) -> str:
    for limits in (*descriptor.floating_point_range, *descriptor.integer_range):
        return f'{limits.from_value:g} to {limits.to_value:g}'
    return descriptor.additional_constraints
