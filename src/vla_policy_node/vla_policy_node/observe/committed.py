"""What the arm will do anyway while the model thinks: given to it as the first steps of the chunk to come.

Real-time chunking (Black et al. 2025, arXiv 2506.07339) for a masked-token model: the steps are tokens that are not
masked, so the new chunk continues the old one in the same single forward pass.
"""

import math
from collections import deque

import numpy as np

from vla_model.types import Chunk
from vla_policy_node.core.path import ChunkPath

NS = 1_000_000_000
INPAINT = ('auto', 'always', 'never')  # whether a model is given what is under way


def gives(inpaint: str, learned: bool) -> bool:
    """Whether a model that has `learned` it is given what is under way. Raises ValueError for none of INPAINT."""
    if inpaint not in INPAINT:
        raise ValueError(f'inpaint {inpaint!r}: must be one of {", ".join(INPAINT)}')
    return inpaint == 'always' or (inpaint == 'auto' and learned)


class Committed:
    """The newest chunk sent, and how late chunks have been of late."""

    def __init__(self, window: int = 10) -> None:
        """window: of the newest delays, of which the longest counts (RTC's)."""
        self._delays: deque[float] = deque(maxlen=window)  # [s]
        self._chunk: Chunk | None = None
        self._t_ref = self._epoch = 0
        self.followed = True  # the arm does what is sent; False: nothing is under way, whatever was sent

    def sent(self, chunk: Chunk, t_ref: int, epoch: int, delay: float) -> None:
        """The chunk goes to the executor `delay` [s] after its t_ref [ns]; epoch: the one that it is for."""
        self._chunk, self._t_ref, self._epoch = chunk, t_ref, epoch
        self._delays.append(delay)

    def forget(self) -> None:
        """The arm does not follow what was sent."""
        self._chunk = None

    @property
    def delay(self) -> float:
        """[s] until a chunk arrives, as it must be expected; 0 before the first one."""
        return max(self._delays, default=0.0)

    def steps(self, t_ref: int, epoch: int) -> Chunk | None:
        """The first steps of a chunk for t_ref [ns] that will be over, or under way, when it arrives.

        On the new chunk's grid, step i due at t_ref + (i + 1) dt; at most half a horizon, which is what models are
        trained with. None: nothing is under way.
        """
        old = self._chunk
        if old is None or not self.followed or epoch != self._epoch or t_ref <= self._t_ref:
            return None
        since = (t_ref - self._t_ref) / NS
        horizon = len(old.positions)
        count = min(math.ceil(self.delay / old.dt - 1e-6), horizon // 2)
        due = since + old.dt * np.arange(1, count + 1)
        due = due[due <= horizon * old.dt + 1e-6]  # after its end the arm brakes
        if not len(due):
            return None
        path = ChunkPath(old.positions, old.dt)
        index = np.clip(np.floor(due / old.dt + 1e-6).astype(int) - 1, 0, horizon - 1)
        gripper = old.gripper[index] if old.gripper.size else old.gripper
        return Chunk(path.sample(due)[0], gripper, old.dt)
