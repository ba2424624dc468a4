"""Plan and imagine beside act: single steps of slow decodes in the gaps between actions.

A due action never waits for a step that was not expected to be over by then: a step begins only if it would end before
the next set of images is due, were it as slow as the slowest but one of late; otherwise it waits for a longer gap. Were
it the slowest, one bad moment of the machine would end a kind for as long as it is remembered. Gaps are measured on the
wall, whatever the clock of the observations does, because that is where the model takes its time.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from vla_core.observe.streams import NS
from vla_core.stats import LongestButOne, Window
from vla_model.policy import Job
from vla_model.types import Observation

MARGIN, SLACK = 1.1, 0.002  # a step may take a tenth and 2 ms longer than is expected of its kind
MEMORY = 30.0  # [s] for which a slow step counts: two bad moments of the machine shall not end a kind for good
SETS, FEWEST = 20, 4  # how many sets of images tell when the next one comes, at most and at least
PATIENCE = 30  # gaps in a row that are too short for a step, after which that is told
TRIALS = 4  # decodes before the first real one; of these the first is not counted, it finds nothing allocated


class Pace:
    """When the next set that is acted on is to be expected, from those before: stamps are regular, arrivals late.

    due: [s of wall time] the earliest time at which it is to be expected; -inf while that is unknown.
    """

    def __init__(self) -> None:
        self.due = -math.inf
        self._sets: deque[tuple[int, float]] = deque(maxlen=SETS)  # t_ref [ns], arrival [s]

    def add(self, t_ref: int, arrived: float) -> None:
        """A set that was acted on: its time [ns], and when it was here [s of wall time]."""
        if self._sets and t_ref < self._sets[-1][0]:
            self.clear()  # the clock went back
        if not self._sets or t_ref > self._sets[-1][0]:
            self._sets.append((t_ref, arrived))
            if len(self._sets) >= FEWEST:
                self.due = self._expect()

    def clear(self) -> None:
        self._sets.clear()
        self.due = -math.inf

    def _expect(self) -> float:
        """Arrivals lie on a line over the stamps, each with a delay of its own.

        The slope is the median of those between all pairs (Theil and Sen), the line goes through the least delayed.
        """
        t = np.array([t for t, _ in self._sets]) - self._sets[-1][0]  # [ns] 0 is the newest
        arrived = np.array([a for _, a in self._sets])
        i, j = np.triu_indices(len(t), 1)
        slope = float(np.median((arrived[j] - arrived[i]) / (t[j] - t[i])))
        step = slope * float(np.diff(t).min())
        return float((arrived - slope * t).min()) + step


class Work:
    """One kind of slow decode, of which at most one is under way.

    rate: most starts per second of observation time [Hz]. start, trial: begin a decode; that of `trial` has few steps,
    among them each sort that a real one has. wanted: whether anybody listens. deliver: takes an owner and a result.
    tell: takes what there is to log, and the exception if there was one. All are called in the worker's thread.
    """

    def __init__(
        self,
        name: str,
        rate: float,
        *,
        start: Callable[[Observation], Job[Any]],
        trial: Callable[[Observation], Job[Any]],
        wanted: Callable[[], bool],
        deliver: Callable[[Any, Any], None],
        tell: Callable[[str, Exception | None], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name, self._interval = name, round(NS / rate)
        self._start, self._trial, self._wanted, self._deliver, self._tell = start, trial, wanted, deliver, tell
        self._clock = clock
        self.done = self.dropped = 0
        self.failure = self.starving = ''  # what is wrong now
        self._first = LongestButOne(MEMORY)  # apart: it fills a cache, and is started, too
        self._later = LongestButOne(MEMORY)
        self._cost_first = self._cost_later = 0.0  # steps per action: how much longer than an action they take
        self._job: Job[Any] | None = None
        self._next: int | None = None  # [ns] of observation time: the next start is due; None: at once
        self._tight, self._told = 0, False

    def warm_up(self, example: Callable[[int], Observation], act: Callable[[Observation], Any]) -> None:
        """Measures what a step costs, in units of an action: that holds on a machine that is busy now and idle later.

        example: takes a shade of grey, gives an observation.
        """
        acts, firsts, laters = [], [], []
        for trial in range(TRIALS):
            observation = example(trial)  # a new image each time, as act finds it
            begun = self._clock()
            act(observation)
            acts.append(self._clock() - begun)
            times, over, job = [], False, None
            while not over:
                begun = self._clock()
                job = job or self._trial(observation)
                over = job.step()
                times.append(self._clock() - begun)
            firsts.append(times[0])
            laters.append(max(times[1:], default=times[0]))
        usual = max(min(acts[1:]), 1e-6)
        self._cost_first, self._cost_later = min(firsts[1:]) / usual, min(laters[1:]) / usual

    def expected(self, act: float) -> tuple[float, float]:
        """[s] that a first and a later step are expected to take: as the longest but one of late, or what they cost
        where an action takes `act` seconds, if that is more.
        """
        now = self._clock()
        return max(self._first.value(now), self._cost_first * act), max(self._later.value(now), self._cost_later * act)

    def need(self, act: float) -> float:
        """[s] that must be free for the next step, where an action takes `act` seconds."""
        first, later = self.expected(act)
        return (first if self._job is None else later) * MARGIN + SLACK

    @property
    def deadline(self) -> int:
        """[ns] of observation time, by which what is ready should be done to keep the rate."""
        assert self._next is not None
        return self._next if self._job is not None else self._next + self._interval

    def ready(self, observation: Observation) -> bool:
        """Whether there is a step to do, of what is under way or of a decode of this observation that is due."""
        if self._job is not None:
            return True
        if not self._wanted():
            self._next, self._tight, self.starving = None, 0, ''
            return False
        if self._next is None or self._next - observation.t_ref > self._interval:  # never begun, or the clock went back
            self._next = observation.t_ref
        return observation.t_ref >= self._next

    def drop(self) -> None:
        """Forgets what is under way; the next one may start at once."""
        self.dropped += self._job is not None
        self._job = self._next = None
        self._tight, self.failure, self.starving = 0, '', ''

    def judge(self, room: float, need: float) -> None:
        """A gap of `room` seconds begins, and there is a step to do: tells if there has been no room for long."""
        self._tight = 0 if need <= room else self._tight + 1
        if self._tight >= PATIENCE:
            self.starving = (
                f'{self.name} waits: a step needs {need * 1e3:.0f} ms, between two actions {max(room, 0) * 1e3:.0f} ms '
                f'are free. Lower rate, set decode_cached, take a faster engine, or set {self.name}_rate to 0'
            )
            if not self._told:
                self._tell(self.starving, None)
            self._told = True

    def step(self, owner: Any, observation: Observation) -> None:
        """One forward. Never raises: what fails is told, and tried again when the next one is due."""
        begun, longest = self._clock(), self._first if self._job is None else self._later
        self.starving = ''
        try:
            if self._job is None:
                assert self._next is not None
                self._next = max(self._next + self._interval, observation.t_ref)
                self._job = self._start(observation)
            if self._job.step():
                job, self._job = self._job, None
                self._deliver(owner, job.result)
                self.done, self.failure = self.done + 1, ''
        except Exception as error:
            self._job = None
            message = f'{self.name} failed, trying again: {error}'
            if not self.failure:
                self._tell(message, error)
            self.failure = message
        now = self._clock()
        longest.add(now, now - begun)


class Schedule:
    """Which step comes next, if any. One thread calls it; `works` may be looked at from others.

    An owner is what a decode is for, compared by ==: a step is only done for the owner of the newest action, and what
    belongs to another one is dropped.
    """

    def __init__(self, works: list[Work], *, clock: Callable[[], float] = time.monotonic) -> None:
        self.works, self._clock = works, clock
        self._owner: Any = None
        self._observation: Observation | None = None
        self._pace, self._acts = Pace(), Window(SETS)

    def warm_up(self, example: Callable[[int], Observation], act: Callable[[Observation], Any]) -> None:
        """Measures the steps of each kind, see Work. Raises what the model raises."""
        for work in self.works:
            work.warm_up(example, act)

    def drop(self) -> None:
        """Forgets what is under way."""
        self._owner = self._observation = None
        self._pace.clear()  # of another instruction: its first set may be one that came long ago
        for work in self.works:
            work.drop()

    def acted(self, owner: Any, observation: Observation, arrived: float, taken: float) -> None:
        """An action was given, in `taken` seconds, for this observation, which was complete at `arrived` [s of the
        clock]: a gap begins."""
        before = self._observation
        if owner != self._owner or before is None or observation.t_ref < before.t_ref:
            self.drop()
        self._owner, self._observation = owner, observation
        self._pace.add(observation.t_ref, arrived)
        self._acts.add(taken)
        if (due := self._pace.due) > -math.inf:
            room = due - self._clock()
            for work in self.works:
                if work.ready(observation):
                    work.judge(room, work.need(self.act))

    @property
    def act(self) -> float:
        """[s] that an action takes, in the middle; NaN before there was one."""
        return self._acts.percentiles().p50

    def step(self, owner: Any) -> bool:
        """One step, of the decode that must be done first among those whose step fits. False: none does."""
        observation = self._observation
        if observation is None or owner != self._owner:
            return False  # an action comes first
        ready = [work for work in self.works if work.ready(observation)]
        if not ready:
            return False
        act, due = self.act, self._pace.due
        for work in sorted(ready, key=lambda work: work.deadline):
            if self._clock() + work.need(act) <= due:
                work.step(owner, observation)
                return True
        return False
