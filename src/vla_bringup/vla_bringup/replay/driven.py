"""Finds the driven time of a bag: only there a chunk can be compared with the motion of the robot."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vla_bringup.demo.report import Series, success_time
from vla_core.clocks import NS
from vla_msgs.msg import ExecutorStatus

EXECUTING = ExecutorStatus.STATE_EXECUTING
STATUS_MAX_AGE = 1.0  # [s] the executor reports at 10 Hz: after a longer silence it does not drive
REST = 0.5  # [s] half of the window in which an arm at rest moves less than MOVED
LOOK = 0.05  # [s] between two states of that comparison
MOVED = 5e-3  # [rad] of any joint
MOVED_GRIPPER = 2e-3  # [m]
LOST = 0.5  # [s] after a longer gap of joint states the arm may have been reset
LEAP, LEAP_SPEED = (
    0.05,
    2.0,
)  # [rad] between two joint states, and factor of the joint's speed limit: a larger step is a reset, no motion
APART = NS // 2  # [ns] inserted where a clock was set back
SETTLE = 0.5  # [s] after a clock step in which earlier messages may be received

# Parts of the comparisons. DRIVEN is the headline, the parts up to NOT_COMPARED are the rest.
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
    """Events of a bag that decide about driven time. Times [ns] increase over the whole bag."""

    executor: Series = field(default_factory=Series)  # (state, epoch, source)
    episodes: Series = field(default_factory=Series)  # name of each
    success: Series = field(default_factory=Series)  # bool
    words: Series = field(default_factory=Series)  # instruction in force in the bag
    # A clock was set back: (last time before, first time after), without messages between them.
    steps: list[tuple[int, int]] = field(default_factory=list)
    end: int = 0


@dataclass(frozen=True)
class Stretch:
    """A span of time with one part, one episode and one instruction."""

    start: int  # [ns]
    end: int  # [ns]
    part: int  # DRIVEN or a reason, up to STEP
    whole: int  # equal numbers: no reset, new instruction or clock step between the stretches
    episode: int  # index into Events.episodes; -1: before the first, or without episodes
    words: str  # the instruction in force; '': unknown


@dataclass(frozen=True)
class Timeline:
    """A whole bag in stretches, without gaps.

    by_executor: whether the executor's status decided, or the motion of the arm alone. by_words: whether the bag has
    the instruction of the chunks anywhere; then a chunk counts only where that instruction is in force.
    """

    stretches: list[Stretch]
    by_executor: bool
    by_words: bool = True

    @property
    def starts(self) -> np.ndarray:
        """(n,) [ns]"""
        return np.array([s.start for s in self.stretches], np.int64)

    def at(self, times: np.ndarray) -> np.ndarray:
        """Return the index of the stretch at each of times (n,) [ns]; outside the bag the first or last."""
        return np.clip(np.searchsorted(self.starts, times, side='right') - 1, 0, len(self.stretches) - 1)

    def seconds(self, start: int, end: int) -> Counter[int]:
        """Return part -> time [s] between start and end [ns]."""
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
    """Return the timeline of a bag.

    arm, opening: measured stamps (k,) [ns] and values (k, dof) [rad], (k, 1) [m]. velocity: (dof,) [rad/s] limits of
    the joints. instruction: fixed instruction of the model; if the bag has it anywhere, only the times with it in force
    count as driven.
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
    # Times before the first known one belong to it.
    points = sorted({min(times, default=0), *times, last})
    stretches: list[Stretch] = []
    key: Any = None
    whole_key: Any = None
    whole = -1
    for start, end in itertools.pairwise(points):
        words_in_force, episode = words.at(start) or '', episodes.index(start)
        state, epoch, source = executor.at(start) or (-1, -1, '')
        if any(before <= start < step for before, step in events.steps):
            part = UNKNOWN
        elif by_executor and state != EXECUTING:
            part = IDLE
        elif any(a <= start < b for a, b in successes):
            part = DONE
        elif by_words and instruction and words_in_force and words_in_force != instruction:
            part = OTHER
        elif not any(m.at(start) for m in moves):
            part = STILL
        elif any(step <= start < step + SETTLE * NS for _, step in events.steps):
            part = STEP
        else:
            part = DRIVEN
        found = (int(np.searchsorted(cuts, start, side='right')), episode, words_in_force)
        whole += found != whole_key
        whole_key = found
        if (new := (part, whole, epoch, source)) == key:
            stretches[-1] = Stretch(stretches[-1].start, end, part, whole, episode, words_in_force)
        else:
            stretches.append(Stretch(start, end, part, whole, episode, words_in_force))
        key = new
    return Timeline(stretches or [Stretch(0, last, STILL, 0, -1, '')], by_executor, by_words)


