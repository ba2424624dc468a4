"""One recorded bag to episodes: streams aligned as the policy node does it, thinned to the frame rate, with actions.

A frame stands for its t_ref, the time at which the policy node would have begun to think (observe/streams.py); its
action is what was due, or done, one frame later. Frames are wanted at the frame rate; the grid follows the cameras'
clock slowly. Where the next frame is missing the episode ends and another one begins, because frames follow one
another without gaps in a dataset.
"""

import functools
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vla_policy_node.core.profile import RobotProfile, profile_parameters
from vla_policy_node.intake import GRIPPER_MAX_AGE, JOINT_MAX_AGE, stream_specs
from vla_policy_node.observe.streams import GRIPPER, JOINTS, NS, Aligned, Missing, Streams
from vla_policy_node.ros.images import COMPRESSED, decode_image
from vla_policy_node.ros.joints import (
    decode_array,
    decode_gripper,
    decode_joints,
    decode_positions,
    decode_trajectory,
)
from vla_training import features
from vla_training.bag import Message, topics_seen
from vla_training.conversion_report import BagReport
from vla_training.lerobot.video import VideoEncoder

SET_POINT_MAX_AGE = 0.3  # [s] gripper commands come at 10 Hz
SETTLE = 0.2  # [s] after an action is due until it counts: an episode that ends meanwhile takes the frame with it
FOLLOW = 0.1  # share of a frame's deviation by which the grid of frames moves
STATES, SET_POINTS = 'states', 'set-points'
TRAJECTORY, ARRAY = 'trajectory_msgs/msg/JointTrajectory', 'std_msgs/msg/Float64MultiArray'  # else JointState


@dataclass(frozen=True)
class Setup:
    """What is in the bags, and what to make of it. Topics are absolute."""

    profile: RobotProfile
    cameras: dict[str, str]  # name -> topic
    joint_states: str
    gripper_joint_states: str
    joint_command: str
    gripper_command: str
    namespace: str
    fps: int
    actions: str  # STATES or SET_POINTS
    instruction: str = ''  # for every episode; empty: as the bag says
    shortest: int = 10  # [frame] of an episode

    @classmethod
    def load(cls, robot: str | Path, *, namespace: str = '', **settings: Any) -> 'Setup':
        """From a robot profile, by name or file. Raises ValueError naming what it lacks."""
        profile, parameters = RobotProfile.load(robot), profile_parameters(robot)
        prefix = f'/{namespace.strip("/")}' if namespace.strip('/') else ''

        def absolute(topic: str) -> str:
            return topic if topic.startswith('/') else f'{prefix}/{topic}'

        try:
            names, topics = parameters['cameras'], parameters['camera_topics']
            found = {name: absolute(topic) for name, topic in parameters['topics'].items()}
            return cls(
                profile=profile,
                cameras={n: absolute(t) for n, t in zip(names, topics, strict=True)},
                joint_states=found['joint_states'],
                gripper_joint_states=found['gripper_joint_states'],
                joint_command=found['joint_command'],
                gripper_command=found['gripper_command'],
                namespace=prefix,
                **settings,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f'the robot profile {robot} lacks topics or cameras ({error})') from error

    def topic(self, name: str) -> str:
        return f'{self.namespace}/{name}'

    def found_in(self, bag: Path) -> tuple['Setup', dict[str, str]]:
        """With cameras read from `<topic>/compressed` where the bag has their images there; and topic -> type of what
        the bag begins with. Raises ValueError when the path is no bag."""
        pairs = {name: (topic, topic.removesuffix(COMPRESSED) + COMPRESSED) for name, topic in self.cameras.items()}
        # What a camera's images are is known once each has sent one; in a bag that lacks one, at its end.
        seen = topics_seen(bag, lambda seen: all(a in seen or b in seen for a, b in pairs.values()))
        cameras = {name: next((t for t in seen if t in pair), pair[0]) for name, pair in pairs.items()}
        return replace(self, cameras=cameras), seen

    @property
    def gripper(self) -> bool:
        return bool(self.profile.gripper_joint_names)

    @property
    def streams(self) -> dict[str, str]:
        """Stream -> topic of everything that a complete set needs."""
        fingers = {GRIPPER: self.gripper_joint_states} if self.gripper else {}
        return {**self.cameras, JOINTS: self.joint_states, **fingers}


