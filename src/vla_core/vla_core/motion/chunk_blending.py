"""How an accepted chunk and the ones before it become the chunk to follow.

Every strategy is a set of weights: at the time of each step of the new chunk, how much the new chunk counts and how
much each older one that also speaks for that time. Positions are the weighted mean; the gripper is a vote with the
same weights.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vla_core.motion.chunk import StampedChunk
from vla_core.motion.path import ChunkPath

STRATEGIES = ('latest', 'inpaint', 'cross_fade', 'weighted', 'temporal_ensemble')
_MOST = 128  # older chunks that are kept: a bound on memory, whatever their length
_BEFORE = 3  # steps of the followed chunk before a new one: what lies further back hardly bends a spline
_SAME = 1e-6  # [s] times closer than this are the same
_LEFT = 0.5  # of the way to what was followed is left after each step of a chunk that turns away


@dataclass(frozen=True)
class _Old:
    """A chunk that was said, or followed."""

    t_ref: int  # [ns]
    dt: float  # [s]
    positions: np.ndarray  # (steps, dof) [rad]
    gripper: np.ndarray  # (steps,) [m] or (0,)

    @cached_property
    def path(self) -> ChunkPath:
        return ChunkPath(self.positions, self.dt)

    def steps_at(self, times: np.ndarray) -> np.ndarray:
        """Index of the newest step due at each time (n,) [s since t_ref]."""
        newest = np.floor((times + _SAME) / self.dt).astype(int) - 1
        return np.clip(newest, 0, len(self.positions) - 1)

    def covers(self, times: np.ndarray) -> np.ndarray:
        """(n,) whether it speaks for these times [s since t_ref]: from its first step to its last."""
        return (times > self.dt - _SAME) & (times < len(self.positions) * self.dt + _SAME)

    def at(self, times: np.ndarray) -> np.ndarray:
        """(n, dof) [rad] along its path, never outside the range of its own steps."""
        times = np.clip(times, self.dt, len(self.positions) * self.dt)
        return np.clip(self.path.sample(times)[0], self.positions.min(axis=0), self.positions.max(axis=0))


class ChunkBlending:
    """Blends chunks of one epoch by one strategy. Not thread-safe.

    latest: the new chunk alone.
    inpaint: the same for a chunk that continues the steps that will be executed anyway, because its source was given
        them (`frozen` above 0). If its next step is further from what was to be followed than a joint gets there and
        stops within one step (turn dt^2 / 4), it leaves that by halves, step by step. `weighted` for a chunk that
        continues nothing.
    cross_fade: from the chunk that is followed to the new one over `fade_time`, from now on, along a minimum-jerk
        curve (Flash and Hogan, 1985); shorter where the followed chunk ends before.
    weighted: `old_weight` of what was to be followed plus the rest of the new one, wherever both speak (LeRobot's
        weighted_average: 0.3 and 0.7).
    temporal_ensemble: mean of all chunks that speak for the time of a step, weighted exp(-decay i), i = 0 the oldest
        (ACT: decay 0.01, which favours old chunks a little).

    Older chunks may have other t_ref and dt: they are read at the new step times along their own path. The first
    `frozen` steps of a chunk are never blended. A chunk says nothing of the time before its first step, in which it
    may arrive: there the path runs as what is followed, shifted to meet the first step. So up to three steps of that
    come before it, and a chunk that continues the followed one is on the same spline.

    wraps: (dof,) bool, joints without end (continuous): blended the short way round, on the new chunk's turn.

    Gripper: each chunk votes to be closed where its opening is below `gripper_threshold` [m], weighted as in the
    blend; one within `gripper_band` / 2 of the threshold abstains, and with no other vote the hand stays as it is.
    What is sent is the opening of the newest chunk on the winning side, or the one sent before.

    execute_horizon: steps of a chunk that are executed at most, from now on; what lies beyond is left out, so that
    the arm comes to rest there when no new chunk comes. 0: all of them.
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
        """Raises ValueError naming the setting that is none."""
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
        """A new epoch: the chunks before are forgotten."""
        self._said: list[_Old] = []  # what an ensemble is made of, by t_ref
        self._followed: _Old | None = None
        self._candidate: tuple[_Old, _Old] | None = None  # what would be followed, and what was said

    def blend(
        self,
        chunk: StampedChunk,
        positions: np.ndarray,
        now: int,
        gripper: float | None = None,
        turn: np.ndarray | None = None,
    ) -> tuple[int, np.ndarray, np.ndarray]:
        """The chunk to follow: t_ref [ns], positions (n, dof) [rad] and gripper (n,) or (0,) [m], every chunk.dt.

        positions: (horizon, dof) as `checked_positions` gives them; now [ns]; gripper: opening sent last [m], None:
        none yet. turn: (dof,) [rad/s^2] where the chunk would begin with more acceleration than this, it wants
        something else than what is followed, of which then nothing comes before it. The result keeps the limits that
        the positions of this and the older chunks keep. Its t_ref is earlier than the chunk's where steps come
        before. Call `followed` when the arm goes along it; until then, later blends know nothing of it.
        """
        times = chunk.dt * np.arange(1, len(positions) + 1)  # [s] since t_ref
        olds, weights = self._weights(chunk, times, (now - chunk.t_ref) * 1e-9)
        if self.strategy == 'inpaint' and chunk.frozen:
            olds, weights = self._leave(chunk, positions, times, turn)
        blended = np.array(positions, float)
        for old, weight in zip(olds, weights, strict=True):
            blended += weight[:, None] * self._apart(old.at(times + self._between(chunk, old)), positions)
        openings = self._vote(chunk, times, olds, weights, gripper)
        t_ref, blended, openings = self._with_steps_before(chunk, blended, openings, turn)
        said = _Old(chunk.t_ref, chunk.dt, np.array(positions, float), np.array(chunk.gripper, float))
        self._candidate = _Old(t_ref, chunk.dt, blended.copy(), openings.copy()), said
        end = len(blended)
        if self.execute_horizon:
            past = int(((now - t_ref) * 1e-9 + _SAME) / chunk.dt) if now > t_ref else 0
            end = min(end, past + self.execute_horizon)
        return t_ref, blended[:end], openings[:end]

    def followed(self) -> None:
        """The arm goes along what the last `blend` gave."""
        if self._candidate is None:
            return
        (self._followed, said), self._candidate = self._candidate, None
        if self.strategy == 'temporal_ensemble':
            self._said = sorted([*self._said, said], key=lambda old: old.t_ref)[-_MOST:]

    # ---- inside

    @staticmethod
    def _between(chunk: StampedChunk, old: _Old) -> float:
        """[s] from the old t_ref to the new one."""
        return (chunk.t_ref - old.t_ref) * 1e-9

    def _apart(self, old: np.ndarray, new: np.ndarray) -> np.ndarray:
        """old - new (n, dof) [rad], the short way round where joints wrap."""
        apart = old - new
        return apart if self._wraps is None else np.where(self._wraps, (apart + np.pi) % (2 * np.pi) - np.pi, apart)

    def _with_steps_before(
        self, chunk: StampedChunk, positions: np.ndarray, gripper: np.ndarray, turn: np.ndarray | None
    ) -> tuple[int, np.ndarray, np.ndarray]:
        """t_ref [ns], positions and gripper with the steps of the followed chunk before them, see the class."""
        old = self._followed
        if old is None:
            return chunk.t_ref, positions, gripper
        times = self._between(chunk, old) + chunk.dt * np.arange(1 - _BEFORE, 2)  # [s since its t_ref]: to step 0
        covered = old.covers(times)
        if not covered[-2:].all():
            return chunk.t_ref, positions, gripper  # it has ended, or nearly
        times = times[covered]
        shape = old.at(times)
        if turn is not None and len(positions) > 1:
            bend = self._apart(positions[1:2], positions[:1])[0] - self._apart(shape[-1:], shape[-2:-1])[0]
            if (np.abs(bend) > turn * chunk.dt**2).any():
                return chunk.t_ref, positions, gripper  # it wants something else: no sharp corner where it begins
        before = positions[0] + self._apart(shape[:-1], shape[-1:])
        if self._wraps is None:
            asked = np.vstack([positions, old.positions])
            before = np.clip(before, asked.min(axis=0), asked.max(axis=0))
        if gripper.size:
            first = old.gripper[old.steps_at(times[:-1])] if old.gripper.size else np.full(len(before), gripper[0])
            gripper = np.concatenate([first, gripper])
        return chunk.t_ref - len(before) * round(chunk.dt * 1e9), np.vstack([before, positions]), gripper

    def _weights(self, chunk: StampedChunk, times: np.ndarray, now: float) -> tuple[list[_Old], np.ndarray]:
        """The older chunks that count and their weights (olds, horizon); the new chunk has what is left of 1.

        times: (horizon,) and now [s since the new t_ref].
        """
        if self.strategy == 'temporal_ensemble':
            ends = [len(old.positions) * old.dt - self._between(chunk, old) for old in self._said]
            self._said = [old for old, end in zip(self._said, ends, strict=True) if end > times[0] - _SAME]
            olds = self._said
        else:
            olds = [self._followed] if self._followed is not None else []
        if self.strategy == 'latest' or not olds:
            return [], np.zeros((0, len(times)))
        covers = np.stack([old.covers(times + self._between(chunk, old)) for old in olds])
        covers[:, : max(chunk.frozen, 0)] = False
        if self.strategy in ('weighted', 'inpaint'):
            return olds, self._old_weight * covers
        if self.strategy == 'cross_fade':
            left = len(olds[0].positions) * olds[0].dt - self._between(chunk, olds[0]) - now
            u = np.clip((times - now) / max(min(self._fade_time, left), _SAME), 0.0, 1.0)
            return olds, covers * (1.0 - u**3 * (10.0 - 15.0 * u + 6.0 * u**2))
        ages = np.cumsum(covers, axis=0) - 1  # 0 for the oldest that speaks for the step
        raw = np.where(covers, np.exp(-self._decay * ages), 0.0)
        newest = np.exp(-self._decay * covers.sum(axis=0))
        return olds, raw / (raw.sum(axis=0) + newest)

    def _leave(
        self, chunk: StampedChunk, positions: np.ndarray, times: np.ndarray, turn: np.ndarray | None
    ) -> tuple[list[_Old], np.ndarray]:
        """As _weights, for a chunk that continues what is followed: none, unless no joint can turn as it asks."""
        old, first = self._followed, chunk.frozen
        if old is None or turn is None or first >= len(times):
            return [], np.zeros((0, len(times)))
        covers = old.covers(times + self._between(chunk, old))
        apart = self._apart(old.at(times + self._between(chunk, old)), positions)[first]
        if not covers[first] or (np.abs(apart) <= turn * chunk.dt**2 / 4).all():
            return [], np.zeros((0, len(times)))
        left = _LEFT ** (np.arange(len(times)) - first + 1.0)
        left[:first] = 0.0
        return [old], (left * covers)[None]

    def _vote(
        self,
        chunk: StampedChunk,
        times: np.ndarray,
        olds: list[_Old],
        weights: np.ndarray,
        sent: float | None,
    ) -> np.ndarray:
        """Openings (horizon,) [m] to send; (0,) when the chunk has no gripper. sent: see `blend`."""
        if chunk.gripper.size == 0:
            return np.zeros(0)
        # One row per chunk, the newest first: what it says for each step, and how much that counts.
        said, counts = [np.asarray(chunk.gripper, float)], [1.0 - weights.sum(axis=0)]
        for old, weight in zip(reversed(olds), weights[::-1], strict=True):
            if old.gripper.size:
                said.append(old.gripper[old.steps_at(times + self._between(chunk, old))])
                counts.append(weight)
        openings, votes = np.stack(said), np.stack(counts)
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
