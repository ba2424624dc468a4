"""Commands that make data sets, tokens and samples."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from vla_training.commands.options import (
    SIMULATED,
    TOKENS,
    Device,
    Out,
    Robot,
    TaskIds,
    app,
    command,
    task_ids,
    trains,
)


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
    found = run(out, RobotProfile.load(robot), task_ids(tasks), seeds, processes=workers, settings=settings)
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
    urdf: Annotated[
        Path | None,
        typer.Option(help='Robot description (URDF), for the pixels of the tool. Default: that of the bag.'),
    ] = None,
) -> None:
    """Convert recorded bags, also damaged ones, to a LeRobotDataset v3, and report all losses."""
    from vla_training.convert.convert import convert as run

    run(bags, robot, out, fps, actions, instruction.strip(), subtasks, namespace, shortest, camera_gap, encoding, urdf)


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
    outputs: Annotated[
        str,
        typer.Option(help='Comma-separated outputs and inputs to add to the model: trace, steering, world, depth.'),
    ] = '',
    depth_tokenizer: Annotated[
        Path | None, typer.Option(help='Folder of the depth tokenizer (./vla train depth), for the output depth.')
    ] = None,
    device: Device = 'cpu',
) -> None:
    """Make tokens for training: images to codes, states and chunks to bins, texts to ids."""
    trains()
    from vla_core.profile import RobotProfile
    from vla_model.checkpoints import nano
    from vla_model.checkpoints.shipped import model_path
    from vla_sim.assets.robot import urdf_text
    from vla_training.train.target_model import Arm
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
        outputs=[name.strip() for name in outputs.split(',') if name.strip()],
        depth_tokenizer=depth_tokenizer,
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
    from vla_training.train.target_model import Arm

    workers = processes or len(os.sched_getaffinity(0))
    start = StartPose.near_object() if near_object else StartPose()
    settings = SceneSettings(task_ids(tasks), sentences, start, label_actions)
    seeds = range(seed, seed + scenes)
    Console().print(run(tokens, Arm(RobotProfile.load(robot), urdf_text), seeds, settings, processes=workers))


app.command('glances', hidden=True)(static_scenes)  # its name in earlier versions
