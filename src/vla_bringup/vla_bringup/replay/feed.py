"""Messages of a bag with the time on the clock of the policy node."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vla_core import clocks
from vla_core.observe.streams import NS
from vla_policy_node.ros.chunk_msg import to_ns
from vla_policy_node.ros.images import COMPRESSED, decode_image
from vla_training.bag import Damage, Message, has_messages, messages
from vla_training.convert.convert import bag_name
from vla_training.convert.recording import STATES, Setup
from vla_training.convert.report import BagReport

CLOCK = '/clock'
INSTRUCTIONS = ('sim/episode', 'sim/task', 'policy/instruction', 'policy/instruction_in_force')
CHUNKS, EXECUTOR, SUCCESS, DESCRIPTION = 'action_chunk', 'executor/status', 'sim/success', 'robot_description'
IMAGE_KINDS = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'
JOINT_KIND = 'sensor_msgs/msg/JointState'


class Feed:
    """An iterable of (now [ns], message); now decreases only where the clock of the bag was set back.

    now is the newest /clock of the bag, else the time of recording. setup: topics of the robot profile. A camera is
    read from its topic or from `<topic>/compressed`, the first that has messages. seconds: length to read; 0: all.
    Raises ValueError when the path is no bag.
    """

    def __init__(
        self, path: Path, setup: Setup, *, seconds: float = 0.0, progress: Callable[[int], None] = lambda read: None
    ) -> None:
        self.path, self._seconds, self._progress = path, seconds, progress
        self.report = BagReport(bag_name(path))
        self.setup, self.seen = setup.found_in(path)
        cameras = self.setup.cameras
        joints = [setup.joint_states, *([setup.gripper_joint_states] if setup.gripper else [])]
        kinds = {topic: IMAGE_KINDS[topic.endswith(COMPRESSED)] for topic in cameras.values()}
        self.inputs = kinds | dict.fromkeys(joints, JOINT_KIND)  # inputs of the policy: topic -> type
        self.instructions = [setup.topic(name) for name in INSTRUCTIONS]
        self.events = {setup.topic(name): name for name in (CHUNKS, EXECUTOR, SUCCESS)}  # topic -> which
        # A recorder may discover /clock after the cameras, whose stamps are simulation time already.
        self.has_clock, self.clocks = CLOCK in self.seen or has_messages(path, CLOCK), 0  # number of messages

    def __iter__(self) -> Iterator[tuple[int, Message]]:
        began = -1
        for now, m in self._timed():
            if m.kind != self.inputs.get(m.topic, m.kind):
                self.report.bad(m.topic, f'{m.topic} has {m.kind} where {self.inputs[m.topic]} should be')
                continue
            began = now if began < 0 or now < began else began
            if self._seconds and now > began + self._seconds * NS:
                return
            yield now, m

    def _timed(self) -> Iterator[tuple[int, Message]]:
        """Yield messages with the bag's time [ns], which decreases only where a clock was set back."""
        wanted = [CLOCK, *self.inputs, *self.instructions, *self.events]
        now, period, self.clocks = -1, 0, 0
        early: list[Message] | None = [] if self.has_clock else None  # before the first /clock
        for m in messages(self.path, wanted, self.report.damage, self._progress):
            if m.topic == CLOCK:
                time = to_ns(m.data.clock)
                self.clocks += 1
                self.has_clock = True
                now = time if time < now - clocks.OVERTAKING * NS else max(now, time)
                yield from _before_clock(early or [], now)
                early = None
            elif early is not None:
                early.append(m)
                continue
            elif not self.has_clock:
                now, period = m.time if m.period != period else max(now, m.time), m.period
            yield now, m
        for m in early or ():  # no /clock was readable
            self.has_clock = False
            now = max(now, m.time)
            yield now, m

    def description(self) -> str:
        """Return the robot's URDF. Raises ValueError when the bag has none."""
        topic = self.setup.topic(DESCRIPTION)
        for m in messages(self.path, [topic], Damage(), lambda read: None):
            return str(m.data.data)
        raise ValueError(f'the model needs the robot description, and the bag has no {topic}: record it, too')

    def frames(self, moments: list[tuple[int, int]]) -> dict[int, dict[str, Any]]:
        """Return the images at moments (t_ref [ns], number of images until then): number -> camera -> image.

        An image is (height, width, 3) uint8 RGB. The bag is read again.
        """
        names = {topic: name for name, topic in self.setup.cameras.items()}
        best: dict[int, dict[str, tuple[int, Message]]] = {count: {} for _, count in moments}
        for number, m in enumerate(messages(self.path, list(names), Damage(), lambda read: None), 1):
            stamp, name = to_ns(m.data.header.stamp), names[m.topic]
            for t, count in moments:
                old = best[count].get(name, (-1, m))[0]
                newer = stamp >= old or old - stamp > clocks.OVERTAKING * NS  # a clock was set back
                if number <= count and stamp <= t and newer:
                    best[count][name] = stamp, m
        found: dict[int, dict[str, Any]] = {}
        for count, views in best.items():
            for name, (_, m) in views.items():
                try:
                    found.setdefault(count, {})[name] = decode_image(m.data, m.topic)
                except ValueError:
                    continue  # reported by the first reading
        return found


def _before_clock(early: list[Message], first: int) -> Iterator[tuple[int, Message]]:
    """Yield messages that were recorded before the first /clock, `first` [ns], with their time [ns].

    The clock ran before the recorder discovered it. No message is received before its stamp, so the newest stamp is
    the best estimate of the time.
    """
    stamps = [to_ns(m.data.header.stamp) if hasattr(m.data, 'header') else 0 for m in early]
    now = min((s for s in stamps if 0 < s <= first), default=first)
    for m, stamp in zip(early, stamps, strict=True):
        now = max(now, min(stamp, first))
        yield now, m


def load_setup(robot: str, namespace: str) -> Setup:
    """Return the topics of a robot profile, by name or file. Raises ValueError for a wrong profile."""
    return Setup.load(robot, namespace=namespace, fps=10, actions=STATES)