@dataclass(frozen=True)
class Recorded:
    """One episode as DatasetWriter takes it."""

    columns: dict[str, Any]
    videos: dict[str, bytes]
    sizes: dict[str, tuple[int, int]]  # camera -> (height, width)
    instruction: str
    extra: dict[str, Any]


@dataclass
class Series:
    """Values by time."""

    stamps: list[int] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)

    def put(self, stamp: int, value: Any) -> None:
        i = bisect_right(self.stamps, stamp)
        self.stamps.insert(i, stamp)
        self.values.insert(i, value)

    def as_of(self, time: int, max_age: float = np.inf) -> Any:
        """The newest value not newer than time [ns]; None: there is none, or it is older than max_age [s]."""
        i = bisect_right(self.stamps, time) - 1
        return self.values[i] if i >= 0 and time - self.stamps[i] <= max_age * NS else None

    def between(self, time: int, max_gap: float) -> Any:
        """Linear between the two values around time [ns]; None: one is missing, or they are max_gap [s] apart."""
        i = bisect_right(self.stamps, time)
        if i == 0 or i == len(self.stamps):
            return self.values[i - 1] if i and self.stamps[i - 1] == time else None
        a, b = self.stamps[i - 1], self.stamps[i]
        if b - a > max_gap * NS:
            return None
        return self.values[i - 1] + (self.values[i] - self.values[i - 1]) * ((time - a) / (b - a))

    def forget_from(self, time: int) -> None:
        """What is of time [ns] or later."""
        i = bisect_left(self.stamps, time)
        del self.stamps[i:], self.values[i:]

    def forget(self, time: int) -> None:
        """What is older than the value as of time [ns]."""
        i = bisect_right(self.stamps, time) - 1
        if i > 0:
            del self.stamps[:i], self.values[:i]


class Segment:
    """Frames that follow one another, being written."""

    def __init__(self, fps: int) -> None:
        self.fps, self.rows = fps, list[dict[str, Any]]()
        self.encoders: dict[str, VideoEncoder] = {}

    def add(self, images: dict[str, np.ndarray], row: dict[str, Any]) -> None:
        for name, pixels in images.items():
            self.encoders.setdefault(name, VideoEncoder(pixels.shape[0], pixels.shape[1], self.fps)).add(pixels)
        self.rows.append(row)

    def finish(self, instruction: str, extra: dict[str, Any]) -> Recorded:
        self.rows[-1][features.DONE] = True
        videos = {features.image(name): encoder.finish() for name, encoder in self.encoders.items()}
        sizes = {name: (encoder.height, encoder.width) for name, encoder in self.encoders.items()}
        return Recorded(features.columns_of(self.rows), videos, sizes, instruction, extra)


