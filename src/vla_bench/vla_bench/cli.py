"""./vla bench: measurements of the model, the nodes, the simulator and the whole system."""

import os
from pathlib import Path
from typing import Annotated

import typer

from vla_bringup.options import Device, Model, Tasks, Threads, exit_with, tasks_of
from vla_core.observe.cadence import RATE
from vla_model.checkpoints.shipped import RANDOM, model_path

app = typer.Typer(no_args_is_help=True, add_completion=False, help='Measure model, nodes, simulator and whole system.')

Table = Annotated[Path | None, typer.Option(help='File for the page with the table.')]
Seed = Annotated[int, typer.Option(min=0, help='Seed of the first episode.')]


@app.command()
def faults(
    runs: Annotated[int, typer.Option(min=1, help='Runs of each fault, with different seeds.')] = 5,
    out: Table = None,
) -> None:
    """Inject thirteen faults in mid-motion, from a killed policy to an emergency stop, and measure the arm."""
    from vla_bench.faults.faults import bench_faults

    exit_with(lambda: bench_faults(runs, out))


@app.command()
def holds(
    runs: Annotated[
        int, typer.Option(min=1, help='Runs of each case, controller and robot, with different seeds.')
    ] = 10,
    out: Table = None,
) -> None:
    """Measure the largest step of set-points in every hold, for each controller; exit code 1 beyond a limit."""
    from vla_bench.holds import bench_holds

    exit_with(lambda: bench_holds(runs, out))


@app.command()
def model(
    size: Annotated[str, typer.Option(help='Size of the model: nano, nano-7dim, mid, or 8b.')] = 'nano',
    device: Device = 'cpu',
    dtype: Annotated[str, typer.Option(help='Precision of the weights: auto, float32, bfloat16, float16.')] = 'auto',
    engine: Annotated[str, typer.Option(help='Comma-separated engines; torch eager always runs.')] = 'auto',
    image_engine: Annotated[
        str, typer.Option(help='Comma-separated engines of the image encoder.')
    ] = 'eager,compile,openvino',
    layers: Annotated[int, typer.Option(min=0, help='Layers that run; the rest is extrapolated; 0: all.')] = 0,
    seconds: Annotated[float, typer.Option(min=0.0, help='Approximate wall time [s].')] = 20.0,
    threads: Threads = 0,
    reference: Annotated[Path | None, typer.Option(help='Checkout of the public MM-ACT code to measure.')] = None,
    reference_python: Annotated[str, typer.Option(help='Python interpreter for the public code.')] = 'python3',
) -> None:
    """Measure latencies of act, images and decoders, against a baseline that pads and masks as the reference does."""
    from vla_model.bench.model import bench_model as measure
    from vla_model.bench.model_report import report

    engines, images = (tuple(n.strip() for n in names.split(',') if n.strip()) for names in (engine, image_engine))

    def run() -> bool:
        other = (reference, reference_python) if reference is not None else None
        typer.echo(report(measure(size, device, dtype, engines, layers, seconds, threads, images, other)))
        return True

    exit_with(run)


@app.command()
def engines(
    checkpoints: Annotated[
        list[str], typer.Argument(help='Checkpoint folders or names; the others are compared with the first one.')
    ],
    observations: Annotated[
        Path | None, typer.Option(help='Folder that ./vla train tokenize wrote; without it the inputs are noise.')
    ] = None,
    device: Device = 'cpu',
    engine: Annotated[str, typer.Option(help='Comma-separated engines; all that run here by default.')] = '',
    seconds: Annotated[float, typer.Option(min=0.0, help='Approximate wall time [s].')] = 30.0,
    threads: Threads = 0,
    plan: Annotated[bool, typer.Option('--plan', help='Only print the memory of each scheme on an Orin.')] = False,
) -> None:
    """Measure act from images to set-points on every engine: latency, share of the peak, memory, error to float32."""
    from vla_bringup.quantize import print_plan
    from vla_model.bench import engines as bench
    from vla_training.train.calibration import observations as read

    def run() -> bool:
        if plan:
            return print_plan(checkpoints[0])
        found = [model_path(checkpoint) for checkpoint in checkpoints]
        seen = read(observations, Path(found[0])) if observations is not None else []
        names = tuple(name.strip() for name in engine.split(',') if name.strip())
        typer.echo(bench.report(bench.bench_engines(found, seen, device, names, seconds, threads)))
        return True

    exit_with(run)


