"""Stopping of the executor, and the faults that keep it at rest."""

import numpy as np

from vla_core.motion.executor_state import ExecutorState
from vla_core.motion.states import FAULTS, Hold, State, renewed, strength


class StoppingExecutor(ExecutorState):
    """An executor that can stop: faults, braking, release, and a new epoch at each end of a motion."""

    def fault(self, hold: Hold, message: str) -> None:
        """Brake, and accept no chunks while this fault is in force. If it is already, only its message is renewed.

        Raises ValueError for a reason that is not of FAULTS.
        """
        if hold not in FAULTS:
            raise ValueError(f'{hold.name} is no fault: must be one of {", ".join(f.name for f in FAULTS)}')
        new = hold not in self._faults
        message = self._faults[hold] = renewed(self._faults.get(hold, ''), message)
        if new and self.state is not State.INACTIVE:
            self._brake(hold, message)
        elif self.hold is hold:
            self.message = message

    def clear(self, hold: Hold) -> None:
        """End this fault. At rest and without another fault, the arm accepts chunks of a new epoch.

        Raises ValueError for a fault that resume or reset_emergency_stop ends.
        """
        if hold in (Hold.OPERATOR_STOP, Hold.BLOCKED, Hold.JOINT_STATE_FROZEN, Hold.EMERGENCY_STOP):
            raise ValueError(f'{hold.name} is ended by resume or reset_emergency_stop, not by clear')
        self._take_back(hold)

    def emergency_stop(self) -> None:
        """Brake and hold until `reset_emergency_stop`, whether active or not."""
        self.fault(Hold.EMERGENCY_STOP, 'emergency stop: reset it to continue')

    def reset_emergency_stop(self) -> bool:
        """End the emergency stop. Returns False without one, or while the arm still brakes."""
        return self.at_rest and self._take_back(Hold.EMERGENCY_STOP)

    def _brake(self, hold: Hold, message: str) -> None:
        """Brake along the path to rest; the arm may be at rest already. A stronger reason to stop stays."""
        self._stop(hold, message)
        if not self._moves:
            self._come_to_rest()
        elif not self.course.braked:
            self.state = State.BRAKING
            self.course.brake()

    def _stop(self, hold: Hold, message: str) -> None:
        """Record the reason for the end of the motion, unless a stronger one is in force."""
        if strength(self.hold) <= strength(hold):
            if hold is not Hold.CHUNKS_STOPPED:  # after this one a late chunk may still continue the motion
                self._new_epoch()
            self.hold, self.message = hold, message

    def _let_go(self) -> None:
        """Release the set-point to the measured position. Only the end of the release stops it."""
        assert self._measured.positions is not None
        if self.muted:  # no set-points are sent: the release needs no motion
            self._buffer.hold(self._measured.positions)
        else:
            within = self.config.release_within_acceleration
            self.course.let_go(self._measured.positions, within_acceleration=within)
        self.state, self._releasing = State.BRAKING, True
        self._path, self.rate = None, 0.0
        if self._buffer.finished:
            self._come_to_rest()

    def _come_to_rest(self) -> None:
        released = self._releasing
        self._stand_at(self._buffer.motion.q[-1])
        if released:
            self._tracking.begin(self._buffer.motion.q[-1])
        if self._leaving:
            self.state = State.INACTIVE
            return
        self.state = State.HOLDING
        if self.hold is Hold.CHUNKS_STOPPED:
            self._new_epoch()
        elif self.hold is Hold.NONE or (self.hold in FAULTS and self.hold not in self._faults):
            self._show_strongest()  # at the start pose, or the fault was cleared during the brake

    def _stand_at(self, positions: np.ndarray) -> None:
        self._positions = np.array(positions, float)
        self.course.stand_at(self._positions)
        self._path, self._releasing, self.rate, self._stalled = None, False, 0.0, 0.0

    def _take_back(self, hold: Hold) -> bool:
        """End a fault. Returns False if it was not in force."""
        if self._faults.pop(hold, None) is None:
            return False
        if self.hold is hold and self.state is State.HOLDING:
            self._show_strongest()
        elif self.hold is hold and self.state is State.INACTIVE:
            self.hold, self.message = Hold.DEACTIVATED, ''
        return True

    def _show_strongest(self) -> None:
        """Report the strongest fault in force, or IDLE, at rest; begin a new epoch."""
        self._new_epoch()
        self.hold = max(self._faults, key=strength, default=Hold.IDLE)
        self.message = self._faults.get(self.hold, '')

    def _new_epoch(self) -> None:
        self.epoch += 1
        self.source, self.sequence = '', 0
        self._blending.reset()
