"""The path of a chunk as a smooth function of time, and the seam that joins it to the motion before."""

import math

import numpy as np

_STEP = 0.05  # [s] about, between the knots of a straight path
Derivatives = tuple[np.ndarray, np.ndarray, np.ndarray]  # value, first and second derivative by s; each (n, dof)


class ChunkPath:
    """Joint path through the steps of a chunk, in seconds since the chunk's t_ref.

    positions: (horizon, dof) [rad], step i at (i + 1) * dt. Before the first step, the path continues its first piece
    backwards in a straight line; beyond both ends it is straight, too.
    interpolation: 'cubic' is the natural spline: its acceleration is continuous, and 0 at the ends. 'monotone' has
    cubic pieces that never leave the range of the steps beside them, continuous in velocity (Fritsch and Butland,
    1984).
    lower, upper: (dof,) [rad] limits. A joint whose spline would leave them between steps inside is monotone.
    """

    def __init__(
        self,
        positions: np.ndarray,
        dt: float,
        interpolation: str = 'cubic',
        lower: np.ndarray | float = -np.inf,
        upper: np.ndarray | float = np.inf,
    ) -> None:
        steps = np.asarray(positions, float)
        first = np.clip(2 * steps[0] - steps[1], lower, upper) if len(steps) > 1 else steps[0]
        knots = np.vstack([first, steps])  # (horizon + 1, dof), knot k at k * dt
        self.dt = dt
        self.end = len(steps) * dt  # [s]
        rises = np.diff(knots, axis=0)  # (horizon, dof) [rad]
        if interpolation == 'cubic':
            tangents = _spline_tangents(rises)
            least, most = _range(_pieces(knots, rises, tangents))
            outside = (least < np.minimum(lower, knots.min(axis=0))) | (most > np.maximum(upper, knots.max(axis=0)))
            tangents[:, outside] = _monotone_tangents(rises[:, outside])
        elif interpolation == 'monotone':
            tangents = _monotone_tangents(rises)
        else:
            raise ValueError(f'interpolation {interpolation!r}: must be cubic or monotone')
        self._pieces = _pieces(knots, rises, tangents)
        self._edges = tangents[0] / dt, tangents[-1] / dt

    def sample(self, s: np.ndarray) -> Derivatives:
        """Return positions [rad], velocities and accelerations, each (n, dof), at s (n,) [s] after t_ref."""
        k = np.clip((s / self.dt).astype(int), 0, len(self._pieces[0]) - 1)
        u = np.clip(s / self.dt - k, 0.0, 1.0)[:, None]
        c3, c2, c1, c0 = (c[k] for c in self._pieces)
        q = ((c3 * u + c2) * u + c1) * u + c0
        v = ((3 * c3 * u + 2 * c2) * u + c1) / self.dt
        a = (6 * c3 * u + 2 * c2) / self.dt**2
        beyond = (s - np.clip(s, 0.0, self.end))[:, None]
        outside = beyond != 0
        if not outside.any():
            return q, v, a
        edge = np.where(beyond > 0, self._edges[1], self._edges[0])
        return q + edge * beyond, np.where(outside, edge, v), np.where(outside, 0.0, a)

    def step_at(self, s: float) -> int:
        """Return the index of the newest step that is due at s [s]; -1 before the first."""
        return min(int(np.floor(s / self.dt + 1e-9)), len(self._pieces[0])) - 1


def _spline_tangents(rises: np.ndarray) -> np.ndarray:
    """Return the tangents (n + 1, dof) per piece with a continuous second derivative, which is 0 at both ends.

    Solves m[k-1] + 4 m[k] + m[k+1] = 3 (rise[k-1] + rise[k]), with 2 m + m' = 3 rise at the ends: Thomas' algorithm.
    """
    right = 3 * np.vstack([rises[:1], rises[1:] + rises[:-1], rises[-1:]])
    share = np.empty(len(right))  # of the next tangent in this one
    share[0], right[0] = 0.5, right[0] / 2
    for k in range(1, len(right)):
        pivot = (4.0 if k < len(right) - 1 else 2.0) - share[k - 1]
        share[k], right[k] = 1.0 / pivot, (right[k] - right[k - 1]) / pivot
    for k in range(len(right) - 2, -1, -1):
        right[k] -= share[k] * right[k + 1]
    return right


