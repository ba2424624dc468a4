"""The motion of the set-point: its plan, its clearance from obstacles, and the part that was sent ahead.

Some controllers execute by themselves what they were sent, whatever happens to the executor. They are sent the motion
of the next moments and a brake behind it: a promise. A late control step finds such a controller somewhere on that
motion. The course then continues from there as it was sent, and newer requests are planned again from there.
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
from vla_core.motion.smooth import GRID, Motion, TrajectoryBuffer, averaging_rows
from vla_core.motion.states import Hold
from vla_core.profile import RobotProfile

if TYPE_CHECKING:  # a collision monitor loads Pinocchio
    from vla_core.kinematics.collision_monitor import CollisionMonitor

# [s] A plan may have left the motion that was sent by this long ago, at a control step and when its message is ready.
# It still continues that motion, because set-points are averages. This also holds after the start of the brake.
_SOON, _LATEST = 0.0125, 0.015
# Share of the acceleration limit by which cubics between the points sent ahead may differ from the plan.
_CUBICS = 0.005


class Late(Enum):
    """Motion that the controller executed since the last control step."""

    NOT = 'the present plan'
    BRAKES = 'the brake behind the plan has begun'
    OLD_PLAN = 'an older plan, because the present one was not sent'


@dataclass
class Promise:
    """A motion that is sent ahead. Times count from the last control step."""

    buffer: TrajectoryBuffer  # the plan, and the brake behind it
    lead: float  # [s] of the plan before the brake; infinite when the plan itself ends
    plan: int
    near: np.ndarray  # (dof,) [rad/s^2] tolerance of the accelerations of cubics between its points
    branched: float = 0.0  # [s] since the plan left this motion

    @property
    def duration(self) -> float:
        """Time until it is at rest [s]."""
        return self.buffer.duration

    def points(self, spacing: float) -> np.ndarray:
        """Return times (n,) [s] from now until rest, at most `spacing` [s] apart, for cubics between them."""
        return self.buffer.points(spacing, self.near)

    def sample(self, ahead: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return positions [rad] and velocities [rad/s], (n, dof) each, at times `ahead` (n,) [s] from now."""
        return self.buffer.sample(ahead)

    def elapse(self, seconds: float, plan: int) -> None:
        """Advance by `seconds` that the controller executed. plan: number of the present plan."""
        self.buffer.advance(seconds)
        self.lead -= seconds
        self.branched += seconds if plan != self.plan else 0.0


