"""Stamped streams, read together as of one reference time.

Cameras *lead*: the reference time t_ref is the stamp of an image. Every stream is read as of t_ref: its newest value
that is not newer. A set is complete when every stream has such a value within its age limit; nothing is ever filled
in. Of the complete sets the newest is read, but a set whose images lie `skew` apart counts as 2 * skew older: so
cameras with common stamps are read as the sets they are, whichever image arrives first, and cameras that run freely
are read in their closest pairs.
"""

import threading
import time
from bisect import bisect_right
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

NS = 1_000_000_000
JOINTS, GRIPPER = 'joints', 'gripper'  # names of the streams that are no cameras
_MOST = 4096  # values per stream: a bound on memory whatever the stamps say


class Reason(Enum):
    """Why a stream makes the observation unusable."""

    MISSING = 'missing'  # nothing received
    STALE = 'stale'  # the newest value, or the one as of t_ref, is older than the stream's limit
    FUTURE = 'future'  # stamped ahead of the clock


@dataclass(frozen=True)
class StreamSpec:
    """One stream. topic is where it comes from, for messages."""

    name: str
    topic: str
    max_age: float  # [s] at t_ref and now
    leads: bool = False  # its stamps decide t_ref


@dataclass(frozen=True)
class Missing:
    """The observation is not usable because of this stream. message: one sentence, what is wrong and what to do."""

    reason: Reason
    stream: str
    message: str


@dataclass(frozen=True)
class Aligned:
    """One usable set: every stream as of t_ref."""

    t_ref: int  # [ns]
    values: dict[str, Any]
    stamps: dict[str, int]  # [ns] of each value, none newer than t_ref
    index: int  # counts images of the slowest leading stream; a gap means sets passed over
    arrived: float  # [s] of time.monotonic(): when the last of its images was here

    @property
    def skew(self) -> float:
        """Largest time between two values of the set [s]."""
        return (max(self.stamps.values()) - min(self.stamps.values())) / NS


@dataclass
class _Ring:
    """The values of one stream, sorted by stamp, newest last."""

    spec: StreamSpec
    count: int = 0  # values received, ever
    stamps: list[int] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)  # [s] of time.monotonic()

    @property
    def newest(self) -> int:
        return self.stamps[-1]

    def put(self, stamp: int, value: Any) -> None:
        self.count += 1
        i = bisect_right(self.stamps, stamp)
        if i > 0 and self.stamps[i - 1] == stamp:
            self.values[i - 1] = value  # sent twice: the later one counts
        else:
            self.stamps.insert(i, stamp)
            self.values.insert(i, value)
            self.arrivals.insert(i, time.monotonic())

    def as_of(self, time: int) -> int:
        """Index of the newest value not newer than time; -1: none."""
        return bisect_right(self.stamps, time) - 1

    def drop_before(self, index: int) -> None:
        if index > 0:
            del self.stamps[:index], self.values[:index], self.arrivals[:index]

    def clear(self) -> None:
        self.stamps.clear()
        self.values.clear()
        self.arrivals.clear()


