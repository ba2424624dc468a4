"""The model for which tokens are made: its configuration, tokenizers and kinematics."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from vla_core.kinematics.arm import load_kinematics
from vla_core.kinematics.ik import Kinematics
from vla_core.profile import RobotProfile
from vla_model.checkpoints import checkpoint, nano
from vla_model.config import ImageTokenizerConfig, ModelConfig, RobotInterface
from vla_model.families.folder import open_folder
from vla_model.image_tokenizer import ImageTokenizer
from vla_model.statistics import FILE as STATISTICS_FILE
from vla_model.statistics import Statistics
from vla_model.tokens.depth_tokenizer import DepthTokenizer, load_depth_tokenizer, save_depth_tokenizer
from vla_model.tokens.text_tokenizer import NANO_FILE, TextTokenizer
from vla_model.tokens.vocabulary import Vocabulary
from vla_policy_node.policy.end_effector import check_actions
from vla_training.data import shards
from vla_training.data.features import ACTION, GROUNDING_POINTS, STATE, image
from vla_training.image_tokenizer.state import load_image_tokenizer
from vla_training.lerobot import Dataset
from vla_training.train.chunks import actions_of, frames_used, stride

NANO_POINTS = 2  # grounding points of a new model, where the data set has them
TRACE = 5  # points of a predicted trace
DEPTH_KINDS = 128  # depth codes
OUTPUTS = ('trace', 'steering', 'world', 'depth')  # that can be added to a model


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
class TargetModel:
    """The model for which tokens are made."""

    config: ModelConfig
    text: TextTokenizer
    encoder: ImageTokenizer
    kinematics: Kinematics | None  # None: actions are joint set-points
    depth: DepthTokenizer | None = None  # None: no depth codes


def nano_model(data: Dataset, image_tokenizer: Path, action_space: str, arm: Arm | None, device: str) -> TargetModel:
    text = TextTokenizer.load(NANO_FILE)
    encoder = load_image_tokenizer(image_tokenizer, device)
    points = NANO_POINTS if GROUNDING_POINTS in data.features else 0
    base = _with_images(nano.config(text.size, action_space, points), encoder.config)
    _check(data, base)
    kinematics = kinematics_for(arm, base.robot)
    return TargetModel(configure(data, base, 'min_max', kinematics), text, encoder, kinematics)


def model_like(
    data: Dataset, folder: Path, image_tokenizer: Path | None, arm: Arm | None, device: str, keep: bool
) -> TargetModel:
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
    return TargetModel(config, found.text, encoder.eval(), kinematics)


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


def extended(config: ModelConfig, outputs: Collection[str]) -> ModelConfig:
    """Return a configuration with further outputs and inputs, of OUTPUTS. Raises ValueError naming an unknown one."""
    if unknown := sorted(set(outputs) - set(OUTPUTS)):
        raise ValueError(f'{unknown[0]!r} is no output that can be added to a model; known are: {", ".join(OUTPUTS)}')
    v = config.vocabulary
    if 'depth' in outputs and not v.depth:
        v = replace(v, size=v.size + DEPTH_KINDS, depth=DEPTH_KINDS)
    trace = TRACE if 'trace' in outputs else config.robot.trace
    return replace(
        config,
        vocabulary=v,
        network=replace(config.network, vocab_size=v.size),
        robot=replace(config.robot, trace=trace),
        world=config.world or 'world' in outputs,
        steering='tokens' if 'steering' in outputs and not config.steering else config.steering,
    )


def with_outputs(model: TargetModel, outputs: Collection[str], depth_tokenizer: Path | None) -> TargetModel:
    """Return the model with further outputs; see `extended`. depth_tokenizer: its folder, needed for depth.

    Raises FileNotFoundError or ValueError naming what is missing.
    """
    config = extended(model.config, outputs)
    depth = None
    if config.vocabulary.depth:
        if depth_tokenizer is None:
            raise ValueError('depth needs a depth tokenizer: give --depth-tokenizer, made with ./vla train depth')
        depth = load_depth_tokenizer(depth_tokenizer)
    return replace(model, config=config, depth=depth)


def _with_images(base: ModelConfig, images: ImageTokenizerConfig) -> ModelConfig:
    """Return the same model with another image tokenizer and its codes in the vocabulary."""
    vocabulary = Vocabulary.small(base.vocabulary.text, 2**images.z_channels, base.vocabulary.bins)
    network = replace(base.network, vocab_size=vocabulary.size)
    return replace(base, image_tokenizer=images, vocabulary=vocabulary, network=network)


def write_model_files(out: Path, model: TargetModel) -> None:
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
    if model.depth is not None:
        save_depth_tokenizer(model.depth, out / checkpoint.DEPTH_FILE)
