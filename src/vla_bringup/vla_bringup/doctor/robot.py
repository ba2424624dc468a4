"""What the doctor says of a running robot: cameras, joints, controller, clocks, and the suite's own nodes."""

from collections.abc import Iterator
from functools import partial

import numpy as np
from rclpy.node import Node

from vla_bringup.demo.episodes import executor_state
from vla_bringup.doctor.check import Check, bad, skip, warn
from vla_bringup.doctor.listen import Heard, Listener
from vla_bringup.doctor.wiring import COMMANDS, Wiring, ask, of_nodes, of_profile
from vla_bringup.graph import Graph, capture
from vla_bringup.processes.probe import Probe
from vla_core import clocks
from vla_core.profile import profile_path
from vla_msgs.msg import ExecutorStatus, PolicyStatus
from vla_policy_node.adapters.command_topic import deafness, is_controller
from vla_policy_node.ros.camera_info import camera_info_topic
from vla_policy_node.ros.endpoints import full_name
from vla_policy_node.ros.images import decode_image
from vla_policy_node.ros.joints import decode_gripper, decode_joints

MEASURE = 3.0  # [s] of wall time
JOINT_RATE = 50.0  # [Hz] below, the executor sees the arm too late
CAMERA_RATE = 5.0  # [Hz]
AHEAD = 0.02  # [s] a stamp may lie ahead of our clock without a word
JOINTS = 'sensor_msgs/msg/JointState'
STATUSES = {'vla_msgs/msg/ExecutorStatus': ExecutorStatus, 'vla_msgs/msg/PolicyStatus': PolicyStatus}
CHRONY = 'synchronise the clocks of the machines: chrony or PTP'
BAD_HOLDS = {
    ExecutorStatus.HOLD_JOINT_STATE_STALE: 'check the robot driver, its clock and the network',
    ExecutorStatus.HOLD_JOINT_STATE_FROZEN: 'restart the robot driver, then call ~/resume',
    ExecutorStatus.HOLD_CONTROLLER_MISSING: 'start the controller, then call ~/resume',
    ExecutorStatus.HOLD_COMPETING_PUBLISHER: 'stop the other publisher, then call ~/resume',
    ExecutorStatus.HOLD_BLOCKED: 'look what is in the way, then call ~/resume',
    ExecutorStatus.HOLD_ROBOT_FAULT: 'look at the arm, then call ~/recover',
    ExecutorStatus.HOLD_EMERGENCY_STOP: 'release it, then call ~/resume',
}


def check_robot(robot: str = '', namespace: str = '') -> Iterator[Check]:
    """robot: a profile by name or file; empty: what policy and executor say. namespace: '' for all that run."""
    given = of_profile(profile_path(robot), namespace) if robot else None
    with Probe('doctor') as probe:
        graph = capture(probe, 0.0)
        if not graph.nodes:
            why = 'no node runs in this ROS domain: cameras, joints, controller and clocks could not be asked'
            yield skip('robot', why, 'start the robot, or the simulator; check ROS_DOMAIN_ID')
            return
        yield Check('robot', f'{len(graph.nodes)} nodes: {", ".join(graph.nodes)}')
        statuses = {
            name: STATUSES[topic.types[0]]
            for name, topic in graph.topics.items()
            if topic.types[0] in STATUSES and topic.publishers and name.startswith(f'{namespace}/')
        }
        spaces = [namespace] if namespace else sorted({name.rsplit('/', 2)[0] for name in statuses})
        wirings = [given] if given else [w for s in spaces if (w := of_nodes(probe, graph, s)) is not None]
        listener = Listener(probe, wirings, statuses, '/clock' in graph.topics)
        probe.spin(MEASURE)
        if not wirings:
            why = 'no configured policy and executor to ask which topics are theirs'
            yield skip('cameras, joints', why, './vla doctor --robot PROFILE')
        for w in wirings:
            yield Check('topics', f'those of the {w.source}')
            yield from joint_checks(graph, w, listener.topics[w.joint_topic])
            yield gripper_check(graph, w, listener.topics.get(w.fingers, Heard()))
            for camera, topic in w.cameras.items():
                heard, info = listener.topics[topic], listener.topics[camera_info_topic(topic)]
                yield from camera_checks(graph, camera, topic, heard, info, w.camera_max_age)
            yield from controller_checks(probe.node, w, partial(ask, probe, names=('joints',)))
    yield from clock_checks(graph, wirings, listener)
    for topic, kind in statuses.items():
        of = executor_check if kind is ExecutorStatus else policy_check
        yield of(topic.rsplit('/', 1)[0], graph, listener.topics[topic].newest)


