"""What the arm will do anyway while the model thinks: given to it as the first steps of the chunk to come.

Real-time chunking (Black et al. 2025, arXiv 2506.07339) for a masked-token model: the steps are tokens that are not
masked, so the new chunk continues the old one in the same single forward pass.
"""

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from vla_model.types import Chunk
from vla_policy_node.core.path import ChunkPath

NS = 1_000_000_000
AWAY = 0.1  # [rad] an arm further than this from where a chunk has it does not follow that chunk
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

    def __init__(self, window: int = 10, away: float = AWAY) -> None:
        """window: of the newest delays, of which the longest counts (RTC's). away: see `steps`."""
        self._away = away
        self._delays: deque[float] = deque(maxlen=window)  # [s]
        self._sent: deque[_Sent] = deque(maxlen=window)
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
        found = next((s for s in reversed(self._sent) if self._taken is None or s.sequence == self._taken), None)
        if found is None or not self.followed or epoch != found.epoch or t_ref <= found.t_ref:
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
