"""Makes static-scene samples: images and instructions of many scenes, without a motion.

In an episode the arm soon is where the named object is. A model that learns from episodes alone reads the place off the
arm. In a static scene the arm's pose is independent of the instruction, so only images and words show the objects.

A sample can have the expert's action label: the chunk with which the expert would start. A thousand episodes show a
thousand scenes, which a model can memorise. A thousand labelled samples show a thousand scenes, too, and take a minute.
"""

import multiprocessing
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.progress import Progress
from safetensors import SafetensorError
from safetensors.torch import load_file

from vla_core.kinematics.ik import Kinematics
from vla_core.profile import RobotProfile
from vla_model.checkpoints import checkpoint
from vla_model.config import ModelConfig, RobotInterface
from vla_model.image_tokenizer import ImageTokenizer, preprocess
from vla_model.observation import squared
from vla_model.policy import PolicyInfo
from vla_model.tokens import bins
from vla_model.tokens.depth_tokenizer import load_depth_tokenizer
from vla_model.tokens.text_tokenizer import TextTokenizer
from vla_model.types import Chunk
from vla_sim.expert import Expert
from vla_sim.kinematics import IKError
from vla_sim.rendering.cameras import Cameras
from vla_sim.tasks import TASKS, any_instruction, vague_instructions
from vla_sim.world import World
from vla_training.collect.scenes import StartPose, check_seeds, object_pixels, pixel, randomise_start
from vla_training.data import shards, traces
from vla_training.data.features import sample_depth
from vla_training.train import labels
from vla_training.train.chunks import action_of
from vla_training.train.labels import names_in
from vla_training.train.target_model import Arm, kinematics_for

STEP = 4  # samples of the expert's path per step of a chunk
LONGEST = 12  # most samples that are left out at the start of the path
WAY = 8.0  # [s] of the expert's path in which a trace must end
MOVING = 0.03  # [rad] of the joint that has moved most: from here on the arm has left its rest


@dataclass(frozen=True)
class SceneSettings:
    """Settings of static-scene samples."""

    tasks: tuple[str, ...] = TASKS
    sentences: int = 2  # per scene; they ask for different objects or use different words
    start: StartPose = field(default_factory=StartPose)
    label_actions: bool = False  # store the chunk with which the expert would start, for each sentence


class SceneSample(NamedTuple):
    """One scene with n sentences about it."""

    rows: dict[str, np.ndarray]  # tensors of a shard, each (n, ...)
    sentences: list[str]  # (n,)
    vague: list[tuple[str, ...]]  # (n,) the same sentences without the names of objects


