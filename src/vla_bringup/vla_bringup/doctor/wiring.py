"""Topics of the suite's nodes, from a robot profile or from the parameters of running nodes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rcl_interfaces.srv import GetParameters
from rclpy.parameter import parameter_value_to_python

from vla_bringup.graph import Graph
from vla_bringup.processes.probe import Probe
from vla_core.profile import names_of, profile_parameters
from vla_policy_node.policy.intake import CAMERA_MAX_AGE, GRIPPER_MAX_AGE, JOINT_MAX_AGE

AGES = ('camera_max_age', 'joint_max_age', 'gripper_max_age')


@dataclass(frozen=True)
class Wiring:
    """Topics, joints and age limits of one robot. Topics are full names."""

    source: str  # profile or nodes, for the report
    cameras: dict[str, str]  # name -> image topic
    joint_topic: str
    joint_names: tuple[str, ...]
    command_topic: str
    controller: str = 'crisp'
    controller_node: str = ''
    gripper_names: tuple[str, ...] = ()  # of the finger joints; empty: no gripper
    gripper_topic: str = ''
    camera_max_age: float = CAMERA_MAX_AGE  # [s]
    joint_max_age: float = JOINT_MAX_AGE  # [s]
    gripper_max_age: float = GRIPPER_MAX_AGE  # [s]
    uses_sim_time: dict[str, bool] = field(default_factory=dict)  # node -> its parameter

    @property
    def fingers(self) -> str:
        """Key of the fingers' messages in `Listener.topics`: the arm's messages may be on the same topic."""
        return self.gripper_topic if self.gripper_topic != self.joint_topic else f'{self.gripper_topic} (fingers)'


def of_profile(path: str, namespace: str) -> Wiring:
    """Return the wiring of a robot profile (path) in a namespace. Raises ValueError for a missing entry."""
    values = profile_parameters(path)
    try:
        flat = {f'topics.{k}': v for k, v in values['topics'].items()} | {
            'robot.joint_names': values['robot']['joint_names'],
            'robot.gripper_joint_names': values['robot']['gripper_joint_names'],
            **{k: v for k, v in values.items() if not isinstance(v, dict)},
        }
        return _of(f'robot profile {Path(path).stem}', namespace, flat)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'{path} is no robot profile: it lacks {error}') from None


def of_nodes(probe: Probe, graph: Graph, namespace: str) -> Wiring | None:
    """Return the wiring of a namespace's policy and executor; None while they lack the parameters."""
    values: dict[str, Any] = {}
    sim_time = {}
    observed = ('cameras', 'camera_topics', *AGES, 'robot.joint_names', 'topics.joint_states')
    fingers = ('robot.gripper_joint_names', 'topics.gripper_joint_states')
    for name, wanted in (
        ('policy', (*observed, *fingers)),
        ('executor', ('topics.joint_command', 'controller', 'controller_node')),
    ):
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
    """Return the values of those parameters that the node has. Without an answer the result is empty. timeout: [s]."""
    found = {}
    for name in names:  # a request each: an answer ends at the first parameter that the node lacks
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

    optional = {name: values[name] for name in ('controller', 'controller_node', *AGES) if name in values}
    return Wiring(
        source=source,
        cameras={n: full(t) for n, t in zip(values['cameras'], values['camera_topics'], strict=True)},
        joint_topic=full(values['topics.joint_states']),
        joint_names=tuple(values['robot.joint_names']),
        command_topic=full(values['topics.joint_command']),
        gripper_names=tuple(names_of(values.get('robot.gripper_joint_names', ()), 'robot.gripper_joint_names')),
        gripper_topic=full(values.get('topics.gripper_joint_states', 'joint_states')),
        uses_sim_time=sim_time or {},
        **optional,
    )
