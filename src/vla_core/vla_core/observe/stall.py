"""Stall detection: an arm that does not get where its chunks lead executes half of one before the next inference.

A model without memory may have learned to wait a little before it continues (a hand that closes, a tool over its
place). Such a model may give the same chunk at each inference: two more steps of rest, then motion. Only these two
steps are executed until the next inference starts them again.
"""

from collections import deque

import numpy as np

from vla_core.clocks import NS
from vla_core.observe.committed_actions import CommittedActions

STALL_FRACTION = 0.3  # share of the way that a chunk led: an arm that went less by the chunk's end is stalled
_LEADS = 0.1  # [rad] least motion of some joint by the chunk's end, for a chunk that leads anywhere
_IN_A_ROW = 4  # inferences that find the arm stalled
_KEPT = 100  # measured positions that are kept: at least those of one horizon


class StallDetector:
    """Decides before each inference whether the arm executes its chunk instead. Not thread-safe."""

    def __init__(self, committed: CommittedActions, share: float = STALL_FRACTION) -> None:
        """share: of the way that a chunk led, below which the arm is stalled; 0 turns stall detection off."""
        self._committed, self._share = committed, share
        self._measured: deque[tuple[int, np.ndarray]] = deque(maxlen=_KEPT)  # t_ref [ns], (dof,) [rad]
        self._stalls, self._until = 0, 0  # stalls in a row; t_ref [ns] of the next inference

    def stalled(self, t_ref: int, epoch: int, measured: np.ndarray) -> bool:
        """Whether the arm, `measured` (dof,) [rad] at t_ref [ns], is to execute its chunk without another inference.

        It is, until half of the chunk, where two conditions hold at four calls in a row. It went less than `share` of
        the way that its chunk of a horizon ago led, and the newest chunk leads away, too. To be called before each
        inference.
        """
        self._measured.append((t_ref, np.array(measured, float)))
        found = self._committed.executed(t_ref, epoch)
        if found is None or self._committed.refused:  # the arm executes no chunk, or an older one
            self._stalls = self._until = 0
            return False
        if t_ref < self._until:
            return True
        positions = found.chunk.positions
        horizon = round(len(positions) * found.chunk.dt * NS)
        stays = self._leads(positions, measured) and self._stays(t_ref, epoch, horizon)
        self._stalls = self._stalls + 1 if stays else 0
        if self._stalls < _IN_A_ROW or not self._share:
            return False
        self._measured.clear()  # the next judgement is a horizon from now
        self._stalls, self._until = 0, found.t_ref + horizon // 2
        return t_ref < self._until

    @staticmethod
    def _leads(positions: np.ndarray, start: np.ndarray) -> bool:
        return bool(np.abs(positions[-1] - start).max() > _LEADS)

    def _stays(self, t_ref: int, epoch: int, horizon: int) -> bool:
        """Whether the arm, measured last at t_ref, has not gone where its chunk of a horizon [ns] ago led."""
        old = next((s for s in reversed(self._committed.sent) if s.epoch == epoch and t_ref - s.t_ref >= horizon), None)
        if old is None or t_ref - old.t_ref > 1.5 * horizon:
            return False
        start = next((q for at, q in self._measured if at == old.t_ref), None)
        if start is None or not self._leads(old.chunk.positions, start):
            return False
        led, gone = (np.abs(q - start).max() for q in (old.chunk.positions[-1], self._measured[-1][1]))
        return bool(gone < self._share * led)
