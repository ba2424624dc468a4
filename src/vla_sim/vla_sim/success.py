"""When a task is done. Works on a plain description of the scene, so it can be tested without a simulator."""

from dataclasses import dataclass

import numpy as np

from vla_sim.tasks import BLOCK_EDGE, BOWL_HEIGHT, Goal

PRESSED, TOUCHED = 0.7, 0.35  # of a button's travel: the named button was pressed; another one was disturbed
STACK_OFFSET = 0.018  # [m] between the centres seen from above; the upper block tips beyond 0.020
STACK_HEIGHT_TOLERANCE = 0.006  # [m]
BOWL_INNER_RADIUS = 0.050  # [m] the centre of the item must lie within it
AWAY = 0.07  # [m] from the tool centre point to the object
OPEN = 0.05  # [m] opening from which the gripper counts as open
STILL = 0.02  # [m/s]
SETTLED = 0.3  # [s] that everything must have held


@dataclass(frozen=True)
class SceneState:
    """What the tests look at. Positions [m] in the base frame."""

    positions: dict[str, np.ndarray]  # body name -> (3,)
    speeds: dict[str, float]  # body name -> [m/s]
    presses: dict[str, float]  # button name -> how far its cap is down, 0..1 of its travel
    tool: np.ndarray  # (3,) tool centre point
    opening: float  # [m] of the gripper


class SuccessTest:
    """Watches one episode. Feed it at a steady rate; `reached` tells whether the goal is reached now.

    A button must have been pressed with no other one disturbed before; blocks and bowls must be at rest and let go
    of for SETTLED seconds.
    """

    def __init__(self, goal: Goal) -> None:
        self.goal = goal
        self.reached = False
        self._spoiled = False
        self._held = 0.0

    def update(self, state: SceneState, dt: float) -> None:
        """state: the scene now; dt: seconds since the last call."""
        if self.goal.task == 'press_button':
            self._spoiled |= any(p > TOUCHED for name, p in state.presses.items() if name != self.goal.object)
            self.reached |= state.presses[self.goal.object] >= PRESSED and not self._spoiled
            return
        rests = stacked(state, self.goal) if self.goal.task == 'stack_block' else in_bowl(state, self.goal)
        self._held = self._held + dt if rests and let_go(state, self.goal) else 0.0
        self.reached = self._held >= SETTLED


def let_go(state: SceneState, goal: Goal) -> bool:
    """Object and target at rest, gripper open and away from the object."""
    away = np.linalg.norm(state.tool - state.positions[goal.object]) > AWAY
    still = max(state.speeds[goal.object], state.speeds[goal.target]) < STILL
    return bool(away and still and state.opening > OPEN)


def stacked(state: SceneState, goal: Goal) -> bool:
    """The object block lies on the target block."""
    offset = state.positions[goal.object] - state.positions[goal.target]
    return bool(np.hypot(offset[0], offset[1]) < STACK_OFFSET and abs(offset[2] - BLOCK_EDGE) < STACK_HEIGHT_TOLERANCE)


def in_bowl(state: SceneState, goal: Goal) -> bool:
    """The centre of the object is inside the target bowl, whose position is the middle of its bottom."""
    offset = state.positions[goal.object] - state.positions[goal.target]
    return bool(np.hypot(offset[0], offset[1]) < BOWL_INNER_RADIUS and 0.0 < offset[2] < BOWL_HEIGHT)
