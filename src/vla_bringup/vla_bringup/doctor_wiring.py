"""What the suite's nodes listen to and send to, from a robot profile or from the parameters of running nodes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rcl_interfaces.srv import GetParameters
from rclpy.parameter import parameter_value_to_python

from vla_bringup.graph import Graph
from vla_bringup.probe import Probe
from vla_policy_node.core.profile import profile_parameters

COMMANDS = {  # controller -> type of its input
    'crisp': 'sensor_msgs/msg/JointState',
    'joint_trajectory': 'trajectory_msgs/msg/JointTrajectory',
    'forward_command': 'std_msgs/msg/Float64MultiArray',
}


@dataclass(frozen=True)
class Wiring:
    """Topics are full names."""

    source: str  # where this is from, in words
    cameras: dict[str, str]  # name -> image topic
    joint_topic: str
    joint_names: tuple[str, ...]
    command_topic: str
    controller: str = 'crisp'
    controller_node: str = ''
    camera_max_age: float = 0.3  # [s]
    joint_max_age: float = 0.1  # [s]
    uses_sim_time: dict[str, bool] = field(default_factory=dict)  # node -> its parameter


def of_profile(path: str, namespace: str) -> Wiring:
    """Raises ValueError naming the entry that is missing."""
    values = profile_parameters(path)
    try:
        flat = {f'topics.{k}': v for k, v in values['topics'].items()} | {
            'robot.joint_names': values['robot']['joint_names'],
            **{k: v for k, v in values.items() if not isinstance(v, dict)},
        }
        return _of(f'robot profile {Path(path).stem}', namespace, flat)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'{path} is no robot profile: it lacks {error}') from None


def of_nodes(probe: Probe, graph: Graph, namespace: str) -> Wiring | None:
    """Of the configured policy and executor of a namespace; None where they have not declared enough yet."""
    values: dict[str, Any] = {}
    sim_time = {}
    asked = ('cameras', 'camera_topics', 'camera_max_age', 'joint_max_age', 'robot.joint_names', 'topics.joint_states')
    for name, wanted in (('policy', asked), ('executor', ('topics.joint_command', 'controller', 'controller_node'))):
        node = f'{namespace}/{name}'
        if node not in graph.nodes:
            continue
        got = ask(probe, node, (*wanted, 'use_sim_time'))
        sim_time[node] = bool(got.pop('use_sim_time', False))
        values |= got
    try:
        return _of(f'parameters of {", ".join(sim_time)}', namespace, values, sim_time)
    except KeyError:
        return None


def ask(probe: Probe, node: str, names: tuple[str, ...], timeout: float = 3.0) -> dict[str, Any]:
    """Those parameters of a node that it has; none where it does not answer."""
    found = {}
    for name in names:  # one by one: the answer ends at a parameter that is not there
        try:
            values = probe.call(GetParameters, f'{node}/get_parameters', GetParameters.Request(names=[name]), timeout)
        except TimeoutError:
            break
        if values.values and (value := parameter_value_to_python(values.values[0])) is not None:
            found[name] = value
    return found


def _of(source: str, namespace: str, values: dict[str, Any], sim_time: dict[str, bool] | None = None) -> Wiring:
    def full(topic: str) -> str:
        return topic if topic.startswith('/') else f'{namespace}/{topic}'

    optional = {
        name: values[name]
        for name in ('controller', 'controller_node', 'camera_max_age', 'joint_max_age')
        if name in values
    }
    return Wiring(
        source=source,
        cameras={n: full(t) for n, t in zip(values['cameras'], values['camera_topics'], strict=True)},
        joint_topic=full(values['topics.joint_states']),
        joint_names=tuple(values['robot.joint_names']),
        command_topic=full(values['topics.joint_command']),
        uses_sim_time=sim_time or {},
        **optional,
    )
