"""The frames of one bag, made into episodes: thinned to the frame rate, each with its action.

Frames are wanted at the frame rate; the grid follows the cameras' clock slowly. The action of a frame is the state or
set-point one frame later. Where the next frame is missing the episode ends and another one starts: frames follow one
another without gaps in a data set. An image from shortly before can stand in for a single missing one (stand_ins.py).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from vla_core.observe.streams import GRIPPER, GRIPPER_MAX_AGE, JOINT_MAX_AGE, JOINTS, NS, Aligned
from vla_training.bag.setup import STATES, Setup
from vla_training.convert.episode_parts import Recorded, Segment, Series
from vla_training.convert.report import BagReport
from vla_training.convert.stand_ins import StandIns
from vla_training.data import features

SET_POINT_MAX_AGE = 0.3  # [s] gripper commands come at 10 Hz
SETTLE = 0.2  # [s] after an action is due until it counts: an episode that ends meanwhile takes the frame with it
FOLLOW = 0.1  # share of a frame's deviation by which the grid of frames moves


@dataclass
class BagClock:
    """The ROS time [ns] of the message in hand, and of the first one by the clock as it is now; None before it."""

    now: int = 0
    began: int | None = None


class EpisodeBuilder:
    """Takes aligned sets of one bag in order; `episodes` gives the episodes that became complete.

    The caller puts states, set-points, success and progress into the series `arm`, `opening`, `success` and `progress`.
    """

    def __init__(
        self,
        setup: Setup,
        report: BagReport,
        clock: BagClock,
        stand_ins: StandIns,
        subtasks: list[tuple[float, str]],
        labels: Callable[[Aligned], dict[str, np.ndarray]],
    ) -> None:
        """subtasks: (time since the bag started [s], words), by time; empty: the series `progress` gives them.

        labels: returns further columns of a frame.
        """
        self._labels = labels
        self.setup, self.report, self.clock, self.stand_ins, self._subtasks = setup, report, clock, stand_ins, subtasks
        self._period, self._half = NS // setup.fps, NS // setup.fps // 2
        self.arm, self.opening = Series(), Series()  # what the actions are taken from
        self.success, self.progress = Series(), Series()
        self.instruction, self._start, self.sim = setup.instruction, 0, {'sim_task': '', 'seed': -1}
        self._due = 0  # [ns] when the next frame is wanted, 0: any time
        self._held: Aligned | None = None  # near to where a frame is wanted; a nearer one may come
        self._pending: list[Aligned] = []  # frames whose action is not known yet
        self._segment = Segment(setup.fps)
        self._done: list[Recorded] = []

    def end(self) -> None:
        """End the episode: nothing follows the message in hand."""
        self._take_held()
        self.resolve(over=self.clock.now)
        self._end_episode(self.clock.now + 1)

    def restart(self) -> None:
        """A clock was set: end the episode, and forget all that is from before."""
        self._take_held()
        self._end_episode(self.clock.now + 1)
        self.stand_ins.clear()
        self.arm, self.opening, self.success, self.progress = Series(), Series(), Series(), Series()
        self._due, self._held, self._start = 0, None, 0

    def _take_held(self) -> None:
        if self._held is not None:
            self._accept(self._held)

    # ---- frames

    def candidate(self, found: Aligned) -> None:
        """Take a complete set: it is the next frame of the grid, too far from it, or already behind it."""
        if self._held is not None and abs(found.t_ref - self._due) > abs(self._held.t_ref - self._due):
            self._accept(self._held)
        if self._due and found.t_ref < self._due - self._half:
            return  # the cameras are faster than the dataset
        if self._due and found.t_ref > self._due + self._half:
            for frame in self.stand_ins.frames(self._due, found.t_ref):
                self._accept(frame, stands_in=True)
        if self._due and found.t_ref > self._due + self._half:
            missing = (found.t_ref - self._due) / NS
            self.report.gaps.append(missing)
            self.resolve(over=found.t_ref)
            self._end_segment()
            self._due = 0
        self._held = found
        if found.t_ref >= self._due:
            self._accept(found)

    def replace(self, found: Aligned) -> None:
        """Replace the newest set by one with an image that arrived later and is nearer."""
        if self._held is not None and self._held.t_ref == found.t_ref:
            self._held = found
        elif self._pending and self._pending[-1].t_ref == found.t_ref:
            self._pending[-1] = found

    def apart(self, found: Aligned) -> int:
        """Return the largest time between two images of a set [ns]."""
        stamps = [found.stamps[name] for name in self.setup.cameras]
        return max(stamps) - min(stamps)

    def _accept(self, found: Aligned, *, stands_in: bool = False) -> None:
        self._held = None
        self.stand_ins.count(stands_in)
        deviation = found.t_ref - self._due if self._due else 0
        self._due = found.t_ref - deviation + self._period + int(FOLLOW * deviation)
        if not self.instruction:
            self.report.dropped['no instruction yet'] += 1
        elif min(found.stamps.values()) < self._start:
            self.report.dropped['from before the episode'] += 1
        else:
            self._pending.append(found)
            for name in self.setup.cameras if stands_in else ():
                if found.t_ref - found.stamps[name] > self._half:
                    self.report.stood_in(name, (found.t_ref - found.stamps[name]) / NS)

    def resolve(self, over: int | None = None) -> None:
        """Add the frames whose action is known to the episode. over: no newer message than this [ns] will follow."""
        while self._pending:
            frame = self._pending[0]
            due = frame.t_ref + self._period
            action = None
            if over is None and self.clock.now < due + SETTLE * NS:
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
        """Return the action due at a time [ns], (dof + gripper,) [rad], [m]; None: it is unknown."""
        if self.setup.actions == STATES:
            parts = [self.arm.between(due, JOINT_MAX_AGE), self.opening.between(due, GRIPPER_MAX_AGE)]
        else:
            parts = [self.arm.as_of(due, SET_POINT_MAX_AGE), self.opening.as_of(due, SET_POINT_MAX_AGE)]
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
            **self._labels(frame),
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
        for series in (self.arm, self.opening, self.progress):
            series.forget(frame.t_ref)

    def _words(self, time: int) -> tuple[str, str, str]:
        if self._subtasks:
            since = (time - (self.clock.began or 0)) / NS
            current = [words for at, words in self._subtasks if at <= since]
            return (current[-1] if current else ''), '', ''
        return self.progress.as_of(time) or ('', '', '')

    # ---- episodes

    def episodes(self) -> Iterator[Recorded]:
        """Yield the episodes that became complete since the last call."""
        while self._done:
            yield self._done.pop(0)

    def begin(self, start: int, instruction: str) -> None:
        """End the episode before, and start one at time `start` [ns] with this instruction."""
        self._take_held()
        self._end_episode(start)
        self.instruction, self._start, self._due = self.setup.instruction or instruction.strip(), start, 0
        self.progress = Series()
        self.sim = {'sim_task': '', 'seed': -1}

    def _end_episode(self, end: int) -> None:
        """End the episode at `end` [ns], without frames whose action is later. Frames after it are of the next one."""
        self.resolve(over=end - 1)
        self._end_segment(end)

    def _end_segment(self, end: int | None = None) -> None:
        segment, self._segment = self._segment, Segment(self.setup.fps)
        if not segment.rows:
            return
        if len(segment.rows) < self.setup.shortest:
            self.report.dropped[f'episodes shorter than {self.setup.shortest} frames'] += len(segment.rows)
            return
        # The simulator resets success when it restarts, a moment before it publishes the new episode.
        success = self.success.as_of((end if end is not None else self.clock.now) - int(SETTLE * NS))
        extra = {
            'bag': self.report.bag,
            'start': (self._segment_start - (self.clock.began or 0)) / NS,
            'success': 'unknown' if success is None else 'yes' if success else 'no',
            **self.sim,
        }
        self.report.kept += len(segment.rows)
        self.report.episodes += 1
        self._done.append(segment.finish(self.instruction, extra))
