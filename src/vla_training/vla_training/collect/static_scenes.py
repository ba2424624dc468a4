"""Many scenes that are only looked at: what the words of an instruction mean, without a motion.

In an episode the arm soon is where the named thing is, and who learns from episodes alone reads the place off the arm.
Its pose in a glance says nothing: only the pictures and the words tell where the named things are. With answers there
is the chunk that the expert would begin with, too: a thousand episodes are a thousand scenes, which can be known by
heart; of looks with an answer a thousand cost a minute, and each is of another scene.
"""

import multiprocessing
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

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
from vla_model.tokens.text_tokenizer import TextTokenizer
from vla_sim.expert import Expert
from vla_sim.kinematics import IKError
from vla_sim.rendering.cameras import Cameras
from vla_sim.tasks import TASKS, any_instruction
from vla_sim.world import World
from vla_training.collect.scenes import Away, begin_away, check_seeds, places
from vla_training.data import shards
from vla_training.train.tokenize import Arm, action_of, kinematics_for, named

Row = dict[str, np.ndarray]


STEP = 4  # samples of the expert's path per step of a chunk
LONGEST = 12  # samples at the beginning of the path that are left out at most
UNDER_WAY = 0.03  # [rad] from rest, of the joint that has moved most: from here on the arm moves as it mostly does


@dataclass(frozen=True)
class Look:
    """What a glance is."""

    tasks: tuple[str, ...] = TASKS
    sentences: int = 2  # per scene, that ask for different things or say it differently
    away: Away = field(default_factory=Away)  # where the arm is
    answers: bool = False  # the chunk that the expert begins with, for each sentence


class Looker:
    """Makes scenes, and looks at them; one per process."""

    def __init__(self, tokens: Path, arm: Arm, look: Look) -> None:
        torch.set_num_threads(1)
        self.config: ModelConfig = shards.read_config(tokens)
        self.encoder = _encoder(tokens, self.config)
        robot = self.config.robot
        self.expert = answering(arm.profile, robot)
        self.kinematics: Kinematics | None = kinematics_for(arm, robot) if look.answers else None
        self.settings = look
        self.worlds: dict[str, tuple[World, Cameras]] = {}

    def look(self, job: tuple[str, int]) -> tuple[Row, list[str]]:
        """The scene of (task, seed), the arm somewhere: rows that differ in their sentences, and these."""
        task, seed = job
        if task not in self.worlds:
            world = World(task)
            self.worlds[task] = world, world.cameras()
        world, cameras = self.worlds[task]
        world.reset(seed)
        rng = np.random.default_rng([seed, 3])
        away = self.settings.away
        if rng.random() < away.share:
            begin_away(world, self.expert, away, rng)
        robot, vocabulary = self.config.robot, self.config.vocabulary
        pictures = cameras.render(world.snapshot())
        with torch.inference_mode():
            pixels = [preprocess(pictures[c], self.config.image_tokenizer.resolution) for c in robot.cameras]
            codes = self.encoder.encode(torch.stack(pixels)).numpy()
        state = self.config.ranges('state').normalize(np.append(world.joint_positions, world.gripper_opening))
        found = places(world)
        sentences = [any_instruction(world.episode, rng) for _ in range(self.settings.sentences)]
        if away.named:
            sentences[0] = world.instruction  # that of what the arm is over
        each = len(sentences)
        points = np.full((each, len(robot.cameras), robot.points, 2), shards.NOWHERE)
        for row, sentence in zip(points, sentences, strict=True):
            for view, camera in enumerate(robot.cameras):
                height, width = pictures[camera].shape[:2]
                for i, name in enumerate(named(sentence, found[camera])[: robot.points]):
                    share = squared(np.array(found[camera][name]), height, width)
                    row[view, i] = bins.quantize(2 * share - 1, vocabulary.bins)
        action = np.full((each, robot.horizon, robot.action_dim), shards.NOWHERE)
        if self.settings.answers:
            for i, sentence in enumerate(sentences):
                with suppress(IKError):  # where the expert does not reach only the places are known
                    action[i] = self._answer(world, sentence)
        rows = {
            'codes': np.repeat(codes[None], each, 0),
            'state': np.repeat(bins.quantize(state, vocabulary.bins)[None], each, 0),
            'action': action,
            'points': points,
        }
        return rows, sentences

    def _answer(self, world: World, sentence: str) -> np.ndarray:
        """(horizon, action_dim) bins of the expert's answer. Raises IKError."""
        robot, q = self.config.robot, world.joint_positions
        steps = answer(self.expert, world, sentence, robot.horizon)[:, : robot.dof + robot.gripper]
        action = self.config.ranges('action').normalize(action_of(robot, self.kinematics, q, steps))
        return bins.quantize(action.astype(np.float32), self.config.vocabulary.bins)


