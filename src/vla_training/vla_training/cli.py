"""Defines the commands of ./vla train."""

import functools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(no_args_is_help=True, help='Make a checkpoint for the policy node from demonstrations.')
Out = Annotated[Path, typer.Option(help='Folder to write. An interrupted run in it is continued.')]
TaskIds = Annotated[str, typer.Option(help='Comma-separated task ids. Default: all.')]
Robot = Annotated[str, typer.Option(help='Robot profile: a name of the suite, or a file.')]
Model = Annotated[
    str, typer.Option(help='Checkpoint folder, nano (the trained model of the suite), or random-nano. Default: nano.')
]
Checkpoint = Annotated[
    str, typer.Argument(help='Checkpoint folder, nano (the trained model of the suite), or random-nano.')
]
SIMULATED = 'sim_panda'
Minutes = Annotated[float, typer.Option(min=0.0, help='Stop and save after this time [min]. 0: at the end.')]
Device = Annotated[str, typer.Option(help='cpu or cuda.')]
TOKENS = Path('out/train/tokens')
TokenFolders = Annotated[
    list[Path] | None,
    typer.Option(
        help='Folder of tokens (./vla train tokenize). Give the option again for more folders.',
        show_default=str(TOKENS),
    ),
]


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Register a command of `app`. An error that the user can mend is printed in one line, with exit code 1."""

    @functools.wraps(function)
    def run(*args, **kwargs) -> None:
        try:
            function(*args, **kwargs)
        except (ValueError, FileNotFoundError) as error:
            typer.secho(str(error), fg='red', err=True)
            raise typer.Exit(1) from None

    return app.command()(run)


def trains() -> None:
    """Let torch's threads spin while they wait for work. Call it before torch is loaded.

    On the robot they must not (see vla_model). Training has the cores alone: a step takes 0.4 instead of 0.6 s.
    """
    os.environ.setdefault('GOMP_SPINCOUNT', '300000')


def _tasks(ids: str) -> tuple[str, ...]:
    from vla_sim.tasks import TASKS, check_task

    chosen = tuple(task.strip() for task in ids.split(',') if task.strip()) or TASKS
    for task in chosen:
        check_task(task)
    return chosen


@command
def collect(
    robot: Robot = SIMULATED,
    out: Out = Path('out/train/dataset'),
    tasks: TaskIds = '',
    episodes: Annotated[int, typer.Option(min=1, help='Number of episodes per task.')] = 300,
    seed: Annotated[int, typer.Option(min=0, help='Seed of the first episode.')] = 10_000,
    processes: Annotated[int, typer.Option(min=0, help='Worker processes. 0: one per core.')] = 0,
    push: Annotated[bool, typer.Option(help='Push the arm off its path now and then (DART).')] = True,
    random_start: Annotated[bool, typer.Option(help='Start most episodes at a random pose, not at home.')] = True,
    tail: Annotated[float, typer.Option(min=0.0, help='Time recorded after success [s].')] = 3.5,
    depth: Annotated[bool, typer.Option(help='Also record the depth map of the first camera.')] = False,
    dagger: Annotated[
        str, typer.Option(help='Checkpoint that drives most episodes first. The expert then finishes and is recorded.')
    ] = '',
) -> None:
    """Collect expert episodes in the simulator, without ROS, as a LeRobotDataset v3."""
    from vla_core.profile import RobotProfile
    from vla_model.checkpoints.shipped import model_path
    from vla_training.collect.collect import CollectSettings, Dagger, Push, StartPose
    from vla_training.collect.collect import collect as run

    workers = processes or len(os.sched_getaffinity(0))
    seeds = range(seed, seed + episodes)
    rollouts = Dagger(model_path(dagger)) if dagger else None
    settings = CollectSettings(Push() if push else None, StartPose() if random_start else None, rollouts, tail, depth)
    found = run(out, RobotProfile.load(robot), _tasks(tasks), seeds, processes=workers, settings=settings)
    for task, (n, good) in found.items():
        Console().print(f'{task}: {n} episodes, {good} of them successful and kept')


@command
def convert(
    bags: Annotated[list[Path], typer.Argument(help='rosbag2 folders, or single .mcap or .db3 files.')],
    robot: Robot = SIMULATED,
    out: Out = Path('out/train/dataset'),
    fps: Annotated[int, typer.Option(min=1, max=100, help='Frames per second of the data set.')] = 10,
    actions: Annotated[
        str,
        typer.Option(help='Source of the actions: states (measured one frame later) or set-points (sent for then).'),
    ] = 'states',
    instruction: Annotated[str, typer.Option(help='Instruction of every episode. Default: that of the bag.')] = '',
    subtasks: Annotated[
        Path | None,
        typer.Option(help='File of sub-tasks: CSV or JSON with time [s], subtask and, for several bags, bag.'),
    ] = None,
    namespace: Annotated[str, typer.Option(help='Namespace of the robot in the bag.')] = '',
    shortest: Annotated[int, typer.Option(min=1, help='Shortest episode [frame]. Shorter ones are left out.')] = 10,
    camera_gap: Annotated[
        float,
        typer.Option(
            min=0.0, help='Largest age of an image that replaces missing ones of its camera [s]. 0: none is replaced.'
        ),
    ] = 0.3,
    encoding: Annotated[
        str, typer.Option(help='Order of the colours of 8UC3 images, which do not give it: rgb8 or bgr8.')
    ] = '',
) -> None:
    """Convert recorded bags, also damaged ones, to a LeRobotDataset v3, and report all losses."""
    from vla_training.convert.convert import convert as run

    run(bags, robot, out, fps, actions, instruction.strip(), subtasks, namespace, shortest, camera_gap, encoding)


@command
def annotate(
    dataset: Annotated[Path, typer.Argument(help='LeRobotDataset v3 with sub-tasks.')],
    out: Annotated[Path | None, typer.Option(help='File to write. Default: meta/plans.jsonl in the data set.')] = None,
) -> None:
    """Write the plan of each frame as JSON lines, with the keys of MM-ACT's annotation files."""
    from vla_training.data.annotate import write_records

    path, count = write_records(dataset, out)
    Console().print(f'{path}: {count} frames')


