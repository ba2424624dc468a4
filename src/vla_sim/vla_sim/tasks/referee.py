"""Facts of an episode beside success: the reached stages, and actions on a wrong object.

Like success.py it works on a SceneState. It is for evaluation, never for a policy.
"""

from dataclasses import replace

from vla_sim.assets.objects import PRODUCE, spoken
from vla_sim.tasks import task_of
from vla_sim.tasks.episode import Goal, SceneState
from vla_sim.tasks.success import LIFTED, SETTLED, TOUCHED, let_go


class Referee:
    """Observes one episode. Call `update` at a steady rate."""

    def __init__(self, goal: Goal, state: SceneState) -> None:
        """state: the scene at the start of the episode."""
        self.goal, self._task = goal, task_of(goal.task)
        self.wrong = ''  # first action on an object that the instruction does not name, as a sentence
        self._start = {name: position.copy() for name, position in state.positions.items()}
        self._reached: set[str] = set()
        self._misplaced: dict[str, float] = {}  # target -> [s] for which the object has been in or on it

    @property
    def missed(self) -> str:
        """First stage that was not reached; the last stage if all were reached and success did not last."""
        stages = self._task.stages
        return next((stage for stage in stages if stage not in self._reached), stages[-1])

    def update(self, state: SceneState, dt: float) -> None:
        """state: the scene now; dt: seconds since the last call."""
        self.wrong = self.wrong or self._mistake(state, dt)
        self._reached.update(self._task.stages_at(self.goal, state, self._start))

    def _mistake(self, state: SceneState, dt: float) -> str:
        goal, task = self.goal, self._task
        for name, press in state.presses.items():
            if name != goal.object and press > TOUCHED:
                return f'pressed the {spoken(name)}'
        if not task.target_kind:
            return ''
        for name, position in state.positions.items():
            if name == goal.object:
                continue
            if name.endswith(f'_{task.target_kind}') and name != goal.target:
                other = replace(goal, target=name)
                rests = task.rests(state, other) and let_go(state, other)
                self._misplaced[name] = self._misplaced.get(name, 0.0) + dt if rests else 0.0
                if self._misplaced[name] >= SETTLED:
                    return f'put the {spoken(goal.object)} onto the {spoken(name)}'
            if _movable(name) and position[2] - self._start[name][2] > LIFTED:
                return f'lifted the {spoken(name)}'
        return ''


def _movable(name: str) -> bool:
    return name in PRODUCE or name.endswith('_block')
