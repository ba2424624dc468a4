"""Makes the data on which a quantized checkpoint is calibrated and checked: prompts and images of tokenized data."""

import tempfile
from pathlib import Path

import numpy as np
import torch

from vla_model.checkpoints import checkpoint
from vla_model.families.folder import Opened, open_folder
from vla_model.image_tokenizer import ImageTokenizer, to_image
from vla_model.quantization.gate import Calibration, Check
from vla_model.tokens.bins import dequantize
from vla_model.types import Observation
from vla_training.data import shards
from vla_training.train.masking import Masking
from vla_training.train.objective import Objective
from vla_training.train.target_model import Arm
from vla_training.train.tokenize import tokenize

# As at inference: nothing is disturbed. Some chunks start with an action prefix.
AS_TRAINED = Masking(state_noise=0.0, code_drop=0.0, code_flip=0.0)
AS_ASKED = Masking(one_step=1.0, prefix=0.0, state_noise=0.0, code_drop=0.0, code_flip=0.0)
TUNING = 8  # prompts that rank layers
MODES = ('action', 'action', 'text', 'image')  # of four calibration prompts


def calibration(
    source: Path,
    model: Path,
    prompts: int = 32,
    checks: int = 48,
    pictures: int = 16,
    image_tokenizer: Path | None = None,
    arm: Arm | None = None,
) -> Calibration:
    """Return calibration data for the checkpoint `model` from rows of `source`.

    source: folder of tokens, or a LeRobotDataset, which is tokenized first. Rows are spread evenly. Calibration and
    checks use different episodes. arm: see tokenize. Raises ValueError or FileNotFoundError where the data is not for
    this checkpoint, or too small.
    """
    found = open_folder(model, image_tokenizer)
    if (source / 'meta' / 'info.json').is_file():
        with tempfile.TemporaryDirectory() as made:
            tokenize(source, image_tokenizer, Path(made) / 'tokens', like=model, keep_statistics=True, arm=arm)
            return _from_tokens(shards.read(Path(made) / 'tokens'), str(source), found, prompts, checks, pictures)
    return _from_tokens(shards.read(source), str(source), found, prompts, checks, pictures)


def _from_tokens(
    tokens: shards.Tokens, source: str, found: Opened, prompts: int, checks: int, pictures: int
) -> Calibration:
    _check_same(tokens, found)
    generator = torch.Generator().manual_seed(0)
    even = tokens.episode % 2 == 0
    seen, other = (torch.nonzero(part)[:, 0] for part in (even, ~even))
    if min(len(seen), len(other)) < max(prompts, checks):
        raise ValueError(
            f'{source} has {len(tokens)} frames of {len(tokens.episode.unique())} episodes, '
            f'{2 * max(prompts, checks)} of two episodes or more are needed: give more data, or ask for fewer prompts '
            'and checks'
        )
    trained, asked = (Objective(tokens, masking, torch.device('cpu')) for masking in (AS_TRAINED, AS_ASKED))
    ids = []
    for i, row in enumerate(_spread(seen, prompts)):
        batch = trained.draw(MODES[i % len(MODES)], row[None], generator)
        if batch is None:  # a frame without plan
            batch = trained.draw('action', row[None], generator)
        assert batch is not None
        ids.append(batch.ids)

    def asking(rows: torch.Tensor) -> tuple[Check, ...]:
        batches = [asked.draw('action', row[None], generator) for row in rows]
        return tuple(Check(b.ids, b.block, b.label[0]) for b in batches if b is not None)

    tokenizer = _image_tokenizer(found)
    with torch.inference_mode():
        codes = tokens.codes[_spread(other, pictures)].long()
        views = [tokenizer.decode(c[i % len(c)][None]).clamp(-1, 1) for i, c in enumerate(codes)]
    where = f'{source}: {len(tokens)} frames'
    return Calibration(
        tuple(ids), asking(_spread(seen, TUNING)), asking(_spread(other, checks)), torch.cat(views), where
    )


def observations(source: Path, model: Path, count: int = 24) -> list[Observation]:
    """Return `count` observations of a folder of tokens for the checkpoint. Images are decoded from the codes."""
    found = open_folder(model)
    tokens = shards.read(source)
    _check_same(tokens, found)
    tokenizer = _image_tokenizer(found)
    robot, v = found.config.robot, found.config.vocabulary
    made = []
    for row in _spread(torch.arange(len(tokens)), count).tolist():
        with torch.inference_mode():
            views = [to_image(tokenizer.decode(codes.long()[None])[0]) for codes in tokens.codes[row]]
        state = found.config.ranges('state').denormalize(dequantize(tokens.state[row].numpy(), v.bins))
        made.append(
            Observation(
                t_ref=0,
                images=dict(zip(robot.cameras, views, strict=True)),
                positions=state[: robot.dof],
                velocities=np.zeros(robot.dof),
                gripper=float(state[-1]) if robot.gripper else 0.0,
                instruction=tokens.text.decode(tokens.texts[int(tokens.instruction[row])]),
            )
        )
    return made


def _image_tokenizer(found: Opened) -> ImageTokenizer:
    with torch.device('meta'):
        tokenizer = ImageTokenizer(found.config.image_tokenizer)
    folder = next(iter(found.image.values())).path.parent
    checkpoint.load_into(tokenizer, found.image, torch.device('cpu'), torch.float32, folder)
    return tokenizer


def _spread(rows: torch.Tensor, count: int) -> torch.Tensor:
    return rows[torch.linspace(0, len(rows) - 1, count).long()]


def _check_same(tokens: shards.Tokens, found: Opened) -> None:
    """Raise ValueError where the model reads ids in another way."""
    ours, theirs = found.config, tokens.config
    for name in ('vocabulary', 'robot', 'image_tokenizer', 'statistics'):
        if getattr(ours, name) != getattr(theirs, name):
            raise ValueError(
                f'{tokens.folder}: {name} differs from the checkpoint: tokenize the data for it with '
                './vla train tokenize --like CHECKPOINT --keep-statistics'
            )
