"""Injects faults in mid-motion into real processes, and measures the motion of the simulated arm."""

import json
import math
import os
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import domain_coordinator
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, String

from vla_bench.faults.relay import RAW, SIM, SOURCE, Relay
from vla_bench.faults.report import FaultResult, Recording, write_report
from vla_bringup.processes.nodes import policy_nodes, sim_nodes
from vla_bringup.processes.probe import BRING_UP, Probe
from vla_bringup.processes.supervisor import Supervisor
from vla_core.clocks import NS
from vla_core.profile import RobotProfile
from vla_model.checkpoints.shipped import RANDOM
from vla_msgs.msg import ExecutorStatus
from vla_policy_node.ros import qos

ROBOT = 'sim_panda'
MOVING = 0.3  # [rad/s] of the fastest joint, before which no fault is injected
WATCH = 2.0  # [s] of simulation watched after the fault


@dataclass
class Scene:
    """The running system into which a fault is injected."""

    supervisor: Supervisor
    probe: Probe
    relay: Relay
    kept: list = field(default_factory=list)  # objects that must stay alive, such as publishers


@dataclass(frozen=True)
class Fault:
    """A fault. driver: 'policy' or 'expert'. expected: the executor's hold; 'dead' if the fault kills the executor."""

    name: str
    about: str
    driver: str
    expected: str
    strike: Callable[[Scene], None]
    known_after: float = 0.0  # [s] from the fault until it can be detected


def _signal(name: str, number: int) -> Callable[[Scene], None]:
    return lambda scene: os.kill(scene.supervisor.pid(name), number)


def _unplug(scene: Scene) -> None:
    value = ParameterValue(type=ParameterType.PARAMETER_BOOL, bool_value=False)
    request = SetParameters.Request(parameters=[Parameter(name='camera_enabled.front', value=value)])
    result = scene.probe.call(SetParameters, 'sim/set_parameters', request).results[0]
    if not result.successful:
        raise RuntimeError(f'the front camera cannot be unplugged: {result.reason}')


def _disturb(**changes: float) -> Callable[[Scene], None]:
    """Return a function that sets attributes of the relay."""

    def strike(scene: Scene) -> None:
        for name, value in changes.items():
            setattr(scene.relay, name, value)

    return strike


def _compete(scene: Scene) -> None:
    scene.kept.append(scene.probe.node.create_publisher(JointState, 'target_joint', qos.COMMAND))


def _press(scene: Scene) -> None:
    publisher = scene.probe.node.create_publisher(Bool, 'executor/emergency_stop', qos.LATCHED)
    publisher.publish(Bool(data=True))
    scene.kept.append(publisher)


JUMP = NS
DISCOVERY = 0.2  # [s] for DDS to discover a publisher on a busy machine
FAULTS = (
    Fault('policy killed', 'kill -9 of the policy that drives', 'policy', 'CHUNKS_STOPPED',
          _signal('/policy', signal.SIGKILL), 0.8),
    Fault('policy hangs', 'SIGSTOP of the policy that drives', 'policy', 'CHUNKS_STOPPED',
          _signal('/policy', signal.SIGSTOP), 0.8),
    Fault('camera unplugged', 'the front camera stops, the policy drives', 'policy', 'CHUNKS_STOPPED', _unplug, 1.1),
    Fault('source killed', 'kill -9 of the expert that drives', 'expert', 'CHUNKS_STOPPED',
          _signal('/expert', signal.SIGKILL), 0.8),
    Fault('executor killed', 'kill -9 of the executor', 'expert', 'dead', _signal('/executor', signal.SIGKILL)),
    Fault('controller gone', 'set-points have no subscriber any more', 'expert', 'CONTROLLER_MISSING',
          lambda scene: scene.relay.remove_controller()),
    Fault('two publishers', 'another node sends set-points, too', 'expert', 'COMPETING_PUBLISHER', _compete, DISCOVERY),
    Fault('joints frozen', 'joint states stop', 'expert', 'JOINT_STATE_STALE', _disturb(frozen=True), 0.2),
    Fault('joints NaN', 'a joint position is NaN from now on', 'expert', 'JOINT_STATE_STALE', _disturb(nan=True), 0.2),
    Fault('clock forward', 'the clock and all stamps jump 1 s ahead', 'expert', 'CLOCK_JUMP', _disturb(offset=JUMP)),
    Fault('clock back', 'the clock and all stamps jump 1 s back', 'expert', 'CLOCK_JUMP', _disturb(offset=-JUMP)),
    Fault('emergency stop', 'true on ~/emergency_stop', 'expert', 'EMERGENCY_STOP', _press),
    Fault('late chunks', 'chunks are 0.2 s later than before', 'expert', 'NONE', _disturb(delay=0.2)),
)  # fmt: skip


