"""Which joint states the executor trusts: their stamps, their places, and values that stand still."""

import dataclasses
import re

import numpy as np
import pytest

from vla_core.motion.chunk import Verdict
from vla_core.motion.executor import ChunkExecutor
from vla_core.motion.measured import OUTSIDE
from vla_core.motion.states import Hold, State

from .test_executor import DOF, MS, PROFILE, chunk, ramp

S = 1000 * MS


class Arm:
    """An executor at 100 Hz, on an arm that follows 20 ms late; what its driver makes of that can be changed."""

    def __init__(self, start=0.0, **config) -> None:
        self.core = ChunkExecutor(PROFILE, dataclasses.replace(ChunkExecutor(PROFILE).config, **config))
        self.now, self.set_by = 10_000 * S, 0
        self.driver = lambda q, now: (q, now)  # to positions and stamp; None: silent
        self.sent = [np.full(DOF, start)] * 3
        self.rng = np.random.default_rng(0)
        self.observe()

    def observe(self) -> None:
        published = self.driver(self.sent[-3] + 1e-7 * self.rng.normal(size=DOF), self.now)
        if published is not None:
            self.core.observe(*published, self.now)

    def run(self, seconds: float, until=lambda: False, monotonic: bool = True) -> float:
        """[s] until it was so."""
        for i in range(round(seconds * 100)):
            if until():
                return i * 0.01
            self.now += 10 * MS + self.set_by
            self.set_by, passed = 0, 0.01
            self.observe()
            point = self.core.step(self.now, passed if monotonic else None)
            if point is not None:
                self.sent.append(point.positions)
        return seconds

    def drive(self, speed=0.4, steps=40) -> 'Arm':
        self.core.activate(self.now)
        self.run(0.02)
        assert self.go(speed, steps) is Verdict.ACCEPTED
        self.run(0.5)
        assert self.core.state is State.EXECUTING
        return self

    def go(self, speed=0.4, steps=40) -> Verdict:
        positions = ramp(self.sent[-1], speed, steps)
        return self.core.ingest(chunk(self.now, self.core.epoch, self.core.sequence + 1, positions), self.now)

    def largest(self) -> tuple[float, float]:
        """Velocity and acceleration of what was sent, as shares of the limits."""
        v = np.diff(self.sent, axis=0) / 0.01
        return np.abs(v).max() / 2.0, np.abs(np.diff(v, axis=0)).max() / 0.01 / 10.0


WRONG = {
    'ahead': (lambda q, now: (q, now + 3600 * S), 'stamped 3600.000 s ahead of the clock: synchronise the clocks'),
    'a little ahead': (lambda q, now: (q, now + 150 * MS), 'stamped 0.150 s ahead of the clock'),
    'late': (lambda q, now: (q, now - 500 * MS), '0.50'),
    'no stamp': (lambda q, now: (q, 0), 'has no stamp'),
    'degrees': (lambda q, now: (np.rad2deg(q + 0.3), now), 'degrees instead of radians'),
    'another robot': (lambda q, now: (q + 200.0, now), 'is it the profile of another robot'),
    'NaN': (lambda q, now: (q * np.nan, now), 'not finite'),
}


@pytest.mark.parametrize('wrong', WRONG)
def test_what_cannot_be_trusted_is_refused_at_activation_in_one_sentence(wrong):
    driver, expected = WRONG[wrong]
    arm = Arm()
    arm.driver = driver
    arm.run(0.5)
    with pytest.raises(ValueError, match=expected):
        arm.core.activate(arm.now)
    assert arm.core.step(arm.now + 10 * MS) is None
    arm.driver = lambda q, now: (q, now)
    arm.run(0.05)
    arm.core.activate(arm.now)
    assert arm.core.hold is Hold.IDLE


def test_the_sentence_names_joint_position_and_limits():
    arm = Arm()
    arm.driver = lambda q, now: (np.array([0.0, 9.0, 0.0]), now)
    arm.run(0.1)
    with pytest.raises(ValueError, match=r'^b is measured at 9.000 rad, outside its limits \[-2.0000, 2.0000\]: .*\?$'):
        arm.core.activate(arm.now)


@pytest.mark.parametrize('wrong', [w for w in WRONG if w != 'late'])
def test_in_motion_it_brakes_within_the_limits_and_continues_when_all_is_well(wrong):
    driver, expected = WRONG[wrong]
    arm = Arm().drive()
    arm.driver = driver
    took = arm.run(1.0, until=lambda: arm.core.hold is Hold.JOINT_STATE_STALE)
    assert took <= 0.21 + 1e-9
    assert expected in arm.core.message
    arm.run(0.5)
    assert arm.core.state is State.HOLDING
    assert max(arm.largest()) <= 1.0
    arm.driver = lambda q, now: (q, now)
    arm.run(0.05)
    assert arm.core.hold is Hold.IDLE
    assert arm.go() is Verdict.ACCEPTED