def joint_checks(graph: Graph, w: Wiring, heard: Heard) -> Iterator[Check]:
    """Rate, names, velocities and freshness of the measured joints."""
    topic, name = w.joint_topic, 'joint states'
    if topic not in graph.topics or not graph.topics[topic].publishers:
        yield bad(name, f'nobody publishes {topic}', 'start the robot driver, check topics.joint_states of the profile')
        return
    if heard.newest is None:
        yield bad(name, f'{topic}: published, but nothing comes', 'check the robot driver, the QoS and the network')
        return
    fact = f'{topic}: {heard.rate:.0f} Hz'
    try:
        decode_joints(heard.newest, w.joint_names, topic)
    except ValueError as error:
        yield _unreadable(name, error)
        return
    if heard.age > w.joint_max_age:
        yield bad(name, f'{fact}, {1e3 * heard.age:.0f} ms old', f'the policy takes none older: {CHRONY}; the network')
    elif heard.rate < JOINT_RATE:
        yield warn(name, fact, f"at least {JOINT_RATE:.0f} Hz are wanted: take the driver's own topic")
    else:
        yield Check(name, f'{fact}, all {len(w.joint_names)} joints with velocities{_old(heard)}')


def gripper_check(graph: Graph, w: Wiring, heard: Heard) -> Check:
    """Names, freshness and rate of the measured fingers, against the limit of the policy."""
    topic, name, limit = w.gripper_topic, 'gripper', w.gripper_max_age
    if not w.gripper_names:
        return Check(name, 'none: robot.gripper_joint_names is empty')
    if topic not in graph.topics or not graph.topics[topic].publishers:
        others = sorted(t for t, found in graph.topics.items() if JOINTS in found.types and 'gripper' in t)
        where = f'there is {", ".join(others)}' if others else 'franka_ros2 has called it fr3_gripper, too'
        remedy = f'start the gripper driver, check topics.gripper_joint_states of the profile ({where})'
        return bad(name, f'nothing on {topic}: the policy will not start', f'{remedy}; an arm without one: [] as names')
    if heard.newest is None:
        return bad(name, f'{topic}: published, but nothing comes', 'check the gripper driver and the network')
    try:
        opening = decode_gripper(heard.newest, w.gripper_names, topic)
    except ValueError as error:
        return _unreadable(name, error)
    fact = f'{topic}: {heard.rate:.1f} Hz, at most {heard.wait:.2f} s apart, limit {limit:g} s'
    if heard.age > limit:
        return bad(name, f'{fact}, {1e3 * heard.age:.0f} ms old', f'the policy takes none older: {CHRONY}; the network')
    if heard.wait > limit or heard.rate < 1 / limit:
        return bad(name, fact, 'raise gripper_max_age above three of its periods, or let the driver publish faster')
    if heard.rate < 2 / limit:
        return warn(name, fact, 'raise gripper_max_age above three of its periods: one late message stops the policy')
    return Check(name, f'{fact}, opening {1e3 * opening:.0f} mm{_old(heard)}')


