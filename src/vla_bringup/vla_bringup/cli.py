"""A unified vision-language-action model on a Franka arm.

Beside the commands below: ./vla build (builds the workspace), ./vla test (style, types and all tests),
./vla shell (a shell in which the suite works).
"""

import importlib
import importlib.util
import os
from pathlib import Path
from typing import Annotated

import typer

from vla_bringup.options import SIMULATED, Device, Model, Robot, Tasks, Threads, exit_with, task_of, tasks_of
from vla_bringup.tensorrt import app as tensorrt
from vla_core.observe.cadence import RATE
from vla_model.checkpoints.shipped import is_random, model_path
from vla_training.cli import app as train

BENCH = 'vla_bench'  # a package that a robot need not have
ROOT = Path(os.environ.get('VLA_ROOT', ''))  # root of the repository; ./vla sets it
Engine = Annotated[str, typer.Option(help='Engine of the model, as the parameter engine of the policy node.')]

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
app.add_typer(train, name='train')
app.add_typer(tensorrt, name='tensorrt')


def add_bench(to: typer.Typer) -> None:
    """Add the command group `bench` of package vla_bench; without the package, a command that reports its absence."""
    if importlib.util.find_spec(BENCH) is not None:
        to.add_typer(importlib.import_module(f'{BENCH}.cli').app, name='bench')
        return

    @to.command(context_settings={'allow_extra_args': True, 'ignore_unknown_options': True}, add_help_option=False)
    def bench() -> None:
        """Measure; needs the package vla_bench, which is not installed here."""
        typer.secho(f'package {BENCH} is not installed: build a workspace that has src/{BENCH}', fg='red', err=True)
        raise typer.Exit(1)


add_bench(app)


