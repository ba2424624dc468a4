"""The executor as its status shows it: its epoch, and whether it moves the arm with the policy's chunks."""

import math
import time

from vla_core.motion.states import Hold
from vla_msgs.msg import ExecutorStatus

SILENT = 3.0  # [s] of wall time; the status comes at 10 Hz
# No problem: moving, about to move, or stopped on request of the policy node.
_FINE = (Hold.NONE, Hold.IDLE, Hold.STOP_REQUESTED)


class ExecutorMonitor:
    """Keeps the newest ExecutorStatus. source: the policy node's name as the sender of chunks."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._status: ExecutorStatus | None = None
        self._received = 0.0  # [s] monotonic

    def record(self, status: ExecutorStatus) -> None:
        self._status, self._received = status, time.monotonic()

    @property
    def epoch(self) -> int:
        return self._status.epoch if self._status is not None else 0

    @property
    def follows(self) -> bool:
        """Whether the arm executes the policy's chunks now."""
        s = self._status
        return s is not None and s.source == self._source and s.state == ExecutorStatus.STATE_EXECUTING

    @property
    def rests(self) -> bool:
        """Whether no chunk of the policy moves the arm, by the newest status."""
        s = self._status
        return s is None or (s.state != ExecutorStatus.STATE_BRAKING and not self.follows)

    @property
    def margins(self) -> tuple[float, float]:
        """horizon_left [s] and limit_margin [rad] of its status; NaN before the first one."""
        s = self._status
        return (s.horizon_left, s.limit_margin) if s is not None else (math.nan, math.nan)

    @property
    def hold(self) -> Hold:
        """Why the arm does not move, by the newest status; DEACTIVATED before the first one."""
        return Hold(self._status.hold_reason) if self._status is not None else Hold.DEACTIVATED

    def problem(self) -> str:
        """Why the chunks sent do not move the arm, one sentence; '' when they do or may."""
        status = self._status
        if status is None:
            return 'no message was received on executor/status: is the executor running, in our namespace?'
        if time.monotonic() - self._received > SILENT:
            return f'no message was received on executor/status for {SILENT:g} s: is the executor still running?'
        if self.hold not in _FINE:
            why = status.message or 'activate it' * (self.hold is Hold.DEACTIVATED)
            return f'the executor holds, {self.hold.name}' + (f': {why}' if why else '')
        if status.source not in ('', self._source):
            return f'{status.source} drives the arm: stop it, or set drive to false here'
        return ''
