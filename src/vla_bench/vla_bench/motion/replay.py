"""Replays a stream of chunks through one contender every millisecond, and measures the set-points.

Path deviation. The *requested path* consists of the newest chunk at every time, from its receipt (or its first step,
if that is due later) to the next. Straight lines join pieces that disagree. A contender that executes whole chunks has
whole chunks in its path. Dynamic time warping matches executed and requested path monotonically from start to end,
with the least sum of joint-space distances; time does not count. The deviation is the mean and the largest distance of
that matching [rad, Euclidean over the joints]. A repeated piece, a cut corner and an average of two chunks all count.
Between steps the requested path has the contender's interpolation: a spline, or straight lines.

Outside. The largest distance of a joint beyond the newest chunk, the one before, and its position at the receipt of the
newest. Some is the cost of a motion without a jump; the arm must have space for it.

Time lost. The time from which the set-points stay within 10 mrad of the end of the requested path, minus the time at
which the source requested it.
"""

from dataclasses import dataclass, replace

import numpy as np

from vla_bench.motion.contenders import Blocking, Contender
from vla_bench.motion.streams import Stream
from vla_core.clocks import NS
from vla_core.motion.chunk import StampedChunk, Verdict
from vla_core.motion.path import ChunkPath
from vla_core.profile import RobotProfile

TICK = 0.001  # [s] between set-points
TICK_NS = 1_000_000
OBSERVE = 20  # ticks between two joint states, at the position of the set-points
STEP_TIME = 0.01  # [s] faster than a controller follows a change of speed
WINDOW = 0.1  # [s] of the seam after a switch of chunks
SETTLE = 0.5  # [s] of measurement after the last due step
NEAR = 0.01  # [rad] from the end of the path that counts as arrival
_POINTS = 1500  # of a path in the matching, at most


@dataclass(frozen=True)
class Piece:
    """A requested part of a chunk."""

    chunk: StampedChunk
    begin: float  # [s since its t_ref]
    end: float
    due: float  # [s] at which the source requested its start


@dataclass(frozen=True)
class Motion:
    """Motion of a contender on a stream."""

    positions: np.ndarray  # (ticks, dof) [rad], one per TICK from 0
    switches: np.ndarray  # [s] at which a moving arm switched to another chunk, or stopped at the end of one
    taken: tuple[tuple[float, StampedChunk], ...]  # [s] of its receipt
    pieces: tuple[Piece, ...]
    refused: int  # chunks that the contender refused
    start: np.ndarray  # (dof,) [rad]