class Recording:
    """Takes the messages of one bag in order; `episodes` gives what became complete."""

    def __init__(self, setup: Setup, report: BagReport, subtasks: list[tuple[float, str]]) -> None:
        """subtasks: (time since the bag began [s], words), by time; empty: as the bag says."""
        self.setup, self.report, self._subtasks = setup, report, subtasks
        self._period, self._half = NS // setup.fps, NS // setup.fps // 2
        specs = stream_specs(setup.profile, setup.cameras, setup.joint_states, setup.gripper_joint_states)
        self._streams = Streams(specs, clock='the recorder')
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
        self._hear(setup.topic('expert/progress'), self._progress_told)

        self._now, self._has_clock = 0, False  # [ns] ROS time at which the message in hand came
        self._began: int | None = None  # same, the first one
        self._arm, self._opening = Series(), Series()  # what the actions are taken from
        self._success, self._progress = Series(), Series()
        self._instruction, self._start, self._sim = setup.instruction, 0, {'sim_task': '', 'seed': -1}
        self._episodes_told = False
        self._last, self._due = -1, 0  # [ns] t_ref of the newest set; when the next frame is wanted, 0: any time
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
        if not self._has_clock:
            self._now = message.time
        for take in self._takes.get(message.topic, ()):
            try:
                take(message)
            except (ValueError, AttributeError, TypeError, IndexError) as error:  # wrong content, or another type
                self.report.bad(message.topic, str(error))
        if self._began is None and self._now:
            self._began = self._now

    def end(self) -> None:
        """The bag is over."""
        if self._held is not None:
            self._accept(self._held)
        self._resolve(over=self._now)
        self._end_episode(self._now + 1)

    def episodes(self) -> Iterator[Recorded]:
        """What became complete since the last call."""
        while self._done:
            yield self._done.pop(0)

    # ---- messages

    def _clock(self, m: Message) -> None:
        stamp = _ns(m.data.clock)
        if self._has_clock and stamp < self._now - NS:
            self.report.bad(m.topic, f'the clock went back from {self._now / NS:.3f} s to {stamp / NS:.3f} s')
            self._end_episode(self._now + 1)
            self._streams.clear()
            self._arm, self._opening, self._success, self._progress = Series(), Series(), Series(), Series()
            self._last, self._due, self._held, self._start = -1, 0, None, 0
        if not self._has_clock:
            self._streams.clear()  # arrivals were of another clock
        self._now, self._has_clock = stamp, True

    def _image(self, name: str, m: Message) -> None:
        image = decode_image(m.data, m.topic)
        self._put(name, m, image)
        found = self._streams.align(self._now)
        if isinstance(found, Missing):
            self.report.unusable[f'{found.stream} {found.reason.value}'] += 1
        elif self._apart(found) >= self._period:
            self.report.unusable['only images of different frames'] += 1
        elif found.t_ref > self._last:
            self._last = found.t_ref
            self._candidate(found)
        elif found.t_ref == self._last:
            self._replace(found)
        self._resolve()

    def _joints(self, m: Message) -> None:
        if set(m.data.name) & set(self.setup.profile.joint_names):  # else another sender's
            positions, velocities = decode_joints(m.data, self.setup.profile.joint_names, m.topic)
            self._put(JOINTS, m, (positions, velocities))
            if self.setup.actions == STATES:
                self._arm.put(_ns(m.data.header.stamp), positions)

    def _fingers(self, m: Message) -> None:
        if set(m.data.name) & set(self.setup.profile.gripper_joint_names):
            opening = decode_gripper(m.data, self.setup.profile.gripper_joint_names, m.topic)
            self._put(GRIPPER, m, opening)
            if self.setup.actions == STATES:
                self._opening.put(_ns(m.data.header.stamp), opening)

    def _set_point(self, m: Message) -> None:
        """As the message's type says, which follows from the executor's `controller`."""
        names = self.setup.profile.joint_names
        stamp = self._now if m.kind == ARRAY else _ns(m.data.header.stamp)
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

    def _put(self, name: str, m: Message, value: Any) -> None:
        stamp = _ns(m.data.header.stamp)
        note = self._streams.put(name, stamp, value, self._now)
        if note:
            self.report.bad(m.topic, note)
        self.report.stream(name, m.topic).add(stamp)

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

    def _accept(self, found: Aligned) -> None:
        self._held = None
        deviation = found.t_ref - self._due if self._due else 0
        self._due = found.t_ref - deviation + self._period + int(FOLLOW * deviation)
        if not self._instruction:
            self.report.dropped['no instruction yet'] += 1
        elif min(found.stamps.values()) < self._start:
            self.report.dropped['from before the episode'] += 1
        else:
            self._pending.append(found)

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
