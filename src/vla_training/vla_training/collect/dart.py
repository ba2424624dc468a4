"""Adds smooth errors to the set-points, which push the arm off the expert's path now and then.

The recorded action is the set-point without the error, so the data shows the way back (DART, Laskey et al. 2017).
"""

from dataclasses import dataclass

import numpy as np

from vla_sim.rollout import TICK


@dataclass(frozen=True)
class Push:
    """Settings of the disturbance. Durations [s], angles [rad]."""

    size: float = 0.035  # standard deviation per joint
    start_size: float = 0.06  # standard deviation per joint of a push at the start of an episode
    start_share: float = 0.4  # share of the episodes that start with a push
    rest: tuple[float, float] = (0.4, 2.0)  # range of the time between two pushes
    hold: tuple[float, float] = (0.3, 0.9)  # range of the duration of a push
    lag: float = 0.12  # the error follows the push like two low-pass filters in a row


class Disturbance:
    """The error of the set-points over time."""

    def __init__(self, push: Push, rng: np.random.Generator, dof: int) -> None:
        self.push, self.rng, self.dof = push, rng, dof
        self.error, self._half = np.zeros(dof), np.zeros(dof)  # [rad]
        self._target = np.zeros(dof)
        self._left = 0  # control steps until the target changes
        if rng.random() < push.start_share:
            self._aim(push.start_size)

    def advance(self, height: float) -> np.ndarray:
        """Advance by one control step. Return the error (dof,) [rad] of the next set-point.

        height: of the tool above the table [m]. Near the table the arm is pushed less.
        """
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