@app.command()
def demo(
    tasks: Tasks = '',
    episodes_per_task: Annotated[int, typer.Option(min=1, help='Number of episodes of each task.')] = 1,
    seed: Annotated[int, typer.Option(min=0, help='Seed of the first episode of each task.')] = 0,
    out: Annotated[
        Path, typer.Option(help='Folder for videos, figure, bag and summary; an earlier demo in it is deleted.')
    ] = Path('out/demo'),
    real_time_factor: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=100.0,
            help='Simulated seconds per second; 0: as fast as possible, with --expert.',
        ),
    ] = 1.0,
    model: Model = '',
    device: Device = 'cpu',
    engine: Engine = 'auto',
    threads: Threads = 0,
    rate: Annotated[
        float, typer.Option(min=0.1, max=10.0, help='Highest rate of inferences in simulation time [Hz].')
    ] = RATE,
    expert: Annotated[
        bool, typer.Option('--expert', help='Let the scripted expert drive; the policy runs in shadow.')
    ] = False,
    instruction: Annotated[
        str, typer.Option(help='Run one episode of this instruction, e.g. "put the tomato in the blue bowl".')
    ] = '',
    graph_to: Annotated[Path | None, typer.Option(help='File for the ROS graph of the running system.')] = None,
) -> None:
    """Let a simulated Franka do each task once, and write videos, figure, bag and summary.

    A trained model drives. Without one, or with --expert, the scripted expert drives and the policy runs in shadow.
    """
    from vla_bringup.demo.demo import Options, run_demo

    model = model_path(model)
    exit_with(
        lambda: run_demo(
            Options(
                tasks=task_of(instruction, tasks) if instruction else tasks_of(tasks),
                instruction=instruction,
                policy_drives=not expert and not is_random(model),
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
        str, typer.Option(help='Robot profile, name or file; by default the parameters of the running nodes.')
    ] = '',
    namespace: Annotated[str, typer.Option(help="Namespace of the robot's nodes, e.g. /left; by default all.")] = '',
    model: Model = '',
    as_json: Annotated[bool, typer.Option('--json', help='Print JSON: good, and a list of checks.')] = False,
    again: Annotated[bool, typer.Option('--again', help='Try all engines again, also those that died.')] = False,
) -> None:
    """Check machine, GPU, network, model, engines and a running robot; exit code 1 if a check fails.

    Each check has a fact, a verdict and a remedy. The doctor publishes nothing and sets no parameter. It tries the
    engines that have no verdict yet.
    """
    from vla_bringup.doctor.doctor import run_doctor

    exit_with(lambda: run_doctor(robot, namespace, model, as_json, again))


@app.command()
def serve(
    checkpoint: Annotated[str, typer.Argument(help='Checkpoint folder, nano (the trained model), or random-nano.')],
    host: Annotated[
        str, typer.Option(help='Address. One that other machines reach needs a key in VLA_SERVER_KEY.')
    ] = '127.0.0.1',
    port: Annotated[int, typer.Option(min=0, max=65535, help='Port of the websocket and of /healthz; 0: any.')] = 8000,
    clients: Annotated[
        int, typer.Option(min=1, help='Most clients at a time. They share what the model remembers.')
    ] = 1,
    device: Device = 'cpu',
    engine: Engine = 'auto',
    threads: Threads = 0,
) -> None:
    """Serve a model in openpi's websocket format until Ctrl-C, for ./vla demo --model ws://HOST:PORT or any client."""
    from vla_bringup.serve import Options, run_serve

    exit_with(lambda: run_serve(Options(model_path(checkpoint), host, port, clients, device, engine, threads)))


@app.command()
def replay(
    bag: Annotated[
        Path,
        typer.Argument(help='rosbag2 folder, or one .mcap or .db3 file, also a damaged one.'),
    ],
    model: Model = '',
    against: Annotated[str, typer.Option(help='Second checkpoint, compared with the first on the same bag.')] = '',
    robot: Robot = SIMULATED,
    mode: Annotated[
        str, typer.Option(help='offline: no ROS graph. live: the policy node over DDS, in shadow.')
    ] = 'offline',
    out: Annotated[Path, typer.Option(help='Folder for report.html, tables and figures.')] = Path('out/replay'),
    instruction: Annotated[
        str, typer.Option(help='Instruction during the whole bag; by default the instructions in the bag.')
    ] = '',
    namespace: Annotated[str, typer.Option(help='Namespace of the topics in the bag, e.g. /cell/arm.')] = '',
    rate: Annotated[
        float, typer.Option(min=0.1, max=200.0, help='Highest rate of inferences in time of the bag [Hz].')
    ] = 10.0,
    real_time_factor: Annotated[
        float, typer.Option(min=0.0, max=100.0, help='Live: pace of the bag. 0: wait for each chunk, reproducible.')
    ] = 0.0,
    latency: Annotated[
        str,
        typer.Option(help='Offline: inference time on the clock of the bag: zero, measured, recorded, or seconds.'),
    ] = 'zero',
    plan_rate: Annotated[
        float, typer.Option(min=0.0, max=10.0, help='Offline: highest rate of plan texts [Hz]; 0: none.')
    ] = 0.0,
    imagine_rate: Annotated[
        float,
        typer.Option(
            min=0.0, max=10.0, help='Offline: highest rate of predicted images, for the prediction error [Hz]; 0: none.'
        ),
    ] = 0.0,
    seconds: Annotated[float, typer.Option(min=0.0, help='Read the first seconds of the bag; 0: all.')] = 0.0,
    device: Device = 'cpu',
    engine: Engine = 'eager',
    threads: Threads = 0,
    seed: Annotated[int, typer.Option(min=0, help='Seed of random weights.')] = 0,
) -> None:
    """Compare a model's chunks on a recorded bag with the motion of the robot; write HTML report, CSV and figures.

    The arm does not move: in live mode only the policy node runs, in shadow, in a ROS domain of its own.
    """
    from vla_bringup.replay.replay import Options, run_replay

    exit_with(
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
    namespace: Annotated[str, typer.Option(help='Namespace of the robot, e.g. /left.')] = '',
    minutes: Annotated[float, typer.Option(min=0.0, help='Duration of wall time [min]; 0: until Ctrl-C.')] = 0.0,
    compress: Annotated[bool, typer.Option('--compress', help='Write images as JPEG, a tenth of the size.')] = False,
    sim_time: Annotated[bool, typer.Option('--sim-time', help="Take bag time from the simulator's /clock.")] = False,
    keep_free: Annotated[
        float, typer.Option(min=0.0, help='End the recording when the disk has less free space [GB].')
    ] = 1.0,
) -> None:
    """Record the topics that replay and training need, as a rosbag2 (MCAP), until Ctrl-C."""
    from vla_bringup.bags.record import record

    exit_with(lambda: record(out, robot, namespace, minutes, compress, sim_time, keep_free))


@app.command()
def graph(
    seconds: Annotated[float, typer.Option(min=1.0, max=600.0, help='Wall time for the rates [s].')] = 5.0,
    out: Annotated[Path | None, typer.Option(help='File for the page; by default the terminal.')] = None,
) -> None:
    """Print nodes, lifecycle states, topics with types, QoS and rates, services and actions as Markdown."""
    from vla_bringup.graph import write_graph

    exit_with(lambda: write_graph(seconds, out))


@app.command()
def parameters(
    out: Annotated[Path, typer.Option(help='Page to write.', show_default='docs/reference/parameters.md')] = ROOT
    / 'docs/reference/parameters.md',
) -> None:
    """Ask every node for its parameters; write the reference page and the table that launch files check against."""
    from vla_bringup.parameters import write_parameters
    from vla_bringup.processes.overrides import TABLE

    exit_with(lambda: write_parameters(out, ROOT / 'src/vla_bringup' / TABLE))


@app.command()
def reference(
    root: Annotated[Path, typer.Option(help='Root of the repository.', show_default='where ./vla is')] = ROOT,
) -> None:
    """Write the reference pages of messages, codes and robot profile from their sources."""
    from vla_bringup.reference import write_reference

    exit_with(lambda: write_reference(root))


@app.command()
def quantize(
    model: Annotated[str, typer.Argument(help='Checkpoint folder; with --plan also 8b, the released size.')],
    robot: Robot = SIMULATED,
    scheme: Annotated[str, typer.Option(help='Scheme of the weights: int8, fp8, int4, mixed.')] = 'int8',
    calibration: Annotated[
        Path | None,
        typer.Option(help='Folder of ./vla train tokenize, or a LeRobotDataset; of pictures for RynnVLA-002.'),
    ] = None,
    out: Annotated[Path | None, typer.Option(help='New checkpoint folder; MODEL-SCHEME by default.')] = None,
    activations: Annotated[str, typer.Option(help='Scale of the inputs of int8 layers: tensor, token.')] = 'tensor',
    bits: Annotated[
        float, typer.Option(min=4.0, max=16.0, help='Scheme mixed: mean bits per weight of a block.')
    ] = 6.0,
    prompts: Annotated[int, typer.Option(min=1, help='Number of prompts for the calibration.')] = 32,
    checks: Annotated[
        int, typer.Option(min=1, help='Number of other prompts for the gate; fewer for 8B on a CPU.')
    ] = 256,
    episodes: Annotated[
        int,
        typer.Option(min=0, help='Episodes per task in simulation, of the original and the quantized one.'),
    ] = 0,
    force: Annotated[bool, typer.Option('--force', help='Keep a checkpoint that fails its gate.')] = False,
    plan: Annotated[bool, typer.Option('--plan', help='Only print the memory of each scheme on an Orin.')] = False,
    image_tokenizer: Annotated[
        Path | None, typer.Option(help='Folder of the image tokenizer, if it is not in the checkpoint.')
    ] = None,
    device: Device = 'cpu',
) -> None:
    """Quantize a checkpoint; exit code 1, and no new checkpoint, if it differs too much from the original."""
    from vla_bringup.quantize import Options, print_plan, run_quantize

    def run() -> bool:
        if plan:
            return print_plan(model)
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

    exit_with(run)


@app.command()
def convert_vqgan(
    source: Annotated[Path, typer.Argument(help='vqgan.ckpt, as released.', metavar='CKPT')],
    out: Annotated[
        Path, typer.Argument(help='Folder for model.safetensors and config.json: vqgan/ of the checkpoint.')
    ],
    settings: Annotated[
        Path | None, typer.Option(help='vqgan.yaml of the same release.', show_default='beside CKPT')
    ] = None,
) -> None:
    """Make the files of RynnVLA-002's image tokenizer from vqgan.ckpt, of which only tensors are read."""
    from vla_model.families.rynnvla.convert import convert_vqgan as convert

    def run() -> bool:
        typer.echo(f'{convert(source, out, settings)}: model.safetensors, config.json')
        return True

    exit_with(run)


@app.command()
def parity(
    folder: Annotated[
        Path, typer.Argument(help='Folder with config.json, det_weights.py, tokenizer/ and *.safetensors.')
    ],
) -> None:
    """Compare the model with tensors of the public reference, a line each; exit code 1 if one differs."""
    from vla_model.bench.parity import check_folder, report

    exit_with(lambda: report(check_folder(folder)))


if __name__ == '__main__':
    app(prog_name='./vla')
