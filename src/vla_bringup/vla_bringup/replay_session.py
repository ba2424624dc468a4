"""What the policy node would know at each moment of a bag, and when it would act. Stands for the node offline, and
says what the node must do live."""

from dataclasses import dataclass, field

import numpy as np

from vla_bringup.replay_driven import APART, Events
from vla_bringup.replay_feed import CHUNKS, CLOCK, EXECUTOR, SUCCESS, Feed
from vla_model.types import Chunk
from vla_policy_node.core import clocks
from vla_policy_node.intake import Fault, Intake
from vla_policy_node.observe.cadence import Cadence
from vla_policy_node.observe.streams import GRIPPER, JOINTS, NS, Aligned
from vla_policy_node.policy_report import CODE_NAMES
from vla_policy_node.ros.chunk_msg import to_ns
from vla_training.bag import Message
from vla_training.bag_faults import other_time

NO_INSTRUCTION = 'the bag has no instruction: give --instruction'
TOLERANCE = int(clocks.FUTURE_TOLERANCE * NS)


@dataclass(frozen=True)
class Due:
    """The model is to be asked now."""

    aligned: Aligned
    instruction: str
    now: int  # [ns]
    shift: int = 0  # [ns] as of Cycle
    images: int = 0


@dataclass(frozen=True)
class Cycle:
    """One answer of the model."""

    t_ref: int  # [ns]
    at: int  # [ns] on the bag's clock: when the chunk was there
    instruction: str
    chunk: Chunk
    inference_time: float  # [s] wall time
    shift: int = 0  # [ns] to the time axis that only grows
    images: int = 0  # that had come


