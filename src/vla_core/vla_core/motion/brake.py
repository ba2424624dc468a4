"""Braking along a planned motion: its clock slows down to a stop."""

import numpy as np

from vla_core.motion.limits import Limits
from vla_core.motion.smooth import GRID, Motion, TrajectoryBuffer

SHARES = (1.0, 0.9, 0.8)  # shares of the limit that a brake is tried with
_SPARE = 0.97  # of the acceleration limit: the rest is for errors of sampling


def _slowing(motion: Motion, limit: np.ndarray) -> np.ndarray:
    """Return how fast the motion's clock may be slowed between its rows, (n - 1,) [1/s].

    With sigma the speed of the clock, a joint has the acceleration sigma^2 a + sigma' v. It stays below limit (dof,)
    for all 0 <= sigma <= 1 if -sigma' |v| <= limit - |a| where a slows the joint down. Elsewhere the bound is limit.
    """
    spent = np.maximum(0.0, -np.sign(motion.v) * motion.a)
    speed = np.maximum(np.abs(motion.v), 1e-6)
    most = (np.maximum(_SPARE * limit - spent, 0.0) / speed).min(axis=1)
    return np.maximum(np.minimum(most[1:], most[:-1]), 1e-3)


def brake_ends(motion: Motion, limit: np.ndarray) -> np.ndarray:
    """Return for each row (n,) the row at or before which a brake from it ends, with the least of SHARES.

    It is the last row for brakes that take longer.
    """
    spent = np.concatenate(
        [[0.0], np.cumsum(_slowing(motion, SHARES[-1] * limit) * GRID)]
    )  # of sigma^2 / 2, which is 1/2 at first
    return np.minimum(np.searchsorted(spent, spent + 0.5), len(spent) - 1)


def brake(motion: Motion, limit: np.ndarray) -> Motion:
    """Return the motion, braked from its first row on with at most `limit` (dof,) [rad/s^2]."""
    slowing = _slowing(motion, limit)
    energy = 0.5 - np.concatenate([[0.0], np.cumsum(slowing * GRID)])
    sigma = np.sqrt(2 * np.maximum(energy, 0.0))  # speed of the motion's clock at each row
    n = int(np.flatnonzero(energy > 0)[-1])  # number of rows before the stop
    passed = sigma[: n + 1]
    times = np.concatenate([[0.0], np.cumsum((passed[:-1] - passed[1:]) / slowing[:n])])
    ends = times[-1]
    if n < len(slowing):
        ends += sigma[n] / slowing[n]
    now = np.append(np.arange(0.0, ends, GRID), ends)
    k = np.clip(np.searchsorted(times, now, side='right') - 1, 0, len(slowing) - 1)
    since = now - times[k]
    speed = np.maximum(sigma[k] - slowing[k] * since, 0.0)
    at = np.minimum(k * GRID + (sigma[k] - slowing[k] * since / 2) * since, (len(slowing)) * GRID)
    q, v, a, s = _between(motion, at)
    a = speed[:, None] ** 2 * a - np.where(speed[:, None] > 0, slowing[k, None], 0.0) * v
    v = speed[:, None] * v
    v[-1] = a[-1] = 0.0
    return Motion(q, v, a, s)


def verified_brake(motion: Motion, buffer: TrajectoryBuffer, limits: Limits, after: int = 0) -> Motion:
    """Return the motion, which starts at the buffer's head, braked from row `after` on.

    The brake is the first of SHARES with which the set-points keep the limits, or else the one that exceeds them least.
    """
    best, least = motion, np.inf
    for share in SHARES:
        braked = motion.rows(0, after).then(brake(motion.rows(after), share * limits.braking))
        sent, _ = buffer.with_history(braked)
        excess = limits.excess(sent, GRID, len(sent), motion.q[0])
        worst = max(excess.velocity, excess.acceleration, excess.jerk)
        if worst < least:
            best, least = braked, worst
        if excess.none:
            break
    return best


def _between(motion: Motion, at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return q, v, a (m, dof) and s (m,) at times `at` (m,) [s] since the first row, by cubic Hermite pieces."""
    k = np.clip((at / GRID).astype(int), 0, len(motion.q) - 2)
    u = (at / GRID - k)[:, None]
    rise, m0, m1 = motion.q[k + 1] - motion.q[k], motion.v[k] * GRID, motion.v[k + 1] * GRID
    c3, c2 = m0 + m1 - 2 * rise, 3 * rise - 2 * m0 - m1
    q = ((c3 * u + c2) * u + m0) * u + motion.q[k]
    v = ((3 * c3 * u + 2 * c2) * u + m0) / GRID
    a = (1 - u) * motion.a[k] + u * motion.a[k + 1]
    s = motion.s[k] + u[:, 0] * (motion.s[k + 1] - motion.s[k])
    return q, v, a, s
