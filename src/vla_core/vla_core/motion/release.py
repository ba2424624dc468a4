"""Release: the motion of the set-point to the measured position of the arm.

It is as fast as the hard limits of the joints allow. Most controllers pass a step of acceleration on to the arm. For
these the motion brakes first, and the release keeps the acceleration limits. An impedance controller turns the
distance between set-point and arm into force. For it only velocity is limited, so that the force ends soonest.
"""

import math

import numpy as np

from vla_core.motion.limits import Limits
from vla_core.motion.retime import retime
from vla_core.motion.smooth import GRID, Motion

_STEP = 0.002  # [rad] about, of the fastest joint between two points of the timing
_MAX_POINTS = 400
_SPARE = 0.985, 0.97  # of the velocity and acceleration limits: the rest is for errors of sampling
_AT_ONCE = 1e5  # [rad/s^2] no limit: the velocity is reached within one point


def release(before: Motion, target: np.ndarray, limits: Limits, *, within_acceleration: bool) -> Motion:
    """Return the motion `before`, continued on the straight joint line to rest at target (dof,) [rad].

    before: starts at the buffer's head; it ends at rest where within_acceleration is set. limits: the hard ones. The
    motion to a target outside the position limits ends at the limit.
    """
    start = before.q[-1]
    way = np.clip(target, np.minimum(limits.lower, start), np.maximum(limits.upper, start)) - start
    longest = float(np.abs(way).max())
    if longest < 1e-9:
        return before
    pieces = min(_MAX_POINTS, max(10, math.ceil(longest / _STEP)))
    s = np.linspace(0.0, 1.0, pieces + 1)
    first, straight = np.tile(way, (pieces + 1, 1)), np.zeros((pieces, len(way)))
    acceleration = _SPARE[1] * limits.acceleration if within_acceleration else np.full(len(way), _AT_ONCE)
    caps = _SPARE[0] * limits.rate_caps(start + s[:, None] * way, first)
    timing = retime(s, first, (straight, straight), 0.0, caps, acceleration)
    assert timing is not None  # a line from rest always has a timing
    times = np.append(np.arange(GRID, timing.times[-1], GRID), timing.times[-1])
    at, rate, push = timing.at(times)
    there = Motion(start + at[:, None] * way, rate[:, None] * way, push[:, None] * way, np.full(len(at), before.s[-1]))
    return before.then(there)
