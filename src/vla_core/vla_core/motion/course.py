"""The motion that the set-point runs on: where it leads, how far the way is free, and what of it was sent ahead.

Some controllers execute by themselves what they were sent, whatever becomes of the executor. They are sent the motion
of the next moments and a brake behind it: a promise. A control step that comes late finds such a controller somewhere
on that motion. So the course goes on as it was sent, and what was planned from an earlier moment is planned again from
there.
"""

import copy
import math
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from vla_core.motion.brake import brake_ends, verified_brake
from vla_core.motion.chunk import Refusal, Verdict
from vla_core.motion.clearance import Clearance
from vla_core.motion.config import ExecutorConfig
from vla_core.motion.join import Planner
from vla_core.motion.limits import Limits
from vla_core.motion.path import ChunkPath
from vla_core.motion.release import release
from vla_core.motion.smooth import GRID, Motion, Track, averaging_rows
from vla_core.motion.states import Hold
from vla_core.profile import RobotProfile

if TYPE_CHECKING:  # a collision monitor loads Pinocchio
    from vla_core.kinematics.collision_monitor import CollisionMonitor

# [s] A plan that left the motion that was sent so long ago, at a control step and when its message is ready, still
# continues that motion, because what is sent is averaged. So does the plan that was sent, after its brake has begun.
_SOON, _LATEST = 0.0125, 0.015
# Of the acceleration limit, by which the cubics between the points of what is sent ahead may differ from the plan.
_CUBICS = 0.005


class Late(Enum):
    """What the controller has done since the last control step."""

    NOT = 'the plan, as it is'
    BRAKES = 'the brake behind the plan has begun'
    OLD_PLAN = 'the plan that was sent, which is not the plan any more'


