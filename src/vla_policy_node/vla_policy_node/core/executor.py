"""Turns chunks into a steady stream of set-points, and brings the arm to rest when chunks stop coming.

The set-point always moves along one path: the newest chunk's, plus what is left of the old motion (see path.py).
Only the speed along the path is changed: `rate` is how fast path time runs against the clock, 1 normally, less where
a joint would exceed its velocity or acceleration limit (see retime.py), and falling to 0 while braking.
"""

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from vla_policy_node.core.chunk import Refusal, StampedChunk, Verdict, checked_positions
from vla_policy_node.core.path import ChunkPath, JoinedPath, Seam
from vla_policy_node.core.profile import RobotProfile
from vla_policy_node.core.retime import Timing, retime


class State(IntEnum):
    """As in vla_msgs/ExecutorStatus."""

    INACTIVE = 0
    HOLDING = 1
    EXECUTING = 2
    BRAKING = 3


class Hold(IntEnum):
    """Why the arm is not moving or about to stop; as in vla_msgs/ExecutorStatus."""

    NONE = 0
    IDLE = 1
    CHUNKS_STOPPED = 2
    STOP_REQUESTED = 3
    OPERATOR_STOP = 4
    DEACTIVATED = 5
    JOINT_STATE_MISSING = 6
    JOINT_STATE_STALE = 7
    CLOCK_JUMP = 8
    TRACKING_ERROR = 9


_GRID = 600  # points of a timing at most

# A weaker reason to stop never replaces a stronger one: what the weaker allows, the stronger forbids.
_STRENGTH = {Hold.DEACTIVATED: 3, Hold.OPERATOR_STOP: 2, Hold.JOINT_STATE_STALE: 1}


@dataclass(frozen=True)
class ExecutorConfig:
    """How the executor moves. Fractions are of the robot profile's limits."""

    period: float = 0.01  # [s] nominal time between control steps
    interpolation: str = 'cubic'
    velocity_fraction: float = 0.8  # the set-point never moves faster than this
    acceleration_fraction: float = 0.6  # nor accelerates more than this on a path; a stop on request adds a brake
    brake_fraction: float = 0.4  # of the acceleration limit: peak of what braking adds
    seam_time: float = 0.15  # [s] shortest time over which a switch of chunks is smoothed
    seam_velocity_fraction: float = 0.25  # of the velocity limit: what smoothing a switch may add
    seam_acceleration_fraction: float = 0.3  # same for acceleration
    max_lag: float = 0.5  # [s] how far the set-point may trail the chunk's schedule before it brakes
    joint_state_max_age: float = 0.2  # [s]
    tracking_limit: float = 0.25  # [rad] further from its set-point than this, a joint is blocked or was moved
    future_tolerance: float = 0.1  # [s] t_ref may lie this far ahead of now
    jump: float = 0.5  # [s] a control step longer than this, or backwards, is a clock jump


@dataclass(frozen=True)
class SetPoint:
    """What the controller is to be sent now. Arrays are (dof,) in the profile's joint order."""

    positions: np.ndarray  # [rad]
    velocities: np.ndarray  # [rad/s]
    gripper: float | None  # opening [m]; None: never commanded


