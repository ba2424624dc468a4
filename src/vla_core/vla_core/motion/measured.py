"""The newest trusted joint state, its age, and why a later one is not trusted.

An age is the larger of two: by stamps, and by control time since the last trusted message arrived. Control time is the
sum of the control steps. It is measured by a monotonic clock on a robot, by the simulated clock in simulation. So a
stamp ahead of the clock hides no silence, and joint states do not age while a simulation is paused.
"""

import math

import numpy as np

from vla_core.clocks import FUTURE_TOLERANCE, NS, Stamps, ahead, set_back
from vla_core.profile import RobotProfile

# [rad] beyond a hard limit. Published tables differ by hundredths, and an arm that was pushed there must get back. No
# arm is further out, so such numbers are not its positions.
OUTSIDE = 0.05
_WHAT = 'the joint state'


class Measured:
    """Judges joint states. Stamps and times are int [ns] of the node's clock; positions are (dof,) [rad]."""

    def __init__(self, profile: RobotProfile, max_age: float) -> None:
        """profile: gives joint order and limits. max_age: [s] largest age of a trusted joint state."""
        self.positions: np.ndarray | None = None  # of the newest trusted message
        self.problem = ''  # of the newest message, a sentence; '' if it is trusted
        self._profile, self._max_age = profile, max_age
        self._lower, self._upper = profile.position_lower - OUTSIDE, profile.position_upper + OUTSIDE
        self._stamp = 0  # [ns] of the newest trusted message
        self._repeated = False  # whether the newest message has the stamp of the one before
        self._stamps, self._back = (
            Stamps(),
            0.0,
        )  # [s] by which the driver's clock was set back; 0 once its stamps are in time
        self._since_trusted = self._since_any = math.inf  # [s] of control time

    def observe(self, positions: np.ndarray, stamp: int, now: int) -> bool:
        """Judge a message that arrived at `now` [ns], and return whether it is new and trusted.

        If it is not trusted, `problem` has the reason. A message with the stamp of the one before is not used either:
        its time is unknown.
        """
        self._since_any, self._repeated = 0.0, stamp == self._stamps.newest
        self.problem = self._distrust(positions, stamp, now)
        if self.problem or self._repeated:
            return False
        self.positions, self._stamp, self._since_trusted = positions, stamp, 0.0
        return True

    @property
    def received(self) -> bool:
        """Whether any message was received."""
        return math.isfinite(self._since_any)

    def elapse(self, seconds: float) -> None:
        """Advance control time by `seconds`."""
        self._since_trusted += seconds
        self._since_any += seconds

    def clock_jumped(self, now: int) -> None:
        """Forget earlier stamps: the node's own clock was set to `now` [ns]."""
        self._stamp, self._stamps = now - round(FUTURE_TOLERANCE * NS), Stamps()

    def age(self, now: int) -> float:
        """Return the age [s] of the newest trusted joint state; infinite without one."""
        if self.positions is None:
            return math.inf
        return max((now - self._stamp) / NS, self._since_trusted)

    def stale(self, now: int) -> str:
        """Return a sentence why there is no fresh, trusted joint state; '' if there is one."""
        age = self.age(now)
        if age <= self._max_age:
            return ''
        if self._since_any > self._max_age:
            if not self.received:
                return 'no joint state received yet: is the robot running, do topic and joint names match?'
            return f'no joint state came for more than {self._since_any:.2f} s: is the robot still publishing?'
        if self.problem:
            return self.problem
        if self._repeated:
            return _stands_still(age)
        return (
            f'{_WHAT} is more than {age:.2f} s old: is the robot still publishing, do the clocks agree (use_sim_time)?'
        )

    # ---- inside

    def _distrust(self, positions: np.ndarray, stamp: int, now: int) -> str:
        """Return a sentence why this message is not trusted; '' if it is."""
        if not np.isfinite(positions).all():
            return f'{_WHAT} is not finite: the driver is broken'
        age, before = (now - stamp) / NS, self._stamps.newest
        if stamp == 0 and age > self._max_age:
            return f'{_WHAT} has no stamp: set the driver to stamp it'
        back = self._stamps.take(stamp, now)
        if self._stamps.future:
            return ahead(_WHAT, -age)
        if back > 0:
            self._back = back
            return set_back('the joint states', back)
        if before is not None and stamp < before:
            return f'{_WHAT} is {(before - stamp) / NS:.3f} s older than the one before: do two nodes publish it?'
        if age > self._max_age:
            if self._back > 0:
                return set_back('the joint states', self._back)
            if stamp == before:
                return _stands_still(age)
            return (
                f'{_WHAT} is {age:.2f} s old when it comes, limit {self._max_age:g} s: do the clocks agree '
                '(use_sim_time), is the network too slow?'
            )
        self._back = 0.0
        return self._outside(positions)

    def _outside(self, positions: np.ndarray) -> str:
        """Return a sentence on the joint furthest outside its limits; '' if all are inside."""
        profile, lower, upper = self._profile, self._lower, self._upper
        beyond = np.maximum(lower - positions, positions - upper)
        joint = int(beyond.argmax())
        if beyond[joint] <= 0:
            return ''
        radians = np.deg2rad(positions)
        fit = ((lower <= radians) & (radians <= upper)).all()
        cause = 'does the driver give degrees instead of radians?' if fit else 'is it the profile of another robot?'
        return (
            f'{profile.joint_names[joint]} is measured at {positions[joint]:.3f} rad, outside its limits '
            f'[{profile.position_lower[joint]:.4f}, {profile.position_upper[joint]:.4f}]: {cause}'
        )


def _stands_still(age: float) -> str:
    return f'the stamp of {_WHAT} has stood still for more than {age:.2f} s: does the driver repeat one message?'