@dataclass
class Promise:
    """A motion that is sent ahead. Times count from the last control step."""

    track: Track  # the plan with the brake behind it
    lead: float  # [s] of the plan before the brake; infinite when the plan itself ends
    plan: int
    near: np.ndarray  # (dof,) [rad/s^2] by which the accelerations of cubics between its points may differ from it
    branched: float = 0.0  # [s] since the plan left this motion

    @property
    def duration(self) -> float:
        """[s] until it is at rest."""
        return self.track.duration

    def points(self, spacing: float) -> np.ndarray:
        """(n,) times [s] from now until it is at rest, `spacing` [s] apart at most, for cubics between them."""
        return self.track.points(spacing, self.near)

    def sample(self, ahead: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions [rad] and velocities [rad/s], (n, dof) each, at `ahead` (n,) seconds."""
        return self.track.sample(ahead)

    def elapse(self, seconds: float, plan: int) -> None:
        """The controller goes on for so long, while this is the number of the plan."""
        self.track.advance(seconds)
        self.lead -= seconds
        self.branched += seconds if plan != self.plan else 0.0


class Course:
    """Arrays are (dof,), [rad]. Nothing here decides when to stop, or why."""

    def __init__(self, profile: RobotProfile, config: ExecutorConfig, monitor: 'CollisionMonitor | None') -> None:
        self.limits = Limits(profile, config, monitor.tool_positions if monitor is not None else None)
        self.plan = 0  # grows whenever what will be sent changes
        self.braked = False  # nothing but rest is ahead
        self._hard = Limits(profile, replace(config, velocity_fraction=1.0, acceleration_fraction=1.0))
        smoothing = max(config.smoothing_time, config.period)
        self.track = Track(averaging_rows(smoothing, self._hard.acceleration, profile.jerk))
        self._planner = Planner(self.limits, config)
        self._monitor, self._period = monitor, config.period
        self._clearance: Clearance | None = None
        self._begins = 0  # row of the track that the motion begins with
        self._slows_from = 0  # row of the track from which it only slows down to the end of the chunk
        self._promise: Promise | None = None
        self._waited = 0.0  # [s] since the last control step, by which the motion begins later

    # ---- the motion

    @property
    def here(self) -> Motion:
        """The row that the next motion begins with."""
        return self.track.motion.rows(self.track.head, self.track.head + 1)

    @property
    def slows(self) -> bool:
        """Whether the motion only slows down to the end of its path."""
        return self.track.head >= self._slows_from

    def stand_at(self, positions: np.ndarray) -> None:
        """Stand still here, at once."""
        self.track.hold(positions)
        self.braked, self._clearance = True, None
        self.plan += 1

    def join(self, path: ChunkPath, s: float, whole: bool = False) -> None:
        """Go on along this path from path time s [s], without a jump. Raises Refusal if nothing within the limits does,
        or something is in the way: at its beginning, from where the rest is looked at under way, or, with whole,
        anywhere."""
        motion, slows_from = self._planner.plan(path, s, self.track)
        clearance = self._look_ahead(motion)
        if clearance is not None and not (clearance.all_free() if whole else clearance.safe(0)):
            raise Refusal(Verdict.COLLISION, f'the motion cannot be begun: {clearance.reason[1]}')
        self._follow(motion, clearance)
        self._slows_from = self._begins + slows_from

    def brake(self) -> None:
        """Slow down along the way to rest."""
        self._follow(verified_brake(self._ahead, self.track, self.limits))
        self.braked = True

    def let_go(self, positions: np.ndarray, *, within_acceleration: bool) -> None:
        """Go to where the arm is measured."""
        before = self.here
        if within_acceleration and not self.track.finished:
            before = self._ahead if self.braked else verified_brake(self._ahead, self.track, self.limits)
        self._follow(release(before, positions, self._hard, within_acceleration=within_acceleration))
        self.braked = True

    def blocked(self) -> tuple[Hold, str] | None:
        """Why the arm must stop here: it could not later. None: it may go on."""
        clearance, track = self._clearance, self.track
        if self._monitor is None or clearance is None:
            return None
        if clearance.version != self._monitor.version:  # other obstacles
            clearance = self._look_ahead(self._ahead)
            assert clearance is not None
            self._begins, self._clearance = track.head, clearance
        return None if clearance.safe(track.head - self._begins) else clearance.reason

    # ---- what was sent ahead

    def promise(self, lead: float) -> Promise:
        """The motion from here on to send ahead: `lead` [s] of the plan, less where the arm could not stop in time
        then, and a brake."""
        track, rows, ahead = self.track, round(lead / GRID), self._ahead
        if self._clearance is not None:
            since = track.head - self._begins
            rows = self._clearance.safe_until(since, since + rows) - since
        sent, lasts = copy.copy(track), math.inf
        if rows + 2 < len(ahead.q):
            sent.follow(verified_brake(ahead, track, self.limits, after=rows))
            lasts = rows * GRID - track.since_head
        return Promise(sent, lasts, self.plan, _CUBICS * self._hard.acceleration)

    def in_time(self, late: float) -> bool:
        """Whether a message that is ready `late` [s] after the control step still continues what the controller
        executes. If not the next step plans again."""
        before = self._promise
        if before is None:
            return True
        left = late - before.lead if before.plan == self.plan else late + before.branched
        return left <= _LATEST

    @property
    def may_wait(self) -> bool:
        """Whether the controller stands where the motion begins, so that this may begin later than at the control step.
        Else a machine on which each new plan is ready too late would never begin to move."""
        before = self._promise
        return before is not None and before.duration <= 0 and before.branched <= _SOON

    def sent(self, promise: Promise, waited: float = 0.0) -> None:
        """The controller has this now, and keeps to it. waited: [s] since the control step until it begins."""
        self._promise, self._waited = promise, waited

    def forget_sent(self) -> None:
        """The controller follows nothing that was sent any more."""
        self._promise = None

    @property
    def was_sent(self) -> bool:
        """Whether the controller has a motion that it follows by itself."""
        return self._promise is not None

    def go_on(self, seconds: float) -> Late:
        """Be where the controller has got to after so long. When it does not execute the plan any more, the course is
        what it executes instead."""
        promise, still = self._promise, self.track.finished
        assert promise is not None
        seconds, self._waited = max(0.0, seconds - self._waited), 0.0
        promise.elapse(seconds, self.plan)
        if promise.plan == self.plan:
            late = Late.NOT if promise.lead >= 0 or still else Late.BRAKES
        else:
            late = Late.NOT if promise.branched <= _SOON else Late.OLD_PLAN
        if late is Late.NOT:
            self.track.advance(seconds)
        else:
            self.track, self._clearance = copy.copy(promise.track), None
            self.braked, promise.branched = True, 0.0
            self.plan += 1
        return late

    # ---- inside

    @property
    def _ahead(self) -> Motion:
        track = self.track
        return track.motion.rows(track.head, max(track.ends, track.head) + 2)

    def _follow(self, motion: Motion, clearance: Clearance | None = None) -> None:
        self.track.follow(motion)
        self._begins, self._clearance, self.braked = self.track.head, clearance, False
        self.plan += 1

    def _look_ahead(self, motion: Motion) -> Clearance | None:
        if self._monitor is None:
            return None
        ahead = math.ceil(2 * self._period / GRID) + 1  # a control step at most
        return Clearance(self._monitor, motion.q, brake_ends(motion, self.limits.braking), ahead)
