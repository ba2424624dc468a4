"""What the policy node would know at each moment of a bag, and when it would act. Stands for the node offline, and
says what the node must do live."""

from dataclasses import dataclass, field

import numpy as np

from vla_bringup.replay_feed import CHUNKS, Feed
from vla_model.types import Chunk
from vla_policy_node.intake import Fault, Intake
from vla_policy_node.observe.cadence import Cadence
from vla_policy_node.observe.streams import GRIPPER, JOINTS, NS, Aligned
from vla_policy_node.policy_report import CODE_NAMES
from vla_policy_node.ros.chunk_msg import to_ns
from vla_training.bag import Message
from vla_training.bag_faults import other_time

NO_INSTRUCTION = 'the bag has no instruction: give --instruction'
JUMP = NS  # [ns] as observe/streams.py: a clock that goes back


@dataclass(frozen=True)
class Due:
    """The model is to be asked now."""

    aligned: Aligned
    instruction: str
    now: int  # [ns]


@dataclass(frozen=True)
class Cycle:
    """One answer of the model."""

    t_ref: int  # [ns]
    at: int  # [ns] on the bag's clock: when the chunk was there
    instruction: str
    chunk: Chunk
    inference_time: float  # [s] wall time


@dataclass
class Track:
    """What the robot did: values by time, as they came."""

    stamps: list[int] = field(default_factory=list)  # [ns]
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
    """

    def __init__(self, feed: Feed, *, rate: float, instruction: str = '') -> None:
        setup = feed.setup
        self.report, self.setup = feed.report, setup
        self._feed, self._fixed = feed, bool(instruction)
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
        self.now = -1
        self._busy_until = 0  # [ns] until then the model thinks
        self._newest, self._fresh, self._image = -1, False, False
        self.fault = ''  # why there was no usable set, the last time that there was none
        self.arm, self.opening = Track(), Track()
        self.boundaries: list[int] = []  # [ns] what the robot does from there on was not asked for before
        self.inference_times: list[float] = []  # [s] of the chunks in the bag

    def step(self, now: int) -> bool:
        """The clock; whether it moved."""
        if now == self.now:
            return False
        if now < self.now - JUMP:
            self.report.bad('/clock', f'the clock went back from {self.now / NS:.3f} s to {now / NS:.3f} s')
            self._intake.streams.clear()
            self.boundaries.append(now)
            self._newest, self._busy_until, self._fresh = -1, 0, True
        self.now, self._image = now, False
        return True

    def take(self, m: Message) -> bool:
        """A message; whether it put an instruction in force."""
        self._image = False
        try:
            if m.topic in self._feed.instructions:
                return self._told(m)
            if m.topic == self.setup.topic(CHUNKS):
                self.inference_times.append(to_ns(m.data.inference_time) / NS)
                return False
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
        return Due(found, self.instruction, self.now)

    def busy(self, nanoseconds: int) -> None:
        """The model thinks for so long on the bag's clock."""
        self._busy_until, self._fresh = self.now + nanoseconds, True

    def _stored(self, stream: str, stamp: int, value: object) -> None:
        if why := other_time(stream, self._topics[stream], stamp, self.now):
            self._bad(stream, why)
        self.report.stream(stream, self._topics[stream]).add(stamp)
        if stream == JOINTS:
            self.arm.stamps.append(stamp)
            self.arm.values.append(value[0])  # type: ignore[index]  # positions, velocities
        elif stream == GRIPPER:
            self.opening.stamps.append(stamp)
            self.opening.values.append(value)  # type: ignore[arg-type]
        else:
            self._newest = max(self._newest, stamp)
            self._fresh = self._image = True

    def _told(self, m: Message) -> bool:
        """As vla_training/recording.py: where the simulator tells its episodes, theirs counts."""
        episode = hasattr(m.data, 'instruction')
        text = (m.data.instruction if episode else m.data.data).strip()
        if episode:
            self._episodes = True
            self.boundaries.append(to_ns(m.data.header.stamp))
        elif self._episodes:
            return False
        if self._fixed or not text or text == self.instruction:
            return False
        if not episode:
            self.boundaries.append(self.now)
        self.instruction, self._fresh = text, True
        self._cadence.restart()
        return True

    def _bad(self, stream: str, message: str) -> None:
        self._bad_message(self._topics[stream], message)

    def _bad_message(self, topic: str, message: str) -> None:
        self.report.bad(topic, message)
