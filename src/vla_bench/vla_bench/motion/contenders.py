"""Contenders, which make set-points from chunks: the executor with each blending, and simple versions of others.

All have the interface of ChunkExecutor that a replay and `vla_sim.rollout.run_episode` use. The others work as their
originals, but interpolate linearly between steps, so that no staircase counts against them.
"""

import numpy as np

from vla_core.clocks import SECONDS
from vla_core.motion.chunk import Refusal, StampedChunk, Verdict, checked_positions
from vla_core.motion.chunk_blending import STRATEGIES, ChunkBlending
from vla_core.motion.executor import ChunkExecutor, ExecutorConfig, Hold, SetPoint, State
from vla_core.profile import RobotProfile

BASELINES = ('clamp', 'lerobot', 'blocking')
LEROBOT_RATE = 50  # [Hz] of its queue; 30 to 50 are usual
LEROBOT_NEW = 0.7  # share of the new chunk in `weighted_average`
SPEED_SHARE = 0.8  # of the velocity limits in `clamp`, as in the executor


class Ours(ChunkExecutor):
    """The executor of this suite with one blending."""

    interpolation = 'cubic'

    def __init__(self, profile: RobotProfile, strategy: str, period: float) -> None:
        blending = ChunkBlending(strategy, gripper_threshold=profile.gripper_max_opening / 2)
        super().__init__(profile, ExecutorConfig(period=period), blending=blending)


class _Baseline:
    """Common state of the baselines: position of the arm, no epochs."""

    interpolation = 'linear'
    epoch = 1
    seam_position = 0.0
    hold = Hold.NONE  # they detect no contact

    def __init__(self, profile: RobotProfile, period: float) -> None:
        self.profile, self.period = profile, period
        self.state, self.message = State.INACTIVE, ''
        self._q, self._gripper = np.zeros(profile.dof), np.zeros(0)
        self._opening: float | None = None
        self._now: int | None = None

    def observe(self, positions: np.ndarray, stamp: int) -> None:
        if self.state is State.INACTIVE:
            self._q = np.array(positions, float)

    def activate(self, now: int) -> None:
        self.state = State.HOLDING

    def ingest(self, chunk: StampedChunk, now: int) -> Verdict:
        """Check names, sizes and limits as the executor does, and take the chunk."""
        try:
            positions = checked_positions(chunk, self.profile)
        except Refusal as refusal:
            self.message = refusal.message
            return refusal.verdict
        if not self._take(chunk, positions, now):
            return Verdict.NOT_ACCEPTING
        self.state = State.EXECUTING
        return Verdict.ACCEPTED

    def step(self, now: int) -> SetPoint:
        elapsed = self.period if self._now is None else (now - self._now) * SECONDS
        before, self._now = self._q, now
        self._q = self._next(now, elapsed)
        return SetPoint(self._q.copy(), (self._q - before) / elapsed, self._opening)

    def _take(self, chunk: StampedChunk, positions: np.ndarray, now: int) -> bool:
        """Use the chunk, positions (horizon, dof) [rad]; return False if it is not accepted now."""
        raise NotImplementedError

    def _next(self, now: int, elapsed: float) -> np.ndarray:
        """Return the set-point (dof,) [rad] at now [ns], `elapsed` [s] after the one before."""
        raise NotImplementedError


class Clamp(_Baseline):
    """Follows the newest chunk from its first step at once, with each joint clamped to its speed limit."""

    _steps: np.ndarray | None = None

    def _take(self, chunk: StampedChunk, positions: np.ndarray, now: int) -> bool:
        self._steps, self._dt, self._since, self._gripper = positions, chunk.dt, now, chunk.gripper
        return True

    def _next(self, now: int, elapsed: float) -> np.ndarray:
        if self._steps is None:
            return self._q
        at = (now - self._since) * SECONDS / self._dt  # step i is due i * dt after the receipt
        wanted = _along(self._steps, at)
        if self._gripper.size:
            self._opening = float(self._gripper[min(int(at), len(self._gripper) - 1)])
        most = SPEED_SHARE * self.profile.velocity * elapsed
        q = self._q + np.clip(wanted - self._q, -most, most)
        return np.clip(q, self.profile.position_lower, self.profile.position_upper)


