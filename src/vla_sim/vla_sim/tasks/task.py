"""The interface of a task. One file beside this one has all parts of one task."""

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
    """Observes one episode for success."""

    reached: bool  # whether the goal is reached

    def update(self, state: SceneState, dt: float) -> None:
        """state: the scene now; dt: seconds since the last call, about the same each time."""


class Task(ABC):
    """A task. It has no state: the state of an episode is in its success test and skill."""

    name: ClassVar[str]
    phrasings: ClassVar[tuple[str, ...]]  # sentences with {object} and, where there is a target, {target}
    vague: ClassVar[tuple[str, ...]]  # sentences that name no object, for which a trace has to show it
    object_kind: ClassVar[str]  # 'button', 'block': named by colour; '': named by the produce
    target_kind: ClassVar[str]  # 'block', 'bowl'; '': no target
    objects: ClassVar[tuple[str, ...]]  # words for {object}
    stages: ClassVar[tuple[str, ...]]  # that lead to success, in order
    example: ClassVar[dict[str, str]]  # words of the example sentence
    has_buttons: ClassVar[bool] = False  # the props are buttons with a cap, not free bodies
    parked: ClassVar[tuple[str, ...]] = ()  # slots of props that an episode may leave out

    @abstractmethod
    def sample(self, rng: np.random.Generator) -> tuple[list[Prop], Goal]:
        """Return the props and the goal of an episode."""

    @abstractmethod
    def add_props(self, spec: mujoco.MjSpec) -> None:
        """Add the props of all its episodes to a scene."""

    @abstractmethod
    def success_test(self, goal: Goal) -> SuccessTest:
        """Return the success test of one episode."""

    @abstractmethod
    def stages_at(self, goal: Goal, state: SceneState, start: dict[str, np.ndarray]) -> list[str]:
        """Return the stages that the scene shows. start: initial positions (3,) [m], by body."""

    @abstractmethod
    def skill(self, goal: Goal, kinematics: Kinematics, max_opening: float) -> Skill:
        """Return the expert's skill for a goal. max_opening: of the gripper [m]."""

    def rests(self, state: SceneState, goal: Goal) -> bool:
        """Return whether the object is at the target of the goal; False for a task without target."""
        return False

    def goal(self, object: str, target: str) -> Goal:
        """Return the goal of a sentence with these words for {object} and {target}."""
        name = f'{object}_{self.object_kind}' if self.object_kind else object
        return Goal(self.name, name, f'{target}_{self.target_kind}' if self.target_kind else '')

    def patterns(self) -> list[re.Pattern[str]]:
        """A pattern for each phrasing."""
        words = {'object': self.objects, 'target': tuple(COLOURS)}
        groups = {key: f'(?P<{key}>{"|".join(names)})' for key, names in words.items()}
        return [re.compile(phrasing.format(**groups)) for phrasing in self.phrasings]


def coloured(rng: np.random.Generator, kind: str, count: int) -> list[Prop]:
    """Return props of one kind in different random colours."""
    colours = rng.permutation(list(COLOURS))[:count].tolist()
    return [(f'{colour}_{kind}', f'{kind}_{i}', kind, COLOURS[colour]) for i, colour in enumerate(colours)]