def answering(profile: RobotProfile, robot: RobotInterface | PolicyInfo) -> Expert:
    """An expert for `answer`."""
    return Expert(profile, robot.dt / STEP, LONGEST + robot.horizon * STEP)


def answer(expert: Expert, world: World, sentence: str, horizon: int) -> np.ndarray:
    """(horizon, dof + 1) set-points [rad] and opening [m] that the expert would begin with. Raises IKError.

    Without the time that the arm needs to get under way: who does not see how fast it goes would learn to begin from
    rest at every look, and creep.
    """
    q = world.joint_positions
    expert.begin(world.task, sentence)
    path = expert.plan(0, q, world.gripper_opening, world.objects()).chunk
    moved = np.abs(path.positions[:LONGEST] - q).max(1) > UNDER_WAY
    begin = int(moved.argmax()) if moved.any() else LONGEST
    chosen = begin + STEP * np.arange(1, horizon + 1) - 1
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
_looker: Looker | None = None


def _start(*settings) -> None:
    global _settings  # noqa: PLW0603, what a worker process keeps from one scene to the next
    _settings = settings


def _look(job: tuple[str, int]) -> tuple[Row, list[str]]:
    global _looker  # noqa: PLW0603
    if _looker is None:  # not in _start, whose exceptions nobody would hear
        _looker = Looker(*_settings)
    return _looker.look(job)


def glances(tokens: Path, arm: Arm, seeds: range, look: Look = Look(), *, processes: int = 1) -> str:
    """Adds `glances-*` to a folder of tokens, a scene of each task per seed; returns a line about them.

    Files that are there are kept, so a run that was cut goes on. Raises ValueError for tokens without points, or seeds
    that are held out for evaluation; FileNotFoundError or ValueError for a damaged folder.
    """
    config = shards.read_config(tokens)
    if not config.robot.points:
        raise ValueError(f'{tokens} has no points, nothing can be learned from a glance: tokenize data that has them')
    check_seeds(seeds)
    text = TextTokenizer.load(tokens / 'tokenizer.json')
    jobs = [(task, seed) for seed in seeds for task in look.tasks]
    room = (shards.MAX_BYTES - 300_000) // shards.bytes_of(config) // look.sentences  # scenes of a file
    parts = [jobs[i : i + room] for i in range(0, len(jobs), room)]
    kind = 'glances' + '-over' * look.away.named + '-answers' * look.answers
    files = [tokens / f'{kind}-{seeds.start:07d}-{i:03d}.safetensors' for i in range(len(parts))]
    with Progress(transient=True) as bar:
        line = bar.add_task('scenes', total=len(jobs))
        # Spawned, not forked: the caller may hold locks, threads and a GL context.
        with multiprocessing.get_context('spawn').Pool(processes, _start, (tokens, arm, look)) as pool:
            for file, part in zip(files, parts, strict=True):
                if not file.exists():
                    _write(file, text, pool.imap(_look, part, chunksize=8), lambda: bar.advance(line))
                else:
                    bar.advance(line, len(part))
    size = sum(file.stat().st_size for file in files)
    return f'{len(jobs)} scenes, {len(jobs) * look.sentences} rows, {size / 1e6:.1f} MB'


def _write(
    file: Path, text: TextTokenizer, looks: Iterable[tuple[Row, list[str]]], advance: Callable[[], None]
) -> None:
    rows: dict[str, list[np.ndarray]] = {name: [] for name in shards.PER_FRAME}
    texts: dict[str, int] = {}
    for scene, (found, sentences) in enumerate(looks):
        for name, values in found.items():
            rows[name].append(values)
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
