"""Plans the motion along a chunk's path: joined to the present motion, timed, and verified."""

import math

import numpy as np

from vla_core.motion.chunk import Refusal, Verdict
from vla_core.motion.config import ExecutorConfig
from vla_core.motion.limits import Excess, Limits
from vla_core.motion.path import ChunkPath, JoinedPath, Seam
from vla_core.motion.retime import Timing, retime
from vla_core.motion.smooth import GRID, Motion, TrajectoryBuffer

_STEP = 0.008  # [s] of path time between the points of a timing
_POINTS = 500  # of a timing: about the largest number
_BESIDE = 1e-7  # [s]
_LONGEST = 30.0  # [s] longest duration of a motion; a chunk that takes longer is refused
_SPARE = 0.985, 0.96  # of the velocity and acceleration limits: the rest is for errors of sampling
_HARDEST = 0.9  # largest share of the path's acceleration limit that a seam may have
_TRIES = 3  # timings of one joined path
# Rates at which to join the motion of a moving arm, and whether acceleration is continuous at the join, too. That is
# smoother, but not always within the limits.
_JOINS = ((1.0, True), (1.0, False), (0.7, False), (0.4, False), (0.2, False))


class Planner:
    """Finds motions along paths within the limits."""

    def __init__(self, limits: Limits, config: ExecutorConfig) -> None:
        self._limits, self._config = limits, config

    def plan(self, path: ChunkPath, s: float, buffer: TrajectoryBuffer) -> tuple[Motion, int]:
        """Return the motion from the buffer's head along the path from path time s [s], and a row of it.

        From this row it only slows down to the end. A motion that cannot join at full rate joins at a lower one.
        Raises Refusal if none keeps the limits.
        """
        head = buffer.motion.rows(buffer.head, buffer.head + 1)
        moving = bool((np.abs(head.v) > 1e-4).any())
        why, grid = '', _grid(path, s)
        for rate, matched in _JOINS if moving else ((0.0, False),):
            joined = JoinedPath(path, self._seam(path, s, head, rate, matched))
            q, along, _ = joined.sample(grid)
            outside = self._limits.outside(q, head.q[0])
            if outside > 0:
                why = f'it would leave its position limits by {outside:.4f} rad on the way'
                continue
            velocity_caps = self._limits.rate_caps(q, along)
            tool_caps = self._limits.tool_caps(q, np.diff(grid))
            bend = joined.sample(grid[:-1] + _BESIDE)[2], joined.sample(grid[1:] - _BESIDE)[2]
            spare, spare_acceleration = _SPARE
            for _ in range(_TRIES):
                caps = np.minimum(1.0, spare * np.minimum(velocity_caps, tool_caps))
                timing = retime(grid, along, bend, rate, caps, spare_acceleration * self._limits.acceleration)
                if timing is None:
                    why = why or 'it cannot brake in time for it'
                    break
                if timing.times[-1] > _LONGEST:
                    why = f'the motion takes more than {_LONGEST:g} s'
                    break
                motion = _sampled(joined, timing)
                excess = self._excess(motion, buffer, head.q[0])
                if excess.none:
                    return motion, math.ceil(timing.braking_from / GRID)
                if excess.position > 0:
                    why = f'it would leave its position limits by {excess.position:.4f} rad on the way'
                    break
                why = f'it would exceed its limits {max(excess.velocity, excess.acceleration, excess.jerk):.2f} times'
                spare *= min(1.0, 0.98 / excess.velocity)
                spare_acceleration *= min(1.0, 0.97 / max(excess.acceleration, excess.jerk))
        raise Refusal(
            Verdict.OUT_OF_LIMITS,
            f'the arm cannot join this path within its limits: {why}. It is too far from the present motion, '
            'turns too sharply, or ends too soon',
        )

    def _seam(self, path: ChunkPath, s: float, head: Motion, rate: float, matched: bool) -> Seam:
        q, v, a = path.sample(np.array([s]))
        first = head.v / rate - v if rate > 0 else np.zeros_like(v)
        second = head.a / rate**2 - a if matched else np.zeros_like(a)
        config, profile = self._config, self._limits.profile
        share = config.seam_acceleration_fraction
        # A seam that ends a velocity v over T = 3.94 v / a (see Seam) carries the arm on by 0.2 v T. Where this is far,
        # an arm that is to stop brakes harder.
        further = float((0.2 * 3.94 * first[0] ** 2 / (share * profile.acceleration)).max())
        if further > config.seam_overshoot:
            share = min(_HARDEST * config.acceleration_fraction, share * further / config.seam_overshoot)
        return Seam(
            s,
            ((head.q - q)[0], first[0], second[0]),
            config.seam_velocity_fraction * profile.velocity,
            share * profile.acceleration,
            config.seam_time,
        )

    def _excess(self, motion: Motion, buffer: TrajectoryBuffer, start: np.ndarray) -> Excess:
        sent, begins = buffer.with_history(motion)
        return self._limits.excess(sent, GRID, begins, start)


def _grid(path: ChunkPath, s: float) -> np.ndarray:
    """Return path times (n,) [s] from s to the end for a timing, with all steps of the chunk, where a path may bend."""
    parts = max(4, math.ceil(path.dt / _STEP))
    while parts > 1 and (path.end - s) / path.dt * parts > _POINTS:
        parts -= 1
    step = path.dt / parts
    inner = step * np.arange(math.floor(s / step + 1.25), round(path.end / step))
    return np.concatenate([[s], inner[inner > s], [path.end]])


def _sampled(joined: JoinedPath, timing: Timing) -> Motion:
    """Return the motion along the path, one row every GRID [s], the last one at rest."""
    times = np.append(np.arange(0.0, timing.times[-1], GRID), timing.times[-1])
    s, rate, push = timing.at(times)
    q, along, bend = joined.sample(s)
    rate, push = rate[:, None], push[:, None]
    return Motion(q, along * rate, bend * rate * rate + along * push, s)
