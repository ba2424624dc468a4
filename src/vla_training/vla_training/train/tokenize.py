"""Makes tokens of a data set: images to codes, states and chunks to bins, instructions and plans to ids.

A chunk holds the set-points due 1 .. horizon steps after its frame. A step is one or several frames. An initial rest of
the demonstrator is left out (see `starts`). In a disturbed demonstration the sent set-point differs from the wanted
one. The chunk then leads from the one to the other within a few frames.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from safetensors.torch import save_file
from torch import Tensor

from vla_core.kinematics.arm import load_kinematics
from vla_core.kinematics.ik import Kinematics
from vla_core.profile import RobotProfile
from vla_model.checkpoints import checkpoint, nano
from vla_model.config import ImageTokenizerConfig, ModelConfig, RobotInterface
from vla_model.families.folder import open_folder
from vla_model.image_tokenizer import ImageTokenizer, preprocess
from vla_model.observation import squared
from vla_model.policy import PolicyInfo
from vla_model.statistics import FILE as STATISTICS_FILE
from vla_model.statistics import Statistics
from vla_model.tokens import bins
from vla_model.tokens.text_tokenizer import NANO_FILE, TextTokenizer
from vla_model.tokens.vocabulary import Vocabulary
from vla_policy_node.policy.end_effector import OSC, check_actions, to_actions
from vla_training.data import shards
from vla_training.data.annotate import plan_texts
from vla_training.data.features import ACTION, GROUNDING_POINTS, STATE, SUBTASK, SUCCESS, executed, image
from vla_training.image_tokenizer.state import load_image_tokenizer
from vla_training.lerobot import Dataset, Episode

RECOVER = 0.5  # share of a disturbance that is left one frame later
BATCH = 64  # images per forward of the encoder
STILL = 0.003  # [rad] smallest motion of a joint since the frame that ends a rest
FINGERS = 5e-4  # [m] smallest motion of the gripper's opening between two frames that ends a rest
TAIL = 1.5  # [s] kept after success: time to retreat from the released object
BACK = 0.2  # [rad] per joint: closer to its final pose the arm counts as resting
NANO_POINTS = 2  # grounding points of a new model, where the data set has them
LONGEST_REST = 5  # most frames that are left out at the start of a chunk


def starts(episode: Episode, dof: int) -> np.ndarray:
    """Return the first frame of each frame's chunk, (T,) int64: the next frame that moves.

    A model that sees no velocities cannot know when a rest is over. It learns the most frequent action of a pose. For a
    rest pose that is to rest, so the arm would stay for ever. Without the rest it moves at once, and the executor
    accelerates within its limits. A rest in which the gripper moves has a purpose and is kept.
    """
    wanted, state = np.asarray(episode.columns[ACTION], np.float64), np.asarray(episode.columns[STATE], np.float64)
    before = np.concatenate([state[:1], wanted[:-1]])  # set-point before each frame
    fingers = state[:, dof:]
    moving = np.abs(np.diff(fingers, axis=0, append=fingers[-1:])).max(1, initial=0) > FINGERS
    found = np.arange(len(wanted))
    for i in range(len(wanted)):
        for k in range(i, min(i + LONGEST_REST, len(wanted) - 1)):
            still = np.abs(wanted[k, :dof] - before[i, :dof]).max() < STILL
            if not still or moving[k] or (i > 0 and (wanted[k, dof:] != before[i, dof:]).any()):
                break
            found[i] = k + 1
    return found


def stride(data: Dataset, robot: RobotInterface | PolicyInfo) -> int:
    """Return the frames per step of a chunk. Raises ValueError where that is no whole number."""
    frames = robot.dt * data.fps
    if frames < 0.5 or abs(frames - round(frames)) > 1e-6:
        raise ValueError(
            f'{data.folder} has {data.fps:g} frames/s, the model steps of {robot.dt:g} s: collect or convert others'
        )
    return round(frames)


def chunks_of(episode: Episode, dof: int, horizon: int, stride: int = 1) -> np.ndarray:
    """Return the following set-points [rad], [m] of each frame, (T, horizon, dof + gripper) float64.

    stride: frames per step. Chunks start at `starts`. After the end of the episode the last set-point is held.
    """
    wanted = np.asarray(episode.columns[ACTION], np.float64)
    ahead = stride * np.arange(1, horizon + 1)  # frames
    step = np.minimum(starts(episode, dof)[:, None] + ahead - 1, len(wanted) - 1)
    chunks = wanted[step]
    if (sent := executed(episode.columns)) is not None:
        error = np.asarray(sent, np.float64)[:, :dof] - wanted[:, :dof]
        now = np.concatenate([np.zeros((1, dof)), error[:-1]])  # an action is due one frame later
        left = RECOVER**ahead
        chunks[:, :, :dof] += now[:, None] * left[:, None]
    return chunks


def actions_of(
    episode: Episode, robot: RobotInterface, stride: int, kinematics: Kinematics | None, length: int | None = None
) -> np.ndarray:
    """Return the model's actions of the first `length` frames (None: all), (length, horizon, action_dim) float64.

    Actions are in robot units. kinematics: of the robot's tool, for actions of the tool.
    """
    chunks = chunks_of(episode, robot.dof, robot.horizon, stride)[:length]
    state = np.asarray(episode.columns[STATE], np.float64)[: len(chunks), : robot.dof]
    return np.stack([action_of(robot, kinematics, q, chunk) for q, chunk in zip(state, chunks, strict=True)])


def action_of(robot: RobotInterface, kinematics: Kinematics | None, q: np.ndarray, chunk: np.ndarray) -> np.ndarray:
    """Convert set-points (horizon, dof + gripper) to actions (horizon, action_dim) of an arm at q (dof,) [rad]."""
    if robot.action_space == 'joint_position':
        return chunk
    if robot.action_space == 'joint_delta':
        return np.column_stack([chunk[:, : robot.dof] - q, chunk[:, robot.dof :]])
    if robot.action_space == OSC:
        raise ValueError('recorded joints do not give the inputs of a controller (osc_delta): train ee_relative')
    assert kinematics is not None
    return to_actions(kinematics, robot, q, chunk)


def configure(dataset: Dataset, base: ModelConfig, method: str, kinematics: Kinematics | None = None) -> ModelConfig:
    """Return `base` with the statistics of the data set. method: values that become -1 and +1 (RobotInterface)."""
    robot = base.robot
    if method == 'limits':
        return replace(base, robot=replace(robot, normalization=method), statistics=None)
    states, actions, frames = [], [], stride(dataset, robot)
    for i in range(len(dataset.episodes)):
        for episode in dataset.episode(i).by_task():
            length = frames_used(episode, robot.dof, dataset.fps)
            states.append(np.asarray(episode.columns[STATE])[:length])
            actions.append(actions_of(episode, robot, frames, kinematics, length))
    flat = np.concatenate(actions).reshape(-1, robot.action_dim)
    statistics = Statistics.of(np.concatenate(states), flat)
    return replace(base, robot=replace(robot, normalization=method), statistics=statistics)


@dataclass(frozen=True)
class Arm:
    """The robot, for models whose actions are of the tool."""

    profile: RobotProfile
    description: Callable[[], str]  # returns the URDF; called only if it is needed


def kinematics_for(arm: Arm | None, robot: RobotInterface) -> Kinematics | None:
    """Return the kinematics of the tool; None for joint set-points. Raises FileNotFoundError or ValueError."""
    if robot.joints:
        return None
    if arm is None:
        raise ValueError(f'{robot.action_space} actions need the robot: give its profile and its URDF')
    return load_kinematics(arm.description(), arm.profile)


@dataclass(frozen=True)
class _Model:
    """The model for which tokens are made."""

    config: ModelConfig
    text: TextTokenizer
    encoder: ImageTokenizer
    kinematics: Kinematics | None  # None: actions are joint set-points


def _nano_model(data: Dataset, image_tokenizer: Path, action_space: str, arm: Arm | None, device: str) -> _Model:
    text = TextTokenizer.load(NANO_FILE)
    encoder = load_image_tokenizer(image_tokenizer, device)
    points = NANO_POINTS if GROUNDING_POINTS in data.features else 0
    base = _with_images(nano.config(text.size, action_space, points), encoder.config)
    _check(data, base)
    kinematics = kinematics_for(arm, base.robot)
    return _Model(configure(data, base, 'min_max', kinematics), text, encoder, kinematics)


def _model_like(
    data: Dataset, folder: Path, image_tokenizer: Path | None, arm: Arm | None, device: str, keep: bool
) -> _Model:
    """Return the model of a checkpoint: its text and image tokenizers, prompts and method of statistics."""
    found = open_folder(folder, image_tokenizer)
    config = found.config
    _check(data, config)
    with torch.device('meta'):
        encoder = ImageTokenizer(config.image_tokenizer)
    checkpoint.load_into(encoder, found.image, torch.device(device), torch.float32, folder)
    kinematics = kinematics_for(arm, config.robot)
    if not keep:
        config = configure(data, config, config.robot.normalization, kinematics)
    return _Model(config, found.text, encoder.eval(), kinematics)


def _check(data: Dataset, config: ModelConfig) -> None:
    """Raise ValueError naming a difference between the data set and the needs of the model."""
    robot = config.robot
    size = robot.dof + robot.gripper
    if robot.state_dim != size:
        raise ValueError(
            f'the model wants a state of {robot.state_dim} numbers, data sets here have joints and gripper'
        )
    if not robot.joints:
        check_actions(robot)
    for name in (STATE, ACTION):
        has = data.features[name].shape if name in data.features else 'missing'
        if has != (size,):
            raise ValueError(f'{data.folder}: {name} is {has}, the model has {(size,)}: it is of another robot')
    if lacking := [image(c) for c in robot.cameras if image(c) not in data.video_keys]:
        raise ValueError(f'{data.folder} has {data.video_keys}, the model needs {lacking[0]}: name its cameras so')
    stride(data, robot)


def _with_images(base: ModelConfig, images: ImageTokenizerConfig) -> ModelConfig:
    """Return the same model with another image tokenizer and its codes in the vocabulary."""
    vocabulary = Vocabulary.small(base.vocabulary.text, 2**images.z_channels, base.vocabulary.bins)
    network = replace(base.network, vocab_size=vocabulary.size)
    return replace(base, image_tokenizer=images, vocabulary=vocabulary, network=network)


def tokenize(
    dataset: Path, image_tokenizer: Path | None, out: Path, *, arm: Arm | None = None, like: Path | None = None,
    keep_statistics: bool = False, action_space: str = 'ee_relative', copies: int = 0, device: str = 'cpu',
    seed: int = 0,
) -> str:  # fmt: skip
    """Write the shards, the configuration and the tokenizers into `out`. Return a line about them.

    image_tokenizer: folder of a trained image tokenizer; with `like` only if that checkpoint lacks it. arm: the robot
    of the data set, for actions of its tool. like: folder of the checkpoint to fine-tune; without it tokens are for
    the nano model with actions of `action_space`, see nano.ACTIONS. keep_statistics: use those of `like`. copies:
    further versions of each frame with other brightness, contrast and colour. Existing shards are kept, so an
    interrupted run continues. Raises FileNotFoundError or ValueError naming the file.
    """
    data = Dataset(dataset)
    if like is not None:
        model = _model_like(data, like, image_tokenizer, arm, device, keep_statistics)
    elif image_tokenizer is not None:
        model = _nano_model(data, image_tokenizer, action_space, arm, device)
    else:
        raise ValueError('tokens need an image tokenizer or a checkpoint: give --image-tokenizer or --like')
    config = model.config
    out.mkdir(parents=True, exist_ok=True)
    _write_model_files(out, model)
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


def frames_used(episode: Episode, dof: int, fps: float) -> int:
    """Return the number of frames to learn from.

    Frames end with the last sub-task where sub-tasks are known, and TAIL after success where that is known, because the
    way back is long and useless. They also end before the arm comes to rest at its initial pose. There the images are
    much the same as at the start, for example of a pressed button: a model that learns to rest there never starts.
    """
    named = [i for i, subtask in enumerate(episode.columns.get(SUBTASK, [])) if subtask]
    length = named[-1] + 1 if named else len(episode)
    done = np.asarray(episode.columns.get(SUCCESS, []), bool)
    if len(done) and done[-1]:
        length = min(length, len(done) - int(done[::-1].argmin() or len(done)) + round(TAIL * fps))
    q = np.asarray(episode.columns[STATE], np.float64)[:, :dof]
    if np.abs(q[length - 1] - q[0]).max() < 2 * BACK:
        away = np.flatnonzero(np.abs(q[:length] - q[length - 1]).max(1) > BACK)
        length = int(away[-1]) + 1 if len(away) else length
    return length


def _shard(data: Dataset, part: list[int], model: _Model, copies: int, rng: np.random.Generator) -> dict[str, Tensor]:
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
        for copy in range(1 + copies):
            codes = [_encode(episode, camera, length, encoder, rng if copy else None) for camera in robot.cameras]
            rows['codes'].append(np.stack(codes, 1))
            rows['state'].append(bins.quantize(state[:length], config.vocabulary.bins))
            rows['action'].append(bins.quantize(action, config.vocabulary.bins))
            rows['points'].append(grounding_points(data, episode, config.robot, config.vocabulary.bins)[:length])
            rows['future'].append(count + np.minimum(ends[:length], length - 1))
            rows['episode'].append(np.full(length, episode.info.index))
            rows['instruction'].append(np.full(length, texts.setdefault(episode.task, len(texts))))
            rows['plan'].append(np.asarray(plans))
            count += length
    ids = [text.encode(t) for t in texts]
    flat = np.concatenate([np.asarray(i, np.int64) for i in ids])
    tensors = {name: torch.from_numpy(np.concatenate(values)) for name, values in rows.items()}
    return tensors | {'text_ids': torch.from_numpy(flat), 'text_ends': torch.tensor([len(i) for i in ids]).cumsum(0)}


def grounding_points(data: Dataset, episode: Episode, robot: RobotInterface | PolicyInfo, count: int) -> np.ndarray:
    """Return the grounding points in the order of the instruction, (T, views, points, 2) int64 in `count` bins.

    NOWHERE: unknown. A point outside the image is at its edge.
    """
    found = np.full((len(episode), len(robot.cameras), robot.points, 2), shards.NOWHERE)
    for t, text in enumerate(episode.columns.get(GROUNDING_POINTS, [])):
        try:
            views = json.loads(text) if text else {}
        except ValueError as error:
            raise ValueError(
                f'{data.folder}: {GROUNDING_POINTS} of {episode.task!r}, frame {t}, is no JSON: {error}'
            ) from None
        for view, camera in enumerate(robot.cameras):
            places = views.get(camera, {})
            for i, name in enumerate(names_in(episode.task, places)[: robot.points]):
                place = squared(places[name], *data.features[image(camera)].shape[:2])
                found[t, view, i] = bins.quantize(2 * place - 1, count)
    return found


def names_in(text: str, names: Iterable[str]) -> list[str]:
    """Return the names that the text contains, in its order."""
    at = {name: text.find(name) for name in names}
    return sorted((name for name in at if at[name] >= 0), key=lambda name: at[name])


@torch.inference_mode()
def _encode(
    episode: Episode, camera: str, length: int, encoder: ImageTokenizer, rng: np.random.Generator | None
) -> np.ndarray:
    """Return the codes of a camera's first frames, (length, tokens) int64. rng: draw another light for all of them."""
    device = next(encoder.parameters()).device
    side = encoder.config.resolution
    gain = rng.uniform(0.8, 1.25) * rng.uniform(0.95, 1.05, 3) if rng is not None else None
    offset = rng.uniform(-12, 12) if rng is not None else 0.0
    codes, batch = [], []
    frames = list(itertools.islice(episode.frames(image(camera)), length))
    for i, frame in enumerate(frames):
        if gain is not None:
            frame = np.clip(frame * gain + offset, 0, 255).astype(np.uint8)
        batch.append(preprocess(frame, side, device))
        if len(batch) == BATCH or i == len(frames) - 1:
            codes.append(encoder.encode(torch.stack(batch)).cpu().numpy())
            batch = []
    return np.concatenate(codes)


def _write_model_files(out: Path, model: _Model) -> None:
    """Write config.json, tokenizers and statistics. Raises ValueError for shards of another model or data set."""
    statistics = model.config.statistics
    if any(out.glob('shard-*')):
        then = shards.read_config(out)
        if then != model.config:
            raise ValueError(f'{out} has shards of other data or for another model: give an empty folder')
    (out / 'config.json').write_text(model.config.to_json())
    model.text.tokenizer.save(str(out / 'tokenizer.json'))
    if statistics is not None:
        statistics.save(out / STATISTICS_FILE)
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.encoder.state_dict().items()}
    save_file(tensors, out / checkpoint.IMAGE_FILE)
