"""A unified vision-language-action model on a Franka arm.

Beside the commands below: ./vla build (builds the workspace), ./vla test (style, types and all tests),
./vla shell (a shell in which the suite works).
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from vla_bringup.tensorrt import app as tensorrt
from vla_core.observe.cadence import RATE
from vla_model.checkpoints.shipped import RANDOM, model_path
from vla_training.cli import SIMULATED, Model, Robot
from vla_training.cli import app as train

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
bench = typer.Typer(no_args_is_help=True, help='Measure.')
app.add_typer(bench, name='bench')
app.add_typer(train, name='train')
app.add_typer(tensorrt, name='tensorrt')

Tasks = Annotated[str, typer.Option(help='Comma-separated task ids; all by default.')]
ROOT = Path(os.environ.get('VLA_ROOT', ''))  # of the repository; ./vla sets it


@app.command()
def demo(
    tasks: Tasks = '',
    episodes_per_task: Annotated[int, typer.Option(min=1)] = 1,
    seed: Annotated[int, typer.Option(min=0, help='Of the first episode of each task.')] = 0,
    out: Annotated[Path, typer.Option(help='For videos, figure, bag and summary; emptied first.')] = Path('out/demo'),
    real_time_factor: Annotated[
        float, typer.Option(min=0.0, max=100.0, help='0: as fast as possible, where the expert drives.')
    ] = 1.0,
    model: Model = '',
    device: Annotated[str, typer.Option(help='Of the model: cpu, cuda.')] = 'cpu',
    engine: Annotated[str, typer.Option(help='Of the model, as the parameter engine of the policy node.')] = 'auto',
    threads: Annotated[int, typer.Option(min=0, help='CPU threads of the model; 0: all cores but one.')] = 0,
    rate: Annotated[float, typer.Option(min=0.1, max=10.0, help='Most inferences per second of simulation.')] = RATE,
    expert: Annotated[bool, typer.Option('--expert', help='The scripted expert drives, the policy looks on.')] = False,
    instruction: Annotated[str, typer.Option(help='One episode of it, "put the tomato in the blue bowl" say.')] = '',
    graph_to: Annotated[Path | None, typer.Option(help='Write the ROS graph of the running system there.')] = None,
) -> None:
    """A simulated Franka does each task once; leaves videos, figure, bag, summary.

    A trained model drives. Without one, or with --expert, the scripted expert does, and the policy runs in shadow.
    """
    from vla_bringup.demo.demo import Options, run_demo

    model = model_path(model)
    _end(
        lambda: run_demo(
            Options(
                tasks=_asked(instruction, tasks) if instruction else _tasks(tasks),
                instruction=instruction,
                policy_drives=not expert and model != RANDOM,
                episodes_per_task=episodes_per_task,
                seed=seed,
                out=out,
                real_time_factor=real_time_factor,
                model=model,
                device=device,
                engine=engine,
                threads=threads,
                rate=rate,
                graph_to=graph_to,
            )
        )
    )


@app.command()
def doctor(
    robot: Annotated[
        str, typer.Option(help='Robot profile, name or file; by default what the running policy and executor say.')
    ] = '',
    namespace: Annotated[str, typer.Option(help="Of the robot's nodes, e.g. /left; by default all that run.")] = '',
    model: Model = '',
    as_json: Annotated[bool, typer.Option('--json', help='For programs.')] = False,
    again: Annotated[bool, typer.Option('--again', help='Try all engines again, also those that died.')] = False,
) -> None:
    """Check machine, GPU, network, model, engines and a running robot: fact, verdict, remedy; exit code 1 if bad.

    It only listens: nothing is published, no parameter is set. Engines that were not tried yet are.
    """
    from vla_bringup.doctor.doctor import run_doctor

    _end(lambda: run_doctor(robot, namespace, model, as_json, again))


@app.command()
def replay(
    bag: Annotated[
        Path, typer.Argument(help='rosbag2 folder, or one .mcap or .db3 file; a damaged one gives what it has.')
    ],
    model: Model = '',
    against: Annotated[str, typer.Option(help='Another checkpoint on the same bag, to compare.')] = '',
    robot: Robot = SIMULATED,
    mode: Annotated[
        str, typer.Option(help='offline: no ROS graph. live: the policy node over DDS, in shadow.')
    ] = 'offline',
    out: Annotated[Path, typer.Option(help='Folder for report.html, tables and figures.')] = Path('out/replay'),
    instruction: Annotated[str, typer.Option(help='In force all the time; by default what the bag says.')] = '',
    namespace: Annotated[str, typer.Option(help='Of the topics in the bag, e.g. /cell/arm.')] = '',
    rate: Annotated[float, typer.Option(min=0.1, max=200.0, help='Most inferences per second of the bag.')] = 10.0,
    real_time_factor: Annotated[
        float, typer.Option(min=0.0, max=100.0, help='Live: pace of the bag. 0: each answer is waited for, exact.')
    ] = 0.0,
    latency: Annotated[
        str,
        typer.Option(help='Offline: how long the model thinks, in time of the bag: zero, measured, recorded, or s.'),
    ] = 'zero',
    plan_rate: Annotated[float, typer.Option(min=0.0, max=10.0, help='Offline: plan texts per second; 0: none.')] = 0.0,
    imagine_rate: Annotated[
        float, typer.Option(min=0.0, max=10.0, help='Offline: imagined images per second, for surprise; 0: none.')
    ] = 0.0,
    seconds: Annotated[float, typer.Option(min=0.0, help='Of the bag, from its beginning; 0: all.')] = 0.0,
    device: Annotated[str, typer.Option(help='Of the model: cpu, cuda.')] = 'cpu',
    engine: Annotated[str, typer.Option(help='Of the model, as the parameter engine of the policy node.')] = 'eager',
    threads: Annotated[int, typer.Option(min=0, help='CPU threads of the model; 0: all cores but one.')] = 0,
    seed: Annotated[int, typer.Option(min=0, help='Of random weights.')] = 0,
) -> None:
    """A recorded bag through a model: what it would have said against what the robot did. HTML report, CSV, figures.

    Nothing moves: in live mode only the policy node runs, in shadow, in a ROS domain of its own.
    """
    from vla_bringup.replay.replay import Options, run_replay

    _end(
        lambda: run_replay(
            Options(
                bag=bag,
                model=model_path(model),
                against=model_path(against) if against else '',
                robot=robot,
                mode=mode,
                out=out,
                instruction=instruction,
                namespace=namespace,
                rate=rate,
                real_time_factor=real_time_factor,
                latency=latency,
                plan_rate=plan_rate,
                imagine_rate=imagine_rate,
                seconds=seconds,
                device=device,
                engine=engine,
                threads=threads,
                seed=seed,
            )
        )
    )


@app.command()
def record(
    out: Annotated[Path, typer.Option(help='Folder of the bag; must not exist.')],
    robot: Robot = 'fr3',
    namespace: Annotated[str, typer.Option(help='Of the robot, /left say.')] = '',
    minutes: Annotated[float, typer.Option(min=0.0, help='Of wall time; 0: until Ctrl-C.')] = 0.0,
    compress: Annotated[bool, typer.Option('--compress', help='Images as jpeg: a tenth of the size.')] = False,
    sim_time: Annotated[bool, typer.Option('--sim-time', help='Bag time is that of /clock: the simulator.')] = False,
    keep_free: Annotated[float, typer.Option(min=0.0, help='End before its disk has less room (GB).')] = 1.0,
) -> None:
    """Record all that is needed to replay and to train, as a rosbag2 (MCAP). Ctrl-C ends it."""
    from vla_bringup.bags.record import record

    _end(lambda: record(out, robot, namespace, minutes, compress, sim_time, keep_free))


@app.command()
def graph(
    seconds: Annotated[float, typer.Option(min=1.0, max=600.0, help='Wall time to measure rates.')] = 5.0,
    out: Annotated[Path | None, typer.Option(help='Write it there, not to the terminal.')] = None,
) -> None:
    """Nodes, lifecycle states, topics with types, QoS and measured rates, services, actions: as Markdown."""
    from vla_bringup.graph import write_graph

    _end(lambda: write_graph(seconds, out))


@app.command()
def parameters(
    out: Annotated[Path, typer.Option(help='Page to write.', show_default='docs/reference/parameters.md')] = ROOT
    / 'docs/reference/parameters.md',
) -> None:
    """Ask every node for its parameters; write the reference page, and the table of what may be set at launch."""
    from vla_bringup.parameters import write_parameters
    from vla_bringup.processes.overrides import TABLE

    _end(lambda: write_parameters(out, ROOT / 'src/vla_bringup' / TABLE))


@app.command()
def reference(
    root: Annotated[Path, typer.Option(help='Of the repository.', show_default='where ./vla is')] = ROOT,
) -> None:
    """Write the reference pages of messages, codes and robot profile from their sources."""
    from vla_bringup.reference import write_reference

    _end(lambda: write_reference(root))


@app.command()
def quantize(
    model: Annotated[str, typer.Argument(help='Checkpoint folder; with --plan also 8b, the released size.')],
    robot: Robot = SIMULATED,
    scheme: Annotated[str, typer.Option(help='int8, fp8, int4, mixed.')] = 'int8',
    calibration: Annotated[
        Path | None, typer.Option(help='Folder that ./vla train tokenize wrote, or a LeRobotDataset.')
    ] = None,
    out: Annotated[Path | None, typer.Option(help='New folder; MODEL-SCHEME by default.')] = None,
    activations: Annotated[str, typer.Option(help='Scale of the inputs of int8 layers: tensor, token.')] = 'tensor',
    bits: Annotated[float, typer.Option(min=4.0, max=16.0, help='Per weight of a block, with mixed.')] = 6.0,
    prompts: Annotated[int, typer.Option(min=1, help='That calibrate.')] = 32,
    checks: Annotated[int, typer.Option(min=1, help='Other prompts, for the gate; fewer for 8B on a CPU.')] = 256,
    episodes: Annotated[
        int, typer.Option(min=0, help='Per task, in simulation, of the original and of the quantized one.')
    ] = 0,
    force: Annotated[bool, typer.Option('--force', help='Keep a checkpoint that fails its gate.')] = False,
    plan: Annotated[bool, typer.Option('--plan', help='Only say what each scheme needs, on an Orin.')] = False,
    image_tokenizer: Annotated[Path | None, typer.Option(help='Its folder, if not in the checkpoint.')] = None,
    device: Annotated[str, typer.Option(help='cpu, cuda.')] = 'cpu',
) -> None:
    """Make a smaller checkpoint; exit code 1, and nothing is kept, if it differs too much from the original."""
    from vla_bringup.quantize import Options, print_plan, run_quantize

    def run() -> bool:
        if plan:
            return print_plan(model)
        if calibration is None:
            raise ValueError('--calibration is missing: give a folder of ./vla train tokenize, or a LeRobotDataset')
        folder = out or Path(f'{model.rstrip("/")}-{scheme}')
        return run_quantize(
            Options(
                model=Path(model_path(model)),
                scheme=scheme,
                data=calibration,
                robot=robot,
                out=folder,
                work=Path('out/quantize'),
                activations=activations,
                bits=bits,
                prompts=prompts,
                checks=checks,
                episodes=episodes,
                force=force,
                image_tokenizer=image_tokenizer,
                device=device,
            )
        )

    _end(run)


@app.command()
def parity(
    folder: Annotated[Path, typer.Argument(help='config.json, det_weights.py, tokenizer/, *.safetensors.')],
) -> None:
    """Compare the model with numbers of the public reference, a line per tensor; exit code 1 if any does not pass."""
    from vla_model.bench.parity import check_folder, report

    _end(lambda: report(check_folder(folder)))


@bench.command('faults')
def bench_faults(
    runs: Annotated[int, typer.Option(min=1, help='Of each fault, with different seeds.')] = 5,
    out: Annotated[Path | None, typer.Option(help='Write the table there, too.')] = None,
) -> None:
    """Thirteen faults in mid-motion, from a killed policy to an emergency stop: what the simulated arm does."""
    from vla_bench.faults.faults import bench_faults

    _end(lambda: bench_faults(runs, out))


@bench.command('holds')
def bench_holds(
    runs: Annotated[int, typer.Option(min=1, help='Of each case, controller and robot, with different seeds.')] = 10,
    out: Annotated[Path | None, typer.Option(help='Write the table there, too.')] = None,
) -> None:
    """The largest step of set-points in every hold, for each controller; exit code 1 if a limit is left."""
    from vla_bench.holds import bench_holds

    _end(lambda: bench_holds(runs, out))


@bench.command('model')
def bench_model(
    size: Annotated[str, typer.Option(help='nano, nano-7dim, mid, or 8b.')] = 'nano',
    device: Annotated[str, typer.Option(help='cpu, cuda.')] = 'cpu',
    dtype: Annotated[str, typer.Option(help='auto, float32, bfloat16, float16.')] = 'auto',
    engine: Annotated[str, typer.Option(help='Comma-separated; torch eager runs always.')] = 'auto',
    image_engine: Annotated[
        str, typer.Option(help='Of the image encoder, comma-separated.')
    ] = 'eager,compile,openvino',
    layers: Annotated[int, typer.Option(min=0, help='Of the network; 0: all. The rest is extrapolated.')] = 0,
    seconds: Annotated[float, typer.Option(min=0.0, help='Wall time, about.')] = 20.0,
    threads: Annotated[int, typer.Option(min=0, help='0: all cores but one.')] = 0,
    reference: Annotated[Path | None, typer.Option(help='Checkout of the public MM-ACT code, to time it, too.')] = None,
    reference_python: Annotated[str, typer.Option(help='Interpreter that can run that code.')] = 'python3',
) -> None:
    """Latency of act, of images and of the decoders, against a baseline that pads and masks as the reference does."""
    from vla_model.bench import model as bench

    engines, images = (tuple(n.strip() for n in names.split(',') if n.strip()) for names in (engine, image_engine))

    def run() -> bool:
        other = (reference, reference_python) if reference is not None else None
        typer.echo(
            bench.report(bench.bench_model(size, device, dtype, engines, layers, seconds, threads, images, other))
        )
        return True

    _end(run)


@bench.command('engines')
def bench_engines(
    checkpoints: Annotated[
        list[str], typer.Argument(help='Folders or names; the others are compared with the first one.')
    ],
    observations: Annotated[
        Path | None, typer.Option(help='Folder that ./vla train tokenize wrote: what is acted on. Else noise.')
    ] = None,
    device: Annotated[str, typer.Option(help='cpu, cuda.')] = 'cpu',
    engine: Annotated[str, typer.Option(help='Comma-separated; all that run here by default.')] = '',
    seconds: Annotated[float, typer.Option(min=0.0, help='Wall time, about.')] = 30.0,
    threads: Annotated[int, typer.Option(min=0, help='0: all cores but one.')] = 0,
    plan: Annotated[bool, typer.Option('--plan', help='Only say what each scheme needs, on an Orin.')] = False,
) -> None:
    """act from images to set-points on every engine: latency, share of the peak, memory, distance from float32."""
    from vla_bringup.quantize import print_plan
    from vla_model.bench import engines as bench
    from vla_training.train.calibration import observations as read

    def run() -> bool:
        if plan:
            return print_plan(checkpoints[0])
        found = [model_path(checkpoint) for checkpoint in checkpoints]
        seen = read(observations, Path(found[0])) if observations is not None else []
        engines = tuple(name.strip() for name in engine.split(',') if name.strip())
        typer.echo(bench.report(bench.bench_engines(found, seen, device, engines, seconds, threads)))
        return True

    _end(run)


@bench.command('sim')
def bench_sim(seconds: Annotated[float, typer.Option(min=1.0, help='Wall time, about.')] = 20.0) -> None:
    """Time of a physics step and of a pair of camera images; real-time factor with and without cameras."""
    from vla_bench import simulator as bench

    def run() -> bool:
        typer.echo(bench.report(bench.bench_sim(seconds)))
        return True

    _end(run)


@bench.command('expert')
def bench_expert(
    tasks: Tasks = '',
    episodes: Annotated[int, typer.Option(min=1, help='Per task.')] = 100,
    seed: Annotated[int, typer.Option(min=0, help='Of the first episode.')] = 0,
    processes: Annotated[int, typer.Option(min=0, help='0: one per core.')] = 0,
) -> None:
    """Success rate of the scripted expert in simulation without ROS; exit code 1 below 98 % for any task."""
    from vla_bench.tables import bench_expert

    workers = processes or len(os.sched_getaffinity(0))
    _end(lambda: bench_expert(_tasks(tasks), range(seed, seed + episodes), workers))


@bench.command('executor')
def bench_executor(
    seconds: Annotated[float, typer.Option(min=2.0, help='Measured, with the guard and without.')] = 30.0,
    rate: Annotated[float, typer.Option(min=20.0, max=1000.0, help='Set-points per second.')] = 200.0,
    model: Model = RANDOM,
    device: Annotated[str, typer.Option(help='Of the model: cpu, cuda.')] = 'cpu',
    quick: Annotated[bool, typer.Option('--quick', help='Two seconds, with the guard.')] = False,
    out: Annotated[Path, typer.Option(help='Folder for the report.')] = Path('out/bench_executor'),
) -> None:
    """How steady set-points are beside a busy policy in the simulator: periods, times of a step and of a chunk, CPU."""
    from vla_bench.executor import Options, bench_executor

    _end(
        lambda: bench_executor(
            Options(out=out, model=model_path(model), device=device, rate=rate, seconds=seconds, quick=quick)
        )
    )


@bench.command('memory')
def bench_memory(
    resets: Annotated[int, typer.Option(min=1, help='Of the simulator, the tasks in turn.')] = 200,
    cycles: Annotated[int, typer.Option(min=0, help='Lifecycles of executor and policy; 0: none.')] = 30,
    model: Annotated[str, typer.Option(help='random-nano, or a checkpoint folder.')] = 'random-nano',
    device: Annotated[str, typer.Option(help='Of the model: cpu, cuda.')] = 'cpu',
    out: Annotated[Path, typer.Option(help='Folder for the table.')] = Path('out/bench_memory'),
) -> None:
    """Memory, threads and files of the simulator after each reset, of executor and policy after each lifecycle."""
    from vla_bench.memory import Options, bench_memory

    _end(lambda: bench_memory(Options(out=out, resets=resets, cycles=cycles, model=model_path(model), device=device)))


@bench.command('overhead')
def bench_overhead(
    seconds: Annotated[float, typer.Option(min=2.0, help='Measured.')] = 60.0,
    model: Model = RANDOM,
    device: Annotated[str, typer.Option(help='Of the model: cpu, cuda.')] = 'cpu',
    out: Annotated[Path, typer.Option(help='Folder for the report.')] = Path('out/bench_overhead'),
) -> None:
    """Newest image's stamp to chunk, less the model's time, beside the simulator; p99 above 8 ms: 1."""
    from vla_bench.overhead import Options, bench_overhead

    _end(lambda: bench_overhead(Options(out=out, model=model_path(model), device=device, seconds=seconds)))


@bench.command('motion')
def bench_motion(
    tasks: Tasks = '',
    episodes: Annotated[int, typer.Option(min=1, help='Of the expert, per task, to replay.')] = 2,
    loops: Annotated[
        int, typer.Option(min=0, help='Closed-loop episodes per task, delay and contender; 0: none.')
    ] = 10,
    seed: Annotated[int, typer.Option(min=0, help='Of the first episode.')] = 2_000_000,
    model: Annotated[
        str, typer.Option(help='Drives the closed loop, as in ./vla demo; expert: the scripted one with errors.')
    ] = '',
    device: Annotated[str, typer.Option(help='Of the model: cpu, cuda.')] = 'cpu',
    quick: Annotated[bool, typer.Option('--quick', help='A few seconds of one episode, one delay.')] = False,
    out: Annotated[Path, typer.Option(help='Folder for the report.')] = Path('out/bench_motion'),
) -> None:
    """Seam jerk, path deviation, time lost: our seam strategies, clamping, LeRobot's queue, a blocking runner."""
    from vla_bench.motion.motion import Options, bench_motion

    _end(
        lambda: bench_motion(
            Options(
                out=out,
                tasks=_tasks(tasks),
                episodes=episodes,
                seed=seed,
                loops=loops,
                model=model_path(model),
                device=device,
                quick=quick,
            )
        )
    )


