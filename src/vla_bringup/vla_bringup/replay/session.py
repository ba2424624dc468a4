"""The state of the policy node at each moment of a bag, and the times of its inferences.

It replaces the node offline, and defines the expected chunks live.
"""

from dataclasses import dataclass, field

import numpy as np

from vla_bringup.replay.driven import APART, Events
from vla_bringup.replay.feed import CHUNKS, CLOCK, EXECUTOR, SUCCESS, Feed
from vla_core import clocks
from vla_core.observe.cadence import Cadence
from vla_core.observe.streams import GRIPPER, JOINTS, NS, Aligned
from vla_model.types import Chunk
from vla_policy_node.policy.inference_report import CODE_NAMES
from vla_policy_node.policy.intake import Fault, Intake
from vla_policy_node.ros.chunk_msg import to_ns
from vla_training.bag import Message
from vla_training.convert.bag_faults import OTHER_TIME, other_time

NO_INSTRUCTION = 'the bag has no instruction: give --instruction'
TOLERANCE = int(clocks.FUTURE_TOLERANCE * NS)


@dataclass(frozen=True)
class Due:
    """A set of observations for which an inference is due now."""

    aligned: Aligned
    instruction: str
    now: int  # [ns]
    shift: int = 0  # [ns] as of Cycle
    images: int = 0


@dataclass(frozen=True)
class Cycle:
    """One inference of the model."""

    t_ref: int  # [ns]
    at: int  # [ns] on the bag's clock, at which the chunk was ready
    instruction: str
    chunk: Chunk
    inference_time: float  # [s] wall time
    shift: int = 0  # [ns] offset to the increasing time axis
    images: int = 0  # number of images received before


