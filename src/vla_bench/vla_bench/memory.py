"""./vla bench memory: memory of the simulator over resets, and of policy and executor over lifecycles.

The nodes run over DDS as in the demo. Memory, threads and open files are read from the system after each round.
"""

import csv
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import domain_coordinator
import numpy as np
import psutil
from lifecycle_msgs.msg import Transition
from rich.table import Table
from sensor_msgs.msg import Image

from vla_bringup.console import make_console
from vla_bringup.demo.demo import ROBOT, interruptible
from vla_bringup.processes.nodes import NodeSpec, policy_nodes, sim_nodes
from vla_bringup.processes.probe import BRING_UP, Probe
from vla_bringup.processes.supervisor import Supervisor
from vla_model.checkpoints.shipped import RANDOM
from vla_msgs.srv import ResetEpisode
from vla_policy_node.ros import qos
from vla_sim.tasks import TASKS

IMAGES = 3  # images of the front camera per episode, which show the new scene
LEARNING = 0.25  # first share of the rounds, in which caches fill: not part of the slope


@dataclass(frozen=True)
class Options:
    out: Path
    resets: int = 200  # of the simulator, the tasks in turn
    cycles: int = 30  # of policy and executor
    model: str = RANDOM  # or a checkpoint folder
    device: str = 'cpu'


class Sample(NamedTuple):
    """Memory, threads and files of one process after one round."""

    node: str
    round: int
    what: str
    memory: float  # [MB] resident
    threads: int
    files: int


def measure(options: Options, folder: Path) -> Iterator[Sample]:
    """Yield a sample after each round. Raises RuntimeError or TimeoutError when a node fails."""
    sim = sim_nodes(ROBOT, expert=False)[0]
    executor, policy = policy_nodes(ROBOT, model=options.model, device=options.device, drive=False, use_sim_time=True)
    with (
        domain_coordinator.domain_id() as domain,
        Supervisor(folder / 'logs', {'ROS_DOMAIN_ID': str(domain)}) as supervisor,
        Probe('bench', domain_id=int(domain)) as probe,
    ):
        probe.check = supervisor.check
        supervisor.start(sim)
        process = psutil.Process(supervisor.pid(sim.full_name))
        seen: list[Image] = []
        probe.node.create_subscription(Image, 'front/image_raw', seen.append, qos.SENSOR)
        for count in range(options.resets):
            request = ResetEpisode.Request(task=TASKS[count % len(TASKS)], seed=count)
            answer = probe.call(ResetEpisode, 'sim/reset', request, 60.0)
            if not answer.success:
                raise RuntimeError(f'the simulator refused a reset: {answer.message}')
            seen.clear()
            probe.wait(lambda: len(seen) >= IMAGES, 30.0, 'images of the new episode')
            yield _sample(sim.name, count + 1, request.task, process)
        for spec in (executor, policy) if options.cycles else ():
            yield from _cycles(spec, options.cycles, supervisor, probe)


def _cycles(spec: NodeSpec, cycles: int, supervisor: Supervisor, probe: Probe) -> Iterator[Sample]:
    supervisor.start(spec)
    process = psutil.Process(supervisor.pid(spec.full_name))
    for count in range(cycles):
        probe.bring_up(spec.full_name, BRING_UP)  # activation is repeated until joint states are received
        for transition in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP):
            probe.transition(spec.full_name, transition)
        yield _sample(spec.name, count + 1, 'cleaned up', process)


def _sample(node: str, count: int, what: str, process: psutil.Process) -> Sample:
    return Sample(node, count, what, process.memory_info().rss * 1e-6, process.num_threads(), process.num_fds())


def slope(memory: list[float]) -> float:
    """Return the slope of the memory without its first quarter [MB per round]; NaN with too few values."""
    kept = memory[int(LEARNING * len(memory)) :]
    return float(np.polyfit(np.arange(len(kept)), kept, 1)[0]) if len(kept) > 2 else float('nan')


def bench_memory(options: Options) -> bool:
    """Measure, append each sample to memory.csv, print the samples and a table."""
    console = make_console()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / 'memory.csv'
    samples: list[Sample] = []
    with interruptible(), tempfile.TemporaryDirectory() as folder, path.open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(Sample._fields)
        for sample in measure(options, Path(folder)):
            samples.append(sample)
            writer.writerow(sample)
            node, count, what, memory, threads, files = sample
            console.print(f'{node:8} {count:4}  {what:14} {memory:7.1f} MB  {threads:3} threads  {files:3} files')
    table = Table('node', 'rounds', 'first [MB]', 'median', 'max', 'last', 'slope [MB/round]', 'threads', 'files')
    for node in dict.fromkeys(sample.node for sample in samples):
        own = [sample for sample in samples if sample.node == node]
        sizes = [sample.memory for sample in own]
        figures = (sizes[0], float(np.median(sizes)), max(sizes), sizes[-1])
        table.add_row(
            node,
            str(len(own)),
            *(f'{value:.0f}' for value in figures),
            f'{slope(sizes):+.3f}',
            f'{own[0].threads} to {own[-1].threads}',
            f'{own[0].files} to {own[-1].files}',
        )
    console.print(table)
    console.print(f'{path} is ready')
    return True
