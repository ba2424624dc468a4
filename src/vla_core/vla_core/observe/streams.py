"""Stamped streams, read together as of one reference time.

Cameras *lead*: the reference time t_ref is the stamp of an image. Every stream is read as of t_ref: its newest value
that is not newer. A set is complete when every stream has such a value within its age limit; no value is ever made up.
Of the complete sets the newest is read, but a set whose images are `skew` apart counts as 2 * skew older. So cameras
with common stamps are read in these sets, whichever image arrives first, and other cameras in their closest pairs.

Messages of two topics may overtake each other. So a set can wait for a stream that `settles`: until the stream has a
value of t_ref or later, no longer than that time. The set then does not depend on which message arrives first.

A stamp is not trusted alone. A value that is stamped after its arrival is not stored, and its stream is unusable while
such values arrive. A stream whose stamps step back starts anew. A stream without new values is stale, whatever its
last stamp.
"""

import math
import threading
import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from vla_core import clocks
from vla_core.clocks import FUTURE_TOLERANCE, NS, Arrivals, Stamps

JOINTS, GRIPPER = 'joints', 'gripper'  # names of the streams that are not cameras
# [s] Defaults of the parameters. A gripper may be slow: Franka's hand sends 10 to 15 states a second.
CAMERA_MAX_AGE, JOINT_MAX_AGE, GRIPPER_MAX_AGE = 0.3, 0.1, 0.3
_MAX_VALUES = 4096  # per stream: a bound on memory, whatever the stamps are


class Reason(Enum):
    """Reason why a stream makes the observation unusable."""

    MISSING = 'missing'  # nothing received
    STALE = 'stale'  # no value, or only an older one, within the stream's age limit
    FUTURE = 'future'  # stamped ahead of the clock


@dataclass(frozen=True)
class StreamSpec:
    """Settings of one stream. topic: its source, for messages."""

    name: str
    topic: str
    max_age: float  # [s] at t_ref and now
    leads: bool = False  # its stamps decide t_ref
    limit: str = ''  # name of the parameter that sets max_age, for messages
    settles: float = 0.0  # [s] that a set waits for a value of its time or later; 0: not at all


@dataclass(frozen=True)
class Missing:
    """The stream that makes the observation unusable. message: one sentence with the fault and the remedy."""

    reason: Reason
    stream: str
    message: str


@dataclass(frozen=True)
class Aligned:
    """One usable set: every stream as of t_ref."""

    t_ref: int  # [ns]
    values: dict[str, Any]
    stamps: dict[str, int]  # [ns] of each value, none newer than t_ref
    index: int  # number of images of the slowest leading stream; a gap means skipped sets
    arrived: float  # [s] of time.monotonic(): arrival of the last of its images
    before: dict[str, Any] = field(default_factory=dict)  # of the leading streams, `history` earlier; {}: not all known

    @property
    def skew(self) -> float:
        """Largest time between two values of the set [s]."""
        return (max(self.stamps.values()) - min(self.stamps.values())) / NS


@dataclass
class _Ring:
    """The values of one stream, sorted by stamp, newest last."""

    spec: StreamSpec
    count: int = 0  # values stored, ever
    stamps: list[int] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)  # [s] of the steady clock
    # Of the messages since the ring was cleared, stored or not:
    sent: Stamps = field(default_factory=Stamps)
    last: tuple[int, int, float] | None = None  # the last one: stamp and arrival [ns], arrival [s] by the steady clock
    period: float = math.nan  # [s] from one arrival to the next, the mean of the last few

    @property
    def newest(self) -> int:
        return self.stamps[-1]

    def record_arrival(self, stamp: int, received: int, steady: float) -> None:
        if self.last is not None and (passed := (received - self.last[1]) / NS) > 0:
            self.period = passed if math.isnan(self.period) else self.period + (passed - self.period) / 8
        self.last = (stamp, received or stamp, steady)

    def put(self, stamp: int, value: Any, steady: float) -> None:
        self.count += 1
        i = bisect_right(self.stamps, stamp)
        if i > 0 and self.stamps[i - 1] == stamp:
            self.values[i - 1] = value  # a repeated stamp: the later value counts
        else:
            self.stamps.insert(i, stamp)
            self.values.insert(i, value)
            self.arrivals.insert(i, steady)

    def as_of(self, time: int) -> int:
        """Return the index of the newest value that is not newer than time [ns]; -1: none."""
        return bisect_right(self.stamps, time) - 1

    def drop_before(self, index: int) -> None:
        if index > 0:
            del self.stamps[:index], self.values[:index], self.arrivals[:index]

    def drop_all(self) -> None:
        self.stamps.clear()
        self.values.clear()
        self.arrivals.clear()

    def clear(self) -> None:
        """Forget all messages."""
        self.drop_all()
        self.sent, self.last, self.period = Stamps(), None, math.nan


