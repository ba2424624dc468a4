"""What an episode shows beside success: how far the task came, and whether another object than the right one was used.

Like success.py it works on a plain description of the scene. It is for evaluation, never for a policy.
"""

from dataclasses import replace

import numpy as np

from vla_sim.success import SETTLED, TOUCHED, SceneState, in_bowl, let_go, stacked
from vla_sim.tasks import PRODUCE, Goal

LIFTED = 0.02  # [m] above where it stood: it was picked up
AT_OBJECT = 0.03  # [m] from the tool to the object: reached
OVER = 0.06  # [m] as seen from above: over the target, or over a button
STAGES = {
    'press_button': ('reach', 'press'),
    'stack_block': ('reach', 'grasp', 'carry', 'place'),
    'fill_bowl': ('reach', 'grasp', 'carry', 'place'),
}  # success is what follows the last one


class Referee:
    """Watches one episode. Feed it at a steady rate."""

    def __init__(self, goal: Goal, state: SceneState) -> None:
        """state: the scene when the episode begins."""
        self.goal = goal
        self.wrong = ''  # the first thing that was done to an object not asked for, as a sentence
        self._start = {name: position.copy() for name, position in state.positions.items()}
        self._reached: set[str] = set()
        self._misplaced: dict[str, float] = {}  # target -> [s] that the object has lain in or on it

    @property
    def missed(self) -> str:
        """The first stage that was not reached; the last one when all were: then it did not stay."""
        stages = STAGES[self.goal.task]
        return next((stage for stage in stages if stage not in self._reached), stages[-1])

    def update(self, state: SceneState, dt: float) -> None:
        """state: the scene now; dt: seconds since the last call."""
        self.wrong = self.wrong or self._mistake(state, dt)
        self._reached.update(self._stages(state))

    def _stages(self, state: SceneState) -> list[str]:
        goal, reached = self.goal, []
        at = state.positions[goal.object]
        if goal.task == 'press_button':
            if np.hypot(*(state.tool - at)[:2]) < OVER and state.tool[2] - at[2] < 2 * OVER:
                reached.append('reach')
            return reached + ['press'] * (state.presses[goal.object] > TOUCHED)
        lifted = at[2] - self._start[goal.object][2] > LIFTED
        if np.linalg.norm(state.tool - at) < AT_OBJECT:
            reached.append('reach')
        if lifted:
            reached.append('grasp')
        if lifted and np.hypot(*(at - state.positions[goal.target])[:2]) < OVER:
            reached.append('carry')
        if _rests(state, goal):
            reached.append('place')
        return reached

    def _mistake(self, state: SceneState, dt: float) -> str:
        goal = self.goal
        for name, press in state.presses.items():
            if name != goal.object and press > TOUCHED:
                return f'pressed the {_words(name)}'
        if goal.task == 'press_button':
            return ''
        for name, position in state.positions.items():
            if name == goal.object:
                continue
            if _takes(name, goal.task) and name != goal.target:
                rests = _rests(state, replace(goal, target=name)) and let_go(state, replace(goal, target=name))
                self._misplaced[name] = self._misplaced.get(name, 0.0) + dt if rests else 0.0
                if self._misplaced[name] >= SETTLED:
                    return f'put the {_words(goal.object)} onto the {_words(name)}'
            if _movable(name) and position[2] - self._start[name][2] > LIFTED:
                return f'lifted the {_words(name)}'
        return ''


def _rests(state: SceneState, goal: Goal) -> bool:
    return stacked(state, goal) if goal.task == 'stack_block' else in_bowl(state, goal)


def _movable(name: str) -> bool:
    return name in PRODUCE or name.endswith('_block')


def _takes(name: str, task: str) -> bool:
    """Whether things can be put onto or into it."""
    return name.endswith('_block' if task == 'stack_block' else '_bowl')


def _words(body: str) -> str:
    return body.replace('_', ' ')
