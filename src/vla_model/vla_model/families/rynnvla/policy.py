"""The policy of a released RynnVLA-002 folder."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla_model import decode
from vla_model.decode import Job, Steps
from vla_model.families.rynnvla import decode as answers
from vla_model.families.rynnvla import engine as engines
from vla_model.families.rynnvla import preprocess, prompt, tokens
from vla_model.families.rynnvla.action_head import ActionHead
from vla_model.families.rynnvla.robot import CONTINUOUS, RobotFile
from vla_model.families.rynnvla.tokens import ACTION, STATE
from vla_model.families.rynnvla.views import Views
from vla_model.families.rynnvla.vqgan import Vqgan
from vla_model.families.rynnvla.world import WorldModel, check_length
from vla_model.network import Network
from vla_model.observation import check_image, chunk_steps
from vla_model.policy import WORLD, ImageOptions, Options, PolicyInfo, Prediction, WorldOptions, no_output
from vla_model.tokens.text_tokenizer import TextTokenizer
from vla_model.types import JOINTS, TOOL, Chunk, Observation, PredictedImage, PredictedViews


class RynnVlaPolicy:
    """RynnVLA-002 on one device, see `Policy`.

    The action head or discrete tokens decide a chunk, as robot.json selects. WORLD predicts the images of every view
    after steps of a given chunk, IMAGE that of the first camera at the end of the newest chunk.
    """

    def __init__(
        self, info: PolicyInfo, robot: RobotFile, text: TextTokenizer, network: Network, head: ActionHead, vqgan: Vqgan,
        positions: int, engine: str = 'eager',
    ):  # fmt: skip
        """positions: most tokens of a prompt with its answer. engine: of the continuous chunk, see engine.py."""
        self.info, self.robot, self.text = info, robot, text
        self.network, self.head, self.vqgan = network.eval(), head.eval(), vqgan.eval()
        self.device = next(network.parameters()).device
        with torch.inference_mode():
            self.engine = engines.make(engine, engines.Eager(network, head).eval())
        self.views, self._positions = Views(vqgan, robot.mirrored), positions
        self.world = WorldModel(network, self.views, text, robot, positions)
        self._last: Observation | None = None  # of the last `act` since `prepare`
        self._newest: Chunk | None = None

    def prepare(self, instruction: str) -> None:
        """Begin an assignment: its first prompt has no earlier observation. Raises ValueError on an empty one."""
        prompt.check_task(instruction)
        self._last = None
        if isinstance(self.engine, engines.Captured):  # both lengths of prompts: without and with earlier images
            newest, seen = self._newest, replace(self.example(), instruction=instruction)
            for _ in range(self.robot.history):
                self.act(replace(seen, before=seen.images))
            self._last, self._newest = None, newest

    @torch.inference_mode()
    def act(self, observation: Observation, prefix: Chunk | None = None) -> Prediction:
        """See `Policy.act`. Raises ValueError naming what is wrong with the observation."""
        if prefix is not None and len(prefix.positions):
            raise ValueError('RynnVLA-002 takes no prefix')
        kind = self.robot.kind
        state = kind.state_of(self.robot, observation)
        kind.check_state(state)
        ids = prompt.action_prompt(
            self.text, observation.instruction, tokens.block_ids(kind.state.normalize(state), STATE),
            self._seen(observation),
        )  # fmt: skip
        normalized, confidence = self._chunk(torch.from_numpy(ids)[None].to(self.device))
        if not np.isfinite(normalized).all():
            raise ValueError('the network gave numbers that are not finite: check the checkpoint and the dtype')
        arm, gripper = kind.set_points(self.robot, kind.action.denormalize(normalized), observation)
        space = JOINTS if self.info.joints else TOOL
        self._newest = Chunk(arm, gripper, self.info.dt, confidence=confidence, space=space)
        self._last = observation
        return Prediction(self._newest)

    def _seen(self, observation: Observation) -> list[np.ndarray]:
        """Return the blocks of the images of a prompt, in its order."""
        times = [self._blocks(observation.images)]
        if self.robot.history > 1 and self._last is not None and (before := self._before(observation)) is not None:
            times.insert(0, self._blocks(before))
        if self.robot.kind.apart:
            return [block for camera in zip(*times, strict=True) for block in camera]
        return [block for views in times for block in views]

    def _before(self, observation: Observation) -> dict[str, np.ndarray] | None:
        """Return the images of one step before: of the observation, or of the last `act` if it was then."""
        if observation.before is not None:
            return observation.before
        assert self._last is not None
        passed = (observation.t_ref - self._last.t_ref) / 1e9 / self.info.dt
        return self._last.images if 0.5 <= passed <= 1.5 else None

    def _chunk(self, ids: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return ((horizon, dims) in [-1, 1], (horizon,) confidence; (0,): the action head has none)."""
        n, info = ids.shape[1], self.info
        if self.robot.answer == CONTINUOUS:
            check_length(n, self._positions)
            values = self.engine(ids).cpu().numpy().astype(np.float64)
            return np.clip(values, -1, 1), np.zeros(0, np.float32)
        check_length(n + info.horizon * (info.action_dim + 2) + 1, self._positions)
        found, probability = decode.run(answers.chunk(self.network, ids, info.horizon, info.action_dim))
        blocks = found[:-1].view(info.horizon, -1)[:, 1:-1].cpu().numpy()
        confidence = probability[:-1].view(info.horizon, -1)[:, 1:-1].mean(1).cpu().numpy()
        if not np.isfinite(confidence).all():  # the mode of NaN is the first bin
            return np.full(blocks.shape, np.nan), confidence
        return tokens.bin_values(blocks, ACTION), confidence

    def start(self, output: str, observation: Observation, options: Options | None = None) -> Job[Any]:
        """See `Policy.start`. IMAGE raises ValueError before the first chunk: the image is one of its actions."""
        if output not in self.info.outputs:
            raise no_output(self.info, output)
        wanted = WorldOptions if output == WORLD else ImageOptions
        if not isinstance(options, wanted) and (output == WORLD or options is not None):
            raise ValueError(f'options of {output!r} must be {wanted.__name__}')
        if isinstance(options, WorldOptions):
            return Job(self._views_after(observation, options))
        if self._newest is None:
            raise ValueError('the world model needs actions: ask for a chunk first')
        return Job(self._image(observation, self.film(observation, self._newest)))

    def _views_after(self, observation: Observation, options: WorldOptions) -> Steps[PredictedViews]:
        steps, after = len(options.chunk.positions), options.after or len(options.chunk.positions)
        if not 1 <= after <= steps:
            raise ValueError(f'images after {options.after} steps are asked for: the chunk has {steps}')
        film = self.film(observation, options.chunk, after)
        return self._last_of(film)

    def _last_of(self, film: Steps[list[PredictedViews]]) -> Steps[PredictedViews]:
        return (yield from film)[-1]

    def _image(self, observation: Observation, film: Steps[list[PredictedViews]]) -> Steps[PredictedImage]:
        last = yield from self._last_of(film)
        return PredictedImage(last.t_ref, last.due, last.images[self.robot.cameras[0]], last.confidence)

    def film(self, observation: Observation, chunk: Chunk, after: int = 0) -> Steps[list[PredictedViews]]:
        """Return the images of every view after each of the first `after` steps of a chunk; 0: of all steps.

        Raises ValueError naming what is wrong with the observation or the chunk, or if it has too many steps.
        """
        steps = chunk_steps(self.info, chunk, 'chunk', self.info.horizon)
        if not len(steps):
            raise ValueError('the chunk has no steps')
        actions = self.robot.kind.actions(self.robot, steps[: after or None], observation.positions)
        self._check_images(observation.images)
        return self.world.roll_out(observation, actions, self.info.dt)

    def _check_images(self, images: dict[str, np.ndarray]) -> Sequence[np.ndarray]:
        return [check_image(camera, images, self.robot.cameras) for camera in self.robot.cameras]

    def _blocks(self, images: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [self.views.block(image) for image in self._check_images(images)]

    def warm_up(self) -> None:
        """See `Policy.warm_up`."""
        self.act(self.example())
        self.close()

    def example(self, grey: int = 128) -> Observation:
        """A grey scene; the arm, or its tool, in the middle of the ranges of training."""
        scale, side = self.robot.kind.state, preprocess.TRAINED
        middle, opening = (scale.low + scale.high) / 2, (self.robot.gripper_low + self.robot.gripper_high) / 2
        images = {camera: np.full((side, side, 3), grey, np.uint8) for camera in self.robot.cameras}
        zeros = np.zeros(self.info.dof)
        if self.robot.kind.tool:
            return Observation(
                0, images, zeros, zeros, opening, 'warm up', middle[:6] - np.append(self.robot.base, zeros[:3])
            )
        return Observation(0, images, np.deg2rad(middle[:-1]), zeros, opening, 'warm up')

    def close(self) -> None:
        """See `Policy.close`."""
        self._last = self._newest = None
        self.views.forget()
