"""The joint impedance law of the simulated arm and the input contract of crisp_controllers."""

from dataclasses import dataclass, field

import numpy as np

# crisp_controllers' joint impedance for the Franka: a step of joint 2 overshoots by 0 % on the simulated arm.
# With franka_ros2's own gains (600, 600, 600, 600, 250, 150, 50 and 30, 30, 30, 30, 10, 10, 5) it is 16 %.
STIFFNESS = np.array([750.0, 750.0, 750.0, 750.0, 250.0, 150.0, 50.0])  # [Nm/rad]
DAMPING = np.array([75.0, 75.0, 75.0, 75.0, 25.0, 15.0, 5.0])  # [Nm s/rad]
TORQUE_RATE = 1000.0  # [Nm/s], Franka documentation


@dataclass(frozen=True)
class Gains:
    """Gains of the joint impedance: stiffness (dof,) [Nm/rad], damping (dof,) [Nm s/rad].

    Raises ValueError for a wrong shape, or for values that are negative or not finite.
    """

    stiffness: np.ndarray = field(default_factory=STIFFNESS.copy)
    damping: np.ndarray = field(default_factory=DAMPING.copy)

    def __post_init__(self) -> None:
        for name in ('stiffness', 'damping'):
            values = getattr(self, name)
            if values.shape != STIFFNESS.shape or not np.isfinite(values).all() or (values < 0).any():
                raise ValueError(f'gains.{name} needs 7 finite numbers, none below 0, got {values.tolist()}')


class JointImpedance:
    """Computes tau = K (q_d - q) + D (dq_d - dq) + bias at a fixed rate, within torque and torque-rate limits.

    The rate limit applies to the feedback part: the robot adds gravity and Coriolis torques after the limiter. Targets
    follow the contract of crisp_controllers: in index order, velocities optional, held until the next. Unlike there, a
    target of wrong length or with a value that is not finite is refused, and the one before stays in force.
    """

    def __init__(
        self,
        torque_limit: np.ndarray,
        dt: float,
        gains: Gains | None = None,
        torque_rate: float = TORQUE_RATE,
    ) -> None:
        """torque_limit: (dof,) [Nm]; dt [s]; torque_rate [Nm/s]."""
        gains = gains or Gains()
        self._limit, self._stiffness, self._damping = torque_limit, gains.stiffness, gains.damping
        self._step = torque_rate * dt
        self.reset(np.zeros(len(torque_limit)))

    def reset(self, positions: np.ndarray) -> None:
        """Reset to hold these positions (dof,) [rad] without feedback torque."""
        self._feedback = np.zeros(len(self._limit))
        self._target = (np.array(positions, float), np.zeros(len(self._limit)))

    @property
    def target(self) -> tuple[np.ndarray, np.ndarray]:
        """Present target: positions [rad] and velocities [rad/s], (dof,) each."""
        return self._target

    def set_target(self, positions: np.ndarray, velocities: np.ndarray | None = None) -> None:
        """Set the target: positions (dof,) [rad] and velocities (dof,) [rad/s], zero when None or empty.

        Raises ValueError for a wrong length or a value that is not finite. May be called from any thread.
        """
        q = self._checked('positions', positions)
        dq = np.zeros(len(q)) if velocities is None or len(velocities) == 0 else self._checked('velocities', velocities)
        self._target = (q, dq)  # one assignment, so that the control loop reads a consistent pair

    def torque(self, positions: np.ndarray, velocities: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """Return the motor torques (dof,) [Nm] of a control step, for (dof,) [rad], [rad/s] and bias torques [Nm]."""
        q, dq = self._target
        torque = self._stiffness * (q - positions) + self._damping * (dq - velocities) + bias
        wanted = np.minimum(np.maximum(torque, -self._limit), self._limit) - bias
        self._feedback = self._feedback + np.minimum(np.maximum(wanted - self._feedback, -self._step), self._step)
        return np.minimum(np.maximum(self._feedback + bias, -self._limit), self._limit)

    def _checked(self, what: str, values: np.ndarray) -> np.ndarray:
        array = np.array(values, float)
        if array.shape != self._limit.shape:
            raise ValueError(f'target {what}: {len(self._limit)} numbers needed, one per joint, got {array.size}')
        if not np.isfinite(array).all():
            raise ValueError(f'target {what} are not finite: {array.tolist()}')
        return array
