"""The newest joint state that can be trusted, how old it is, and why a later one is not trusted.

An age is the larger of two: by stamps, and by control time since the last trusted message came. Control time is the sum
of the control steps: of a monotonic clock on a robot, of the simulated clock in simulation. So a stamp ahead of the
clock hides no silence, and a simulation that is paused makes nothing old.
"""

import math

import numpy as np

from vla_core.clocks import FUTURE_TOLERANCE, NS, Stamps, ahead, set_back
from vla_core.profile import RobotProfile

# [rad] beyond a hard limit. Published tables differ by hundredths, and an arm that was pushed there must get back;
# further out there is no arm, and the numbers are something else than its positions.
OUTSIDE = 0.05
_WHAT = 'the joint state'


class Measured:
    """Stamps and times are int ns of the node's clock; positions are (dof,) [rad] in the profile's joint order."""

    def __init__(self, profile: RobotProfile, max_age: float) -> None:
        """max_age: [s] an older joint state is not trusted."""
        self.positions: np.ndarray | None = None  # the newest that are trusted
        self.problem = ''  # with the newest message, one sentence; '' if it is trusted
        self._profile, self._max_age = profile, max_age
        self._lower, self._upper = profile.position_lower - OUTSIDE, profile.position_upper + OUTSIDE
        self._stamp = 0  # of the newest that are trusted
        self._repeated = False  # whether the newest message has the stamp of the one before
        self._stamps, self._back = Stamps(), 0.0  # [s] by which the driver's clock was set back, while it is behind
        self._since_trusted = self._since_any = math.inf  # [s] of control time

    def observe(self, positions: np.ndarray, stamp: int, now: int) -> bool:
        """Take a message that came at `now`; False if it is not trusted, with `problem`, or has the stamp of the one
        before: then it is not known when it was measured."""
        self._since_any, self._repeated = 0.0, stamp == self._stamps.newest
        self.problem = self._distrust(positions, stamp, now)
        if self.problem or self._repeated:
            return False
        self.positions, self._stamp, self._since_trusted = positions, stamp, 0.0
        return True

    @property
    def received(self) -> bool:
        """Whether any message came."""
        return math.isfinite(self._since_any)

    def elapse(self, seconds: float) -> None:
        """Control time goes on."""
        self._since_trusted += seconds
        self._since_any += seconds

    def clock_jumped(self, now: int) -> None:
        """Our own clock was set to `now`: stamps before it do not count any more."""
        self._stamp, self._stamps = now - round(FUTURE_TOLERANCE * NS), Stamps()

    def age(self, now: int) -> float:
        """[s] of the newest trusted joint state; infinite when there is none."""
        if self.positions is None:
            return math.inf
        return max((now - self._stamp) / NS, self._since_trusted)

    def stale(self, now: int) -> str:
        """Why there is no fresh joint state that can be trusted, one sentence; '' if there is one."""
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
        """Why this message cannot be trusted, one sentence; '' if it can."""
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
