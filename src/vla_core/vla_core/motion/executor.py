"""Turns chunks into a steady stream of set-points, and brings the arm to rest when chunks stop coming.

The set-point always moves along one path: the newest chunk's, plus what is left of the old motion (see path.py).
Only the speed along the path is changed: less than the chunk asks for where a limit says so (see join.py), and falling
to 0 while braking (see brake.py). What is sent is the moving average of this motion (see smooth.py). A controller that
is sent the motion ahead keeps to that, and so does the executor (see course.py).
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

_STOPPED = 0.05  # [s] without a set-point: an arm that holds the last one stands still
SELF = 'executor'  # the source, while the arm goes to its start


@dataclass(frozen=True)
class SetPoint:
    """What the controller is to be sent now. Arrays are (dof,) in the profile's joint order."""

    positions: np.ndarray  # [rad]
    velocities: np.ndarray  # [rad/s]
    gripper: float | None  # opening [m]; None: never commanded


class ChunkExecutor(StoppingExecutor):
    """One timeline. Not thread-safe: the owner calls it from one thread. Times are int ns of one clock."""

    # ---- inputs

    def observe(self, positions: np.ndarray, stamp: int, now: int | None = None) -> None:
        """The newest measured joint positions (dof,) [rad], stamped `stamp`, that came at `now`; None: at its stamp.

        What cannot be trusted is not used, see Measured: the state goes stale, with the reason in the message.
        """
        now = stamp if now is None else now
        restarted = self._measured.age(now) > self.config.joint_state_max_age
        positions = np.array(positions, float)
        if self._measured.observe(positions, stamp, now):
            since_step = (now - self._now) * 1e-9 if self._now is not None else 0.0
            age = max((now - stamp) * 1e-9, 0.0) - min(max(since_step, 0.0), self.config.jump)
            self._tracking.measured(positions, restarted, age)

    def activate(self, now: int) -> None:
        """Hold where the arm is, and take chunks of a new epoch. Raises ValueError without a joint state that can be
        trusted, and while the emergency stop stands. Faults that stand go on to stand."""
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
        """Brake, then send nothing more. `step` must go on being called until `at_rest`."""
        if self.state is not State.INACTIVE and not self._leaving:
            self._leaving = True
            self._brake(Hold.DEACTIVATED, '')

    def operator_stop(self) -> None:
        """Brake and hold until `resume`."""
        if self.state is not State.INACTIVE and not self._leaving:
            self.fault(Hold.OPERATOR_STOP, 'stopped by the operator: call ~/resume to go on')

    def resume(self) -> bool:
        """Take chunks again after an operator stop, a way that was blocked, or joint states that were frozen. False
        when there was none of these, while the arm still brakes, and while joint states are still frozen."""
        if self.state is not State.HOLDING or self.frozen:
            return False
        stood = [self._take_back(h) for h in (Hold.BLOCKED, Hold.JOINT_STATE_FROZEN, Hold.OPERATOR_STOP)]
        return any(stood)

    def not_followed(self) -> None:
        """No controller carried out the set-points of late: that joint states stood still means nothing."""
        self._tracking.forget()

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

    def go_to_start(self) -> str:
        """Go home (see the profile) along the straight joint line, gently; '' or why not. The way is looked at whole.

        No chunk is taken until the arm is there, which begins a new epoch; whatever stops chunks stops this, too.
        """
        if self.state is not State.HOLDING:
            inactive = self.state is State.INACTIVE
            return 'not active: activate the executor' if inactive else 'the arm is moving: stop what drives it first'
        if self._faults:
            return f'{self.hold.name}: {self.message}'
        assert self._now is not None
        profile, share = self.profile, self.config.start_fraction
        limits = share * profile.velocity, share * profile.acceleration
        path = straight_path(self.planned, profile.home, *limits, self.config.seam_time)
        try:
            self._set_out(path)
        except Refusal as refusal:
            return refusal.message
        self._new_epoch()
        self.source, self.message = SELF, 'the arm goes to its start: chunks are taken when it is there'
        self._path_gripper, self._seen = np.zeros(0), None
        self.state, self.hold = State.EXECUTING, Hold.NONE
        return ''

    # ---- output

    def step(self, now: int, elapsed: float | None = None) -> SetPoint | None:
        """The set-point for now; None while there is nothing to send (inactive).

        elapsed: [s] since the last step by a monotonic clock; None: there is no other than `now`, as in simulation.
        """
        passed = (now - self._now) * 1e-9 if self._now is not None else 0.0
        self._now = now
        set_by = passed - elapsed if elapsed is not None else 0.0  # [s] by which the clock was set meanwhile
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
            self._go_on_as_sent(max(took, 0.0))
        elif elapsed is not None and elapsed > _STOPPED and self.config.release_within_acceleration:
            # A controller that holds the last set-point has stopped the arm there. To go on at once would be a jerk.
            self.course.stand_at(self._positions)
            if not jumped:
                self._plan_again(took)
            took = 0.0
        if jumped:
            stalled = elapsed is not None and abs(set_by) <= SET_TOLERANCE
            what = _came_late(passed) if stalled else f'the clock jumped by {set_by or passed:.3f} s'
            self._brake(Hold.CLOCK_JUMP, f'{what}: chunks of a new epoch are awaited')
            took = self.config.period
        # Behind a control step that is late joint states wait to be taken: the next step judges, once.
        self._late = late and not jumped and not self._late
        if not self._late:
            self._watch_joint_state(now)
        self._watch_tracking()
        velocities = np.zeros(self.profile.dof)
        if self.state in (State.EXECUTING, State.BRAKING):
            if not sent_ahead:
                # A late step must not become a jump: the motion advances by at most two periods, the rest is lag.
                dt = min(took, 2 * self.config.period)
                self._stalled += took - dt
                self._track.advance(dt)
            self._watch_motion()
            if not self.at_rest:
                positions, along = (x[0] for x in self._track.sample(np.zeros(1)))
                self._positions = positions
                if not self._releasing or self.config.release_within_acceleration:
                    velocities = along  # an impedance controller would push the arm along with its damping
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
            raise Refusal(Verdict.FROM_FUTURE, ahead('the chunk', -s))
        t_ref, positions, gripper = self._blending.blend(chunk, positions, now, self._gripper, self.limits.acceleration)
        path = ChunkPath(positions, chunk.dt, self.config.interpolation, self.limits.lower, self.limits.upper)
        self._join(path, t_ref)
        self._blending.followed()
        self.source, self.sequence, self.message = chunk.source, chunk.sequence, ''
        self._path_gripper, self._t_ref, self._seen = gripper, t_ref, chunk.t_ref
        self.state, self.hold = State.EXECUTING, Hold.NONE

    def _path_time(self, t_ref: int) -> float:
        """[s] since t_ref at which a motion is to be that begins with the track's head, for what is sent to be on time.

        The head stands for the time of the last control step, less what is past it, and is sent `lag` later.
        """
        assert self._now is not None
        return (self._now - t_ref) * 1e-9 - self._track.since_head + self._track.lag

    def _join(self, path: ChunkPath, t_ref: int, whole: bool = False) -> None:
        """Go on along this path, without a jump. Raises Refusal if nothing within the limits does, or something is in
        the way: at its beginning, from where the rest is looked at under way, or, with whole, anywhere."""
        s = self._path_time(t_ref)
        if s > path.end - GRID:
            raise Refusal(Verdict.WHOLLY_PAST, f'the chunk ends {path.end - s:.3f} s from now: nothing is left of it')
        here = self.course.here
        q, v, _ = path.sample(np.array([s]))
        jump = float(np.abs(here.q - q).max())
        if self.state is State.HOLDING and jump > self.config.start_distance_limit:
            joint = self.profile.joint_names[int(np.abs(here.q - q).argmax())]
            raise Refusal(
                Verdict.OUT_OF_LIMITS,
                f'the chunk begins {jump:.2f} rad from the resting arm in {joint}, start_distance_limit is '
                f'{self.config.start_distance_limit} rad: was it made for another start, or is a joint state wrong?',
            )
        self.course.join(path, s, whole)
        self.seam_position, self.seam_velocity = jump, float(np.abs(here.v - v).max())
        self._path, self._stalled = path, 0.0

    def _set_out(self, path: ChunkPath) -> None:
        """Begin the way to the start. Raises Refusal, see _join."""
        assert self._now is not None
        self._join(path, self._now + round((self._track.lag - path.dt) * 1e9), whole=True)

    def _go_on_as_sent(self, took: float) -> None:
        """The controller executed what it was sent for `took` seconds, whatever was asked of the motion meanwhile."""
        late = self.course.go_on(took)
        if late is Late.BRAKES and self.state is State.EXECUTING:
            self.state = State.BRAKING
            self._stop(Hold.CHUNKS_STOPPED, f'{_came_late(took)}: the controller braked by itself meanwhile')
        elif late is Late.OLD_PLAN:
            self._plan_again(took)
        if took > 2 * self.config.period:
            self._tracking.sent(*(x[0] for x in self._track.sample(np.zeros(1))))

    def _plan_again(self, took: float) -> None:
        """What is asked of the motion now begins where the controller has got to by what it was sent before."""
        if self._releasing:
            self._let_go()
        elif self.state is State.EXECUTING:
            assert self._path is not None
            try:
                if self._goes_to_start:
                    self._set_out(self._path)
                else:
                    self._join(self._path, self._t_ref)
            except Refusal as refusal:
                self._brake(Hold.CHUNKS_STOPPED, f'{_came_late(took)}: {refusal.message}')
        elif not self._track.finished:
            self.state = State.BRAKING
            self.course.brake()
        elif self.state is State.HOLDING:
            self._stand_at(self._track.motion.q[-1])

    def _watch_motion(self) -> None:
        """After the motion went on, to self._now."""
        if not self.course.braked:
            if not self._goes_to_start:  # which is done when it is done
                self._watch_schedule()
            if blocked := self.course.blocked():
                self._brake(*blocked)
        track, head = self._track, self._track.head
        if self._path is not None:
            s = track.motion.s
            self.rate = float(np.clip((s[head] - s[head - 1]) / GRID, 0.0, 1.0))
            index = self._path.step_at(float(s[head]))
            if index >= 0 and self._path_gripper.size:
                opening = float(self._path_gripper[index])
                self._gripper = min(max(opening, 0.0), self.profile.gripper_max_opening)
        if track.finished:
            self._come_to_rest()

    def _watch_schedule(self) -> None:
        """Stalls, lag and the end of the chunk."""
        assert self._path is not None
        due = self._path_time(self._t_ref)
        if self._stalled > 2.5 * self.config.period and due < self._path.end:
            self._stalled = 0.0
            try:
                self._join(self._path, self._t_ref)  # after a stall: go over to where the path is now
            except Refusal:
                pass  # cannot catch up within the limits: stay late
        lag = due - float(self._track.motion.s[self._track.head])
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
        """An arm that is not where it was sent is let go where it is: braking would push on. If that was on its way, it
        stays there: the next chunk would push again. Frozen joint states do not tell where it is: it brakes."""
        if self._releasing or Hold.JOINT_STATE_STALE in self._faults:
            return
        found = self._tracking.look()
        if self._tracking.frozen:
            self.fault(Hold.JOINT_STATE_FROZEN, FROZEN)
        if found is None or Hold.JOINT_STATE_FROZEN in self._faults:
            return
        joint, away = found
        where = f'{self.profile.joint_names[joint]} was {away:.2f} rad from where it was sent'
        hold, message = Hold.TRACKING_ERROR, f'{where} while the arm was at rest: was it pushed, or moved by hand?'
        if self.state is not State.HOLDING:
            hold, message = Hold.BLOCKED, f'{where}: something is in the way; see to it, then call ~/resume'
            self._faults[hold] = message
        self._stop(hold, message)
        self._let_go()


def _came_late(seconds: float) -> str:
    return f'a control step came {seconds:.3f} s late'