class LeRobot(_Baseline):
    """A queue of set-points per tick; in an overlap 0.3 of the old and 0.7 of the new chunk.

    As in LeRobot's asynchronous client ticks are matched by time, and past ones are dropped. There are no limits.
    """

    def __init__(self, profile: RobotProfile, period: float) -> None:
        super().__init__(profile, period)
        self._queue: dict[int, np.ndarray] = {}  # tick -> (dof + 1,) with the opening, NaN without
        self._tick = -1  # newest tick that was taken from the queue
        self._from: np.ndarray | None = None  # (dof,) [rad] position at that tick
        self._to: np.ndarray | None = None  # (dof,) [rad] position at the next tick

    def _take(self, chunk: StampedChunk, positions: np.ndarray, now: int) -> bool:
        due = chunk.t_ref * SECONDS + chunk.dt * np.arange(1, len(positions) + 1)
        opening = chunk.gripper if chunk.gripper.size else np.full(len(positions), np.nan)
        steps = np.column_stack([positions, opening])
        first = int(np.ceil(due[0] * LEROBOT_RATE - 1e-6))
        last = int(np.floor(due[-1] * LEROBOT_RATE + 1e-6))
        for tick in range(max(first, self._tick + 2), last + 1):  # the arm moves to the next one
            new = _along(steps, (tick / LEROBOT_RATE - due[0]) / chunk.dt)
            old = self._queue.get(tick)
            self._queue[tick] = new if old is None else (1 - LEROBOT_NEW) * old + LEROBOT_NEW * new
        return True

    def _next(self, now: int, elapsed: float) -> np.ndarray:
        at = now * SECONDS * LEROBOT_RATE
        tick = int(at + 1e-6)
        if tick != self._tick:
            self._tick = tick
            self._from, self._to = self._q if self._to is None else self._to, None
            coming = self._queue.get(tick + 1)
            if coming is not None:
                self._to = coming[:-1]
                self._opening = None if np.isnan(coming[-1]) else float(coming[-1])
            for over in [t for t in self._queue if t <= tick]:
                del self._queue[over]
        if self._to is None or self._from is None:
            return self._q
        return self._from + min(max(at - tick, 0.0), 1.0) * (self._to - self._from)


class Blocking(_Baseline):
    """Executes a chunk to its end, stops, observes, and waits for the next chunk."""

    _steps: np.ndarray | None = None

    def __init__(self, profile: RobotProfile, period: float) -> None:
        super().__init__(profile, period)
        self.idle_since: int | None = 0  # [ns] end of the last chunk; None: one is executed

    def activate(self, now: int) -> None:
        super().activate(now)
        self.idle_since = now

    def _take(self, chunk: StampedChunk, positions: np.ndarray, now: int) -> bool:
        if self.idle_since is None or chunk.t_ref < self.idle_since:
            return False
        self._steps = np.vstack([self._q, positions])
        self._dt, self._since, self._gripper, self.idle_since = chunk.dt, now, chunk.gripper, None
        return True

    def _next(self, now: int, elapsed: float) -> np.ndarray:
        if self._steps is None:
            return self._q
        at = (now - self._since) * SECONDS / self._dt
        if self._gripper.size and at >= 1:
            self._opening = float(self._gripper[min(int(at), len(self._gripper)) - 1])
        if at >= len(self._steps) - 1 and self.idle_since is None:
            self.idle_since, self.state = now, State.HOLDING
        return _along(self._steps, at)


def _along(steps: np.ndarray, at: float) -> np.ndarray:
    """Interpolate the steps (n, ...) linearly at index `at`; constant before the first and after the last."""
    at = min(max(at, 0.0), len(steps) - 1.0)
    i = min(int(at), len(steps) - 2) if len(steps) > 1 else 0
    return steps[i] + (at - i) * (steps[min(i + 1, len(steps) - 1)] - steps[i])


Contender = Ours | Clamp | LeRobot | Blocking


def contender(name: str, profile: RobotProfile, period: float) -> Contender:
    """By name: a blending strategy of ours, or a baseline. period: [s] between control steps. Raises ValueError."""
    if name in STRATEGIES:
        return Ours(profile, name, period)
    if name == 'clamp':
        return Clamp(profile, period)
    if name == 'lerobot':
        return LeRobot(profile, period)
    if name == 'blocking':
        return Blocking(profile, period)
    raise ValueError(f'{name!r} must be one of {", ".join((*STRATEGIES, *BASELINES))}')
