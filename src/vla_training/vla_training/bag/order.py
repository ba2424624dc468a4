"""Sorts the messages of a bag by time.

Messages are ordered by log time (the recorder's clock at arrival), whatever their order in the file. Recorders write a
few ms of disorder, and tools write topic after topic. But after a step back of the recorder's clock the same log times
exist twice, and sorting would mix two periods. So:

1. Log times of a topic may step back in the file. The topic was recorded across such a step in two cases: its repeated
   times hold messages at more than CROWDED times its usual rate, or it steps back by LONG or more. Both sides must have
   at least two messages there: one message alone was overtaken or is damaged. The log times of messages that overtook
   one another are at the usual rate, whatever their order.
2. At the first message after the step, in the order of the file, a new *period* begins. No message of a period comes
   before the end of the one before. Within a period messages come by log time; of equal times the first in the file
   comes first.
3. A clock is not set back every few messages. When the periods would be so short (SHORTEST), the file is in disorder
   and has one period.

So a file in which each topic moves forward has one period, however the topics follow one another. A recording with a
step back of the clock has two periods, in the order of the file. A clock that is set forward leaves a gap in all
topics, like a recorder that was paused.
"""

import heapq
import tempfile
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from vla_core.clocks import set_back
from vla_core.observe.streams import NS
from vla_training.bag.parts import Raw

CROWDED = 1.5  # times the usual rate of a topic
LONG = 1.0  # [s] a step back of log time within a topic that overtaking does not explain
SHORTEST = 50  # [message] of a period in a bag with many
SILENT = 0.25  # [s] shortest gap of all topics that is reported; it must be SPARSE usual intervals long, too
SPARSE = 20
SHOWN = 3  # gaps that are reported one by one
FEW = 3  # number of periods that may be short
LATE = NS  # [ns] disorder up to this is sorted in memory, while reading


@dataclass
class Times:
    """Log time and topic of each message, in the order of the file."""

    times: array = field(default_factory=lambda: array('q'))  # [ns]
    topics: array = field(default_factory=lambda: array('i'))
    numbers: dict[str, int] = field(default_factory=dict)  # topic -> number

    def add(self, topic: str, time: int) -> None:
        self.times.append(min(max(time, 0), 2**63 - 1))
        self.topics.append(self.numbers.setdefault(topic, len(self.numbers)))


@dataclass(frozen=True)
class Plan:
    """Plan for reading a bag in the order of time."""

    cuts: tuple[int, ...]  # message numbers, in the order of the file, at which a new period starts
    late: int  # [ns] largest delay of a message behind a newer one of its period
    steps: tuple[tuple[float, float], ...] = ()  # per cut: time of recording before it, size of the step back [s]
    gaps: tuple[tuple[float, float], ...] = ()  # times without any message: time of recording before it, length [s]

    def sentences(self) -> list[str]:
        """Return a sentence per fault of the order."""
        lines = [
            f'after {after:.1f} s of the bag, {set_back("the computer that recorded it", size)}'
            for after, size in self.steps
        ]
        lines += [
            f'after {after:.1f} s of the bag, no message of any topic came for {length:.3f} s: '
            'its recorder, or the simulator, was paused or lost them, or its clock was set forward'
            for after, length in self.gaps[:SHOWN]
        ]
        if len(self.gaps) > SHOWN:
            lines.append(f'there are {len(self.gaps)} such gaps')
        if self.late > LATE:
            lines.append(
                f'messages of the bag are out of the order of time by up to {self.late / NS:.1f} s: they were sorted'
            )
        return lines


def plan(found: Times) -> Plan:
    """Return the plan by the rule above."""
    times, topics = np.array(found.times, np.int64), np.array(found.topics, np.int32)
    by_topic = [np.flatnonzero(topics == number) for number in range(len(found.numbers))]
    cuts, steps, start = list[int](), list[tuple[float, float]](), 0
    while (step := _first_step(times, by_topic, start)) is not None:
        cut, size = step
        start, elapsed = cut, int(np.ptp(times[start:cut])) / NS
        cuts.append(cut)
        steps.append((elapsed + (steps[-1][0] if steps else 0.0), size))
        if len(cuts) > FEW and cut < SHORTEST * len(cuts):
            cuts, steps = [], []
            break
    late, gaps = 0, list[tuple[float, float]]()
    for a, b, (elapsed, _) in zip([0, *cuts], [*cuts, len(times)], [(0.0, 0.0), *steps], strict=True):
        if b > a:
            late = max(late, int((np.maximum.accumulate(times[a:b]) - times[a:b]).max()))
            gaps += _gaps(np.sort(times[a:b]), elapsed)
    return Plan(tuple(cuts), late, tuple(steps), tuple(gaps))


def _gaps(times: np.ndarray, elapsed: float) -> list[tuple[float, float]]:
    """Return (time of recording before it, length) [s] of each gap of all topics. elapsed [s]: before these times."""
    if len(times) < 2:
        return []
    apart = np.diff(times)
    long = np.flatnonzero(apart > max(SILENT * NS, SPARSE * np.median(apart)))
    return [(elapsed + int(times[i] - times[0]) / NS, int(apart[i]) / NS) for i in long]


