"""The path of one chunk as a smooth function of time, joined to the motion before it without a jump."""

import numpy as np

Derivatives = tuple[np.ndarray, np.ndarray, np.ndarray]  # value, first and second derivative by s; each (n, dof)


class ChunkPath:
    """Joint path through the steps of a chunk, in seconds since the chunk's t_ref.

    positions: (horizon, dof) [rad], step i at (i + 1) * dt. Cubic: Hermite with central-difference tangents
    (Catmull-Rom), continuous in velocity. Linear: straight pieces with corners at the steps. Before the first step
    the path is the straight continuation of the first piece, after the last that of the last.
    """

    def __init__(self, positions: np.ndarray, dt: float, interpolation: str = 'cubic') -> None:
        steps = np.asarray(positions, float)
        first = 2 * steps[0] - steps[1] if len(steps) > 1 else steps[0]
        knots = np.vstack([first, steps])  # (horizon + 1, dof), knot k at k * dt
        self.dt = dt
        self.end = len(steps) * dt  # [s]
        self.slopes = np.diff(knots, axis=0) / dt  # (horizon, dof) [rad/s]
        self.corners = interpolation == 'linear'
        if interpolation == 'cubic':
            inner = (self.slopes[1:] + self.slopes[:-1]) / 2
            tangents = np.vstack([self.slopes[:1], inner, self.slopes[-1:]]) * dt
            m0, m1, rise = tangents[:-1], tangents[1:], np.diff(knots, axis=0)
            self._pieces = (m0 + m1 - 2 * rise, 3 * rise - 2 * m0 - m1, m0, knots[:-1])  # cubic first, in u = s/dt - k
        elif interpolation == 'linear':
            zero = np.zeros_like(self.slopes)
            self._pieces = (zero, zero, self.slopes * dt, knots[:-1])
        else:
            raise ValueError(f'interpolation {interpolation!r}: must be cubic or linear')
        self._last = knots[-1]

    def sample(self, s: np.ndarray) -> Derivatives:
        """Positions [rad], velocities and accelerations, each (n, dof), at s (n,) seconds after t_ref."""
        k = np.clip((s / self.dt).astype(int), 0, len(self.slopes) - 1)
        u = np.clip(s / self.dt - k, 0.0, 1.0)[:, None]
        c3, c2, c1, c0 = (c[k] for c in self._pieces)
        q = ((c3 * u + c2) * u + c1) * u + c0
        v = ((3 * c3 * u + 2 * c2) * u + c1) / self.dt
        a = (6 * c3 * u + 2 * c2) / self.dt**2
        beyond = (s - np.clip(s, 0.0, self.end))[:, None]
        outside = beyond != 0
        edge = np.where(beyond > 0, self.slopes[-1], self.slopes[0])
        return q + edge * beyond, np.where(outside, edge, v), np.where(outside, 0.0, a)

    def step_at(self, s: float) -> int:
        """Index of the newest step that is due at s; -1 before the first."""
        return min(int(np.floor(s / self.dt + 1e-9)), len(self.slopes)) - 1

    def corner_rates(self, s: np.ndarray, change: np.ndarray) -> np.ndarray | None:
        """(n,) largest ds/dt at which passing a corner changes no joint's velocity by more than `change` (dof,)."""
        if not self.corners:
            return None
        rates = np.ones(len(s))
        for k in range(1, len(self.slopes)):
            jump = np.abs(self.slopes[k] - self.slopes[k - 1])
            near = np.abs(s - k * self.dt) <= s[1] - s[0]
            rates[near] = np.minimum(rates[near], (change / np.maximum(jump, 1e-9)).min())
        return rates


class Seam:
    """What is left of the old motion after a switch: an offset that fades to zero without a jump.

    A quintic from the offset's (value, first, second derivative) at the switch to zero, so that the sum with the new
    path is continuous up to acceleration. It lasts at least `shortest` seconds and so long that what it adds stays
    within the given velocity and acceleration (dof,).
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
        # Peaks of the quintic for each boundary value alone, on [0, T]: value e gives velocity 1.875 e/T and
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
        self._coefficients = (
            -6 * e - 3 * v - a / 2,
            15 * e + 8 * v + 3 * a / 2,
            -10 * e - 6 * v - 3 * a / 2,
            a / 2,
            v,
            e,
        )

    def sample(self, s: np.ndarray) -> Derivatives:
        """The offset and its derivatives, each (n, dof), at path times s (n,)."""
        u = np.clip((s - self.start) / self.duration, 0.0, 1.0)[:, None]
        c5, c4, c3, c2, c1, c0 = self._coefficients
        t = self.duration
        return (
            ((((c5 * u + c4) * u + c3) * u + c2) * u + c1) * u + c0,
            ((((5 * c5 * u + 4 * c4) * u + 3 * c3) * u + 2 * c2) * u + c1) / t,
            (((20 * c5 * u + 12 * c4) * u + 6 * c3) * u + 2 * c2) / t**2,
        )


class JoinedPath:
    """A chunk's path with the seam to the motion before it."""

    def __init__(self, path: ChunkPath, seam: Seam) -> None:
        self.path, self.seam = path, seam

    def sample(self, s: np.ndarray) -> Derivatives:
        """Positions [rad] and derivatives by s, each (n, dof), at path times s (n,)."""
        q, v, a = self.path.sample(s)
        e, ev, ea = self.seam.sample(s)
        return q + e, v + ev, a + ea
