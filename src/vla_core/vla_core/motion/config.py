"""How the executor moves, and what it watches."""

from dataclasses import dataclass

from vla_core.clocks import FUTURE_TOLERANCE

INTERPOLATIONS = ('cubic', 'monotone')  # see ChunkPath


@dataclass(frozen=True)
class ExecutorConfig:
    """Fractions are of the robot profile's limits. Raises ValueError naming what makes no sense."""

    period: float = 0.01  # [s] nominal time between control steps
    interpolation: str = 'cubic'  # between the steps of a chunk, see ChunkPath
    velocity_fraction: float = 0.8  # the set-point never moves faster than this
    acceleration_fraction: float = 0.6  # nor accelerates more than this on a path
    brake_fraction: float = 0.4  # what braking may add to the acceleration of the path
    smoothing_time: float = 0.02  # [s] the set-point is the average of the planned motion over this time at least
    # [m/s] of the tool, where there is a collision monitor. Twice the reduced speed of ISO 10218-1 (0.25 m/s): a person
    # beside the arm can see it come and step back. More needs a risk assessment of the cell (ISO/TS 15066).
    tool_speed_limit: float = 0.5
    start_distance_limit: float = 0.5  # [rad] a first chunk that begins further from the resting arm is refused
    start_fraction: float = 0.2  # of the velocity and acceleration limits: how the arm goes to its start on request
    seam_time: float = 0.15  # [s] shortest time over which a switch of chunks is smoothed
    seam_velocity_fraction: float = 0.25  # of the velocity limit: what smoothing a switch may add
    seam_acceleration_fraction: float = 0.3  # same for acceleration
    seam_overshoot: float = 0.01  # [rad] a seam that would carry a joint further on brakes harder
    max_lag: float = 0.5  # [s] how far the set-point may trail the chunk's schedule before it brakes
    joint_state_max_age: float = 0.2  # [s]
    # [rad] a joint further from where it was sent than this is blocked or was moved. With crisp_controllers' 750 Nm/rad
    # that is 75 Nm of push; in free motion the simulated arm stays within 0.015 rad.
    tracking_limit: float = 0.1
    tracking_delay: float = 0.1  # [s] by which the arm may follow late, see Tracking: damping over stiffness
    future_tolerance: float = FUTURE_TOLERANCE  # [s] t_ref may lie this far ahead of now
    jump: float = 0.5  # [s] a control step longer than this, or backwards, is a clock jump
    # Whether an arm that is let go, or that stood still behind a late control step, keeps its acceleration limits, too:
    # what its controller needs, see release.py.
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
