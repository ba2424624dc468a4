"""Turns chunks into a steady stream of set-points, and brings the arm to rest when no more chunks arrive.

The set-point always moves along one path: that of the newest chunk, plus the seam to the motion before (see path.py).
Only the speed along the path changes. It is lower than in the chunk where a limit requires it (see join.py), and falls
to 0 while braking (see brake.py). Set-points are the moving average of this motion (see smooth.py). Where the motion
is sent ahead, the controller executes that, and the executor continues from there (see course.py).
"""

from dataclasses import dataclass

import numpy as np

from vla_core.clocks import SET_TOLERANCE, ahead
from vla_core.motion.chunk import Refusal, StampedChunk, Verdict, checked_positions
from vla_core.motion.config import ExecutorConfig
from vla_core.motion.course import Late
from vla_core.motion.executor_state import FROZEN
from vla_core.motion.executor_stop import StoppingExecutor
from vla_core.motion.path import ChunkPath, straight_path
from vla_core.motion.smooth import GRID
from vla_core.motion.states import Hold, State

__all__ = ['ChunkExecutor', 'ExecutorConfig', 'Hold', 'SetPoint', 'State']

_STOPPED = 0.05  # [s] after the last set-point, an arm whose controller holds it stands still
SELF = 'executor'  # the source during a motion to the start pose


@dataclass(frozen=True)
class SetPoint:
    """A set-point for the controller. Arrays are (dof,) in the profile's joint order."""

    positions: np.ndarray  # [rad]
    velocities: np.ndarray  # [rad/s]
    gripper: float | None  # opening [m]; None: never commanded