class Course:
    """Plans and advances the motion; when to stop, and why, is decided elsewhere. Arrays are (dof,) [rad]."""

    def __init__(self, profile: RobotProfile, config: ExecutorConfig, monitor: 'CollisionMonitor | None') -> None:
        self.limits = Limits(profile, config, monitor.tool_positions if monitor is not None else None)
        self.plan = 0  # grows whenever the set-points to be sent change
        self.braked = False  # the motion only leads to rest
        self._hard = Limits(profile, replace(config, velocity_fraction=1.0, acceleration_fraction=1.0))
        smoothing = max(config.smoothing_time, config.period)
        self.buffer = TrajectoryBuffer(averaging_rows(smoothing, self._hard.acceleration, profile.jerk))
        self._planner = Planner(self.limits, config)
        self._monitor, self._period = monitor, config.period
        self._clearance: Clearance | None = None
        self._begins = 0  # row of the buffer at which the motion starts
        self._slows_from = 0  # row of the buffer from which the motion only slows down to the end of the chunk
        self._promise: Promise | None = None
        self._waited = 0.0  # [s] from the last control step to the start of the motion

    # ---- the motion

    @property
    def here(self) -> Motion:
        """The row at which the next motion starts, (1, dof) arrays."""
        return self.buffer.motion.rows(self.buffer.head, self.buffer.head + 1)

    @property
    def slows(self) -> bool:
        """Whether the motion only slows down to the end of its path."""
        return self.buffer.head >= self._slows_from

    def stand_at(self, positions: np.ndarray) -> None:
        """Hold these positions (dof,) [rad] from now on, without a motion to them."""
        self.buffer.hold(positions)
        self.braked, self._clearance = True, None
        self.plan += 1

    def join(self, path: ChunkPath, s: float, whole: bool = False) -> None:
        """Continue along this path from path time s [s], without a jump.

        Raises Refusal if no motion within the limits does, or if the path is blocked. Without `whole` only its start
        is checked now, and the rest during the motion; with `whole` all of it is checked.
        """
        motion, slows_from = self._planner.plan(path, s, self.buffer)
        clearance = self._look_ahead(motion)
        if clearance is not None and not (clearance.all_free() if whole else clearance.safe(0)):
            raise Refusal(Verdict.COLLISION, f'the motion cannot start: {clearance.reason[1]}')
        self._follow(motion, clearance)
        self._slows_from = self._begins + slows_from

    def brake(self) -> None:
        """Brake to rest along the path."""
        self._follow(verified_brake(self._ahead, self.buffer, self.limits))
        self.braked = True

    def let_go(self, positions: np.ndarray, *, within_acceleration: bool) -> None:
        """Move the set-point to the measured positions (dof,) [rad], see release.py."""
        before = self.here
        if within_acceleration and not self.buffer.finished:
            before = self._ahead if self.braked else verified_brake(self._ahead, self.buffer, self.limits)
        self._follow(release(before, positions, self._hard, within_acceleration=within_acceleration))
        self.braked = True

    def blocked(self) -> tuple[Hold, str] | None:
        """Return why the arm must stop now because it could not later: hold and message. None: it may continue."""
        clearance, buffer = self._clearance, self.buffer
        if self._monitor is None or clearance is None:
            return None
        if clearance.version != self._monitor.version:  # other obstacles
            clearance = self._look_ahead(self._ahead)
            assert clearance is not None
            self._begins, self._clearance = buffer.head, clearance
        return None if clearance.safe(buffer.head - self._begins) else clearance.reason

    # ---- what was sent ahead

    def promise(self, lead: float) -> Promise:
        """Return the motion to send ahead: `lead` [s] of the plan, and a brake behind it.

        The lead is shorter where the arm could not stop before an obstacle otherwise.
        """
        buffer, rows, ahead = self.buffer, round(lead / GRID), self._ahead
        if self._clearance is not None:
            since = buffer.head - self._begins
            rows = self._clearance.safe_until(since, since + rows) - since
        sent, lasts = copy.copy(buffer), math.inf
        if rows + 2 < len(ahead.q):
            sent.follow(verified_brake(ahead, buffer, self.limits, after=rows))
            lasts = rows * GRID - buffer.since_head
        return Promise(sent, lasts, self.plan, _CUBICS * self._hard.acceleration)

    def in_time(self, late: float) -> bool:
        """Return whether a message that is ready `late` [s] after the control step continues the executed motion.

        If it does not, the next control step plans again.
        """
        before = self._promise
        if before is None:
            return True
        left = late - before.lead if before.plan == self.plan else late + before.branched
        return left <= _LATEST

    @property
    def may_wait(self) -> bool:
        """Whether the controller rests at the start of the motion, which may then start after the control step.

        Without this, a machine on which each new plan is ready too late would never start to move.
        """
        before = self._promise
        return before is not None and before.duration <= 0 and before.branched <= _SOON

    def sent(self, promise: Promise, waited: float = 0.0) -> None:
        """Record what the controller executes from now on. waited: [s] from the control step to its start."""
        self._promise, self._waited = promise, waited

    def forget_sent(self) -> None:
        """Record that the controller executes no motion that was sent ahead."""
        self._promise = None

    @property
    def was_sent(self) -> bool:
        """Whether the controller executes a motion that was sent ahead."""
        return self._promise is not None

    def advance_as_sent(self, seconds: float) -> Late:
        """Advance by `seconds` to where the controller is, and return which motion it executed.

        If this is no longer the present plan, the course becomes the executed motion.
        """
        promise, still = self._promise, self.buffer.finished
        assert promise is not None
        seconds, self._waited = max(0.0, seconds - self._waited), 0.0
        promise.elapse(seconds, self.plan)
        if promise.plan == self.plan:
            late = Late.NOT if promise.lead >= 0 or still else Late.BRAKES
        else:
            late = Late.NOT if promise.branched <= _SOON else Late.OLD_PLAN
        if late is Late.NOT:
            self.buffer.advance(seconds)
        else:
            self.buffer, self._clearance = copy.copy(promise.buffer), None
            self.braked, promise.branched = True, 0.0
            self.plan += 1
        return late

    # ---- inside

    @property
    def _ahead(self) -> Motion:
        buffer = self.buffer
        return buffer.motion.rows(buffer.head, max(buffer.ends, buffer.head) + 2)

    def _follow(self, motion: Motion, clearance: Clearance | None = None) -> None:
        self.buffer.follow(motion)
        self._begins, self._clearance, self.braked = self.buffer.head, clearance, False
        self.plan += 1

    def _look_ahead(self, motion: Motion) -> Clearance | None:
        if self._monitor is None:
            return None
        ahead = math.ceil(2 * self._period / GRID) + 1  # a control step at most
        return Clearance(self._monitor, motion.q, brake_ends(motion, self.limits.braking), ahead)
