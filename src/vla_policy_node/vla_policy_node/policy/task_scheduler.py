"""Background decode tasks: single steps of slow decodes, such as a plan or an image, in the gaps between actions.

A step never delays an action that is due. It is expected to take as long as the slowest but one of the last seconds. If
it would not end before the next set of images is due, it waits for a longer gap. With the slowest instead, one bad
moment of the machine would stop a task for some seconds. Gaps are measured in wall time, whatever the clock of the
observations does, because the model takes wall time.
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

MARGIN, SLACK = 1.1, 0.002  # a step may take a tenth and 2 ms longer than steps of its task are expected to take
MEMORY = 30.0  # [s] for which a slow step counts: two bad moments of the machine must not stop a task for good
SETS, FEWEST = 20, 4  # most and fewest sets of images from which the next one is estimated
PATIENCE = 30  # gaps in a row that are too short for a step, after which that is reported
TRIALS = 4  # decodes before the first real one; the first of these does not count, because it allocates


class FramePeriodEstimator:
    """Estimates when the next set of images arrives from those before: stamps are regular, arrivals are late.

    due: [s] of wall time, the earliest arrival of the next set that is acted on; -inf while it is unknown.
    """

    def __init__(self) -> None:
        self.due = -math.inf
        self._sets: deque[tuple[int, float]] = deque(maxlen=SETS)  # t_ref [ns], arrival [s]

    def add(self, t_ref: int, arrived: float) -> None:
        """Record a set that was acted on: its reference time [ns] and its arrival [s] of wall time."""
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
        """The next arrival on the line of arrivals over stamps. Each arrival has a delay of its own.

        The slope is the median of the slopes of all pairs (Theil and Sen). The line goes through the least delayed.
        """
        t = np.array([t for t, _ in self._sets]) - self._sets[-1][0]  # [ns] 0 is the newest
        arrived = np.array([a for _, a in self._sets])
        i, j = np.triu_indices(len(t), 1)
        slope = float(np.median((arrived[j] - arrived[i]) / (t[j] - t[i])))
        step = slope * float(np.diff(t).min())
        return float((arrived - slope * t).min()) + step


class DecodeTask:
    """One kind of slow decode, of which at most one runs.

    name: in messages and diagnostics. rate: most starts per second of observation time [Hz]. start, trial: start a
    decode of an observation; that of `trial` has few steps, but a first, a middle and a last one. wanted: whether the
    result has a receiver. deliver: takes the owner, see TaskScheduler, and the result. report: takes a message to log,
    and the exception if there was one. All are called in the worker thread.
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
        report: Callable[[str, Exception | None], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name, self._interval = name, round(NS / rate)
        self._start, self._trial, self._wanted, self._deliver, self._report = start, trial, wanted, deliver, report
        self._clock = clock
        self.done = self.dropped = 0
        self.failure = self.starving = ''  # what is wrong now, one sentence each
        self._first = LongestButOne(MEMORY)  # separate: the first step also starts the decode and fills a cache
        self._later = LongestButOne(MEMORY)
        self._cost_first = self._cost_later = 0.0  # [actions] duration of a step
        self._job: Job[Any] | None = None
        self._next: int | None = None  # [ns] of observation time: the next start is due; None: at once
        self._tight, self._reported = 0, False

    def warm_up(self, example: Callable[[int], Observation], act: Callable[[Observation], Any]) -> None:
        """Measure the duration of a step in units of an action: that ratio holds on a busy and on an idle machine.

        example: makes an observation of a shade of grey. act: acts on it. Raises what the model raises.
        """
        acts, firsts, laters = [], [], []
        for trial in range(TRIALS):
            observation = example(trial)  # a new image each time, as for a real action
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
        """Expected durations of a first and of a later step [s], where an action takes `act` seconds.

        Each is the longer of the longest but one of late, and of what `warm_up` measured in units of an action.
        """
        now = self._clock()
        return max(self._first.value(now), self._cost_first * act), max(self._later.value(now), self._cost_later * act)

    def need(self, act: float) -> float:
        """Return the free time that the next step needs [s], where an action takes `act` [s]."""
        first, later = self.expected(act)
        return (first if self._job is None else later) * MARGIN + SLACK

    @property
    def deadline(self) -> int:
        """The observation time [ns] by which the decode that is ready should be complete to keep the rate."""
        assert self._next is not None
        return self._next if self._job is not None else self._next + self._interval

    def ready(self, observation: Observation) -> bool:
        """Whether there is a step to do, of the decode that runs or of one of this observation that is due."""
        if self._job is not None:
            return True
        if not self._wanted():
            self._next, self._tight, self.starving = None, 0, ''
            return False
        if (
            self._next is None or self._next - observation.t_ref > self._interval
        ):  # never started, or the clock went back
            self._next = observation.t_ref
        return observation.t_ref >= self._next

    def drop(self) -> None:
        """Drop the decode that runs; the next one may start at once."""
        self.dropped += self._job is not None
        self._job = self._next = None
        self._tight, self.failure, self.starving = 0, '', ''

    def judge(self, room: float, need: float) -> None:
        """Start a gap of `room` [s] in which a step takes `need` [s]; report it if many gaps in a row are short."""
        self._tight = 0 if need <= room else self._tight + 1
        if self._tight >= PATIENCE:
            self.starving = (
                f'{self.name} waits: a step needs {need * 1e3:.0f} ms, between two actions {max(room, 0) * 1e3:.0f} ms '
                f'are free. Lower rate, set decode_cached, take a faster engine, or set {self.name}_rate to 0'
            )
            if not self._reported:
                self._report(self.starving, None)
            self._reported = True

    def step(self, owner: Any, observation: Observation) -> None:
        """Do one step. A failure is reported, not raised; the decode is tried again when the next one is due."""
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
                self._report(message, error)
            self.failure = message
        now = self._clock()
        longest.add(now, now - begun)


class TaskScheduler:
    """Chooses the next step. One thread calls it; `tasks` may be read from others.

    An owner is the assignment and epoch that a decode is for, compared by ==. Steps are done for the owner of the
    newest action alone, and decodes of another owner are dropped.
    """

    def __init__(self, tasks: list[DecodeTask], *, clock: Callable[[], float] = time.monotonic) -> None:
        self.tasks, self._clock = tasks, clock
        self._owner: Any = None
        self._observation: Observation | None = None
        self._period, self._acts = FramePeriodEstimator(), Window(SETS)

    def warm_up(self, example: Callable[[int], Observation], act: Callable[[Observation], Any]) -> None:
        """Measure the steps of each task, see DecodeTask.warm_up."""
        for task in self.tasks:
            task.warm_up(example, act)

    def drop(self) -> None:
        """Drop all decodes that run."""
        self._owner = self._observation = None
        self._period.clear()  # the first set of another instruction may be one that came long ago
        for task in self.tasks:
            task.drop()

    def acted(self, owner: Any, observation: Observation, arrived: float, taken: float) -> None:
        """An action took `taken` seconds: a gap begins. Its observation was complete at `arrived` [s] of the clock."""
        before = self._observation
        if owner != self._owner or before is None or observation.t_ref < before.t_ref:
            self.drop()
        self._owner, self._observation = owner, observation
        self._period.add(observation.t_ref, arrived)
        self._acts.add(taken)
        if (due := self._period.due) > -math.inf:
            room = due - self._clock()
            for task in self.tasks:
                if task.ready(observation):
                    task.judge(room, task.need(self.act))

    @property
    def act(self) -> float:
        """The median duration of an action [s]; NaN before the first."""
        return self._acts.percentiles().p50

    def step(self, owner: Any) -> bool:
        """Do one step of the most urgent task whose step fits the gap. Returns False where none fits."""
        observation = self._observation
        if observation is None or owner != self._owner:
            return False  # an action comes first
        ready = [task for task in self.tasks if task.ready(observation)]
        if not ready:
            return False
        act, due = self.act, self._period.due
        for task in sorted(ready, key=lambda task: task.deadline):
            if self._clock() + task.need(act) <= due:
                task.step(owner, observation)
                return True
        return False
