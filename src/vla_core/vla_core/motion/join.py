"""Plans the motion along a chunk's path: joined to the motion that is, timed, and verified before it is taken."""

import math

import numpy as np

from vla_core.motion.chunk import Refusal, Verdict
from vla_core.motion.config import ExecutorConfig
from vla_core.motion.limits import Excess, Limits
from vla_core.motion.path import ChunkPath, JoinedPath, Seam
from vla_core.motion.retime import Timing, retime
from vla_core.motion.smooth import GRID, Motion, Track

_STEP = 0.008  # [s] of path time between the points of a timing
_POINTS = 500  # of a timing, about, at most
_BESIDE = 1e-7  # [s]
_LONGEST = 30.0  # [s] a chunk that would take longer is not followed
_SPARE = 0.985, 0.96  # of the velocity and acceleration limits: what sampling may miss
_HARDEST = 0.9  # of the acceleration that a path may have: what a seam may take of it
_TRIES = 3  # timings of one joined path
# Rates to join a moving arm's motion at, and whether acceleration is continuous at the join, too: smoother, but not
# always within the limits.
_WAYS = ((1.0, True), (1.0, False), (0.7, False), (0.4, False), (0.2, False))


class Planner:
    """Finds motions along paths within the limits."""

    def __init__(self, limits: Limits, config: ExecutorConfig) -> None:
        self._limits, self._config = limits, config

    def plan(self, path: ChunkPath, s: float, track: Track) -> tuple[Motion, int]:
        """The motion that begins with the track's head and goes on along the path from path time s, and the row from
        which it only slows down to the end.

        A motion that cannot follow at full rate joins at a lower one. Raises Refusal if none fits the limits.
        """
        head = track.motion.rows(track.head, track.head + 1)
        moving = bool((np.abs(head.v) > 1e-4).any())
        why, grid = '', _grid(path, s)
        for rate, matched in _WAYS if moving else ((0.0, False),):
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
                    why = f'the way takes more than {_LONGEST:g} s'
                    break
                motion = _sampled(joined, timing)
                excess = self._excess(motion, track, head.q[0])
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
            f'the arm cannot go over to this path within its limits: {why}. It is too far from the motion that is, '
            'turns too sharply, or ends too soon',
        )

    def _seam(self, path: ChunkPath, s: float, head: Motion, rate: float, matched: bool) -> Seam:
        q, v, a = path.sample(np.array([s]))
        first = head.v / rate - v if rate > 0 else np.zeros_like(v)
        second = head.a / rate**2 - a if matched else np.zeros_like(a)
        config, profile = self._config, self._limits.profile
        share = config.seam_acceleration_fraction
        # Giving up a speed v over T = 3.94 v / a (see Seam) carries the arm on by 0.2 v T. Where that is far, an arm
        # that is told to stop must not be gentle.
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

    def _excess(self, motion: Motion, track: Track, start: np.ndarray) -> Excess:
        sent, begins = track.with_history(motion)
        return self._limits.excess(sent, GRID, begins, start)


def _grid(path: ChunkPath, s: float) -> np.ndarray:
    """(n,) path times from s to the end for a timing; the steps of the chunk, where a path may bend, are among them."""
    parts = max(4, math.ceil(path.dt / _STEP))
    while parts > 1 and (path.end - s) / path.dt * parts > _POINTS:
        parts -= 1
    step = path.dt / parts
    inner = step * np.arange(math.floor(s / step + 1.25), round(path.end / step))
    return np.concatenate([[s], inner[inner > s], [path.end]])


def _sampled(joined: JoinedPath, timing: Timing) -> Motion:
    """The motion along the path, one row every GRID seconds, the last one at rest."""
    times = np.append(np.arange(0.0, timing.times[-1], GRID), timing.times[-1])
    s, rate, push = timing.at(times)
    q, along, bend = joined.sample(s)
    rate, push = rate[:, None], push[:, None]
    return Motion(q, along * rate, bend * rate * rate + along * push, s)
