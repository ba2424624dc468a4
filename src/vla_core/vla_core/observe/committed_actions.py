"""The actions that the arm is committed to: the newest chunks sent, and which of them it executes."""

from collections import deque
from dataclasses import dataclass

from vla_model.types import Chunk

_KEPT = 100  # chunks that are kept: at least those of one horizon


@dataclass(frozen=True)
class Sent:
    """A chunk that was sent to the executor."""

    sequence: int
    chunk: Chunk
    t_ref: int  # [ns]
    epoch: int  # of the executor, for which it was made


class CommittedActions:
    """Keeps the newest chunks sent, oldest first, and how late each of them was. Not thread-safe.

    followed: whether the arm executes what is sent. Set it to False in shadow, or while another source drives the arm:
    then no action is committed.
    """

    def __init__(self, window: int = 10) -> None:
        """window: number of newest delays, of which the longest is expected next, as in real-time chunking."""
        self.followed = True
        self.sent: deque[Sent] = deque(maxlen=_KEPT)
        self._delays: deque[float] = deque(maxlen=window)  # [s]
        self._accepted: int | None = None  # sequence of the chunk that the arm keeps, because a newer one was refused

    def add(self, sequence: int, chunk: Chunk, t_ref: int, epoch: int, delay: float) -> None:
        """Record a chunk that reaches the executor `delay` [s] after its t_ref [ns]; epoch: the one it is made for."""
        self.sent.append(Sent(sequence, chunk, t_ref, epoch))
        self._delays.append(delay)

    def reported(self, accepted: int, refused: bool) -> None:
        """Record the executor's report.

        accepted: sequence of the newest chunk that it accepted. refused: it did not accept the one after that. Later
        chunks were made to continue a refused one. Until it accepts one again, the arm is expected to keep executing
        the accepted chunk.
        """
        self._accepted = accepted if refused else None

    @property
    def refused(self) -> bool:
        """Whether the executor refused a chunk and has not accepted one since."""
        return self._accepted is not None

    @property
    def delay(self) -> float:
        """The delay [s] to expect of the next chunk; 0 before the first one."""
        return max(self._delays, default=0.0)

    def executed(self, t_ref: int, epoch: int) -> Sent | None:
        """The chunk that the arm executes at t_ref [ns] in this epoch, or None. Its horizon may be over."""
        found = next((s for s in reversed(self.sent) if self._accepted in (None, s.sequence)), None)
        return found if found and self.followed and epoch == found.epoch and t_ref > found.t_ref else None
