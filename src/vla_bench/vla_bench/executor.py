"""./vla bench executor: periods of set-points over DDS, beside a busy policy and a simulated robot.

The executor runs on wall time, as on a real arm. Messages in simulation time are stamped anew between the nodes.
"""

import json
import os
import shlex
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import domain_coordinator
import numpy as np
import psutil
from diagnostic_msgs.msg import DiagnosticArray
from rich.markup import escape
from rich.table import Table
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String

from vla_bench.faults.faults import ROBOT, gentle_model
from vla_bench.faults.relay import RAW
from vla_bringup.console import make_console
from vla_bringup.demo.demo import interruptible
from vla_bringup.machine import facts
from vla_bringup.processes.nodes import policy_nodes, sim_nodes
from vla_bringup.processes.probe import BRING_UP, Probe
from vla_bringup.processes.supervisor import Supervisor
from vla_core.motion.chunk import Verdict
from vla_model.checkpoints.shipped import RANDOM, is_random
from vla_msgs.msg import ActionChunk, ExecutorStatus
from vla_policy_node.executor.report import INGEST, PERIOD, STEP
from vla_policy_node.ros import qos
from vla_policy_node.ros.chunk_msg import to_ns, to_time

TASK, INSTRUCTION = 'stack_block', 'stack the red block on the blue block'
MOVED = (
    ('joint_states', f'{RAW}/joint_states'),
    ('action_chunk', f'{RAW}/action_chunk'),
)  # topics that are stamped anew
THINKS = 5.0  # [Hz] of inferences, slow enough for plan texts and predicted images between them
SETTLE = 6.0  # [s] from the first motion to the measurement; earlier values leave the diagnostics
FOLLOW = 0.05  # gain of the low-pass filter of the clock offset, which discovery and load make jitter
NAMES = ('p50', 'p95', 'p99', 'max')


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    out: Path
    model: str = RANDOM  # or a checkpoint folder
    device: str = 'cpu'
    rate: float = 200.0  # [Hz] of set-points
    seconds: float = 30.0  # [s] of each part, with and without collision monitor
    quick: bool = False  # two seconds with collision monitor

    @property
    def measured(self) -> float:
        return 2.0 if self.quick else self.seconds


class Relay:
    """Relays messages between simulator, policy and executor with stamps of wall time, and counts them."""

    def __init__(self, probe: Probe) -> None:
        node = self._node = probe.node
        self._offset: int | None = None  # [ns] from simulation time to wall time
        self._joints = node.create_publisher(JointState, 'joint_states', qos.SENSOR_OUT)
        self._chunks = node.create_publisher(ActionChunk, 'action_chunk', qos.CHUNK)
        self.received: list[int] = []  # [ns] at which DDS received a set-point
        self.status = ExecutorStatus()
        self.executing: list[bool] = []
        self.outputs: Counter[str] = Counter()
        self.times: list[dict[str, str]] = []  # of the executor's diagnostics
        self.decoders: dict[str, str] = {}  # of the policy: whether plan and imagine have time
        listen: Any = node.create_subscription
        listen(JointState, f'{RAW}/joint_states', self._on_joints, qos.SENSOR)
        listen(ActionChunk, f'{RAW}/action_chunk', self._on_chunk, qos.CHUNK)
        listen(JointState, 'target_joint', self._on_set_point, qos.CHANGES)
        listen(ExecutorStatus, 'executor/status', self._on_status, qos.LATCHED)
        listen(DiagnosticArray, '/diagnostics', self._on_diagnostics, qos.STATUS)
        # The policy decodes plans and images only for subscribers.
        listen(String, 'policy/plan_text', lambda _: self.outputs.update(['plan texts']), qos.LATCHED)
        listen(Image, 'policy/predicted_image', lambda _: self.outputs.update(['predicted images']), qos.SENSOR)
        self._instruction = node.create_publisher(String, 'policy/instruction', qos.LATCHED)
        self._instruction.publish(String(data=INSTRUCTION))

    def begin(self) -> None:
        """Clear all counts before the measurement."""
        self.received, self.executing, self.times = [], [], []
        self.outputs.clear()

    def _on_joints(self, msg: JointState) -> None:
        now = self._node.get_clock().now().nanoseconds
        apart = now - to_ns(msg.header.stamp)
        self._offset = apart if self._offset is None else self._offset + int(FOLLOW * (apart - self._offset))
        msg.header.stamp = to_time(now)
        self._joints.publish(msg)

    def _on_chunk(self, msg: ActionChunk) -> None:
        if self._offset is not None:
            msg.header.stamp = to_time(to_ns(msg.header.stamp) + self._offset)
            self._chunks.publish(msg)
            self.outputs.update(['chunks'])

    def _on_set_point(self, msg: JointState, info: dict[str, Any]) -> None:
        self.received.append(info['received_timestamp'])

    def _on_status(self, msg: ExecutorStatus) -> None:
        self.status = msg
        self.executing.append(msg.state == ExecutorStatus.STATE_EXECUTING)

    def _on_diagnostics(self, msg: DiagnosticArray) -> None:
        for status in msg.status:
            if status.name.endswith('set-points'):
                self.times.append({v.key: v.value for v in status.values})
            elif status.name.endswith((': plan', ': imagine')):
                self.decoders[status.name.split()[-1]] = status.message