@app.command()
def rynnvla(
    layers: Annotated[int, typer.Option(min=1, max=32, help='Blocks of the 7B network that run.')] = 2,
    dtype: Annotated[str, typer.Option(help='Precision of the network: bfloat16, float32.')] = 'bfloat16',
    rounds: Annotated[int, typer.Option(min=1, help='Chunks of each kind, in turns.')] = 3,
    threads: Threads = 0,
) -> None:
    """Measure a chunk of RynnVLA-002 (7B shapes, random weights, few layers) against its reference's way."""
    from vla_model.bench.rynnvla import bench_rynnvla, report

    def run() -> bool:
        typer.echo(report(bench_rynnvla(layers, dtype, rounds, threads)))
        return True

    exit_with(run)


@app.command()
def sim(seconds: Annotated[float, typer.Option(min=1.0, help='Approximate wall time [s].')] = 20.0) -> None:
    """Measure a physics step, a pair of camera images, and the real-time factor with and without cameras."""
    from vla_bench import simulator as bench

    def run() -> bool:
        typer.echo(bench.report(bench.bench_sim(seconds)))
        return True

    exit_with(run)


@app.command()
def expert(
    tasks: Tasks = '',
    episodes: Annotated[int, typer.Option(min=1, help='Episodes per task.')] = 100,
    seed: Seed = 0,
    processes: Annotated[int, typer.Option(min=0, help='Processes; 0: one per core.')] = 0,
) -> None:
    """Measure the success rate of the scripted expert without ROS; exit code 1 below 98 % for any task."""
    from vla_bench.tables import bench_expert

    workers = processes or len(os.sched_getaffinity(0))
    exit_with(lambda: bench_expert(tasks_of(tasks), range(seed, seed + episodes), workers))


@app.command()
def executor(
    seconds: Annotated[
        float, typer.Option(min=2.0, help='Duration [s] of each part: with and without collision monitor.')
    ] = 30.0,
    rate: Annotated[float, typer.Option(min=20.0, max=1000.0, help='Set-points per second [Hz].')] = 200.0,
    model: Model = RANDOM,
    device: Device = 'cpu',
    quick: Annotated[bool, typer.Option('--quick', help='Two seconds, with the collision monitor only.')] = False,
    out: Annotated[Path, typer.Option(help='Folder for the report.')] = Path('out/bench_executor'),
) -> None:
    """Measure set-points beside a busy policy in the simulator: periods, times of a step and of a chunk, CPU."""
    from vla_bench.executor import Options, bench_executor

    exit_with(
        lambda: bench_executor(
            Options(out=out, model=model_path(model), device=device, rate=rate, seconds=seconds, quick=quick)
        )
    )


@app.command()
def memory(
    resets: Annotated[int, typer.Option(min=1, help='Resets of the simulator, through all tasks in turn.')] = 200,
    cycles: Annotated[int, typer.Option(min=0, help='Lifecycles of executor and policy; 0: none.')] = 30,
    model: Annotated[str, typer.Option(help='random-nano, or a checkpoint folder.')] = RANDOM,
    device: Device = 'cpu',
    out: Annotated[Path, typer.Option(help='Folder for the table.')] = Path('out/bench_memory'),
) -> None:
    """Measure memory, threads and files: simulator after each reset, executor and policy after each lifecycle."""
    from vla_bench.memory import Options, bench_memory

    exit_with(
        lambda: bench_memory(Options(out=out, resets=resets, cycles=cycles, model=model_path(model), device=device))
    )


