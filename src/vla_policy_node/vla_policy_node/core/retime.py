"""How fast a path may be run: the fastest speed along it that keeps every joint inside its limits.

Time-optimal path parametrization by reachability (Pham and Pham, "TOPP-RA", 2018), for the simple case that the path
may always be stopped on: with x = (ds/dt)^2 and u = d2s/dt2 each joint gives |P' u + P'' x| <= acceleration, linear
in both. A backward pass finds the largest x from which the rest can still be done and the end be reached at rest, a
forward pass then goes as fast as it may. Only the speed changes, never the path.
"""

from dataclasses import dataclass

import numpy as np

_FLAT = 1e-9  # a joint whose P' is below this does not move here


@dataclass(frozen=True)
class Timing:
    """When to be where on the path. Arrays are (n,), from the start to rest at the end."""

    times: np.ndarray  # [s] since the start
    s: np.ndarray  # path parameter
    rates: np.ndarray  # ds/dt
    braking_from: float  # [s] time from which it only slows down to rest at the end

    def at(self, time: float) -> tuple[float, float]:
        """(s, ds/dt) at a time since the start; at rest at the end afterwards. ds/dt is linear in time between."""
        if time >= self.times[-1]:
            return float(self.s[-1]), 0.0
        k = int(np.searchsorted(self.times, time, side='right')) - 1
        span = self.times[k + 1] - self.times[k]
        u = (time - self.times[k]) / span
        slope = self.rates[k + 1] - self.rates[k]
        rate = self.rates[k] + slope * u
        return float(self.s[k] + span * u * (self.rates[k] + slope * u / 2)), float(rate)


def retime(
    s: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    rate: float,
    velocity: np.ndarray,
    acceleration: np.ndarray,
    corners: np.ndarray | None = None,
) -> Timing | None:
    """The fastest timing with ds/dt <= 1 that starts with ds/dt = rate; None if no timing keeps to the limits.

    s: (n,) evenly spaced; first, second: (n, dof) derivatives of the path by s; velocity, acceleration: (dof,) limits;
    corners: (n,) largest ds/dt at each point for another reason, or None.
    """
    ds = float(s[1] - s[0])
    highest = _speed_limit(first, second, velocity, acceleration)  # (n,) of x
    if corners is not None:
        highest = np.minimum(highest, corners**2)
    # u is constant between two points: the limits must hold with it at the next point, too.
    ahead = np.vstack([first[1:] + 2 * ds * second[1:], first[-1:]])
    both = np.hstack([first, ahead]), np.hstack([second, np.vstack([second[1:], second[-1:]])])
    slope, push = _bounds(*both, np.tile(acceleration, 2))
    highest = np.minimum(highest, _meeting(slope, push))
    ceiling = _controllable(highest, slope, push, ds)
    start = rate * rate
    if start > ceiling[0] * (1 + 1e-6) + 1e-9:
        return None
    x = _forward(min(start, ceiling[0]), ceiling, slope, push, ds)
    rates = np.sqrt(x)
    means = np.maximum((rates[1:] + rates[:-1]) / 2, 1e-6)
    times = np.concatenate([[0.0], np.cumsum(ds / means)])
    # The stop at the end begins after the last point where something else than the way to rest holds the speed down.
    other = np.flatnonzero((ceiling >= highest) | (x < ceiling * (1 - 1e-9)))
    braking = times[other[-1]] if len(other) else 0.0
    return Timing(times, s, rates, float(braking))


def _bounds(first: np.ndarray, second: np.ndarray, acceleration: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """slope, push (n, dof): each joint allows -push - slope x <= u <= push - slope x. push is infinite where flat."""
    moving = np.abs(first) > _FLAT
    safe = np.where(moving, first, 1.0)
    return np.where(moving, second / safe, 0.0), np.where(moving, acceleration / np.abs(safe), np.inf)


def _speed_limit(first: np.ndarray, second: np.ndarray, velocity: np.ndarray, acceleration: np.ndarray) -> np.ndarray:
    """(n,) largest x within the velocity limits, 1, and what a joint that does not move here can bear."""
    with np.errstate(divide='ignore', invalid='ignore'):
        x = np.minimum(1.0, ((velocity / np.abs(first)) ** 2).min(axis=1))
        flat = np.abs(first) <= _FLAT
        return np.minimum(x, np.where(flat, acceleration / np.abs(second), np.inf).min(axis=1))


def _meeting(slope: np.ndarray, push: np.ndarray) -> np.ndarray:
    """(n,) largest x at which the bounds on u of all joints have something in common."""
    # Lower bound of joint i below upper bound of joint j: (slope_j - slope_i) x <= push_i + push_j.
    with np.errstate(divide='ignore', invalid='ignore'):
        apart = slope[:, None, :] - slope[:, :, None]
        room = push[:, None, :] + push[:, :, None]
        return np.where(apart > _FLAT, room / apart, np.inf).min(axis=(1, 2))


def _controllable(highest: np.ndarray, slope: np.ndarray, push: np.ndarray, ds: float) -> np.ndarray:
    """(n,) largest x from which the path can be finished at rest: backward pass."""
    # Braking as hard as joint i allows, u = -push - slope x, must lead to the next ceiling at most:
    # x + 2 ds u <= next, so x (1 - 2 ds slope) <= next + 2 ds push.
    factor = 1.0 - 2 * ds * slope
    reach = 2 * ds * push
    with np.errstate(divide='ignore', invalid='ignore'):
        inverse = np.where(factor > _FLAT, 1.0 / factor, np.inf)
    ceiling = highest.copy()
    ceiling[-1] = 0.0
    for k in range(len(ceiling) - 2, -1, -1):
        ceiling[k] = min(highest[k], ((ceiling[k + 1] + reach[k]) * inverse[k]).min())
    return ceiling


def _forward(start: float, ceiling: np.ndarray, slope: np.ndarray, push: np.ndarray, ds: float) -> np.ndarray:
    """(n,) x: as fast as the ceiling and the acceleration allow."""
    x = np.empty_like(ceiling)
    x[0] = start
    for k in range(len(ceiling) - 1):
        fastest = float((push[k] - slope[k] * x[k]).min())
        x[k + 1] = max(0.0, min(ceiling[k + 1], x[k] + 2 * ds * fastest))
    return x
