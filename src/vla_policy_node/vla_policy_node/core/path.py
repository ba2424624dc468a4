"""The path of one chunk as a smooth function of time, joined to the motion before it without a jump."""

import numpy as np


class ChunkPath:
    """Joint path through the steps of a chunk, in seconds since the chunk's t_ref.

    positions: (horizon, dof) [rad], step i at (i + 1) * dt. Cubic: Hermite with central-difference tangents
    (Catmull-Rom), continuous in velocity. Linear: straight pieces. Before the first step the path comes from the
    straight continuation of the first piece, after the last it goes on straight: the executor brakes there.
    """

    def __init__(self, positions: np.ndarray, dt: float, interpolation: str = 'cubic') -> None:
        steps = np.asarray(positions, float)
        first = 2 * steps[0] - steps[1] if len(steps) > 1 else steps[0]
        self.knots = np.vstack([first, steps])  # (horizon + 1, dof), knot k at k * dt
        self.dt = dt
        self.end = len(steps) * dt  # [s]
        slopes = np.diff(self.knots, axis=0) / dt  # (horizon, dof) [rad/s]
        self.tangents: np.ndarray | None = None  # [rad/s] at the knots
        if interpolation == 'cubic':
            inner = (slopes[1:] + slopes[:-1]) / 2
            self.tangents = np.vstack([slopes[:1], inner, slopes[-1:]])
        elif interpolation != 'linear':
            raise ValueError(f'interpolation {interpolation!r}: must be cubic or linear')
        self.slopes = slopes

    def sample(self, s: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(positions, velocities, accelerations) at s seconds after t_ref; each (dof,)."""
        last = len(self.slopes) - 1
        zero = np.zeros(self.knots.shape[1])
        if s >= self.end:
            return self.knots[-1] + self.slopes[-1] * (s - self.end), self.slopes[-1], zero
        if s <= 0.0:
            return self.knots[0] + self.slopes[0] * s, self.slopes[0], zero
        k = min(int(s / self.dt), last)
        u = s / self.dt - k
        p0, p1, h = self.knots[k], self.knots[k + 1], self.dt
        if self.tangents is None:
            return p0 + (p1 - p0) * u, self.slopes[k], zero
        m0, m1 = self.tangents[k] * h, self.tangents[k + 1] * h
        a, b = 2 * (p0 - p1) + m0 + m1, 3 * (p1 - p0) - 2 * m0 - m1  # p(u) = a u^3 + b u^2 + m0 u + p0
        return (
            ((a * u + b) * u + m0) * u + p0,
            ((3 * a * u + 2 * b) * u + m0) / h,
            (6 * a * u + 2 * b) / h**2,
        )

    def step_at(self, s: float) -> int:
        """Index of the newest step that is due at s; -1 before the first."""
        return min(int(np.floor(s / self.dt + 1e-9)), len(self.slopes)) - 1


class Seam:
    """What is left of the old motion after a switch: an offset that fades to zero without a jump.

    A quintic from the offset's (position, velocity, acceleration) at the switch to zero, so that the sum with the
    new path is continuous up to acceleration. It lasts at least `shortest` seconds and so long that what it adds
    stays within the given fractions of the velocity and acceleration limits.
    """

    def __init__(
        self,
        start: float,
        offset: tuple[np.ndarray, np.ndarray, np.ndarray],
        velocity: np.ndarray,
        acceleration: np.ndarray,
        shortest: float,
    ) -> None:
        e, v, a = offset
        # Peaks of the quintic for each boundary value alone, on [0, T]: position e gives velocity 1.875 e/T and
        # acceleration 5.774 e/T^2; velocity v gives acceleration 3.94 v/T.
        self.duration = max(
            shortest,
            float((1.875 * np.abs(e) / velocity).max()),
            float(np.sqrt(5.774 * np.abs(e) / acceleration).max()),
            float((3.94 * np.abs(v) / acceleration).max()),
        )
        self.start = start
        t = self.duration
        v, a = v * t, a * t * t
        # Quintic on u in [0, 1] with value, slope and curvature (e, v, a) at 0 and zero at 1.
        self.coefficients = (
            -6 * e - 3 * v - a / 2,
            15 * e + 8 * v + 3 * a / 2,
            -10 * e - 6 * v - 3 * a / 2,
            a / 2,
            v,
            e,
        )

    def sample(self, s: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(positions, velocities, accelerations) of the offset at path time s; each (dof,)."""
        u = min(max((s - self.start) / self.duration, 0.0), 1.0)
        c5, c4, c3, c2, c1, c0 = self.coefficients
        t = self.duration
        return (
            ((((c5 * u + c4) * u + c3) * u + c2) * u + c1) * u + c0,
            ((((5 * c5 * u + 4 * c4) * u + 3 * c3) * u + 2 * c2) * u + c1) / t,
            (((20 * c5 * u + 12 * c4) * u + 6 * c3) * u + 2 * c2) / t**2,
        )