class ChunkExecutor:
    """One timeline. Not thread-safe: the owner calls it from one thread. Times are int ns of one clock."""

    def __init__(self, profile: RobotProfile, config: ExecutorConfig | None = None) -> None:
        self.profile = profile
        self.config = config or ExecutorConfig()
        self.state = State.INACTIVE
        self.hold = Hold.DEACTIVATED
        self.message = ''
        self.epoch = 0
        self.source = ''
        self.sequence = 0
        self.verdict = Verdict.ACCEPTED
        self.verdict_counts = [0] * len(Verdict)
        self.seam_position = 0.0  # [rad] largest joint jump that the newest chunk would have made
        self.seam_velocity = 0.0  # [rad/s]
        self.rate = 0.0  # path time per clock time
        self._velocity = self.config.velocity_fraction * profile.velocity
        self._acceleration = self.config.acceleration_fraction * profile.acceleration
        self._deceleration = self.config.brake_fraction * profile.acceleration
        self._positions: np.ndarray | None = None  # the set-point, None until there is a joint state to hold
        self._velocities = np.zeros(profile.dof)
        self._accelerations = np.zeros(profile.dof)
        self._gripper: float | None = None
        self._path: JoinedPath | None = None
        self._path_gripper = np.zeros(0)
        self._timing: Timing | None = None
        self._since_join = 0.0  # [s] of clock time on the present timing
        self._stalled = 0.0  # [s] by which late control steps have put the timing behind
        self._t_ref = 0
        self._s = 0.0  # [s] path time since t_ref
        self._now: int | None = None
        self._brake_rate = 0.0  # rate when braking began
        self._brake_time = 0.0  # [s] how long the brake takes
        self._brake_elapsed: float | None = None  # [s] None: the timing itself slows down
        self._measured: np.ndarray | None = None
        self._measured_at = 0

    # ---- inputs

    def observe(self, positions: np.ndarray, stamp: int) -> None:
        """The newest measured joint positions (dof,) [rad]. Non-finite values are ignored: the state goes stale."""
        if np.isfinite(positions).all():
            self._measured, self._measured_at = np.array(positions, float), stamp

    @property
    def has_joint_state(self) -> bool:
        return self._measured is not None

    def activate(self, now: int) -> None:
        """Hold where the arm is, and take chunks of a new epoch. Raises ValueError without a fresh joint state."""
        if self.state is State.BRAKING:
            raise ValueError('the arm is still braking; activate again in a moment')
        age = self.joint_state_age(now)
        if self._measured is None:
            raise ValueError('no joint state received yet: is the robot running, do topic and joint names match?')
        if age > self.config.joint_state_max_age:
            raise ValueError(
                f'the newest joint state is {age:.2f} s old, limit {self.config.joint_state_max_age} s: '
                'is the robot still publishing, do the clocks agree (use_sim_time)?'
            )
        self._positions = self._measured.copy()
        self._gripper = None
        self._rest()
        self._now = now
        self._new_epoch()
        self.state, self.hold, self.message = State.HOLDING, Hold.IDLE, ''

    def deactivate(self) -> None:
        """Brake, then send nothing more. `step` must go on being called until `at_rest`."""
        if self.state is not State.INACTIVE and self.hold is not Hold.DEACTIVATED:
            self._brake(Hold.DEACTIVATED, '')

    def operator_stop(self) -> None:
        """Brake and hold until `resume`."""
        if self.state is not State.INACTIVE and self.hold is not Hold.DEACTIVATED:
            self._brake(Hold.OPERATOR_STOP, 'stopped by the operator: call ~/resume to go on')

    def resume(self) -> bool:
        """Take chunks again after an operator stop. False when there was none, or while the arm still brakes."""
        if self.hold is not Hold.OPERATOR_STOP or self.state is not State.HOLDING:
            return False
        self._new_epoch()
        self.hold, self.message = Hold.IDLE, ''
        return True

    def ingest(self, chunk: StampedChunk, now: int) -> Verdict:
        """Take the chunk, or refuse it with a reason; `message` then says what to do."""
        try:
            self._take(chunk, now)
            self.verdict = Verdict.ACCEPTED
        except Refusal as refusal:
            self.verdict = refusal.verdict
            if refusal.verdict is not Verdict.SHADOW:  # shadow chunks are business as usual
                self.message = refusal.message
        self.verdict_counts[self.verdict] += 1
        return self.verdict

    # ---- output

    def step(self, now: int) -> SetPoint | None:
        """The set-point for now; None while there is nothing to send (inactive)."""
        if self.state is State.INACTIVE or self._positions is None or self._now is None:
            return None
        elapsed = (now - self._now) * 1e-9
        self._now = now
        if elapsed < 0 or elapsed > self.config.jump:
            self._brake(Hold.CLOCK_JUMP, f'the clock jumped by {elapsed:.3f} s: chunks of a new epoch are awaited')
            elapsed = self.config.period
        self._watch_joint_state(now)
        self._watch_tracking()
        if self.state in (State.EXECUTING, State.BRAKING):
            # A late step must not become a jump: the motion advances by at most two periods, the rest is lag.
            dt = min(elapsed, 2 * self.config.period)
            self._stalled += elapsed - dt
            self._advance(dt, now)
        return SetPoint(self._positions.copy(), self._velocities.copy(), self._gripper)

    # ---- what the status tells

    @property
    def at_rest(self) -> bool:
        return self.state in (State.INACTIVE, State.HOLDING)

    @property
    def accepting(self) -> bool:
        """Whether a good chunk would be taken now."""
        return self.state is not State.INACTIVE and self.hold not in (
            Hold.OPERATOR_STOP,
            Hold.DEACTIVATED,
            Hold.JOINT_STATE_MISSING,
            Hold.JOINT_STATE_STALE,
        )

    def horizon_left(self) -> float:
        """Path time until the chunk runs out [s]; 0 when there is none."""
        if self._path is None or self.state is not State.EXECUTING:
            return 0.0
        return max(0.0, self._path.path.end - self._s)

    def chunk_age(self, now: int) -> float:
        """now - t_ref of the chunk that is executed [s]; 0 when holding."""
        return (now - self._t_ref) * 1e-9 if self.state is State.EXECUTING else 0.0

    def joint_state_age(self, now: int) -> float:
        """[s]; infinite when none was received."""
        return (now - self._measured_at) * 1e-9 if self._measured is not None else math.inf

    def tracking_error(self) -> float:
        """Largest |set-point - measured| over the joints [rad]; 0 while either is unknown."""
        if self._measured is None or self._positions is None:
            return 0.0
        return float(np.abs(self._positions - self._measured).max())

    # ---- inside

    def _take(self, chunk: StampedChunk, now: int) -> None:
        if chunk.shadow:
            raise Refusal(Verdict.SHADOW, '')
        if chunk.horizon == 0:
            if chunk.source != self.source:
                raise Refusal(Verdict.OTHER_SOURCE, f'{chunk.source} asks to stop, but does not drive')
            if self.state in (State.EXECUTING, State.BRAKING) and self.accepting:
                self._brake(Hold.STOP_REQUESTED, '')
            return
        if not self.accepting:
            why = self.message or 'the executor is not active: activate it'
            raise Refusal(Verdict.NOT_ACCEPTING, why)
        if chunk.epoch != self.epoch:
            raise Refusal(
                Verdict.OLD_EPOCH,
                f'chunk of epoch {chunk.epoch}, now is {self.epoch}: sources must copy it from executor status',
            )
        if self.source and chunk.source != self.source:
            raise Refusal(
                Verdict.OTHER_SOURCE, f'{chunk.source} wants to drive, but {self.source} does: stop one of them'
            )
        if self.source and chunk.sequence <= self.sequence:
            verdict = Verdict.DUPLICATE if chunk.sequence == self.sequence else Verdict.OUT_OF_ORDER
            raise Refusal(verdict, f'chunk {chunk.sequence} after {self.sequence}: sequences must grow')
        positions = checked_positions(chunk, self.profile)
        s = (now - chunk.t_ref) * 1e-9
        if s >= chunk.horizon * chunk.dt:
            raise Refusal(
                Verdict.WHOLLY_PAST,
                f'chunk for {s:.3f} s ago reaches only {chunk.horizon * chunk.dt:.3f} s: inference takes longer than '
                'the chunk lasts, or clocks disagree',
            )
        if s < -self.config.future_tolerance:
            raise Refusal(Verdict.FROM_FUTURE, f'chunk is stamped {-s:.3f} s ahead of now: clocks disagree')
        self.seam_position, self.seam_velocity = self._join(
            ChunkPath(positions, chunk.dt, self.config.interpolation), s
        )
        self.source, self.sequence, self.message = chunk.source, chunk.sequence, ''
        self._path_gripper = np.asarray(chunk.gripper, float)
        self._t_ref = chunk.t_ref
        self.state, self.hold = State.EXECUTING, Hold.NONE

    def _join(self, path: ChunkPath, s: float) -> tuple[float, float]:
        """Go on along this path from path time s, without a jump. Returns the jump that is avoided.

        A motion that cannot follow at full speed joins at a lower rate. Raises Refusal if none fits the limits.
        """
        assert self._positions is not None
        q, v, a = (x[0] for x in path.sample(np.array([s])))
        offset, share = self._positions - q, self.config.seam_acceleration_fraction
        moving = bool((np.abs(self._velocities) > 1e-4).any())
        for rate in (1.0, 0.7, 0.5, 0.35, 0.25, 0.15) if moving else (0.0,):
            if moving:
                first, second = self._velocities / rate - v, self._accelerations / rate**2 - a
            else:
                first, second = np.zeros_like(v), np.zeros_like(a)
            seam = Seam(
                s,
                (offset, first, second),
                self.config.seam_velocity_fraction * self.profile.velocity,
                share * self.profile.acceleration,
                self.config.seam_time,
            )
            joined = JoinedPath(path, seam)
            grid = self._grid(joined, s)
            _, along, bend = joined.sample(grid)
            corners = path.corner_rates(grid, self._acceleration * self.config.period)
            timing = retime(grid, along, bend, rate, self._velocity, self._acceleration, corners)
            if timing is not None:
                self._path, self._timing, self._s, self.rate = joined, timing, s, rate
                self._since_join = self._stalled = 0.0
                self._brake_elapsed = None
                return float(np.abs(offset).max()), float(np.abs(self._velocities - v).max())
        raise Refusal(
            Verdict.OUT_OF_LIMITS,
            'the arm cannot go over to the chunk within its acceleration limits: it moves too sharply, or is too far',
        )

    def _grid(self, joined: JoinedPath, s: float) -> np.ndarray:
        """Points for the timing: about 4 ms apart at the speed that the path asks for, or that the limits allow."""
        end = joined.path.end
        _, along, _ = joined.sample(np.linspace(s, end, 50))
        slowest = max(1.0, float((np.abs(along) / self._velocity).max(axis=1).mean()))
        return np.linspace(s, end, min(max(3, math.ceil((end - s) * slowest / 0.004) + 1), _GRID))

    def _advance(self, dt: float, now: int) -> None:
        """Move the set-point by dt seconds of clock time."""
        assert self._path is not None and self._timing is not None and self._positions is not None
        if self._brake_elapsed is None:
            self._watch_schedule(now, dt)
        if self._brake_elapsed is not None:
            self._brake_elapsed += dt
            u = self._brake_elapsed / self._brake_time if self._brake_time > 0 else 1.0
            if u >= 1.0:
                self._come_to_rest()
                return
            slowing = self._brake_rate * (1 - u * u * (3 - 2 * u))  # smooth from _brake_rate to 0
            ahead = float(np.interp(self._s, self._timing.s, self._timing.rates))  # what the path allows here
            rate, push = min(slowing, ahead), 0.0
            self._s = min(self._s + rate * dt, float(self._timing.s[-1]))
        else:
            self._since_join += dt
            before = self.rate
            self._s, rate = self._timing.at(self._since_join)
            push = (rate - before) / dt if dt > 0 else 0.0
        self.rate = rate
        q, v, a = (x[0] for x in self._path.sample(np.array([self._s])))
        held = self._inside_limits(q)
        free = held == q
        self._velocities = np.where(free, rate * v, 0.0)
        self._accelerations = np.where(free, rate * rate * a + push * v, 0.0)
        self._positions = held
        index = self._path.path.step_at(self._s)
        if index >= 0 and self._path_gripper.size:
            opening = float(self._path_gripper[index])
            self._gripper = min(max(opening, 0.0), self.profile.gripper_max_opening)
        if self._brake_elapsed is None and self._since_join >= self._timing.times[-1]:
            self._come_to_rest()

    def _watch_schedule(self, now: int, dt: float) -> None:
        """Stalls, lag and the end of the chunk, before the step of dt seconds to now."""
        assert self._path is not None and self._timing is not None
        due = (now - self._t_ref) * 1e-9 - dt
        if self._stalled > 2.5 * self.config.period and due < self._path.path.end:
            self._stalled = 0.0
            try:
                self._join(self._path.path, due)  # after a stall: go over to where the path is now
            except Refusal:
                pass  # cannot catch up within the limits: stay late
        if due - self._s > self.config.max_lag and self.state is State.EXECUTING:
            self._brake(
                Hold.CHUNKS_STOPPED,
                f'the chunk asks for more speed than the limits allow: the arm is {due - self._s:.2f} s behind it',
            )
        elif self._since_join >= self._timing.braking_from and self.state is State.EXECUTING:
            self.state, self.hold = State.BRAKING, Hold.CHUNKS_STOPPED
            self.message = 'the last chunk ran out: is the source alive, is inference faster than the chunk is long?'

    def _inside_limits(self, q: np.ndarray) -> np.ndarray:
        """q within the hard position limits; an arm that already is outside is never pulled back in a jump."""
        assert self._positions is not None
        lower = np.minimum(self.profile.position_lower, self._positions)
        upper = np.maximum(self.profile.position_upper, self._positions)
        return np.clip(q, lower, upper)

    def _watch_joint_state(self, now: int) -> None:
        age = self.joint_state_age(now)
        if age > self.config.joint_state_max_age:
            if self.hold is not Hold.JOINT_STATE_STALE:
                self._brake(
                    Hold.JOINT_STATE_STALE,
                    f'no usable joint state for {age:.2f} s: is the robot publishing, are the values finite?',
                )
        elif self.hold is Hold.JOINT_STATE_STALE and self.state is State.HOLDING:
            self._new_epoch()
            self.hold, self.message = Hold.IDLE, ''

    def _watch_tracking(self) -> None:
        """An arm that is not where it was sent is let go where it is, at once: braking would push on."""
        error = self.tracking_error()
        if error <= self.config.tracking_limit or self.hold is Hold.JOINT_STATE_STALE:
            return
        assert self._positions is not None and self._measured is not None
        joint = self.profile.joint_names[int(np.abs(self._positions - self._measured).argmax())]
        self._positions = self._measured.copy()
        self._brake(
            Hold.TRACKING_ERROR,
            f'{joint} was {error:.2f} rad from its set-point: is it blocked, or was the arm moved by hand?',
        )
        self._come_to_rest()

    def _brake(self, hold: Hold, message: str) -> None:
        """Slow down along the path to rest; the arm may be at rest already. A stronger reason to stop stays."""
        if _STRENGTH.get(self.hold, 0) > _STRENGTH.get(hold, 0):
            return
        if hold is not Hold.CHUNKS_STOPPED:  # a late chunk may still save the motion, nothing else may
            self._new_epoch()
        self.hold, self.message = hold, message
        if self.state is State.EXECUTING or (self.state is State.BRAKING and self._brake_elapsed is None):
            self.state = State.BRAKING
            self._brake_rate = self.rate
            self._brake_elapsed = 0.0
            self._brake_time = 1.5 * float((np.abs(self._velocities) / self._deceleration).max())
        elif self.state is State.HOLDING:
            self._come_to_rest()

    def _come_to_rest(self) -> None:
        self._rest()
        if self.hold is Hold.DEACTIVATED:
            self.state = State.INACTIVE
            return
        self.state = State.HOLDING
        if self.hold is Hold.CHUNKS_STOPPED:
            self._new_epoch()

    def _rest(self) -> None:
        self._velocities = np.zeros(self.profile.dof)
        self._accelerations = np.zeros(self.profile.dof)
        self._path, self._timing, self._brake_elapsed, self.rate = None, None, None, 0.0

    def _new_epoch(self) -> None:
        self.epoch += 1
        self.source, self.sequence = '', 0
