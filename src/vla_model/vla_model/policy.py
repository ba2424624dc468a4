"""The policy: an observation in, a chunk of set-points out."""

import os
from pathlib import Path

import numpy as np
import torch

from . import bins, checkpoint, decode, nano
from .config import ModelConfig
from .engine import DTYPES, Act, Engine, make
from .engine import check as check_engine
from .image_tokenizer import ImageTokenizer, preprocess
from .network import Network
from .prompt import PromptBuilder
from .text_tokenizer import NANO_FILE, TextTokenizer
from .types import Chunk, Observation

MIN_SIDE, MAX_SIDE = 32, 8192  # [px]


class Policy:
    """One model on one device. Not thread-safe: one worker owns it."""

    def __init__(
        self, config: ModelConfig, text: TextTokenizer, network: Network, image_tokenizer: ImageTokenizer, model_id: str
    ):
        robot = config.robot
        self.config, self.text, self.model_id = config, text, model_id
        self.network, self.image_tokenizer = network.eval(), image_tokenizer.eval()
        self.device = next(network.parameters()).device
        self.engine = Engine(self.network, self.image_tokenizer)
        self.state_ranges, self.action_ranges = robot.state_ranges, robot.action_ranges
        self.prompts = PromptBuilder(
            text,
            config.vocabulary,
            len(robot.cameras),
            config.image_tokenizer.tokens,
            robot.dim,
            robot.dim,
            robot.horizon,
            robot.max_prompt_tokens,
            self.device,
        )

    @torch.inference_mode()
    def act(self, observation: Observation, prefix: Chunk | None = None) -> Chunk:
        """The chunk that follows `observation`.

        prefix: the d < horizon first steps, on the same time grid (step i due at t_ref + (i + 1) dt), that the robot
        will execute anyway. They condition the rest and come back as they are, with confidence 1 and frozen = d.
        (The network sees them rounded to bins and clipped to the action range.)
        Raises ValueError naming what is wrong with the observation or the prefix.
        """
        robot, vocabulary = self.config.robot, self.config.vocabulary
        self._check(observation)
        template = self.prompts.action(observation.instruction)
        origin = np.zeros(robot.dim)  # what actions are relative to: the joints; the opening is absolute
        origin[: robot.dof] = observation.positions

        given, action_ids = 0, None
        if prefix is not None and len(prefix.positions):
            steps = self._steps(prefix)
            given = len(steps)
            action_ids = self._bin_ids(self.action_ranges.normalize(steps - origin).astype(np.float32)).flatten()
        ids = template.fill(self._bin_ids(self._state(observation)), self._view_ids(observation), action_ids)
        indices, probability = decode.run(
            decode.action(self.engine, vocabulary, ids, template.block, given * robot.dim)
        )

        shape = (robot.horizon, robot.dim)
        values = bins.dequantize(indices.cpu().numpy().reshape(shape), vocabulary.bins)
        actions = self.action_ranges.denormalize(values) + origin
        if given:
            actions[:given] = steps
        return Chunk(
            positions=actions[:, : robot.dof],
            gripper=actions[:, robot.dof] if robot.gripper else np.zeros(0),
            dt=robot.dt,
            frozen=given,
            confidence=probability.cpu().numpy().reshape(shape).mean(1),
        )

    def warm_up(self, runs: int = 2) -> None:
        """Runs `act` on a grey scene, so that the first real observation finds everything allocated."""
        robot = self.config.robot
        side = self.config.image_tokenizer.resolution
        middle = self.state_ranges.denormalize(np.zeros(robot.dim))
        observation = Observation(
            t_ref=0,
            images={camera: np.full((side, side, 3), 128, np.uint8) for camera in robot.cameras},
            positions=middle[: robot.dof],
            velocities=np.zeros(robot.dof),
            gripper=float(middle[-1]) if robot.gripper else 0.0,
            instruction='warm up',
        )
        for _ in range(runs):
            self.act(observation)

    def use(self, name: str, image_dtype: str = 'float32') -> None:
        """Makes `act` run on the engine of this name, see `engine.make`. May export, check and measure."""
        prompts = self.prompts
        asked = Act.of(prompts.action('put it there'), self.config.vocabulary, prompts.max_tokens)
        self.engine = make(name, self.network, self.image_tokenizer, asked, self.model_id, DTYPES[image_dtype])

    def _check(self, observation: Observation) -> None:
        robot = self.config.robot
        for camera in robot.cameras:
            image = observation.images.get(camera)
            if image is None:
                raise ValueError(
                    f'camera {camera!r} is missing: the model needs {list(robot.cameras)}, '
                    f'got {sorted(observation.images)}'
                )
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise ValueError(
                    f'image of camera {camera!r} must be (height, width, 3) uint8 RGB, got {image.shape} {image.dtype}'
                )
            if not (min(image.shape[:2]) >= MIN_SIDE and max(image.shape[:2]) <= MAX_SIDE):
                raise ValueError(
                    f'image of camera {camera!r} is {image.shape[1]} x {image.shape[0]} px: '
                    f'sides must be {MIN_SIDE} to {MAX_SIDE} px'
                )
        if np.shape(observation.positions) != (robot.dof,):
            raise ValueError(
                f'the model needs {robot.dof} joint positions, got shape {np.shape(observation.positions)}'
            )

    def _state(self, observation: Observation) -> np.ndarray:
        """(dim,) float64 normalised state. ValueError if it is not finite or cannot be in the model's units."""
        robot = self.config.robot
        state = np.append(observation.positions, observation.gripper)[: robot.dim].astype(np.float64)
        normalized = self.state_ranges.normalize(state)
        for i, (value, n) in enumerate(zip(state, normalized, strict=True)):
            name = f'position of joint {i + 1}' if i < robot.dof else 'gripper opening'
            if not np.isfinite(value):
                raise ValueError(f'the {name} is not finite: {value}')
            if abs(n) > 2:  # beyond sensor noise and limits of another arm: wrong units or wrong joint order
                raise ValueError(
                    f'the {name} is {value:g}, far outside the range of the model '
                    f'[{self.state_ranges.low[i]:g}, {self.state_ranges.high[i]:g}]: check its unit and the joint order'
                )
        return normalized

    def _steps(self, prefix: Chunk) -> np.ndarray:
        """(d, dim) set-points of a prefix, robot units."""
        robot = self.config.robot
        d = len(prefix.positions)
        if prefix.positions.shape != (d, robot.dof) or d >= robot.horizon:
            raise ValueError(
                f'prefix positions must be (d, {robot.dof}) with d < {robot.horizon}, got {prefix.positions.shape}'
            )
        if abs(prefix.dt - robot.dt) > 1e-9:
            raise ValueError(f'prefix.dt is {prefix.dt} s, the model works with {robot.dt} s: resample the prefix')
        if robot.gripper and prefix.gripper.shape != (d,):
            raise ValueError(f'prefix.gripper must have {d} openings, one per step, got shape {prefix.gripper.shape}')
        columns = [prefix.positions, prefix.gripper[:, None]] if robot.gripper else [prefix.positions]
        steps = np.concatenate(columns, 1).astype(np.float64)
        if not np.isfinite(steps).all():
            raise ValueError('the prefix has numbers that are not finite')
        return steps

    def _bin_ids(self, normalized: np.ndarray) -> torch.Tensor:
        """Ids, same shape, of numbers in [-1, 1]."""
        vocabulary = self.config.vocabulary
        indices = bins.quantize(normalized, vocabulary.bins) + vocabulary.bins_offset
        return torch.from_numpy(indices).to(self.device)

    def _view_ids(self, observation: Observation) -> torch.Tensor:
        """Ids (views, tokens) of the images, in prompt order."""
        side = self.config.image_tokenizer.resolution
        pixels = torch.stack([preprocess(observation.images[c], side) for c in self.config.robot.cameras])
        return self.engine.encode(pixels.to(self.device)) + self.config.vocabulary.image_offset


