"""Smooth errors of the set-points that push the arm off the path of the expert now and then.

The recorded action is the set-point without the error, so the data shows the way back (DART, Laskey et al. 2017).
"""

from dataclasses import dataclass

import numpy as np

from vla_sim.rollout import TICK


@dataclass(frozen=True)
class Push:
    """How the set-points are disturbed. Lengths of time [s], angles [rad]."""

    size: float = 0.035  # standard deviation per joint
    start_size: float = 0.06  # same, of the push that an episode may begin with
    start_share: float = 0.4  # of the episodes that begin with one
    rest: tuple[float, float] = (0.4, 2.0)  # between two pushes
    hold: tuple[float, float] = (0.3, 0.9)
    lag: float = 0.12  # the error follows the push like two low-pass filters in a row


class Disturbance:
    """The error of the set-points over time. `advance` is called once per control step."""

    def __init__(self, push: Push, rng: np.random.Generator, dof: int) -> None:
        self.push, self.rng, self.dof = push, rng, dof
        self.error, self._half = np.zeros(dof), np.zeros(dof)  # [rad]
        self._target = np.zeros(dof)
        self._left = 0  # control steps until the target changes
        if rng.random() < push.start_share:
            self._aim(push.start_size)

    def advance(self, height: float) -> np.ndarray:
        """(dof,) [rad] error of the next set-point. height [m] of the tool: near the table the arm is pushed less."""
        if self._left == 0:
            if self._target.any():
                self._target = np.zeros(self.dof)
                self._left = self._steps(self.push.rest)
            else:
                self._aim(self.push.size * float(np.clip(height / 0.15, 0.15, 1.0)))
        self._left -= 1
        share = TICK * 1e-3 / self.push.lag
        self._half = self._half + share * (self._target - self._half)
        self.error = self.error + share * (self._half - self.error)
        return self.error

    def _aim(self, size: float) -> None:
        self._target = self.rng.normal(0.0, size, self.dof)
        self._left = self._steps(self.push.hold)

    def _steps(self, span: tuple[float, float]) -> int:
        return max(1, round(self.rng.uniform(*span) * 1000 / TICK))
