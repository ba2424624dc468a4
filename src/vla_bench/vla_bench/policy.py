"""./vla bench policy: success of a policy in real processes over DDS: simulator, executor and policy node."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import domain_coordinator
from rich.console import Console
from sensor_msgs.msg import Image
from std_msgs.msg import String

from vla_bringup.console import make_console
from vla_bringup.demo.demo import ROBOT, Progress, interruptible
from vla_bringup.demo.episodes import Episodes
from vla_bringup.processes.nodes import policy_nodes, sim_nodes
from vla_bringup.processes.probe import Probe, TransitionFailed
from vla_bringup.processes.supervisor import Supervisor
from vla_core.observe.cadence import RATE
from vla_model.checkpoints.shipped import RANDOM
from vla_msgs.msg import ExecutorStatus
from vla_policy_node.ros import qos
from vla_training.evaluate.evaluate import Job, jobs_of
from vla_training.evaluate.records import Record, RecordFile
from vla_training.evaluate.report import print_report, write_report

EXPERT = 'expert'  # the scripted expert drives: upper bound of the success


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    tasks: tuple[str, ...]
    episodes: int  # per task
    contrasts: int  # scenes per task, each used with two instructions
    seed: int  # of the first held-out episode
    out: Path
    model: str  # random-nano, a checkpoint folder, or EXPERT
    device: str = 'cpu'
    rate: float = RATE  # [Hz] most inferences per second
    real_time_factor: float = 1.0  # a lower factor gives the model more wall time per simulated second
    time_limit: float = 30.0  # [s] of simulation per episode
    listen: bool = False  # subscribe to plan texts and predicted images, which the policy makes for subscribers only


@dataclass
class Watch:
    """Status of the executor during an episode."""

    counts: tuple[int, ...] = ()  # of verdicts, since it was configured
    seams: tuple[float, ...] = ()  # [rad]
    newest: tuple[int, int] = (0, 0)  # epoch and sequence of the chunk
    counts_before: tuple[int, ...] = ()  # at the start of the episode

    def take(self, msg: ExecutorStatus) -> None:
        self.counts = tuple(int(n) for n in msg.verdict_counts)
        newest = (int(msg.epoch), int(msg.sequence))
        if msg.state == ExecutorStatus.STATE_EXECUTING and newest != self.newest and newest[0] == self.newest[0]:
            self.seams = (*self.seams, float(msg.seam_position))
        self.newest = newest

    def begin(self) -> None:
        self.seams, self.counts_before = (), self.counts

    def grown(self) -> tuple[int, int]:
        """Return the number of chunks since `begin`, and of those that were refused."""
        grown = [a - b for a, b in zip(self.counts, self.counts_before or (0,) * len(self.counts), strict=True)]
        if grown:
            grown[ExecutorStatus.REJECT_SHADOW] = 0
        taken = grown[ExecutorStatus.ACCEPTED] if grown else 0
        return sum(grown), sum(grown) - taken


def bench_policy(options: Options) -> bool:
    """Run the episodes without a record in `options.out`, and write the report; return whether all ran.

    Raises ValueError for wrong options before a node starts.
    """
    console = make_console()
    jobs = jobs_of(options.tasks, options.episodes, options.seed, options.contrasts)
    if not jobs:
        raise ValueError('no episodes: give --episodes or --contrasts above 0')
    trouble = ''
    with domain_coordinator.domain_id() as domain:
        os.environ['ROS_DOMAIN_ID'] = str(domain)  # unused on this machine; for the nodes and the probe
        try:
            with interruptible(), Supervisor(options.out / 'logs') as supervisor:
                try:
                    _run(supervisor, console, options, jobs)
                except TransitionFailed as error:
                    trouble = f'{error}:\n{supervisor.last_lines(error.node)}'
                except (RuntimeError, TimeoutError) as error:  # NodeEnded is one
                    trouble = str(error)
                supervisor.stop()
        except KeyboardInterrupt:
            trouble = 'interrupted: all nodes are stopped'
    if trouble:
        console.print(f'{trouble}\nRun the same command again to continue.', style='red', markup=False)
    return not trouble


def _run(supervisor: Supervisor, console: Console, options: Options, jobs: list[Job]) -> None:
    expert = options.model == EXPERT
    model = RANDOM if expert else options.model
    for spec in (
        *sim_nodes(ROBOT, task=jobs[0][1], real_time_factor=options.real_time_factor, expert=expert),
        *policy_nodes(
            ROBOT, model=model, device=options.device, drive=not expert, rate=options.rate, use_sim_time=True
        ),
    ):
        supervisor.start(spec)
    with Probe('bench') as probe, Progress(console) as progress:
        probe.check = supervisor.check
        watch = Watch()
        probe.node.create_subscription(ExecutorStatus, 'executor/status', watch.take, qos.LATCHED)
        received = {'plan texts': 0, 'predicted images': 0}
        if options.listen:

            def on_plan(msg: String) -> None:
                received['plan texts'] += bool(msg.data)  # an empty text ends the plan before

            def on_image(_: Image) -> None:
                received['predicted images'] += 1

            probe.node.create_subscription(String, 'policy/plan_text', on_plan, qos.LATCHED)
            probe.node.create_subscription(Image, 'policy/predicted_image', on_image, qos.SENSOR)
        episodes = Episodes(probe, progress.show, policy_drives=not expert)
        progress.stage('starting')
        episodes.bring_up()
        seen = episodes.seen
        probe.wait(lambda: seen.policy is not None and seen.policy.model_id, 10.0, 'policy/status names the model')
        assert seen.policy is not None
        facts = {
            'model': EXPERT if expert else seen.policy.model_id,
            'over': 'ROS, real processes',
            'rate': options.rate,
            'real_time_factor': options.real_time_factor,
            'time_limit': options.time_limit,
            'device': options.device,
            'plans and images': 'asked for' if options.listen else 'not asked for',
        }
        file = RecordFile(options.out, facts)
        left = file.missing(jobs)
        for number, job in enumerate(left, len(jobs) - len(left) + 1):
            group, task, seed, instruction = job
            progress.stage(f'{number}/{len(jobs)} {task}')
            watch.begin()
            taken = episodes.run(task, seed, options.time_limit, instruction)
            chunks, refused = watch.grown()
            file.add(
                Record(
                    group=group,
                    task=task,
                    seed=seed,
                    instruction=instruction,
                    success=taken is not None,
                    missed='' if taken is not None else seen.missed,
                    wrong=seen.wrong,
                    duration=options.time_limit if taken is None else taken,
                    chunks=chunks,
                    refused=refused,
                    seams=watch.seams,
                    messages=(seen.blocked,) if seen.blocked else (),
                )
            )
            progress.finished(task, seed, taken, seen.wrong or seen.blocked)
        wanted = set(jobs)
        records = [record for record in file.records if record.key in wanted]
        newest = seen.policy
        measures: dict[str, Mapping[str, float]] = {}
        if left and newest is not None:
            times = {'p50': newest.inference_p50, 'p95': newest.inference_p95, 'p99': newest.inference_p99}
            measures['Inference of the policy node, last 200'] = {f'{k} [s]': float(v) for k, v in times.items()}
        if left and options.listen:
            measures[f'Beside the actions, in the {len(left)} episodes that ran last'] = received
    write_report(options.out, facts, records, measures)
    print_report(console, facts, records, measures)
    console.print(f'{options.out}/summary.md, results.json and figures are ready')
