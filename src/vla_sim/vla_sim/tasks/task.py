"""What every task defines. One file beside this one holds everything about one task."""

import re
from abc import ABC, abstractmethod
from typing import ClassVar, Protocol

import numpy as np

from vla_sim.assets.objects import COLOURS
from vla_sim.kinematics import Kinematics
from vla_sim.rendering.opengl import mujoco
from vla_sim.tasks.episode import Goal, SceneState
from vla_sim.tasks.skill import Skill

Colour = tuple[float, float, float]
Prop = tuple[str, str, str, Colour | None]  # name, slot, kind (a key of objects.FOOTPRINT), colour


class SuccessTest(Protocol):
    """Watches one episode."""

    reached: bool  # whether the goal is reached now

    def update(self, state: SceneState, dt: float) -> None:
        """state: the scene now; dt: seconds since the last call, about the same each time."""


class Task(ABC):
    """One task. It has no state: an episode's is in its success test and its skill."""

    name: ClassVar[str]
    phrasings: ClassVar[tuple[str, ...]]  # sentences with {object} and, where there is a target, {target}
    object_kind: ClassVar[str]  # 'button', 'block': the instruction names its colour; '': it names the produce
    target_kind: ClassVar[str]  # 'block', 'bowl'; '': there is no target
    objects: ClassVar[tuple[str, ...]]  # words for {object}
    stages: ClassVar[tuple[str, ...]]  # that lead to success, in order
    example: ClassVar[dict[str, str]]  # words for a first sentence to show to people
    has_buttons: ClassVar[bool] = False  # its props are buttons with a cap, not free bodies
    parked: ClassVar[tuple[str, ...]] = ()  # slots of props that may have no part in an episode

    @abstractmethod
    def sample(self, rng: np.random.Generator) -> tuple[list[Prop], Goal]:
        """The props of an episode and what is asked for."""

    @abstractmethod
    def add_props(self, spec: mujoco.MjSpec) -> None:
        """Add the props of all its episodes to a scene."""

    @abstractmethod
    def success_test(self, goal: Goal) -> SuccessTest:
        """A test for one episode."""

    @abstractmethod
    def stages_at(self, goal: Goal, state: SceneState, start: dict[str, np.ndarray]) -> list[str]:
        """Stages that the scene shows now. start: positions (3,) [m] at the beginning, by body."""

    @abstractmethod
    def skill(self, goal: Goal, kinematics: Kinematics, max_opening: float) -> Skill:
        """How the expert does it. max_opening: [m] of the gripper."""

    def rests(self, state: SceneState, goal: Goal) -> bool:
        """Whether the object of the goal lies where the goal wants it; False for a task without a target."""
        return False

    def goal(self, object: str, target: str) -> Goal:
        """The goal of a sentence with these words for {object} and {target}."""
        name = f'{object}_{self.object_kind}' if self.object_kind else object
        return Goal(self.name, name, f'{target}_{self.target_kind}' if self.target_kind else '')

    def patterns(self) -> list[re.Pattern[str]]:
        """One for each phrasing."""
        words = {'object': self.objects, 'target': tuple(COLOURS)}
        groups = {key: f'(?P<{key}>{"|".join(names)})' for key, names in words.items()}
        return [re.compile(phrasing.format(**groups)) for phrasing in self.phrasings]


def coloured(rng: np.random.Generator, kind: str, count: int) -> list[Prop]:
    """Props of one kind in different colours."""
    colours = rng.permutation(list(COLOURS))[:count].tolist()
    return [(f'{colour}_{kind}', f'{kind}_{i}', kind, COLOURS[colour]) for i, colour in enumerate(colours)]
