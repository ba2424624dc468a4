"""The policy of a masked model: an observation in, a chunk of set-points out."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from vla_model import decode
from vla_model.config import ModelConfig
from vla_model.engines.base import Act, Engine
from vla_model.engines.select import make
from vla_model.families.mmact import depth, steering, world
from vla_model.families.mmact.action_block import Decoded, Regressed, read_block
from vla_model.image_tokenizer import ImageTokenizer, preprocess, to_image, upload
from vla_model.network import KeyValues, Network
from vla_model.observation import check_image, check_state, prefix_steps, state_of
from vla_model.policy import (
    DEPTH,
    IMAGE,
    PLAN,
    POINTS,
    TRACE,
    WORLD,
    DepthOptions,
    ImageOptions,
    Options,
    PlanOptions,
    Policy,
    PolicyInfo,
    Prediction,
    WorldOptions,
    no_output,
)
from vla_model.tokens import bins
from vla_model.tokens.depth_tokenizer import DepthTokenizer
from vla_model.tokens.prompt import PromptBuilder, Template
from vla_model.tokens.prompt_texts import EXAMPLE
from vla_model.tokens.text_tokenizer import TextTokenizer
from vla_model.types import Chunk, DepthMap, Observation, Plan, PredictedImage, PredictedViews

ACTION_DECODINGS = ('median', 'mode')


@dataclass
class CachedPrompt:
    """The prompt of the newest act, and its keys and values, some of which are of earlier acts."""

    template: Template
    ids: Tensor  # (1, T)
    cache: KeyValues
    age: int  # acts since the last full forward


class MaskedPolicy:
    """The policy of a masked model on one device, see `Policy`. It owns network, engine and decoding options."""

    def __init__(
        self, config: ModelConfig, text: TextTokenizer, network: Network, image_tokenizer: ImageTokenizer,
        model_id: str, depth_tokenizer: DepthTokenizer | None = None,
    ):  # fmt: skip
        robot = config.robot
        self.config, self.text, self.model_id = config, text, model_id
        self.info = info_of(config, model_id)
        self.network, self.image_tokenizer = network.eval(), image_tokenizer.eval()
        self.depth_tokenizer = depth_tokenizer  # where the vocabulary has depth codes
        self.device = next(network.parameters()).device
        self.engine = Engine(self.network, self.image_tokenizer)
        self.act_steps = 1  # forwards per chunk; more are slower, and better only if the training was for them
        self.action_decoding = 'median'  # one of ACTION_DECODINGS; gripper and points: mode
        self.action_head = config.action_head  # one of config.ACTION_HEADS
        self.kv_reuse = 1  # acts per full forward; the others compute only the tokens that changed
        self._cached_prompt: CachedPrompt | None = None
        self.state_ranges, self.action_ranges = config.ranges('state'), config.ranges('action')
        self._frames: dict[str, tuple[np.ndarray, Tensor]] = {}  # camera -> its newest image and the ids of it
        self.prompts = PromptBuilder.of(config, text, self.device)
        # Tokens are decoded independently. Where a motion can continue in two ways, the modes of neighbouring steps may
        # jump between both. Medians stay with one of them, and have the smallest error.
        self._medians = torch.zeros(robot.block_tokens, dtype=torch.bool)
        self._medians[: robot.chunk_tokens].view(robot.horizon, robot.action_dim)[
            :, : robot.action_dim - robot.gripper
        ] = True
        self._medians = self._medians.to(self.device)

    def prepare(self, instruction: str) -> None:
        """Prepare the engine for prompts of this length. The first call for a length may take half a second.

        Raises ValueError on an empty or too long instruction.
        """
        self.engine.prepare(len(self.prompts.action(instruction).ids))

    def act(self, observation: Observation, prefix: Chunk | None = None) -> Prediction:
        """Return the chunk that follows `observation`, and the grounding points, see `Policy.act`.

        The network sees the prefix rounded to bins and clipped to the action range.
        Raises ValueError naming what is wrong with the observation or the prefix.
        """
        robot, info = self.config.robot, self.info
        state = state_of(robot, observation)
        origin = np.zeros(robot.action_dim)  # reference of relative actions; the opening is absolute
        if robot.action_space == 'joint_delta':
            origin[: robot.dof] = observation.positions
        steps = prefix_steps(info, prefix) if prefix is not None and len(prefix.positions) else None
        given = None if steps is None else steps - origin
        found = self._decoded(observation, state, given)
        actions = found.actions + origin
        if steps is not None:
            actions[: len(steps)] = steps
        chunk = Chunk(
            positions=actions[:, : info.arm_dim],
            gripper=actions[:, info.arm_dim] if robot.gripper else np.zeros(0),
            dt=robot.dt,
            frozen=0 if steps is None else len(steps),
            confidence=found.probability.mean(1),
            space=info.space,
        )
        return Prediction(chunk, found.points, trace=found.trace, disagreement=found.disagreement)

    def actions(
        self, images: dict[str, np.ndarray], state: np.ndarray, instruction: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the decoded actions (horizon, action_dim) float64 in robot units, and their probabilities, same shape.

        Comparisons of engines use this; `act` returns the same numbers as a chunk. state: (state_dim,) in robot units.
        Raises ValueError naming the wrong image, state or instruction.
        """
        seen = Observation(0, images, state[: self.info.dof], np.zeros(self.info.dof), 0.0, instruction)
        found = self._decoded(seen, state, None)
        return found.actions, found.probability

    @torch.inference_mode()
    def _decoded(self, observation: Observation, state: np.ndarray, given: np.ndarray | None) -> Decoded:
        """Return what one decode of the action block gives. given: action prefix (d, action_dim), in robot units."""
        robot, vocabulary = self.config.robot, self.config.vocabulary
        images, places = steering.apply(self.config, observation)
        trace = None if places is None else self.bin_ids(2 * places.flatten() - 1)
        template = self.prompts.action(observation.instruction, steered=trace is not None)
        first = None
        if given is not None:
            first = self.bin_ids(self.action_ranges.normalize(given).astype(np.float32)).flatten()
        ids = template.fill(self.state_ids(state), self.view_ids(images), first, trace=trace)
        regressed = Regressed(self.engine, vocabulary.size) if self.config.network.action_layers else None
        indices, probability = decode.run(
            decode.action(
                regressed or self.engine,
                vocabulary,
                ids,
                template.block,
                0 if first is None else len(first),
                self.act_steps,
                median=self._medians if self.action_decoding == 'median' else None,
                reused=self._reused(template, ids) if self.kv_reuse > 1 else None,
            )
        )
        # The host waits for the GPU only here. A bin is exact in float32.
        columns = [indices.float(), probability.float()] + ([regressed.values] if regressed else [])
        size = observation.images[robot.cameras[0]].shape[:2]
        numbers = torch.stack(columns).cpu().numpy()
        return read_block(self.config, self.action_ranges, numbers, self.action_head, size)

    def start(
        self, output: str, observation: Observation, options: Options | None = None
    ) -> decode.Job[Plan] | decode.Job[PredictedImage] | decode.Job[PredictedViews] | decode.Job[DepthMap]:
        """Return a job that decodes a plan, an image at the end of the chunk, images after given actions, or depth.

        Raises ValueError naming a wrong part of the observation, an unknown output, or options of another output.
        """
        kinds = {PLAN: PlanOptions, IMAGE: ImageOptions, WORLD: WorldOptions, DEPTH: DepthOptions}
        if output not in kinds or output not in self.info.outputs:
            raise no_output(self.info, output)
        if not isinstance(options, kinds[output]) and (options is not None or output == WORLD):
            raise ValueError(f'{type(options).__name__} are not the options of the output {output!r}')
        if output == PLAN:
            return self._start_plan(observation, cast(PlanOptions, options or PlanOptions()))
        if output == IMAGE:
            return self._start_image(observation, cast(ImageOptions, options or ImageOptions()))
        if output == DEPTH:
            return depth.start(self, observation, cast(DepthOptions, options or DepthOptions()))
        return world.start(self, observation, cast(WorldOptions, options))

    def _start_plan(self, observation: Observation, o: PlanOptions) -> decode.Job[Plan]:
        """See `decode.text`."""
        length = o.length or self.config.plan_tokens
        template = self.prompts.plan(observation.instruction, length)
        ids, steps = self._fill(template, observation), o.steps or min(self.config.plan_steps, length)
        return decode.Job(self._plan(observation.t_ref, template, ids, steps, o.threshold, o.cached))

    def _plan(
        self, t_ref: int, template: Template, ids: Tensor, steps: int, threshold: float | None, cached: bool
    ) -> decode.Steps[Plan]:
        v = self.config.vocabulary
        tokens, probability = yield from decode.text(
            self.engine, v, ids, template.block, steps, threshold, cached=cached, fixed=self.engine.fixed_shapes
        )
        words = [i for i in tokens.tolist() if i < v.text and i not in (v.eos, v.mask)]
        return Plan(t_ref, self.text.decode(words), float(probability.mean()))

    def _start_image(self, observation: Observation, o: ImageOptions) -> decode.Job[PredictedImage]:
        """See `decode.image`."""
        template = self.prompts.image(observation.instruction)
        ids = self._fill(template, observation)
        unguided = None
        if o.guidance:
            other = self.prompts.image(None)
            unguided = (self._fill(other, observation), other.block)
        return decode.Job(self._imagine(observation.t_ref, template, ids, o.steps, o.guidance, unguided, o.cached))

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
        """Decode actions of a grey scene, so that all buffers exist before the first real observation.

        Engines of graphs capture nothing afterwards: run each other output that will be used, such as a plan, before.
        """
        for run in range(runs):  # each run has another grey level, as equal images are not encoded again
            seen = self.example(128 + run)
            self.actions(seen.images, state_of(self.config.robot, seen), seen.instruction)
        side = self.config.image_tokenizer.resolution
        for count in range(1, len(self.config.robot.cameras) if self.engine.encoder.together else 0):
            self.engine.encode(torch.zeros(count, 3, side, side))  # batches where only some cameras have a new image
        self.engine.seal()

    def example(self, grey: int = 128) -> Observation:
        """Return an observation with grey images and the arm in the middle of its ranges."""
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

    def close(self) -> None:
        """Free cached images, keys and values. Weights are freed with the last reference to the policy."""
        self.forget_images()
        self._cached_prompt = None

    def use(self, name: str, image_dtype: str = 'float32', image_engine: str = 'eager') -> None:
        """Run `act` on the engines of these names from now on, without a trial, see `select.make`."""
        self.engine = make(
            name, self.network, self.image_tokenizer, self.act_request(), self.model_id, image_dtype, image_engine
        )
        self.forget_images()

    def act_request(self) -> Act:
        """Return prompts of `act`, on which engines are calibrated and checked."""
        prompts = self.prompts
        regresses = self.config.network.action_layers > 0
        return Act.of(prompts.action(EXAMPLE), self.config.vocabulary, prompts.max_tokens, regresses=regresses)

    def forget_images(self) -> None:
        """Drop cached image codes, so that the next images are encoded again even if they are equal."""
        self._frames.clear()

    @torch.inference_mode()
    def _fill(self, template: Template, observation: Observation) -> Tensor:
        """Return the ids (1, T) of a prompt without state."""
        return template.fill(None, self.view_ids(observation.images))

    def _reused(self, template: Template, ids: Tensor) -> KeyValues:
        """Return the keys and values of the previous act, with the changed ids and the block to be computed again.

        The result is approximate, see docs/reference/performance.md. The cache is empty, and the forward exact, for a
        new template, after more than half of the ids changed, and for every `kv_reuse`-th act.
        """
        kept, start = self._cached_prompt, template.block.start
        if kept is not None and kept.template is template and kept.age + 1 < self.kv_reuse:
            changed = (ids != kept.ids)[0, :start].nonzero()[:, 0]
            if len(changed) <= start // 2:
                kept.cache.positions = torch.cat((changed, torch.arange(start, ids.shape[1], device=self.device)))
                kept.ids, kept.age = ids, kept.age + 1
                return kept.cache
        self._cached_prompt = CachedPrompt(template, ids, KeyValues(start), 0)
        return self._cached_prompt.cache

    def bin_ids(self, normalized: np.ndarray) -> Tensor:
        """Return the ids of the bins of numbers in [-1, 1], same shape."""
        vocabulary = self.config.vocabulary
        indices = bins.quantize(normalized, vocabulary.bins) + vocabulary.bins_offset
        return upload(indices, self.device)

    def state_ids(self, state: np.ndarray) -> Tensor:
        check_state(self.config.robot, state)
        return self.bin_ids(self.state_ranges.normalize(state))

    def view_ids(self, images: dict[str, np.ndarray]) -> Tensor:
        """Return the ids (views, tokens) of the images, in prompt order. An image equal to the last is not encoded."""
        robot, offset = self.config.robot, self.config.vocabulary.image_offset
        found = {camera: check_image(camera, images, robot.cameras) for camera in robot.cameras}
        known = self._frames
        new = [c for c in robot.cameras if c not in known or not np.array_equal(known[c][0], found[c])]
        # One image per call, as the released models were deployed: on a GPU a batch changes a few codes.
        for some in [new] if new and self.engine.encoder.together else [[camera] for camera in new]:
            pixels = [preprocess(found[c], self.config.image_tokenizer.resolution, self.device) for c in some]
            for camera, codes in zip(some, self.engine.encode(torch.stack(pixels)), strict=True):
                known[camera] = (found[camera].copy(), codes + offset)
        return torch.stack([self._frames[camera][1] for camera in robot.cameras])


if TYPE_CHECKING:
    _keeps_the_contract: type[Policy] = MaskedPolicy


def info_of(config: ModelConfig, model_id: str) -> PolicyInfo:
    """Return the PolicyInfo of a masked model."""
    robot = config.robot
    outputs = {
        PLAN: True,
        IMAGE: True,
        POINTS: robot.points,
        TRACE: robot.trace,
        WORLD: config.world,
        DEPTH: config.vocabulary.depth,
    }
    return PolicyInfo(
        model_id=model_id,
        trained=config.trained,
        cameras=robot.cameras,
        dof=robot.dof,
        horizon=robot.horizon,
        dt=robot.dt,
        gripper=robot.gripper,
        name=config.name,
        action_space=robot.action_space,
        state_dim=robot.state_dim,
        action_dim=robot.action_dim,
        outputs=frozenset(name for name, has in outputs.items() if has),
        predicted=frozenset({POINTS, TRACE}),
        points=robot.points,
        point_bins=config.vocabulary.bins,
        takes_prefix=True,
        learned_prefix=config.inpaints,
        steers=bool(config.steering),
        picture_size=config.image_tokenizer.resolution,
    )
