"""The policy of a released RynnVLA-002 folder."""

from collections import deque
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla_model import decode
from vla_model.decode import Job, Steps
from vla_model.families.rynnvla import decode as answers
from vla_model.families.rynnvla import preprocess, prompt, tokens
from vla_model.families.rynnvla.action_head import ActionHead
from vla_model.families.rynnvla.robot import CONTINUOUS, RobotFile
from vla_model.families.rynnvla.tokens import ACTION, STATE
from vla_model.families.rynnvla.vqgan import Vqgan, to_images, to_pixels
from vla_model.network import Network
from vla_model.observation import check_image
from vla_model.policy import ImageOptions, Options, PolicyInfo, Prediction, no_output
from vla_model.tokens.text_tokenizer import TextTokenizer
from vla_model.types import JOINTS, TOOL, Chunk, Observation, PredictedImage


class RynnVlaPolicy:
    """RynnVLA-002 on one device, see `Policy`. The observation before is that of the `act` before.

    A chunk is decided by the action head or by discrete tokens, as robot.json says. IMAGE is the first camera's image
    one step after the observation, for the first action of the newest chunk.
    """

    def __init__(
        self, info: PolicyInfo, robot: RobotFile, text: TextTokenizer, network: Network, head: ActionHead, vqgan: Vqgan
    ):
        self.info, self.robot, self.text = info, robot, text
        self.network, self.head, self.vqgan = network.eval(), head.eval(), vqgan.eval()
        self.device = next(network.parameters()).device
        self._before: deque[list[np.ndarray]] = deque(maxlen=robot.history - 1)  # image blocks of earlier observations
        self._newest: tuple[int, np.ndarray] | None = None  # t_ref, and the first action of the newest chunk
        self._instruction = ''

    def prepare(self, instruction: str) -> None:
        """Forgets the observations of another instruction. Raises ValueError on an empty one."""
        if not instruction.strip():
            raise ValueError('the instruction is empty: say what the robot shall do')
        if instruction != self._instruction:
            self._before.clear()
        self._instruction = instruction

    @torch.inference_mode()
    def act(self, observation: Observation, prefix: Chunk | None = None) -> Prediction:
        """See `Policy.act`. Raises ValueError naming what is wrong with the observation."""
        if prefix is not None and len(prefix.positions):
            raise ValueError('RynnVLA-002 takes no prefix')
        kind = self.robot.kind
        state = kind.state_of(self.robot, observation)
        if not np.isfinite(state).all():
            raise ValueError(f'the state is not finite: {state.tolist()}')
        images = self._image_blocks(observation)
        seen = [block for blocks in (*self._before, images) for block in blocks]
        ids = prompt.action_prompt(
            self.text, observation.instruction, tokens.block_ids(kind.state.normalize(state), STATE), seen
        )
        normalized, confidence = self._chunk(torch.from_numpy(ids)[None].to(self.device))
        self._before.append(images)
        self._newest = observation.t_ref, normalized[0]
        arm, gripper = kind.set_points(self.robot, kind.action.denormalize(normalized), observation)
        space = JOINTS if self.info.joints else TOOL
        return Prediction(Chunk(arm, gripper, self.info.dt, confidence=confidence, space=space))

    def _chunk(self, ids: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """((horizon, dims) in [-1, 1], (horizon,) confidence; (0,): the action head has none)."""
        n, info = ids.shape[1], self.info
        if self.robot.answer == CONTINUOUS:
            hidden = self.network.hidden(self.network.embed(ids), slice(0, n), n)
            values = self.head(hidden.float())[0].cpu().numpy().astype(np.float64)
            return np.clip(values, -1, 1), np.zeros(0, np.float32)
        found, probability = decode.run(answers.chunk(self.network, ids, info.horizon, info.action_dim))
        blocks = found[:-1].view(info.horizon, -1)[:, 1:-1].cpu().numpy()
        confidence = probability[:-1].view(info.horizon, -1)[:, 1:-1].mean(1).cpu().numpy()
        return tokens.bin_values(blocks, ACTION), confidence

    def start(self, output: str, observation: Observation, options: Options | None = None) -> Job[Any]:
        """See `Policy.start`. Raises ValueError before the first chunk: the image is one of an action."""
        if output not in self.info.outputs:
            raise no_output(self.info, output)
        if options is not None and not isinstance(options, ImageOptions):
            raise ValueError(f'options of {output!r} must be ImageOptions')
        if self._newest is None:
            raise ValueError('the world model needs an action: ask for a chunk first')
        return Job(self._imagine(observation, self._newest[1]))

    def _imagine(self, observation: Observation, action: np.ndarray) -> Steps[PredictedImage]:
        codes, confidence = yield from self.world(self._image_blocks(observation), action)
        yield
        image = to_images(self.vqgan.decode(codes[0][None]))[0].cpu().numpy()
        return PredictedImage(observation.t_ref, observation.t_ref + round(self.info.dt * 1e9), image, confidence)

    def world(self, images: list[np.ndarray], action: np.ndarray) -> Steps[tuple[list[Tensor], float]]:
        """Codes of the next image of every view, and their mean probability.

        images: blocks of the present images. action: (dims,) in [-1, 1] of the chunk's scale.
        """
        kind = self.robot.kind
        values = kind.world_action.normalize(kind.action.denormalize(action))
        ids = prompt.world_prompt(self.text, images, tokens.block_ids(values, ACTION))
        sides = [codes.shape for codes in tokens.codes_of(np.concatenate(images))]
        found, probability = yield from answers.images(self.network, torch.from_numpy(ids)[None].to(self.device), sides)
        codes = [torch.from_numpy(c).long().to(self.device) for c in tokens.codes_of(found.cpu().numpy())]
        return codes, float(probability.mean())

    def _image_blocks(self, observation: Observation) -> list[np.ndarray]:
        found = []
        for camera in self.robot.cameras:
            image = check_image(camera, observation.images, self.robot.cameras)
            pixels = to_pixels(torch.from_numpy(preprocess.squash(image).copy())[None])
            codes = self.vqgan.encode(pixels.to(self.device))[0]
            found.append(tokens.image_ids(codes.cpu().numpy()))
        return found

    def warm_up(self) -> None:
        """See `Policy.warm_up`."""
        self.act(self.example())
        self._before.clear()
        self._newest = None

    def example(self, grey: int = 128) -> Observation:
        """A grey scene; the arm, or its tool, in the middle of the ranges of training."""
        scale, side = self.robot.kind.state, preprocess.TRAINED
        middle, opening = (scale.low + scale.high) / 2, (self.robot.gripper_low + self.robot.gripper_high) / 2
        images = {camera: np.full((side, side, 3), grey, np.uint8) for camera in self.robot.cameras}
        zeros = np.zeros(self.info.dof)
        if self.robot.kind.tool:
            return Observation(0, images, zeros, zeros, opening, 'warm up', middle[:6])
        return Observation(0, images, np.deg2rad(middle[:-1]), zeros, opening, 'warm up')

    def close(self) -> None:
        """See `Policy.close`."""
        self._before.clear()
