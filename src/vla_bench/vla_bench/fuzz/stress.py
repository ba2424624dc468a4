"""Random and adversarial streams of chunks for the executor, and measures of its set-points."""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from vla_core.clocks import NS
from vla_core.motion.chunk import StampedChunk
from vla_core.motion.chunk_blending import STRATEGIES, ChunkBlending
from vla_core.motion.executor import ChunkExecutor, ExecutorConfig, Hold, State
from vla_core.motion.limits import velocity_limits
from vla_core.profile import RobotProfile

if TYPE_CHECKING:
    from vla_core.kinematics.collision_monitor import CollisionMonitor

DEVIATION = 1e-3  # [rad] largest distance of a set-point from the planned path
_TOLERANCE = 1e-6  # fraction of a limit, for the rounding of third differences
KINDS = (
    'ordinary', 'ordinary', 'ordinary', 'jump', 'reverse', 'noise', 'limits', 'corner', 'far', 'still',
    'nan', 'names', 'size', 'repeat', 'reorder', 'old', 'past', 'future', 'shadow', 'epoch', 'stop',
)  # fmt: skip


@dataclass
class Measured:
    """Measures of a run: largest multiples of the profile's limits, and times."""

    velocity: float = 0.0
    acceleration: float = 0.0
    jerk: float = 0.0
    position: float = -np.inf  # [rad] beyond the limits
    deviation: float = 0.0  # [rad]
    tool_speed: float = 0.0  # multiple of the limit
    distance: float = np.inf  # [m] smallest of any pair that the collision monitor knows
    samples: int = 0
    moving: int = 0  # samples
    chunks: int = 0
    verdicts: Counter = field(default_factory=Counter)
    by_kind: Counter = field(default_factory=Counter)  # (kind, verdict)
    holds: Counter = field(default_factory=Counter)
    steps: list[float] = field(default_factory=list)  # [s] of CPU
    ingests: list[float] = field(default_factory=list)  # [s] of CPU

    @property
    def violations(self) -> list[str]:
        found = [
            f'{name} reaches {value:.6f} of its limit'
            for name, value in self.multiples().items()
            if value > 1 + _TOLERANCE
        ]
        if self.position > 1e-9:
            found.append(f'position is {self.position:.6f} rad outside')
        if self.deviation > DEVIATION:
            found.append(f'deviation from the path is {self.deviation:.6f} rad')
        if self.distance < 0:
            found.append(f'something is {-self.distance:.4f} m deep in something else')
        return found

    def multiples(self) -> dict[str, float]:
        """Return the largest multiples of the limits, by name."""
        names = ('velocity', 'acceleration', 'jerk', 'tool_speed')
        return {name: getattr(self, name) for name in names}

    def add(self, other: 'Measured') -> None:
        """Add the measures of another run."""
        for name in (*self.multiples(), 'position', 'deviation'):
            setattr(self, name, max(getattr(self, name), getattr(other, name)))
        self.distance = min(self.distance, other.distance)
        for name in ('samples', 'moving', 'chunks', 'steps', 'ingests'):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ('verdicts', 'by_kind', 'holds'):
            getattr(self, name).update(getattr(other, name))