@bench.command('policy')
def bench_policy(
    tasks: Tasks = '',
    episodes: Annotated[int, typer.Option(min=0, help='Per task, of seeds that are held out.')] = 100,
    contrasts: Annotated[
        int, typer.Option(min=0, help='Scenes per task in which the wrong thing is as near; they come twice.')
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help='Of the first episode.')] = 2_000_000,
    model: Annotated[str, typer.Option(help='As in ./vla demo; expert: the scripted one.')] = '',
    device: Annotated[str, typer.Option(help='Of the model: cpu, cuda.')] = 'cpu',
    rate: Annotated[float, typer.Option(min=0.1, max=10.0, help='Most inferences per second of simulation.')] = RATE,
    real_time_factor: Annotated[float, typer.Option(min=0.1, max=1.0, help='Simulated per wall time.')] = 1.0,
    time_limit: Annotated[float, typer.Option(min=1.0, help='Of an episode (s).')] = 30.0,
    listen: Annotated[
        bool, typer.Option('--listen', help='Have it plan and imagine beside, as when RViz or a recorder listens.')
    ] = False,
    out: Annotated[Path, typer.Option(help='Folder; a run that was cut goes on there.')] = Path('out/bench_policy'),
) -> None:
    """Success rate of a policy over ROS, through real processes; ./vla train evaluate is the same without ROS."""
    from vla_bench.policy import Options, bench_policy

    _end(
        lambda: bench_policy(
            Options(
                tasks=_tasks(tasks),
                episodes=episodes,
                contrasts=contrasts,
                seed=seed,
                out=out,
                model=model_path(model),
                device=device,
                rate=rate,
                real_time_factor=real_time_factor,
                time_limit=time_limit,
                listen=listen,
            )
        )
    )


