"""Commands that train: the image tokenizer, the model, ablations."""

import math
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from vla_training.commands.options import (
    SIMULATED,
    TOKENS,
    Device,
    Minutes,
    Out,
    Robot,
    TokenFolders,
    command,
    trains,
)


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
def depth(
    dataset: Annotated[
        list[Path] | None,
        typer.Option(
            help='Data set with depth maps (./vla train collect --depth). Give the option again for more data sets.',
            show_default='out/train/dataset',
        ),
    ] = None,
    out: Out = Path('out/train/depth'),
    camera: Annotated[str, typer.Option(help='Camera of the depth maps, the first one of the model.')] = 'front',
    steps: Annotated[int, typer.Option(min=1, help='Number of steps.')] = 4000,
    seed: Annotated[int, typer.Option(min=0, help='Seed of weights and batches.')] = 0,
    minutes: Minutes = 0.0,
) -> None:
    """Train the depth tokenizer. An interrupted run continues."""
    trains()
    from vla_training.depth_tokenizer.trainer import Settings, train_depth_tokenizer

    settings = Settings(steps=steps, seed=seed)
    found = dataset or [Path('out/train/dataset')]
    Console().print(train_depth_tokenizer(found, out, camera=camera, settings=settings, minutes=minutes or math.inf))


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
    study: Annotated[
        str,
        typer.Option(
            help='What is compared: outputs (plans, images), world (images after given actions), heads (of actions).'
        ),
    ] = 'outputs',
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
    """Compare what is learned beside actions: one recipe with and without it, over several seeds."""
    trains()
    from vla_core.profile import profile_path
    from vla_training import ablate as ablation
    from vla_training.train.recipe import Recipe

    robot = profile_path(robot)  # before hours of training
    chosen = Recipe.load(recipe)
    if fit:
        for checkpoint in ablation.fit(
            chosen,
            tokens or [TOKENS],
            out,
            seeds=seeds,
            device=device,
            minutes=minutes or math.inf,
            processes=processes,
            study=study,
        ):
            Console().print(f'checkpoint: {checkpoint}')
    if evaluate:
        ablation.evaluate(
            chosen,
            out,
            robot,
            seeds=seeds,
            episodes=episodes,
            dataset=dataset,
            study=study,
            engine=engine,
            image_engine=image_engine,
        )
