"""Checks of a running robot: cameras, joints, controller, clocks, and the suite's own nodes."""

from collections.abc import Iterator
from functools import partial

import numpy as np
from rclpy.node import Node

from vla_bringup.demo.episodes import executor_state
from vla_bringup.doctor.check import Check, fail, skip, warn
from vla_bringup.doctor.listen import Listener, Received
from vla_bringup.doctor.wiring import Wiring, ask, of_nodes, of_profile
from vla_bringup.graph import Graph, capture
from vla_bringup.processes.probe import Probe
from vla_core import clocks
from vla_core.profile import profile_path
from vla_msgs.msg import ExecutorStatus, PolicyStatus
from vla_policy_node.adapters.command_topic import is_controller, qos_mismatch
from vla_policy_node.adapters.table import ADAPTERS
from vla_policy_node.ros.camera_info import camera_info_topic
from vla_policy_node.ros.endpoints import full_name
from vla_policy_node.ros.images import decode_image
from vla_policy_node.ros.joints import decode_gripper, decode_joints

MEASURE = 3.0  # [s] of wall time
JOINT_RATE = 50.0  # [Hz] least rate for the executor's watchdogs
CAMERA_RATE = 5.0  # [Hz]
AHEAD = 0.02  # [s] a stamp may be this far ahead of the clock without a warning
JOINTS = 'sensor_msgs/msg/JointState'
STATUSES = {'vla_msgs/msg/ExecutorStatus': ExecutorStatus, 'vla_msgs/msg/PolicyStatus': PolicyStatus}
CHRONY = 'synchronise the clocks of the machines: chrony or PTP'
HOLD_REMEDIES = {
    ExecutorStatus.HOLD_JOINT_STATE_STALE: 'check the robot driver, its clock and the network',
    ExecutorStatus.HOLD_JOINT_STATE_FROZEN: 'restart the robot driver, then call ~/resume',
    ExecutorStatus.HOLD_CONTROLLER_MISSING: 'start the controller, then call ~/resume',
    ExecutorStatus.HOLD_COMPETING_PUBLISHER: 'stop the other publisher, then call ~/resume',
    ExecutorStatus.HOLD_BLOCKED: 'look what is in the way, then call ~/resume',
    ExecutorStatus.HOLD_ROBOT_FAULT: 'look at the arm, then call ~/recover',
    ExecutorStatus.HOLD_EMERGENCY_STOP: 'release it, then call ~/resume',
}


def check_robot(robot: str = '', namespace: str = '') -> Iterator[Check]:
    """Yield the checks of the robot, after listening for MEASURE.

    robot: a profile by name or file; empty: the parameters of policy and executor. namespace: of the nodes; empty: all.
    """
    given = of_profile(profile_path(robot), namespace) if robot else None
    with Probe('doctor') as probe:
        graph = capture(probe, 0.0)
        if not graph.nodes:
            why = 'no node runs in this ROS domain: cameras, joints, controller and clocks were not checked'
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
            why = 'topics are unknown: no policy and executor are configured'
            yield skip('cameras, joints', why, './vla doctor --robot PROFILE')
        for w in wirings:
            yield Check('topics', f'from the {w.source}')
            yield from joint_checks(graph, w, listener.topics[w.joint_topic])
            yield gripper_check(graph, w, listener.topics.get(w.fingers, Received()))
            for camera, topic in w.cameras.items():
                received, info = listener.topics[topic], listener.topics[camera_info_topic(topic)]
                yield from camera_checks(graph, camera, topic, received, info, w.camera_max_age)
            yield from controller_checks(probe.node, w, partial(ask, probe, names=('joints',)))
    yield from clock_checks(graph, wirings, listener)
    for topic, kind in statuses.items():
        check = executor_check if kind is ExecutorStatus else policy_check
        yield check(topic.rsplit('/', 1)[0], graph, listener.topics[topic].newest)


def joint_checks(graph: Graph, w: Wiring, received: Received) -> Iterator[Check]:
    """Check rate, names, velocities and age of the measured joints."""
    topic, name = w.joint_topic, 'joint states'
    if topic not in graph.topics or not graph.topics[topic].publishers:
        yield fail(
            name, f'{topic} has no publisher', 'start the robot driver, check topics.joint_states of the profile'
        )
        return
    if received.newest is None:
        yield fail(
            name,
            f'{topic} has a publisher, but no message is received',
            'check the robot driver, the QoS and the network',
        )
        return
    fact = f'{topic}: {received.rate:.0f} Hz'
    try:
        decode_joints(received.newest, w.joint_names, topic)
    except ValueError as error:
        yield _unreadable(name, error)
        return
    if received.age > w.joint_max_age:
        yield fail(
            name,
            f'{fact}, {1e3 * received.age:.0f} ms old',
            f'the policy rejects older messages: {CHRONY}; the network',
        )
    elif received.rate < JOINT_RATE:
        yield warn(name, fact, f"at least {JOINT_RATE:.0f} Hz are wanted: take the driver's own topic")
    else:
        yield Check(name, f'{fact}, all {len(w.joint_names)} joints with velocities{_old(received)}')


