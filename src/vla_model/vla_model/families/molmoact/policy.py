"""The policy of a released MolmoAct folder."""

import logging
from typing import Any

import numpy as np
import torch

from vla_model import decode
from vla_model.decode import Job
from vla_model.families.molmoact import answer, preprocess, prompt
from vla_model.families.molmoact.decode import WithPictures, pictures_in
from vla_model.families.molmoact.decode import answer as greedy_answer
from vla_model.families.molmoact.grammar import Grammar, action_words, template
from vla_model.families.molmoact.robot import RobotFile
from vla_model.families.molmoact.tokens import ActionStatistics
from vla_model.families.molmoact.vision import VisionTower
from vla_model.network import Network
from vla_model.observation import check_image
from vla_model.policy import Options, PolicyInfo, Prediction, no_output
from vla_model.tokens.text_tokenizer import TextTokenizer
from vla_model.types import TOOL, Chunk, Observation

_LOG = logging.getLogger(__name__)
_EXAMPLE_SIDE = 256  # [px]


class MolmoActPolicy:
    """MolmoAct on one device, see `Policy`. It reasons: depth, then a trace, then the actions, all in one answer."""

    def __init__(
        self, info: PolicyInfo, robot: RobotFile, statistics: ActionStatistics, text: TextTokenizer, network: Network,
        tower: VisionTower, positions: int,
    ):  # fmt: skip
        """positions: most tokens of a prompt with its answer. Raises ValueError where the tokenizer does not fit."""
        self.info, self.robot, self.statistics, self.text = info, robot, statistics, text
        self.network, self.tower = network.eval(), tower.eval()
        self.device = next(network.parameters()).device
        self._positions, self._words = positions, action_words(text)
        wording = robot.template or template(len(robot.cameras), steered=False)
        self._grammar = Grammar(text, wording, robot.actions, statistics.dims)
        self._large = set[tuple[str, int, int]]()  # sizes of pictures that were logged

    def prepare(self, instruction: str) -> None:
        """Raises ValueError on an empty instruction."""
        self._question(instruction)

    @torch.inference_mode()
    def act(self, observation: Observation, prefix: Chunk | None = None) -> Prediction:
        """See `Policy.act`. Raises ValueError naming what is wrong with the observation, or an answer with its text."""
        if prefix is not None and len(prefix.positions):
            raise ValueError('MolmoAct takes no prefix')
        question = self._question(observation.instruction)
        cameras = self.robot.cameras
        pictures = [self.robot.picture(check_image(c, observation.images, cameras)) for c in cameras]
        ids, probability = self.answer(pictures, question)
        text = self.text.decode(ids)
        found = answer.read(text, self._words, self.statistics.dims, self.robot.actions)
        if not np.isfinite(probability).all():
            raise ValueError(f'the answer cannot be executed (the network gave numbers that are not finite): {text!r}')
        arm, gripper = self.robot.set_points(self.statistics.denormalize(found.actions))
        steps = self._grammar.steps_of(ids)
        confidence = np.array([probability[steps == i].mean() for i in range(self.robot.actions)], np.float32)
        return Prediction(Chunk(arm, gripper, self.info.dt, confidence=confidence, space=TOOL))

    @torch.inference_mode()
    def answer(self, pictures: list[np.ndarray], question: str) -> tuple[list[int], np.ndarray]:
        """(n,) ids of the answer to a question about pictures (h, w, 3) uint8, and the probability of each."""
        views = preprocess.views(pictures)
        self._log_large(pictures, views.grids)
        ids = torch.from_numpy(prompt.prompt(self.text, question, views.grids, len(pictures) > 1))[None]
        longest = ids.shape[1] + self._grammar.longest
        if longest > self._positions:
            raise ValueError(
                f'prompt and answer have up to {longest} tokens, the checkpoint has {self._positions} positions: '
                'shorten the instruction, or give smaller pictures (side in robot.json)'
            )
        if pictures_in(ids) != len(views.pooled):
            raise ValueError('the instruction has the mark of a picture: say it in plain words')
        pixels = torch.from_numpy(preprocess.pixels(views.patches)).to(self.device, next(self.tower.parameters()).dtype)
        features = self.tower(pixels, torch.from_numpy(views.pooled).to(self.device))
        found, probability = decode.run(
            greedy_answer(WithPictures(self.network, features), ids.to(self.device), self._grammar)
        )
        return found.tolist(), probability.cpu().numpy()

    def _question(self, instruction: str) -> str:
        return prompt.question(instruction, len(self.robot.cameras), trace=False)

    def _log_large(self, pictures: list[np.ndarray], grids: np.ndarray) -> None:
        """Once per camera and size."""
        pairs = grids.reshape(len(pictures), -1, 2)
        for camera, picture, pair in zip(self.robot.cameras, pictures, pairs, strict=True):
            height, width = picture.shape[:2]
            if max(height, width) > preprocess.SIDE and (camera, height, width) not in self._large:
                self._large.add((camera, height, width))
                _LOG.warning(
                    '%s: %d x %d px are %d tokens, up to %d px are %d: side in robot.json makes a picture smaller',
                    camera, width, height, _tokens(pair), preprocess.SIDE, _tokens(_SMALL),
                )  # fmt: skip

    def start(self, output: str, observation: Observation, options: Options | None = None) -> Job[Any]:
        """See `Policy.start`: there is no such output."""
        raise no_output(self.info, output)

    def warm_up(self) -> None:
        """See `Policy.warm_up`."""
        self.act(self.example())

    def example(self, grey: int = 128) -> Observation:
        """A grey scene, all joints at zero: the model is not given the state."""
        images = {c: np.full((_EXAMPLE_SIDE, _EXAMPLE_SIDE, 3), grey, np.uint8) for c in self.robot.cameras}
        zeros = np.zeros(self.info.dof)
        return Observation(0, images, zeros, zeros, self.robot.gripper_open, 'warm up')

    def close(self) -> None:
        """See `Policy.close`: nothing is kept."""


_SMALL = np.array([[14, 14], [14, 14]])  # rows and columns of tokens of a picture that fits into one crop


def _tokens(grids: np.ndarray) -> int:
    """Of a prompt, for overview and crops: rows, each with its mark, between two marks."""
    return int(sum(rows * (columns + 1) + 2 for rows, columns in grids))
