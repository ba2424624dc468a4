"""Where the robot of a bag was driven: only there a chunk can be compared with what it did."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vla_bringup.demo.report import Series, success_time
from vla_msgs.msg import ExecutorStatus

NS = 1_000_000_000
EXECUTING = ExecutorStatus.STATE_EXECUTING
STATUS_MAX_AGE = 1.0  # [s] the executor reports at 10 Hz: one that is silent for longer drives nothing
REST = 0.5  # [s] an arm that moves less than MOVED within this time before and after an instant is at rest then
LOOK = 0.05  # [s] between two states that this is judged by
MOVED = 5e-3  # [rad] of any joint
MOVED_GRIPPER = 2e-3  # [m]
LOST = 0.5  # [s] behind a gap of joint states as long as this the arm may have been put elsewhere
LEAP, LEAP_SPEED = 0.05, 2.0  # [rad] between two joint states, and times the joint's limit: put there, not moved there
APART = NS // 2  # [ns] between what was before a clock was set back and what comes after: no time of the bag
SETTLE = 0.5  # [s] after a step of the clock messages of before may still come

# Parts of the comparisons. The first is the headline, those up to NOT_COMPARED are the rest.
DRIVEN, IDLE, DONE, OTHER, STILL, STEP, PAST, ACROSS, UNKNOWN = range(9)
PARTS = (
    'driven',
    'the executor did not execute',
    'after the success',
    'another instruction was in force',
    'the arm was at rest',
    'just after a clock step',
    'steps past the end of the driven stretch',
    'steps across a reset, a clock step or a new instruction',
    'steps without a recorded joint state',
)
NOT_COMPARED = (ACROSS, UNKNOWN)


@dataclass
class Events:
    """What a bag says about who drove the arm and why. Times [ns] grow over the whole bag."""

    executor: Series = field(default_factory=Series)  # (state, epoch, source)
    episodes: Series = field(default_factory=Series)  # what to call each
    success: Series = field(default_factory=Series)  # bool
    words: Series = field(default_factory=Series)  # the instruction in force, as the bag says
    # A clock was set back: from the last time before to the first after it. Nothing lies between.
    steps: list[tuple[int, int]] = field(default_factory=list)
    end: int = 0


@dataclass(frozen=True)
class Stretch:
    """A time in which nothing changed that decides about comparisons."""

    start: int  # [ns]
    end: int  # [ns]
    part: int  # DRIVEN or why not, up to STEP
    whole: int  # stretches with the same number belong together: no reset, new instruction or clock step in between
    episode: int  # index into Events.episodes; -1: before the first, or there are none
    words: str  # the instruction in force; '': unknown


@dataclass(frozen=True)
class Timeline:
    """All of a bag in stretches, without gaps.

    by_executor: else the motion of the arm alone decided. by_words: a chunk counts only where the bag says the words
    that it follows; else the bag never says them, and it counts anywhere.
    """

    stretches: list[Stretch]
    by_executor: bool
    by_words: bool = True

    @property
    def starts(self) -> np.ndarray:
        """(n,) [ns]"""
        return np.array([s.start for s in self.stretches], np.int64)

    def at(self, times: np.ndarray) -> np.ndarray:
        """Index of the stretch at each of times [ns]; the first or last for what is outside."""
        return np.clip(np.searchsorted(self.starts, times, side='right') - 1, 0, len(self.stretches) - 1)

    def seconds(self, start: int, end: int) -> Counter[int]:
        """Part -> time [s] between start and end [ns]."""
        found: Counter[int] = Counter()
        for s in self.stretches:
            if (length := min(s.end, end) - max(s.start, start)) > 0:
                found[s.part] += length / NS  # type: ignore[assignment]
        return found


def timeline(
    events: Events,
    arm: tuple[np.ndarray, np.ndarray],
    opening: tuple[np.ndarray, np.ndarray],
    velocity: np.ndarray,
    instruction: str = '',
) -> Timeline:
    """arm, opening: stamps (k,) [ns] and values (k, dof) [rad], (k, 1) [m] of what the robot did.

    velocity: (dof,) [rad/s] limits of the joints. instruction: what the model is told all the time; where the bag says
    these words anywhere, only the times at which it does count as driven with them.
    """
    executor = _Steps(events.executor, STATUS_MAX_AGE)
    by_executor = any(state == EXECUTING for state, *_ in events.executor.values)
    by_words = not instruction or instruction in events.words.values
    successes = _successes(events)
    cuts = sorted({*(end for _, end in events.steps), *_breaks(*arm, velocity)})
    moves = [_Steps(_moving(*arm, MOVED)), _Steps(_moving(*opening, MOVED_GRIPPER))]
    words, episodes = _Steps(events.words), _Steps(events.episodes)
    after = {t for start, end in events.steps for t in (start, end + int(SETTLE * NS))}
    ends = [t for span in successes for t in span]
    times = {*events.episodes.times, *events.words.times, *cuts, *after, *ends, *executor.changes}
    times |= {t for m in moves for t in m.changes}
    last = max([events.end, *arm[0][-1:].tolist(), *times]) + 1
    # Nothing before the first known time is told apart from it.
    points = sorted({min(times, default=0), *times, last})
    stretches: list[Stretch] = []
    key: Any = None
    whole_key: Any = None
    whole = -1
    for start, end in itertools.pairwise(points):
        said, episode = words.at(start) or '', episodes.index(start)
        state, epoch, source = executor.at(start) or (-1, -1, '')
        if any(before <= start < step for before, step in events.steps):
            part = UNKNOWN
        elif by_executor and state != EXECUTING:
            part = IDLE
        elif any(a <= start < b for a, b in successes):
            part = DONE
        elif by_words and instruction and said and said != instruction:
            part = OTHER
        elif not any(m.at(start) for m in moves):
            part = STILL
        elif any(step <= start < step + SETTLE * NS for _, step in events.steps):
            part = STEP
        else:
            part = DRIVEN
        found = (int(np.searchsorted(cuts, start, side='right')), episode, said)
        whole += found != whole_key
        whole_key = found
        if (new := (part, whole, epoch, source)) == key:
            stretches[-1] = Stretch(stretches[-1].start, end, part, whole, episode, said)
        else:
            stretches.append(Stretch(start, end, part, whole, episode, said))
        key = new
    return Timeline(stretches or [Stretch(0, last, STILL, 0, -1, '')], by_executor, by_words)


def parts_of(
    line: Timeline, t_ref: np.ndarray, due: np.ndarray, known: np.ndarray, instructions: Sequence[str]
) -> np.ndarray:
    """(n, horizon) int8, the part of each step. t_ref (n,), due (n, horizon) [ns]; known: a state was recorded then;
    instructions: of the n chunks."""
    here = line.at(t_ref)
    label = np.array([s.part for s in line.stretches], np.int8)[here]
    end = np.array([s.end for s in line.stretches], np.int64)
    whole = np.array([s.whole for s in line.stretches], np.int64)
    said = [line.stretches[i].words for i in here]
    other = [line.by_words and '' not in (a, b) and a != b for a, b in zip(instructions, said, strict=True)]
    label[(label == DRIVEN) & np.array(other)] = OTHER  # made for new words, of images from before them
    found = np.repeat(label[:, None], due.shape[1], 1)
    past = due >= end[here][:, None]
    found[past & (label == DRIVEN)[:, None]] = PAST
    found[whole[line.at(due)] != whole[here][:, None]] = ACROSS
    found[~known & (found != ACROSS)] = UNKNOWN
    return found


class _Steps:
    """A series that keeps each value until the next one; max_age [s]: or for so long."""

    def __init__(self, series: Series, max_age: float = 0.0) -> None:
        self._times = np.sort(np.array(series.times, np.int64))
        self._values, self._age = series.in_order(), int(max_age * NS)
        self.changes = self._times.tolist()
        if max_age:
            self.changes += (self._times + self._age).tolist()

    def index(self, time: int) -> int:
        """Of the value at time [ns]; -1: none."""
        i = int(np.searchsorted(self._times, time, side='right')) - 1
        return -1 if i >= 0 and self._age and time - self._times[i] >= self._age else i

    def at(self, time: int) -> Any:
        """The value at time [ns]; None: none."""
        i = self.index(time)
        return self._values[i] if i >= 0 else None


def _successes(events: Events) -> list[tuple[int, int]]:
    """From each success that held to the end of its episode [ns]."""
    spans = []
    for start, end in itertools.pairwise([*sorted(events.episodes.times), events.end + NS]):
        if (since := success_time(events.success, start, end)) is not None:
            spans.append((since, end))
    return spans


def _breaks(stamps: np.ndarray, positions: np.ndarray, velocity: np.ndarray) -> list[int]:
    """[ns] where the arm was put elsewhere, or may have been: it cannot have moved from one state to the next."""
    if len(stamps) < 2:
        return []
    apart = np.diff(stamps) / NS
    moved = np.abs(np.diff(positions, axis=0))
    leaps = ((moved > LEAP) & (moved > LEAP_SPEED * velocity * apart[:, None])).any(1)
    return stamps[1:][leaps | (apart > LOST)].tolist()


def _moving(stamps: np.ndarray, values: np.ndarray, least: float) -> Series:
    """From each change on [ns], whether any of values (k, n) moves by more than `least` within REST around."""
    found = Series()
    _, kept = np.unique(stamps // int(LOOK * NS), return_index=True)
    times, places = stamps[kept], values[kept]
    first = np.searchsorted(times, times - int(REST * NS))
    last = np.searchsorted(times, times + int(REST * NS), side='right')
    for time, i, j in zip(times.tolist(), first, last, strict=True):
        moves = bool(np.ptp(places[i:j], axis=0).max() > least)
        if not found.values or moves != found.values[-1]:
            found.add(time, moves)
    return found
