"""The policy: an observation in, a chunk of set-points out."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import bins, checkpoint, decode, memory, nano
from .choice import choose
from .config import ModelConfig
from .engine import Act, Engine, make
from .engine import check as check_engine
from .folder import Opened, open_folder
from .image_engine import DTYPES
from .image_tokenizer import ImageTokenizer, preprocess, to_image, upload
from .network import KeyValues, Network
from .observation import check_image, check_state, prefix_steps, state_of
from .prompt import PromptBuilder, Template
from .quantized import plain_layers, put_layers
from .shipped import RANDOM, model_path
from .subject import set_threads, trial_subject
from .text_tokenizer import NANO_FILE, TextTokenizer
from .types import Chunk, Observation, Plan, PredictedImage

_log = logging.getLogger(__name__)
ESTIMATES = ('median', 'mode')


@dataclass
class Kept:
    """The prompt of the newest act, and the keys and values of it and of those before."""

    template: Template
    ids: Tensor  # (1, T)
    cache: KeyValues
    age: int  # acts since the last full forward


class Policy:
    """One model on one device. Not thread-safe: one worker owns it.

    `act` is for every cycle. `start_plan` and `start_imagine` return jobs, whose steps fit between two calls of `act`.
    """

    def __init__(
        self, config: ModelConfig, text: TextTokenizer, network: Network, image_tokenizer: ImageTokenizer, model_id: str
    ):
        robot = config.robot
        self.config, self.text, self.model_id = config, text, model_id
        self.network, self.image_tokenizer = network.eval(), image_tokenizer.eval()
        self.device = next(network.parameters()).device
        self.engine = Engine(self.network, self.image_tokenizer)
        self.act_steps = 1  # forwards per chunk: more are slower; what they gain depends on the training
        self.estimate = 'median'  # of a set-point, one of ESTIMATES; the gripper's and places are always the mode
        self.reuse = 1  # acts per full forward: above 1, what did not change in between is not computed again
        self._kept: Kept | None = None
        self.state_ranges, self.action_ranges = config.ranges('state'), config.ranges('action')
        self._frames: dict[str, tuple[np.ndarray, Tensor]] = {}  # camera -> its newest image and the ids of it
        self.prompts = PromptBuilder(
            text,
            config.vocabulary,
            len(robot.cameras),
            config.image_tokenizer.tokens,
            robot.state_dim,
            robot.action_dim,
            robot.horizon,
            robot.max_prompt_tokens,
            self.device,
            robot.points,
        )
        # Each token is chosen by itself: where there are two ways to go on, the most probable ones of a chunk jump from
        # one to the other. Medians stay on one side, and are what errors are smallest with.
        self._medians = torch.zeros(robot.block_tokens, dtype=torch.bool)
        self._medians[: robot.chunk_tokens].view(robot.horizon, robot.action_dim)[
            :, : robot.action_dim - robot.gripper
        ] = True
        self._medians = self._medians.to(self.device)
        # (views, points, 2) of the newest chunk: where the things are that the instruction names, in its order. x and y
        # in shares of the view, which bars have made square.
        self.pointed = np.zeros((len(robot.cameras), 0, 2))

    def prepare(self, instruction: str) -> None:
        """Makes `act` faster for instructions as long as this one. May take half a second, the first time.

        Raises ValueError on an empty or too long instruction.
        """
        self.engine.prepare(len(self.prompts.action(instruction).ids))

    def act(self, observation: Observation, prefix: Chunk | None = None) -> Chunk:
        """The chunk that follows `observation`.

        prefix: the d < horizon first steps, on the same time grid (step i due at t_ref + (i + 1) dt), that the robot
        will execute anyway. They condition the rest and come back as they are, with confidence 1 and frozen = d.
        (The network sees them rounded to bins and clipped to the action range.)
        Raises ValueError naming what is wrong with the observation or the prefix.
        """
        robot = self.config.robot
        if not robot.joints:
            raise ValueError(f'actions of this model are {robot.action_space}, no joint set-points: see Policy.actions')
        state = state_of(robot, observation)
        origin = np.zeros(robot.action_dim)  # what actions are relative to; the opening is absolute
        if robot.action_space == 'joint_delta':
            origin[: robot.dof] = observation.positions
        steps = prefix_steps(robot, prefix) if prefix is not None and len(prefix.positions) else None
        given = None if steps is None else steps - origin
        values, probability = self.actions(observation.images, state, observation.instruction, given)
        actions = values + origin
        if steps is not None:
            actions[: len(steps)] = steps
        return Chunk(
            positions=actions[:, : robot.dof],
            gripper=actions[:, robot.dof] if robot.gripper else np.zeros(0),
            dt=robot.dt,
            frozen=0 if steps is None else len(steps),
            confidence=probability.mean(1),
        )

    @torch.inference_mode()
    def actions(
        self, images: dict[str, np.ndarray], state: np.ndarray, instruction: str, given: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """((horizon, action_dim) float64 in robot units, (horizon, action_dim) probability of each), as the model says.

        state (state_dim,) and the first steps `given` (d, action_dim) are in robot units, too. Raises ValueError
        naming what is wrong with images, state or instruction.
        """
        robot, vocabulary = self.config.robot, self.config.vocabulary
        template = self.prompts.action(instruction)
        first = None
        if given is not None:
            first = self._bin_ids(self.action_ranges.normalize(given).astype(np.float32)).flatten()
        ids = template.fill(self._state_ids(state), self._view_ids(images), first)
        indices, probability = decode.run(
            decode.action(
                self.engine,
                vocabulary,
                ids,
                template.block,
                0 if first is None else len(first),
                self.act_steps,
                median=self._medians if self.estimate == 'median' else None,
                kept=self._reused(template, ids) if self.reuse > 1 else None,
            )
        )
        # The one time in a cycle that the host waits. A bin is exact in float32.
        bin_and_probability = torch.stack((indices.float(), probability.float())).cpu().numpy()
        n = robot.chunk_tokens
        both = bin_and_probability[:, :n].reshape(2, robot.horizon, robot.action_dim)
        places = bins.dequantize(bin_and_probability[0, n:].astype(np.int64), vocabulary.bins)
        self.pointed = (places.reshape(len(robot.cameras), robot.points, 2) + 1) / 2
        values = bins.dequantize(both[0].astype(np.int64), vocabulary.bins)
        return self.action_ranges.denormalize(values), both[1]

    def start_plan(
        self, observation: Observation, length: int = 256, steps: int = 64, threshold: float | None = None,
        cached: bool = False,
    ) -> decode.Job[Plan]:  # fmt: skip
        """A job that writes at most `length` tokens in at most `steps` forwards; see `decode.text`.

        Raises ValueError naming what is wrong with the observation.
        """
        template = self.prompts.plan(observation.instruction, length)
        return decode.Job(
            self._plan(observation.t_ref, template, self._fill(template, observation), steps, threshold, cached)
        )

    def _plan(
        self, t_ref: int, template: Template, ids: Tensor, steps: int, threshold: float | None, cached: bool
    ) -> decode.Steps[Plan]:
        v = self.config.vocabulary
        tokens, probability = yield from decode.text(
            self.engine, v, ids, template.block, steps, threshold, cached=cached, fixed=self.engine.fixed_shapes
        )
        words = [i for i in tokens.tolist() if i < v.text and i not in (v.eos, v.mask)]
        return Plan(t_ref, self.text.decode(words), float(probability.mean()))

    def start_imagine(
        self, observation: Observation, steps: int = 18, guidance: float = 0.0, cached: bool = False
    ) -> decode.Job[PredictedImage]:
        """A job that predicts the first camera's image at the end of the chunk in `steps` forwards; see `decode.image`.

        guidance: 0, or how much more the instruction counts than without. Raises ValueError naming what is wrong with
        the observation.
        """
        template = self.prompts.image(observation.instruction)
        ids = self._fill(template, observation)
        unguided = None
        if guidance:
            other = self.prompts.image(None)
            unguided = (self._fill(other, observation), other.block)
        return decode.Job(self._imagine(observation.t_ref, template, ids, steps, guidance, unguided, cached))

    def _imagine(
        self, t_ref: int, template: Template, ids: Tensor, steps: int, guidance: float,
        unguided: tuple[Tensor, slice] | None, cached: bool,
    ) -> decode.Steps[PredictedImage]:  # fmt: skip
        robot = self.config.robot
        codes, probability = yield from decode.image(
            self.engine, self.config.vocabulary, ids, template.block, steps, None, guidance, unguided, cached
        )
        yield  # the image decoder costs about as much as a forward
        image = to_image(self.image_tokenizer.decode(codes[None])[0])
        return PredictedImage(t_ref, t_ref + round(robot.horizon * robot.dt * 1e9), image, float(probability.mean()))

    def warm_up(self, runs: int = 2) -> None:
        """Asks for actions in a grey scene, so that the first real observation finds everything allocated.

        On an engine of graphs nothing is captured afterwards: what else shall run, a plan say, must have run before.
        """
        for run in range(runs):  # another grey each time, or the images would not be encoded again
            seen = self.example(128 + run)
            self.actions(seen.images, state_of(self.config.robot, seen), seen.instruction)
        side = self.config.image_tokenizer.resolution
        for count in range(1, len(self.config.robot.cameras) if self.engine.encoder.together else 0):
            self.engine.encode(torch.zeros(count, 3, side, side))  # when not all cameras have something new
        self.engine.seal()

    def example(self, grey: int = 128) -> Observation:
        """A grey scene, the arm in the middle of its ranges: what to try the model with."""
        robot, side = self.config.robot, self.config.image_tokenizer.resolution
        limits = robot.limits('state')
        middle = (limits.low + limits.high) / 2
        return Observation(
            t_ref=0,
            images={camera: np.full((side, side, 3), grey, np.uint8) for camera in robot.cameras},
            positions=middle[: robot.dof],
            velocities=np.zeros(robot.dof),
            gripper=float(middle[-1]) if robot.gripper else 0.0,
            instruction='warm up',
        )

    def use(self, name: str, image_dtype: str = 'float32', image_engine: str = 'eager') -> None:
        """Makes `act` run on the engines of these names, see `engine.make`: in this process, without a trial."""
        self.engine = make(
            name, self.network, self.image_tokenizer, self.act_request(), self.model_id, image_dtype, image_engine
        )
        self.forget_images()

    def act_request(self) -> Act:
        """A request of `act`, on which engines are calibrated and checked."""
        prompts = self.prompts
        return Act.of(prompts.action('put it there'), self.config.vocabulary, prompts.max_tokens)

    def forget_images(self) -> None:
        """The next images are encoded even if they are those of before."""
        self._frames.clear()

    @torch.inference_mode()
    def _fill(self, template: Template, observation: Observation) -> Tensor:
        """A prompt without state."""
        return template.fill(None, self._view_ids(observation.images))

    def _reused(self, template: Template, ids: Tensor) -> KeyValues:
        """What the act before knows of this prompt: only ids that changed, and the block, are computed again.

        That is approximate, see docs/reference/performance.md. A new prompt, one that changed by more than half, and
        every `reuse`-th one is computed in full.
        """
        kept, start = self._kept, template.block.start
        if kept is not None and kept.template is template and kept.age + 1 < self.reuse:
            changed = (ids != kept.ids)[0, :start].nonzero()[:, 0]
            if len(changed) <= start // 2:
                kept.cache.positions = torch.cat((changed, torch.arange(start, ids.shape[1], device=self.device)))
                kept.ids, kept.age = ids, kept.age + 1
                return kept.cache
        self._kept = Kept(template, ids, KeyValues(start), 0)
        return self._kept.cache

    def _bin_ids(self, normalized: np.ndarray) -> Tensor:
        """Ids, same shape, of numbers in [-1, 1]."""
        vocabulary = self.config.vocabulary
        indices = bins.quantize(normalized, vocabulary.bins) + vocabulary.bins_offset
        return upload(indices, self.device)

    def _state_ids(self, state: np.ndarray) -> Tensor:
        check_state(self.config.robot, state)
        return self._bin_ids(self.state_ranges.normalize(state))

    def _view_ids(self, images: dict[str, np.ndarray]) -> Tensor:
        """Ids (views, tokens) of the images, in prompt order. An image that was there before is not encoded again."""
        robot, offset = self.config.robot, self.config.vocabulary.image_offset
        found = {camera: check_image(camera, images, robot.cameras) for camera in robot.cameras}
        known = self._frames
        new = [c for c in robot.cameras if c not in known or not np.array_equal(known[c][0], found[c])]
        # One at a time, as the released models were deployed: on a GPU a batch gives a few other codes.
        for some in [new] if new and self.engine.encoder.together else [[camera] for camera in new]:
            pixels = [preprocess(found[c], self.config.image_tokenizer.resolution, self.device) for c in some]
            for camera, codes in zip(some, self.engine.encode(torch.stack(pixels)), strict=True):
                known[camera] = (found[camera].copy(), codes + offset)
        return torch.stack([self._frames[camera][1] for camera in robot.cameras])


def load(
    path_or_name: str | Path,
    device: str = 'cpu',
    dtype: str = 'auto',
    threads: int = 0,
    seed: int = 0,
    engine: str = 'eager',
    image_dtype: str = 'float32',
    image_engine: str = 'eager',
    act_steps: int = 1,
    reuse: int = 1,
    image_tokenizer: str | Path | None = None,
    estimate: str = 'median',
    gripper: bool = True,
) -> Policy:
    """A policy, from a checkpoint folder or by name.

    The names are those of `shipped`; 'random-nano' has random weights from `seed`: real computation, meaningless
    actions (config.trained is False), and a gripper only with `gripper`. dtype is the network's
    precision; 'auto': bfloat16 on a GPU, float32 on a CPU.
    image_dtype, or 'auto', is that of the image encoder, which image_engine runs, one of `image_engine.NAMES`. threads:
    CPU threads of torch in this process, 0 is all cores but one. engine: what runs the network, one of `engine.NAMES`;
    'auto' is the fastest one here that is close to 'eager'. Engines other than eager are tried in a child process
    before, see trial.py, and the log names those that died there. act_steps: forwards per chunk. reuse: acts per
    full forward, see `Policy.reuse`. estimate: how a set-point is read from what the network says, one of ESTIMATES.
    image_tokenizer: its folder, where it is not in that of a released checkpoint.
    Raises FileNotFoundError or ValueError naming the file, tensor or field, and the remedy.
    """
    target = _device(device)
    if dtype != 'auto' and dtype not in DTYPES:
        raise ValueError(f"dtype must be 'auto' or one of {list(DTYPES)}, got {dtype!r}")
    precision = dtype if dtype != 'auto' else 'bfloat16' if target.type == 'cuda' else 'float32'
    check_engine(engine, target.type, precision, image_dtype, image_engine)
    if threads < 0:
        raise ValueError(f'threads must be 0 or more, got {threads}')
    if act_steps < 1:
        raise ValueError(f'act_steps must be 1 or more, got {act_steps}')
    if estimate not in ESTIMATES:
        raise ValueError(f'estimate must be one of {list(ESTIMATES)}, got {estimate!r}')
    if reuse < 1 or (reuse > 1 and (act_steps > 1 or engine != 'eager')):
        raise ValueError(f"reuse must be 1, or more with engine 'eager' and act_steps 1, got {reuse}")
    set_threads(threads)
    path = model_path(path_or_name)
    elsewhere = Path(image_tokenizer) if image_tokenizer is not None else None
    found = None if path == RANDOM else open_folder(Path(path), elsewhere)
    # Before any weight is here: the process that tries engines has the memory to itself.
    subject = trial_subject(path, device, precision, seed, elsewhere, gripper, found)
    choice = choose(subject, engine, image_dtype, image_engine)
    for remark in choice.remarks:
        _log.warning('%s', remark)
    if found is None:
        policy = _random_nano(seed, target, DTYPES[precision], gripper)
    else:
        needed = memory.plan(
            found.config, DTYPES[precision], DTYPES.get(choice.image_dtype, torch.bfloat16), target.type, choice.engine
        )
        _log.info('memory: %s', needed)
        memory.check(needed, target)
        policy = _from_folder(Path(path), found, target, DTYPES[precision])
    policy.use(choice.engine, choice.image_dtype, choice.image_engine)
    _log.info('engine %s, image_engine %s in %s', choice.engine, choice.image_engine, choice.image_dtype)
    policy.act_steps, policy.reuse, policy.estimate = act_steps, reuse, estimate
    return policy


def _from_folder(folder: Path, found: Opened, device: torch.device, dtype: torch.dtype) -> Policy:
    with torch.device('meta'):
        network, image = Network(found.config.network), ImageTokenizer(found.config.image_tokenizer)
    if found.config.quantization is not None:
        put_layers(network, found.config.quantization, ('model.',))
        put_layers(image, found.config.quantization, checkpoint.IMAGE_PREFIXES)
    digests = checkpoint.load_into(network, found.network, device, dtype, folder)
    digests |= checkpoint.load_into(image, found.image, device, torch.float32, folder)
    plain_layers(image)  # convolutions are stored in 8 bits to be small, and computed as ever
    model_id = f'{found.config.name}-{checkpoint.content_hash(found.config, digests)}'
    return Policy(found.config, found.text, network, image, model_id)


def save(policy: Policy, folder: str | Path) -> None:
    """Writes the policy as a checkpoint folder that `load` reads. Raises ValueError for a quantized one."""
    if policy.config.quantization is not None:
        raise ValueError(f'{policy.config.name} is quantized: copy the folder it was loaded from')
    network, image = policy.network.state_dict(), policy.image_tokenizer.state_dict()
    checkpoint.write(Path(folder), policy.config, policy.text, network, image)


def _random_nano(seed: int, device: torch.device, dtype: torch.dtype, gripper: bool) -> Policy:
    text = TextTokenizer.load(NANO_FILE)
    config = nano.config(text.size, gripper=gripper)
    network, image_tokenizer = Network(config.network), ImageTokenizer(config.image_tokenizer)
    nano.init_weights(network, seed)
    nano.init_weights(image_tokenizer, seed)
    tensors = network.state_dict() | image_tokenizer.state_dict()
    digests = {name: checkpoint.digest(tensor) for name, tensor in tensors.items()}
    model_id = f'{config.name}-{checkpoint.content_hash(config, digests)}'
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
