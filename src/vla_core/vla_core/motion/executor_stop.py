"""How the executor comes to rest, and which reasons to stop keep it there."""

import numpy as np

from vla_core.motion.executor_state import ExecutorState
from vla_core.motion.states import FAULTS, Hold, State, renewed, strength


class StoppingExecutor(ExecutorState):
    """An executor that can stop: faults that stand, braking, letting go, and a new epoch at each end of a motion."""

    def fault(self, hold: Hold, message: str) -> None:
        """Brake, and take no chunks while this stands. When it stands already, only its message is renewed."""
        if hold not in FAULTS:
            raise ValueError(f'{hold.name} is no fault that stands: {", ".join(f.name for f in FAULTS)}')
        new = hold not in self._faults
        message = self._faults[hold] = renewed(self._faults.get(hold, ''), message)
        if new and self.state is not State.INACTIVE:
            self._brake(hold, message)
        elif self.hold is hold:
            self.message = message

    def clear(self, hold: Hold) -> None:
        """This fault stands no more. Once at rest and with no other, the arm takes chunks of a new epoch."""
        if hold in (Hold.OPERATOR_STOP, Hold.BLOCKED, Hold.JOINT_STATE_FROZEN, Hold.EMERGENCY_STOP):
            raise ValueError(f'{hold.name} is taken back by resume or reset_emergency_stop, not cleared')
        self._take_back(hold)

    def emergency_stop(self) -> None:
        """Brake and hold until `reset_emergency_stop`, whether active or not."""
        self.fault(Hold.EMERGENCY_STOP, 'emergency stop: reset it to go on')

    def reset_emergency_stop(self) -> bool:
        """Take the emergency stop back. False when there was none, or while the arm still brakes."""
        return self.at_rest and self._take_back(Hold.EMERGENCY_STOP)

    def _brake(self, hold: Hold, message: str) -> None:
        """Slow down along the path to rest; the arm may be at rest already. A stronger reason to stop stays."""
        self._stop(hold, message)
        if not self._moves:
            self._come_to_rest()
        elif not self.course.braked:
            self.state = State.BRAKING
            self.course.brake()

    def _stop(self, hold: Hold, message: str) -> None:
        """The motion ends for this reason, unless a stronger one was given."""
        if strength(self.hold) <= strength(hold):
            if hold is not Hold.CHUNKS_STOPPED:  # a late chunk may still save the motion, nothing else may
                self._new_epoch()
            self.hold, self.message = hold, message

    def _let_go(self) -> None:
        """Go to where the arm is, whatever it was sent before; nothing but its end stops this."""
        assert self._measured.positions is not None
        if self.muted:  # the controller is sent nothing: no step of it either
            self._track.hold(self._measured.positions)
        else:
            within = self.config.release_within_acceleration
            self.course.let_go(self._measured.positions, within_acceleration=within)
        self.state, self._releasing = State.BRAKING, True
        self._path, self.rate = None, 0.0
        if self._track.finished:
            self._come_to_rest()

    def _come_to_rest(self) -> None:
        released = self._releasing
        self._stand_at(self._track.motion.q[-1])
        if released:
            self._tracking.begin(self._track.motion.q[-1])
        if self._leaving:
            self.state = State.INACTIVE
            return
        self.state = State.HOLDING
        if self.hold is Hold.CHUNKS_STOPPED:
            self._new_epoch()
        elif self.hold is Hold.NONE or (self.hold in FAULTS and self.hold not in self._faults):
            self._show_strongest()  # at the start, or cleared while it braked

    def _stand_at(self, positions: np.ndarray) -> None:
        self._positions = np.array(positions, float)
        self.course.stand_at(self._positions)
        self._path, self._releasing, self.rate, self._stalled = None, False, 0.0, 0.0

    def _take_back(self, hold: Hold) -> bool:
        """A fault stands no more; False if it did not."""
        if self._faults.pop(hold, None) is None:
            return False
        if self.hold is hold and self.state is State.HOLDING:
            self._show_strongest()
        elif self.hold is hold and self.state is State.INACTIVE:
            self.hold, self.message = Hold.DEACTIVATED, ''
        return True

    def _show_strongest(self) -> None:
        """At rest: the strongest fault that stands, or none. A new epoch either way."""
        self._new_epoch()
        self.hold = max(self._faults, key=strength, default=Hold.IDLE)
        self.message = self._faults.get(self.hold, '')

    def _new_epoch(self) -> None:
        self.epoch += 1
        self.source, self.sequence = '', 0
        self._blending.reset()
