"""Makes tokens of a data set: images to codes, states and chunks to bins, instructions and plans to ids."""

import itertools
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from vla_model.config import ModelConfig
from vla_model.image_tokenizer import ImageTokenizer, preprocess
from vla_model.tokens import bins
from vla_sim.tasks import vague_instructions
from vla_training.data import shards
from vla_training.data.annotate import plan_texts
from vla_training.data.features import STATE, image
from vla_training.lerobot import Dataset, Episode
from vla_training.train import labels
from vla_training.train.chunks import actions_of, frames_used, sent_chunks, starts, stride
from vla_training.train.target_model import (
    Arm,
    TargetModel,
    model_like,
    nano_model,
    with_outputs,
    write_model_files,
)

BATCH = 64  # images per forward of the encoder


def tokenize(
    dataset: Path, image_tokenizer: Path | None, out: Path, *, arm: Arm | None = None, like: Path | None = None,
    keep_statistics: bool = False, action_space: str = 'ee_relative', copies: int = 0, device: str = 'cpu',
    seed: int = 0, outputs: Collection[str] = (), depth_tokenizer: Path | None = None,
) -> str:  # fmt: skip
    """Write the shards, the configuration and the tokenizers into `out`. Return a line about them.

    image_tokenizer: folder of a trained image tokenizer; with `like` only if that checkpoint lacks it. arm: the robot
    of the data set, for actions of its tool. like: folder of the checkpoint to fine-tune; without it tokens are for
    the nano model with actions of `action_space`, see nano.ACTIONS. keep_statistics: use those of `like`. copies:
    further versions of each frame with other brightness, contrast and colour. outputs: added to the model, see
    target_model.OUTPUTS; depth needs the folder of a depth_tokenizer. Existing shards are kept, so an
    interrupted run continues. Raises FileNotFoundError or ValueError naming the file.
    """
    data = Dataset(dataset)
    if like is not None:
        model = model_like(data, like, image_tokenizer, arm, device, keep_statistics)
    elif image_tokenizer is not None:
        model = nano_model(data, image_tokenizer, action_space, arm, device)
    else:
        raise ValueError('tokens need an image tokenizer or a checkpoint: give --image-tokenizer or --like')
    model = with_outputs(model, outputs, depth_tokenizer)
    config = model.config
    out.mkdir(parents=True, exist_ok=True)
    write_model_files(out, model)
    # As many episodes per shard as fit, counted before any is encoded: the same shards in every run.
    room = shards.MAX_BYTES // (1 + copies) - 300_000
    total, done = len(data.episodes), 0
    with Progress(transient=True) as bar:
        line = bar.add_task('frames', total=len(data))
        for index, part in enumerate(_parts(data, config, room)):
            path = shards.shard_path(out, index)
            if not path.exists():
                rng = np.random.default_rng([seed, index])
                shards.write_shard(path, _shard(data, part, model, copies, rng))
            done += sum(data.episodes[i].length for i in part)
            bar.update(line, completed=done)
    size = sum(p.stat().st_size for p in out.glob('shard-*'))
    return f'{done} frames of {total} episodes, {size / 1e6:.1f} MB, {size / max(done, 1):.0f} bytes a frame'


def _parts(data: Dataset, config: ModelConfig, room: int) -> Iterator[list[int]]:
    """Yield the numbers of the episodes of each shard."""
    per_frame = shards.bytes_of(config)
    part: list[int] = []
    used = 0
    for i, info in enumerate(data.episodes):
        size = info.length * per_frame + 10_000  # and texts
        if part and used + size > room:
            yield part
            part, used = [], 0
        part.append(i)
        used += size
    if part:
        yield part