def parts_of(
    line: Timeline, t_ref: np.ndarray, due: np.ndarray, known: np.ndarray, instructions: Sequence[str]
) -> np.ndarray:
    """Return the part of each step, (n, horizon) int8.

    t_ref: (n,) [ns]. due: (n, horizon) [ns]. known: whether a state was recorded then. instructions: one per chunk.
    """
    here = line.at(t_ref)
    label = np.array([s.part for s in line.stretches], np.int8)[here]
    end = np.array([s.end for s in line.stretches], np.int64)
    whole = np.array([s.whole for s in line.stretches], np.int64)
    words_in_force = [line.stretches[i].words for i in here]
    other = [line.by_words and '' not in (a, b) and a != b for a, b in zip(instructions, words_in_force, strict=True)]
    label[(label == DRIVEN) & np.array(other)] = OTHER  # for a new instruction, from images before it
    found = np.repeat(label[:, None], due.shape[1], 1)
    past = due >= end[here][:, None]
    found[past & (label == DRIVEN)[:, None]] = PAST
    found[whole[line.at(due)] != whole[here][:, None]] = ACROSS
    found[~known & (found != ACROSS)] = UNKNOWN
    return found


class _Steps:
    """A series that holds each value until the next one, at most for max_age [s]."""

    def __init__(self, series: Series, max_age: float = 0.0) -> None:
        self._times = np.sort(np.array(series.times, np.int64))
        self._values, self._age = series.in_order(), int(max_age * NS)
        self.changes = self._times.tolist()
        if max_age:
            self.changes += (self._times + self._age).tolist()

    def index(self, time: int) -> int:
        """Return the index of the value at time [ns]; -1: none."""
        i = int(np.searchsorted(self._times, time, side='right')) - 1
        return -1 if i >= 0 and self._age and time - self._times[i] >= self._age else i

    def at(self, time: int) -> Any:
        """Return the value at time [ns]; None: none."""
        i = self.index(time)
        return self._values[i] if i >= 0 else None


def _successes(events: Events) -> list[tuple[int, int]]:
    """Return (start, end) [ns] from each lasting success to the end of its episode."""
    spans = []
    for start, end in itertools.pairwise([*sorted(events.episodes.times), events.end + NS]):
        if (since := success_time(events.success, start, end)) is not None:
            spans.append((since, end))
    return spans


def _breaks(stamps: np.ndarray, positions: np.ndarray, velocity: np.ndarray) -> list[int]:
    """Return the times [ns] of possible resets: the arm cannot have moved from one state to the next."""
    if len(stamps) < 2:
        return []
    apart = np.diff(stamps) / NS
    moved = np.abs(np.diff(positions, axis=0))
    leaps = ((moved > LEAP) & (moved > LEAP_SPEED * velocity * apart[:, None])).any(1)
    return stamps[1:][leaps | (apart > LOST)].tolist()


def _moving(stamps: np.ndarray, values: np.ndarray, least: float) -> Series:
    """Return a series over time [ns]: whether any of values (k, n) moves by more than `least` within REST around it."""
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