def camera_checks(graph: Graph, camera: str, topic: str, heard: Heard, info: Heard, max_age: float) -> Iterator[Check]:
    """Rate, age, size, encoding, and the CameraInfo beside it."""
    name = f'camera {camera}'
    if topic not in graph.topics or not graph.topics[topic].publishers:
        yield bad(name, f'nobody publishes {topic}', 'start the camera driver, check camera_topics of the profile')
        return
    if heard.newest is None:
        yield bad(name, f'{topic}: published, but nothing comes', 'is it plugged in? else: Fast DDS profile, network')
        return
    image, fact = heard.newest, f'{topic}: {heard.rate:.1f} Hz'
    try:
        height, width = decode_image(image, topic).shape[:2]
    except ValueError as error:
        yield _unreadable(name, error)
        return
    encoding = getattr(image, 'encoding', '') or image.format
    if heard.age > max_age:
        yield bad(name, f'{fact}, {1e3 * heard.age:.0f} ms old', f'the policy takes none older: {CHRONY}; the driver')
    elif heard.rate < CAMERA_RATE:
        yield warn(name, fact, f'at least {CAMERA_RATE:.0f} Hz are wanted')
    else:
        yield Check(name, f'{fact}, {width} x {height} {encoding}{_old(heard)}')
    told = info.newest
    if told is None:
        yield warn(
            f'{name} info',
            f'nothing on {camera_info_topic(topic)}',
            'traces cannot be drawn: let the driver publish it',
        )
    elif (told.width, told.height) != (width, height):
        fact = f'CameraInfo is for {told.width} x {told.height}, images are {width} x {height}'
        yield warn(f'{name} info', fact, 'resize both or neither')
    elif not told.k[0] > 0:
        yield warn(f'{name} info', 'not calibrated: K is zero', 'calibrate it: traces cannot be drawn')


def controller_checks(node: Node, w: Wiring, ask_joints) -> Iterator[Check]:
    """Who reads the set-points and whether it can, as the executor's adapter will ask. Nothing is published.

    ask_joints(node name) -> its parameters, of which `joints` counts.
    """
    topic, kind, name = w.command_topic, COMMANDS[w.controller], 'controller'
    readers = [e for e in node.get_subscriptions_info_by_topic(topic) if is_controller(e, w.controller_node)]
    rivals = sorted(full_name(e) for e in node.get_publishers_info_by_topic(topic))
    if not readers:
        yield bad(name, f'nobody listens to {topic}', 'start the controller, check topics.joint_command of the profile')
    for reader in readers:
        who, why = full_name(reader), deafness(reader, kind)
        theirs = list(ask_joints(who).get('joints', ()))
        if why:
            yield bad(name, f'{who} cannot hear set-points on {topic}: {why}', 'take the adapter that fits it')
        elif theirs and sorted(theirs) != sorted(w.joint_names):
            yield bad(
                name, f'{who} moves the joints {", ".join(theirs)}', f'the profile has {", ".join(w.joint_names)}'
            )
        else:
            said = f', moves {len(theirs)} joints, ours' if theirs else ''
            yield Check(name, f'{who} reads {kind} on {topic}{said}')
    if len(rivals) > 1:
        yield bad('command topic', f'{topic} has the publishers {", ".join(rivals)}', 'stop all but one')
    elif rivals:
        yield Check('command topic', f'only {rivals[0]} publishes on {topic}')