def gripper_check(graph: Graph, w: Wiring, received: Received) -> Check:
    """Check names, age and rate of the measured fingers against the policy's limit gripper_max_age."""
    topic, name, limit = w.gripper_topic, 'gripper', w.gripper_max_age
    if not w.gripper_names:
        return Check(name, 'none: robot.gripper_joint_names is empty')
    if topic not in graph.topics or not graph.topics[topic].publishers:
        others = sorted(t for t, found in graph.topics.items() if JOINTS in found.types and 'gripper' in t)
        where = f'there is {", ".join(others)}' if others else 'franka_ros2 has called it fr3_gripper, too'
        remedy = f'start the gripper driver, check topics.gripper_joint_states of the profile ({where})'
        return fail(
            name, f'{topic} has no publisher: the policy will not start', f'{remedy}; without gripper: [] as names'
        )
    if received.newest is None:
        return fail(
            name, f'{topic} has a publisher, but no message is received', 'check the gripper driver and the network'
        )
    try:
        opening = decode_gripper(received.newest, w.gripper_names, topic)
    except ValueError as error:
        return _unreadable(name, error)
    fact = f'{topic}: {received.rate:.1f} Hz, at most {received.wait:.2f} s apart, limit {limit:g} s'
    if received.age > limit:
        return fail(
            name,
            f'{fact}, {1e3 * received.age:.0f} ms old',
            f'the policy rejects older messages: {CHRONY}; the network',
        )
    if received.wait > limit or received.rate < 1 / limit:
        return fail(name, fact, 'raise gripper_max_age above three of its periods, or let the driver publish faster')
    if received.rate < 2 / limit:
        return warn(name, fact, 'raise gripper_max_age above three of its periods: one late message stops the policy')
    return Check(name, f'{fact}, opening {1e3 * opening:.0f} mm{_old(received)}')


def camera_checks(
    graph: Graph, camera: str, topic: str, received: Received, info: Received, max_age: float
) -> Iterator[Check]:
    """Check rate, age [s], size and encoding of images, and their CameraInfo."""
    name = f'camera {camera}'
    if topic not in graph.topics or not graph.topics[topic].publishers:
        yield fail(name, f'{topic} has no publisher', 'start the camera driver, check camera_topics of the profile')
        return
    if received.newest is None:
        yield fail(
            name,
            f'{topic} has a publisher, but no message is received',
            'is it plugged in? else: Fast DDS profile, network',
        )
        return
    image, fact = received.newest, f'{topic}: {received.rate:.1f} Hz'
    try:
        height, width = decode_image(image, topic).shape[:2]
    except ValueError as error:
        yield _unreadable(name, error)
        return
    encoding = getattr(image, 'encoding', '') or image.format
    if received.age > max_age:
        yield fail(
            name, f'{fact}, {1e3 * received.age:.0f} ms old', f'the policy rejects older images: {CHRONY}; the driver'
        )
    elif received.rate < CAMERA_RATE:
        yield warn(name, fact, f'at least {CAMERA_RATE:.0f} Hz are wanted')
    else:
        yield Check(name, f'{fact}, {width} x {height} {encoding}{_old(received)}')
    calibration = info.newest
    if calibration is None:
        yield warn(
            f'{name} info',
            f'no message on {camera_info_topic(topic)}',
            'traces cannot be drawn: let the driver publish it',
        )
    elif (calibration.width, calibration.height) != (width, height):
        fact = f'CameraInfo is for {calibration.width} x {calibration.height}, images are {width} x {height}'
        yield warn(f'{name} info', fact, 'resize both or neither')
    elif not calibration.k[0] > 0:
        yield warn(f'{name} info', 'not calibrated: K is zero', 'calibrate it: traces cannot be drawn')


def controller_checks(node: Node, w: Wiring, ask_joints) -> Iterator[Check]:
    """Check subscribers and publishers of the command topic, as the executor's adapter does at activation.

    ask_joints(node name) returns the parameter `joints` of a controller, in a dict. Nothing is published.
    """
    topic, kind, name = w.command_topic, ADAPTERS[w.controller].message, 'controller'
    readers = [e for e in node.get_subscriptions_info_by_topic(topic) if is_controller(e, w.controller_node)]
    publishers = sorted(full_name(e) for e in node.get_publishers_info_by_topic(topic))
    if not readers:
        remedy = 'start the controller, check topics.joint_command of the profile'
        yield fail(name, f'{topic} has no subscriber', remedy)
    for reader in readers:
        controller, why = full_name(reader), qos_mismatch(reader, kind)
        joints = list(ask_joints(controller).get('joints', ()))
        if why:
            yield fail(
                name, f'{controller} cannot receive set-points on {topic}: {why}', 'set the adapter that fits it'
            )
        elif joints and sorted(joints) != sorted(w.joint_names):
            yield fail(
                name,
                f'{controller} moves the joints {", ".join(joints)}',
                f'the profile has {", ".join(w.joint_names)}',
            )
        else:
            moved = f', moves the {len(joints)} joints of the profile' if joints else ''
            yield Check(name, f'{controller} reads {kind} on {topic}{moved}')
    if len(publishers) > 1:
        yield fail('command topic', f'{topic} has competing publishers {", ".join(publishers)}', 'stop all but one')
    elif publishers:
        yield Check('command topic', f'only {publishers[0]} publishes on {topic}')


