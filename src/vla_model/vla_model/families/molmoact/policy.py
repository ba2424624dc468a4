"""The policy of a released MolmoAct folder."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla_model import decode
from vla_model.decode import Job
from vla_model.families.molmoact import answer, depth, preprocess, prompt, trace
from vla_model.families.molmoact.decode import WithPictures, pictures_in, preferred
from vla_model.families.molmoact.decode import answer as greedy_answer
from vla_model.families.molmoact.grammar import STEERED, Grammar, action_words, template
from vla_model.families.molmoact.reasoning import CELLS, Reasoning
from vla_model.families.molmoact.robot import RobotFile
from vla_model.families.molmoact.tokens import ActionStatistics
from vla_model.families.molmoact.vision import VisionTower
from vla_model.network import Network
from vla_model.observation import along, check_image, check_trace
from vla_model.policy import Options, PolicyInfo, Prediction, no_output
from vla_model.tokens.text_tokenizer import TextTokenizer
from vla_model.types import TOOL, Chunk, DepthMap, Observation, Trace

_LOG = logging.getLogger(__name__)
_EXAMPLE_SIDE = 256  # [px]
_WORDING = 0.9  # share of the template's words that the checkpoint must prefer, too


class MolmoActPolicy:
    """MolmoAct on one device, see `Policy`. It reasons: depth, then a trace, then the actions, all in one answer.

    Where the observation has a trace to follow, this is drawn on the first image, and the answer has actions only.
    """

    def __init__(
        self, info: PolicyInfo, robot: RobotFile, statistics: ActionStatistics, text: TextTokenizer, network: Network,
        tower: VisionTower, positions: int, depth_tokenizer: depth.DepthTokenizer | None = None,
    ):  # fmt: skip
        """positions: most tokens of a prompt with its answer. Raises ValueError where the tokenizer does not fit."""
        self.info, self.robot, self.statistics, self.text = info, robot, statistics, text
        self.network, self.tower, self.depth_tokenizer = network.eval(), tower.eval(), depth_tokenizer
        self.device = next(network.parameters()).device
        self._positions, self._words = positions, action_words(text)
        wording = robot.template or template(len(robot.cameras), steered=False)
        size = robot.actions, statistics.dims
        self._reasoned, self._steered = Grammar(text, wording, *size), Grammar(text, STEERED, *size)
        self._reasoning = Reasoning(robot.reasoning_answers, robot.reasoning_change)
        self._large = set[tuple[str, int, int]]()  # sizes of pictures that were logged

    def prepare(self, instruction: str) -> None:
        """Raises ValueError on an empty instruction."""
        self._question(instruction, steered=False)

    @torch.inference_mode()
    def act(self, observation: Observation, prefix: Chunk | None = None) -> Prediction:
        """See `Policy.act`. Raises ValueError naming what is wrong with the observation, or an answer with its text."""
        if prefix is not None and len(prefix.positions):
            raise ValueError('MolmoAct takes no prefix')
        steering, cameras = self._steering(observation), self.robot.cameras
        question = self._question(observation.instruction, steering is not None)
        images = [check_image(c, observation.images, cameras) for c in cameras]
        pictures = [self.robot.picture(image, None if i else steering) for i, image in enumerate(images)]
        grammar = self._reasoned if steering is None else self._steered
        given = self._reasoning.given(question, pictures[0]) if steering is None else []
        ids, probability = self.answer(pictures, question, steering is not None, given)
        text = self.text.decode(ids)
        found = answer.read(text, self._words, self.statistics.dims, self.robot.actions)
        if not np.isfinite(probability).all():
            raise ValueError(f'the answer cannot be executed (the network gave numbers that are not finite): {text!r}')
        steps = grammar.steps_of(ids)
        if steering is None and not given:
            self._reasoning.put(question, pictures[0], ids[: int(np.argmax(steps == 0))])
        arm, gripper = self.robot.set_points(self.statistics.denormalize(found.actions))
        confidence = np.array([probability[steps == i].mean() for i in range(self.robot.actions)], np.float32)
        return Prediction(
            Chunk(arm, gripper, self.info.dt, confidence=confidence, space=TOOL),
            trace=self._trace(found.trace, *images[0].shape[:2]),
            depth=self._depth(found.depth, observation.t_ref),
        )

    @torch.inference_mode()
    def answer(
        self, pictures: list[np.ndarray], question: str, steered: bool = False, given: Sequence[int] = ()
    ) -> tuple[list[int], np.ndarray]:
        """(n,) ids of the answer to a question about pictures (h, w, 3) uint8, and the probability of each.

        steered: a trace is drawn on the first picture. given: ids that the answer begins with.
        """
        grammar = self._steered if steered else self._reasoned
        network, ids = self._prompt(pictures, question, grammar.longest)
        found, probability = decode.run(greedy_answer(network, ids, grammar, given))
        return found.tolist(), probability.cpu().numpy()

    def _prompt(self, pictures: list[np.ndarray], question: str, longest: int) -> tuple[WithPictures, Tensor]:
        """Return the network with the pictures' features, and the ids (1, T) of the prompt."""
        views = preprocess.views(pictures)
        self._log_large(pictures, views.grids)
        ids = torch.from_numpy(prompt.prompt(self.text, question, views.grids, len(pictures) > 1))[None]
        longest += ids.shape[1]
        if longest > self._positions:
            raise ValueError(
                f'prompt and answer have up to {longest} tokens, the checkpoint has {self._positions} positions: '
                'shorten the instruction, or give smaller pictures (side in robot.json)'
            )
        if pictures_in(ids) != len(views.pooled):
            raise ValueError('the instruction has the mark of a picture: say it in plain words')
        pixels = torch.from_numpy(preprocess.pixels(views.patches)).to(self.device, next(self.tower.parameters()).dtype)
        features = self.tower(pixels, torch.from_numpy(views.pooled).to(self.device))
        return WithPictures(self.network, features), ids.to(self.device)

    def _question(self, instruction: str, steered: bool) -> str:
        return prompt.question(instruction, len(self.robot.cameras), steered)

    def _steering(self, observation: Observation) -> Trace | None:
        """Return the trace to follow, of at most trace.MOST points. Raises ValueError for one that cannot be."""
        steering = observation.steering
        if steering is None:
            return None
        points = check_trace(steering, self.robot.cameras[0])
        points = points if len(points) <= trace.MOST else along(points, trace.MOST)
        return Trace(steering.camera, points, steering.width, steering.height)

    def _trace(self, points: np.ndarray, height: int, width: int) -> Trace | None:
        """Return a predicted trace in the image of the first camera. points: (n, 2) in 0..255; (0, 2): none."""
        if not len(points):
            return None
        return Trace(self.robot.cameras[0], self.robot.in_image(points, height, width), width, height)

    def _depth(self, codes: np.ndarray, t_ref: int) -> DepthMap | None:
        """Return the depth map of codes (100,); (0,): none."""
        if not len(codes):
            return None
        grid, decoded = codes.reshape(CELLS, CELLS), None
        if self.depth_tokenizer is not None:  # it has relative inverse depth: large is near
            seen = depth.to_unit(self.depth_tokenizer.decode(torch.from_numpy(grid)[None]))[0]
            decoded = self.robot.depth_in_image(1 - seen.float().numpy())
        return DepthMap(t_ref, self.robot.cameras[0], self.robot.depth_in_image(grid), decoded)

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
        """See `Policy.warm_up`. Log where the checkpoint would word its answers in another way."""
        seen = self.example()
        self.act(seen)
        self._log_wording([self.robot.picture(seen.images[c]) for c in self.robot.cameras], seen.instruction)

    @torch.inference_mode()
    def _log_wording(self, pictures: list[np.ndarray], instruction: str) -> None:
        """The template is inserted, so a checkpoint that was trained on other words does not show it by itself."""
        question = self._question(instruction, steered=False)
        network, ids = self._prompt(pictures, question, self._reasoned.longest)
        found, _ = decode.run(greedy_answer(network, ids, self._reasoned))
        best, fixed = preferred(network, ids, found).cpu().numpy(), self._reasoned.fixed_in(found.tolist())
        other = fixed & (best != found.cpu().numpy())
        if other.sum() > (1 - _WORDING) * fixed.sum():
            first = int(np.argmax(other))
            _LOG.warning(
                'the checkpoint words its answers in another way: %d of %d words of the template are not what it '
                'prefers; after %r it prefers %r. Set template in robot.json to the answers of its training',
                other.sum(), fixed.sum(), self.text.decode(found[:first].tolist())[-60:],
                self.text.decode([int(best[first])]),
            )  # fmt: skip

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
