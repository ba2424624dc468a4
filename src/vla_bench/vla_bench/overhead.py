"""./vla bench overhead: time from the stamp of the newest image to the chunk, without the time of the model.

The policy node runs as a process over DDS, on wall time as on a robot. Messages of the simulator are stamped anew,
cameras in pairs, so that rendering and the steps of the simulated clock do not count.
"""

import json
import math
import shlex
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import domain_coordinator
import numpy as np
import psutil
from rich.table import Table
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String

from vla_bench.faults.relay import RAW
from vla_bringup.console import make_console
from vla_bringup.demo.demo import ROBOT, interruptible
from vla_bringup.machine import facts
from vla_bringup.processes.nodes import policy_nodes, sim_nodes
from vla_bringup.processes.probe import BRING_UP, Probe
from vla_bringup.processes.supervisor import Supervisor
from vla_model.checkpoints.shipped import RANDOM
from vla_msgs.msg import ActionChunk, PolicyStatus
from vla_policy_node.ros import qos
from vla_policy_node.ros.chunk_msg import to_ns, to_time

CAMERAS = ('front/image_raw', 'wrist/image_raw')
MOVED = tuple((topic, f'{RAW}/{topic}') for topic in ('joint_states', *CAMERAS))
SETTLE = 3.0  # [s] from the first chunk to the measurement
TARGET = 8.0  # [ms] p99


@dataclass(frozen=True)
class Options:
    out: Path
    model: str = RANDOM  # or a checkpoint folder
    device: str = 'cpu'
    seconds: float = 60.0  # measured


class Relay:
    """Relays messages of the simulator with stamps of wall time, and records the chunks."""

    def __init__(self, probe: Probe) -> None:
        node = self._node = probe.node
        self._pair: dict[str, Image] = {}
        self.inference: dict[int, float] = {}  # sequence -> [s]
        self.latency: dict[int, float] = {}  # sequence -> [s] from t_ref to the publication, from the status
        make: Any = node.create_publisher
        self._joints = make(JointState, 'joint_states', qos.SENSOR_OUT)
        self._images = {topic: make(Image, topic, qos.SENSOR_OUT) for topic in CAMERAS}
        listen: Any = node.create_subscription
        listen(JointState, f'{RAW}/joint_states', self._on_joints, qos.SENSOR)
        for topic in CAMERAS:
            listen(Image, f'{RAW}/{topic}', lambda msg, topic=topic: self._on_image(topic, msg), qos.SENSOR)
        listen(ActionChunk, 'action_chunk', self._on_chunk, qos.CHUNK)
        listen(PolicyStatus, 'policy/status', self._on_status, qos.STATUS)
        self._instruction = make(String, 'policy/instruction', qos.LATCHED)
        self._instruction.publish(String(data='press the red button'))

    def _on_joints(self, msg: JointState) -> None:
        msg.header.stamp = self._node.get_clock().now().to_msg()
        self._joints.publish(msg)

    def _on_image(self, topic: str, msg: Image) -> None:
        self._pair[topic] = msg
        if len({to_ns(m.header.stamp) for m in self._pair.values()}) == 1 and len(self._pair) == len(CAMERAS):
            now = to_time(self._node.get_clock().now().nanoseconds)
            for name, image in self._pair.items():
                image.header.stamp = now
                self._images[name].publish(image)
            self._pair = {}

    def _on_chunk(self, msg: ActionChunk) -> None:
        self.inference[int(msg.sequence)] = to_ns(msg.inference_time) * 1e-9

    def _on_status(self, msg: PolicyStatus) -> None:
        if not math.isnan(msg.latency):
            self.latency[int(msg.sequence)] = float(msg.latency)

    def overheads(self) -> np.ndarray:
        """Return the overhead of each chunk with both times, (n,) [ms]."""
        both = sorted(self.inference.keys() & self.latency.keys())
        return np.array([1e3 * (self.latency[n] - self.inference[n]) for n in both])


def waiting(pid: int) -> tuple[float, float]:
    """Return the times [s] that the threads of a process ran and waited for a core (Linux schedstat)."""
    ran = waited = 0
    for file in Path(f'/proc/{pid}/task').glob('*/schedstat'):
        try:
            on, off, _ = map(int, file.read_text().split())
        except (OSError, ValueError):  # the thread ended meanwhile
            continue
        ran, waited = ran + on, waited + off
    return ran * 1e-9, waited * 1e-9


def measure(options: Options, folder: Path) -> dict[str, Any]:
    """Run the benchmark and return its numbers. Raises RuntimeError or TimeoutError when a node fails."""
    sim = replace(sim_nodes(ROBOT, expert=False)[0], remappings=MOVED)
    _, policy = policy_nodes(
        ROBOT, model=options.model, device=options.device, rate=10.0, policy_parameters={'threads': 1}
    )
    with (
        domain_coordinator.domain_id() as domain,
        Supervisor(folder / 'logs', {'ROS_DOMAIN_ID': str(domain)}) as supervisor,
        Probe('bench', domain_id=int(domain)) as probe,
    ):
        relay = Relay(probe)
        for spec in (sim, policy):
            supervisor.start(spec)
        probe.check = supervisor.check
        probe.bring_up(policy.full_name, BRING_UP)
        probe.wait(lambda: relay.inference, BRING_UP, 'the first chunk')
        probe.spin(SETTLE)
        relay.inference, relay.latency = {}, {}
        pid = supervisor.pid(policy.full_name)
        ran, waited = waiting(pid)
        others = psutil.cpu_times()
        probe.spin(options.seconds)
        ran, waited = (b - a for a, b in zip((ran, waited), waiting(pid), strict=True))
        after = psutil.cpu_times()
    overheads = relay.overheads()
    if not len(overheads):
        raise RuntimeError('no chunk came with a status while it was measured')
    busy = sum(after) - sum(others) - (after.idle - others.idle)
    return {
        'chunks': len(overheads),
        'overhead [ms]': _spread(overheads),
        'model [ms]': _spread(1e3 * np.array(list(relay.inference.values()))),
        'node: ran [% of one core]': 100 * ran / options.seconds,
        'node: ready but waiting for a core [% of that]': 100 * waited / max(ran + waited, 1e-9),
        'machine: busy [% of all cores]': 100 * busy / max(sum(after) - sum(others), 1e-9),
    }


def _spread(values: np.ndarray) -> dict[str, float]:
    return dict(zip(('p50', 'p95', 'p99', 'max'), map(float, np.percentile(values, (50, 95, 99, 100))), strict=True))


def bench_overhead(options: Options) -> bool:
    """Measure, write overhead.json, print a table; return whether p99 is at most 8 ms."""
    console = make_console()
    with interruptible(), tempfile.TemporaryDirectory() as folder:
        row = measure(options, Path(folder))
    about = {'command': shlex.join(['./vla', *sys.argv[1:]]), 'model': options.model, 'machine': facts()}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / 'overhead.json').write_text(json.dumps({**about, **row}, indent=1) + '\n')
    table = Table('', 'p50', 'p95', 'p99', 'max')
    for name, value in row.items():
        cells = [f'{v:.2f}' for v in value.values()] if isinstance(value, dict) else [f'{value:.0f}']
        table.add_row(name, *cells)
    console.print(table)
    good = row['overhead [ms]']['p99'] <= TARGET
    console.print(f'p99 {"within" if good else "ABOVE"} {TARGET:g} ms; {options.out}/overhead.json is ready')
    return good