def measure(options: Options, monitored: bool, folder: Path) -> dict[str, Any]:
    """Start the system in its own ROS domain and return the measurements. folder: for the model and the logs.

    Raises TimeoutError when the arm never moves, NodeEnded when a node dies.
    """
    model = options.model if not is_random(options.model) else str(gentle_model(folder / 'model', 0))
    sim = replace(sim_nodes(ROBOT, task=TASK, expert=False)[0], remappings=MOVED[:1])
    # The executor runs on wall time, the policy on simulation time.
    executor, _ = policy_nodes(
        ROBOT, executor_parameters={'rate': float(options.rate), 'collision_monitor.enabled': monitored}
    )
    _, policy = policy_nodes(ROBOT, model=model, device=options.device, drive=True, rate=THINKS, use_sim_time=True)
    policy = replace(policy, remappings=MOVED)
    with (
        domain_coordinator.domain_id() as domain,
        Supervisor(folder / 'logs', {'ROS_DOMAIN_ID': str(domain)}) as supervisor,
        Probe('bench', domain_id=int(domain)) as probe,
    ):
        relay = Relay(probe)
        for spec in (sim, executor, policy):
            supervisor.start(spec)
        probe.check = supervisor.check
        for name in (policy.full_name, executor.full_name):
            probe.bring_up(name, BRING_UP)
        probe.wait(lambda: any(relay.executing), BRING_UP, 'the arm moves')
        probe.spin(0.0 if options.quick else SETTLE)
        relay.begin()
        before = np.array(relay.status.verdict_counts, int)
        processes = {s.name: psutil.Process(supervisor.pid(s.full_name)) for s in (sim, executor, policy)}
        processes['this bench'] = psutil.Process(os.getpid())
        spent = {name: _spent(process) for name, process in processes.items()}
        probe.spin(options.measured)
        shares = {name: (_spent(p) - spent[name]) / options.measured for name, p in processes.items()}
        probe.wait(lambda: relay.times and STEP in relay.times[-1], 10.0, 'diagnostics of the executor')
        verdicts = np.array(relay.status.verdict_counts, int) - before
        return summary(
            relay, monitored, options.rate, shares, {v.name: int(verdicts[v]) for v in Verdict if verdicts[v]}
        )


