"""./vla train ...: from demonstrations to a checkpoint."""

import functools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(no_args_is_help=True, help='From demonstrations to a checkpoint that the policy node loads.')
Out = Annotated[Path, typer.Option(help='Folder to write; one that was cut is gone on with.')]
TaskIds = Annotated[str, typer.Option(help='Comma-separated task ids; all by default.')]
Robot = Annotated[str, typer.Option(help='Robot profile: the name of one of the suite, or a file.')]
Model = Annotated[
    str, typer.Option(help='Checkpoint folder, nano (the trained model of the suite), or random-nano; by default nano.')
]
Checkpoint = Annotated[
    str, typer.Argument(help='Checkpoint folder, nano (the trained model of the suite), or random-nano.')
]
SIMULATED = 'sim_panda'
Device = Annotated[str, typer.Option(help='cpu, cuda.')]
TOKENS = Path('out/train/tokens')
TokenFolders = Annotated[
    list[Path] | None,
    typer.Option(help='Folder that ./vla train tokenize wrote; may be given again.', show_default=str(TOKENS)),
]


def command(function: Callable[..., None]) -> Callable[..., None]:
    """A command of `app`; what is the user's to mend is said in one line."""

    @functools.wraps(function)
    def run(*args, **kwargs) -> None:
        try:
            function(*args, **kwargs)
        except (ValueError, FileNotFoundError) as error:
            typer.secho(str(error), fg='red', err=True)
            raise typer.Exit(1) from None

    return app.command()(run)


def trains() -> None:
    """Lets torch's threads spin while they wait for work, as they usually do; call it before torch is loaded.

    The robot's must not (see vla_model), but here nobody else wants the cores: a step takes 0.4 instead of 0.6 s.
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
    episodes: Annotated[int, typer.Option(min=1, help='Per task.')] = 300,
    seed: Annotated[int, typer.Option(min=0, help='Of the first episode.')] = 10_000,
    processes: Annotated[int, typer.Option(min=0, help='0: one per core.')] = 0,
    push: Annotated[bool, typer.Option(help='Push the arm off its path now and then.')] = True,
    away: Annotated[bool, typer.Option(help='Begin most episodes elsewhere than at home.')] = True,
    tail: Annotated[float, typer.Option(min=0.0, help='Seconds recorded after success.')] = 3.5,
    depth: Annotated[bool, typer.Option(help='Record the depth map of the first camera, too.')] = False,
    lead: Annotated[
        str, typer.Option(help='Checkpoint that drives most episodes at first; recorded is how the expert goes on.')
    ] = '',
) -> None:
    """Expert episodes in the simulator, without ROS, as a LeRobotDataset v3."""
    from vla_core.profile import RobotProfile
    from vla_model.checkpoints.shipped import model_path
    from vla_training.collect.collect import Away, How, Lead, Push
    from vla_training.collect.collect import collect as run

    workers = processes or len(os.sched_getaffinity(0))
    seeds = range(seed, seed + episodes)
    leads = Lead(model_path(lead)) if lead else None
    how = How(Push() if push else None, Away() if away else None, leads, tail, depth)
    found = run(out, RobotProfile.load(robot), _tasks(tasks), seeds, processes=workers, how=how)
    for task, (n, good) in found.items():
        Console().print(f'{task}: {n} episodes, {good} of them good and kept')


@command
def convert(
    bags: Annotated[list[Path], typer.Argument(help='Folders of rosbag2, or single .mcap or .db3 files.')],
    robot: Robot = SIMULATED,
    out: Out = Path('out/train/dataset'),
    fps: Annotated[int, typer.Option(min=1, max=100, help='Frames per second of the data set.')] = 10,
    actions: Annotated[
        str, typer.Option(help='states: where the arm was one frame later; set-points: where it was sent.')
    ] = 'states',
    instruction: Annotated[str, typer.Option(help='For every episode; empty: as the bag says.')] = '',
    subtasks: Annotated[Path | None, typer.Option(help='CSV or JSON with time, subtask (and bag).')] = None,
    namespace: Annotated[str, typer.Option(help='Of the robot in the bag.')] = '',
    shortest: Annotated[int, typer.Option(min=1, help='Shorter episodes are left out (frames).')] = 10,
    camera_gap: Annotated[
        float,
        typer.Option(min=0.0, help='An image stands in for missing ones of its camera up to this age (s); 0: never.'),
    ] = 0.3,
    encoding: Annotated[
        str, typer.Option(help='rgb8 or bgr8: the colours of images that do not give their order (8UC3).')
    ] = '',
) -> None:
    """Recorded bags, also damaged ones, to a LeRobotDataset v3; says what was lost."""
    from vla_training.convert.convert import convert as run

    run(bags, robot, out, fps, actions, instruction.strip(), subtasks, namespace, shortest, camera_gap, encoding)


@command
def annotate(
    dataset: Annotated[Path, typer.Argument(help='LeRobotDataset v3 with sub-tasks.')],
    out: Annotated[
        Path | None, typer.Option(help='File to write; meta/plans.jsonl in the data set by default.')
    ] = None,
) -> None:
    """The plan of each frame as JSON lines, with the keys of MM-ACT's annotation files."""
    from vla_training.data.annotate import write_records

    path, count = write_records(dataset, out)
    Console().print(f'{path}: {count} frames')