class ChunkExecutor(StoppingExecutor):
    """Executes chunks on one timeline. Not thread-safe: the owner calls it from one thread. Times are int [ns]."""

    # ---- inputs

    def observe(self, positions: np.ndarray, stamp: int, now: int | None = None) -> None:
        """Take measured joint positions (dof,) [rad] with their stamp and arrival `now`; None: it arrived at its stamp.

        A joint state that is not trusted is not used, see Measured: the state becomes stale, and the message has the
        reason.
        """
        now = stamp if now is None else now
        restarted = self._measured.age(now) > self.config.joint_state_max_age
        positions = np.array(positions, float)
        if self._measured.observe(positions, stamp, now):
            since_step = (now - self._now) * 1e-9 if self._now is not None else 0.0
            age = max((now - stamp) * 1e-9, 0.0) - min(max(since_step, 0.0), self.config.jump)
            self._tracking.measured(positions, restarted, age)

    def activate(self, now: int) -> None:
        """Hold the measured position, and accept chunks of a new epoch. Faults stay in force.

        Raises ValueError while the arm brakes, without a trusted joint state, and during an emergency stop.
        """
        if self.state is State.BRAKING:
            raise ValueError('the arm is still braking; activate again in a moment')
        if Hold.EMERGENCY_STOP in self._faults:
            raise ValueError('the emergency stop stands: reset it first')
        if problem := self._measured.problem or self._measured.stale(now) or self.frozen:
            raise ValueError(problem)
        assert self._measured.positions is not None
        for hold in (Hold.OPERATOR_STOP, Hold.BLOCKED, Hold.JOINT_STATE_STALE, Hold.JOINT_STATE_FROZEN):
            self._faults.pop(hold, None)
        self._gripper = None
        self.course.forget_sent()
        self._stand_at(self._measured.positions)
        self._tracking.begin(self._measured.positions)
        self._now, self._leaving = now, False
        self.state = State.HOLDING
        self._show_strongest()

    def deactivate(self) -> None:
        """Brake, then send no more set-points. `step` must still be called until `at_rest`."""
        if self.state is not State.INACTIVE and not self._leaving:
            self._leaving = True
            self._brake(Hold.DEACTIVATED, '')

    def operator_stop(self) -> None:
        """Brake and hold until `resume`."""
        if self.state is not State.INACTIVE and not self._leaving:
            self.fault(Hold.OPERATOR_STOP, 'stopped by the operator: call ~/resume to continue')

    def resume(self) -> bool:
        """Accept chunks again after an operator stop, a blocked motion, or frozen joint states.

        Returns False after none of these, while the arm still brakes, and while joint states are still frozen.
        """
        if self.state is not State.HOLDING or self.frozen:
            return False
        stood = [self._take_back(h) for h in (Hold.BLOCKED, Hold.JOINT_STATE_FROZEN, Hold.OPERATOR_STOP)]
        return any(stood)

    def forget_tracking(self) -> None:
        """Forget recent set-points: no controller executed them, so joint states may have stood still."""
        self._tracking.forget()

    def ingest(self, chunk: StampedChunk, now: int) -> Verdict:
        """Accept or refuse a chunk at `now` [ns], and return the verdict; `message` then has the remedy."""
        try:
            self._take(chunk, now)
            self.verdict = Verdict.ACCEPTED
        except Refusal as refusal:
            self.verdict = refusal.verdict
            if refusal.verdict is not Verdict.SHADOW:  # shadow chunks are not an error
                self.message = refusal.message
        self.verdict_counts[self.verdict] += 1
        return self.verdict

    def go_to_start(self) -> str:
        """Start a slow motion to the profile's home on the straight joint line; return '', or why it is refused.

        The whole path is checked for collisions first. No chunk is accepted until the arm is there, which begins a new
        epoch. The motion stops for the same reasons as chunks do.
        """
        if self.state is not State.HOLDING:
            inactive = self.state is State.INACTIVE
            return (
                'not active: activate the executor'
                if inactive
                else 'the arm is moving: stop the source of its chunks first'
            )
        if self._faults:
            return f'{self.hold.name}: {self.message}'
        assert self._now is not None
        profile, share = self.profile, self.config.start_fraction
        limits = share * profile.velocity, share * profile.acceleration
        path = straight_path(self.planned_positions, profile.home, *limits, self.config.seam_time)
        try:
            self._start_to_home(path)
        except Refusal as refusal:
            return refusal.message
        self._new_epoch()
        self.source, self.message = SELF, 'the arm moves to its start: it accepts chunks from there on'
        self._path_gripper, self._seen = np.zeros(0), None
        self.state, self.hold = State.EXECUTING, Hold.NONE
        return ''

    # ---- output

    def step(self, now: int, elapsed: float | None = None) -> SetPoint | None:
        """Advance to `now` [ns] and return the set-point to send; None while inactive.

        elapsed: [s] since the last step by a monotonic clock; None: `now` is the only clock, as in simulation.
        """
        passed = (now - self._now) * 1e-9 if self._now is not None else 0.0
        self._now = now
        set_by = passed - elapsed if elapsed is not None else 0.0  # [s] by which the clock was set since the last step
        took = passed if elapsed is None else elapsed
        if self.muted:
            self.course.forget_sent()
        jumped = abs(set_by) > SET_TOLERANCE or not 0 <= took <= self.config.jump
        if jumped:
            self._measured.clock_jumped(now)
        control = self.config.period if jumped else took
        self._measured.elapse(control)
        self._tracking.elapse(control)
        if self.state is State.INACTIVE or self._positions is None:
            return None
        late, sent_ahead = took > 2 * self.config.period, self.course.was_sent
        if sent_ahead:
            self._advance_as_sent(max(took, 0.0))
        elif elapsed is not None and elapsed > _STOPPED and self.config.release_within_acceleration:
            # A controller that holds the last set-point has stopped the arm there. Continuing at once would be a jerk.
            self.course.stand_at(self._positions)
            if not jumped:
                self._plan_again(took)
            took = 0.0
        if jumped:
            stalled = elapsed is not None and abs(set_by) <= SET_TOLERANCE
            what = _came_late(passed) if stalled else f'the clock jumped by {set_by or passed:.3f} s'
            self._brake(Hold.CLOCK_JUMP, f'{what}: chunks of a new epoch are awaited')
            took = self.config.period
        # During a late control step joint states queue up: only the next step judges them, once.
        self._late = late and not jumped and not self._late
        if not self._late:
            self._watch_joint_state(now)
        self._watch_tracking()
        velocities = np.zeros(self.profile.dof)
        if self.state in (State.EXECUTING, State.BRAKING):
            if not sent_ahead:
                # A late step must not become a jump: the motion advances by at most two periods. The rest is lag.
                dt = min(took, 2 * self.config.period)
                self._stalled += took - dt
                self._buffer.advance(dt)
            self._watch_motion()
            if not self.at_rest:
                positions, along = (x[0] for x in self._buffer.sample(np.zeros(1)))
                self._positions = positions
                if not self._releasing or self.config.release_within_acceleration:
                    velocities = along  # else the damping of an impedance controller would push the arm
        if self.state is State.INACTIVE:
            return None
        self._tracking.sent(self._positions, velocities)
        return SetPoint(self._positions.copy(), velocities, self._gripper)

    # ---- inside

    def _take(self, chunk: StampedChunk, now: int) -> None:
        if chunk.shadow:
            raise Refusal(Verdict.SHADOW, '')
        if chunk.horizon == 0:
            if chunk.source != self.source:
                raise Refusal(Verdict.OTHER_SOURCE, f'{chunk.source} asks to stop, but does not drive the arm')
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
                Verdict.OTHER_SOURCE, f'{chunk.source} sends chunks, but {self.source} drives the arm: stop one of them'
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
            raise Refusal(Verdict.FROM_FUTURE, ahead('the chunk', -s))
        t_ref, positions, gripper = self._blending.blend(chunk, positions, now, self._gripper, self.limits.acceleration)
        path = ChunkPath(positions, chunk.dt, self.config.interpolation, self.limits.lower, self.limits.upper)
        self._join(path, t_ref)
        self._blending.commit()
        self.source, self.sequence, self.message = chunk.source, chunk.sequence, ''
        self._path_gripper, self._t_ref, self._seen = gripper, t_ref, chunk.t_ref
        self.state, self.hold = State.EXECUTING, Hold.NONE

    def _path_time(self, t_ref: int) -> float:
        """Return the path time [s] since t_ref at which a motion from the buffer's head is on schedule.

        The head is at the time of the last control step, minus `since_head`, and is sent `lag` later.
        """
        assert self._now is not None
        return (self._now - t_ref) * 1e-9 - self._buffer.since_head + self._buffer.lag

    def _join(self, path: ChunkPath, t_ref: int, whole: bool = False) -> None:
        """Continue along this path, without a jump.

        Raises Refusal where course.join does, for a chunk that is over, and for one that starts far from a resting arm.
        """
        s = self._path_time(t_ref)
        if s > path.end - GRID:
            raise Refusal(Verdict.WHOLLY_PAST, f'the chunk ends {path.end - s:.3f} s from now: no part of it is left')
        here = self.course.here
        q, v, _ = path.sample(np.array([s]))
        jump = float(np.abs(here.q - q).max())
        if self.state is State.HOLDING and jump > self.config.start_distance_limit:
            joint = self.profile.joint_names[int(np.abs(here.q - q).argmax())]
            raise Refusal(
                Verdict.OUT_OF_LIMITS,
                f'the chunk starts {jump:.2f} rad from the resting arm in {joint}, start_distance_limit is '
                f'{self.config.start_distance_limit} rad: was it made for another start, or is a joint state wrong?',
            )
        self.course.join(path, s, whole)
        self.seam_position, self.seam_velocity = jump, float(np.abs(here.v - v).max())
        self._path, self._stalled = path, 0.0

    def _start_to_home(self, path: ChunkPath) -> None:
        """Start the motion to the start pose. Raises Refusal, see _join."""
        assert self._now is not None
        self._join(path, self._now + round((self._buffer.lag - path.dt) * 1e9), whole=True)

    def _advance_as_sent(self, took: float) -> None:
        """Advance by `took` [s] of the motion that was sent ahead, which the controller executed in any case."""
        late = self.course.advance_as_sent(took)
        if late is Late.BRAKES and self.state is State.EXECUTING:
            self.state = State.BRAKING
            self._stop(Hold.CHUNKS_STOPPED, f'{_came_late(took)}: the controller braked by itself meanwhile')
        elif late is Late.OLD_PLAN:
            self._plan_again(took)
        if took > 2 * self.config.period:
            self._tracking.sent(*(x[0] for x in self._buffer.sample(np.zeros(1))))

    def _plan_again(self, took: float) -> None:
        """Plan the present request again from where the controller is after `took` [s] of an older motion."""
        if self._releasing:
            self._let_go()
        elif self.state is State.EXECUTING:
            assert self._path is not None
            try:
                if self._goes_to_start:
                    self._start_to_home(self._path)
                else:
                    self._join(self._path, self._t_ref)
            except Refusal as refusal:
                self._brake(Hold.CHUNKS_STOPPED, f'{_came_late(took)}: {refusal.message}')
        elif not self._buffer.finished:
            self.state = State.BRAKING
            self.course.brake()
        elif self.state is State.HOLDING:
            self._stand_at(self._buffer.motion.q[-1])

    def _watch_motion(self) -> None:
        """Check the motion that was advanced to self._now."""
        if not self.course.braked:
            if not self._goes_to_start:  # that motion has no schedule
                self._watch_schedule()
            if blocked := self.course.blocked():
                self._brake(*blocked)
        buffer, head = self._buffer, self._buffer.head
        if self._path is not None:
            s = buffer.motion.s
            self.rate = float(np.clip((s[head] - s[head - 1]) / GRID, 0.0, 1.0))
            index = self._path.step_at(float(s[head]))
            if index >= 0 and self._path_gripper.size:
                opening = float(self._path_gripper[index])
                self._gripper = min(max(opening, 0.0), self.profile.gripper_max_opening)
        if buffer.finished:
            self._come_to_rest()

    def _watch_schedule(self) -> None:
        """React to stalled control steps, to lag, and to the end of the chunk."""
        assert self._path is not None
        due = self._path_time(self._t_ref)
        if self._stalled > 2.5 * self.config.period and due < self._path.end:
            self._stalled = 0.0
            try:
                self._join(self._path, self._t_ref)  # after a stall: join the path where it is due now
            except Refusal:
                pass  # it cannot catch up within the limits, and stays late
        lag = due - float(self._buffer.motion.s[self._buffer.head])
        if self.state is not State.EXECUTING:
            return
        if self.course.slows:
            self.state, self.hold = State.BRAKING, Hold.CHUNKS_STOPPED
            self.message = 'the last chunk ran out: is the source alive, is inference faster than the chunk is long?'
        elif lag > self.config.max_lag:
            self._brake(
                Hold.CHUNKS_STOPPED,
                f'the chunk asks for more speed than the limits allow: the arm is {lag:.2f} s behind it',
            )

    def _watch_joint_state(self, now: int) -> None:
        if problem := self._measured.stale(now):
            self.fault(Hold.JOINT_STATE_STALE, problem)
        elif self.state is State.HOLDING:
            self._take_back(Hold.JOINT_STATE_STALE)

    def _watch_tracking(self) -> None:
        """Release the set-point to an arm that deviates from it: a brake would push on.

        A deviation during a motion is a fault, because the next chunk would push again. Frozen joint states do not
        contain the position of the arm: it brakes.
        """
        if self._releasing or Hold.JOINT_STATE_STALE in self._faults:
            return
        found = self._tracking.check()
        if self._tracking.frozen:
            self.fault(Hold.JOINT_STATE_FROZEN, FROZEN)
        if found is None or Hold.JOINT_STATE_FROZEN in self._faults:
            return
        joint, away = found
        where = f'{self.profile.joint_names[joint]} was {away:.2f} rad from where it was sent'
        hold, message = Hold.TRACKING_ERROR, f'{where} while the arm was at rest: was it pushed, or moved by hand?'
        if self.state is not State.HOLDING:
            hold, message = Hold.BLOCKED, f'{where}: an obstacle is in the way; free the arm, then call ~/resume'
            self._faults[hold] = message
        self._stop(hold, message)
        self._let_go()


def _came_late(seconds: float) -> str:
    return f'a control step came {seconds:.3f} s late'