class Streams:
    """Ring buffers of all streams behind one lock. Any thread may read, one thread at a time may put.

    real_time: the node's clock is that of the machine. A stream is then stale, too, when its limit has passed by the
    monotonic clock `steady` [s] since the last message. With simulated time and bags only their own time counts.
    clock: name of the clock of arrivals in messages.
    """

    def __init__(
        self,
        specs: list[StreamSpec],
        *,
        real_time: bool = False,
        clock: str = 'this machine',
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        if len({s.name for s in specs}) != len(specs) or not specs:
            raise ValueError(f'streams need distinct names, at least one: {[s.name for s in specs]}')
        if not any(s.leads for s in specs):
            raise ValueError('at least one stream must lead: its stamps are the reference times')
        self.specs = {s.name: s for s in specs}
        self._real_time, self._clock, self._steady = real_time, clock, steady
        self.simulated = False  # arrivals are by /clock
        self._rings = {s.name: _Ring(s) for s in specs}
        self._leading = [self._rings[s.name] for s in specs if s.leads]
        self._tolerance = int(FUTURE_TOLERANCE * NS)
        # t_ref is at most this far back while the set can be usable, and values are read as of t_ref.
        self._longest = int(max(s.max_age for s in specs if s.leads) * NS)
        self._keep = self._longest + 2 * self._tolerance
        self._history = 0  # [ns], see `remember`
        self._lock = threading.Lock()
        self._last_now: int | None = None
        self._arrivals = Arrivals()
        self.awaited: int | None = None  # [ns] time of a set that waits for a stream that settles

    def remember(self, history: float) -> None:
        """Add the images that are `history` [s] older to all further sets; 0: leave them out."""
        with self._lock:
            self._keep += round(history * NS) - self._history
            self._history = round(history * NS)

    def put(self, name: str, stamp: int, value: Any, received: int) -> str:
        """Store a value with its stamp and its arrival [ns], both on the reader's clock; arrival 0: no clock runs yet.

        Returns the sentence about a clock that was set back before this message, or ''. Values before that step are
        forgotten: of this stream, or of all where the clock of arrivals itself was set back.
        Raises KeyError for an unknown stream, and ValueError, with the sentence, for a stamp that is ahead of the
        arrival. Such a value is not stored, and the stream is unusable until one arrives that is not ahead.
        """
        steady = self._steady()
        with self._lock:
            ring, note = self._rings[name], ''
            if back := self._arrivals.take(received):
                note = clocks.set_back(self._clock, back)
                self._clear()
                self._arrivals.take(received)
            back = ring.sent.take(stamp, received, clocks.tolerance(self.simulated))
            ring.record_arrival(stamp, received, steady)
            where = f'{name} on {ring.spec.topic}'
            if ring.sent.future:
                raise ValueError(clocks.ahead(where, ring.sent.ahead))
            if back:
                ring.drop_all()
                if stamp:  # messages without stamps are reported as stale
                    note = clocks.set_back(where, back)
            ring.put(stamp, value, steady)
            ring.drop_before(max(len(ring.stamps) - _MAX_VALUES, 0))
            # The value as of the oldest reference time that is still possible must stay; earlier ones are dropped.
            ring.drop_before(ring.as_of(ring.newest - self._keep - int(ring.spec.max_age * NS)))
            return note

    def clear(self) -> None:
        """Forget all values, after the clock jumped."""
        with self._lock:
            self._clear()

    def ages(self, now: int) -> dict[str, float]:
        """Return the age [s] of each stream's newest value at time now [ns]; -1: none received.

        An age is negative while the stamps are ahead of the clock.
        """
        with self._lock:
            return {name: self._age(ring, now) for name, ring in self._rings.items()}

    def _age(self, ring: _Ring, now: int) -> float:
        if ring.last is None:
            return -1.0
        return (now - (ring.newest if ring.stamps and not ring.sent.future else ring.last[0])) / NS

    def align(self, now: int) -> Aligned | Missing:
        """Return the newest complete set at time now [ns], or the first stream without a usable value.

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
            before = self._before(t_ref)
            values, stamps, arrivals = {}, {}, {}
            for name, ring in self._rings.items():
                i = ring.as_of(t_ref)
                values[name], stamps[name], arrivals[name] = ring.values[i], ring.stamps[i], ring.arrivals[i]
                # The best t_ref only grows: values from before it and its history will not be read again.
                ring.drop_before(ring.as_of(t_ref - self._keep) if self._history else i)
            index, arrived = min(r.count for r in self._leading), max(arrivals[r.spec.name] for r in self._leading)
            return Aligned(t_ref, values, stamps, index, arrived, before)

    def _before(self, t_ref: int) -> dict[str, Any]:
        """Return each leading stream's value `history` before the one as of t_ref [ns]; {} where one is missing."""
        found: dict[str, Any] = {}
        for ring in self._leading if self._history else ():
            time = ring.stamps[ring.as_of(t_ref)] - self._history
            if not self._usable(ring, time):
                return {}
            found[ring.spec.name] = ring.values[ring.as_of(time)]
        return found

    def _best(self, now: int) -> int | None:
        """Return the reference time [ns] of the best complete set; None: none is complete."""
        oldest = now - self._longest
        times = {t for r in self._leading for t in r.stamps if oldest <= t <= now + self._tolerance}
        complete = [t for t in times if all(self._usable(r, t) for r in self._rings.values())]
        settled = [t for t in complete if all(self._settled(r, t, now) for r in self._rings.values())]
        self.awaited = max((t for t in complete if t not in settled), default=None)
        return max(settled or complete, key=lambda t: t - 2 * self._apart(t), default=None)

    @staticmethod
    def _settled(ring: _Ring, time: int, now: int) -> bool:
        return ring.newest >= time or now - time >= ring.spec.settles * NS

    def _apart(self, time: int) -> int:
        """Return the largest time between the images as of time [ns]."""
        stamps = [r.stamps[r.as_of(time)] for r in self._leading]
        return max(stamps) - min(stamps)

    @staticmethod
    def _usable(ring: _Ring, time: int) -> bool:
        i = ring.as_of(time)
        return i >= 0 and time - ring.stamps[i] <= ring.spec.max_age * NS

    def _incomplete(self, now: int) -> Missing:
        """Return the first stream without a value at the newest image: each has values, but at no common time."""
        time = max(r.stamps[r.as_of(now + self._tolerance)] for r in self._leading)
        for name, ring in self._rings.items():
            if not self._usable(ring, time):
                i = ring.as_of(time)
                where = f'{(time - ring.stamps[i]) / NS:.3f} s older than' if i >= 0 else 'only later than'
                return Missing(
                    Reason.STALE,
                    name,
                    f'{name} on {ring.spec.topic} has a value {where} the newest image '
                    f'({self._limit(ring)}): check its rate, and that all senders share one clock',
                )
        raise AssertionError('unreachable: a time at which every stream is usable is a complete set')

    def _problem_now(self, ring: _Ring, now: int) -> Missing | None:
        spec = ring.spec
        name, where = spec.name, f'{spec.name} on {spec.topic}'
        if ring.last is None:
            return Missing(
                Reason.MISSING,
                name,
                f'no {name} received on {spec.topic}: check that it is published and the topic name',
            )
        silent = (now - ring.last[1]) / NS
        if self._real_time:
            silent = max(silent, self._steady() - ring.last[2])
        if silent > spec.max_age:
            return Missing(
                Reason.STALE,
                name,
                f'no {where} came for {silent:.3f} s ({self._limit(ring)}): check the sender and the network',
            )
        i = ring.as_of(now + self._tolerance)
        if ring.sent.future or i < 0:
            seconds = ring.sent.ahead if ring.sent.future else (ring.stamps[0] - now) / NS
            return Missing(Reason.FUTURE, name, clocks.ahead(where, seconds))
        age = now - ring.stamps[i]
        if age > spec.max_age * NS:
            cause = 'its header.stamp is zero: the driver must stamp its messages'
            if ring.stamps[i] != 0:
                cause = 'check the sender, the network, and that the clocks agree'
            message = f'newest {where} is {age / NS:.3f} s old ({self._limit(ring)}): {cause}'
            return Missing(Reason.STALE, name, message)
        return None

    @staticmethod
    def _limit(ring: _Ring) -> str:
        """Return the age limit of a stream and its rate as text."""
        of = f'{ring.spec.limit}, ' if ring.spec.limit else ''
        rate = f', it comes at {1 / ring.period:.1f} Hz' if ring.period > 0 else ''
        return f'limit {of}{ring.spec.max_age:g} s{rate}'

    def _clear(self) -> None:
        for ring in self._rings.values():
            ring.clear()
        self._last_now, self._arrivals = None, Arrivals()
