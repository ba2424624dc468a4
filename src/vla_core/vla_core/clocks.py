"""Limits of message stamps, and the messages about stamps beyond them.

Policy, executor, converter, replay and doctor use the same limits and the same words.
"""

import math
from dataclasses import dataclass, field

NS = 1_000_000_000  # [ns] in a second
SECONDS = 1e-9  # [s] in a nanosecond
# [s] A stamp may be ahead of the arrival of its message by this much: synchronised clocks still differ.
FUTURE_TOLERANCE = 0.1
# [s] The same with simulated time. The clock is a message there, too, and a busy machine delivers it late.
SIMULATED_TOLERANCE = 1.0
# [s] A message may be stamped this much before the newest of its topic: they can overtake one another. With a stamp
# further back the sender's clock was set back.
OVERTAKING = 0.02
# [s] Between two control steps a clock and a monotonic one may differ by this much, because a busy machine reads them
# at different times. A larger difference means that the clock was set.
SET_TOLERANCE = 0.05
# [s] largest drop of the least lag of a sender's messages, and the number of messages after which it is judged.
FORWARD, LAG_KNOWN = 0.05, 20
# [s] of a monotonic clock without a step of the simulated one, after which /clock counts as stopped.
STANDS_STILL = 1.0
# Number of control steps in a row, late by simulated time, after which /clock counts as too slow for them.
SLOW_STEPS = 20

NO_CLOCK = 'use_sim_time is set and no /clock has come: start the simulator'
CLOCK_STILL = '/clock stands still: is the simulator paused or gone?'


def tolerance(simulated: bool) -> float:
    """Return by how much a stamp may be ahead of its message's arrival [s]. simulated: arrivals are by /clock."""
    return SIMULATED_TOLERANCE if simulated else FUTURE_TOLERANCE


def ahead(what: str, seconds: float) -> str:
    """Return the message about a stamp that is later than the arrival of its message by `seconds`."""
    return f'{what} is stamped {seconds:.3f} s ahead of the clock: synchronise the clocks'


def set_back(what: str, seconds: float) -> str:
    """Return the message about stamps of one sender that step back by `seconds` between two messages."""
    return f'the clock of {what} was set back by {seconds:.3f} s: synchronise the clocks before the arm is driven'


def set_forward(what: str, seconds: float) -> str:
    """Return the message about stamps of one sender that step towards their arrival by `seconds`."""
    return (
        f'the clock of {what} was set forward by {seconds:.3f} s, or a delay of its messages ended: '
        'synchronise the clocks before the arm is driven'
    )


@dataclass
class Lag:
    """Judges arrival minus stamp of one sender's messages in a recording: it drops when its clock is set forward."""

    least: int = 0  # [ns] since the clock was set last
    _count: int = field(default=0, repr=False)

    def take(self, lag: int) -> float:
        """Judge the next message; return by how much its sender's clock was set forward before it [s], or 0."""
        forward = (self.least - lag) / NS if self._count >= LAG_KNOWN else 0.0
        if forward > FORWARD:
            self._count, self.least = 1, lag
            return forward
        self._count, self.least = self._count + 1, min(lag, self.least) if self._count else lag
        return 0.0


@dataclass
class Arrivals:
    """Judges the reader's own clock by the times at which its messages come."""

    newest: int = 0  # [ns] since the clock was set back last; 0: none

    def take(self, received: int) -> float:
        """Judge the next arrival [ns]; 0: no clock runs yet.

        Returns by how much the clock was set back since the message before [s]; 0: it was not.
        """
        if 0 < received < self.newest - OVERTAKING * NS:
            back, self.newest = (self.newest - received) / NS, received
            return back
        self.newest = max(received, self.newest)
        return 0.0


@dataclass
class Stamps:
    """Judges the stamps of one sender against one another and against the arrival of their messages."""

    newest: int | None = None  # [ns] of the stamps that were not ahead, since the clock was set back last
    ahead: float = 0.0  # [s] the last stamp against the arrival of its message; below zero: it is in the past
    future: bool = False  # the last stamp was too far ahead: its message must not be used
    _lag: int = field(default=0, repr=False)  # [ns] arrival minus stamp of the newest

    def take(self, stamp: int, received: int, tolerance: float = FUTURE_TOLERANCE) -> float:
        """Judge the next message: its stamp and its arrival [ns]; 0 for an arrival that is not known.

        Returns by how much the sender's clock was set back since the message before [s]; 0: it was not. A stamp that
        is ahead by more than the tolerance [s] sets `future` and counts for nothing else. Half the tolerance ends what
        the whole began, so that a clock at the limit does not make the verdict flicker.
        """
        self.ahead = (stamp - received) / NS if received > 0 else 0.0
        self.future = self.ahead > (tolerance / 2 if self.future else tolerance)
        if self.future:
            return 0.0
        back, lag = 0.0, received - stamp
        if self.newest is not None and stamp < self.newest - OVERTAKING * NS:
            # What passed between the two messages was set back, too, where their arrivals are known.
            back = max(self.newest - stamp, lag - self._lag) / NS
            self.newest = None
        if self.newest is None or stamp >= self.newest:
            self.newest, self._lag = stamp, lag
        return back


class SimulatedClock:
    """Judges /clock against a monotonic clock, for a node with use_sim_time."""

    def __init__(self) -> None:
        self._now, self._moved = 0, -math.inf  # [ns] of /clock, and when it came there [s]
        self._stepped, self._late = 0, 0  # [ns] of the last control step; how many in a row were late
        self._interval = 0.0  # [s] between the last two control steps

    def look(self, now: int, monotonic: float) -> str:
        """Return a sentence on the fault of /clock at now [ns], which is `monotonic` [s]; '' without a fault."""
        if now != self._now:
            self._now, self._moved = now, monotonic
        if now == 0:
            return NO_CLOCK
        if monotonic - self._moved > STANDS_STILL:
            return CLOCK_STILL
        if self._late >= SLOW_STEPS:
            return (
                f'control steps come every {1e3 * self._interval:.0f} ms of simulated time, which is too slow for a '
                'steady motion: does /clock come often enough, is the machine fast enough?'
            )
        return ''

    def stepped(self, now: int, longest: float) -> None:
        """Record a control step at now [ns] by /clock. It is late more than `longest` [s] after the one before."""
        self._interval = (now - self._stepped) / NS
        self._late = self._late + 1 if self._interval > longest else 0
        self._stepped = now
