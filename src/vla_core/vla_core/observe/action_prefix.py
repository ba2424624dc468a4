"""The action prefix: committed actions that a model is given as the first steps of its next chunk.

Real-time chunking (Black et al. 2025, arXiv 2506.07339) for a masked-token model: these steps are tokens that are not
masked. The new chunk then continues the old one in the same single forward pass.
"""

import math

import numpy as np

from vla_core.clocks import NS
from vla_core.motion.path import ChunkPath
from vla_core.observe.committed_actions import CommittedActions
from vla_model.types import Chunk

MAX_DEVIATION = 0.1  # [rad] an arm that deviates by more does not follow its chunk
INPAINT = ('auto', 'always', 'never')  # whether a model is given the prefix


def takes_prefix(inpaint: str, trained_with: bool) -> bool:
    """Whether a model is given the prefix. trained_with: it learned to continue one.

    Raises ValueError where `inpaint` is none of INPAINT.
    """
    if inpaint not in INPAINT:
        raise ValueError(f'inpaint {inpaint!r}: must be one of {", ".join(INPAINT)}')
    return inpaint == 'always' or (inpaint == 'auto' and trained_with)


def action_prefix(
    committed: CommittedActions, t_ref: int, epoch: int, measured: np.ndarray, max_deviation: float = MAX_DEVIATION
) -> Chunk | None:
    """The first steps of a chunk for t_ref [ns] that the arm will have executed, or started, when the chunk arrives.

    They are on the new chunk's grid, step i due at t_ref + (i + 1) dt. They are at most half a horizon, which is the
    longest prefix that models are trained with. measured: (dof,) [rad], the arm at t_ref.
    Returns None where no action is committed. Returns None, too, where a joint is further than max_deviation [rad]
    from its position in the old chunk. The arm may be behind, because the executor keeps limits that chunks do not. A
    model that continues from steps far ahead of the arm asks for steps that are further ahead, without end.
    """
    found = committed.executed(t_ref, epoch)
    if found is None:
        return None
    old, since = found.chunk, (t_ref - found.t_ref) / NS
    horizon = len(old.positions)
    count = min(math.ceil(committed.delay / old.dt - 1e-6), horizon // 2)
    due = since + old.dt * np.arange(1, count + 1)
    due = due[due <= horizon * old.dt + 1e-6]  # after its end the arm brakes
    if not len(due):
        return None
    path = ChunkPath(old.positions, old.dt)
    if np.abs(path.sample(np.array([max(since, old.dt)]))[0][0] - measured).max() > max_deviation:
        return None
    index = np.clip(np.floor(due / old.dt + 1e-6).astype(int) - 1, 0, horizon - 1)
    gripper = old.gripper[index] if old.gripper.size else old.gripper
    return Chunk(path.sample(due)[0], gripper, old.dt)