def replay(contender: Contender, stream: Stream) -> Motion:
    """Feed the stream to a new contender, and take a set-point every TICK."""
    contender.observe(stream.start, 0)
    contender.activate(0)
    feed = _Blocked(stream) if isinstance(contender, Blocking) else _Timed(stream)
    points: list[np.ndarray] = []
    q, now, ends = stream.start, 0, None
    while ends is None or now < ends:
        if (now // TICK_NS) % OBSERVE == 0:
            contender.observe(q, now)
        feed.advance(contender, now)
        point = contender.step(now)
        if point is None:
            raise RuntimeError(f'no set-point at {now / NS:.3f} s: {contender.message}')
        q = point.positions
        points.append(q)
        now += TICK_NS
        if ends is None and feed.over(contender):
            ends = max(now, round(stream.end * NS)) + round(SETTLE * NS)
        if now > (10 * stream.end + 60) * NS:
            raise RuntimeError(f'the stream of {stream.end:.1f} s did not end within {now / NS:.0f} s')
    taken = tuple((came / NS, chunk) for came, chunk in feed.taken)
    pieces = tuple(feed.pieces(now))
    return Motion(np.stack(points), np.array(feed.switches), taken, pieces, feed.refused, stream.start)


class _Timed:
    """Delivers chunks `delay` after their t_ref, independent of the arm."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.next, self.refused = stream, 0, 0
        self.taken: list[tuple[int, StampedChunk]] = []
        self.switches: list[float] = []

    def advance(self, contender: Contender, now: int) -> None:
        chunks = self.stream.chunks
        while self.next < len(chunks) and chunks[self.next].t_ref + round(self.stream.delay * NS) <= now:
            chunk = replace(chunks[self.next], epoch=contender.epoch)
            self.next += 1
            if contender.ingest(chunk, now) is not Verdict.ACCEPTED:
                self.refused += 1
                continue
            if self.taken:
                self.switches.append(now / NS)
            self.taken.append((now, chunk))

    def over(self, contender: Contender) -> bool:
        return self.next == len(self.stream.chunks)

    def pieces(self, now: int) -> list[Piece]:
        result = []
        # A chunk does not define the time before its first step.
        begins = [max(came, chunk.t_ref + round(chunk.dt * NS)) for came, chunk in self.taken]
        for (_, chunk), came, until in zip(self.taken, begins, [*begins[1:], now], strict=True):
            length = chunk.horizon * chunk.dt
            begin, end = (min((t - chunk.t_ref) / NS, length) for t in (came, until))
            result.append(Piece(chunk, begin, end, chunk.t_ref / NS + begin))
        return result


class _Blocked:
    """Requests a chunk when the arm has executed the one before, for the reached position on the source's path."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.refused = stream, 0
        self.at = 0  # [ns] executed time of the source's path
        self.taken: list[tuple[int, StampedChunk]] = []
        self.asked: list[Piece] = []
        self.switches: list[float] = []
        self.coming: tuple[int, StampedChunk] | None = None
        self.last: int | None = None  # t_ref in the stream of the newest chunk

    def advance(self, contender: Contender, now: int) -> None:
        assert isinstance(contender, Blocking)
        if self.coming is None and contender.idle_since is not None and not self.over(contender):
            if self.asked:
                self.switches.append(now / NS)  # it stopped
            chunk = next((c for c in self.stream.chunks if c.t_ref >= self.at), self.stream.chunks[-1])
            self.last = chunk.t_ref
            self.coming = now + round(self.stream.delay * NS), replace(chunk, t_ref=now)
        if self.coming is not None and self.coming[0] <= now:
            chunk, self.coming = self.coming[1], None
            if contender.ingest(chunk, now) is not Verdict.ACCEPTED:
                raise RuntimeError(f'a blocking runner must take what it asked for: {contender.message}')
            if self.asked:
                self.switches.append(now / NS)
            self.taken.append((now, chunk))
            assert self.last is not None
            length = chunk.horizon * chunk.dt
            self.asked.append(Piece(chunk, chunk.dt, length, self.last / NS + chunk.dt))
            self.at = self.last + round(length * NS)

    def over(self, contender: Contender) -> bool:
        assert isinstance(contender, Blocking)
        return self.last == self.stream.chunks[-1].t_ref and self.coming is None and contender.idle_since is not None

    def pieces(self, now: int) -> list[Piece]:
        return self.asked


def requested_path(motion: Motion, interpolation: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the requested path: points (n, dof) [rad] and their requested times (n,) [s]."""
    points, times = [motion.start[None]], [np.zeros(1)]
    for piece in motion.pieces:
        s = np.linspace(piece.begin, piece.end, max(2, int(np.ceil((piece.end - piece.begin) / 0.005)) + 1))
        chunk = piece.chunk
        if interpolation == 'cubic':
            q = ChunkPath(chunk.positions, chunk.dt).sample(s)[0]
        else:
            knots = chunk.dt * np.arange(1, chunk.horizon + 1)
            q = np.column_stack([np.interp(s, knots, joint) for joint in chunk.positions.T])
        points.append(q)
        times.append(piece.due + s - piece.begin)
    return np.vstack(points), np.concatenate(times)


@dataclass(frozen=True)
class Measures:
    """Measures of one motion. Peaks and shares are over all joints, rms over joints and time."""

    seam_acceleration: tuple[float, ...]  # [rad/s^2] peak in the WINDOW after each switch
    seam_jerk: tuple[float, ...]  # [rad/s^3] likewise
    seam_speed_step: tuple[float, ...]  # [rad/s] likewise, of the change of speed within STEP_TIME
    seam_rms_acceleration: float
    seam_rms_jerk: float
    peak_acceleration: float
    peak_jerk: float
    rms_acceleration: float
    rms_jerk: float
    deviation_mean: float  # [rad]
    deviation_max: float
    outside: float  # [rad]
    time_lost: float  # [s]; infinite when the end was not reached
    over_velocity: float  # share of set-points with a joint beyond its limit
    over_acceleration: float
    over_jerk: float
    refused: int
    chunks: int


def measure(motion: Motion, profile: RobotProfile, interpolation: str) -> Measures:
    """Measure a motion; derivatives are differences over a TICK. interpolation: of the contender between steps."""
    # At rest before the first set-point.
    q = np.vstack([np.tile(motion.start, (3, 1)), motion.positions])
    v, a, j = (np.diff(q, n, axis=0)[3 - n :] / TICK**n for n in (1, 2, 3))
    top_a, top_j = np.abs(a).max(axis=1), np.abs(j).max(axis=1)
    lag = round(STEP_TIME / TICK)
    top_step = np.abs(v - np.vstack([np.zeros((lag, v.shape[1])), v[:-lag]])).max(axis=1)
    windows = [slice(round(t / TICK), round((t + WINDOW) / TICK)) for t in motion.switches]
    inside = np.zeros(len(a), bool)
    for window in windows:
        inside[window] = True
    asked, due = requested_path(motion, interpolation)
    mean, largest = deviation(motion.positions, asked)
    return Measures(
        seam_acceleration=tuple(float(top_a[w].max()) for w in windows),
        seam_jerk=tuple(float(top_j[w].max()) for w in windows),
        seam_speed_step=tuple(float(top_step[w].max()) for w in windows),
        seam_rms_acceleration=_rms(a[inside]),
        seam_rms_jerk=_rms(j[inside]),
        peak_acceleration=float(top_a.max()),
        peak_jerk=float(top_j.max()),
        rms_acceleration=_rms(a),
        rms_jerk=_rms(j),
        deviation_mean=mean,
        deviation_max=largest,
        outside=_outside(motion),
        time_lost=_arrival(motion.positions, TICK * np.arange(1, len(q) - 2), asked[-1])
        - _arrival(asked, due, asked[-1]),
        over_velocity=_beyond(v, profile.velocity),
        over_acceleration=_beyond(a, profile.acceleration),
        over_jerk=_beyond(j, profile.jerk),
        refused=motion.refused,
        chunks=len(motion.pieces),
    )


def _outside(motion: Motion) -> float:
    ends = [*(came for came, _ in motion.taken[1:]), len(motion.positions) * TICK]
    worst, before = 0.0, motion.start[None]
    for (came, chunk), until in zip(motion.taken, ends, strict=True):
        first = round(came / TICK)
        executed = motion.positions[first : round(until / TICK)]
        here = motion.positions[first - 1] if first else motion.start
        asked = np.vstack([before, chunk.positions, here])
        worst = max(worst, float((executed - asked.max(axis=0)).max()), float((asked.min(axis=0) - executed).max()))
        before = chunk.positions
    return worst


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2))) if values.size else 0.0


def _beyond(values: np.ndarray, limit: np.ndarray) -> float:
    return float((np.abs(values) > limit * (1 + 1e-3)).any(axis=1).mean())


def _arrival(points: np.ndarray, times: np.ndarray, end: np.ndarray) -> float:
    """Return the time [s] from which all points are NEAR the end; infinite when the last is not."""
    away = np.flatnonzero(np.linalg.norm(points - end, axis=1) > NEAR)
    if not len(away):
        return float(times[0])
    return float(times[away[-1] + 1]) if away[-1] + 1 < len(times) else float('inf')


def deviation(executed: np.ndarray, asked: np.ndarray) -> tuple[float, float]:
    """Return mean and largest distance [rad] of two paths, (n, dof) and (m, dof), matched as described above."""
    length = max(_length(executed), _length(asked))
    spacing = max(length / _POINTS, 1e-4)
    points, corners = _even(executed, spacing), _even(asked, spacing)
    # Distance of every point of one path from every segment of the other.
    along = np.diff(corners, axis=0)
    square = np.maximum((along**2).sum(axis=1), 1e-18)
    origin = points.mean(axis=0)
    p, a = points - origin, corners[:-1] - origin
    reach = p @ along.T - (a * along).sum(axis=1)
    share = np.clip(reach / square, 0.0, 1.0)
    apart = (p**2).sum(axis=1)[:, None] + (a**2).sum(axis=1) - 2 * p @ a.T
    apart += share * (share * square - 2 * reach)
    return _match(np.sqrt(np.maximum(apart, 0.0)))


def _length(path: np.ndarray) -> float:
    return float(np.linalg.norm(np.diff(path, axis=0), axis=1).sum())


def _even(path: np.ndarray, spacing: float) -> np.ndarray:
    """Return the path as evenly spaced points with both ends, at least two."""
    lengths = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])
    at = np.linspace(0.0, lengths[-1], max(2, int(np.ceil(lengths[-1] / spacing)) + 1))
    return np.column_stack([np.interp(at, lengths, joint) for joint in path.T])


def _match(cost: np.ndarray) -> tuple[float, float]:
    """Return mean and largest cost of the monotone path of least sum through cost (n, m), from corner to corner."""
    n, m = cost.shape
    flipped = cost[:, ::-1]
    # Cells (i, k - i) of anti-diagonal k; state per i: sum, number of cells, largest. One and two diagonals back.
    last = before = np.full((3, n + 1), np.inf)  # column i + 1 is cell i; column 0 is outside
    for k in range(n + m - 1):
        low, high = max(0, k - m + 1), min(n - 1, k)
        here = np.diagonal(flipped, m - 1 - k)  # cells i = low .. high
        if k == 0:
            best = np.zeros((3, 1))
        else:
            left, up, across = last[:, low + 1 : high + 2], last[:, low : high + 1], before[:, low : high + 1]
            best = np.where(up[0] < left[0], up, left)
            best = np.where(across[0] <= best[0], across, best)
        now = np.full((3, n + 1), np.inf)
        now[:, low + 1 : high + 2] = best[0] + here, best[1] + 1, np.maximum(best[2], here)
        before, last = last, now
    total, cells, largest = last[:, n]
    return float(total / cells), float(largest)
