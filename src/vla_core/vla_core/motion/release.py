"""Letting go: the way of the set-point to where the arm is measured.

It is as fast as the hard limits of the joints allow. Most controllers turn a step of acceleration into one of the arm:
for these the motion is braked first, and the way is run within the acceleration limits. An impedance controller turns
the distance between set-point and arm into force: for it only velocity is limited, so that the force is gone soonest.
"""

import math

import numpy as np

from vla_core.motion.limits import Limits
from vla_core.motion.retime import retime
from vla_core.motion.smooth import GRID, Motion

_STEP = 0.002  # [rad] about, of the fastest joint between two points of the timing
_MOST = 400  # points
_SPARE = 0.985, 0.97  # of velocity and acceleration: what sampling may miss
_AT_ONCE = 1e5  # [rad/s^2] no limit: the speed is there within one point


def release(before: Motion, target: np.ndarray, limits: Limits, *, within_acceleration: bool) -> Motion:
    """The motion `before`, and from its end the straight joint line to target (dof,) [rad], at rest there.

    before: begins with the track's head, and ends at rest where acceleration counts. limits: the hard ones. A target
    outside the position limits is approached to the limit.
    """
    start = before.q[-1]
    way = np.clip(target, np.minimum(limits.lower, start), np.maximum(limits.upper, start)) - start
    longest = float(np.abs(way).max())
    if longest < 1e-9:
        return before
    pieces = min(_MOST, max(10, math.ceil(longest / _STEP)))
    s = np.linspace(0.0, 1.0, pieces + 1)
    first, straight = np.tile(way, (pieces + 1, 1)), np.zeros((pieces, len(way)))
    acceleration = _SPARE[1] * limits.acceleration if within_acceleration else np.full(len(way), _AT_ONCE)
    caps = _SPARE[0] * limits.rate_caps(start + s[:, None] * way, first)
    timing = retime(s, first, (straight, straight), 0.0, caps, acceleration)
    assert timing is not None  # from rest, on a line, there always is one
    times = np.append(np.arange(GRID, timing.times[-1], GRID), timing.times[-1])
    at, rate, push = timing.at(times)
    there = Motion(start + at[:, None] * way, rate[:, None] * way, push[:, None] * way, np.full(len(at), before.s[-1]))
    return before.then(there)