def _spent(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def summary(
    relay: Relay, monitored: bool, rate: float, shares: dict[str, float], verdicts: dict[str, int]
) -> dict[str, Any]:
    """Return a row of the report. Times in ms.

    Times of the executor are the worst percentiles of its diagnostics, each over the newest 1000 steps.
    """
    gaps = np.diff(np.sort(relay.received)) * 1e-6
    row: dict[str, Any] = {
        'collision monitor': monitored,
        'set-points': len(relay.received),
        'late share': float((gaps > 1500.0 / rate).mean()),
        'CPU share': shares,
        'chunks': verdicts,
        'executing share': float(np.mean(relay.executing)),
        'policy outputs': dict(relay.outputs),
        'decoders': dict(relay.decoders),
        'subscriber period': dict(zip(NAMES, map(float, np.percentile(gaps, (50, 95, 99, 100))), strict=True)),
    }
    for name, key in (('node period', PERIOD), ('step', STEP), ('ingest', INGEST)):
        spreads = [[float(x) for x in values[key].split(',')] for values in relay.times if key in values]
        row[name] = dict(zip(NAMES, np.max(spreads, axis=0).tolist(), strict=True)) if spreads else {}
    return row


def bench_executor(options: Options) -> bool:
    """Measure with and without collision monitor, write executor.json and executor.md, print the table.

    Raises ValueError or FileNotFoundError for wrong options.
    """
    console = make_console()
    rows = []
    with interruptible():
        for monitored in (True,) if options.quick else (True, False):
            with tempfile.TemporaryDirectory() as folder:
                rows.append(measure(options, monitored, Path(folder)))
    about = {
        'command': shlex.join(['./vla', *sys.argv[1:]]),
        'model': 'random weights, gentle' if is_random(options.model) else options.model,
        'rate [Hz]': options.rate,
        'measured [s]': options.measured,
        'machine': facts(),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / 'executor.json').write_text(json.dumps({**about, 'rows': rows}, indent=1) + '\n')
    head, lines = (
        ['', *('with collision monitor' if r['collision monitor'] else 'without collision monitor' for r in rows)],
        cells(rows),
    )
    (options.out / 'executor.md').write_text(markdown(about, head, lines))
    table = Table(*head)
    for line in lines:
        table.add_row(*map(escape, line))
    console.print(table)
    console.print(f'{options.out}/executor.md and executor.json are ready')
    return True


def cells(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Return the lines of the table: a name, and a cell for each row."""

    def spread(times: dict[str, float]) -> str:
        return ' / '.join(f'{times[n]:.2f}' for n in NAMES) if times else '-'

    def counts(of: dict[str, int]) -> str:
        return ', '.join(f'{name} {n}' for name, n in of.items()) or 'none'

    parts = [
        ('period at a subscriber [ms], p50 / p95 / p99 / max', [spread(r['subscriber period']) for r in rows]),
        ('period in the node [ms]', [spread(r['node period']) for r in rows]),
        ('a control step [ms]', [spread(r['step']) for r in rows]),
        ('ingest of a chunk [ms]', [spread(r['ingest']) for r in rows]),
        ('set-points, later than 1.5 periods', [f'{r["set-points"]}, {100 * r["late share"]:.2f} %' for r in rows]),
        ('arm executing', [f'{100 * r["executing share"]:.0f} %' for r in rows]),
        ('verdicts on chunks', [counts(r['chunks']) for r in rows]),
        ('from the policy', [counts(r['policy outputs']) for r in rows]),
        ('its decoders', [', '.join(f'{name}: {text}' for name, text in r['decoders'].items()) for r in rows]),
    ]
    parts += [
        (f'CPU of {name} [% of one core]', [f'{100 * r["CPU share"][name]:.0f}' for r in rows])
        for name in rows[0]['CPU share']
    ]
    return [[name, *values] for name, values in parts]


def markdown(about: dict[str, Any], head: list[str], lines: list[list[str]]) -> str:
    """Return the page: settings, machine and table."""
    settings = [f'- {key}: {value}' for key, value in about.items() if key != 'machine']
    settings += [f'- {key}: {value}' for key, value in about['machine'].items()]
    table = [f'| {" | ".join(head)} |', '|' + '---|' * len(head), *(f'| {" | ".join(line)} |' for line in lines)]
    return '\n'.join(['# Executor, measured', '', *settings, '', *table, ''])
