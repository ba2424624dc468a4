"""Chunk blending: the chunk to follow, from an accepted chunk and the ones before it.

Every strategy is a set of weights: at each step of the new chunk, of this chunk and of each older one that covers the
time of the step. Positions are the weighted mean; the gripper follows the weighted majority.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vla_core.motion.chunk import StampedChunk
from vla_core.motion.path import ChunkPath

STRATEGIES = ('latest', 'inpaint', 'cross_fade', 'weighted', 'temporal_ensemble')
_MAX_CHUNKS = 128  # older chunks that are kept: a bound on memory, whatever their length
_LEADING = 3  # steps of the followed chunk before a new one: earlier steps hardly bend a spline
_TOLERANCE = 1e-6  # [s] times closer than this are equal
_REMAINDER = 0.5  # share of the distance to the followed chunk that is left after each step of a diverging chunk


@dataclass(frozen=True)
class _PastChunk:
    """A chunk as it was received, or as it was followed."""

    t_ref: int  # [ns]
    dt: float  # [s]
    positions: np.ndarray  # (steps, dof) [rad]
    gripper: np.ndarray  # (steps,) [m] or (0,)

    @cached_property
    def path(self) -> ChunkPath:
        return ChunkPath(self.positions, self.dt)

    def steps_at(self, times: np.ndarray) -> np.ndarray:
        """Return the index (n,) of the newest step due at each time (n,) [s since t_ref]."""
        newest = np.floor((times + _TOLERANCE) / self.dt).astype(int) - 1
        return np.clip(newest, 0, len(self.positions) - 1)

    def covers(self, times: np.ndarray) -> np.ndarray:
        """Return for each time (n,) [s since t_ref] whether it is between the first step and the last, (n,) bool."""
        return (times > self.dt - _TOLERANCE) & (times < len(self.positions) * self.dt + _TOLERANCE)

    def at(self, times: np.ndarray) -> np.ndarray:
        """Return positions (n, dof) [rad] on its path at times (n,) [s since t_ref], within the range of its steps."""
        times = np.clip(times, self.dt, len(self.positions) * self.dt)
        return np.clip(self.path.sample(times)[0], self.positions.min(axis=0), self.positions.max(axis=0))


class ChunkBlending:
    """Blends chunks of one epoch by one strategy. Not thread-safe.

    latest: the new chunk alone.
    inpaint: the new chunk alone, if its source was given the committed actions as a prefix (`frozen` above 0). Its
        next step may be further from the followed chunk than a joint can move and stop within one step
        (turn dt^2 / 4). Then the distance that remains to the followed chunk is halved at each step. A chunk without
        a prefix is blended as by `weighted`.
    cross_fade: from the followed chunk to the new one over `fade_time`, from now on, along a minimum-jerk curve
        (Flash and Hogan, 1985). The fade is shorter where the followed chunk ends earlier.
    weighted: `old_weight` of the followed chunk plus the rest of the new one, wherever both have steps (LeRobot's
        weighted_average: 0.3 and 0.7).
    temporal_ensemble: mean of all chunks that cover the time of a step, weighted exp(-decay i), i = 0 the oldest
        (ACT: decay 0.01, which favours old chunks a little).

    Older chunks may have other t_ref and dt: they are sampled at the new step times along their own path. The first
    `frozen` steps of a chunk are never blended. A chunk has no positions for the time before its first step, and may
    arrive in this time. There the path is that of the followed chunk, shifted to meet the first step: up to three of
    its steps are prepended. A chunk that continues the followed one is then on the same spline.

    wraps: (dof,) bool, continuous joints: they are blended the short way round, on the new chunk's turn.

    Gripper: each chunk counts for closed where its opening is below `gripper_threshold` [m], else for open, with its
    weight in the blend. Openings within `gripper_band` / 2 of the threshold do not count. If none counts, the gripper
    keeps its state. The opening sent is that of the newest chunk on the winning side, or the one sent before.

    execute_horizon: largest number of steps of a chunk that are executed, from now on; 0: all of them. Later steps
    are cut off, so that the arm comes to rest there when no new chunk arrives.
    """

    def __init__(
        self,
        strategy: str,
        *,
        execute_horizon: int = 0,
        fade_time: float = 0.3,
        old_weight: float = 0.3,
        decay: float = 0.01,
        wraps: np.ndarray | None = None,
        gripper_threshold: float = 0.04,
        gripper_band: float = 0.01,
    ) -> None:
        """Raises ValueError naming the setting that is out of range."""
        if strategy not in STRATEGIES:
            raise ValueError(f'blending strategy {strategy!r}: must be one of {", ".join(STRATEGIES)}')
        if execute_horizon < 0:
            raise ValueError(f'execute_horizon must be 0 (all steps) or more, got {execute_horizon}')
        if not fade_time > 0:
            raise ValueError(f'fade_time must be above 0 s, got {fade_time}')
        if not 0 <= old_weight <= 1:
            raise ValueError(f'old_weight must be 0 to 1, got {old_weight}')
        if gripper_band < 0:
            raise ValueError(f'gripper_band must be 0 m or more, got {gripper_band}')
        self.strategy, self.execute_horizon = strategy, execute_horizon
        self._fade_time, self._old_weight, self._decay = fade_time, old_weight, decay
        self._wraps = None if wraps is None else np.asarray(wraps, bool)
        self._threshold, self._band = gripper_threshold, gripper_band
        self.reset()

    def reset(self) -> None:
        """Forget all chunks: a new epoch."""
        self._received: list[_PastChunk] = []  # members of an ensemble, by t_ref
        self._followed: _PastChunk | None = None
        self._candidate: tuple[_PastChunk, _PastChunk] | None = None  # the last blend, and its chunk as received

    def blend(
        self,
        chunk: StampedChunk,
        positions: np.ndarray,
        now: int,
        gripper: float | None = None,
        turn: np.ndarray | None = None,
    ) -> tuple[int, np.ndarray, np.ndarray]:
        """Return the chunk to follow: t_ref [ns], positions (n, dof) [rad], gripper (n,) or (0,) [m], every chunk.dt.

        positions: (horizon, dof) [rad] from `checked_positions`. now: [ns]. gripper: the opening sent last [m]; None:
        none yet. turn: (dof,) [rad/s^2] limit on the acceleration at the chunk's first step; above it, the chunk
        diverges from the followed one, and no steps are prepended. The result keeps the limits that the positions of
        this and the older chunks keep. Its t_ref is earlier than the chunk's where steps are prepended. Call `commit`
        when the arm follows the result; without it, later blends ignore it.
        """
        times = chunk.dt * np.arange(1, len(positions) + 1)  # [s] since t_ref
        older, weights = self._weights(chunk, times, (now - chunk.t_ref) * 1e-9)
        if self.strategy == 'inpaint' and chunk.frozen:
            older, weights = self._divergence_weights(chunk, positions, times, turn)
        blended = np.array(positions, float)
        for old, weight in zip(older, weights, strict=True):
            blended += weight[:, None] * self._difference(old.at(times + self._shift(chunk, old)), positions)
        openings = self._gripper_openings(chunk, times, older, weights, gripper)
        t_ref, blended, openings = self._prepend_followed_steps(chunk, blended, openings, turn)
        received = _PastChunk(chunk.t_ref, chunk.dt, np.array(positions, float), np.array(chunk.gripper, float))
        self._candidate = _PastChunk(t_ref, chunk.dt, blended.copy(), openings.copy()), received
        end = len(blended)
        if self.execute_horizon:
            elapsed = int(((now - t_ref) * 1e-9 + _TOLERANCE) / chunk.dt) if now > t_ref else 0
            end = min(end, elapsed + self.execute_horizon)
        return t_ref, blended[:end], openings[:end]

    def commit(self) -> None:
        """Record that the arm follows the result of the last `blend`."""
        if self._candidate is None:
            return
        (self._followed, received), self._candidate = self._candidate, None
        if self.strategy == 'temporal_ensemble':
            self._received = sorted([*self._received, received], key=lambda old: old.t_ref)[-_MAX_CHUNKS:]

    # ---- inside

    @staticmethod
    def _shift(chunk: StampedChunk, old: _PastChunk) -> float:
        """Return the time [s] from the old t_ref to the new one."""
        return (chunk.t_ref - old.t_ref) * 1e-9

    def _difference(self, old: np.ndarray, new: np.ndarray) -> np.ndarray:
        """Return old - new (n, dof) [rad], the short way round where joints wrap."""
        apart = old - new
        return apart if self._wraps is None else np.where(self._wraps, (apart + np.pi) % (2 * np.pi) - np.pi, apart)

    def _prepend_followed_steps(
        self, chunk: StampedChunk, positions: np.ndarray, gripper: np.ndarray, turn: np.ndarray | None
    ) -> tuple[int, np.ndarray, np.ndarray]:
        """Return t_ref [ns], positions (n, dof) and gripper (n,) with prepended steps of the followed chunk."""
        old = self._followed
        if old is None:
            return chunk.t_ref, positions, gripper
        times = self._shift(chunk, old) + chunk.dt * np.arange(1 - _LEADING, 2)  # [s since its t_ref]: to step 0
        covered = old.covers(times)
        if not covered[-2:].all():
            return chunk.t_ref, positions, gripper  # the followed chunk has ended, or nearly
        times = times[covered]
        shape = old.at(times)
        if turn is not None and len(positions) > 1:
            bend = self._difference(positions[1:2], positions[:1])[0] - self._difference(shape[-1:], shape[-2:-1])[0]
            if (np.abs(bend) > turn * chunk.dt**2).any():
                return chunk.t_ref, positions, gripper  # it diverges: prepended steps would make a sharp corner
        before = positions[0] + self._difference(shape[:-1], shape[-1:])
        if self._wraps is None:
            asked = np.vstack([positions, old.positions])
            before = np.clip(before, asked.min(axis=0), asked.max(axis=0))
        if gripper.size:
            first = old.gripper[old.steps_at(times[:-1])] if old.gripper.size else np.full(len(before), gripper[0])
            gripper = np.concatenate([first, gripper])
        return chunk.t_ref - len(before) * round(chunk.dt * 1e9), np.vstack([before, positions]), gripper

    def _weights(self, chunk: StampedChunk, times: np.ndarray, now: float) -> tuple[list[_PastChunk], np.ndarray]:
        """Return the older chunks that count and their weights (chunks, horizon). The new chunk has the rest of 1.

        times: (horizon,) and now: [s since the new t_ref].
        """
        if self.strategy == 'temporal_ensemble':
            ends = [len(old.positions) * old.dt - self._shift(chunk, old) for old in self._received]
            self._received = [old for old, end in zip(self._received, ends, strict=True) if end > times[0] - _TOLERANCE]
            older = self._received
        else:
            older = [self._followed] if self._followed is not None else []
        if self.strategy == 'latest' or not older:
            return [], np.zeros((0, len(times)))
        covers = np.stack([old.covers(times + self._shift(chunk, old)) for old in older])
        covers[:, : max(chunk.frozen, 0)] = False
        if self.strategy in ('weighted', 'inpaint'):
            return older, self._old_weight * covers
        if self.strategy == 'cross_fade':
            left = len(older[0].positions) * older[0].dt - self._shift(chunk, older[0]) - now
            u = np.clip((times - now) / max(min(self._fade_time, left), _TOLERANCE), 0.0, 1.0)
            return older, covers * (1.0 - u**3 * (10.0 - 15.0 * u + 6.0 * u**2))
        ages = np.cumsum(covers, axis=0) - 1  # 0 for the oldest that covers the step
        raw = np.where(covers, np.exp(-self._decay * ages), 0.0)
        newest = np.exp(-self._decay * covers.sum(axis=0))
        return older, raw / (raw.sum(axis=0) + newest)

    def _divergence_weights(
        self, chunk: StampedChunk, positions: np.ndarray, times: np.ndarray, turn: np.ndarray | None
    ) -> tuple[list[_PastChunk], np.ndarray]:
        """Return as _weights for a chunk that continues the followed one: none, unless a joint cannot turn so fast."""
        old, first = self._followed, chunk.frozen
        if old is None or turn is None or first >= len(times):
            return [], np.zeros((0, len(times)))
        covers = old.covers(times + self._shift(chunk, old))
        apart = self._difference(old.at(times + self._shift(chunk, old)), positions)[first]
        if not covers[first] or (np.abs(apart) <= turn * chunk.dt**2 / 4).all():
            return [], np.zeros((0, len(times)))
        left = _REMAINDER ** (np.arange(len(times)) - first + 1.0)
        left[:first] = 0.0
        return [old], (left * covers)[None]

    def _gripper_openings(
        self,
        chunk: StampedChunk,
        times: np.ndarray,
        older: list[_PastChunk],
        weights: np.ndarray,
        sent: float | None,
    ) -> np.ndarray:
        """Return the openings (horizon,) [m] to send; (0,) for a chunk without gripper. sent: see `blend`."""
        if chunk.gripper.size == 0:
            return np.zeros(0)
        # One row per chunk, the newest first: its opening at each step, and its weight.
        wanted, counts = [np.asarray(chunk.gripper, float)], [1.0 - weights.sum(axis=0)]
        for old, weight in zip(reversed(older), weights[::-1], strict=True):
            if old.gripper.size:
                wanted.append(old.gripper[old.steps_at(times + self._shift(chunk, old))])
                counts.append(weight)
        openings, votes = np.stack(wanted), np.stack(counts)
        shut = openings < self._threshold - self._band / 2
        wide = openings > self._threshold + self._band / 2
        ahead = (votes * shut).sum(axis=0) - (votes * wide).sum(axis=0)
        opening = float(openings[0, 0] if sent is None else sent)
        closed = opening < self._threshold
        result = np.empty(len(times))
        for i in range(len(times)):
            if abs(ahead[i]) > 1e-9:
                closed = bool(ahead[i] > 0)
            agree = (shut if closed else wide)[:, i] & (votes[:, i] > 1e-9)
            if agree.any():
                opening = float(openings[int(agree.argmax()), i])
            result[i] = opening
        return result
