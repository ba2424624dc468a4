"""Smooth joint motion through tool poses: minimum jerk in space, inverse kinematics along the path. No ROS."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vla_core.kinematics.ik import rotation_matrix, rotation_vector
from vla_sim.kinematics import Kinematics, tool_down

OVERLAP = 0.5  # overlap of two legs as a share of the shorter one, which rounds corners
SAMPLE = 0.025  # [s] between two inverse kinematics solutions; cubics connect them


@dataclass(frozen=True)
class Waypoint:
    """A pose of the tool, pointing straight down."""

    position: np.ndarray  # (3,) [m] of the tool centre point, base frame
    yaw: float  # [rad] direction of the tool's x axis in the base's x-y plane


@dataclass(frozen=True)
class Limits:
    """Limits of a planned motion."""

    speed: float = 0.33  # [m/s] of the tool
    acceleration: float = 1.1  # [m/s^2] of the tool on one leg
    turn: float = 1.4  # [rad/s] of the tool about the vertical, and of any joint on one leg
    turn_acceleration: float = 4.0  # [rad/s^2] likewise
    share: float = 0.45  # of the joints' velocity and acceleration limits


class JointPath:
    """Joint positions over time from 0 to `duration` [s]; at rest before and after."""

    def __init__(self, samples: np.ndarray, step: float, start_velocity: np.ndarray | None = None) -> None:
        """samples: (n, dof) [rad], n >= 2, `step` [s] apart. start_velocity: (dof,) [rad/s]; None: from rest."""
        self.samples, self.step = samples, step
        self.duration = (len(samples) - 1) * step
        # Rest at the end, central differences inside (Catmull-Rom): velocity is continuous everywhere.
        self.velocities = np.zeros_like(samples)
        if start_velocity is not None:
            self.velocities[0] = start_velocity
        self.velocities[1:-1] = (samples[2:] - samples[:-2]) / (2 * step)

    @classmethod
    def hold(cls, q: np.ndarray, duration: float) -> 'JointPath':
        """Return a path at rest at q (dof,) [rad] for `duration` [s]."""
        return cls(np.stack([q, q]), duration)

    @property
    def end(self) -> np.ndarray:
        """Final position, (dof,) [rad]."""
        return self.samples[-1]

    def at(self, t: float) -> np.ndarray:
        """Return the position at time t [s], (dof,) [rad]: cubic Hermite between the samples."""
        if t <= 0 or self.duration <= 0:
            return self.samples[0].copy()
        if t >= self.duration:
            return self.samples[-1].copy()
        i = min(int(t / self.step), len(self.samples) - 2)
        u = t / self.step - i
        a, b = self.samples[i], self.samples[i + 1]
        va, vb = self.velocities[i] * self.step, self.velocities[i + 1] * self.step
        return a + u * va + u * u * (3 * (b - a) - 2 * va - vb) + u**3 * (2 * (a - b) + va + vb)


def minimum_jerk(u: np.ndarray | float) -> np.ndarray:
    """Return the minimum-jerk profile from 0 to 1 for u from 0 to 1 (Flash and Hogan, 1985); clamped outside."""
    u = np.clip(u, 0.0, 1.0)
    return u**3 * (10.0 - 15.0 * u + 6.0 * u**2)


def plan_path(
    kinematics: Kinematics,
    start: np.ndarray,
    waypoints: Sequence[Waypoint],
    velocity: np.ndarray,
    acceleration: np.ndarray,
    limits: Limits = Limits(),
) -> JointPath:
    """Return a path from rest at `start` (dof,) [rad] through the waypoints to rest at the last one.

    Each leg is a minimum-jerk motion of position and yaw, and starts before the end of the one before; the sum is as
    smooth as a leg. The first leg removes a tilt of the tool. velocity [rad/s] and acceleration [rad/s^2]: limits of
    the joints (dof,). Raises IKError for an unreachable pose.
    """
    position, rotation = kinematics.forward(start)
    yaw = float(np.arctan2(rotation[1, 0], rotation[0, 0]))
    tilt = rotation_vector(tool_down(yaw).T @ rotation)
    goal, end = start, 0.0
    legs: list[tuple[np.ndarray, float, float, float]] = []  # distance [m], turn [rad], start [s], duration [s]
    at, facing = position, yaw
    for waypoint in waypoints:
        reached, goal = goal, kinematics.inverse(waypoint.position, tool_down(waypoint.yaw), goal)
        move, turn = waypoint.position - at, waypoint.yaw - facing
        # The elbow may have to move while the tool is almost at rest.
        duration = leg_duration(float(np.linalg.norm(move)), max(abs(turn), np.abs(goal - reached).max()), limits)
        begin = end - OVERLAP * min(duration, legs[-1][3]) if legs else 0.0
        legs.append((move, turn, begin, duration))
        at, facing, end = waypoint.position, waypoint.yaw, begin + duration

    times = np.linspace(0.0, end, max(2, round(end / SAMPLE) + 1))
    samples, tool = np.empty((len(times), len(start))), np.empty((len(times), 3))
    samples[0], q = start, start
    for i, t in enumerate(times):
        shares = [float(minimum_jerk((t - begin) / duration)) for _, _, begin, duration in legs]
        tool[i] = position + sum(share * leg[0] for share, leg in zip(shares, legs, strict=True))
        turned = yaw + sum(share * leg[1] for share, leg in zip(shares, legs, strict=True))
        if i == 0:
            continue
        # The elbow moves from its position to its rest at the goal, so both ends of the path are exact.
        rest = start + float(minimum_jerk(t / end)) * (goal - start)
        q = samples[i] = kinematics.inverse(
            tool[i], tool_down(turned) @ rotation_matrix((1 - shares[0]) * tilt), q, rest=rest
        )
    step = times[1]
    speeds = np.diff(samples, axis=0, prepend=samples[:1], append=samples[-1:]) / step
    slow = max(
        1.0,
        float(np.linalg.norm(np.diff(tool, axis=0), axis=1).max() / step / limits.speed),
        float((np.abs(speeds) / (limits.share * velocity)).max()),
        float(np.sqrt((np.abs(np.diff(speeds, axis=0)) / step / (limits.share * acceleration)).max())),
    )
    return JointPath(samples, step * slow)


def leg_duration(distance: float, turn: float, limits: Limits) -> float:
    """Return the duration [s] of a minimum-jerk motion of `distance` [m] and `turn` [rad].

    Its peak speed is 1.875 distance / duration, its peak acceleration 5.774 distance / duration^2.
    """
    return max(
        1.875 * distance / limits.speed,
        1.875 * turn / limits.turn,
        float(np.sqrt(5.774 * distance / limits.acceleration)),
        float(np.sqrt(5.774 * turn / limits.turn_acceleration)),
        SAMPLE,
    )
