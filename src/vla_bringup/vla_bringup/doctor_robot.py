"""What the doctor says of a running robot: judged from the ROS graph and from messages of a few seconds."""

import time
from collections.abc import Iterator
from functools import partial

from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState

from vla_bringup.doctor import Check, bad, warn
from vla_bringup.episodes import executor_state
from vla_bringup.graph import Graph, capture
from vla_bringup.probe import Probe
from vla_msgs.msg import ExecutorStatus
from vla_policy_node.ros import qos
from vla_policy_node.ros.chunk_msg import to_ns

MEASURE = 3.0  # [s] of wall time
JOINT_RATE = 50.0  # [Hz] below, the executor sees the arm too late
JOINT_AGE = 0.2  # [s] above, the executor holds
CAMERA_RATE = 5.0  # [Hz]
BAD_HOLDS = {
    ExecutorStatus.HOLD_JOINT_STATE_MISSING: 'start the robot driver, check topic and joint names of the robot profile',
    ExecutorStatus.HOLD_JOINT_STATE_STALE: 'check the robot driver and the network',
    ExecutorStatus.HOLD_CONTROLLER_MISSING: 'start the controller, then call ~/resume',
    ExecutorStatus.HOLD_COMPETING_PUBLISHER: 'stop the other publisher, then call ~/resume',
    ExecutorStatus.HOLD_ROBOT_FAULT: 'look at the arm, then call ~/recover',
    ExecutorStatus.HOLD_EMERGENCY_STOP: 'release it, then call ~/resume',
}


class Listener:
    """Keeps the clock, the ages of joint states and the newest executor status of each namespace."""

    def __init__(self, probe: Probe, joint_topics: list[str], status_topics: list[str], sim_time: bool) -> None:
        self.ages: dict[str, float] = {}  # topic -> largest age [s] at arrival
        self.status: dict[str, ExecutorStatus] = {}
        self._clock = 0
        self._sim_time = sim_time
        node = probe.node
        if sim_time:
            node.create_subscription(Clock, '/clock', self._on_clock, qos.SENSOR)
        for topic in joint_topics:
            node.create_subscription(JointState, topic, partial(self._on_joints, topic), qos.SENSOR)
        for topic in status_topics:
            node.create_subscription(ExecutorStatus, topic, partial(self.status.__setitem__, topic), qos.LATCHED)

    def _on_clock(self, msg: Clock) -> None:
        self._clock = to_ns(msg.clock)

    def _on_joints(self, topic: str, msg: JointState) -> None:
        now = self._clock if self._sim_time else time.time_ns()
        if now:
            self.ages[topic] = max(self.ages.get(topic, 0.0), (now - to_ns(msg.header.stamp)) * 1e-9)


def check_robot() -> Iterator[Check]:
    """Checks of what runs in this ROS domain; a single line when nothing does."""
    with Probe('doctor') as probe:
        graph = capture(probe, MEASURE)
        if not graph.nodes:
            yield Check('robot', 'no node runs in this ROS domain')
            return
        joints = _of_type(graph, 'sensor_msgs/msg/JointState', 'joint_states')
        statuses = _of_type(graph, 'vla_msgs/msg/ExecutorStatus', 'status')
        listener = Listener(probe, joints, statuses, '/clock' in graph.topics)
        probe.spin(1.0)
    yield Check('robot', f'{len(graph.nodes)} nodes: {", ".join(graph.nodes)}')
    yield from joint_checks(graph, joints, listener.ages)
    yield from camera_checks(graph)
    for topic in statuses:
        yield from executor_checks(graph, topic, listener.status.get(topic))


def _of_type(graph: Graph, kind: str, end: str) -> list[str]:
    return [n for n, t in graph.topics.items() if t.types == [kind] and n.endswith(end) and t.publishers]


def joint_checks(graph: Graph, topics: list[str], ages: dict[str, float]) -> Iterator[Check]:
    """ages: topic -> largest age at arrival [s]."""
    if not topics:
        yield bad('joint states', 'nobody publishes them', 'start the robot driver or the simulator')
    for topic in topics:
        rate, age = graph.topics[topic].rate or 0.0, ages.get(topic)
        fact = f'{topic}: {rate:.0f} Hz' + (f', at most {1e3 * age:.0f} ms old' if age is not None else '')
        if rate == 0.0:
            yield bad('joint states', f'{topic}: published, but nothing comes', 'check the robot driver and the QoS')
        elif age is not None and age > JOINT_AGE:
            yield bad('joint states', fact, 'synchronise the clocks of the machines (chrony), or check the network')
        elif rate < JOINT_RATE:
            yield warn('joint states', fact, f"at least {JOINT_RATE:.0f} Hz are wanted: take the driver's own topic")
        else:
            yield Check('joint states', fact)


def camera_checks(graph: Graph) -> Iterator[Check]:
    """Every image topic that has a publisher."""
    topics = [n for n, t in graph.topics.items() if t.types == ['sensor_msgs/msg/Image'] and t.publishers]
    if not topics:
        yield warn('cameras', 'nobody publishes images', 'start the camera drivers')
    for topic in topics:
        rate = graph.topics[topic].rate or 0.0
        fact = f'{topic}: {rate:.1f} Hz'
        if rate == 0.0:
            yield bad(
                'camera', f'{topic}: published, but nothing comes', 'is the camera plugged in? is its driver well?'
            )
        elif rate < CAMERA_RATE:
            yield warn('camera', fact, f'at least {CAMERA_RATE:.0f} Hz are wanted')
        else:
            yield Check('camera', fact)


def executor_checks(graph: Graph, topic: str, status: ExecutorStatus | None) -> Iterator[Check]:
    """State of one executor, and who commands its robot. topic: of its status."""
    name = topic.rsplit('/', 1)[0]
    lifecycle = graph.nodes.get(name, '')
    if status is None:
        yield bad('executor', f'{name} ({lifecycle or "unknown"}) sends no status', 'configure it; else read its log')
    elif lifecycle != 'active' or status.state == ExecutorStatus.STATE_INACTIVE:
        yield warn('executor', f'{name} is {lifecycle}: it sends nothing', 'configure and activate it')
    elif status.hold_reason in BAD_HOLDS:
        yield bad('executor', f'{name}: {status.message}', BAD_HOLDS[status.hold_reason])
    elif status.hold_reason == ExecutorStatus.HOLD_OPERATOR_STOP:
        yield warn('executor', f'{name} was stopped by the operator', f'call {name}/resume when the arm may move')
    else:
        fact = f'{name} is {executor_state(status.state)}, driven by {status.source or "nobody"}'
        yield Check('executor', f'{fact}, tracking error {1e3 * status.tracking_error:.0f} mrad')
    commands = [
        n for n, t in graph.topics.items() if t.types == ['sensor_msgs/msg/JointState'] and name in t.publishers
    ]
    for command in commands:
        t = graph.topics[command]
        if len(t.publishers) > 1:
            yield bad('command topic', f'{command} has publishers {", ".join(t.publishers)}', 'stop all but one')
        elif not t.subscribers:
            yield warn('command topic', f'nobody listens to {command}', 'start the controller, check the robot profile')
        else:
            yield Check('command topic', f'{command}: {t.publishers[0]} to {", ".join(t.subscribers)}')
