"""What the arm does when a part dies in mid-motion, measured on the simulated robot with real processes."""

import json
import math
import os
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import domain_coordinator
import numpy as np
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from sensor_msgs.msg import JointState
from std_msgs.msg import String

from vla_bringup.machine import facts
from vla_bringup.nodes import policy_nodes, profile_path, sim_nodes
from vla_bringup.probe import Probe
from vla_bringup.supervisor import Supervisor
from vla_msgs.msg import ExecutorStatus
from vla_policy_node.core.profile import RobotProfile
from vla_policy_node.ros import qos
from vla_policy_node.ros.chunk_msg import to_ns
from vla_policy_node.ros.joints import decode_joints

ROBOT = 'sim_panda'
MOVING = 0.3  # [rad/s] the fastest joint must have this before the fault strikes
STILL = 0.01  # [rad/s] below this on every joint the arm counts as still
WATCH = 2.0  # [s] of simulation watched after the fault


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong. driver: who moves the arm, expert or policy."""

    name: str
    about: str
    driver: str
    strike: Callable[[Supervisor, Probe], None]


@dataclass(frozen=True)
class FaultResult:
    """What the arm did, from measured joint states; times of simulation."""

    fault: Fault
    speed_before: float  # [rad/s] of the fastest joint when the fault struck
    speed_after: float  # [rad/s] largest of any joint afterwards
    time_to_hold: float  # [s] until all joints were still and stayed so; infinite if they did not
    travel: float  # [rad] furthest that any joint went from where it was
    executor: str  # what its status says at the end


def _kill(name: str) -> Callable[[Supervisor, Probe], None]:
    return lambda supervisor, _: os.kill(supervisor.pid(name), signal.SIGKILL)


def _freeze(name: str) -> Callable[[Supervisor, Probe], None]:
    return lambda supervisor, _: os.kill(supervisor.pid(name), signal.SIGSTOP)


def _unplug(camera: str) -> Callable[[Supervisor, Probe], None]:
    value = ParameterValue(type=ParameterType.PARAMETER_BOOL, bool_value=False)
    request = SetParameters.Request(parameters=[Parameter(name=f'camera_enabled.{camera}', value=value)])

    def strike(_: Supervisor, probe: Probe) -> None:
        result = probe.call(SetParameters, 'sim/set_parameters', request).results[0]
        if not result.successful:
            raise RuntimeError(f'camera {camera} cannot be unplugged: {result.reason}')

    return strike


FAULTS = (
    Fault('policy killed', 'kill -9 of the policy node that drives', 'policy', _kill('/policy')),
    Fault('policy hangs', 'SIGSTOP of the policy node that drives', 'policy', _freeze('/policy')),
    Fault('camera unplugged', 'the front camera stops publishing, the policy drives', 'policy', _unplug('front')),
    Fault('source killed', 'kill -9 of the expert that drives', 'expert', _kill('/expert')),
    Fault('executor killed', 'kill -9 of the executor, the expert drives', 'expert', _kill('/executor')),
)


def gentle_model(folder: Path, seed: int) -> Path:
    """A checkpoint with random weights whose chunks last 0.8 s and are slow enough for the executor to take.

    The steps of a random chunk have nothing to do with each other; few and far apart, they make the arm move about.
    """
    from vla_model.policy import load, save

    save(load('random-nano', seed=seed), folder)
    path = folder / 'config.json'
    config = json.loads(path.read_text())
    robot, reach = config['robot'], 0.12  # [rad]
    robot |= {'horizon': 4, 'dt': 0.2, 'action_low': [-reach] * 7 + [0.0], 'action_high': [reach] * 7 + [0.08]}
    path.write_text(json.dumps(config))
    return folder


def run_fault(fault: Fault, seed: int = 0, folder: Path | None = None) -> FaultResult:
    """Bring everything up in a domain of its own, let the arm move, strike, and watch.

    folder: for the logs of the nodes. Raises TimeoutError when the arm never moves, NodeEnded when another node dies.
    """
    with domain_coordinator.domain_id() as domain, tempfile.TemporaryDirectory() as temporary:
        os.environ['ROS_DOMAIN_ID'] = str(domain)
        model = gentle_model(Path(temporary, 'model'), seed)
        with Supervisor(folder or Path(temporary, 'logs')) as supervisor:
            for spec in (
                *sim_nodes(ROBOT, task='stack_block', seed=seed, expert=fault.driver == 'expert'),
                *policy_nodes(ROBOT, model=str(model), drive=fault.driver == 'policy', use_sim_time=True),
            ):
                supervisor.start(spec)
            with Probe('faults') as probe:
                probe.check = supervisor.check
                return _watch(fault, supervisor, probe)


def _watch(fault: Fault, supervisor: Supervisor, probe: Probe) -> FaultResult:
    profile = RobotProfile.load(profile_path(ROBOT))
    seen: list[tuple[float, np.ndarray, np.ndarray]] = []  # time [s], positions, velocities
    statuses: list[ExecutorStatus] = []

    def on_joints(msg: JointState) -> None:
        positions, velocities = decode_joints(msg, profile.joint_names, 'joint_states')
        seen.append((to_ns(msg.header.stamp) * 1e-9, positions, velocities))

    probe.node.create_subscription(JointState, 'joint_states', on_joints, qos.SENSOR)
    probe.node.create_subscription(ExecutorStatus, 'executor/status', statuses.append, qos.LATCHED)
    instruction = probe.node.create_publisher(String, 'policy/instruction', qos.LATCHED)
    instruction.publish(String(data='stack the red block on the blue block'))
    probe.wait(lambda: seen, 60.0, 'the simulator publishes joint states')
    probe.bring_up('/policy', 60.0)
    probe.bring_up('/executor', 60.0)

    def speed() -> float:
        return float(np.abs(seen[-1][2]).max())

    probe.wait(lambda: speed() > MOVING and statuses[-1].state == ExecutorStatus.STATE_EXECUTING, 60.0, 'the arm moves')
    fault.strike(supervisor, probe)
    struck = len(seen) - 1
    before, (t0, q0, _) = speed(), seen[struck]
    probe.check = lambda: None  # a dead node is what was ordered
    probe.wait(lambda: seen[-1][0] > t0 + WATCH, 60.0, 'the simulation goes on')

    times = np.array([t for t, _, _ in seen[struck:]]) - t0
    speeds = np.array([np.abs(v).max() for _, _, v in seen[struck:]])
    moving = np.flatnonzero(speeds > STILL)
    last = int(moving[-1]) if len(moving) else 0
    held = math.inf if last == len(speeds) - 1 else float(times[min(last + 1, len(times) - 1)])
    travel = max(float(np.abs(q - q0).max()) for _, q, _ in seen[struck:])
    said = _said(statuses[-1]) if supervisor.alive('/executor') else 'dead'
    return FaultResult(fault, before, float(speeds.max()), held, travel, said)


def _said(status: ExecutorStatus) -> str:
    names = [n for n in dir(ExecutorStatus) if n.startswith('HOLD_')]
    return next(n for n in names if getattr(ExecutorStatus, n) == status.hold_reason).removeprefix('HOLD_')


def markdown(results: list[FaultResult]) -> str:
    """A table, one line per fault: medians and worst of its runs."""
    lines = [
        '| fault | what happens | runs | speed before | largest speed after | time to hold | travel | executor says |',
        '|---|---|---|---|---|---|---|---|',
    ]
    for fault in dict.fromkeys(r.fault for r in results):
        runs = [r for r in results if r.fault is fault]

        def cell(values: list[float], unit: str, digits: int = 2) -> str:
            return f'{np.median(values):.{digits}f} (worst {max(values):.{digits}f}) {unit}'

        lines.append(
            f'| {fault.name} | {fault.about} | {len(runs)} '
            f'| {cell([r.speed_before for r in runs], "rad/s")} | {cell([r.speed_after for r in runs], "rad/s")} '
            f'| {cell([r.time_to_hold for r in runs], "s")} | {cell([r.travel for r in runs], "rad", 3)} '
            f'| {", ".join(sorted({r.executor for r in runs}))} |'
        )
    return '\n'.join(lines)


_HEAD = """\
# Faults, measured

