"""What the executor of chunks knows, and what its status reports."""

import math
from typing import TYPE_CHECKING

import numpy as np

from vla_core.motion.chunk import Verdict
from vla_core.motion.chunk_blending import ChunkBlending
from vla_core.motion.config import ExecutorConfig
from vla_core.motion.course import Course
from vla_core.motion.measured import Measured
from vla_core.motion.path import ChunkPath
from vla_core.motion.smooth import Track
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
    """The state of one executor, and questions about it that change nothing. Times are int ns of one clock."""

    def __init__(
        self,
        profile: RobotProfile,
        config: ExecutorConfig | None = None,
        monitor: 'CollisionMonitor | None' = None,
        blending: ChunkBlending | None = None,
    ) -> None:
        """monitor: keeps the arm from what it must not touch, and the tool from speeding. None: nothing does.
        blending: how a chunk goes with those before it; None: the newest chunk alone.
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
        self.seam_position = 0.0  # [rad] largest joint jump that the newest chunk would have made
        self.seam_velocity = 0.0  # [rad/s]
        self.rate = 0.0  # path time per clock time
        self.muted = False  # what `step` gives is not sent: another node has the arm, or none
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
        self._faults: dict[Hold, str] = {}  # that stand, and their messages
        self._leaving = False  # to be inactive once at rest
        self._gripper: float | None = None
        self._path: ChunkPath | None = None
        self._path_gripper = np.zeros(0)
        self._releasing = False  # the track leads to where the arm is
        self._late = False  # this control step came late, the one before did not
        self._stalled = 0.0  # [s] by which late control steps have put the motion behind
        self._t_ref = 0  # [ns] of the path
        self._seen: int | None = 0  # [ns] of the observation that is answered; None: none, on the way to the start
        self._now: int | None = None
        self._positions: np.ndarray | None = None  # the set-point, None until there is a joint state to hold

    @property
    def has_joint_state(self) -> bool:
        """Whether any came, trusted or not."""
        return self._measured.received

    @property
    def measured(self) -> np.ndarray | None:
        """(dof,) [rad] of the newest joint state that was trusted."""
        return self._measured.positions

    @property
    def joint_state_problem(self) -> str:
        """Why the newest joint state is not trusted, one sentence; '' if it is."""
        return self._measured.problem

    @property
    def frozen(self) -> str:
        """Why the joint states of an arm at rest count as frozen, one sentence; '' if they do not."""
        return FROZEN if self._tracking.frozen or self._tracking.unmoved else ''

    @property
    def planned(self) -> np.ndarray:
        """(dof,) [rad] where the motion that is averaged has got to; what is sent follows within `lag`."""
        return self._track.motion.q[self._track.head]

    @property
    def at_rest(self) -> bool:
        return self.state in (State.INACTIVE, State.HOLDING)

    @property
    def accepting(self) -> bool:
        """Whether a good chunk would be taken now."""
        ending = self._leaving or self._releasing or (self.hold in FAULTS and self.state is State.BRAKING)
        return self.state is not State.INACTIVE and not self._faults and not ending and not self._goes_to_start

    def horizon_left(self) -> float:
        """Path time until the chunk runs out [s]; 0 when there is none."""
        if self._path is None or self.state is not State.EXECUTING:
            return 0.0
        return max(0.0, self._path.end - float(self._track.motion.s[self._track.head]))

    def chunk_age(self, now: int) -> float:
        """now - t_ref of the chunk that is executed [s]; 0 when there is none."""
        return (now - self._seen) * 1e-9 if self.state is State.EXECUTING and self._seen is not None else 0.0

    def joint_state_age(self, now: int) -> float:
        """[s] of the newest one that was trusted, by stamps or arrival, whichever is more; infinite without."""
        return self._measured.age(now)

    def limit_margin(self) -> float:
        """How far the joint that is closest to a position limit is from it [rad]; NaN before the first activation."""
        if self._positions is None:
            return math.nan
        q = self._positions
        return float(np.minimum(q - self.limits.lower, self.limits.upper - q).min())

    def tracking_error(self) -> float:
        """Largest |set-point - measured| over the joints [rad]; 0 while either is unknown."""
        if self.measured is None or self._positions is None:
            return 0.0
        return float(np.abs(self._positions - self.measured).max())

    @property
    def _track(self) -> Track:
        return self.course.track

    @property
    def _goes_to_start(self) -> bool:
        return self.state is State.EXECUTING and self._seen is None

    @property
    def _moves(self) -> bool:
        return self.state in (State.EXECUTING, State.BRAKING) and not self._track.finished