class Stream:
    """An executor with a generator of chunks."""

    def __init__(
        self, profile: RobotProfile, seed: int, config: ExecutorConfig, monitor: 'CollisionMonitor | None' = None
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.core = ChunkExecutor(profile, config, monitor, ChunkBlending(STRATEGIES[seed % len(STRATEGIES)]))
        self.profile, self.seen = profile, Measured()
        self.period = config.period
        self.jitter = 0.0 if config.period < 0.002 else 0.3
        self.now = int(self.rng.integers(0, 10**6)) * 1000
        self.times: list[int] = []
        self.sent: list[np.ndarray] = []
        self.planned_positions: list[np.ndarray] = []
        self.monitor, self.hold = monitor, Hold.IDLE
        self.contact = False
        self.stuck: tuple[int, float] | None = None  # joint, and position at which it is held [rad]
        start = self._start()
        self.intent = self._wander(start)
        self.old: list[StampedChunk] = []
        self.core.observe(start, self.now)
        self.core.activate(self.now)

    def _start(self) -> np.ndarray:
        """Return a random position (dof,) [rad] without contact, in 3 of 10 cases near the ends of the range."""
        rng, profile = self.rng, self.profile
        for _ in range(1000):
            share = rng.uniform(-0.8, 0.8, profile.dof)
            if rng.random() < 0.3:
                share = rng.uniform(0.97, 1.0, profile.dof) * rng.choice([-1, 1], profile.dof)
            middle = (profile.position_lower + profile.position_upper) / 2
            start = middle + share * (profile.position_upper - middle)
            if self.monitor is None:
                return start
            self.monitor.set_obstacles([])
            if (self.monitor.distances(start) > self.monitor.margins).all():
                self._set_obstacles(start)
                return start
        raise ValueError('found no position where nothing touches: are the margins too wide?')

    def _set_obstacles(self, start: np.ndarray) -> None:
        """Add spheres around the arm, clear of it at start."""
        from vla_core.kinematics.collision_monitor import Obstacle

        assert self.monitor is not None
        kept: list[Obstacle] = []
        for i in range(12):
            centre = self.rng.uniform((-0.7, -0.7, 0.0), (0.7, 0.7, 1.0))
            ball = Obstacle(f'ball {i}', centre, np.eye(3), sphere=float(self.rng.uniform(0.03, 0.15)))
            self.monitor.set_obstacles([*kept, ball])
            if (self.monitor.distances(start) > self.monitor.margins).all():
                kept.append(ball)
        self.monitor.set_obstacles(kept)

    def _wander(self, start: np.ndarray):
        """Return a smooth motion from start: sums of slow sines, at most about the velocity limits."""
        rng, dof = self.rng, self.profile.dof
        frequency = rng.uniform(0.1, 1.5, (3, dof)) * 2 * np.pi
        size = rng.uniform(-0.5, 0.5, (3, dof)) * self.profile.velocity / frequency * rng.uniform(0.05, 1.5)
        phase, began = rng.uniform(0, 2 * np.pi, (3, dof)), self.now

        def at(times: np.ndarray) -> np.ndarray:
            t = (times - began * 1e-9)[:, None, None]
            q = start + (size * (np.sin(frequency * t + phase) - np.sin(phase))).sum(axis=1)
            return np.clip(q, self.profile.position_lower, self.profile.position_upper)

        return at

    def run(self, seconds: float) -> None:
        """Run control steps for this time [s]."""
        end = self.now + round(seconds * NS)
        while self.now < end:
            factor = 1 + self.rng.uniform(-self.jitter, self.jitter)
            self.now += round(self.period * factor * NS)
            if self.sent:
                self.core.observe(self._measured(), self.now)
            began = time.thread_time()
            point = self.core.step(self.now)
            self.seen.steps.append(time.thread_time() - began)
            if self.core.hold is not self.hold:
                self.hold = self.core.hold
                self.seen.holds[self.hold] += 1
            if point is not None:
                self.times.append(self.now)
                self.sent.append(point.positions)
                self.planned_positions.append(self.core.planned_positions.copy())
                self.seen.moving += self.core.state is not State.HOLDING
            elif not self.core.at_rest:
                raise AssertionError('nothing sent while moving')

    def _measured(self) -> np.ndarray:
        q = self.sent[-1].copy()
        if self.stuck is not None:
            q[self.stuck[0]] = self.stuck[1] + 1e-6 * self.rng.normal()
        return q

    def chunk(self) -> None:
        """Send a chunk of a random kind."""
        rng, core, profile = self.rng, self.core, self.profile
        kind = str(rng.choice(KINDS))
        dt, horizon = float(rng.choice([0.02, 0.05, 0.1])), int(rng.choice([1, 2, 4, 8, 16, 32]))
        delay = rng.uniform(0, 0.5) if rng.random() < 0.5 else rng.uniform(0, 0.1)
        if rng.random() < 0.8:
            delay = min(delay, 0.7 * horizon * dt)
        t_ref = self.now - round(delay * NS)
        times = t_ref * 1e-9 + dt * np.arange(1, horizon + 1)
        here = self.sent[-1] if self.sent else core.planned_positions
        span, dof = dt * np.arange(1, horizon + 1)[:, None], profile.dof
        positions = self.intent(times)
        if kind == 'jump':
            positions = positions + rng.uniform(-1, 1, dof) * 10 ** rng.uniform(-3, 0)
        elif kind == 'reverse':
            speed = (here - self.sent[-2]) / self.period if len(self.sent) > 1 else np.zeros(dof)
            positions = here - rng.uniform(0.5, 3.0) * speed * span
        elif kind == 'noise':
            positions = here + rng.normal(size=(horizon, dof)) * 10 ** rng.uniform(-4, -0.5)
        elif kind == 'limits':
            side = np.where(rng.random(dof) < 0.5, profile.position_lower, profile.position_upper)
            positions = here + (side - here) * np.minimum(1.0, span * rng.uniform(0.5, 4.0))
        elif kind == 'corner':
            positions = here + rng.uniform(-1, 1, dof) * profile.velocity * rng.uniform(0.2, 1.9) * np.abs(
                span - rng.uniform(0, span[-1])
            )
        elif kind == 'far':
            positions = np.tile(rng.uniform(profile.position_lower, profile.position_upper), (horizon, 1))
        elif kind == 'still':
            positions = np.tile(here, (horizon, 1))
        if kind not in ('far', 'nan') and rng.random() < 0.8:
            positions = np.clip(positions, core.limits.lower, core.limits.upper)
        if kind == 'nan':
            positions[rng.integers(horizon), rng.integers(dof)] = rng.choice([np.nan, np.inf, -np.inf])
        names = profile.joint_names if kind != 'names' else (*profile.joint_names[1:], 'other')
        if kind == 'names' and rng.random() < 0.3:
            names = profile.joint_names[::-1]
        sequence, epoch = core.sequence + 1, core.epoch
        if kind == 'reorder':
            sequence = max(0, core.sequence - int(rng.integers(0, 3)))
        elif kind == 'epoch':
            epoch = max(0, core.epoch + int(rng.choice([-1, 1])))
        if kind == 'past':
            t_ref = self.now - round((horizon * dt + rng.uniform(0, 1)) * NS)
        elif kind == 'future':
            t_ref = self.now + round(rng.uniform(0, 0.3) * NS)
        chunk = StampedChunk(
            t_ref=t_ref,
            epoch=epoch,
            sequence=sequence,
            source='/stress',
            joint_names=tuple(names),
            dt=dt,
            horizon=0 if kind == 'stop' else horizon + (kind == 'size'),
            positions=positions if kind != 'stop' else np.zeros((0, dof)),
            gripper=np.full(0 if kind == 'stop' else horizon, 0.04),
            shadow=kind == 'shadow',
            frozen=sequence % 3,
        )
        if kind in ('repeat', 'old') and self.old:
            chunk = self.old[-1 if kind == 'repeat' else int(rng.integers(len(self.old)))]
        began = time.thread_time()
        verdict = core.ingest(chunk, self.now)
        self.seen.ingests.append(time.thread_time() - began)
        self.old = [*self.old[-5:], chunk]
        self.seen.chunks += 1
        self.seen.verdicts[verdict] += 1
        self.seen.by_kind[kind, verdict] += 1

    def disturb(self) -> None:
        """Add or end a random disturbance: operator stop, watchdog, return to the start, or a held joint."""
        core, rng = self.core, self.rng
        what = rng.integers(200)
        if what == 0:
            core.operator_stop()
        elif what == 1:
            core.emergency_stop()
        elif what == 2:
            core.fault(Hold.CONTROLLER_MISSING, 'no subscriber')
        elif what == 3:
            core.deactivate()
        elif what == 4:
            core.go_to_start()
        elif what < 10 and self.sent and self.contact:
            joint = int(rng.integers(self.profile.dof))
            self.stuck = joint, self.sent[-1][joint] + rng.uniform(-0.3, 0.3) * rng.integers(2)
        if rng.random() < 0.3:
            self.stuck = None
            core.resume()
            core.reset_emergency_stop()
            core.clear(Hold.CONTROLLER_MISSING)
            if core.state is State.INACTIVE:
                self.core.activate(self.now)
        if core.at_rest and rng.random() < 0.3:
            self.intent = self._wander(self.sent[-1] if self.sent else core.planned_positions)

    def measure(self) -> Measured:
        """Return the measures of the run. Divided differences allow for periods that jitter."""
        seen, profile = self.seen, self.profile
        times, q = np.array(self.times), np.array(self.sent)
        seen.samples = len(q)
        if len(q) < 4:  # a stop from the start on: no third difference to measure
            return seen
        t = (times - times[0]) * 1e-9
        # The arm rested in gaps of the set-points: no difference across them.
        gap = np.diff(t) > 3 * self.period
        v = np.diff(q, axis=0) / np.diff(t)[:, None]
        down, up = velocity_limits(profile, (q[1:] + q[:-1]) / 2)
        bound = np.where(v > 0, up, down) + 1e-7
        seen.velocity = max(float((np.abs(v[~gap]) / profile.velocity).max()), float((np.abs(v) / bound)[~gap].max()))
        a = 2 * np.diff(v, axis=0) / (t[2:] - t[:-2])[:, None]
        seen.acceleration = float((np.abs(a) / profile.acceleration)[~(gap[1:] | gap[:-1])].max())
        j = 3 * np.diff(a, axis=0) / (t[3:] - t[:-3])[:, None]
        seen.jerk = float((np.abs(j) / profile.jerk)[~(gap[2:] | gap[1:-1] | gap[:-2])].max())
        seen.position = float(np.maximum(profile.position_lower - q, q - profile.position_upper).max())
        if self.monitor is not None:
            tool = np.linalg.norm(np.diff(self.monitor.tool_positions(q), axis=0), axis=1) / np.diff(t)
            limit = min(self.core.config.tool_speed_limit, profile.tool_speed)
            seen.tool_speed = float(tool[~gap].max()) / limit
            sparse = q[:: max(1, int(0.02 / self.period))]
            seen.distance = min(float(self.monitor.distances(x).min()) for x in sparse)
        seen.deviation = self._deviation(q, np.array(self.planned_positions))
        return seen

    def _deviation(self, sent: np.ndarray, planned: np.ndarray) -> float:
        """Return the largest distance of a set-point from the polyline planned shortly before [rad]."""
        back = int(0.04 / self.period) + 3
        least = np.full(len(sent), np.inf)
        for i in range(min(back, len(planned) - 1)):  # a stream may end after few set-points
            a, b, p = planned[: len(planned) - 1 - i], planned[1 : len(planned) - i], sent[1 + i :]
            way = b - a
            u = np.clip(((p - a) * way).sum(axis=1) / np.maximum((way * way).sum(axis=1), 1e-18), 0.0, 1.0)
            least[1 + i :] = np.minimum(least[1 + i :], np.linalg.norm(a + u[:, None] * way - p, axis=1))
        return float(least[1:].max())


def stress(
    profile: RobotProfile,
    chunks: int,
    seed: int,
    period: float = 0.001,
    monitor: 'CollisionMonitor | None' = None,
    contact: bool = True,
    **config,
) -> Measured:
    """Run `chunks` chunks and return the measures. config: fields of ExecutorConfig.

    contact: hold joints at times; the arm is released within its hard velocity and acceleration limits.
    """
    stream = Stream(profile, seed, ExecutorConfig(period=period, release_within_acceleration=True, **config), monitor)
    stream.contact = contact and monitor is None  # the collision monitor does not check a release
    for _ in range(chunks):
        stream.disturb()
        stream.run(stream.rng.choice([0.002, 0.02, 0.1, 0.3]) * stream.rng.uniform(0.2, 1.5))
        stream.chunk()
    stream.run(2.0)
    return stream.measure()