@dataclass
class Track:
    """What the robot did: values by time, as they came."""

    stamps: list[int] = field(default_factory=list)  # [ns] on the time axis that only grows
    values: list[np.ndarray] = field(default_factory=list)

    def arrays(self, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Stamps (n,) int64, growing, and values (n, width); of two with one stamp the later one."""
        if not self.stamps:
            return np.zeros(0, np.int64), np.zeros((0, width))
        stamps = np.array(self.stamps, np.int64)[::-1]
        unique, last = np.unique(stamps, return_index=True)
        return unique, np.array(self.values, float).reshape(len(stamps), width)[::-1][last]


class Session:
    """Feed it the clock and the messages in order; ask `look` after each: the same steps as the node takes.

    instruction: in force from the first message on; empty: as the bag says, where the simulator's episodes count
    before other words, as in training.

    Where a clock was set back the same times exist twice. What is kept for comparisons (tracks, events, cycles with
    their shift) is on a time axis that only grows: there, what comes after is APART from what was before.
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
            tell=self._bad,
            clock='the recorder',
        )
        self._topics = {name: spec.topic for name, spec in self._intake.streams.specs.items()}
        self._cadence = Cadence(rate)
        self.instruction, self._episodes = instruction.strip(), False
        self._words = ''  # the instruction in force, as the bag says
        self._shift_before = 0  # [ns] until a clock was set back last
        self.now, self.shift = -1, 0  # [ns] the clock of the bag; what its times need to the axis that only grows
        self.began = -1  # [ns] the first time
        self._busy_until = 0  # [ns] until then the model thinks
        self._newest, self._fresh, self._image = -1, False, False
        self.images = 0  # that came, used or not
        self.fault = ''  # why there was no usable set, the last time that there was none
        self.arm, self.opening = Track(), Track()
        self.events = Events()
        self._stamps = {name: clocks.Stamps() for name in self._topics}
        self._ahead: dict[str, float] = {}  # topic -> most that a stamp that was used lies ahead of the clock [s]
        self.inference_times: list[float] = []  # [s] of the chunks in the bag

    def step(self, now: int) -> bool:
        """The clock; whether it moved."""
        if now == self.now:
            return False
        if now < self.now:
            if self._feed.has_clock:
                self._bad_message(CLOCK, clocks.set_back(CLOCK, (self.now - now) / NS))
            self._intake.streams.clear()
            self._newest, self._busy_until, self._fresh = -1, 0, True
            self._stamps = {name: clocks.Stamps() for name in self._topics}
            self._set_back(self.now - now, now)
        if self.began < 0:
            self.began = now
        self.now, self._image = now, False
        return True

    def _set_back(self, back: int, now: int) -> None:
        """A clock was set back by so much [ns], of the bag or of one stream: what follows is apart from what was."""
        self._shift_before, self.shift = self.shift, self.shift + back + APART
        self.events.steps.append(now + self.shift)

    def take(self, m: Message) -> bool:
        """A message; whether it put an instruction in force."""
        self._image = False
        self.images += m.topic in self.setup.cameras.values()
        try:
            if m.topic in self._feed.instructions:
                return self._told(m)
            if m.topic in self._feed.events:
                self._event(self._feed.events[m.topic], m)
                return False
            if why := self._other_time(m):
                self._bad_message(m.topic, why)
            for stream, value in self._intake.take(m.topic, m.data, max(self.now, 0)):
                self._stored(stream, to_ns(m.data.header.stamp), value)
        except (AttributeError, TypeError, IndexError) as error:  # another type than the topic should have
            self._bad_message(m.topic, f'{m.kind}: {error}')
        return False

    def look(self) -> Due | None:
        """What to ask the model now, if anything; `busy` [ns] after an answer the model can be asked again."""
        if self.now < self._busy_until:
            return None
        last, fresh, self._fresh = self._cadence.last, self._fresh, False
        # Without a new image only a set that was not complete before can be due.
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
        """[ns] to the time axis that only grows, for a chunk that comes now and answers t_ref [ns]."""
        return self._shift_before if t_ref > self.now + TOLERANCE else self.shift

    def busy(self, nanoseconds: int) -> None:
        """The model thinks for so long on the bag's clock."""
        self._busy_until, self._fresh = self.now + nanoseconds, True

    def _other_time(self, m: Message) -> str:
        name = next((name for name, topic in self._topics.items() if topic == m.topic), '')
        return other_time(name, m.topic, to_ns(m.data.header.stamp), self.now) if name else ''

    def _stored(self, stream: str, stamp: int, value: object) -> None:
        topic = self._topics[stream]
        back = self._stamps[stream].take(stamp, self.now)
        if back and stamp:
            self._set_back(round(back * NS), self.now)
        if (ahead := (stamp - self.now) / NS) > max(self._ahead.get(topic, 0.0), self._feed.resolution):
            self._ahead[topic] = ahead
            where = f'{stream} on {topic}'
            late = (
                f'{where} is stamped {ahead:.3f} s ahead of /clock as it was recorded: was the recorder late with it?'
            )
            self.report.ahead[topic] = late if self._feed.has_clock else clocks.ahead(where, ahead)
        self.report.stream(stream, topic).add(stamp, max(self.now, 0))
        if stream == JOINTS:
            self.report.moved(value[0])  # type: ignore[index]  # positions, velocities
            self.arm.stamps.append(stamp + self.shift)
            self.arm.values.append(value[0])  # type: ignore[index]  # positions, velocities
        elif stream == GRIPPER:
            self.opening.stamps.append(stamp + self.shift)
            self.opening.values.append(value)  # type: ignore[arg-type]
        else:
            self._newest = max(self._newest, stamp)
            self._fresh = self._image = True
        self.events.end = max(self.events.end, self.now + self.shift)

    def _told(self, m: Message) -> bool:
        """As vla_training/recording.py: where the simulator tells its episodes, theirs counts."""
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

    def _bad(self, stream: str, message: str) -> None:
        self._bad_message(self._topics[stream], message)

    def _bad_message(self, topic: str, message: str) -> None:
        self.report.bad(topic, f'{message} ({max(self.now + self.shift - self.began, 0) / NS:.1f} s into the bag)')
