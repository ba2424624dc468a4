"""One recorded bag to episodes: streams aligned as the policy node does it, thinned to the frame rate, with actions.

A frame stands for its t_ref, the time at which the policy node would have begun to think (observe/streams.py); its
action is what was due, or done, one frame later. Frames are wanted at the frame rate; the grid follows the cameras'
clock slowly. Where the next frame is missing the episode ends and another one begins, because frames follow one
another without gaps in a dataset; single images that are missing can be stood in for (stand_ins.py). Where a clock was
set, the recorder's or that of one sender, the episode ends as well: times before and after it are not comparable.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from vla_policy_node.core import clocks
from vla_policy_node.intake import stream_specs
from vla_policy_node.observe.streams import (
    CAMERA_MAX_AGE,
    GRIPPER,
    GRIPPER_MAX_AGE,
    JOINT_MAX_AGE,
    JOINTS,
    NS,
    Aligned,
    Missing,
    Streams,
)
from vla_policy_node.ros.images import decode_image
from vla_policy_node.ros.joints import (
    decode_array,
    decode_gripper,
    decode_joints,
    decode_positions,
    decode_trajectory,
)
from vla_training import features
from vla_training.bag import Message
from vla_training.bag_setup import SET_POINTS, STATES, Setup
from vla_training.bag_stamps import BagStamps
from vla_training.conversion_report import BagReport
from vla_training.episode_parts import Recorded, Segment, Series
from vla_training.stand_ins import StandIns

SET_POINT_MAX_AGE = 0.3  # [s] gripper commands come at 10 Hz
SETTLE = 0.2  # [s] after an action is due until it counts: an episode that ends meanwhile takes the frame with it
STARTING = 1.0  # [s] from the first image until all streams must be there
FOLLOW = 0.1  # share of a frame's deviation by which the grid of frames moves
TRAJECTORY, ARRAY = 'trajectory_msgs/msg/JointTrajectory', 'std_msgs/msg/Float64MultiArray'  # else JointState


class Recording:
    """Takes the messages of one bag in order; `episodes` gives what became complete."""

    def __init__(self, setup: Setup, report: BagReport, subtasks: list[tuple[float, str]]) -> None:
        """subtasks: (time since the bag began [s], words), by time; empty: as the bag says."""
        self.setup, self.report, self._subtasks = setup, report, subtasks
        self._period, self._half = NS // setup.fps, NS // setup.fps // 2
        ages = {'camera_max_age': max(CAMERA_MAX_AGE, setup.camera_gap)}
        specs = stream_specs(setup.profile, setup.cameras, setup.joint_states, setup.gripper_joint_states, **ages)
        self._streams = Streams(specs, clock='the recorder')
        limits = {spec.name: setup.camera_gap if spec.leads else spec.max_age for spec in specs}
        self._stand_ins = StandIns(setup.cameras, limits, self._period)
        self._takes: dict[str, list[Callable[[Message], None]]] = {}
        for name, topic in setup.cameras.items():
            self._hear(topic, functools.partial(self._image, name))
        self._hear(setup.joint_states, self._joints)
        if setup.gripper:
            self._hear(setup.gripper_joint_states, self._fingers)
        if setup.actions == SET_POINTS:
            self._hear(setup.joint_command, self._set_point)
            self._hear(setup.gripper_command, self._gripper_command)
        self._hear('/clock', self._clock)
        self._hear(setup.topic('sim/episode'), self._episode)
        self._hear(setup.topic('sim/success'), lambda m: self._success.put(self._now, bool(m.data.data)))
        self._hear(setup.topic('sim/task'), self._told)
        self._hear(setup.topic('policy/instruction'), self._told)
        self._hear(setup.topic('policy/instruction_in_force'), self._told)  # goals, too
        self._hear(setup.topic('expert/progress'), self._progress_told)

        self._now, self._bag_time, self._has_clock = 0, 0, False  # [ns] ROS time at which the message in hand came
        self._clock_period = 0  # of the newest message: see vla_training.bag
        self._began: int | None = None  # [ns] ROS time at which the bag began, by the clock as it is now
        self._stamps = BagStamps()
        self._sent = clocks.Stamps()  # of set-points
        self._heard: set[str] = set()  # streams that had a message with their joints
        self._others: dict[str, tuple[str, str]] = {}  # stream -> topic, what is wrong with a message of other joints
        self._arm, self._opening = Series(), Series()  # what the actions are taken from
        self._success, self._progress = Series(), Series()
        self._instruction, self._start, self._sim = setup.instruction, 0, {'sim_task': '', 'seed': -1}
        self._episodes_told = False
        self._last, self._due = -1, 0  # [ns] t_ref of the newest set; when the next frame is wanted, 0: any time
        self._starting: list[tuple[int, str, str]] = []  # [ns] of an image without a set, and why: before the first set
        self._held: Aligned | None = None  # near to where a frame is wanted; a nearer one may come
        self._pending: list[Aligned] = []  # frames whose action is not known yet
        self._segment = Segment(setup.fps)
        self._done: list[Recorded] = []

    @property
    def topics(self) -> list[str]:
        return list(self._takes)

    def _hear(self, topic: str, take: Callable[[Message], None]) -> None:
        self._takes.setdefault(topic, []).append(take)

    def take(self, message: Message) -> None:
        """One message. What it holds that cannot be used is told to the report."""
        if message.period != self._clock_period:
            self._clock_period = message.period
            # A recorder that runs on the clock of the bag goes back with it; else that clock is not concerned.
            if not self._has_clock or abs(self._bag_time - self._now) < NS:
                self._stamps.set_back(self._now, message.time)
                self._restart(message.time)
                self._has_clock = self._streams.simulated = False
        self._bag_time = message.time
        if not self._has_clock:
            self._now = message.time
        for take in self._takes.get(message.topic, ()):
            try:
                take(message)
            except (ValueError, AttributeError, TypeError, IndexError) as error:  # wrong content, or another type
                self.report.bad(message.topic, str(error))
        if self._began is None and self._now:
            self._began = self._now

    def _restart(self, now: int) -> None:
        """A clock was set, it is now [ns]: the episode ends, and nothing from before it is used again."""
        if self._held is not None:
            self._accept(self._held)
        self._end_episode(self._now + 1)
        self._streams.clear()
        self._stand_ins.clear()
        self._arm, self._opening, self._success, self._progress = Series(), Series(), Series(), Series()
        self._last, self._due, self._held, self._start = -1, 0, None, 0
        self._stamps.restart()
        self._sent = clocks.Stamps()
        if self._began is not None:
            self._began += now - self._now
        self._now = now

    def _clock_set(self, note: str) -> None:
        """The clock of a sender was set, as the note says."""
        self.report.clock_set(self._now - (self._began or self._now), note)
        self._restart(self._now)

    def end(self) -> None:
        """The bag is over."""
        if self._held is not None:
            self._accept(self._held)
        self._resolve(over=self._now)
        self._end_episode(self._now + 1)
        self._tell_missing()
        if not self._has_clock:  # arrivals are told in steps of it
            self.report.judge_stamps()
        for topic, (count, why) in self._stamps.foreign.items():
            self.report.bad(topic, why, count)
        for stream, (topic, why) in self._others.items():
            if stream not in self._heard:
                self.report.bad(topic, why)

    def episodes(self) -> Iterator[Recorded]:
        """What became complete since the last call."""
        while self._done:
            yield self._done.pop(0)

    # ---- messages

    def _clock(self, m: Message) -> None:
        stamp = _ns(m.data.clock)
        if self._has_clock and stamp < self._now - clocks.OVERTAKING * NS:
            self.report.bad(m.topic, clocks.set_back(m.topic, (self._now - stamp) / NS))
            self._restart(stamp)
        if not self._has_clock:
            self._streams.clear()  # arrivals were of another clock
            self._streams.simulated = True
            self._stamps = BagStamps()
            if self._began is not None:
                self._began += stamp - self._now
        self._now, self._has_clock = max(self._now, stamp) if self._has_clock else stamp, True

    def _image(self, name: str, m: Message) -> None:
        image = decode_image(m.data, m.topic, order=self.setup.encoding)
        if not self._put(name, m, image):
            return
        found = self._streams.align(self._now)
        if isinstance(found, Missing):
            self._starting.append((self._now, f'{found.stream} {found.reason.value}', found.message))
            if self._last >= 0:
                self._tell_missing()
        elif self._apart(found) >= self._period:
            self.report.unusable['only images of different frames'] += 1
        elif found.t_ref > self._last:
            if self._starting and self._now - self._starting[0][0] < STARTING * NS:
                self._starting = []
            self._last = found.t_ref
            self._candidate(found)
        elif found.t_ref == self._last:
            self._replace(found)
        self._resolve()

    def _tell_missing(self) -> None:
        """Images without a set, and why. That streams do not begin at once is no fault."""
        for _, cause, sentence in self._starting:
            self.report.without_set(cause, sentence)
        self._starting = []

    def _joints(self, m: Message) -> None:
        profile = self.setup.profile
        found = self._own(JOINTS, m, profile.joint_names, decode_joints)
        if found is not None and self._put(JOINTS, m, found):
            self.report.moved(found[0])
            if self.setup.actions == STATES:
                self._arm.put(_ns(m.data.header.stamp), found[0])

    def _fingers(self, m: Message) -> None:
        opening = self._own(GRIPPER, m, self.setup.profile.gripper_joint_names, decode_gripper)
        if opening is not None and self._put(GRIPPER, m, opening) and self.setup.actions == STATES:
            self._opening.put(_ns(m.data.header.stamp), opening)

    def _own(self, stream: str, m: Message, names: Sequence[str], decode: Callable[..., Any]) -> Any:
        """What a message says of these joints; None: it is another sender's on a shared topic. Raises ValueError."""
        if set(m.data.name).isdisjoint(names):
            if stream not in self._others:
                try:
                    decode(m.data, names, m.topic)
                except ValueError as error:
                    self._others[stream] = m.topic, str(error)
            return None
        self._heard.add(stream)
        return decode(m.data, names, m.topic)

    def _set_point(self, m: Message) -> None:
        """As the message's type says, which follows from the executor's `controller`."""
        names = self.setup.profile.joint_names
        stamp = self._now if m.kind == ARRAY else _ns(m.data.header.stamp)
        where = f'set-points on {m.topic}'
        back = self._sent.take(stamp, self._now)
        if self._sent.future:
            raise ValueError(clocks.ahead(where, self._sent.ahead))
        if back:
            self._clock_set(clocks.set_back(where, back))
        if m.kind == TRAJECTORY:
            times, positions = decode_trajectory(m.data, names, m.topic)
            self._arm.forget_from(stamp + times[0])  # replaces what was planned for then
            for time, q in zip(times, positions, strict=True):
                self._arm.put(stamp + time, q)
        else:
            decode = decode_array if m.kind == ARRAY else decode_positions
            self._arm.put(stamp, decode(m.data, names, m.topic))
        self.report.stream('set-points', m.topic).add(stamp)

    def _gripper_command(self, m: Message) -> None:
        value = float(m.data.data[0])
        if not -0.01 <= value <= 1.01:
            raise ValueError(f'gripper command on {m.topic} is {value}, must be 0 closed .. 1 open')
        self._opening.put(self._now, value * self.setup.profile.gripper_max_opening)
        self.report.stream('gripper commands', m.topic).add(self._now)

    def _put(self, name: str, m: Message, value: Any) -> bool:
        """Store it in its stream; False: it was stamped before the recorder's clock was set back, and came after that.

        Raises ValueError for a stamp that is ahead of the clock.
        """
        stamp = _ns(m.data.header.stamp)
        if self._stamps.straggles(name, stamp, self._now):
            return False
        self._stamps.compare(name, m.topic, stamp, self._now)
        self.report.stream(name, m.topic).add(stamp, self._now)
        note = self._streams.put(name, stamp, value, self._now)
        if not note and not self._has_clock and (forward := self._stamps.set_forward(name, stamp, self._now)):
            note = clocks.set_forward(f'{name} on {m.topic}', forward)
        if note:
            self._clock_set(note)
            self._streams.put(name, stamp, value, self._now)
        self._stand_ins.put(name, stamp, value)
        return True

    def _episode(self, m: Message) -> None:
        self._begin_episode(_ns(m.data.header.stamp), m.data.instruction)
        self._sim = {'sim_task': str(m.data.task), 'seed': int(m.data.seed)}
        self._episodes_told = True

    def _told(self, m: Message) -> None:
        """An instruction. Where the simulator tells its episodes, theirs counts."""
        if not self._episodes_told and not self.setup.instruction and m.data.data.strip() != self._instruction:
            self._begin_episode(self._now, m.data.data)

    def _progress_told(self, m: Message) -> None:
        words = m.data.current, features.join(m.data.completed), features.join(m.data.remaining)
        self._progress.put(_ns(m.data.header.stamp), words)

    # ---- frames

    def _candidate(self, found: Aligned) -> None:
        """A complete set: the frame that is wanted next, or not near enough to it, or already behind it."""
        if self._held is not None and abs(found.t_ref - self._due) > abs(self._held.t_ref - self._due):
            self._accept(self._held)
        if self._due and found.t_ref < self._due - self._half:
            return  # the cameras are faster than the dataset
        if self._due and found.t_ref > self._due + self._half:
            for frame in self._stand_ins.frames(self._due, found.t_ref):
                self._accept(frame, stands_in=True)
        if self._due and found.t_ref > self._due + self._half:
            missing = (found.t_ref - self._due) / NS
            self.report.gaps.append(missing)
            self._resolve(over=found.t_ref)
            self._end_segment()
            self._due = 0
        self._held = found
        if found.t_ref >= self._due:
            self._accept(found)

    def _replace(self, found: Aligned) -> None:
        """The newest set again, with an image that came later and is nearer."""
        if self._held is not None and self._held.t_ref == found.t_ref:
            self._held = found
        elif self._pending and self._pending[-1].t_ref == found.t_ref:
            self._pending[-1] = found

    def _apart(self, found: Aligned) -> int:
        """Largest time between two images [ns]."""
        stamps = [found.stamps[name] for name in self.setup.cameras]
        return max(stamps) - min(stamps)

    def _accept(self, found: Aligned, *, stands_in: bool = False) -> None:
        self._held = None
        self._stand_ins.count(stands_in)
        deviation = found.t_ref - self._due if self._due else 0
        self._due = found.t_ref - deviation + self._period + int(FOLLOW * deviation)
        if not self._instruction:
            self.report.dropped['no instruction yet'] += 1
        elif min(found.stamps.values()) < self._start:
            self.report.dropped['from before the episode'] += 1
        else:
            self._pending.append(found)
            for name in self.setup.cameras if stands_in else ():
                if found.t_ref - found.stamps[name] > self._half:
                    self.report.stood_in(name, (found.t_ref - found.stamps[name]) / NS)

    def _resolve(self, over: int | None = None) -> None:
        """Frames whose action is known become part of the episode. over: nothing newer than this [ns] will come."""
        while self._pending:
            frame = self._pending[0]
            due = frame.t_ref + self._period
            action = None
            if over is None and self._now < due + SETTLE * NS:
                return
            if over is None or due <= over:
                action = self._action(due)
            del self._pending[0]
            if action is None:
                ends = over is not None and due > over
                self.report.dropped['last of an episode' if ends else f'no {self.setup.actions} one frame later'] += 1
                self._end_segment()
                continue
            self._add(frame, action)

    def _action(self, due: int) -> np.ndarray | None:
        """(dof + gripper,) [rad], [m]"""
        if self.setup.actions == STATES:
            parts = [self._arm.between(due, JOINT_MAX_AGE), self._opening.between(due, GRIPPER_MAX_AGE)]
        else:
            parts = [self._arm.as_of(due, SET_POINT_MAX_AGE), self._opening.as_of(due, SET_POINT_MAX_AGE)]
        parts = parts if self.setup.gripper else parts[:1]
        return np.hstack(parts) if all(part is not None for part in parts) else None

    def _add(self, frame: Aligned, action: np.ndarray) -> None:
        positions, velocities = frame.values[JOINTS]
        state = np.append(positions, frame.values[GRIPPER]) if self.setup.gripper else positions
        current, completed, remaining = self._words(frame.t_ref)
        row = {
            features.STATE: state.astype(np.float32),
            features.VELOCITY: velocities.astype(np.float32),
            features.ACTION: action.astype(np.float32),
            features.DONE: False,
            features.SUBTASK: current,
            features.COMPLETED: completed,
            features.REMAINING: remaining,
        }
        images = {name: frame.values[name] for name in self.setup.cameras}
        sizes = {name: (e.height, e.width) for name, e in self._segment.encoders.items()}
        for name, image in images.items():
            if sizes.get(name, image.shape[:2]) != image.shape[:2]:
                self.report.dropped[f'the size of the {name} images changed'] += 1
                self._end_segment()
                return
        if not self._segment.rows:
            self._segment_start = frame.t_ref
        self._segment.add(images, row)
        self.report.worst_skew = max(self.report.worst_skew, frame.skew)
        for series in (self._arm, self._opening, self._progress):
            series.forget(frame.t_ref)

    def _words(self, time: int) -> tuple[str, str, str]:
        if self._subtasks:
            since = (time - (self._began or 0)) / NS
            told = [words for at, words in self._subtasks if at <= since]
            return (told[-1] if told else ''), '', ''
        return self._progress.as_of(time) or ('', '', '')

    # ---- episodes

    def _begin_episode(self, start: int, instruction: str) -> None:
        if self._held is not None:
            self._accept(self._held)
        self._end_episode(start)
        self._instruction, self._start, self._due = self.setup.instruction or instruction.strip(), start, 0
        self._progress = Series()
        self._sim = {'sim_task': '', 'seed': -1}

    def _end_episode(self, end: int) -> None:
        """Frames whose action lies behind the end [ns] are not part of it; those after it are of the next one."""
        self._resolve(over=end - 1)
        self._end_segment(end)

    def _end_segment(self, end: int | None = None) -> None:
        segment, self._segment = self._segment, Segment(self.setup.fps)
        if not segment.rows:
            return
        if len(segment.rows) < self.setup.shortest:
            self.report.dropped[f'episodes shorter than {self.setup.shortest} frames'] += len(segment.rows)
            return
        # The simulator takes success back when it begins anew, a moment before it tells the new episode.
        success = self._success.as_of((end if end is not None else self._now) - int(SETTLE * NS))
        extra = {
            'bag': self.report.bag,
            'start': (self._segment_start - (self._began or 0)) / NS,
            'success': 'unknown' if success is None else 'yes' if success else 'no',
            **self._sim,
        }
        self.report.kept += len(segment.rows)
        self.report.episodes += 1
        self._done.append(segment.finish(self._instruction, extra))


def _ns(stamp: Any) -> int:
    return stamp.sec * NS + stamp.nanosec