def load(
    path_or_name: str | Path,
    device: str = 'cpu',
    dtype: str = 'auto',
    threads: int = 0,
    seed: int = 0,
    engine: str = 'eager',
    image_dtype: str = 'float32',
) -> Policy:
    """A policy, from a checkpoint folder or by name.

    'random-nano' is the nano configuration with random weights from `seed`: real computation, meaningless actions
    (config.trained is False). dtype is the network's precision; 'auto' is bfloat16 on a GPU and float32 on a CPU.
    image_dtype is that of the image encoder. threads: CPU threads of torch in this process, 0 is all cores but one.
    engine: what runs the network, one of `engine.NAMES`; 'auto' is the fastest one here that is close to 'eager'.
    Raises FileNotFoundError or ValueError naming the file, tensor or field, and the remedy.
    """
    target = _device(device)
    if dtype != 'auto' and dtype not in DTYPES:
        raise ValueError(f"dtype must be 'auto' or one of {list(DTYPES)}, got {dtype!r}")
    precision = dtype if dtype != 'auto' else 'bfloat16' if target.type == 'cuda' else 'float32'
    check_engine(engine, target.type, precision, image_dtype)
    if threads < 0:
        raise ValueError(f'threads must be 0 or more, got {threads}')
    # A core stays free by default: where threads outnumber free cores they spin on each other, 10 times slower.
    torch.set_num_threads(threads or max(1, len(os.sched_getaffinity(0)) - 1))
    if str(path_or_name) == 'random-nano':
        policy = _random_nano(seed, target, DTYPES[precision])
    else:
        policy = _from_folder(Path(path_or_name), target, DTYPES[precision])
    policy.use(engine, image_dtype)
    return policy