@dataclass
class Track:
    """Measured values over time, in order of receipt."""

    stamps: list[int] = field(default_factory=list)  # [ns] on the increasing time axis
    values: list[np.ndarray] = field(default_factory=list)

    def arrays(self, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Return increasing stamps (n,) int64 and values (n, width); of equal stamps the last value."""
        if not self.stamps:
            return np.zeros(0, np.int64), np.zeros((0, width))
        stamps = np.array(self.stamps, np.int64)[::-1]
        unique, last = np.unique(stamps, return_index=True)
        return unique, np.array(self.values, float).reshape(len(stamps), width)[::-1][last]


class Session:
    """Takes clock and messages in order; `look` after each returns the inference that the node would start.

    instruction: in force from the first message; empty: the instructions in the bag, in which simulated episodes
    precede other instructions, as in training.

    A clock that was set back repeats times. Tracks, events and cycles are therefore on an increasing time axis, in
    which such a step inserts APART.
    """

    def __init__(self, feed: Feed, *, rate: float, instruction: str = '') -> None:
        setup = feed.setup
        self.report, self.setup = feed.report, setup
        self._feed, self.fixed = feed, bool(instruction)
        self._intake = Intake(
            setup.profile,
            setup.cameras,
            setup.joint_states,
            setup.gripper_joint_states,
            report=self._note,
            clock='the recorder',
        )
        self._topics = {name: spec.topic for name, spec in self._intake.streams.specs.items()}
        self._cadence = Cadence(rate)
        self.instruction, self._episodes = instruction.strip(), False
        self._words = ''  # the instruction in force of the bag
        self._shift_before = 0  # [ns] end of the time before the last clock step
        self.now, self.shift = -1, 0  # [ns] clock of the bag; offset to the increasing axis
        self.began = -1  # [ns] the first time
        self._busy_until = 0  # [ns] end of the present inference
        self._newest, self._fresh, self._image = -1, False, False
        self.images = 0  # received, used or not
        self.fault = ''  # reason of the last unusable set
        self.arm, self.opening = Track(), Track()
        self.events = Events()
        self._cameras = set(setup.cameras.values())
        self._last: dict[str, int] = {}  # stream -> stamp of the newest message [ns]
        self._noted: dict[str, str] = {}  # stream -> note of the intake about the present message
        self._holes = 0  # [ns] on the increasing axis, inserted
        self.inference_times: list[float] = []  # [s] of the chunks in the bag

    def remember(self, history: float) -> None:
        """Give sets the images that are `history` [s] older, see PolicyInfo."""
        self._intake.streams.remember(history)

    def step(self, now: int) -> bool:
        """Set the clock [ns]; return whether it moved."""
        if now == self.now:
            return False
        if now < self.now:
            if self._feed.clocks > 1:  # the first one is no step: before it, time was that of the recorder
                self._report_clock(clocks.set_back(CLOCK, (self.now - now) / NS))
            self._intake.streams.clear()
            self._newest, self._busy_until, self._fresh = -1, 0, True
            self._set_back(self.now - now, now)
        if self.began < 0:
            self.began = now
        self._intake.streams.simulated = self._feed.has_clock
        self.now, self._image = now, False
        self.events.end = now + self.shift
        return True

    def _set_back(self, back: int, now: int) -> None:
        """Handle a step back [ns] of the bag's clock or of one stream: insert APART on the increasing axis.

        now: the clock of the bag after the step [ns].
        """
        before = self.now + self.shift
        self._shift_before, self.shift = self.shift, self.shift + back + APART
        self.events.steps.append((before, now + self.shift))
        self._holes += now + self.shift - before

    def take(self, m: Message) -> bool:
        """Take a message; return whether it put an instruction in force."""
        self._image = False
        try:
            if m.topic in self._feed.inputs:
                self._input(m)
            elif m.topic in self._feed.instructions:
                return self._take_instruction(m)
            elif m.topic in self._feed.events:
                self._event(self._feed.events[m.topic], m)
        except (AttributeError, TypeError, IndexError) as error:  # wrong type for this topic
            self._bad_message(m.topic, f'{m.kind}: {error}')
        return False

    def _input(self, m: Message) -> None:
        stamp = to_ns(m.data.header.stamp)
        self.images += m.topic in self._cameras
        if not stamp or abs(self.now - stamp) > OTHER_TIME * NS:
            name = next(name for name, topic in self._topics.items() if topic == m.topic)
            if why := other_time(name, m.topic, stamp, self.now):
                self._bad_message(m.topic, why)
        stored = self._intake.take(m.topic, m.data, max(self.now, 0))
        if self._noted:
            self._notes(m.topic, stamp, {stream for stream, _ in stored})
        for stream, value in stored:
            self._stored(stream, stamp, value)

    def _notes(self, topic: str, stamp: int, stored: set[str]) -> None:
        """Handle the intake's notes about the present message. A stored message with a note had its clock set back."""
        back = 0
        for stream, note in self._noted.items():
            if stream in stored:
                self._report_clock(note)
                back = max(back, self._last.get(stream, stamp) - stamp)
            else:
                self._bad_message(topic, note)
        if stored & set(self._noted):
            self._set_back(back, self.now)
        self._noted.clear()

    def _report_clock(self, sentence: str) -> None:
        self.report.clock_set(self._elapsed, sentence)

    @property
    def _elapsed(self) -> int:
        """Time since the start of the bag [ns]."""
        return max(self.now + self.shift - self.began - self._holes, 0)

    def look(self) -> Due | None:
        """Return the set that is due now, or None; none is due while the model is `busy`."""
        if self.now < self._busy_until:
            return None
        last, fresh, self._fresh = self._cadence.last, self._fresh, False
        # Without a new image only a set that was incomplete before can be due.
        if not fresh and last is not None and self._newest - last < self._cadence.interval:
            return None
        found = self._intake.observe(self.now)
        if isinstance(found, Fault):
            self.fault = found.message
            if self._image:
                self.report.without_set(CODE_NAMES[found.code], found.message)
            return None
        if not self.instruction:
            self.fault = NO_INSTRUCTION
            return None
        if not self._cadence.due(found.t_ref):
            return None
        self._cadence.last = found.t_ref
        self.report.worst_skew = max(self.report.worst_skew, found.skew)
        self.report.kept += 1
        return Due(found, self.instruction, self.now, self.shift, self.images)

    def shift_of(self, t_ref: int) -> int:
        """Return the offset to the increasing time axis [ns] of a chunk that is ready now, for its t_ref [ns]."""
        return self._shift_before if t_ref > self.now + TOLERANCE else self.shift

    def busy(self, nanoseconds: int) -> None:
        """Mark the model busy for this time [ns] on the bag's clock."""
        self._busy_until, self._fresh = self.now + nanoseconds, True

    def end(self) -> None:
        """Complete the report at the end of the bag."""
        self.report.judge_stamps()
        if self.arm.values:
            self.report.moved(np.min(self.arm.values, axis=0))
            self.report.moved(np.max(self.arm.values, axis=0))

    def _stored(self, stream: str, stamp: int, value: object) -> None:
        self._last[stream] = stamp
        self.report.stream(stream, self._topics[stream]).add(stamp, max(self.now, 0))
        if stream == JOINTS:
            self.arm.stamps.append(stamp + self.shift)
            self.arm.values.append(value[0])  # type: ignore[index]  # positions, velocities
        elif stream == GRIPPER:
            self.opening.stamps.append(stamp + self.shift)
            self.opening.values.append(value)  # type: ignore[arg-type]
        else:
            self._newest = max(self._newest, stamp)
            self._fresh = self._image = True

    def _take_instruction(self, m: Message) -> bool:
        """Take an instruction; with simulated episodes theirs counts, as in vla_training/convert/recording.py."""
        episode = hasattr(m.data, 'instruction')
        text = (m.data.instruction if episode else m.data.data).strip()
        now = self.now + self.shift
        if episode:
            self._episodes = True
            now = to_ns(m.data.header.stamp) + self.shift
            self.events.episodes.add(now, f'{m.data.index}: {m.data.task}, seed {m.data.seed}')
        elif self._episodes:
            return False
        self.events.words.add(now, text or self._words)
        self._words = text or self._words
        if self.fixed or not text or text == self.instruction:
            return False
        self.instruction, self._fresh = text, True
        self._cadence.restart()
        return True

    def _event(self, name: str, m: Message) -> None:
        if name == CHUNKS:
            self.inference_times.append(to_ns(m.data.inference_time) / NS)
        elif name == EXECUTOR:
            status = (int(m.data.state), int(m.data.epoch), str(m.data.source))
            self.events.executor.add(to_ns(m.data.header.stamp) + self.shift, status)
        elif name == SUCCESS:
            self.events.success.add(self.now + self.shift, bool(m.data.data))

    def _note(self, stream: str, sentence: str) -> None:
        self._noted[stream] = sentence

    def _bad_message(self, topic: str, message: str) -> None:
        self.report.bad(topic, self._when(message))

    def _when(self, sentence: str) -> str:
        return f'{sentence} ({self._elapsed / NS:.1f} s into the bag)'