def clock_checks(graph: Graph, wirings: list[Wiring], listener: Listener) -> Iterator[Check]:
    """Simulated time, and stamps against the time at which they came."""
    sim_time = '/clock' in graph.topics and bool(graph.topics['/clock'].publishers)
    if sim_time and len(listener.clock) < 3:
        yield bad(
            'simulated time', '/clock is published, but stands still', 'start or unpause the simulator or the bag'
        )
    elif sim_time:
        (t0, c0), (t1, c1) = listener.clock[0], listener.clock[-1]
        rate, factor = (len(listener.clock) - 1) / (t1 - t0), (c1 - c0) * 1e-9 / (t1 - t0)
        yield Check('simulated time', f'/clock at {rate:.0f} Hz runs {factor:.2f} times as fast as time')
    for node, uses in (item for w in wirings for item in w.uses_sim_time.items()):
        if uses != sim_time:
            fact = f'{node} has use_sim_time {str(uses).lower()}, but /clock {"is" if sim_time else "is not"} published'
            yield bad('simulated time', fact, f'use_sim_time:={str(sim_time).lower()}')
    for topic, heard in listener.topics.items():
        if heard.unstamped:
            yield bad('clock', f'{topic} has no stamp', 'let the driver stamp it with the time of capture')
        elif heard.ages and -min(heard.ages) > (clocks.FUTURE_TOLERANCE if sim_time else AHEAD):
            fact = clocks.ahead(topic, -min(heard.ages)).rpartition(': ')[0]
            if -min(heard.ages) > clocks.FUTURE_TOLERANCE:
                yield bad('clock', f'{fact}: it is not used', CHRONY)
            else:
                yield warn('clock', fact, CHRONY)
        if heard.back and not listener.back:
            yield bad('clock', *clocks.set_back(topic, heard.back).rsplit(': ', 1))
    if listener.back:
        yield bad('clock', *clocks.set_back('this machine', listener.back).rsplit(': ', 1))
    stamped = {t: h for t, h in listener.topics.items() if h.ages}
    if stamped and not sim_time:
        worst = max(stamped, key=lambda t: float(np.median(stamped[t].ages)))
        fact = (
            f'stamps of {len(stamped)} topics are at most {1e3 * stamped[worst].age:.0f} ms old in the middle ({worst})'
        )
        yield Check('clock', f'{fact}, smallest {1e3 * min(min(h.ages) for h in stamped.values()):.0f} ms')


def executor_check(name: str, graph: Graph, status: ExecutorStatus | None) -> Check:
    """State of one executor. name: of its node."""
    lifecycle = graph.nodes.get(name, '')
    if status is None:
        return bad('executor', f'{name} ({lifecycle or "unknown"}) sends no status', 'configure it; else read its log')
    if lifecycle != 'active' or status.state == ExecutorStatus.STATE_INACTIVE:
        return warn('executor', f'{name} is {lifecycle}: it sends nothing', 'configure and activate it')
    if status.hold_reason in BAD_HOLDS:
        return bad('executor', f'{name}: {status.message}', BAD_HOLDS[status.hold_reason])
    if status.hold_reason == ExecutorStatus.HOLD_OPERATOR_STOP:
        return warn('executor', f'{name} was stopped by the operator', f'call {name}/resume when the arm may move')
    fact = f'{name} is {executor_state(status.state)}, driven by {status.source or "nobody"}'
    return Check('executor', f'{fact}, tracking error {1e3 * status.tracking_error:.0f} mrad')


def policy_check(name: str, graph: Graph, status: PolicyStatus | None) -> Check:
    """State of one policy node."""
    lifecycle = graph.nodes.get(name, '')
    if status is None:
        return bad('policy', f'{name} ({lifecycle or "unknown"}) sends no status', 'configure it; else read its log')
    if lifecycle != 'active':
        return warn('policy', f'{name} is {lifecycle}: no chunks', 'configure and activate it')
    if status.code not in (PolicyStatus.OK, PolicyStatus.NO_INSTRUCTION):
        return warn('policy', f'{name}: {status.message}', 'its message says what to do')
    if status.code == PolicyStatus.NO_INSTRUCTION:
        return Check('policy', f'{name} waits for an instruction, model {status.model_id}')
    fact = f'{name} {"drives" if status.drive else "in shadow"}, model {status.model_id}'
    return Check(
        'policy', f'{fact}, latency {1e3 * status.latency:.0f} ms, inference p95 {1e3 * status.inference_p95:.0f} ms'
    )


def _unreadable(name: str, error: ValueError) -> Check:
    fact, _, remedy = str(error).rpartition(': ')  # what a decoder says ends with its remedy
    return bad(name, fact, remedy)


def _old(heard: Heard) -> str:
    if not heard.ages:
        return ''
    return f', {1e3 * abs(heard.age):.0f} ms {"old" if heard.age >= 0 else "AHEAD of the clock"}'