def _from_folder(folder: Path, device: torch.device, dtype: torch.dtype) -> Policy:
    checkpoint.check_folder(folder)
    config = ModelConfig.load(folder / 'config.json')
    text = TextTokenizer.load(folder / 'tokenizer.json')
    if text.size != config.vocabulary.text:
        raise ValueError(
            f'{folder / "tokenizer.json"} has {text.size} tokens, config.json says {config.vocabulary.text}: '
            f'they are of different models'
        )
    with torch.device('meta'):
        network, image_tokenizer = Network(config.network), ImageTokenizer(config.image_tokenizer)
    tensors = checkpoint.read_tensors(folder, device)
    network_tensors, image_tensors = checkpoint.split(tensors)
    checkpoint.assign(network, network_tensors, folder)
    checkpoint.assign(image_tokenizer, image_tensors, folder)
    model_id = f'{config.name}-{checkpoint.content_hash(config, tensors)}'
    return Policy(config, text, network.to(dtype), image_tokenizer.float(), model_id)


def save(policy: Policy, folder: str | Path) -> None:
    """Writes the policy as a checkpoint folder that `load` reads."""
    network, image = policy.network.state_dict(), policy.image_tokenizer.state_dict()
    checkpoint.write(Path(folder), policy.config, policy.text, network, image)


def _random_nano(seed: int, device: torch.device, dtype: torch.dtype) -> Policy:
    text = TextTokenizer.load(NANO_FILE)
    config = nano.config(text.size)
    network, image_tokenizer = Network(config.network), ImageTokenizer(config.image_tokenizer)
    nano.init_weights(network, seed)
    nano.init_weights(image_tokenizer, seed)
    model_id = f'{config.name}-{checkpoint.content_hash(config, network.state_dict() | image_tokenizer.state_dict())}'
    return Policy(config, text, network.to(device, dtype), image_tokenizer.to(device), model_id)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be 'cpu' or 'cuda', got {name!r}") from None
    if device.type not in ('cpu', 'cuda'):
        raise ValueError(f"device must be 'cpu' or 'cuda', got {name!r}")
    if device.type == 'cuda' and not torch.cuda.is_available():
        raise ValueError(f"device is {name!r}, but torch finds no usable GPU: use 'cpu', or mend the GPU driver")
    return device
