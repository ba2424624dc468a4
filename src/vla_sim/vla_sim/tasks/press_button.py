"""Task: press the named button with the closed fingers."""

import numpy as np

from vla_sim.assets import props
from vla_sim.assets.objects import COLOURS, spoken
from vla_sim.assets.props import CAP_TOP, CAP_TRAVEL
from vla_sim.kinematics import Kinematics
from vla_sim.motion import Waypoint
from vla_sim.rendering.opengl import mujoco
from vla_sim.tasks.episode import Goal, SceneState
from vla_sim.tasks.skill import FINGERTIP, Make, Measured, Phase, Skill, raised, rise, up
from vla_sim.tasks.success import OVER, TOUCHED
from vla_sim.tasks.task import Prop, Task, coloured

PRESSED = 0.7  # of a button's travel
BUTTONS = 3


class PressButton(Task):
    name = 'press_button'
    phrasings = (
        'press the {object} button',
        'push the {object} button',
        'push down the {object} button',
        'hit the {object} button',
    )
    vague = ('press a button', 'push a button', 'press one of the buttons')
    object_kind, target_kind = 'button', ''
    objects = tuple(COLOURS)
    stages = ('reach', 'press')
    example = {'object': 'red', 'target': ''}
    has_buttons = True

    def sample(self, rng: np.random.Generator) -> tuple[list[Prop], Goal]:
        buttons = coloured(rng, 'button', BUTTONS)
        return buttons, Goal(self.name, buttons[0][0], '')

    def add_props(self, spec: mujoco.MjSpec) -> None:
        for i in range(BUTTONS):
            props.add_button(spec, f'button_{i}')

    def success_test(self, goal: Goal) -> 'PressTest':
        return PressTest(goal)

    def stages_at(self, goal: Goal, state: SceneState, start: dict[str, np.ndarray]) -> list[str]:
        at, reached = state.positions[goal.object], []
        if np.hypot(*(state.tool - at)[:2]) < OVER and state.tool[2] - at[2] < 2 * OVER:
            reached.append('reach')
        return reached + ['press'] * (state.presses[goal.object] > TOUCHED)

    def skill(self, goal: Goal, kinematics: Kinematics, max_opening: float) -> Skill:
        return Press(goal, kinematics, max_opening)


class PressTest:
    """Success once the button was pressed and no other button was disturbed before."""

    def __init__(self, goal: Goal) -> None:
        self.goal, self.reached, self._spoiled = goal, False, False

    def update(self, state: SceneState, dt: float) -> None:
        """state: the scene now; dt: seconds since the last call."""
        self._spoiled |= any(p > TOUCHED for name, p in state.presses.items() if name != self.goal.object)
        self.reached |= state.presses[self.goal.object] >= PRESSED and not self._spoiled


class Press(Skill):
    """Presses a button with the closed fingers."""

    DEEP = 0.004  # [m] commanded below the end of the cap's travel, as the arm is compliant

    def __init__(self, goal: Goal, kinematics: Kinematics, max_opening: float) -> None:
        super().__init__(kinematics, max_opening)
        self.button, self.cap = goal.object, f'{goal.object}_cap'
        name = spoken(self.button)
        self.subtasks = (f'move above the {name}', f'press the {name}', f'move away from the {name}')
        self.needs = (self.button, self.cap)

    def phases(self, measured: Measured) -> list[Make]:
        return [self._above, self._press, self._away]

    def clear(self, measured: Measured, at: Waypoint) -> Phase:
        return Phase(self.subtasks[0], 0.0, rise(at))

    def _tool_at(self, measured: Measured, height: float) -> Waypoint:
        """Return the tool pose with the fingertips at a height [m] above the button's foot, hand away from the base."""
        tool = raised(measured.position(self.button), height + FINGERTIP)
        return Waypoint(tool, float(np.arctan2(tool[1], tool[0])))

    def _above(self, measured: Measured, at: Waypoint) -> Phase:
        return Phase(self.subtasks[0], 0.0, (self._tool_at(measured, CAP_TOP + 0.05),), dwell=0.1)

    def _press(self, measured: Measured, at: Waypoint) -> Phase:
        def pressed(now: Measured) -> bool:
            down = now.position(self.button)[2] + CAP_TOP - now.position(self.cap)[2]
            return bool(down > 0.85 * CAP_TRAVEL)

        deep = self._tool_at(measured, CAP_TOP - CAP_TRAVEL - self.DEEP)
        return Phase(self.subtasks[1], 0.0, (deep,), dwell=0.4, ready=pressed)

    def _away(self, measured: Measured, at: Waypoint) -> Phase:
        return Phase(self.subtasks[2], self.max_opening, (up(at), self.home), dwell=0.1)