@command
def frames(
    dataset: Annotated[Path, typer.Option(help='LeRobotDataset v3.')] = Path('out/train/dataset'),
    out: Annotated[Path, typer.Option(help='New folder.')] = Path('out/train/frames'),
    count: Annotated[int, typer.Option(min=100, help='About so many, spread over the data set.')] = 12_000,
) -> None:
    """Camera frames out of a data set, for the image tokenizer: about 5 kB each."""
    from vla_model.checkpoints import nano
    from vla_training.image_tokenizer.sample_frames import sample_frames

    config = nano.config(1)
    n = sample_frames(dataset, out, config.image_tokenizer.resolution, config.robot.cameras, count)
    Console().print(f'{n} frames in {out}')


@command
def images(
    frames: Annotated[Path, typer.Option(help='Folder that ./vla train frames wrote.')] = Path('out/train/frames'),
    out: Out = Path('out/train/images'),
    steps: Annotated[int, typer.Option(min=1)] = 20_000,
    batch: Annotated[int, typer.Option(min=1)] = 16,
    lr: Annotated[float, typer.Option(min=0.0, help='At its highest.')] = 2e-3,
    init: Annotated[Path | None, typer.Option(help='Tokenizer to begin with, of the same shape.')] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Device = 'cpu',
    minutes: Annotated[float, typer.Option(min=0.0, help='Stop and save after that; 0: at the end.')] = 0.0,
) -> None:
    """Train the image tokenizer; go on where it stopped."""
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
    episodes: Annotated[int, typer.Option(min=0, help='Per task, of seeds that are held out.')] = 100,
    contrasts: Annotated[
        int, typer.Option(min=0, help='Scenes per task in which the wrong thing is as near; they come twice.')
    ] = 25,
    seed: Annotated[int, typer.Option(min=0, help='Of the first episode.')] = 2_000_000,
    processes: Annotated[int, typer.Option(min=0, help='0: one per core.')] = 0,
    latency: Annotated[float, typer.Option(min=0.0, help='Observation to chunk at the executor (s).')] = 0.08,
    period: Annotated[float, typer.Option(min=0.1, help='Between two inferences (s).')] = 0.2,
    time_limit: Annotated[float, typer.Option(min=0.1, help='Of an episode (s).')] = 30.0,
    act_steps: Annotated[int, typer.Option(min=1, help='Forwards per chunk.')] = 1,
    reuse: Annotated[int, typer.Option(min=1, help='Chunks per full forward; the others compute what changed.')] = 1,
    estimate: Annotated[str, typer.Option(help='Of a set-point: median, or mode, the most probable.')] = 'median',
    inpaint: Annotated[
        str,
        typer.Option(help='The model is given the steps under way: auto (where it has learned it), always, never.'),
    ] = 'auto',
    seams: Annotated[
        str, typer.Option(help="The executor's: latest, inpaint, cross_fade, weighted, temporal_ensemble.")
    ] = 'inpaint',
    engine: Annotated[str, typer.Option(help='What runs the network, see ./vla bench model.')] = 'eager',
    image_engine: Annotated[str, typer.Option(help='What runs the image encoder, the same way.')] = 'eager',
    device: Device = 'cpu',
    dataset: Annotated[Path | None, typer.Option(help='Recorded episodes, not trained on, to compare with.')] = None,
    looks: Annotated[
        int, typer.Option(min=0, help="Scenes per task that are only looked at: one chunk, next to the expert's.")
    ] = 0,
    record: Annotated[
        bool, typer.Option('--record', help="Leave the numbers and the robot profile in the checkpoint's folder.")
    ] = False,
) -> None:
    """Closed-loop success of a checkpoint in the simulator without ROS, plans and images on recorded frames."""
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
        looks=looks,
        latency=latency,
        period=period,
        time_limit=time_limit,
        act_steps=act_steps,
        reuse=reuse,
        estimate=estimate,
        inpaint=inpaint,
        seams=seams,
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
            help='Folder of the trained one; with --like only where it is not in the checkpoint.',
            show_default='out/train/images',
        ),
    ] = None,
    out: Out = Path('out/train/tokens'),
    like: Annotated[str, typer.Option(help='Checkpoint that shall be fine-tuned with the tokens.')] = '',
    keep_statistics: Annotated[
        bool, typer.Option('--keep-statistics', help='Of --like: where robot and motions are the same.')
    ] = False,
    actions: Annotated[
        str, typer.Option(help='Of a new model: ee_relative (poses of the tool) or joint_delta.')
    ] = 'ee_relative',
    urdf: Annotated[
        Path | None, typer.Option(help='Of the robot, for actions of the tool.', show_default='the simulated Panda')
    ] = None,
    copies: Annotated[int, typer.Option(min=0, help='Further copies of each frame, in other light.')] = 0,
    device: Device = 'cpu',
) -> None:
    """Images to codes, states and chunks to bins, texts to ids: what training reads."""
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
def glances(
    robot: Robot = SIMULATED,
    tokens: Annotated[Path, typer.Option(help='Folder that ./vla train tokenize wrote.')] = TOKENS,
    scenes: Annotated[int, typer.Option(min=1, help='Per task.')] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help='Of the first scene.')] = 100_000,
    sentences: Annotated[int, typer.Option(min=1, help='Per scene.')] = 2,
    tasks: TaskIds = '',
    answers: Annotated[
        bool, typer.Option('--answers', help='With the chunk that the expert would begin with.')
    ] = False,
    over: Annotated[
        bool, typer.Option('--over', help='The arm close over what is named first, the hand turned any way.')
    ] = False,
    processes: Annotated[int, typer.Option(min=0, help='0: one per core.')] = 0,
) -> None:
    """Scenes of the simulator that are only looked at, added to tokens: which words mean which thing."""
    from vla_core.profile import RobotProfile
    from vla_sim.assets.robot import urdf_text
    from vla_training.collect.collect import Away
    from vla_training.collect.static_scenes import Look
    from vla_training.collect.static_scenes import glances as run
    from vla_training.train.tokenize import Arm

    workers = processes or len(os.sched_getaffinity(0))
    look = Look(_tasks(tasks), sentences, Away.over() if over else Away(), answers)
    seeds = range(seed, seed + scenes)
    Console().print(run(tokens, Arm(RobotProfile.load(robot), urdf_text), seeds, look, processes=workers))