def _monotone_tangents(rises: np.ndarray) -> np.ndarray:
    """Return the harmonic means (n + 1, dof) of the rises on both sides, 0 where their signs differ."""
    before, after = rises[:-1], rises[1:]
    same = before * after > 0
    inner = np.where(same, 2 * before * after / np.where(same, before + after, 1.0), 0.0)
    return np.vstack([rises[:1], inner, rises[-1:]])


def _pieces(knots: np.ndarray, rises: np.ndarray, tangents: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return coefficients of the Hermite pieces, (n, dof) each, the cubic one first, in u = s / dt - k of 0 to 1."""
    m0, m1 = tangents[:-1], tangents[1:]
    return m0 + m1 - 2 * rises, 3 * rises - 2 * m0 - m1, m0, knots[:-1]


def _range(pieces: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and the largest value of all pieces, (dof,) each, at turning points, too."""
    c3, c2, c1, c0 = pieces
    root = np.sqrt(np.maximum(c2 * c2 - 3 * c3 * c1, 0.0))
    with np.errstate(divide='ignore', invalid='ignore'):  # the two forms of the roots: one is good where c3 is small
        turns = [(-c2 + root) / (3 * c3), (-c2 - root) / (3 * c3), c1 / (-c2 - root), c1 / (-c2 + root)]
    u = np.clip(np.nan_to_num(np.stack([*turns, np.zeros_like(c0), np.ones_like(c0)])), 0.0, 1.0)
    q = ((c3 * u + c2) * u + c1) * u + c0
    return q.min(axis=(0, 1)), q.max(axis=(0, 1))


class Seam:
    """The offset of the old motion from the new path at a switch, which fades to zero without a jump.

    It is a quintic from the offset's value, first and second derivative at the switch to zero. Its sum with the new
    path is continuous up to acceleration. It lasts `shortest` [s] or longer, so that it adds no more than the given
    velocity and acceleration (dof,).
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
        # Peaks of the quintic for each boundary value alone, on [0, T]. Value e: velocity 1.875 e/T and acceleration
        # 5.774 e/T^2. Velocity v: acceleration 3.94 v/T.
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
        """Return the offset [rad] and its derivatives by s, each (n, dof), at path times s (n,)."""
        u = np.clip((s - self.start) / self.duration, 0.0, 1.0)[:, None]
        c5, c4, c3, c2, c1, c0 = self._coefficients
        t = self.duration
        return (
            ((((c5 * u + c4) * u + c3) * u + c2) * u + c1) * u + c0,
            ((((5 * c5 * u + 4 * c4) * u + 3 * c3) * u + 2 * c2) * u + c1) / t,
            (((20 * c5 * u + 12 * c4) * u + 6 * c3) * u + 2 * c2) / t**2,
        )


class JoinedPath:
    """The path of a chunk, plus the seam to the motion before it."""

    def __init__(self, path: ChunkPath, seam: Seam) -> None:
        self.path, self.seam = path, seam

    def sample(self, s: np.ndarray) -> Derivatives:
        """Return positions [rad] and derivatives by s, each (n, dof), at path times s (n,)."""
        q, v, a = self.path.sample(s)
        e, ev, ea = self.seam.sample(s)
        return q + e, v + ev, a + ea


def straight_path(
    start: np.ndarray, end: np.ndarray, velocity: np.ndarray, acceleration: np.ndarray, shortest: float
) -> ChunkPath:
    """Return the straight line in joint space, from rest at start to rest at end, (dof,) [rad] each.

    It is a quintic that keeps the limits (dof,) and lasts `shortest` [s] or longer. It is at start at path time dt.
    """
    still = np.zeros_like(start)
    way = Seam(0.0, (start - end, still, still), velocity, acceleration, shortest)
    steps = math.ceil(way.duration / _STEP)
    times = np.linspace(0.0, way.duration, steps + 1)
    return ChunkPath(end + way.sample(times)[0], way.duration / steps)
