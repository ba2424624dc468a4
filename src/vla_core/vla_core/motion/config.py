"""Settings of the executor: limits, blending of motions, and watchdogs."""

from dataclasses import dataclass

from vla_core.clocks import FUTURE_TOLERANCE

INTERPOLATIONS = ('cubic', 'monotone')  # see ChunkPath


@dataclass(frozen=True)
class ExecutorConfig:
    """Settings of one executor. Fractions are of the robot profile's limits.

    Raises ValueError naming the setting that is out of range.
    """

    period: float = 0.01  # [s] nominal time between control steps
    interpolation: str = 'cubic'  # between the steps of a chunk, see ChunkPath
    velocity_fraction: float = 0.8  # largest velocity of the set-point
    acceleration_fraction: float = 0.6  # largest acceleration of the set-point on a path
    brake_fraction: float = 0.4  # braking may add this to the acceleration of the path
    smoothing_time: float = 0.02  # [s] the set-point is the mean of the planned motion over this time or more
    # [m/s] of the tool, where there is a collision monitor. Twice the reduced speed of ISO 10218-1 (0.25 m/s): a person
    # beside the arm can see it come and step back. More needs a risk assessment of the cell (ISO/TS 15066).
    tool_speed_limit: float = 0.5
    start_distance_limit: float = 0.5  # [rad] a first chunk that starts further from the resting arm is refused
    start_fraction: float = 0.2  # of the velocity and acceleration limits, for a motion to the start pose on request
    seam_time: float = 0.15  # [s] shortest duration of the seam between two chunks
    seam_velocity_fraction: float = 0.25  # of the velocity limit: a seam may add this
    seam_acceleration_fraction: float = 0.3  # the same of the acceleration limit
    seam_overshoot: float = 0.01  # [rad] a seam that would carry a joint on by more than this brakes harder
    max_lag: float = 0.5  # [s] the executor brakes where the set-point trails the chunk's schedule by more
    joint_state_max_age: float = 0.2  # [s]
    # [rad] a joint that deviates from its set-point by more is blocked or was moved. With crisp_controllers' 750 Nm/rad
    # this is 75 Nm; in free motion the simulated arm stays within 0.015 rad.
    tracking_limit: float = 0.1
    tracking_delay: float = 0.1  # [s] lag of an arm that tracks its set-points, see Tracking: damping over stiffness
    future_tolerance: float = FUTURE_TOLERANCE  # [s] t_ref may be ahead of now by this much
    jump: float = 0.5  # [s] a control step that is longer, or negative, is a clock jump
    # Whether the set-point keeps the acceleration limits, too, when it is released to the measured arm, and when it
    # starts again after a late control step. It depends on the controller, see release.py.
    release_within_acceleration: bool = False

    def __post_init__(self) -> None:
        for name in ('velocity_fraction', 'acceleration_fraction', 'brake_fraction', 'start_fraction'):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f'{name} must be above 0 and at most 1, got {getattr(self, name)}')
        for name in (
            'period',
            'seam_time',
            'seam_overshoot',
            'tool_speed_limit',
            'start_distance_limit',
            'tracking_limit',
            'tracking_delay',
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f'{name} must be above 0, got {getattr(self, name)}')
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f'interpolation {self.interpolation!r}: must be one of {", ".join(INTERPOLATIONS)}')
        if not 0 <= self.smoothing_time <= 0.1:
            raise ValueError(f'smoothing_time must be 0 to 0.1 s, got {self.smoothing_time}')