@pytest.mark.parametrize('ahead', [0.0, 0.09, 3600.0])
def test_silence_is_noticed_by_arrival_whatever_the_stamps_were(ahead):
    arm = Arm()
    if ahead < 1:
        arm.driver = lambda q, now: (q, now + round(ahead * S))
    arm.drive()
    if ahead > 1:  # trusted before our own clock is set back
        arm.set_by = -round(ahead * S)
        arm.run(0.02, monotonic=True)
        assert arm.core.hold is Hold.CLOCK_JUMP
    arm.driver = lambda q, now: None
    assert arm.run(1.0, until=lambda: arm.core.hold is Hold.JOINT_STATE_STALE) <= 0.21 + 1e-9
    arm.run(10.0)
    assert 'no joint state came for' in arm.core.message
    assert arm.core.joint_state_age(arm.now) >= 10.0
    assert max(arm.largest()) <= 1.0
    assert len({tuple(q) for q in arm.sent[-100:]}) == 1  # never towards the old reading


def test_the_message_of_a_fault_that_stands_changes_when_it_would_not_be_true_any_more():
    arm = Arm().drive()
    arm.driver = lambda q, now: None
    arm.run(1.0, until=lambda: arm.core.hold is Hold.JOINT_STATE_STALE)
    messages = [arm.core.message]
    for _ in range(1000):
        arm.run(0.01)
        if arm.core.message != messages[-1]:
            messages.append(arm.core.message)
        seconds = float(re.search(r'no joint state came for more than (\d+\.\d+) s', messages[-1])[1])
        assert 0.9 <= seconds / arm.core.joint_state_age(arm.now) <= 1.01
    assert len(messages) < 50  # of 1000 control steps
    arm.driver = lambda q, now: (q, now + 10 * S + int(arm.rng.integers(MS)))
    arm.run(0.01)
    message = arm.core.message
    assert 'is stamped 10.00' in message
    arm.run(1.0)
    assert arm.core.message == message


@pytest.mark.parametrize(
    ('driver', 'expected'),
    [
        (lambda at: lambda q, now: (q, at), 'stood still for more than 0.20 s: does the driver repeat one'),
        (lambda at: lambda q, now: (q, now - 500 * MS), 'the clock of the joint states was set back by 0.'),
    ],
)
def test_stamps_that_stand_still_or_were_set_back_are_reported(driver, expected):
    arm = Arm().drive()
    arm.driver = driver(arm.now)
    assert arm.run(1.0, until=lambda: arm.core.hold is Hold.JOINT_STATE_STALE) <= 0.22 + 1e-9
    assert expected in arm.core.message
    arm.run(0.5)
    assert max(arm.largest()) <= 1.0


