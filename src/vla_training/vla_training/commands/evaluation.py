"""The command that evaluates a checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from vla_training.commands.options import (
    SIMULATED,
    Checkpoint,
    Device,
    Out,
    Robot,
    TaskIds,
    command,
    task_ids,
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
    steer: Annotated[
        int,
        typer.Option(min=0, help='Scenes per task in which a trace names the object. Each is driven in four ways.'),
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help='Seed of the first episode.')] = 2_000_000,
    processes: Annotated[int, typer.Option(min=0, help='Worker processes. 0: one per core.')] = 0,
    latency: Annotated[float, typer.Option(min=0.0, help='Time from observation to chunk at the executor [s].')] = 0.08,
    period: Annotated[float, typer.Option(min=0.1, help='Time between two inferences [s].')] = 0.2,
    time_limit: Annotated[float, typer.Option(min=0.1, help='Longest episode [s].')] = 30.0,
    act_steps: Annotated[int, typer.Option(min=1, help='Forward passes per chunk.')] = 1,
    kv_reuse: Annotated[
        int, typer.Option(min=1, help='Chunks per full forward pass. The others compute changed tokens only.')
    ] = 1,
    action_decoding: Annotated[
        str, typer.Option(help='Value read from the distribution of a set-point: median or mode.')
    ] = 'median',
    action_head: Annotated[
        str, typer.Option(help='Source of set-points: auto (that of config.json), discrete or continuous.')
    ] = 'auto',
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
    world: Annotated[
        int, typer.Option(min=0, help='Scenes per task in which images after given actions are predicted.')
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
        tasks=task_ids(tasks),
        episodes=episodes,
        contrasts=contrasts,
        steered=steer,
        seed=seed,
        processes=processes,
        dataset=dataset,
        single_step=single_step,
        world=world,
        latency=latency,
        period=period,
        time_limit=time_limit,
        act_steps=act_steps,
        kv_reuse=kv_reuse,
        action_decoding=action_decoding,
        action_head=action_head,
        inpaint=inpaint,
        blending=blending,
        engine=engine,
        image_engine=image_engine,
        device=device,
    )
    if record:
        keep(out, Path(checkpoint), Path(profile_path(robot)))