class SceneSampler:
    """Makes the static-scene samples of one process."""

    def __init__(self, tokens: Path, arm: Arm, settings: SceneSettings) -> None:
        torch.set_num_threads(1)
        self.config: ModelConfig = shards.read_config(tokens)
        self.encoder = _encoder(tokens, self.config)
        robot = self.config.robot
        self.depth = load_depth_tokenizer(tokens) if self.config.vocabulary.depth else None
        self.expert = labelling_expert(arm.profile, robot, way=bool(robot.trace or self.config.steering))
        self.kinematics: Kinematics | None = kinematics_for(arm, robot) if settings.label_actions else None
        self.settings = settings
        self.worlds: dict[str, tuple[World, Cameras]] = {}

    def sample(self, job: tuple[str, int]) -> SceneSample:
        """Return the sample of (task, seed), with the arm at a random pose. Its rows differ in their sentences."""
        task, seed = job
        if task not in self.worlds:
            world = World(task)
            self.worlds[task] = world, world.cameras()
        world, cameras = self.worlds[task]
        world.reset(seed)
        rng = np.random.default_rng([seed, 3])
        start = self.settings.start
        if rng.random() < start.share:
            randomise_start(world, self.expert, start, rng)
        robot, vocabulary = self.config.robot, self.config.vocabulary
        pictures = cameras.render(world.snapshot())
        with torch.inference_mode():
            pixels = [preprocess(pictures[c], self.config.image_tokenizer.resolution) for c in robot.cameras]
            codes = self.encoder.encode(torch.stack(pixels)).numpy()
        state = self.config.ranges('state').normalize(np.append(world.joint_positions, world.gripper_opening))
        found = object_pixels(world)
        sentences = [any_instruction(world.episode, rng) for _ in range(self.settings.sentences)]
        if start.instructed:
            sentences[0] = world.instruction  # that of the object below the arm
        each = len(sentences)
        points = np.full((each, len(robot.cameras), robot.points, 2), shards.NOWHERE)
        for row, sentence in zip(points, sentences, strict=True):
            for view, camera in enumerate(robot.cameras):
                height, width = pictures[camera].shape[:2]
                for i, name in enumerate(names_in(sentence, found[camera])[: robot.points]):
                    share = squared(np.array(found[camera][name]), height, width)
                    row[view, i] = bins.quantize(2 * share - 1, vocabulary.bins)
        action = np.full((each, robot.horizon, robot.action_dim), shards.NOWHERE)
        more: dict[str, np.ndarray] = {'exact': action.copy()}
        ways = np.full((each, shards.LINE, 2), shards.NOWHERE)
        if self.settings.label_actions:
            for i, sentence in enumerate(sentences):
                with suppress(IKError):  # out of the expert's reach: the row has grounding points alone
                    label = self._label(world, sentence)
                    action[i], more['exact'][i] = label.bins, label.exact
                    if label.way is not None:
                        ways[i] = bins.quantize(2 * label.way - 1, vocabulary.bins)
        if robot.trace or self.config.steering:
            more |= {'trace': ways, 'vague': np.full(each, -1)}
        if self.config.steering:
            more |= self._lines(pictures[robot.cameras[0]], ways, rng)
        if self.depth is not None:
            metres = sample_depth(cameras.depth(world.snapshot(), robot.cameras[0]))
            more['depth'] = np.repeat(np.asarray(self.depth.encode(metres[None])), each, 0)
        rows = {
            'codes': np.repeat(codes[None], each, 0),
            'state': np.repeat(bins.quantize(state, vocabulary.bins)[None], each, 0),
            'action': action,
            'points': points,
        }
        return SceneSample(rows | more, sentences, [vague_instructions(s) for s in sentences])

    def _label(self, world: World, sentence: str) -> 'Label':
        """Return the expert's action label. Raises IKError."""
        robot, q, count = self.config.robot, world.joint_positions, self.config.vocabulary.bins
        path = first_path(self.expert, world, sentence)
        steps = label_actions(path, q, robot.horizon)[:, : robot.dof + robot.gripper]
        action = self.config.ranges('action').normalize(action_of(robot, self.kinematics, q, steps)).astype(np.float32)
        way = None
        if robot.trace or self.config.steering:
            end = traces.ends(path.gripper, path.dt)[0]
            places = [self.expert.kinematics.forward(p)[0] for p in (q, *path.positions[: end + 1 : STEP])]
            side = world.camera_info(robot.cameras[0])
            pixels = np.array([pixel(world, robot.cameras[0], place) for place in places])
            way = traces.line(squared(pixels, side.height, side.width))
        return Label(bins.quantize(action, count), labels.exact(action), way)

    @torch.inference_mode()
    def _lines(self, picture: np.ndarray, ways: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return `drawn` and `lined` of a shard for traces (n, LINE, 2) [bins] on the first view."""
        count = self.config.vocabulary.bins
        drawn = labels.drawn(ways, count, rng)
        lined = np.full((len(ways), self.config.image_tokenizer.tokens), shards.NOWHERE)
        for i in np.flatnonzero(drawn[:, 0, 0] != shards.NOWHERE):
            shown = preprocess(labels.with_line(picture, drawn[i], count), self.config.image_tokenizer.resolution)
            lined[i] = self.encoder.encode(shown[None])[0].numpy()
        return {'drawn': drawn, 'lined': lined}


class Label(NamedTuple):
    """The chunk with which the expert would start, and its way in the first view."""

    bins: np.ndarray  # (horizon, action_dim)
    exact: np.ndarray  # (horizon, action_dim), as in a shard
    way: np.ndarray | None  # (LINE, 2) in shares of the view; None: not asked for, or hardly a way


def labelling_expert(profile: RobotProfile, robot: RobotInterface | PolicyInfo, way: bool = False) -> Expert:
    """Return an expert whose paths are fine and long enough for `label_actions`. way: also for a trace."""
    longest = LONGEST + robot.horizon * STEP
    return Expert(profile, robot.dt / STEP, max(longest, round(WAY * STEP / robot.dt)) if way else longest)


def first_path(expert: Expert, world: World, sentence: str) -> Chunk:
    """Return the path with which the expert would start on an instruction. Raises IKError."""
    expert.begin(world.task, sentence)
    return expert.plan(0, world.joint_positions, world.gripper_opening, world.objects()).chunk


def label_actions(path: Chunk, q: np.ndarray, horizon: int) -> np.ndarray:
    """Return the first set-points [rad] and opening [m] of a path from q (dof,), (horizon, dof + 1).

    The label leaves out the time in which the arm accelerates from rest. A model sees no velocities: it would learn to
    start from rest in every chunk, and creep.
    """
    moved = np.abs(path.positions[:LONGEST] - q).max(1) > MOVING
    first = int(moved.argmax()) if moved.any() else LONGEST
    chosen = first + STEP * np.arange(1, horizon + 1) - 1
    return np.column_stack([path.positions[chosen], path.gripper[chosen]])


def _encoder(tokens: Path, config: ModelConfig) -> ImageTokenizer:
    file = tokens / checkpoint.IMAGE_FILE
    encoder = ImageTokenizer(config.image_tokenizer)
    try:
        encoder.load_state_dict(load_file(file))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f'{file} is not the image tokenizer of config.json ({error}): tokenize again') from None
    return encoder.eval()


_settings: tuple = ()
_sampler: SceneSampler | None = None


def _start(*settings) -> None:
    global _settings  # noqa: PLW0603, a worker process keeps its sampler from one scene to the next
    _settings = settings


def _sample(job: tuple[str, int]) -> SceneSample:
    global _sampler  # noqa: PLW0603
    if _sampler is None:  # not in _start: a pool loses the exceptions of it
        _sampler = SceneSampler(*_settings)
    return _sampler.sample(job)


def write_static_scenes(
    tokens: Path, arm: Arm, seeds: range, settings: SceneSettings = SceneSettings(), *, processes: int = 1
) -> str:
    """Add static-scene samples to a folder of tokens, a scene of each task per seed. Return a line about them.

    Existing files are kept, so an interrupted run continues. Raises ValueError for tokens without grounding points and
    for seeds that are held out, FileNotFoundError or ValueError for a damaged folder.
    """
    config = shards.read_config(tokens)
    if not config.robot.points:
        raise ValueError(
            f'{tokens} has no grounding points, so static scenes teach nothing: tokenize a data set that has them'
        )
    check_seeds(seeds)
    text = TextTokenizer.load(tokens / 'tokenizer.json')
    jobs = [(task, seed) for seed in seeds for task in settings.tasks]
    room = (shards.MAX_BYTES - 300_000) // shards.bytes_of(config) // settings.sentences  # scenes of a file
    parts = [jobs[i : i + room] for i in range(0, len(jobs), room)]
    near, labelled = settings.start.instructed, settings.label_actions
    files = [shards.static_path(tokens, seeds.start, i, near=near, labelled=labelled) for i in range(len(parts))]
    with Progress(transient=True) as bar:
        line = bar.add_task('scenes', total=len(jobs))
        # Spawned, not forked: the caller may hold locks, threads and a GL context.
        with multiprocessing.get_context('spawn').Pool(processes, _start, (tokens, arm, settings)) as pool:
            for file, part in zip(files, parts, strict=True):
                if not file.exists():
                    _write(file, text, pool.imap(_sample, part, chunksize=8), lambda: bar.advance(line))
                else:
                    bar.advance(line, len(part))
    size = sum(file.stat().st_size for file in files)
    return f'{len(jobs)} scenes, {len(jobs) * settings.sentences} rows, {size / 1e6:.1f} MB'


def _write(file: Path, text: TextTokenizer, samples: Iterable[SceneSample], advance: Callable[[], None]) -> None:
    rows: dict[str, list[np.ndarray]] = {name: [] for name in shards.PER_FRAME}
    texts: dict[str, int] = {}
    for scene, (found, sentences, vague) in enumerate(samples):
        for name, values in found.items():
            rows.setdefault(name, []).append(values)
        if 'vague' in found:
            some = [v[scene % len(v)] if v else '' for v in vague]
            rows['vague'][-1] = np.array([texts.setdefault(s, len(texts)) if s else -1 for s in some])
        rows['episode'].append(np.full(len(sentences), scene))
        rows['instruction'].append(np.array([texts.setdefault(s, len(texts)) for s in sentences]))
        rows['plan'].append(np.full(len(sentences), -1))
        advance()
    tensors = {name: torch.from_numpy(np.concatenate(values)) for name, values in rows.items() if values}
    tensors['future'] = torch.arange(len(tensors['codes']))
    ids = [text.encode(t) for t in texts]
    tensors['text_ids'] = torch.from_numpy(np.concatenate([np.asarray(i, np.int64) for i in ids]))
    tensors['text_ends'] = torch.tensor([len(i) for i in ids]).cumsum(0)
    shards.write_shard(file, tensors)