class Streams:
    """The rings of all streams behind one lock; any thread may call anything.

    future_tolerance [s]: a value may be stamped this far ahead of now; one further ahead is not used.
    jump [s]: a stamp this far behind the newest of its stream means that the sender's clock went back: the stream
    starts anew. Smaller steps back are messages that overtook one another.
    """

    def __init__(self, specs: list[StreamSpec], *, future_tolerance: float = 0.1, jump: float = 1.0) -> None:
        if len({s.name for s in specs}) != len(specs) or not specs:
            raise ValueError(f'streams need distinct names, at least one: {[s.name for s in specs]}')
        if not any(s.leads for s in specs):
            raise ValueError('at least one stream must lead: its stamps are the reference times')
        self.specs = {s.name: s for s in specs}
        self._rings = {s.name: _Ring(s) for s in specs}
        self._leading = [self._rings[s.name] for s in specs if s.leads]
        self._tolerance, self._jump = int(future_tolerance * NS), int(jump * NS)
        # t_ref lies at most this far back while the set can be usable, and values are read as of t_ref.
        self._longest = int(max(s.max_age for s in specs if s.leads) * NS)
        self._keep = self._longest + 2 * self._tolerance
        self._lock = threading.Lock()
        self._last_now: int | None = None

    def put(self, name: str, stamp: int, value: Any) -> None:
        """Store a value with its stamp [ns]. KeyError for a stream that does not exist."""
        with self._lock:
            ring = self._rings[name]
            if ring.stamps and stamp < ring.newest - self._jump:
                ring.clear()
            ring.put(stamp, value)
            ring.drop_before(max(len(ring.stamps) - _MOST, 0))
            # The value as of the oldest reference time that can still come must stay, all before it can go.
            ring.drop_before(ring.as_of(ring.newest - self._keep - int(ring.spec.max_age * NS)))

    def clear(self) -> None:
        """Forget all values: after the clock jumped."""
        with self._lock:
            self._clear()

    def ages(self, now: int) -> dict[str, float]:
        """Age [s] of the newest value of each stream at time now [ns]; -1: nothing received."""
        with self._lock:
            return {n: (now - r.newest) / NS if r.stamps else -1.0 for n, r in self._rings.items()}

    def align(self, now: int) -> Aligned | Missing:
        """The newest complete set at time now [ns], or the first stream that stands in its way.

        A clock that went back by more than the future tolerance clears everything.
        """
        with self._lock:
            if self._last_now is not None and now < self._last_now - self._tolerance:
                self._clear()
            self._last_now = now
            for ring in self._rings.values():
                problem = self._problem_now(ring, now)
                if problem:
                    return problem
            t_ref = self._best(now)
            if t_ref is None:
                return self._incomplete(now)
            values, stamps = {}, {}
            for name, ring in self._rings.items():
                ring.drop_before(ring.as_of(t_ref))  # the best t_ref only grows: older ones will not be read again
                values[name], stamps[name] = ring.values[0], ring.stamps[0]
            index, arrived = min(r.count for r in self._leading), max(r.arrivals[0] for r in self._leading)
            return Aligned(t_ref, values, stamps, index, arrived)

    def _best(self, now: int) -> int | None:
        """Reference time of the best complete set; None: none is complete."""
        oldest = now - self._longest
        times = {t for r in self._leading for t in r.stamps if oldest <= t <= now + self._tolerance}
        complete = [t for t in times if all(self._usable(r, t) for r in self._rings.values())]
        return max(complete, key=lambda t: t - 2 * self._apart(t), default=None)

    def _apart(self, time: int) -> int:
        """Largest time between the images as of time [ns]."""
        stamps = [r.stamps[r.as_of(time)] for r in self._leading]
        return max(stamps) - min(stamps)

    @staticmethod
    def _usable(ring: _Ring, time: int) -> bool:
        i = ring.as_of(time)
        return i >= 0 and time - ring.stamps[i] <= ring.spec.max_age * NS

    def _incomplete(self, now: int) -> Missing:
        """Every stream is alive, but there is no time at which all have a value: the first that stands in the way."""
        time = max(r.stamps[r.as_of(now + self._tolerance)] for r in self._leading)
        for name, ring in self._rings.items():
            if not self._usable(ring, time):
                i = ring.as_of(time)
                where = f'{(time - ring.stamps[i]) / NS:.3f} s older than' if i >= 0 else 'only later than'
                return Missing(
                    Reason.STALE,
                    name,
                    f'{name} on {ring.spec.topic} has a value {where} the newest image '
                    f'(limit {ring.spec.max_age:g} s): check its rate, and that all senders share one clock',
                )
        raise AssertionError('unreachable: a time at which every stream is usable is a complete set')

    def _problem_now(self, ring: _Ring, now: int) -> Missing | None:
        name, topic, limit = ring.spec.name, ring.spec.topic, ring.spec.max_age
        if not ring.stamps:
            return Missing(
                Reason.MISSING, name, f'no {name} received on {topic}: check that it is published and the topic name'
            )
        i = ring.as_of(now + self._tolerance)
        if i < 0:
            ahead = (ring.stamps[0] - now) / NS
            return Missing(
                Reason.FUTURE,
                name,
                f'{name} on {topic} is stamped {ahead:.3f} s ahead of the clock: synchronise the clocks',
            )
        age = now - ring.stamps[i]
        if age > limit * NS:
            cause = 'its header.stamp is zero: the driver must stamp its messages'
            if ring.stamps[i] != 0:
                cause = 'check the sender, the network, and that the clocks agree'
            return Missing(
                Reason.STALE, name, f'newest {name} on {topic} is {age / NS:.3f} s old (limit {limit:g} s): {cause}'
            )
        return None

    def _clear(self) -> None:
        for ring in self._rings.values():
            ring.clear()
        self._last_now = None
