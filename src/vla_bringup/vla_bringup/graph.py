"""The running ROS graph as Markdown: nodes, lifecycle states, topics with QoS and rates, services, actions."""

import os
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rclpy.action.graph import get_action_names_and_types

from vla_bringup.bags.message_types import message_class
from vla_bringup.processes.probe import Probe
from vla_policy_node.ros import qos
from vla_policy_node.ros.endpoints import UNKNOWN, full_name

HOUSEKEEPING = ('/parameter_events', '/rosout')
DISCOVERY = 10.0  # [s] at most, as discovery of a killed participant may never complete
PARAMETER_SERVICES = (
    'describe_parameters', 'get_parameter_types', 'get_parameters', 'get_type_description', 'list_parameters',
    'set_parameters', 'set_parameters_atomically',
)  # fmt: skip


@dataclass
class Topic:
    """A topic with its endpoints and the times of its messages."""

    types: list[str]
    publishers: list[str]  # full node names
    subscribers: list[str]
    qos: str  # as offered
    stamps: list[float] = field(default_factory=list)  # [s] of receipt, on the wall clock

    @property
    def rate(self) -> float | None:
        """Messages per second of wall time; None with fewer than three messages."""
        if len(self.stamps) < 3:
            return None
        return (len(self.stamps) - 1) / (self.stamps[-1] - self.stamps[0])


@dataclass
class Graph:
    """Nodes, topics, services and actions at one time."""

    nodes: dict[str, str]  # full name -> lifecycle state; '' for a plain node
    topics: dict[str, Topic]
    services: dict[str, str]  # name -> type, without the parameter services of every node
    actions: dict[str, str]


def capture(probe: Probe, seconds: float = 5.0, settle: float = 1.5) -> Graph:
    """Return the graph that the probe discovers, with rates over `seconds` of wall time; 0: without rates.

    settle: discovery ends after this time [s] without a new entry.
    """
    node = probe.node
    _discover(probe, settle)
    own = node.get_fully_qualified_name()
    topics = {}
    for name, types in node.get_topic_names_and_types():
        out, to = node.get_publishers_info_by_topic(name), node.get_subscriptions_info_by_topic(name)
        publishers = sorted({full_name(i) for i in out} - {own})
        if publishers or {full_name(i) for i in to} - {own}:
            offered = [i.qos_profile for i in out if full_name(i) != own]
            subscribers = sorted({full_name(i) for i in to} - {own})
            words = ', '.join(sorted({qos.in_words(q) for q in offered}))
            topics[name] = Topic(list(types), publishers, subscribers, words)
    subscriptions = []
    for name, topic in topics.items() if seconds > 0 else ():
        if name in HOUSEKEEPING or not topic.publishers or len(topic.types) != 1:
            continue
        offered = [i.qos_profile for i in node.get_publishers_info_by_topic(name) if full_name(i) != own]
        try:
            kind = message_class(topic.types[0])
        except ValueError:
            continue  # its package is not installed here: listed without a rate
        note = partial(_note, topic.stamps)
        subscriptions.append(node.create_subscription(kind, name, note, qos.matching(offered), raw=True))
    probe.spin(seconds)
    for subscription in subscriptions:
        node.destroy_subscription(subscription)
    services = {name: types[0] for name, types in node.get_service_names_and_types()}
    shown = {
        n: t for n, t in services.items() if n.rsplit('/', 1)[-1] not in PARAMETER_SERVICES and '/_action/' not in n
    }
    names = [f'{space.rstrip("/")}/{name}' for name, space in node.get_node_names_and_namespaces()]
    return Graph(
        nodes={n: _state(probe, n, services) for n in sorted(set(names) - {own})},
        topics=dict(sorted(topics.items())),
        services=dict(sorted(shown.items())),
        actions={name: types[0] for name, types in sorted(get_action_names_and_types(node))},
    )


def _discover(probe: Probe, settle: float) -> None:
    """Spin until discovery adds no entry for `settle` seconds and the node of every endpoint is known."""
    node, deadline = probe.node, time.monotonic() + DISCOVERY
    before, since = None, time.monotonic()
    while time.monotonic() < deadline:
        probe.spin(0.1)
        ends = [
            full_name(info)
            for name, _ in node.get_topic_names_and_types()
            for info in (*node.get_publishers_info_by_topic(name), *node.get_subscriptions_info_by_topic(name))
        ]
        found = sorted(ends), sorted(node.get_node_names_and_namespaces()), sorted(node.get_service_names_and_types())
        if found != before:
            before, since = found, time.monotonic()
        elif time.monotonic() - since >= settle and not any(UNKNOWN in name for name in ends):
            return


def _note(stamps: list[float], _: bytes) -> None:
    stamps.append(time.monotonic())


def _state(probe: Probe, name: str, services: dict[str, str]) -> str:
    if services.get(f'{name}/get_state') != 'lifecycle_msgs/srv/GetState':
        return ''
    try:
        return probe.lifecycle_state(name)
    except TimeoutError:
        return 'does not answer'


def to_markdown(graph: Graph) -> str:
    """Return the graph as Markdown tables."""

    def names(full: list[str]) -> str:
        return ', '.join(f'`{n}`' for n in full) or '-'

    lines = [
        '# The running graph',
        '',
        'Captured with `./vla graph`, or `./vla demo --graph-to FILE`. Rates: messages per second of wall time.',
        '',
    ]
    lines += ['## Nodes', '', '| node | lifecycle state |', '|---|---|']
    lines += [f'| `{name}` | {state or "no lifecycle"} |' for name, state in graph.nodes.items()]
    lines += [
        '',
        '## Topics',
        '',
        '| topic | type | publishers | offered QoS | measured rate | subscribers |',
        '|---|---|---|---|---|---|',
    ]
    for name, t in graph.topics.items():
        if name in HOUSEKEEPING:
            continue
        rate = f'{t.rate:.1f} Hz' if t.rate is not None else f'{len(t.stamps)} received' if t.stamps else '-'
        types = ', '.join(t.types)
        lines.append(
            f'| `{name}` | {types} | {names(t.publishers)} | {t.qos or "-"} | {rate} | {names(t.subscribers)} |'
        )
    lines += ['', '## Actions', '', '| action | type |', '|---|---|']
    lines += [f'| `{name}` | {kind} |' for name, kind in graph.actions.items()]
    lines += [
        '',
        '## Services',
        '',
        'Without the parameter services, which every node has.',
        '',
        '| service | type |',
        '|---|---|',
    ]
    lines += [f'| `{name}` | {kind} |' for name, kind in graph.services.items()]
    return '\n'.join([*lines, ''])


def write_graph(seconds: float, out: Path | None) -> bool:
    """Print the graph of this ROS domain, or write it to a file. Raises ValueError when no node runs.

    seconds: wall time for the rates.
    """
    with Probe('graph') as probe:
        graph = capture(probe, seconds)
    if not graph.nodes:
        domain = os.environ.get('ROS_DOMAIN_ID', '0')
        raise ValueError(f'no node in ROS_DOMAIN_ID={domain}: start one, or set the ROS_DOMAIN_ID of the nodes')
    if out is None:
        print(to_markdown(graph))
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(to_markdown(graph))
    return True
