"""The messages of one recorded bag, aligned as the policy node aligns them; episode_builder.py makes episodes of them.

A frame stands for its t_ref, the time at which the policy node would have started to compute (observe/streams.py).
Where a clock was set, the recorder's or that of one sender, the episode ends: times before and after it are not
comparable.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from vla_core import clocks
from vla_core.observe.streams import CAMERA_MAX_AGE, GRIPPER, JOINTS, NS, Missing, Streams
from vla_policy_node.adapters.table import adapter_of
from vla_policy_node.policy.intake import stream_specs
from vla_policy_node.ros.images import decode_image
from vla_policy_node.ros.joints import (
    decode_gripper,
    decode_joints,
)
from vla_training.bag import Message
from vla_training.bag.setup import SET_POINTS, STATES, Setup
from vla_training.bag.stamps import BagStamps
from vla_training.convert.episode_builder import BagClock, EpisodeBuilder
from vla_training.convert.episode_parts import Recorded
from vla_training.convert.report import BagReport
from vla_training.convert.stand_ins import StandIns
from vla_training.convert.tool_pixels import ToolPixels
from vla_training.data import features

STARTING = 1.0  # [s] from the first image until all streams must be there


class Recording:
    """Takes the messages of one bag in order; `episodes` yields the completed episodes."""

    def __init__(self, setup: Setup, report: BagReport, subtasks: list[tuple[float, str]]) -> None:
        """subtasks: (time since the start of the bag [s], words), by time; empty: those of the bag."""
        self.setup, self.report = setup, report
        self._period = NS // setup.fps
        ages = {'camera_max_age': max(CAMERA_MAX_AGE, setup.camera_gap)}
        specs = stream_specs(setup.profile, setup.cameras, setup.joint_states, setup.gripper_joint_states, **ages)
        self._streams = Streams(specs, clock='the recorder')
        limits = {spec.name: setup.camera_gap if spec.leads else spec.max_age for spec in specs}
        self._time = BagClock()
        stand_ins = StandIns(setup.cameras, limits, self._period)
        self._tool_pixels = ToolPixels(setup, report)
        self._builder = EpisodeBuilder(setup, report, self._time, stand_ins, subtasks, self._tool_pixels.columns)
        self._takes: dict[str, list[Callable[[Message], None]]] = {}
        for name, topic in setup.cameras.items():
            self._subscribe(topic, functools.partial(self._image, name))
        self._subscribe(setup.joint_states, self._joints)
        if setup.gripper:
            self._subscribe(setup.gripper_joint_states, self._fingers)
        if setup.actions == SET_POINTS:
            self._subscribe(setup.joint_command, self._set_point)
            self._subscribe(setup.gripper_command, self._gripper_command)
        self._subscribe('/clock', self._clock)
        self._subscribe(setup.topic('sim/episode'), self._episode)
        self._subscribe(
            setup.topic('sim/success'), lambda m: self._builder.success.put(self._time.now, bool(m.data.data))
        )
        self._subscribe(setup.topic('sim/task'), self._instruction)
        self._subscribe(setup.topic('policy/instruction'), self._instruction)
        self._subscribe(setup.topic('policy/instruction_in_force'), self._instruction)  # goals, too
        self._subscribe(setup.topic('expert/progress'), self._progress)

        for topic, take in self._tool_pixels.topics.items():
            self._subscribe(topic, functools.partial(self._describe, take))

        self._bag_time, self._has_clock = 0, False
        self._clock_period = 0  # of the newest message: see vla_training.bag
        self._stamps = BagStamps()
        self._sent = clocks.Stamps()  # of set-points
        self._received: set[str] = set()  # streams that had a message with their joints
        self._others: dict[str, tuple[str, str]] = {}  # stream -> topic, what is wrong with a message of other joints
        self._has_episodes = False
        self._last = -1  # [ns] t_ref of the newest set
        self._starting: list[tuple[int, str, str]] = []  # [ns] of an image without a set, and why: before the first set

    @property
    def topics(self) -> list[str]:
        return list(self._takes)

    def _subscribe(self, topic: str, take: Callable[[Message], None]) -> None:
        self._takes.setdefault(topic, []).append(take)

    def take(self, message: Message) -> None:
        """Take one message. Unusable content goes to the report."""
        if message.period != self._clock_period:
            self._clock_period = message.period
            # A recorder that runs on the clock of the bag goes back with it; else that clock is not concerned.
            if not self._has_clock or abs(self._bag_time - self._time.now) < NS:
                self._stamps.set_back(self._time.now, message.time)
                self._restart(message.time)
                self._has_clock = self._streams.simulated = False
        self._bag_time = message.time
        if not self._has_clock:
            self._time.now = message.time
        for take in self._takes.get(message.topic, ()):
            try:
                take(message)
            except (ValueError, AttributeError, TypeError, IndexError) as error:  # wrong content, or another type
                self.report.bad(message.topic, str(error))
        if self._time.began is None and self._time.now:
            self._time.began = self._time.now

    def _restart(self, now: int) -> None:
        """End the episode after a clock was set to now [ns]. No value from before is used again."""
        self._builder.restart()
        self._tool_pixels.restart()
        self._streams.clear()
        self._last = -1
        self._stamps.restart()
        self._sent = clocks.Stamps()
        if self._time.began is not None:
            self._time.began += now - self._time.now
        self._time.now = now

    def _clock_set(self, note: str) -> None:
        """Restart after the clock of a sender was set. note: the sentence for the report."""
        self.report.clock_set(self._time.now - (self._time.began or self._time.now), note)
        self._restart(self._time.now)

    def end(self) -> None:
        """End the bag and complete the report."""
        self._builder.end()
        self._report_missing()
        if not self._has_clock:  # arrivals are in steps of it
            self.report.judge_stamps()
        for topic, (count, why) in self._stamps.foreign.items():
            self.report.bad(topic, why, count)
        for stream, (topic, why) in self._others.items():
            if stream not in self._received:
                self.report.bad(topic, why)

    def episodes(self) -> Iterator[Recorded]:
        """Yield the episodes that became complete since the last call."""
        return self._builder.episodes()

    # ---- messages

    def _describe(self, take: Callable[[Message, int], None], m: Message) -> None:
        take(m, self._time.now)

    def _clock(self, m: Message) -> None:
        stamp = _ns(m.data.clock)
        if self._has_clock and stamp < self._time.now - clocks.OVERTAKING * NS:
            self.report.bad(m.topic, clocks.set_back(m.topic, (self._time.now - stamp) / NS))
            self._restart(stamp)
        if not self._has_clock:
            self._streams.clear()  # arrivals were of another clock
            self._streams.simulated = True
            self._stamps = BagStamps()
            if self._time.began is not None:
                self._time.began += stamp - self._time.now
        self._time.now, self._has_clock = max(self._time.now, stamp) if self._has_clock else stamp, True

    def _image(self, name: str, m: Message) -> None:
        image = decode_image(m.data, m.topic, order=self.setup.encoding)
        self._tool_pixels.put_image(name, m.data.header.frame_id)
        if not self._put(name, m, image):
            return
        found = self._streams.align(self._time.now)
        if isinstance(found, Missing):
            self._starting.append((self._time.now, f'{found.stream} {found.reason.value}', found.message))
            if self._last >= 0:
                self._report_missing()
        elif self._builder.apart(found) >= self._period:
            self.report.unusable['only images of different frames'] += 1
        elif found.t_ref > self._last:
            if self._starting and self._time.now - self._starting[0][0] < STARTING * NS:
                self._starting = []
            self._last = found.t_ref
            self._builder.candidate(found)
        elif found.t_ref == self._last:
            self._builder.replace(found)
        self._builder.resolve()

    def _report_missing(self) -> None:
        """Report the images without a complete set. A late start of a stream is no fault."""
        for _, cause, sentence in self._starting:
            self.report.without_set(cause, sentence)
        self._starting = []

    def _joints(self, m: Message) -> None:
        profile = self.setup.profile
        found = self._own(JOINTS, m, profile.joint_names, decode_joints)
        if found is not None and self._put(JOINTS, m, found):
            self.report.moved(found[0])
            self._tool_pixels.put_joints(_ns(m.data.header.stamp), found[0])
            if self.setup.actions == STATES:
                self._builder.arm.put(_ns(m.data.header.stamp), found[0])

    def _fingers(self, m: Message) -> None:
        opening = self._own(GRIPPER, m, self.setup.profile.gripper_joint_names, decode_gripper)
        if opening is not None and self._put(GRIPPER, m, opening) and self.setup.actions == STATES:
            self._builder.opening.put(_ns(m.data.header.stamp), opening)

    def _own(self, stream: str, m: Message, names: Sequence[str], decode: Callable[..., Any]) -> Any:
        """Decode these joints of a message; None: another sender of a shared topic sent it. Raises ValueError."""
        if set(m.data.name).isdisjoint(names):
            if stream not in self._others:
                try:
                    decode(m.data, names, m.topic)
                except ValueError as error:
                    self._others[stream] = m.topic, str(error)
            return None
        self._received.add(stream)
        return decode(m.data, names, m.topic)

    def _set_point(self, m: Message) -> None:
        """Store the positions of a message, whose type follows from the executor's `controller`."""
        names = self.setup.profile.joint_names
        adapter = adapter_of(m.kind)
        stamp = _ns(m.data.header.stamp) if hasattr(m.data, 'header') else self._time.now
        where = f'set-points on {m.topic}'
        back = self._sent.take(stamp, self._time.now)
        if self._sent.future:
            raise ValueError(clocks.ahead(where, self._sent.ahead))
        if back:
            self._clock_set(clocks.set_back(where, back))
        times, positions = adapter.decode(m.data, names, m.topic)
        if adapter.replaces:
            self._builder.arm.forget_from(stamp + times[0])
        for time, q in zip(times, positions, strict=True):
            self._builder.arm.put(stamp + time, q)
        self.report.stream('set-points', m.topic).add(stamp)

    def _gripper_command(self, m: Message) -> None:
        value = float(m.data.data[0])
        if not -0.01 <= value <= 1.01:
            raise ValueError(f'gripper command on {m.topic} is {value}, must be 0 closed .. 1 open')
        self._builder.opening.put(self._time.now, value * self.setup.profile.gripper_max_opening)
        self.report.stream('gripper commands', m.topic).add(self._time.now)

    def _put(self, name: str, m: Message, value: Any) -> bool:
        """Store a value in its stream. Return False for a message that straggles behind a step back of the clock.

        Raises ValueError for a stamp that is ahead of the clock.
        """
        stamp = _ns(m.data.header.stamp)
        if self._stamps.straggles(name, stamp, self._time.now):
            return False
        self._stamps.compare(name, m.topic, stamp, self._time.now)
        self.report.stream(name, m.topic).add(stamp, self._time.now)
        note = self._streams.put(name, stamp, value, self._time.now)
        if not note and not self._has_clock and (forward := self._stamps.set_forward(name, stamp, self._time.now)):
            note = clocks.set_forward(f'{name} on {m.topic}', forward)
        if note:
            self._clock_set(note)
            self._streams.put(name, stamp, value, self._time.now)
        self._builder.stand_ins.put(name, stamp, value)
        return True

    def _episode(self, m: Message) -> None:
        self._builder.begin(_ns(m.data.header.stamp), m.data.instruction)
        self._builder.sim = {'sim_task': str(m.data.task), 'seed': int(m.data.seed)}
        self._has_episodes = True

    def _instruction(self, m: Message) -> None:
        """Take an instruction. Where the simulator publishes its episodes, their instruction counts."""
        if not self._has_episodes and not self.setup.instruction and m.data.data.strip() != self._builder.instruction:
            self._builder.begin(self._time.now, m.data.data)

    def _progress(self, m: Message) -> None:
        words = m.data.current, features.join(m.data.completed), features.join(m.data.remaining)
        self._builder.progress.put(_ns(m.data.header.stamp), words)


def _ns(stamp: Any) -> int:
    return stamp.sec * NS + stamp.nanosec
