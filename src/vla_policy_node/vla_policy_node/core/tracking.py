"""Is the arm where it was sent? A controller may follow late, but it goes where the set-points went.

A joint is compared with the range of its set-points over the last `delay`, so neither the lag of an impedance
controller that is not told velocities (damping / stiffness, 0.1 s with crisp_controllers' gains) nor an old joint state
counts as being elsewhere. A blocked joint is noticed once it is `limit` + speed x `delay` behind, and that times the
stiffness is about the torque with which the arm then pushes.
"""

import math
from collections import deque

import numpy as np


class Tracking:
    """The set-points that were sent of late."""

    def __init__(self, delay: float, period: float) -> None:
        """delay: [s] by which the arm may be late. period: [s] between two set-points."""
        self._sent: deque[np.ndarray] = deque(maxlen=math.ceil(delay / period) + 1)

    def begin(self, positions: np.ndarray) -> None:
        """The arm stands here, (dof,) [rad]; what was sent before counts no more."""
        self._sent.clear()
        self._sent.append(positions)

    def sent(self, positions: np.ndarray) -> None:
        """A set-point (dof,) [rad], each period."""
        self._sent.append(positions)

    def away(self, measured: np.ndarray) -> np.ndarray:
        """(dof,) [rad] by which each joint is outside of the range that it was sent through."""
        if not self._sent:
            return np.zeros_like(measured)
        sent = np.array(self._sent)
        return np.maximum(np.maximum(sent.min(0) - measured, measured - sent.max(0)), 0.0)
