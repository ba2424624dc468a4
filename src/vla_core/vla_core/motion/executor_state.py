"""The state of the chunk executor, and the values that its status reports."""

import math
from typing import TYPE_CHECKING

import numpy as np

from vla_core.motion.chunk import Verdict
from vla_core.motion.chunk_blending import ChunkBlending
from vla_core.motion.config import ExecutorConfig
from vla_core.motion.course import Course
from vla_core.motion.measured import Measured
from vla_core.motion.path import ChunkPath
from vla_core.motion.smooth import TrajectoryBuffer
from vla_core.motion.states import FAULTS, Hold, State
from vla_core.motion.tracking import Tracking
from vla_core.profile import RobotProfile

if TYPE_CHECKING:  # a collision monitor loads Pinocchio
    from vla_core.kinematics.collision_monitor import CollisionMonitor

FROZEN = (
    'joint states repeat the same values to the last bit while the set-points moved: the driver repeats old values, or '
    'the arm is switched off. Restart the driver or switch the arm on, then call ~/resume'
)


class ExecutorState:
    """The state of one executor, and read-only queries. Times are int [ns] of one clock."""

    def __init__(
        self,
        profile: RobotProfile,
        config: ExecutorConfig | None = None,
        monitor: 'CollisionMonitor | None' = None,
        blending: ChunkBlending | None = None,
    ) -> None:
        """monitor: checks motions for collisions and limits the tool's speed; None: no such checks.

        blending: strategy to blend a chunk with earlier ones; None: the newest chunk alone.
        """
        self.profile = profile
        self.config = config or ExecutorConfig()
        self.state = State.INACTIVE
        self.hold = Hold.DEACTIVATED
        self.message = ''
        self.epoch = 0
        self.source = ''
        self.sequence = 0
        self.verdict = Verdict.ACCEPTED
        self.verdict_counts = [0] * len(Verdict)
        self.seam_position = 0.0  # [rad] largest joint distance between motion and newest chunk at the switch
        self.seam_velocity = 0.0  # [rad/s] the same of velocities
        self.rate = 0.0  # path time per clock time
        self.muted = False  # set-points are not sent: another node, or none, commands the arm
        self.course = Course(profile, self.config, monitor)
        self.limits = self.course.limits
        self._blending = blending or ChunkBlending('latest')
        self._tracking = Tracking(
            self.config.tracking_delay,
            self.config.period,
            self.config.tracking_limit,
            self.config.joint_state_max_age,
        )
        self._measured = Measured(profile, self.config.joint_state_max_age)
        self._faults: dict[Hold, str] = {}  # faults in force, and their messages
        self._leaving = False  # becomes inactive once at rest
        self._gripper: float | None = None
        self._path: ChunkPath | None = None
        self._path_gripper = np.zeros(0)
        self._releasing = False  # the motion leads to the measured position
        self._late = False  # this control step is late, the one before was not
        self._stalled = 0.0  # [s] lag of the motion caused by late control steps
        self._t_ref = 0  # [ns] of the path
        self._seen: int | None = 0  # [ns] of the chunk's observation; None: the motion to the start has none
        self._now: int | None = None
        self._positions: np.ndarray | None = None  # the set-point; None before the first activation

    @property
    def has_joint_state(self) -> bool:
        """Whether any joint state was received, trusted or not."""
        return self._measured.received

    @property
    def measured(self) -> np.ndarray | None:
        """Positions (dof,) [rad] of the newest trusted joint state; None before the first."""
        return self._measured.positions

    @property
    def joint_state_problem(self) -> str:
        """Sentence why the newest joint state is not trusted; '' if it is."""
        return self._measured.problem

    @property
    def frozen(self) -> str:
        """Sentence why the joint states of an arm at rest count as frozen; '' if they do not."""
        return FROZEN if self._tracking.frozen or self._tracking.unmoved else ''

    @property
    def planned_positions(self) -> np.ndarray:
        """Positions (dof,) [rad] at the head of the trajectory buffer; set-points follow them within `lag`."""
        return self._buffer.motion.q[self._buffer.head]

    @property
    def at_rest(self) -> bool:
        return self.state in (State.INACTIVE, State.HOLDING)

    @property
    def accepting(self) -> bool:
        """Whether a valid chunk would be accepted now."""
        ending = self._leaving or self._releasing or (self.hold in FAULTS and self.state is State.BRAKING)
        return self.state is not State.INACTIVE and not self._faults and not ending and not self._goes_to_start

    def horizon_left(self) -> float:
        """Return the path time until the end of the executed chunk [s]; 0 without one."""
        if self._path is None or self.state is not State.EXECUTING:
            return 0.0
        return max(0.0, self._path.end - float(self._buffer.motion.s[self._buffer.head]))

    def chunk_age(self, now: int) -> float:
        """Return now - t_ref of the executed chunk [s]; 0 without one. now: [ns]."""
        return (now - self._seen) * 1e-9 if self.state is State.EXECUTING and self._seen is not None else 0.0

    def joint_state_age(self, now: int) -> float:
        """Return the age [s] of the newest trusted joint state by stamp or arrival; infinite without one."""
        return self._measured.age(now)

    def limit_margin(self) -> float:
        """Return the least distance of a joint to its position limit [rad]; NaN before the first activation."""
        if self._positions is None:
            return math.nan
        q = self._positions
        return float(np.minimum(q - self.limits.lower, self.limits.upper - q).min())

    def tracking_error(self) -> float:
        """Return the largest |set-point - measured| over the joints [rad]; 0 while either is unknown."""
        if self.measured is None or self._positions is None:
            return 0.0
        return float(np.abs(self._positions - self.measured).max())

    @property
    def _buffer(self) -> TrajectoryBuffer:
        return self.course.buffer

    @property
    def _goes_to_start(self) -> bool:
        return self.state is State.EXECUTING and self._seen is None

    @property
    def _moves(self) -> bool:
        return self.state in (State.EXECUTING, State.BRAKING) and not self._buffer.finished
