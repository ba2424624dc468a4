"""The demo: policy or expert drives a simulated Franka through each task, and a report is written."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import domain_coordinator
from rich.console import Console
from rich.live import Live
from rich.table import Table
from std_msgs.msg import String

from vla_bringup.bags.bag import Bag
from vla_bringup.console import make_console
from vla_bringup.demo.advice import Pace, after_death, keeping_up
from vla_bringup.demo.episodes import Episodes, Seen, executor_state
from vla_bringup.demo.pictures import write_joints, write_videos
from vla_bringup.demo.report import EpisodeReport, episode_reports, read_run
from vla_bringup.demo.summary import COLUMNS, FOOTNOTE, row, write_summary
from vla_bringup.machine import facts
from vla_bringup.processes.nodes import policy_nodes, recorder_node, sim_nodes
from vla_bringup.processes.probe import Probe, TransitionFailed
from vla_bringup.processes.supervisor import NodeEnded, Supervisor
from vla_core.observe.cadence import RATE
from vla_core.profile import RobotProfile, profile_parameters
from vla_model.checkpoints.shipped import RANDOM
from vla_model.engines.trial import ending
from vla_msgs.msg import ExecutorStatus
from vla_policy_node.ros import qos

ROBOT = 'sim_panda'


@dataclass(frozen=True)
class Options:
    """Options of the demo."""

    tasks: tuple[str, ...]
    episodes_per_task: int = 1
    seed: int = 0  # of the first episode of each task
    out: Path = Path('out/demo')
    real_time_factor: float = 1.0  # 0: as fast as possible
    model: str = RANDOM
    policy_drives: bool = False  # False: the expert drives, and the policy runs in shadow
    instruction: str = ''  # of every episode; empty: chosen by the seed
    device: str = 'cpu'
    engine: str = 'auto'  # parameters of the policy node
    threads: int = 0
    rate: float = RATE  # [Hz] most inferences per second
    time_limit: float = 30.0  # [s] of simulation per episode
    graph_to: Path | None = None  # file for the ROS graph, captured during the last episode

    @property
    def runs(self) -> list[tuple[str, int]]:
        """Task and seed of each episode."""
        return [(task, self.seed + i) for task in self.tasks for i in range(self.episodes_per_task)]


def run_demo(options: Options) -> bool:
    """Run the episodes and write the report. Return whether the demo succeeded.

    Success means that no node died and that every episode succeeded; where the policy drives, one success is enough.
    Raises ValueError for wrong options before a node starts.
    """
    console = make_console()
    began = time.monotonic()
    out, runs = options.out, options.runs
    if options.policy_drives and options.real_time_factor == 0:
        raise ValueError(
            'a model that drives needs time for inference, and with --real-time-factor 0 the simulation does not wait: '
            'give --real-time-factor 1, or let the expert drive (--expert)'
        )
    if options.engine != 'auto':
        from vla_model.engines.select import check  # here, as the import of torch takes a second

        check(options.engine, options.device.split(':')[0], 'float32')
    prepare_folder(out)
    trouble: list[str] = []
    advice: list[str] = []  # printed last
    paces: list[Pace] = []
    with domain_coordinator.domain_id() as domain:
        os.environ['ROS_DOMAIN_ID'] = str(domain)  # unused on this machine; for the nodes and the probe
        console.print(f'ROS_DOMAIN_ID={domain}; logs in {out / "logs"}')
        try:
            with interruptible(), Supervisor(out / 'logs') as supervisor:
                try:
                    _run_episodes(supervisor, console, options, paces)
                except TransitionFailed as error:
                    trouble.append(f'{error}:\n{supervisor.last_lines(error.node)}')
                except NodeEnded as error:
                    trouble.append(str(error))
                    advice.append(after_death(error.name.rsplit('/', 1)[-1], error.code, options.engine))
                except (RuntimeError, TimeoutError) as error:
                    trouble.append(str(error))
                for name, code in supervisor.stop().items():
                    if code != 0:
                        trouble.append(f'{name} {ending(code)} when it was stopped; see its log')
        except KeyboardInterrupt:
            console.print('interrupted: all nodes are stopped')
            return False
    console.print('reading the bag, making pictures ...')
    try:
        reports, slow = _report(options, trouble, began, paces)
    except ValueError as error:
        for text in (*trouble, f'no report: {error}', *advice):
            console.print(text, style='red', markup=False)
        return False
    advice = [slow, *advice] if slow else advice
    for text in trouble:
        console.print(text, style='red', markup=False)
    table = Table(*COLUMNS, title=f'{sum(e.success for e in reports)} of {len(runs)} episodes succeeded')
    for e in reports:
        table.add_row(*row(e), style=None if e.success else 'red')
    console.print(table)
    console.print(FOOTNOTE, style='dim')
    console.print(f'{out}/summary.md, videos, joints.png and the bag are ready after {time.monotonic() - began:.0f} s')
    for text in advice:
        console.print(text, style='yellow', markup=False)
    enough = any if options.policy_drives else all
    return not trouble and len(reports) == len(runs) and enough(e.success for e in reports)


def prepare_folder(out: Path) -> None:
    """Make the folder, without the files of an earlier demo. Raises ValueError when it has other files."""
    if out.exists() and any(out.iterdir()):
        if not (out / 'logs').is_dir():
            raise ValueError(f'{out} is not empty and not from an earlier demo: give another --out')
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt inside the block, so that it stops all processes as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run_episodes(supervisor: Supervisor, console: Console, options: Options, paces: list[Pace]) -> None:
    """Start the nodes and run the episodes. The pace of each episode is appended to paces."""
    runs = options.runs
    given: dict[str, Any] = {'engine': options.engine, 'threads': options.threads}
    for spec in (
        recorder_node(ROBOT, options.out.absolute() / 'bag', use_sim_time=True),
        *sim_nodes(
            ROBOT,
            task=runs[0][0],
            seed=runs[0][1],
            real_time_factor=options.real_time_factor,
            expert=not options.policy_drives,
        ),
        *policy_nodes(
            ROBOT,
            model=options.model,
            device=options.device,
            drive=options.policy_drives,
            rate=options.rate,
            use_sim_time=True,
        ),
    ):
        supervisor.start(replace(spec, parameters=spec.parameters | given) if spec.name == 'policy' else spec)
    with Probe('demo') as probe, Progress(console) as progress:
        probe.check = supervisor.check
        episodes = Episodes(probe, progress.show, options.policy_drives)
        probe.node.create_subscription(String, 'policy/plan_text', progress.plan, qos.LATCHED)
        progress.stage('starting')
        episodes.bring_up()
        for number, (task, seed) in enumerate(runs, 1):
            progress.stage(f'{number}/{len(runs)} {task}')
            with graph_capture(options.graph_to if number == len(runs) else None):
                taken = episodes.run(task, seed, options.time_limit, options.instruction)
            paces.append(episodes.pace)
            progress.finished(task, seed, taken, episodes.seen.wrong or episodes.seen.blocked)


@contextmanager
def graph_capture(path: Path | None) -> Iterator[None]:
    """Capture the ROS graph in a child process while the block runs. Raises RuntimeError when that fails."""
    if path is None:
        yield
        return
    words = [sys.executable, '-m', 'vla_bringup.cli', 'graph', '--seconds', '4', '--out', str(path.absolute())]
    with subprocess.Popen(words, cwd=Path(__file__).parents[2]) as process:  # `-m` imports from the working directory
        try:
            yield
            code = process.wait(30.0)
        except BaseException:
            process.kill()
            raise
    if code != 0:
        raise RuntimeError(f'./vla graph ended with exit code {code}')


class Progress:
    """Shows the state of the episodes: a table that is refreshed on a terminal, else a line per episode."""

    def __init__(self, console: Console) -> None:
        self._console, self._stage, self._plan = console, '', ''
        self._live = Live(console=console, refresh_per_second=8, transient=True)
        self._seen = Seen()

    def __enter__(self) -> 'Progress':
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def stage(self, text: str) -> None:
        self._stage = text
        if not self._console.is_terminal:
            self._console.print(text)

    def plan(self, msg: String) -> None:
        self._plan = msg.data

    def show(self, seen: Seen) -> None:
        self._seen = seen
        if self._console.is_terminal:
            self._live.update(self._table())

    def finished(self, task: str, seed: int, taken: float | None, remark: str = '') -> None:
        outcome = '[red]no success' if taken is None else f'[green]success[/] after {taken:.1f} s'
        outcome += f' ({remark})' if remark else ''
        self._console.print(f'{task}, seed {seed}: {outcome}')

    def _table(self) -> Table:
        seen = self._seen
        table = Table.grid(padding=(0, 2))
        table.add_row('episode', f'[bold]{self._stage}')
        if seen.episode is not None:
            table.add_row('instruction', seen.episode.instruction)
            table.add_row('sub-task', seen.progress.current if seen.progress is not None else '')
            table.add_row('simulation', f'{seen.time:.1f} s' + ('   [green]success' if seen.success else ''))
        if self._plan:
            table.add_row('plan', self._plan)
        if (e := seen.executor) is not None:
            done, shown = e.verdict_counts[ExecutorStatus.ACCEPTED], e.verdict_counts[ExecutorStatus.REJECT_SHADOW]
            motion = f'{executor_state(e.state)}   tracking {1e3 * e.tracking_error:.0f} mrad'
            table.add_row('executor', f'{motion}   {done} chunks, {shown} in shadow')
        if (p := seen.policy) is not None:
            latency = f'inference p50 {1e3 * p.inference_p50:.0f} ms, p95 {1e3 * p.inference_p95:.0f} ms'
            table.add_row('policy', f'{p.chunks} chunks   {latency}' + (f'   [yellow]{p.message}' if p.message else ''))
        return table


def _report(options: Options, trouble: list[str], began: float, paces: list[Pace]) -> tuple[list[EpisodeReport], str]:
    """Write videos, figure and summary. Return the episodes and a line if the machine was too slow.

    Missing videos or figures are appended to trouble. Raises ValueError without a usable bag.
    """
    out = options.out
    profile = RobotProfile.load(ROBOT)
    parameters = profile_parameters(ROBOT)
    topics = {**parameters['topics'], 'camera_topics': parameters['camera_topics']}
    bag = out / 'bag'
    run = read_run(bag, profile.joint_names, topics=topics)
    reports = episode_reports(run)[1:]  # the first episode starts with the simulator
    if reports:
        videos = write_videos(bag, run, reports, out)
        trouble += [f'no video of episode {e.index}: no images in the bag' for e in reports if e.index not in videos]
        if run.measured.times and run.commanded.times:
            write_joints(run, reports, profile.joint_names, out / 'joints.png')
        else:
            trouble.append('no figure of the joints: the bag lacks measured or commanded positions')
    else:
        videos = {}
    with Bag(bag) as reader:
        counts = reader.counts
    slow = keeping_up(run, reports, counts, paces, options.real_time_factor)
    command = shlex.join(['./vla', *sys.argv[1:]])
    models = sorted({c.model_id for c in run.chunks.values} - {'', 'expert'}) or [options.model]
    write_summary(
        out,
        reports,
        videos=videos,
        machine=facts(),
        command=command,
        bag_counts=counts,
        trouble=trouble,
        model=', '.join(models),
        policy_drives=options.policy_drives,
        wall=time.monotonic() - began,
        slow=slow,
    )
    return reports, slow