@command
def frames(
    dataset: Annotated[Path, typer.Option(help='LeRobotDataset v3.')] = Path('out/train/dataset'),
    out: Annotated[Path, typer.Option(help='New folder.')] = Path('out/train/frames'),
    count: Annotated[
        int, typer.Option(min=100, help='Approximate number of frames, spread over the data set.')
    ] = 12_000,
) -> None:
    """Sample camera frames of a data set for the image tokenizer, about 5 kB each."""
    from vla_model.checkpoints import nano
    from vla_training.image_tokenizer.sample_frames import sample_frames

    config = nano.config(1)
    n = sample_frames(dataset, out, config.image_tokenizer.resolution, config.robot.cameras, count)
    Console().print(f'{n} frames in {out}')


@command
def images(
    frames: Annotated[Path, typer.Option(help='Folder of frames (./vla train frames).')] = Path('out/train/frames'),
    out: Out = Path('out/train/images'),
    steps: Annotated[int, typer.Option(min=1, help='Number of steps.')] = 20_000,
    batch: Annotated[int, typer.Option(min=1, help='Images per step.')] = 16,
    lr: Annotated[float, typer.Option(min=0.0, help='Highest learning rate.')] = 2e-3,
    init: Annotated[Path | None, typer.Option(help='Folder of an initial tokenizer of the same shape.')] = None,
    seed: Annotated[int, typer.Option(min=0, help='Seed of weights, batches and augmentation.')] = 0,
    device: Device = 'cpu',
    minutes: Minutes = 0.0,
) -> None:
    """Train the image tokenizer. An interrupted run continues."""
    trains()
    from vla_model.checkpoints import nano
    from vla_training.image_tokenizer.trainer import train_image_tokenizer

    config = nano.config(1).image_tokenizer
    Console().print(
        train_image_tokenizer(
            frames,
            out,
            config=config,
            steps=steps,
            batch=batch,
            lr=lr,
            init=init,
            seed=seed,
            device=device,
            minutes=minutes or math.inf,
        )
    )


