"""Retiming of a path: the fastest speed along it that keeps every joint inside its limits.

Time-optimal path parametrization by reachability (Pham and Pham, "TOPP-RA", 2018), for the simple case that the motion
may stop anywhere on the path. With x = (ds/dt)^2 and u = d2s/dt2 each joint gives |P' u + P'' x| <= acceleration,
linear in both. A backward pass finds the largest x from which the end can still be reached at rest. A forward pass then
takes the largest x that it can reach. Only the speed changes, never the path.
"""

from dataclasses import dataclass

import numpy as np

_FLAT = 1e-9  # a joint whose P' is below this does not move here
_OVER = 1.06  # x may start above the ceiling by this factor: it falls below within the acceleration limits


@dataclass(frozen=True)
class Timing:
    """The timing of a path: arrays (n,), from the start to rest at the end."""

    times: np.ndarray  # [s] since the start
    s: np.ndarray  # path parameter
    rates: np.ndarray  # ds/dt
    braking_from: float  # [s] time from which the speed only falls, to rest at the end

    def at(self, times: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return s, ds/dt and d2s/dt2, each (m,), at times (m,) [s] since the start; after the end, rest there."""
        k = np.clip(np.searchsorted(self.times, times, side='right') - 1, 0, len(self.times) - 2)
        span = self.times[k + 1] - self.times[k]
        past = np.minimum(times - self.times[k], span)
        push = (self.rates[k + 1] - self.rates[k]) / span
        s = np.minimum(self.s[k] + (self.rates[k] + push * past / 2) * past, self.s[-1])
        over = times >= self.times[-1]
        return np.where(over, self.s[-1], s), np.where(over, 0.0, self.rates[k] + push * past), np.where(over, 0, push)


def retime(
    s: np.ndarray,
    first: np.ndarray,
    second: tuple[np.ndarray, np.ndarray],
    rate: float,
    caps: np.ndarray,
    acceleration: np.ndarray,
) -> Timing | None:
    """Return the fastest timing that starts with ds/dt = rate and ends at rest; None if no timing keeps the limits.

    s: (n,) growing. first: (n, dof) derivative of the path by s. second: its second derivative just after the start
    and just before the end of each piece, (n - 1, dof) each: it may jump at the points. caps: (n,) largest ds/dt at
    each point. acceleration: (dof,) limits.
    """
    ds = np.diff(s)
    after, before = second
    # u is constant on a piece. The limits must hold at its end, too, where x has grown by 2 ds u.
    ahead = first[1:] + 2 * ds[:, None] * before
    bends = np.hstack([after, before])
    slope, push = _bounds(np.hstack([first[:-1], ahead]), bends, np.tile(acceleration, 2))
    highest = caps**2  # (n,) of x
    highest[:-1] = np.minimum(highest[:-1], _flat_limit(first[:-1], after, acceleration))
    highest[:-1] = np.minimum(highest[:-1], _meeting(slope, push))
    ceiling = _controllable(highest, slope, push, ds)
    start = rate * rate
    if start > ceiling[0] * _OVER + 1e-9:
        return None
    x = _forward(start, ceiling, slope, push, ds)
    if x is None:
        return None
    rates = np.sqrt(x)
    means = np.maximum((rates[1:] + rates[:-1]) / 2, 1e-6)
    times = np.concatenate([[0.0], np.cumsum(ds / means)])
    # The stop at the end starts after the last point at which another limit than the stop holds the speed down.
    other = np.flatnonzero((ceiling >= highest) | (x < ceiling * (1 - 1e-9)))
    braking = times[other[-1]] if len(other) else 0.0
    return Timing(times, s, rates, float(braking))


def _bounds(first: np.ndarray, second: np.ndarray, acceleration: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return slope, push (n, dof) of -push - slope x <= u <= push - slope x for each joint; push is inf where flat."""
    moving = np.abs(first) > _FLAT
    safe = np.where(moving, first, 1.0)
    return np.where(moving, second / safe, 0.0), np.where(moving, acceleration / np.abs(safe), np.inf)


def _flat_limit(first: np.ndarray, second: np.ndarray, acceleration: np.ndarray) -> np.ndarray:
    """Return the largest x (n,) within the limits of the joints that do not move at a point."""
    with np.errstate(divide='ignore', over='ignore', invalid='ignore'):
        return np.where(np.abs(first) <= _FLAT, acceleration / np.abs(second), np.inf).min(axis=1)


def _meeting(slope: np.ndarray, push: np.ndarray) -> np.ndarray:
    """Return the largest x (n,) at which the bounds of all joints on u overlap."""
    # Lower bound of joint i below upper bound of joint j: (slope_j - slope_i) x <= push_i + push_j.
    with np.errstate(divide='ignore', over='ignore', invalid='ignore'):
        apart = slope[:, None, :] - slope[:, :, None]
        room = push[:, None, :] + push[:, :, None]
        return np.where(apart > _FLAT, room / apart, np.inf).min(axis=(1, 2))


def _controllable(highest: np.ndarray, slope: np.ndarray, push: np.ndarray, ds: np.ndarray) -> np.ndarray:
    """Return the largest x (n,) from which the motion can end at rest: backward pass."""
    # Braking as hard as joint i allows, u = -push - slope x, must lead to the next ceiling at most.
    # From x + 2 ds u <= next follows x (1 - 2 ds slope) <= next + 2 ds push.
    factor = 1.0 - 2 * ds[:, None] * slope
    reach = 2 * ds[:, None] * push
    with np.errstate(divide='ignore', over='ignore', invalid='ignore'):
        inverse = np.where(factor > _FLAT, 1.0 / factor, np.inf)
        # Where the highest x of the next point can be reached from that of this one, no step is computed.
        easy = (((highest[1:, None] + reach) * inverse).min(axis=1) >= highest[:-1]).tolist()
    ceiling, tops = highest.copy(), highest.tolist()
    ceiling[-1] = after = 0.0
    for k in range(len(ceiling) - 2, -1, -1):
        if not (easy[k] and after == tops[k + 1]):
            after = min(tops[k], float(((after + reach[k]) * inverse[k]).min()))
            ceiling[k] = after
        else:
            after = tops[k]
    return ceiling


def _forward(
    start: float, ceiling: np.ndarray, slope: np.ndarray, push: np.ndarray, ds: np.ndarray
) -> np.ndarray | None:
    """Return x (n,), as large as ceiling and acceleration allow; None if it starts above and cannot fall below."""
    fastest = (push - slope * ceiling[:-1, None]).min(axis=1)
    easy, tops, steps = (ceiling[:-1] + 2 * ds * fastest >= ceiling[1:]).tolist(), ceiling.tolist(), (2 * ds).tolist()
    x = ceiling.copy()
    x[0] = here = start
    for k in range(len(x) - 1):
        if easy[k] and here == tops[k]:
            here = tops[k + 1]
            continue
        free = here + steps[k] * float((push[k] - slope[k] * here).min())
        if here > tops[k]:  # only at the start: it falls as fast as the limits allow
            lowest = here - steps[k] * float((push[k] + slope[k] * here).min())
            here = max(lowest, min(free, tops[k + 1]), 0.0)
            if here > tops[k + 1] * _OVER + 1e-9:
                return None
        else:
            here = max(0.0, min(tops[k + 1], free))
        x[k + 1] = here
    return x