def gentle_model(folder: Path, seed: int) -> Path:
    """Write a checkpoint with random weights into folder and return it.

    Its chunks last 0.8 s and are slow enough for the executor. The steps of a random chunk are independent: few steps
    with long intervals keep the arm moving.
    """
    from vla_model.families.mmact.loading import LoadOptions, load, save

    save(load(RANDOM, LoadOptions(seed=seed)), folder)
    path = folder / 'config.json'
    config = json.loads(path.read_text())
    robot, reach = config['robot'], 0.12  # [rad]
    robot |= {'horizon': 4, 'dt': 0.2, 'action_low': [-reach] * 7 + [0.0], 'action_high': [reach] * 7 + [0.08]}
    path.write_text(json.dumps(config))
    return folder


def run_fault(fault: Fault, seed: int = 0, folder: Path | None = None) -> FaultResult:
    """Start the system in its own ROS domain, inject the fault in mid-motion, and return the measurements.

    folder: for the logs of the nodes. Raises TimeoutError when the arm never moves, NodeEnded when another node dies.
    """
    with domain_coordinator.domain_id() as domain, tempfile.TemporaryDirectory() as temporary:
        os.environ['ROS_DOMAIN_ID'] = str(domain)
        sim, *expert = sim_nodes(ROBOT, task='stack_block', seed=seed, expert=fault.driver == 'expert')
        specs = [replace(sim, remappings=SIM), *(replace(e, remappings=SOURCE) for e in expert)]
        if fault.driver == 'policy':
            model = str(gentle_model(Path(temporary, 'model'), seed))
            executor, policy = policy_nodes(ROBOT, model=model, drive=True, use_sim_time=True)
            specs += [executor, replace(policy, remappings=SOURCE)]
        else:
            specs += policy_nodes(ROBOT, use_sim_time=True)[:1]
        with Supervisor(folder or Path(temporary, 'logs')) as supervisor, Relay() as relay, Probe('faults') as probe:
            for spec in specs:
                supervisor.start(spec)
            probe.check = supervisor.check
            return _watch(fault, Scene(supervisor, probe, relay))


def _watch(fault: Fault, scene: Scene) -> FaultResult:
    probe, profile = scene.probe, RobotProfile.load(ROBOT)
    record = Recording(profile)
    probe.node.create_subscription(JointState, f'{RAW}/joint_states', record.on_joints, qos.SENSOR)
    probe.node.create_subscription(JointState, f'{RAW}/target_joint', record.on_target, qos.COMMAND)
    probe.node.create_subscription(ExecutorStatus, 'executor/status', record.on_status, qos.LATCHED)
    instruction = probe.node.create_publisher(String, 'policy/instruction', qos.LATCHED)
    instruction.publish(String(data='stack the red block on the blue block'))
    probe.wait(lambda: record.joints, BRING_UP, 'the simulator publishes joint states')
    for name in ('/policy', '/executor') if fault.driver == 'policy' else ('/executor',):
        probe.bring_up(name, BRING_UP)

    def moves() -> bool:
        return record.speed() > MOVING and record.hold() == 'NONE'

    probe.wait(moves, BRING_UP, 'the arm moves')
    record.strike()
    fault.strike(scene)
    probe.check = lambda: None  # the fault may kill a node
    probe.wait(lambda: record.elapsed() > WATCH, BRING_UP, 'the simulation continues')
    return record.result(fault, scene.supervisor.alive('/executor'))


def bench_faults(runs: int, out: Path | None) -> bool:
    """Inject each fault `runs` times, print the table; return whether every run was as expected."""
    results = []
    for fault in FAULTS:
        for seed in range(runs):
            r = run_fault(fault, seed)
            results.append(r)
            print(
                f'{fault.name}, seed {seed}: {r.reported}, known after {r.known:.2f} s, at rest after {r.held:.2f} s, '
                f'at most {r.speed_after:.2f} rad/s{"" if r.good else "  WRONG"}',
                flush=True,
            )
    write_report(results, out, f'a joint faster than {MOVING} rad/s')
    return all(r.good and (math.isfinite(r.held) or r.fault.expected == 'NONE') for r in results)
