"""Thresholds of success tests and referee, and the test of a released object.

They work on a SceneState, so tests need no simulator.
"""

import numpy as np

from vla_sim.tasks.episode import Goal, SceneState

TOUCHED = 0.35  # of a button's travel: it was disturbed
LIFTED = 0.02  # [m] above where it stood: it was picked up
AT_OBJECT = 0.03  # [m] from the tool to the object: reached
OVER = 0.06  # [m] as seen from above: over the target, or over a button
AWAY = 0.07  # [m] from the tool centre point to the object
OPEN = 0.05  # [m] opening from which the gripper counts as open
STILL = 0.02  # [m/s]
SETTLED = 0.3  # [s] for which the conditions must have lasted


def let_go(state: SceneState, goal: Goal) -> bool:
    """Return whether object and target are at rest, and the gripper is open and away from the object."""
    away = np.linalg.norm(state.tool - state.positions[goal.object]) > AWAY
    still = max(state.speeds[goal.object], state.speeds[goal.target]) < STILL
    return bool(away and still and state.opening > OPEN)