def test_two_publishers_whose_clocks_differ_a_little_are_not_mixed():
    arm = Arm().drive()
    own = arm.driver
    arm.driver = lambda q, now: (q + 1.0, now - 50 * MS) if (now // (10 * MS)) % 2 else own(q, now)
    arm.run(0.3)
    assert (arm.core.state, arm.core.hold) == (State.EXECUTING, Hold.NONE)
    np.testing.assert_allclose(arm.core.measured, arm.sent[-3], atol=0.02)


@pytest.mark.parametrize('seconds', [3600.0, -3600.0, 0.3, -0.3, 0.1, -0.1])
def test_our_own_clock_that_is_set_is_a_clock_jump_and_nothing_else(seconds):
    arm = Arm().drive()
    arm.set_by = round(seconds * S)
    arm.run(0.01)
    assert arm.core.hold is Hold.CLOCK_JUMP
    assert f'jumped by {seconds:.3f} s' in arm.core.message
    arm.run(0.5)
    assert (arm.core.state, arm.core.hold) == (State.HOLDING, Hold.CLOCK_JUMP)
    assert max(arm.largest()) <= 1.0
    assert arm.go() is Verdict.ACCEPTED


def test_a_control_step_that_is_late_is_reported_as_such():
    arm = Arm().drive()
    arm.now += 700 * MS
    arm.core.step(arm.now, 0.7)
    assert 'a control step came 0.700 s late' in arm.core.message


def test_joint_states_that_wait_behind_a_late_control_step_are_not_missed():
    arm = Arm().drive()
    arm.now += 300 * MS
    arm.core.step(arm.now, 0.3)
    assert arm.core.hold is Hold.NONE
    arm.run(0.1)  # they are taken now
    assert arm.core.hold is Hold.NONE
    arm.now += 300 * MS
    arm.core.step(arm.now, 0.3)
    arm.now += 300 * MS
    arm.core.step(arm.now, 0.3)  # late again, and still nothing came
    assert arm.core.hold is Hold.JOINT_STATE_STALE


def test_a_simulation_that_is_paused_makes_nothing_stale():
    """Control steps count simulated time; however long none come on the wall clock, nothing is old."""
    arm = Arm().drive()
    arm.driver = lambda q, now: None
    arm.run(0.15, monotonic=False)
    arm.driver = lambda q, now: (q, now)
    arm.run(0.05, monotonic=False)
    assert arm.core.state is State.EXECUTING
    assert arm.core.joint_state_age(arm.now) < 0.02


# ---- a little outside


@pytest.mark.parametrize('side', [-1.0, 1.0])
@pytest.mark.parametrize('way', ['chunk', 'go_to_start'])
def test_a_joint_a_little_outside_may_come_back_in(side, way):
    outside = side * (2.0 + 0.8 * OUTSIDE)
    arm = Arm(outside)
    arm.core.activate(arm.now)
    arm.run(0.02)
    assert arm.sent[-1][0] == pytest.approx(outside, abs=1e-5)
    if way == 'chunk':
        inside = np.tile(np.linspace(side * 2.0, side * 1.8, 20)[:, None], DOF)
        arm.core.ingest(chunk(arm.now, arm.core.epoch, 1, inside, dt=0.1), arm.now)
        assert arm.core.verdict is Verdict.ACCEPTED
    else:
        assert arm.core.go_to_start() == ''
    arm.run(12.0, until=lambda: arm.core.at_rest)
    assert abs(arm.sent[-1][0]) < 1.85
    away = np.abs(np.array(arm.sent)).max(axis=1)
    assert away.max() <= abs(outside) + 1e-5  # no further
    assert (np.diff(away) <= 1e-6).all()
    assert max(arm.largest()) <= 1.0


def test_an_arm_that_is_held_outside_is_let_go_to_the_limit_only():
    arm = Arm(1.9)
    arm.core.activate(arm.now)
    arm.run(0.1)
    arm.driver = lambda q, now: (q * 0 + 2.04 + 1e-6 * arm.rng.normal(size=DOF), now)
    arm.run(0.3)
    assert arm.core.hold is Hold.TRACKING_ERROR
    assert arm.sent[-1].max() <= 2.0


# ---- frozen


def freeze(arm):
    held = arm.core.measured.copy()
    arm.driver = lambda q, now: (held.copy(), now)


@pytest.mark.parametrize('speed', [0.1, 0.4, 1.5])
def test_values_that_stand_still_while_set_points_move_are_reported_and_not_gone_to(speed):
    arm = Arm(-1.0).drive(speed, steps=36)
    freeze(arm)
    frozen_at = arm.sent[-3]
    took = arm.run(3.0, until=lambda: arm.core.hold is not Hold.NONE)
    assert arm.core.hold is Hold.JOINT_STATE_FROZEN
    assert took * speed < 0.1 + 0.1 * speed
    assert 'the driver repeats old values' in arm.core.message
    arm.run(1.0)
    assert arm.core.state is State.HOLDING
    assert max(arm.largest()) <= 1.0
    assert (arm.sent[-1] - frozen_at).min() > 0.04
    assert arm.go() is Verdict.NOT_ACCEPTING
    # Neither the operator nor a new activation goes to that reading.
    assert not arm.core.resume()
    with pytest.raises(ValueError, match='ended by resume'):
        arm.core.clear(Hold.JOINT_STATE_FROZEN)
    arm.core.deactivate()
    with pytest.raises(ValueError, match='repeat the same values'):
        arm.core.activate(arm.now)
    arm.driver = lambda q, now: (q, now)
    arm.run(0.03)
    arm.core.activate(arm.now)
    assert arm.core.hold is Hold.IDLE


def test_frozen_joint_states_stay_for_a_person_to_look_at():
    arm = Arm(-1.0).drive()
    freeze(arm)
    arm.run(1.0)
    arm.driver = lambda q, now: (q, now)
    arm.run(0.5)
    assert arm.core.hold is Hold.JOINT_STATE_FROZEN
    assert arm.core.resume()
    assert arm.core.hold is Hold.IDLE
    assert arm.go() is Verdict.ACCEPTED


def test_a_driver_that_was_restarted_is_trusted_again():
    arm = Arm(-1.0).drive()
    freeze(arm)
    frozen = arm.driver
    arm.run(1.0)
    arm.driver = lambda q, now: None
    arm.run(0.5)
    arm.driver = frozen
    arm.run(0.05)
    assert not arm.core.frozen
    assert arm.core.hold is not Hold.JOINT_STATE_STALE
    assert arm.core.resume()


@pytest.mark.parametrize('steps', [1e-3, 5e-3])
def test_an_encoder_with_coarse_steps_is_not_frozen(steps):
    """At rest, and in slow motion, its values are the same to the last bit for long."""
    arm = Arm()
    arm.driver = lambda q, now: (np.round(q / steps) * steps, now)
    arm.core.activate(arm.now)
    arm.run(5.0)
    assert arm.core.hold is Hold.IDLE
    assert arm.go(speed=0.02, steps=100) is Verdict.ACCEPTED
    arm.run(4.0)
    assert (arm.core.state, arm.core.hold) == (State.EXECUTING, Hold.NONE)


def test_an_arm_that_answers_late_is_not_frozen():
    """A pure delay of tracking_delay: the first values of a motion are those of rest."""
    arm = Arm(tracking_delay=0.15)
    arm.core.activate(arm.now)
    arm.sent = [arm.sent[-1]] * 20
    arm.run(0.02)
    arm.driver = lambda q, now: (arm.sent[-15], now)
    assert arm.go(speed=1.2, steps=30) is Verdict.ACCEPTED
    arm.run(1.0)
    assert (arm.core.state, arm.core.hold) == (State.EXECUTING, Hold.NONE)


@pytest.mark.parametrize('blocked', [False, True])
def test_joint_states_that_come_late_are_compared_with_the_set_points_of_their_time(blocked):
    """A loaded machine or network delivers them 0.15 s late: that is no obstacle, and hides none."""
    arm = Arm(-2.0)
    arm.core.activate(arm.now)
    arm.sent = [arm.sent[-1]] * 20
    arm.run(0.02)
    stuck = []

    def driver(q, now):
        at = arm.sent[-18]
        if blocked and at[0] > -1.4:
            stuck.append(at)
        noise = 1e-7 * arm.rng.normal(size=DOF)
        return (stuck[0] if stuck else at) + noise, now - 150 * MS

    arm.driver = driver
    assert arm.go(speed=1.5, steps=40) is Verdict.ACCEPTED
    arm.run(1.2)
    expected = (State.HOLDING, Hold.BLOCKED) if blocked else (State.EXECUTING, Hold.NONE)
    assert (arm.core.state, arm.core.hold) == expected, arm.core.message


@pytest.mark.parametrize('blocked', [False, True])
@pytest.mark.parametrize('monotonic', [True, False])
def test_an_arm_that_ran_ahead_of_a_late_control_step_is_not_blocked(monotonic, blocked):
    """An impedance controller holds set-point and velocity: without a new one it runs on by damping over stiffness."""
    arm = Arm(-2.0)
    q, followed, stuck = arm.sent[-1].copy(), [arm.sent[-1], np.zeros(DOF)], False

    def follow(seconds):
        """The controller, and the driver's joint states each 10 ms: the newest 5 wait until they are taken."""
        states = []
        for i in range(round(seconds * 1000)):
            if not stuck:
                q[:] += 1e-3 * (followed[1] + 10.0 * (followed[0] - q))
            if i % 10 == 9:
                states.append((q + 1e-7 * arm.rng.normal(size=DOF), arm.now + (i + 1) * MS))
        return states[-5:]

    def step(seconds):
        states = follow(seconds)
        arm.now += round(seconds * S)
        for state in states:
            arm.core.observe(*state, arm.now)
        point = arm.core.step(arm.now, seconds if monotonic else None)
        followed[:] = point.positions, point.velocities
        arm.sent.append(point.positions)

    arm.core.activate(arm.now)
    step(0.01)
    assert arm.go(speed=1.5, steps=40) is Verdict.ACCEPTED
    for late in range(2):
        for _ in range(40):
            step(0.01)
        stuck = blocked and late == 1
        step(0.25)
    for _ in range(40):
        step(0.01)
    expected = (State.HOLDING, Hold.BLOCKED) if blocked else (State.EXECUTING, Hold.NONE)
    assert (arm.core.state, arm.core.hold) == expected, arm.core.message


def test_values_that_froze_in_the_last_motion_are_not_where_a_new_activation_begins():
    arm = Arm(-1.0).drive(speed=0.6)
    freeze(arm)
    arm.run(0.1)
    arm.core.deactivate()
    arm.run(1.0)
    assert (arm.core.state, arm.core.hold) == (State.INACTIVE, Hold.DEACTIVATED)  # too soon to be sure in motion
    with pytest.raises(ValueError, match='repeat the same values'):
        arm.core.activate(arm.now)