@command
def evaluate(
    checkpoint: Checkpoint,
    robot: Robot = SIMULATED,
    out: Out = Path('out/evaluation'),
    tasks: TaskIds = '',
    episodes: Annotated[int, typer.Option(min=0, help='Number of held-out episodes per task.')] = 100,
    contrasts: Annotated[
        int, typer.Option(min=0, help='Contrast scenes per task: the wrong object is as near. Each is driven twice.')
    ] = 25,
    seed: Annotated[int, typer.Option(min=0, help='Seed of the first episode.')] = 2_000_000,
    processes: Annotated[int, typer.Option(min=0, help='Worker processes. 0: one per core.')] = 0,
    latency: Annotated[float, typer.Option(min=0.0, help='Time from observation to chunk at the executor [s].')] = 0.08,
    period: Annotated[float, typer.Option(min=0.1, help='Time between two inferences [s].')] = 0.2,
    time_limit: Annotated[float, typer.Option(min=0.1, help='Longest episode [s].')] = 30.0,
    act_steps: Annotated[int, typer.Option(min=1, help='Forward passes per chunk.')] = 1,
    reuse: Annotated[
        int, typer.Option(min=1, help='Chunks per full forward pass. The others compute changed tokens only.')
    ] = 1,
    action_decoding: Annotated[
        str, typer.Option(help='Value read from the distribution of a set-point: median or mode.')
    ] = 'median',
    inpaint: Annotated[
        str,
        typer.Option(help='Give the action prefix to the model: auto (if it was trained for it), always or never.'),
    ] = 'auto',
    blending: Annotated[
        str, typer.Option(help='Chunk blending: latest, inpaint, cross_fade, weighted or temporal_ensemble.')
    ] = 'inpaint',
    engine: Annotated[str, typer.Option(help='Engine of the network, see ./vla bench model.')] = 'eager',
    image_engine: Annotated[str, typer.Option(help='Engine of the image encoder, see ./vla bench model.')] = 'eager',
    device: Device = 'cpu',
    dataset: Annotated[
        Path | None, typer.Option(help='Recorded episodes that were not trained on, for errors on recorded frames.')
    ] = None,
    single_step: Annotated[
        int, typer.Option(min=0, help="Scenes per task in which one chunk is compared with the expert's.")
    ] = 0,
    record: Annotated[
        bool, typer.Option('--record', help="Copy the numbers and the robot profile into the checkpoint's folder.")
    ] = False,
) -> None:
    """Measure the closed-loop success of a checkpoint in the simulator, without ROS."""
    from vla_core.profile import RobotProfile, profile_path
    from vla_model.checkpoints.shipped import model_path
    from vla_training.evaluate.evaluate import evaluate as run
    from vla_training.evaluate.report import keep

    checkpoint = model_path(checkpoint)
    if record and not Path(checkpoint).is_dir():
        raise ValueError(f'--record needs the folder of a checkpoint to write into, got {checkpoint!r}')
    run(
        checkpoint,
        out,
        RobotProfile.load(robot),
        tasks=_tasks(tasks),
        episodes=episodes,
        contrasts=contrasts,
        seed=seed,
        processes=processes,
        dataset=dataset,
        single_step=single_step,
        latency=latency,
        period=period,
        time_limit=time_limit,
        act_steps=act_steps,
        reuse=reuse,
        action_decoding=action_decoding,
        inpaint=inpaint,
        blending=blending,
        engine=engine,
        image_engine=image_engine,
        device=device,
    )
    if record:
        keep(out, Path(checkpoint), Path(profile_path(robot)))


