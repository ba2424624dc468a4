"""./vla tensorrt export, build, verify: makes TensorRT engines of a checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from vla_model.checkpoints.shipped import model_path
from vla_training.commands.options import Checkpoint

app = typer.Typer(
    no_args_is_help=True,
    help='Make TensorRT engines of a checkpoint: export, build, verify. See docs/how-to/tensorrt.md.',
)
Dtype = Annotated[str, typer.Option(help='Precision of layers that are not quantized: bfloat16, float16, float32.')]


@app.command('export')
def export(
    checkpoint: Checkpoint,
    dtype: Dtype = 'bfloat16',
    image_dtype: Annotated[str, typer.Option(help='Precision of the image tokenizer: float16, float32.')] = 'float16',
    plan_tokens: Annotated[int, typer.Option(min=0, help='Length of plans [tokens]; 0: of the checkpoint.')] = 0,
    check: Annotated[bool, typer.Option(help='Compare the graphs with torch, in ONNX Runtime on the CPU.')] = True,
) -> None:
    """Write act, plan step, image step and image tokenizer as ONNX. Needs no GPU."""
    from vla_model.engines import onnx_manifest
    from vla_model.export import onnx_export
    from vla_model.families.mmact.loading import LoadOptions, load

    def run() -> None:
        policy = load(checkpoint, LoadOptions('cpu', 'float32'))
        folder = onnx_manifest.folder_of(policy.model_id, dtype)
        onnx_export.export(policy, folder, dtype, image_dtype, plan_tokens)
        size = sum(f.stat().st_size for f in folder.iterdir() if f.is_file())
        typer.echo(f'{folder}: {size / 1e6:.0f} MB')
        if check:
            table = Table('graph', 'run as', 'relative error of logits', 'equal tokens')
            for name, row in onnx_export.check(policy, folder).items():
                error = row.get('relative error')
                table.add_row(
                    name, str(row['run as']), '' if error is None else f'{error:.1e}', f'{row["equal tokens"]:.2%}'
                )
            Console().print(table)

    _end(run)


@app.command('build')
def build(
    checkpoint: Checkpoint,
    dtype: Dtype = 'bfloat16',
    workspace: Annotated[float, typer.Option(min=0.1, help='Workspace memory of TensorRT [GiB].')] = 8.0,
    level: Annotated[int, typer.Option(min=0, max=5, help='Level of optimization; higher levels take longer.')] = 3,
) -> None:
    """Build the engines for this GPU and this TensorRT from the exported graphs."""
    from vla_model.engines import onnx_manifest, tensorrt_runtime
    from vla_model.export import tensorrt_build
    from vla_model.families.mmact.loading import LoadOptions, load

    def run() -> None:
        tensorrt_runtime.library()  # raises before the checkpoint is read
        folder = onnx_manifest.folder_of(load(checkpoint, LoadOptions('cpu', 'float32')).model_id, dtype)
        for name, seconds in tensorrt_build.build(folder, workspace, level).items():
            typer.echo(f'{name}: {f"{seconds:.0f} s" if seconds else "already built"}')
        typer.echo(str(tensorrt_runtime.built_in(folder)))

    _end(run)


@app.command('verify')
def verify(
    checkpoint: Checkpoint,
    observations: Annotated[
        Path, typer.Option(help='Recorded observations: a folder that ./vla train tokenize wrote.')
    ],
    dtype: Dtype = 'bfloat16',
    count: Annotated[int, typer.Option(min=1, help='Number of observations, evenly over the folder.')] = 200,
) -> None:
    """Compare the engines with torch on recorded observations; the policy node uses only engines that pass."""
    from vla_model.engines import onnx_manifest, tensorrt_runtime
    from vla_model.export import tensorrt_verify
    from vla_model.families.mmact.loading import LoadOptions, load
    from vla_training.train.calibration import observations as read

    def run() -> None:
        tensorrt_runtime.library()
        policy = load(checkpoint, LoadOptions('cuda', dtype))
        seen = read(observations, Path(model_path(checkpoint)), count)
        result = tensorrt_verify.verify(policy, onnx_manifest.folder_of(policy.model_id, dtype), seen)
        for name, value in result.items():
            typer.echo(f'{name.replace("_", " ")}: {value:.4g}')

    _end(run)


def _end(run: Callable[[], None]) -> None:
    """Run a command. A ValueError or FileNotFoundError is printed, and the exit code is 1."""
    try:
        run()
    except (ValueError, FileNotFoundError) as error:
        typer.secho(str(error), fg=typer.colors.RED, err=True)
        raise typer.Exit(1) from None