Written by `./vla bench faults`: real processes over DDS, the simulated arm in motion (a joint faster than {moving}
rad/s) when the fault strikes. Speeds and travel are of the joint that is worst, from measured joint states; "time to
hold" is until every joint is slower than {still} rad/s and stays so. Median of the runs, worst in brackets.

When chunks stop, the arm finishes the chunk it has, at most 0.8 s here, and brakes on its path; with a camera unplugged
the policy first waits until the image is too old (0.3 s). When the executor dies, nothing brakes: the controller holds
the last set-point, and the compliant arm runs into it.

"""


def bench_faults(runs: int, out: Path | None) -> bool:
    """Strike each fault `runs` times, print the table; whether the arm came to rest every time."""
    results = []
    for fault in FAULTS:
        for seed in range(runs):
            results.append(run_fault(fault, seed))
            r = results[-1]
            print(f'{fault.name}, seed {seed}: held after {r.time_to_hold:.2f} s, at most {r.speed_after:.2f} rad/s')
    table = markdown(results)
    print(table)
    if out is not None:
        machine = '\n'.join(f'- {k}: {v}' for k, v in facts().items())
        out.write_text(_HEAD.format(moving=MOVING, still=STILL) + table + f'\n\n{machine}\n')
    return all(math.isfinite(r.time_to_hold) for r in results)