@bench.command('replay')
def bench_replay(
    seconds: Annotated[float, typer.Option(min=2.0, max=600.0, help='Of the bags that are made up.')] = 60.0,
) -> None:
    """Decode and alignment of a bag without a model, raw and JPEG images; exit code 1 below 20 times real time."""
    from vla_bench.replay import bench_replay

    _end(lambda: bench_replay(seconds))


def _tasks(text: str) -> tuple[str, ...]:
    """Comma-separated task ids. Raises ValueError for an unknown one."""
    from vla_sim.tasks import TASKS, check_task

    chosen = tuple(task.strip() for task in text.split(',') if task.strip()) or TASKS
    for task in chosen:
        check_task(task)
    return chosen


def _asked(instruction: str, tasks: str) -> tuple[str, ...]:
    """The task of an instruction. Raises ValueError when no task says it, or other tasks are asked for, too."""
    from vla_sim.tasks import parse_instruction

    task = parse_instruction(instruction).task
    if tasks and _tasks(tasks) != (task,):
        raise ValueError(f'the instruction {instruction!r} is one of task {task}: leave --tasks out')
    return (task,)


def _end(command: Callable[[], Any]) -> NoReturn:
    """Exit code 0 if the command returns something true; what is the user's to mend is said in one line."""
    try:
        good = command()
    except (ValueError, FileNotFoundError) as error:
        typer.secho(str(error), fg='red', err=True)
        good = False
    raise typer.Exit(0 if good else 1)


if __name__ == '__main__':
    app(prog_name='./vla')
