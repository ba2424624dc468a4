"""Steered episodes: a line that a person would draw on the first view names the object, words may not.

Each scene is driven with the same goal in four ways: by vague words alone, by a trace with vague words, by words and
trace that agree, and by a trace with words for another object. The person who draws has the image alone. The line
leads from the tool to the object, and after the grasp from the tool to the target.
"""

from dataclasses import dataclass, replace

import numpy as np

from vla_core.observe.steering import Steering
from vla_model.types import Observation, Trace
from vla_sim.scene import CAMERAS
from vla_sim.tasks import any_instruction, parse_instruction, sample_episode, vague_instructions
from vla_sim.world import World
from vla_training.collect.scenes import pixel

WORDS, TRACE, BOTH, CONTRARY = 'words alone', 'trace', 'trace and words', 'trace against words'
WAYS = (WORDS, TRACE, BOTH, CONTRARY)
OFF = 2.0  # [px] standard deviation of a person's end of a line
CAMERA = CAMERAS[0]


@dataclass(frozen=True)
class Guidance:
    """What a person says and draws in one scene."""

    goal: str  # instruction that decides about success
    said: str  # instruction that the policy gets
    draws: bool


def guidance(task: str, seed: int, way: str) -> Guidance:
    """Return the guidance of a scene. The goal, and the other object of CONTRARY, are drawn by the seed."""
    episode, rng = sample_episode(task, seed), np.random.default_rng([seed, 5])
    goal = any_instruction(episode, rng)
    vague = vague_instructions(goal)
    said = {WORDS: vague[seed % len(vague)], TRACE: vague[seed % len(vague)], BOTH: goal}.get(way, '')
    while not said:
        other = any_instruction(episode, rng)
        if parse_instruction(other).object != parse_instruction(goal).object:
            said = other
    return Guidance(goal, said, draws=way != WORDS)


class Person:
    """Draws the lines of one episode, as they become due."""

    def __init__(self, guide: Guidance, seed: int) -> None:
        self.guide, self._rng = guide, np.random.default_rng([seed, 6])
        goal = parse_instruction(guide.goal)
        self._ends = [goal.object, *([goal.target] if goal.target else [])]
        self._first = True
        self._drawn: Steering | None = None

    def guided(self, seen: Observation, world: World) -> Observation:
        """Return the observation with what the person said, and with what is left of the drawn line."""
        seen = replace(seen, instruction=self.guide.said)
        if not self.guide.draws:
            return seen
        tool = pixel(world, CAMERA, world.tool_pose()[0])
        if self._drawn is None and self._ends and self._may_draw(world):
            self._drawn = self._draw(world, tool, seen.images[CAMERA].shape)
        left = self._drawn.left(tool) if self._drawn is not None else None
        if self._drawn is not None and self._drawn.done:
            self._drawn = None
            self._ends.pop(0)
        return replace(seen, steering=left)

    def _may_draw(self, world: World) -> bool:
        """Return whether the person sees that the next line is due: at first, or once the object is lifted."""
        return self._first or world.missed() not in ('reach', 'grasp')

    def _draw(self, world: World, tool: np.ndarray, shape: tuple[int, ...]) -> Steering:
        self._first = False
        poses, name = world.objects(), self._ends[0]
        end = pixel(world, CAMERA, poses.get(f'{name}_cap', poses[name])[0]) + self._rng.normal(0, OFF, 2)
        height, width = shape[:2]
        points = np.clip([tool, end], 0, [width - 1, height - 1])
        return Steering(Trace(CAMERA, points, width, height))