@command
def tokenize(
    robot: Robot = SIMULATED,
    dataset: Annotated[Path, typer.Option(help='LeRobotDataset v3.')] = Path('out/train/dataset'),
    image_tokenizer: Annotated[
        Path | None,
        typer.Option(
            help='Folder of the trained image tokenizer. With --like only if the checkpoint lacks it.',
            show_default='out/train/images',
        ),
    ] = None,
    out: Out = Path('out/train/tokens'),
    like: Annotated[str, typer.Option(help='Checkpoint to fine-tune with the tokens.')] = '',
    keep_statistics: Annotated[
        bool, typer.Option('--keep-statistics', help='Keep the statistics of --like, for the same robot and motions.')
    ] = False,
    actions: Annotated[
        str, typer.Option(help='Action space of a new model: ee_relative (poses of the tool) or joint_delta.')
    ] = 'ee_relative',
    urdf: Annotated[
        Path | None,
        typer.Option(help='URDF of the robot, for actions of the tool.', show_default='the simulated Panda'),
    ] = None,
    copies: Annotated[int, typer.Option(min=0, help='Further copies of each frame, in other light.')] = 0,
    device: Device = 'cpu',
) -> None:
    """Make tokens for training: images to codes, states and chunks to bins, texts to ids."""
    trains()
    from vla_core.profile import RobotProfile
    from vla_model.checkpoints import nano
    from vla_model.checkpoints.shipped import model_path
    from vla_sim.assets.robot import urdf_text
    from vla_training.train.tokenize import Arm
    from vla_training.train.tokenize import tokenize as run

    if not like and image_tokenizer is None:
        image_tokenizer = Path('out/train/images')
    if actions not in nano.ACTIONS:
        raise ValueError(f'--actions must be one of {list(nano.ACTIONS)}, got {actions!r}')
    arm = Arm(RobotProfile.load(robot), urdf.read_text if urdf is not None else urdf_text)
    line = run(
        dataset,
        image_tokenizer,
        out,
        arm=arm,
        like=Path(model_path(like)) if like else None,
        keep_statistics=keep_statistics,
        action_space=actions,
        copies=copies,
        device=device,
    )
    Console().print(line)


@command
def static_scenes(
    robot: Robot = SIMULATED,
    tokens: Annotated[Path, typer.Option(help='Folder of tokens (./vla train tokenize).')] = TOKENS,
    scenes: Annotated[int, typer.Option(min=1, help='Number of scenes per task.')] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help='Seed of the first scene.')] = 100_000,
    sentences: Annotated[int, typer.Option(min=1, help='Number of instructions per scene.')] = 2,
    tasks: TaskIds = '',
    label_actions: Annotated[
        bool, typer.Option('--label-actions', help='Store the chunk with which the expert would start.')
    ] = False,
    near_object: Annotated[
        bool,
        typer.Option('--near-object', help='Start the arm close above the named object, the hand turned at random.'),
    ] = False,
    processes: Annotated[int, typer.Option(min=0, help='Worker processes. 0: one per core.')] = 0,
) -> None:
    """Add static-scene samples to tokens: images and instructions that teach which words name which object."""
    from vla_core.profile import RobotProfile
    from vla_sim.assets.robot import urdf_text
    from vla_training.collect.collect import StartPose
    from vla_training.collect.static_scenes import SceneSettings
    from vla_training.collect.static_scenes import write_static_scenes as run
    from vla_training.train.tokenize import Arm

    workers = processes or len(os.sched_getaffinity(0))
    start = StartPose.near_object() if near_object else StartPose()
    settings = SceneSettings(_tasks(tasks), sentences, start, label_actions)
    seeds = range(seed, seed + scenes)
    Console().print(run(tokens, Arm(RobotProfile.load(robot), urdf_text), seeds, settings, processes=workers))