@command
def fit(
    recipe: Annotated[Path, typer.Argument(help='YAML, such as those in vla_training/recipes.')],
    tokens: TokenFolders = None,
    out: Out = Path('out/train/run'),
    device: Device = 'cpu',
    minutes: Annotated[float, typer.Option(min=0.0, help='Stop and save after that; 0: at the end.')] = 0.0,
    threads: Annotated[int, typer.Option(min=0, help='Of a CPU; 0: all cores.')] = 0,
    shard: Annotated[
        bool, typer.Option('--shard', help='One of the processes of torchrun, which share the run (FSDP).')
    ] = False,
) -> None:
    """Train or fine-tune the model; go on where it stopped."""
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
def plot(run: Annotated[Path, typer.Argument(help='Folder that fit wrote.')] = Path('out/train/run')) -> None:
    """The losses of a run over its steps, RUN/loss.png; fit does it, too, whenever it saves."""
    from vla_training.plot import plot_log

    if not (run / 'log.csv').is_file():
        raise FileNotFoundError(f'{run / "log.csv"} is missing: give the folder of a run')
    plot_log(run / 'log.csv', run / 'loss.png')
    Console().print(f'{run / "loss.png"}')


@command
def ablate(
    recipe: Annotated[Path, typer.Argument(help='YAML, such as those in vla_training/recipes.')],
    robot: Robot = SIMULATED,
    tokens: TokenFolders = None,
    out: Out = Path('out/train/ablation'),
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    episodes: Annotated[int, typer.Option(min=1, help='Per task and run; held-out scenes.')] = 25,
    minutes: Annotated[float, typer.Option(min=0.0, help='Of training per run; 0: to the end.')] = 0.0,
    device: Device = 'cpu',
    fit: Annotated[bool, typer.Option(help='Train the runs.')] = True,
    processes: Annotated[int, typer.Option(min=1, help='Runs that are trained at a time.')] = 1,
    evaluate: Annotated[bool, typer.Option(help='Drive the simulated arm with each.')] = True,
    engine: Annotated[str, typer.Option(help='What runs the network then, see ./vla bench model.')] = 'eager',
    image_engine: Annotated[str, typer.Option(help='What runs the image encoder then.')] = 'eager',
    dataset: Annotated[Path | None, typer.Option(help='Recorded episodes, not trained on, to compare with.')] = None,
) -> None:
    """Actions alone, with plans, with images, with both: the same recipe, several seeds, success of each."""
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