def clock_checks(graph: Graph, wirings: list[Wiring], listener: Listener) -> Iterator[Check]:
    """Check simulated time, and compare stamps with the times of receipt."""
    sim_time = '/clock' in graph.topics and bool(graph.topics['/clock'].publishers)
    if sim_time and len(listener.clock) < 3:
        yield fail(
            'simulated time', '/clock has a publisher, but stands still', 'start or unpause the simulator or the bag'
        )
    elif sim_time:
        (t0, c0), (t1, c1) = listener.clock[0], listener.clock[-1]
        rate, factor = (len(listener.clock) - 1) / (t1 - t0), (c1 - c0) * 1e-9 / (t1 - t0)
        yield Check('simulated time', f'/clock at {rate:.0f} Hz runs {factor:.2f} times as fast as real time')
    for node, uses in (item for w in wirings for item in w.uses_sim_time.items()):
        if uses != sim_time:
            fact = (
                f'{node} has use_sim_time {str(uses).lower()}, but /clock {"has a" if sim_time else "has no"} publisher'
            )
            yield fail('simulated time', fact, f'use_sim_time:={str(sim_time).lower()}')
    for topic, received in listener.topics.items():
        if received.unstamped:
            yield fail('clock', f'{topic} has no stamp', 'let the driver stamp it with the time of capture')
        elif received.ages and -min(received.ages) > (clocks.FUTURE_TOLERANCE if sim_time else AHEAD):
            fact = clocks.ahead(topic, -min(received.ages)).rpartition(': ')[0]
            if -min(received.ages) > clocks.FUTURE_TOLERANCE:
                yield fail('clock', f'{fact}: it is not used', CHRONY)
            else:
                yield warn('clock', fact, CHRONY)
        if received.back and not listener.back:
            yield fail('clock', *clocks.set_back(topic, received.back).rsplit(': ', 1))
    if listener.back:
        yield fail('clock', *clocks.set_back('this machine', listener.back).rsplit(': ', 1))
    stamped = {t: h for t, h in listener.topics.items() if h.ages}
    if stamped and not sim_time:
        worst = max(stamped, key=lambda t: float(np.median(stamped[t].ages)))
        fact = f'median age of stamps on {len(stamped)} topics: at most {1e3 * stamped[worst].age:.0f} ms ({worst})'
        yield Check('clock', f'{fact}, smallest age {1e3 * min(min(h.ages) for h in stamped.values()):.0f} ms')


def executor_check(name: str, graph: Graph, status: ExecutorStatus | None) -> Check:
    """Check the status of one executor. name: full name of the node."""
    lifecycle = graph.nodes.get(name, '')
    if status is None:
        return fail(
            'executor', f'{name} ({lifecycle or "unknown"}) publishes no status', 'configure it; else read its log'
        )
    if lifecycle != 'active' or status.state == ExecutorStatus.STATE_INACTIVE:
        return warn('executor', f'{name} is {lifecycle}: no set-points', 'configure and activate it')
    if status.hold_reason in HOLD_REMEDIES:
        return fail('executor', f'{name}: {status.message}', HOLD_REMEDIES[status.hold_reason])
    if status.hold_reason == ExecutorStatus.HOLD_OPERATOR_STOP:
        return warn('executor', f'{name} was stopped by the operator', f'call {name}/resume when the arm may move')
    fact = f'{name} is {executor_state(status.state)}, driven by {status.source or "no source"}'
    return Check('executor', f'{fact}, tracking error {1e3 * status.tracking_error:.0f} mrad')


def policy_check(name: str, graph: Graph, status: PolicyStatus | None) -> Check:
    """Check the status of one policy. name: full name of the node."""
    lifecycle = graph.nodes.get(name, '')
    if status is None:
        return fail(
            'policy', f'{name} ({lifecycle or "unknown"}) publishes no status', 'configure it; else read its log'
        )
    if lifecycle != 'active':
        return warn('policy', f'{name} is {lifecycle}: no chunks', 'configure and activate it')
    if status.code not in (PolicyStatus.OK, PolicyStatus.NO_INSTRUCTION):
        return warn('policy', f'{name}: {status.message}', 'the message names the remedy')
    if status.code == PolicyStatus.NO_INSTRUCTION:
        return Check('policy', f'{name} waits for an instruction, model {status.model_id}')
    fact = f'{name} {"drives" if status.drive else "in shadow"}, model {status.model_id}'
    return Check(
        'policy', f'{fact}, latency {1e3 * status.latency:.0f} ms, inference p95 {1e3 * status.inference_p95:.0f} ms'
    )


def _unreadable(name: str, error: ValueError) -> Check:
    fact, _, remedy = str(error).rpartition(': ')  # errors of decoders end with a remedy
    return fail(name, fact, remedy)


def _old(received: Received) -> str:
    if not received.ages:
        return ''
    return f', {1e3 * abs(received.age):.0f} ms {"old" if received.age >= 0 else "AHEAD of the clock"}'