def _first_step(times: np.ndarray, by_topic: list[np.ndarray], start: int) -> tuple[int, float] | None:
    """Return the number of the first message after a step back of the clock, and its size [s], from `start` on."""
    first, sizes = None, list[tuple[int, float]]()
    for where in by_topic:
        own = where[np.searchsorted(where, start) :]
        t = times[own]
        k = step_back(t)
        if k:
            usual = _interval(np.diff(t))
            sizes.append((usual, (int(t[k - 1]) + usual - int(t[k])) / NS))
            first = int(own[k]) if first is None else min(first, int(own[k]))
    return (first, min(sizes)[1]) if first is not None else None  # the fastest topic gives the size best


def _interval(steps: np.ndarray) -> int:
    """Return the median of the positive steps [ns]."""
    forward = steps[steps > 0]
    return max(1, int(np.median(forward))) if len(forward) else NS


def step_back(t: np.ndarray) -> int:
    """Return the index of a topic's first message after a step back of the clock, by rule 1 above; 0: there is none.

    t: log times [ns] in the order of the file.
    """
    if len(t) < 4:
        return 0
    top = np.maximum.accumulate(t)
    behind = np.flatnonzero(t < top)
    if not len(behind):
        return 0
    usual = _interval(np.diff(np.sort(t)))  # sorted: where many overtook one another the steps in the file are longer
    starts = behind[np.flatnonzero(np.diff(behind, prepend=-2) != 1)]  # of each run of messages behind the newest one
    lows = np.minimum.reduceat(t, starts)
    for b in starts[top[starts - 1] - lows >= 2 * usual]:
        high = top[b - 1]
        end = int(np.searchsorted(top, high, side='right'))
        k = int(b) + int(np.argmin(np.diff(t[b - 1 : end])))
        depth = int(high - t[k])
        before = int(np.count_nonzero(t[np.searchsorted(top, t[k], side='right') : k] > t[k]))
        after = int(np.count_nonzero(t[k:end] >= t[k]))
        if before < 2 or after < 2 or depth < 2 * usual:
            continue
        if depth >= LONG * NS or before + after > CROWDED * depth / usual + 1:
            return step_back(t[:k]) or k
    return 0


def in_order(raws: Iterator[Raw], plan: Plan) -> Iterator[tuple[int, Raw]]:
    """Yield (period, message) by the plan.

    raws: the messages of which the plan was made; without cuts some may be missing. Disorder up to LATE is sorted in
    memory, more through a temporary file. Raises ValueError when the disk is full.
    """
    cuts, period, held = set(plan.cuts), 0, list[tuple[int, int, Raw]]()
    newest = -1
    with _Spool() if plan.late > LATE else _Memory() as store:
        for number, raw in enumerate(raws):
            if number in cuts:
                yield from _rest(store, held, period)
                period, newest = period + 1, -1
            newest = max(newest, raw.time)
            if not plan.late:
                yield period, raw
                continue
            heapq.heappush(held, (raw.time, number, store.put(raw)))
            while held[0][0] <= newest - plan.late:
                yield period, store.get(heapq.heappop(held)[2])
        yield from _rest(store, held, period)


def _rest(store: '_Memory', held: list[tuple[int, int, Raw]], period: int) -> Iterator[tuple[int, Raw]]:
    while held:
        yield period, store.get(heapq.heappop(held)[2])


class _Memory:
    """Keeps messages as they are."""

    def __enter__(self) -> '_Memory':
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def put(self, raw: Raw) -> Raw:
        return raw

    def get(self, raw: Raw) -> Raw:
        return raw


class _Spool(_Memory):
    """Keeps the bytes of messages in a temporary file that has no name."""

    def __enter__(self) -> '_Spool':
        self._file = tempfile.TemporaryFile()
        self._size = 0
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def put(self, raw: Raw) -> Raw:
        place = np.array([self._size, len(raw.data)], np.int64).tobytes()
        try:
            self._file.write(raw.data)
        except OSError as error:
            raise ValueError(
                f'the bag is not in the order of time, and there is no room to sort it in {tempfile.gettempdir()} '
                f'({error}): set TMPDIR to a folder with room for it'
            ) from error
        self._size += len(raw.data)
        return raw._replace(data=place)

    def get(self, raw: Raw) -> Raw:
        at, size = np.frombuffer(raw.data, np.int64)
        self._file.seek(int(at))
        data = self._file.read(int(size))
        self._file.seek(0, 2)
        return raw._replace(data=data)


def times_of(raws: Iterator[Raw], wanted: Callable[[str], bool]) -> Times:
    """Return the log times of the messages of the wanted topics."""
    found = Times()
    for raw in raws:
        if wanted(raw.topic):
            found.add(raw.topic, raw.time)
    return found
