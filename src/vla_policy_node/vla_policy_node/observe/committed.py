"""What the arm will do anyway while the model thinks: given to it as the first steps of the chunk to come.

Real-time chunking (Black et al. 2025, arXiv 2506.07339) for a masked-token model: the steps are tokens that are not
masked, so the new chunk continues the old one in the same single forward pass.

And whether the model should look now at all. It has no memory: where it has learned to wait a little before it goes on
(a hand that closes, a tool over its place) it may say the same at each look, two steps more, then go; only these two
are carried out until the next look begins them again. An arm that does not get where its chunks lead carries one out.
"""

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from vla_model.types import Chunk
from vla_policy_node.core.path import ChunkPath

NS = 1_000_000_000
AWAY = 0.1  # [rad] an arm further than this from where a chunk has it does not follow that chunk
STAGNATION = 0.3  # of the way that a chunk led: an arm that has gone less by its end does not get where its chunks lead
_LEADS = 0.1  # [rad] that a chunk has to lead some joint away, for that
_LOOKS = 4  # so many in a row
_KEPT = 100  # chunks that are remembered: those of a horizon
INPAINT = ('auto', 'always', 'never')  # whether a model is given what is under way


def gives(inpaint: str, learned: bool) -> bool:
    """Whether a model that has `learned` it is given what is under way. Raises ValueError for none of INPAINT."""
    if inpaint not in INPAINT:
        raise ValueError(f'inpaint {inpaint!r}: must be one of {", ".join(INPAINT)}')
    return inpaint == 'always' or (inpaint == 'auto' and learned)


@dataclass(frozen=True)
class _Sent:
    sequence: int
    chunk: Chunk
    t_ref: int  # [ns]
    epoch: int


class Committed:
    """The newest chunks sent, which of them the arm follows, and how late they have been of late."""

    def __init__(self, window: int = 10, away: float = AWAY, stagnation: float = STAGNATION) -> None:
        """window: of the newest delays, of which the longest counts (RTC's). away: see `steps`. stagnation: see
        `carries_out`; 0: it never does.
        """
        self._away, self._stagnation = away, stagnation
        self._delays: deque[float] = deque(maxlen=window)  # [s]
        self._sent: deque[_Sent] = deque(maxlen=_KEPT)
        self._seen: deque[tuple[int, np.ndarray]] = deque(maxlen=_KEPT)  # when [ns], and where the arm was
        self._stuck, self._until = 0, 0  # looks in a row at an arm that stagnates; [ns] when the model looks again
        self._taken: int | None = None  # sequence of the chunk that the arm goes on with, as a newer one was refused
        self.followed = True  # the arm does what is sent; False: nothing is under way, whatever was sent

    def sent(self, sequence: int, chunk: Chunk, t_ref: int, epoch: int, delay: float) -> None:
        """The chunk goes to the executor `delay` [s] after its t_ref [ns]; epoch: the one that it is for."""
        self._sent.append(_Sent(sequence, chunk, t_ref, epoch))
        self._delays.append(delay)

    def heard(self, taken: int, refused: bool) -> None:
        """taken: sequence of the newest chunk that the executor took; refused: it did not take the one after it.

        What comes after a refused chunk was made to continue it, so until the executor takes one again the arm is
        expected to go on with the one that was taken.
        """
        self._taken = taken if refused else None

    @property
    def delay(self) -> float:
        """[s] until a chunk arrives, as it must be expected; 0 before the first one."""
        return max(self._delays, default=0.0)

    def steps(self, t_ref: int, epoch: int, measured: np.ndarray) -> Chunk | None:
        """The first steps of a chunk for t_ref [ns] that will be over, or under way, when it arrives.

        On the new chunk's grid, step i due at t_ref + (i + 1) dt; at most half a horizon, which is what models are
        trained with. None: nothing is under way, or a joint of `measured` (dof,) [rad], the arm at t_ref, is further
        than `away` from where the old chunk has it. The executor keeps limits that chunks do not know, so the arm may
        be behind; a model that goes on from steps far ahead of it asks for ones that are further ahead, and so on.
        """
        found = self._under_way(t_ref, epoch)
        if found is None:
            return None
        old, since = found.chunk, (t_ref - found.t_ref) / NS
        horizon = len(old.positions)
        count = min(math.ceil(self.delay / old.dt - 1e-6), horizon // 2)
        due = since + old.dt * np.arange(1, count + 1)
        due = due[due <= horizon * old.dt + 1e-6]  # after its end the arm brakes
        if not len(due):
            return None
        path = ChunkPath(old.positions, old.dt)
        if np.abs(path.sample(np.array([max(since, old.dt)]))[0][0] - measured).max() > self._away:
            return None
        index = np.clip(np.floor(due / old.dt + 1e-6).astype(int) - 1, 0, horizon - 1)
        gripper = old.gripper[index] if old.gripper.size else old.gripper
        return Chunk(path.sample(due)[0], gripper, old.dt)

    def carries_out(self, t_ref: int, epoch: int, measured: np.ndarray) -> bool:
        """Whether the arm, at `measured` (dof,) [rad] at t_ref [ns], goes on with its chunk instead of being looked at.

        It does, to half of the chunk, where it has four looks in a row gone less than the share `stagnation` of the way
        that its chunk of a horizon ago led, and the newest one leads away, too. To be asked before each look.
        """
        self._seen.append((t_ref, np.array(measured, float)))
        found = self._under_way(t_ref, epoch)
        if found is None or self._taken is not None:  # it goes on with nothing, or with an older one
            self._stuck = self._until = 0
            return False
        if t_ref < self._until:
            return True
        positions = found.chunk.positions
        horizon = round(len(positions) * found.chunk.dt * NS)
        self._stuck = self._stuck + 1 if self._leads(positions, measured) and self._stays(t_ref, epoch, horizon) else 0
        if self._stuck < _LOOKS or not self._stagnation:
            return False
        self._seen.clear()  # to be judged anew, a horizon from now
        self._stuck, self._until = 0, found.t_ref + horizon // 2
        return t_ref < self._until

    def _under_way(self, t_ref: int, epoch: int) -> _Sent | None:
        """What the arm follows at t_ref [ns]; it may be over."""
        found = next((s for s in reversed(self._sent) if self._taken is None or s.sequence == self._taken), None)
        return found if found and self.followed and epoch == found.epoch and t_ref > found.t_ref else None

    @staticmethod
    def _leads(positions: np.ndarray, start: np.ndarray) -> bool:
        return bool(np.abs(positions[-1] - start).max() > _LEADS)

    def _stays(self, t_ref: int, epoch: int, horizon: int) -> bool:
        """Whether the arm, seen last at t_ref, has not done what its chunk of a horizon [ns] ago led it to do."""
        old = next((s for s in reversed(self._sent) if s.epoch == epoch and t_ref - s.t_ref >= horizon), None)
        if old is None or t_ref - old.t_ref > 1.5 * horizon:
            return False
        began = next((q for at, q in self._seen if at == old.t_ref), None)
        if began is None or not self._leads(old.chunk.positions, began):
            return False
        led, gone = (np.abs(q - began).max() for q in (old.chunk.positions[-1], self._seen[-1][1]))
        return bool(gone < self._stagnation * led)