app.command('glances', hidden=True)(static_scenes)  # its name in earlier versions


@command
def fit(
    recipe: Annotated[Path, typer.Argument(help='Recipe in YAML, such as those in vla_training/recipes.')],
    tokens: TokenFolders = None,
    out: Out = Path('out/train/run'),
    device: Device = 'cpu',
    minutes: Minutes = 0.0,
    threads: Annotated[int, typer.Option(min=0, help='CPU threads. 0: all cores.')] = 0,
    shard: Annotated[
        bool, typer.Option('--shard', help='Share the run with the other processes of torchrun (FSDP).')
    ] = False,
) -> None:
    """Train or fine-tune the model. An interrupted run continues."""
    trains()
    from vla_training.train.recipe import Recipe
    from vla_training.train.trainer import train

    checkpoint = train(
        Recipe.load(recipe),
        tokens or [TOKENS],
        out,
        device=device,
        minutes=minutes or math.inf,
        threads=threads,
        shard=shard,
    )
    if int(os.environ.get('RANK', '0')) == 0:
        Console().print(f'checkpoint: {checkpoint}')


@command
def plot(
    run: Annotated[Path, typer.Argument(help='Folder of a run (./vla train fit).')] = Path('out/train/run'),
) -> None:
    """Plot the losses of a run into RUN/loss.png. `fit` does so whenever it saves."""
    from vla_training.plot import plot_log

    if not (run / 'log.csv').is_file():
        raise FileNotFoundError(f'{run / "log.csv"} is missing: give the folder of a run')
    plot_log(run / 'log.csv', run / 'loss.png')
    Console().print(f'{run / "loss.png"}')


@command
def ablate(
    recipe: Annotated[Path, typer.Argument(help='Recipe in YAML, such as those in vla_training/recipes.')],
    robot: Robot = SIMULATED,
    tokens: TokenFolders = None,
    out: Out = Path('out/train/ablation'),
    seeds: Annotated[int, typer.Option(min=1, help='Number of seeds per variant.')] = 3,
    episodes: Annotated[int, typer.Option(min=1, help='Number of held-out episodes per task and run.')] = 25,
    minutes: Annotated[float, typer.Option(min=0.0, help='Longest training per run [min]. 0: to the end.')] = 0.0,
    device: Device = 'cpu',
    fit: Annotated[bool, typer.Option(help='Train the runs.')] = True,
    processes: Annotated[int, typer.Option(min=1, help='Number of runs that train at a time.')] = 1,
    evaluate: Annotated[bool, typer.Option(help='Evaluate each run in the simulator.')] = True,
    engine: Annotated[
        str, typer.Option(help='Engine of the network in the evaluation, see ./vla bench model.')
    ] = 'eager',
    image_engine: Annotated[str, typer.Option(help='Engine of the image encoder in the evaluation.')] = 'eager',
    dataset: Annotated[
        Path | None, typer.Option(help='Recorded episodes that were not trained on, for errors on recorded frames.')
    ] = None,
) -> None:
    """Compare actions alone, with plans, with images and with both: one recipe, several seeds."""
    trains()
    from vla_core.profile import profile_path
    from vla_training import ablate as study
    from vla_training.train.recipe import Recipe

    robot = profile_path(robot)  # before hours of training
    chosen = Recipe.load(recipe)
    if fit:
        for checkpoint in study.fit(
            chosen,
            tokens or [TOKENS],
            out,
            seeds=seeds,
            device=device,
            minutes=minutes or math.inf,
            processes=processes,
        ):
            Console().print(f'checkpoint: {checkpoint}')
    if evaluate:
        study.evaluate(
            chosen,
            out,
            robot,
            seeds=seeds,
            episodes=episodes,
            dataset=dataset,
            engine=engine,
            image_engine=image_engine,
        )


if __name__ == '__main__':
    app(prog_name='vla_training.cli')
