"""Limits of the motion, and the check of planned set-points against them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vla_core.motion.config import ExecutorConfig
from vla_core.profile import RobotProfile

ToolPositions = Callable[[np.ndarray], np.ndarray]  # (n, dof) [rad] -> (n, 3) [m] in the base frame

_CREEP = 0.01  # [rad/s] where the velocity limit falls below this, the position range ends
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Excess:
    """Largest multiples of the limits in a motion; a value above 1 exceeds its limit."""

    velocity: float
    acceleration: float
    jerk: float
    position: float  # [rad] beyond the limits; positive where they are exceeded

    @property
    def none(self) -> bool:
        return max(self.velocity, self.acceleration, self.jerk) <= 1 + _ROUNDING and self.position <= 0


class Limits:
    """Limits of one robot at the fractions of one configuration. Arrays are (dof,)."""

    def __init__(self, profile: RobotProfile, config: ExecutorConfig, tool: ToolPositions | None = None) -> None:
        """tool: positions of the tool at joint positions; None: its speed is not limited."""
        self.profile, self._tool, self._tool_speed = profile, tool, min(config.tool_speed_limit, profile.tool_speed)
        self._fraction = config.velocity_fraction
        self.velocity = config.velocity_fraction * profile.velocity
        self.acceleration = config.acceleration_fraction * profile.acceleration
        self.braking = min(1.0, config.acceleration_fraction + config.brake_fraction) * profile.acceleration
        self.jerk = profile.jerk
        self.lower, self.upper = reach(profile)

    def velocities(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the largest speeds [rad/s] downwards and upwards at q (n, dof) [rad]: two (n, dof), both positive."""
        down, up = velocity_limits(self.profile, q)
        return self._fraction * down, self._fraction * up

    def rate_caps(self, q: np.ndarray, first: np.ndarray) -> np.ndarray:
        """Return the largest ds/dt (n,) at points q (n, dof) of a path. first: (n, dof) derivative by s there."""
        down, up = self.velocities(q)
        with np.errstate(divide='ignore', over='ignore', invalid='ignore'):
            bound = np.where(first > 0, up, down)
            caps = np.where(first == 0, np.inf, bound / np.abs(first)).min(axis=1)
        # Between two points the cap may be as low as at the lower one, where the limit falls steeply.
        beside = np.minimum(np.append(caps[1:], np.inf), np.insert(caps[:-1], 0, np.inf))
        return np.minimum(caps, beside)

    def tool_caps(self, q: np.ndarray, ds: np.ndarray) -> np.ndarray:
        """Return the largest ds/dt (n,) for the speed of the tool at points q (n, dof), which are ds (n - 1,) apart."""
        if self._tool is None:
            return np.full(len(q), np.inf)
        moved = np.linalg.norm(np.diff(self._tool(q), axis=0), axis=1) / ds
        fastest = np.maximum(np.append(moved, 0.0), np.insert(moved, 0, 0.0))  # on both sides of a point
        return self._tool_speed / np.maximum(fastest, 1e-9)

    def excess(self, q: np.ndarray, step: float, begins: int, start: np.ndarray) -> Excess:
        """Return by how much a motion q (n, dof) [rad], one row per `step` [s], exceeds the limits.

        The derivatives of a spline with these control points stay within the differences of the points, so only these
        are checked. Rows up to `begins` may accelerate as braking does. start: (dof,) [rad] position before the
        motion. An arm that is outside the position limits already may stay there, but move no further out.
        """
        d1 = np.diff(q, axis=0) / step
        d2 = np.diff(d1, axis=0) / step
        d3 = np.diff(d2, axis=0) / step
        down, up = self.velocities(q[1:-1])
        middle = (d1[1:] + d1[:-1]) / 2
        bound = np.maximum(np.where(middle > 0, up, down), 1e-9)
        velocity = max(_largest(np.abs(middle) - 1e-6, bound), _largest(np.abs(d1), self.velocity))
        if self._tool is not None:
            moved = np.linalg.norm(np.diff(self._tool(q), axis=0), axis=1) / step
            velocity = max(velocity, float(moved.max()) / self._tool_speed)
        return Excess(
            velocity,
            max(_largest(np.abs(d2[:begins]), self.braking), _largest(np.abs(d2[begins:]), self.acceleration)),
            _largest(np.abs(d3), self.jerk),
            self.outside(q, start),
        )

    def outside(self, q: np.ndarray, start: np.ndarray) -> float:
        """Return the largest distance [rad] of positions q (n, dof) beyond the limits, negative inside.

        Limits are widened to `start` (dof,) where it is outside already.
        """
        beyond = np.maximum(np.minimum(self.lower, start) - q, q - np.maximum(self.upper, start))
        return float(beyond.max()) - _ROUNDING


def velocity_limits(profile: RobotProfile, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest speeds [rad/s] downwards and upwards at q (n, dof) [rad]: two (n, dof), both positive.

    With a velocity law in the profile they fall towards the ends of the position range, see RobotProfile.
    """
    if profile.velocity_law is None:
        full = np.broadcast_to(profile.velocity, q.shape)
        return full, full
    a, offset, lower, upper = profile.velocity_law

    def law(room: np.ndarray) -> np.ndarray:
        return np.clip(np.sqrt(np.maximum(0.0, 2 * a * room)) - offset, 0.0, profile.velocity)

    return law(q - lower), law(upper - q)


def reach(profile: RobotProfile) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower and upper positions (dof,) [rad] that the arm reaches before its velocity limit is near 0."""
    if profile.velocity_law is None:
        return profile.position_lower, profile.position_upper
    a, offset, lower, upper = profile.velocity_law
    room = (offset + _CREEP) ** 2 / (2 * a)  # the formula in RobotProfile, solved for v = _CREEP
    return np.maximum(profile.position_lower, lower + room), np.minimum(profile.position_upper, upper - room)


def _largest(values: np.ndarray, limits: np.ndarray) -> float:
    return float((values / limits).max()) if values.size else 0.0