def _shard(
    data: Dataset, part: list[int], model: TargetModel, copies: int, rng: np.random.Generator
) -> dict[str, Tensor]:
    config, text, encoder = model.config, model.text, model.encoder
    robot = config.robot
    frames = stride(data, robot)
    rows: dict[str, list[np.ndarray]] = {name: [] for name in shards.PER_FRAME}
    texts: dict[str, int] = {}
    count = 0
    for episode in (piece for number in part for piece in data.episode(number).by_task()):
        length = frames_used(episode, robot.dof, data.fps)
        ends = starts(episode, robot.dof) + robot.horizon * frames
        state = config.ranges('state').normalize(np.asarray(episode.columns[STATE], np.float64))
        chunks = actions_of(episode, robot, frames, model.kinematics, length)
        action = config.ranges('action').normalize(chunks).astype(np.float32)
        plans = [texts.setdefault(t, len(texts)) if t else -1 for t in plan_texts(episode)[:length]]
        more = {'exact': labels.exact(action)}
        if config.world:
            sent = sent_chunks(episode, robot, frames, model.kinematics, length)
            more |= labels.world(config, sent, frames)
        if config.robot.trace or config.steering:
            more |= labels.ways(data, episode, config, length)
            vague = vague_instructions(episode.task) or ('',)
            found = [vague[i % len(vague)] for i in range(length)]
            more['vague'] = np.array([texts.setdefault(t, len(texts)) if t else -1 for t in found])
        if model.depth is not None:
            more['depth'] = labels.depth_codes(episode, robot.cameras[0], model.depth, length)
        for copy in range(1 + copies):
            light = rng if copy else None
            codes = [_encode(episode, camera, length, encoder, light) for camera in robot.cameras]
            rows['codes'].append(np.stack(codes, 1))
            rows['state'].append(bins.quantize(state[:length], config.vocabulary.bins))
            rows['action'].append(bins.quantize(action, config.vocabulary.bins))
            rows['points'].append(labels.grounding_points(data, episode, robot, config.vocabulary.bins)[:length])
            rows['future'].append(count + np.minimum(ends[:length], length - 1))
            rows['episode'].append(np.full(length, episode.info.index))
            rows['instruction'].append(np.full(length, texts.setdefault(episode.task, len(texts))))
            rows['plan'].append(np.asarray(plans))
            if config.steering:
                count_of_bins = config.vocabulary.bins
                drawn = labels.drawn(more['trace'], count_of_bins, rng)
                lined = _encode(episode, robot.cameras[0], length, encoder, light, drawn, count_of_bins)
                more |= {'drawn': drawn, 'lined': lined}
            for name, values in more.items():
                shifted = np.where(values < 0, values, values + count) if name == 'ahead' else values
                rows.setdefault(name, []).append(shifted)
            count += length
    ids = [text.encode(t) for t in texts]
    flat = np.concatenate([np.asarray(i, np.int64) for i in ids])
    tensors = {name: torch.from_numpy(np.concatenate(values)) for name, values in rows.items()}
    return tensors | {'text_ids': torch.from_numpy(flat), 'text_ends': torch.tensor([len(i) for i in ids]).cumsum(0)}


@torch.inference_mode()
def _encode(
    episode: Episode, camera: str, length: int, encoder: ImageTokenizer, rng: np.random.Generator | None,
    lines: np.ndarray | None = None, count: int = 0,
) -> np.ndarray:  # fmt: skip
    """Return the codes of a camera's first frames, (length, tokens) int64. rng: draw another light for all of them.

    lines: (length, LINE, 2) in `count` bins, drawn on the frames; the codes of frames without one are NOWHERE.
    """
    device = next(encoder.parameters()).device
    side = encoder.config.resolution
    gain = rng.uniform(0.8, 1.25) * rng.uniform(0.95, 1.05, 3) if rng is not None else None
    offset = rng.uniform(-12, 12) if rng is not None else 0.0
    codes, batch = [], []
    frames = list(itertools.islice(episode.frames(image(camera)), length))
    if lines is not None:
        frames = [labels.with_line(f, line, count) for f, line in zip(frames, lines, strict=True)]
    for i, frame in enumerate(frames):
        if gain is not None:
            frame = np.clip(frame * gain + offset, 0, 255).astype(np.uint8)
        batch.append(preprocess(frame, side, device))
        if len(batch) == BATCH or i == len(frames) - 1:
            codes.append(encoder.encode(torch.stack(batch)).cpu().numpy())
            batch = []
    found = np.concatenate(codes)
    if lines is not None:
        found[lines[:, 0, 0] == shards.NOWHERE] = shards.NOWHERE
    return found
