"""Stamps of recorded messages against their arrival, where the policy node cannot know what a whole bag shows."""

from vla_core.clocks import NS, Lag
from vla_training.convert.bag_faults import other_time

STRAGGLING = 0.5  # [s] after a step of the recorder's clock: messages from before it may come


class BagStamps:
    """Judges the stamps of each stream. Times in ns."""

    def __init__(self) -> None:
        self._lags: dict[str, Lag] = {}  # of the messages since a clock was set last
        self._before: dict[str, int] = {}  # stream -> the lag below which a message is from before the step
        self._settled = 0  # until then such messages may come
        self.foreign: dict[str, tuple[int, str]] = {}  # topic -> stamps of another origin than the clock, a sentence

    def restart(self) -> None:
        """A clock was set: lags from before it count no more."""
        self._lags = {}

    def set_back(self, before: int, now: int) -> None:
        """The recorder's clock was set back, between two messages."""
        self._before = {name: lag.least - (before - now) // 2 for name, lag in self._lags.items()}
        self._settled = now + int(STRAGGLING * NS)

    def straggles(self, stream: str, stamp: int, now: int) -> bool:
        """Whether a message was stamped before the recorder's clock was set back, and came after that."""
        return now < self._settled and stream in self._before and now - stamp < self._before[stream]

    def set_forward(self, stream: str, stamp: int, now: int) -> float:
        """By how much the sender's clock was set forward before this message [s]; 0: it was not."""
        return self._lags.setdefault(stream, Lag()).take(now - stamp)

    def compare(self, stream: str, topic: str, stamp: int, now: int) -> None:
        """Note a stamp that does not count from the origin of the clock."""
        if why := other_time(stream, topic, stamp, now):
            count, first = self.foreign.get(topic, (0, why))
            self.foreign[topic] = count + 1, first