@app.command()
def overhead(
    seconds: Annotated[float, typer.Option(min=2.0, help='Duration of the measurement [s].')] = 60.0,
    model: Model = RANDOM,
    device: Device = 'cpu',
    out: Annotated[Path, typer.Option(help='Folder for the report.')] = Path('out/bench_overhead'),
) -> None:
    """Measure the time from image stamp to chunk without that of the model; exit code 1 if p99 exceeds 8 ms."""
    from vla_bench.overhead import Options, bench_overhead

    exit_with(lambda: bench_overhead(Options(out=out, model=model_path(model), device=device, seconds=seconds)))


@app.command()
def remote(
    calls: Annotated[int, typer.Option(min=3, help='Inferences of each.')] = 200,
    model: Model = RANDOM,
    out: Table = None,
) -> None:
    """Measure a policy behind a server on this machine; exit code 1 if the median overhead exceeds 5 ms."""
    from vla_bench.remote import Options, bench_remote

    exit_with(lambda: bench_remote(Options(model=model_path(model), calls=calls, out=out)))


@app.command()
def motion(
    tasks: Tasks = '',
    episodes: Annotated[int, typer.Option(min=1, help='Recorded expert episodes per task.')] = 2,
    loops: Annotated[
        int, typer.Option(min=0, help='Closed-loop episodes per task, delay and contender; 0: none.')
    ] = 10,
    seed: Seed = 2_000_000,
    model: Annotated[
        str, typer.Option(help='Model of the closed loop, as in ./vla demo; expert: the scripted one with errors.')
    ] = '',
    device: Device = 'cpu',
    quick: Annotated[bool, typer.Option('--quick', help='A few seconds of one episode, one delay.')] = False,
    out: Annotated[Path, typer.Option(help='Folder for the report.')] = Path('out/bench_motion'),
) -> None:
    """Compare chunk blending, clamping, LeRobot's queue and a blocking runner: jerk, path deviation, time lost."""
    from vla_bench.motion.motion import Options, bench_motion

    exit_with(
        lambda: bench_motion(
            Options(
                out=out,
                tasks=tasks_of(tasks),
                episodes=episodes,
                seed=seed,
                loops=loops,
                model=model_path(model),
                device=device,
                quick=quick,
            )
        )
    )


@app.command()
def policy(
    tasks: Tasks = '',
    episodes: Annotated[int, typer.Option(min=0, help='Episodes per task, of held-out seeds.')] = 100,
    contrasts: Annotated[
        int, typer.Option(min=0, help='Scenes per task, each used twice, with a wrong object at the same distance.')
    ] = 0,
    seed: Seed = 2_000_000,
    model: Annotated[str, typer.Option(help='Model, as in ./vla demo; expert: the scripted one.')] = '',
    device: Device = 'cpu',
    rate: Annotated[
        float, typer.Option(min=0.1, max=10.0, help='Highest rate of inferences in simulation time [Hz].')
    ] = RATE,
    real_time_factor: Annotated[float, typer.Option(min=0.1, max=1.0, help='Simulated seconds per second.')] = 1.0,
    time_limit: Annotated[float, typer.Option(min=1.0, help='Time limit of an episode [s of simulation].')] = 30.0,
    listen: Annotated[
        bool, typer.Option('--listen', help='Subscribe to plans and predicted images, as RViz and a recorder do.')
    ] = False,
    out: Annotated[Path, typer.Option(help='Folder for results; an interrupted run is continued there.')] = Path(
        'out/bench_policy'
    ),
) -> None:
    """Measure the success rate of a policy over ROS, in real processes; ./vla train evaluate needs no ROS."""
    from vla_bench.policy import Options, bench_policy

    exit_with(
        lambda: bench_policy(
            Options(
                tasks=tasks_of(tasks),
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


@app.command()
def replay(
    seconds: Annotated[float, typer.Option(min=2.0, max=600.0, help='Duration of the synthetic bags [s].')] = 60.0,
) -> None:
    """Measure decode and alignment of a bag without a model, raw and JPEG; exit code 1 below 20 times real time."""
    from vla_bench.replay import bench_replay

    exit_with(lambda: bench_replay(seconds))
