"""The executor core: what it refuses, how smoothly it moves, how it stops."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_core.motion.chunk import StampedChunk, Verdict
from vla_core.motion.executor import ChunkExecutor, ExecutorConfig, Hold, State
from vla_core.profile import RobotProfile

DOF = 3
NAMES = ('a', 'b', 'c')
PROFILE = RobotProfile(
    name='test',
    base_frame='base',
    tool_frame='tool',
    joint_names=NAMES,
    position_lower=np.full(DOF, -2.0),
    position_upper=np.full(DOF, 2.0),
    velocity=np.full(DOF, 2.0),
    acceleration=np.full(DOF, 10.0),
    jerk=np.full(DOF, 5000.0),
    home=np.zeros(DOF),
    gripper_joint_names=('f',),
    gripper_max_opening=0.08,
    tool_speed=2.0,
)
MS = 1_000_000


def chunk(t_ref=0, epoch=1, sequence=1, positions=None, dt=0.05, gripper=(), **changes) -> StampedChunk:
    positions = np.zeros((8, DOF)) if positions is None else np.asarray(positions, float)
    base = StampedChunk(
        t_ref=t_ref,
        epoch=epoch,
        sequence=sequence,
        source='/p',
        joint_names=NAMES,
        dt=dt,
        horizon=len(positions),
        positions=positions,
        gripper=np.asarray(gripper, float),
    )
    return dataclasses.replace(base, **changes)


class Rig:
    """An executor at 100 Hz with a joint state that follows the set-point."""

    def __init__(self, start=0.0, **config) -> None:
        self.core = ChunkExecutor(PROFILE, ExecutorConfig(**config))
        self.now = 0
        self.core.observe(np.full(DOF, start), 0)
        self.core.activate(0)
        self.points = []
        self.fresh_joints = True

    def run(self, seconds: float, until=lambda: False, step_ms: int = 10):
        end = self.now + round(seconds * 1e9)
        while self.now < end and not until():
            self.now += step_ms * MS
            if self.fresh_joints and self.points:
                self.core.observe(self.points[-1].positions, self.now)
            elif self.fresh_joints:
                self.core.observe(np.zeros(DOF), self.now)
            point = self.core.step(self.now)
            if point is not None:
                self.points.append(point)
        return self

    def elsewhere(self, positions) -> None:
        """The arm is measured here, in this message and the next: one alone may be a glitch."""
        for _ in range(2):
            self.now += 10 * MS
            self.core.observe(np.asarray(positions, float), self.now)
            if (point := self.core.step(self.now)) is not None:
                self.points.append(point)

    def let_go(self, positions) -> None:
        """From there until the set-point rests; the arm stays where it is measured."""
        self.elsewhere(positions)
        for _ in range(100):
            if self.core.at_rest:
                return
            self.elsewhere(positions)
        raise AssertionError('never at rest')

    def ingest(self, **kwargs) -> Verdict:
        kwargs.setdefault('epoch', self.core.epoch)
        kwargs.setdefault('sequence', self.core.sequence + 1)
        kwargs.setdefault('t_ref', self.now)
        return self.core.ingest(chunk(**kwargs), self.now)

    def positions(self):
        return np.array([p.positions for p in self.points])

    def speeds(self):
        return np.abs(np.diff(self.positions(), axis=0) / 0.01).max()

    def accelerations(self):
        return np.abs(np.diff(self.positions(), n=2, axis=0) / 0.01**2).max()


def ramp(start, speed, steps=8, dt=0.05):
    return start + speed * dt * np.arange(1, steps + 1)[:, None] * np.ones(DOF)


def test_numbers_are_those_of_the_message():
    msgs = pytest.importorskip('vla_msgs.msg')
    status = msgs.ExecutorStatus
    assert len(Verdict) == status.REJECT_COUNT
    for v in Verdict:
        assert getattr(status, 'ACCEPTED' if v is Verdict.ACCEPTED else f'REJECT_{v.name}') == v
    for s in State:
        assert getattr(status, f'STATE_{s.name}') == s
    for h in Hold:
        assert getattr(status, f'HOLD_{h.name}') == h


@pytest.mark.parametrize('speed', [0.3, 0.8])
def test_an_arm_that_is_sent_to_stay_does_not_go_far(speed):
    rig = Rig()
    time = 0.1 * np.arange(1, 17)
    away = np.where(time < 0.6, speed * time**2 / 1.2, speed * (time - 0.3))
    rig.ingest(positions=np.outer(away, np.eye(DOF)[1]), horizon=16, dt=0.1, gripper=np.zeros(0))
    rig.run(0.8)
    there = rig.points[-1].positions
    assert rig.ingest(positions=np.tile(there, (16, 1)), horizon=16, dt=0.1, gripper=np.zeros(0)) is Verdict.ACCEPTED
    rig.run(2.0)
    shortest = speed**2 / 2 / rig.core.limits.acceleration[1]
    assert np.abs(rig.positions()[-1] - there).max() < 0.01  # and back
    assert (rig.positions() - there).max() < max(0.02, 2.2 * shortest)


# ---- refusals


@pytest.mark.parametrize(
    ('changes', 'verdict'),
    [
        ({'epoch': 7}, Verdict.OLD_EPOCH),
        ({'epoch': 0}, Verdict.OLD_EPOCH),
        ({'t_ref': -1000 * MS}, Verdict.WHOLLY_PAST),
        ({'t_ref': -400 * MS}, Verdict.WHOLLY_PAST),
        ({'t_ref': 200 * MS}, Verdict.FROM_FUTURE),
        ({'positions': np.full((8, DOF), np.nan)}, Verdict.NOT_FINITE),
        ({'positions': np.full((8, DOF), np.inf)}, Verdict.NOT_FINITE),
        ({'gripper': [np.nan] * 8}, Verdict.NOT_FINITE),
        ({'joint_names': ('a', 'b', 'x')}, Verdict.WRONG_JOINTS),
        ({'joint_names': ('a', 'b', 'b')}, Verdict.WRONG_JOINTS),
        ({'joint_names': ('a', 'b')}, Verdict.WRONG_JOINTS),
        ({'horizon': 9}, Verdict.WRONG_SIZE),
        ({'gripper': [0.0]}, Verdict.WRONG_SIZE),
        ({'dt': 0.0}, Verdict.WRONG_SIZE),
        ({'dt': float('nan')}, Verdict.WRONG_SIZE),
        ({'positions': np.full((8, DOF), 2.01)}, Verdict.OUT_OF_LIMITS),
        ({'positions': np.outer([0.0, 0.3, 0.0, 0.3] * 2, np.ones(DOF))}, Verdict.OUT_OF_LIMITS),
        ({'shadow': True}, Verdict.SHADOW),
    ],
)
def test_refused_with_its_own_reason_and_the_arm_holds(changes, verdict):
    rig = Rig()
    assert rig.ingest(**changes) is verdict
    assert rig.core.verdict_counts[verdict] == 1
    if verdict is not Verdict.SHADOW:
        assert len(rig.core.message) > 20
    rig.run(0.2)
    assert rig.core.state is State.HOLDING
    assert (rig.positions() == 0).all()


def test_sequence_and_source():
    rig = Rig()
    assert rig.ingest(sequence=5) is Verdict.ACCEPTED
    assert rig.ingest(sequence=5) is Verdict.DUPLICATE
    assert rig.ingest(sequence=4) is Verdict.OUT_OF_ORDER
    assert rig.ingest(sequence=6, source='/other') is Verdict.OTHER_SOURCE
    assert rig.ingest(sequence=6) is Verdict.ACCEPTED


def test_joints_are_matched_by_name():
    rig = Rig()
    target = np.tile([0.3, 0.1, 0.2], (30, 1))  # columns c, a, b
    assert rig.ingest(positions=target, joint_names=('c', 'a', 'b')) is Verdict.ACCEPTED
    rig.run(1.3)
    np.testing.assert_allclose(rig.points[-1].positions, [0.1, 0.2, 0.3], atol=1e-6)


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.integers(-600, 300),  # t_ref against now [ms]
            st.integers(-1, 2),  # epoch offset
            st.integers(-1, 3),  # sequence offset
            st.sampled_from([0, 1, 2, 8]),  # horizon
            st.sampled_from([0.0, 0.02, 0.05, 0.1, 0.5, 2.5, float('nan'), 1e308]),  # scale [rad]
            st.integers(1, 30),  # control steps until the next one
        ),
        max_size=12,
    ),
    st.integers(0, 2**31),
)
def test_any_stream_of_chunks_moves_the_arm_within_position_and_velocity_limits(stream, seed):
    rng = np.random.default_rng(seed)
    rig = Rig()
    for age, epoch, sequence, horizon, scale, ticks in stream:
        rig.ingest(
            t_ref=rig.now + age * MS,
            epoch=max(0, rig.core.epoch + epoch),
            sequence=max(0, rig.core.sequence + sequence),
            positions=(rng.uniform(-1, 1, (horizon, DOF)) + rng.uniform(-10, 10, DOF)) * scale,
        )
        rig.run(ticks * 0.01)
    rig.run(3.0, until=lambda: rig.core.at_rest)
    assert rig.core.state is State.HOLDING
    positions = rig.positions()
    if len(positions) > 2:
        assert np.isfinite(positions).all()
        assert np.abs(positions).max() <= 2.0
        assert rig.speeds() <= 0.8 * 2.0 * 1.01
        assert rig.accelerations() <= 10.0 * (1 + 1e-6)  # 60 % of it along a path, the rest for stops


# ---- motion


def test_start_from_far_is_a_bounded_ramp():
    rig = Rig(start=1.0, start_distance_limit=1.5)
    target = np.zeros((100, DOF))
    rig.points.append(rig.core.step(0))
    assert rig.ingest(positions=target) is Verdict.ACCEPTED
    assert rig.core.seam_position == pytest.approx(1.0)
    rig.run(4.5)
    assert np.abs(rig.points[-1].positions).max() < 1e-6
    assert rig.speeds() <= 0.25 * 2.0 * 1.01
    assert rig.accelerations() <= 0.6 * 10.0 * 1.05


def test_switching_chunks_makes_no_jump():
    rig = Rig()
    rig.ingest(positions=ramp(0.0, 0.6, 16))
    rig.run(0.3)
    here = rig.points[-1].positions.copy()
    rig.ingest(positions=ramp(here + 0.08, -0.2, 16))  # 80 mrad away, and the other way
    rig.run(0.6)
    assert np.abs(np.diff(rig.positions(), axis=0)).max() <= 0.6 * 0.01 * 1.6
    assert rig.accelerations() <= 0.6 * 10 * 1.05


def test_the_velocity_limit_slows_along_the_path_and_does_not_bend_it():
    rig = Rig()
    t = 0.05 * np.arange(1, 17)
    rig.ingest(positions=np.outer(2.5 * t**2, [1.0, 0.5, -0.25]))  # asks for 4 rad/s of the first joint in the end
    rig.run(0.6)
    assert rig.core.state is State.EXECUTING
    assert rig.speeds() <= 1.6 * 1.001
    assert rig.core.rate < 0.7
    q = rig.positions()[20:]
    np.testing.assert_allclose(q / q[:, :1], np.tile([1.0, 0.5, -0.25], (len(q), 1)), atol=0.02)
    rig.run(3.0, until=lambda: rig.core.at_rest)
    assert rig.core.hold is Hold.CHUNKS_STOPPED


def test_chunks_stop_brakes_on_the_path_and_holds():
    rig = Rig()
    rig.ingest(positions=ramp(0.0, 1.0))
    rig.run(3.0, until=lambda: rig.core.state is State.HOLDING and rig.core.hold is not Hold.IDLE)
    assert rig.core.hold is Hold.CHUNKS_STOPPED
    assert rig.core.message
    assert rig.core.epoch == 2  # at rest: what was in flight is dead
    assert rig.now < 1.0 * 1e9
    assert np.abs(rig.points[-1].positions).max() <= 0.4 + 1e-9  # not beyond the last step
    assert (rig.points[-1].velocities == 0).all()
    assert rig.accelerations() <= 0.6 * 10 * 1.05
    still = rig.positions()[-1]
    rig.run(1.0)
    np.testing.assert_array_equal(rig.positions()[-1], still)


def test_a_late_chunk_resumes_without_standing_still():
    rig = Rig()
    rig.ingest(positions=ramp(0.0, 1.0))
    rig.run(1.0, until=lambda: rig.core.state is State.BRAKING)
    rig.run(0.03)
    assert rig.ingest(positions=ramp(rig.points[-1].positions[0], 1.0)) is Verdict.ACCEPTED
    rig.run(0.2)
    assert rig.core.state is State.EXECUTING
    assert rig.points[-1].velocities[0] > 0.5


def test_stop_request_of_the_driver_only():
    rig = Rig()
    rig.ingest(positions=ramp(0.0, 0.5, 40))
    rig.run(0.3)
    assert rig.ingest(positions=np.zeros((0, DOF)), source='/other') is Verdict.OTHER_SOURCE
    assert rig.core.state is State.EXECUTING
    old = rig.core.epoch
    assert rig.ingest(positions=np.zeros((0, DOF))) is Verdict.ACCEPTED
    assert rig.core.hold is Hold.STOP_REQUESTED
    assert rig.core.epoch == old + 1
    assert rig.ingest(positions=ramp(0, 1), epoch=old, sequence=99) is Verdict.OLD_EPOCH
    rig.run(1.0, until=lambda: rig.core.at_rest)
    assert rig.core.state is State.HOLDING


def test_operator_stop_stays_until_resume():
    rig = Rig()
    rig.ingest(positions=ramp(0.0, 0.5, 40))
    rig.run(0.3)
    rig.core.operator_stop()
    assert not rig.core.resume()  # still braking
    rig.run(1.0)
    assert rig.core.state is State.HOLDING
    assert rig.ingest(positions=ramp(0, 1)) is Verdict.NOT_ACCEPTING
    rig.core.step(rig.now + 10**10)  # a clock jump does not lift it
    rig.now += 10**10
    rig.fresh_joints = False
    rig.run(1.0)  # nor do stale joints
    rig.fresh_joints = True
    rig.run(0.5)
    assert rig.core.hold is Hold.OPERATOR_STOP
    assert rig.core.resume()
    assert rig.ingest(positions=ramp(rig.points[-1].positions[0], 0.1)) is Verdict.ACCEPTED


def test_deactivate_brakes_then_sends_nothing():
    rig = Rig()
    rig.ingest(positions=ramp(0.0, 1.0, 40))
    rig.run(0.3)
    rig.core.deactivate()
    assert rig.core.state is State.BRAKING
    rig.run(1.0, until=lambda: rig.core.state is State.INACTIVE)
    assert rig.core.state is State.INACTIVE
    assert rig.core.step(rig.now + 10 * MS) is None
    assert rig.accelerations() <= 10.0
    assert rig.ingest(positions=ramp(0, 1)) is Verdict.NOT_ACCEPTING
    rig.core.observe(np.zeros(DOF), rig.now)
    rig.core.activate(rig.now)
    assert rig.core.state is State.HOLDING


def test_stale_joint_state_brakes_and_recovers_with_a_new_epoch():
    rig = Rig()
    rig.ingest(positions=ramp(0.0, 0.3, 80))
    rig.run(0.3)
    rig.fresh_joints = False
    rig.run(1.0)
    assert rig.core.hold is Hold.JOINT_STATE_STALE
    assert rig.core.state is State.HOLDING
    assert rig.ingest(positions=ramp(0, 1)) is Verdict.NOT_ACCEPTING
    rig.fresh_joints = True
    rig.run(0.05)
    assert rig.core.hold is Hold.IDLE
    assert rig.ingest(positions=ramp(rig.points[-1].positions[0], 0.3)) is Verdict.ACCEPTED


def test_non_finite_joint_states_count_as_none():
    core = ChunkExecutor(PROFILE)
    with pytest.raises(ValueError, match='no joint state received yet'):
        core.activate(0)
    core.observe(np.full(DOF, np.nan), 0)
    with pytest.raises(ValueError, match='not finite'):
        core.activate(0)
    core.observe(np.zeros(DOF), 0)
    with pytest.raises(ValueError, match='old'):
        core.activate(10**9)


@pytest.mark.parametrize('jump', [10**9, -(10**9)])
def test_clock_jump_brakes_and_wants_a_new_epoch(jump):
    rig = Rig()
    rig.ingest(positions=ramp(0.0, 1.0, 40))
    rig.run(0.3)
    epoch = rig.core.epoch
    rig.now += jump
    rig.run(0.02)
    assert rig.core.hold is Hold.CLOCK_JUMP
    assert rig.core.epoch > epoch
    rig.run(1.0)
    assert rig.core.state is State.HOLDING
    assert np.abs(np.diff(rig.positions(), axis=0)).max() <= 0.0201


def test_a_stalled_control_loop_joins_the_path_again_without_a_jump():
    rig = Rig()
    rig.ingest(positions=ramp(0.0, 0.5, 60))
    rig.run(1.0)
    rig.now += 150 * MS  # the loop was not run for 150 ms
    rig.run(1.0)
    steps = np.abs(np.diff(rig.positions(), axis=0)).max(axis=1)
    assert steps.max() <= 0.0105  # two periods at the commanded 0.5 rad/s, a little above it while catching up
    np.testing.assert_allclose(rig.points[-1].positions, 0.5 * rig.now * 1e-9, atol=0.02)


def test_gripper_follows_steps_and_stays_in_range():
    rig = Rig()
    assert rig.run(0.05).points[-1].gripper is None
    rig.ingest(positions=np.zeros((4, DOF)), dt=0.1, gripper=[0.08, 0.5, 0.0, -1.0])
    seen = []
    for _ in range(45):
        rig.run(0.01)
        seen.append(rig.points[-1].gripper)
    assert seen[2] is None
    assert [g for i, g in enumerate(seen) if i == 0 or g != seen[i - 1]][1:] == [0.08, 0.0]


def test_an_arm_that_is_not_where_it_was_sent_is_let_go_where_it_is():
    rig = Rig()
    rig.ingest(positions=ramp(0.0, 0.5, 40))
    rig.run(0.5)
    blocked = rig.points[-1].positions - [0.0, 0.15, 0.0]
    epoch = rig.core.epoch
    rig.elsewhere(blocked)
    assert rig.core.hold is Hold.BLOCKED
    assert 'b was 0.11' in rig.core.message
    assert rig.core.state is State.BRAKING
    assert rig.core.epoch > epoch
    assert (rig.points[-1].velocities == 0).all()  # an impedance controller shall not push it along
    assert rig.ingest(positions=ramp(blocked, 0.1)) is Verdict.NOT_ACCEPTING  # it would push again
    came = len(rig.points)
    rig.let_go(blocked)
    assert len(rig.points) - came <= 10  # 0.1 s
    assert rig.speeds() <= 2.0
    np.testing.assert_allclose(rig.points[-1].positions, blocked)
    rig.run(0.3)
    assert (rig.core.state, rig.core.hold) == (State.HOLDING, Hold.BLOCKED)
    np.testing.assert_allclose(rig.points[-1].positions, blocked)
    with pytest.raises(ValueError, match='ended by resume'):
        rig.core.clear(Hold.BLOCKED)
    assert rig.core.resume()
    assert not rig.core.resume()
    assert rig.core.hold is Hold.IDLE
    assert rig.ingest(positions=ramp(blocked, 0.1)) is Verdict.ACCEPTED


def test_one_message_that_puts_the_arm_elsewhere_is_a_glitch():
    rig = Rig()
    rig.ingest(positions=ramp(0.0, 0.5, 40))
    rig.run(0.5)
    rig.now += 10 * MS
    rig.core.observe(np.full(DOF, -1.0), rig.now)
    rig.points.append(rig.core.step(rig.now))
    rig.run(0.3)
    assert (rig.core.state, rig.core.hold) == (State.EXECUTING, Hold.NONE)


@pytest.mark.parametrize('speed', [0.3, 1.2])
def test_where_acceleration_counts_the_arm_is_let_go_within_it(speed):
    rig = Rig(release_within_acceleration=True)
    rig.ingest(positions=ramp(0.0, speed, 30))
    rig.run(0.6)
    blocked = rig.points[-1].positions - [0.0, 0.25, 0.0]
    began = len(rig.points)
    rig.let_go(blocked)
    assert rig.core.hold is Hold.BLOCKED
    np.testing.assert_allclose(rig.points[-1].positions, blocked, atol=1e-9)
    assert rig.speeds() <= 2.0
    assert 5.0 < rig.accelerations() <= 10.0
    released = rig.points[began:]
    steps = np.diff([p.positions for p in released], axis=0) / 0.01
    np.testing.assert_allclose(steps, [p.velocities for p in released[1:]], atol=0.06)  # sent as it is


def test_what_stops_the_arm_does_not_stop_its_letting_go():
    rig = Rig()
    rig.ingest(positions=ramp(0.0, 0.5, 40))
    rig.run(0.5)
    blocked = rig.points[-1].positions - [0.0, 0.15, 0.0]
    rig.elsewhere(blocked)
    rig.core.emergency_stop()
    rig.let_go(blocked)
    assert rig.core.hold is Hold.EMERGENCY_STOP
    np.testing.assert_allclose(rig.points[-1].positions, blocked)
    assert rig.core.reset_emergency_stop()
    assert rig.core.hold is Hold.BLOCKED


def test_an_arm_that_nothing_is_sent_to_is_followed_without_a_motion():
    rig = Rig().run(0.1)
    rig.core.muted = True
    rig.elsewhere(np.full(DOF, 0.5))
    assert (rig.core.state, rig.core.hold) == (State.HOLDING, Hold.TRACKING_ERROR)
    np.testing.assert_allclose(rig.points[-1].positions, 0.5)


def test_a_new_activation_continues_after_a_blocked_way():
    rig = Rig()
    rig.ingest(positions=ramp(0.0, 0.5, 40))
    rig.run(0.5)
    rig.core.deactivate()
    rig.let_go(np.full(DOF, -1.0))  # blocked while it brakes to become inactive
    assert (rig.core.state, rig.core.hold) == (State.INACTIVE, Hold.DEACTIVATED)
    np.testing.assert_allclose(rig.points[-1].positions, -1.0, atol=0.02)
    rig.core.activate(rig.now + 10 * MS)
    assert rig.core.hold is Hold.IDLE
    assert rig.core.accepting


def test_a_robot_that_stops_by_itself_is_no_obstacle():
    rig = Rig()
    rig.ingest(positions=ramp(0.0, 0.5, 40))
    rig.run(0.5)
    rig.core.fault(Hold.ROBOT_FAULT, 'reflex')
    rig.let_go(np.full(DOF, -1.0))
    assert (rig.core.state, rig.core.hold, rig.core.message) == (State.HOLDING, Hold.ROBOT_FAULT, 'reflex')
    rig.core.clear(Hold.ROBOT_FAULT)
    assert rig.core.hold is Hold.BLOCKED  # still for a person to look at
    assert rig.core.resume()


def test_an_arm_that_is_pushed_at_rest_gives_way():
    rig = Rig().run(0.5)
    pushed = np.array([0.15, 0.0, 0.0])
    rig.elsewhere(pushed)
    assert rig.core.hold is Hold.TRACKING_ERROR
    assert 'a was 0.15' in rig.core.message
    rig.let_go(pushed)
    assert rig.speeds() <= 2.0
    np.testing.assert_allclose(rig.points[-1].positions, pushed)
    assert rig.ingest(positions=ramp(pushed, 0.1)) is Verdict.ACCEPTED


@pytest.mark.parametrize('late', [0, 5, 10, 15])
def test_an_arm_that_follows_late_is_not_blocked(late):
    rig = Rig(velocity_fraction=1.0)
    rig.fresh_joints = False
    assert rig.ingest(positions=ramp(0.0, 1.2, 30)) is Verdict.ACCEPTED
    fastest = 0.0
    for _ in range(200):
        rig.now += 10 * MS
        behind = rig.points[-1 - late].positions if len(rig.points) > late else np.zeros(DOF)
        rig.core.observe(behind, rig.now)
        rig.points.append(rig.core.step(rig.now))
        fastest = max(fastest, np.abs(rig.points[-1].velocities).max())
    assert late < 10 or fastest * late * 0.01 > 0.11  # so that a plain difference would have been too much
    np.testing.assert_allclose(rig.points[-1].positions, 1.8, atol=1e-6)
    assert rig.core.hold is Hold.CHUNKS_STOPPED


def test_a_tracking_error_does_not_lift_the_operators_stop():
    rig = Rig()
    rig.ingest(positions=ramp(0.0, 0.5, 40))
    rig.run(0.5)
    rig.core.operator_stop()
    rig.let_go(np.full(DOF, -1.0))
    assert rig.core.state is State.HOLDING
    assert rig.core.hold is Hold.OPERATOR_STOP


# ---- the way to the start

FAR = np.array([1.2, -0.5, 0.1])


def test_the_start_is_reached_on_a_straight_line_gently_and_begins_a_new_epoch():
    rig = Rig(FAR)
    epoch = rig.core.epoch
    rig.points.append(rig.core.step(0))
    assert rig.core.go_to_start() == ''
    assert (rig.core.state, rig.core.source, rig.core.epoch) == (State.EXECUTING, 'executor', epoch + 1)
    for source in ('/p', 'executor'):
        assert rig.ingest(source=source, sequence=1) is Verdict.NOT_ACCEPTING
        assert 'moves to its start' in rig.core.message
        rig.run(1.0)
    assert rig.core.chunk_age(rig.now) == 0
    rig.run(15.0, until=lambda: rig.core.at_rest)
    assert (rig.core.hold, rig.core.source, rig.core.epoch) == (Hold.IDLE, '', epoch + 2)
    assert rig.core.message == ''
    q = rig.positions()
    np.testing.assert_allclose(q[-1], PROFILE.home, atol=1e-9)
    np.testing.assert_allclose(q, np.outer(q[:, 0] / FAR[0], FAR), atol=1e-9)
    assert (np.diff(q[:, 0]) <= 1e-9).all()
    assert 0.15 * 2.0 < rig.speeds() <= 0.2 * 2.0 * 1.001
    assert rig.accelerations() <= 0.2 * 10.0 * 1.001
    assert rig.ingest(positions=ramp(0.0, 0.1)) is Verdict.ACCEPTED


def test_the_start_where_the_arm_is_already():
    rig = Rig()
    rig.run(0.05)
    assert rig.core.go_to_start() == ''
    rig.run(1.0)
    assert (rig.core.state, rig.core.hold, rig.core.epoch) == (State.HOLDING, Hold.IDLE, 3)


def test_the_way_to_the_start_is_refused_while_anything_else_counts():
    rig = Rig()
    rig.ingest(positions=ramp(0.0, 0.5, 10))
    rig.run(0.1)
    assert 'stop the source of its chunks first' in rig.core.go_to_start()
    rig.run(2.0)
    rig.core.operator_stop()
    assert rig.core.go_to_start().startswith('OPERATOR_STOP: stopped by the operator')
    rig.core.resume()
    assert rig.core.go_to_start() == ''
    assert 'the arm is moving' in rig.core.go_to_start()
    rig.core.deactivate()
    rig.run(1.0)
    assert 'not active' in rig.core.go_to_start()


def test_a_way_to_the_start_that_takes_too_long_is_refused():
    rig = Rig(FAR, start_fraction=0.01)
    rig.points.append(rig.core.step(0))
    assert 'more than 30 s' in rig.core.go_to_start()
    assert rig.core.state is State.HOLDING


@pytest.mark.parametrize(
    ('stop', 'hold'),
    [
        (lambda rig: rig.core.operator_stop(), Hold.OPERATOR_STOP),
        (lambda rig: rig.core.emergency_stop(), Hold.EMERGENCY_STOP),
        (lambda rig: rig.core.fault(Hold.CONTROLLER_MISSING, 'no subscriber'), Hold.CONTROLLER_MISSING),
        (lambda rig: setattr(rig, 'fresh_joints', False), Hold.JOINT_STATE_STALE),
        (lambda rig: setattr(rig, 'now', rig.now + 10**9), Hold.CLOCK_JUMP),
        (lambda rig: rig.core.deactivate(), Hold.DEACTIVATED),
    ],
)
def test_what_stops_chunks_stops_the_way_to_the_start(stop, hold):
    rig = Rig(FAR)
    rig.points.append(rig.core.step(0))
    rig.core.go_to_start()
    rig.run(2.0)
    stop(rig)
    rig.run(1.0)
    assert rig.core.at_rest
    assert rig.core.hold is hold
    assert 0.1 < rig.points[-1].positions[0] < 1.1
    assert rig.accelerations() <= 10.0
    assert rig.core.epoch > 2


def test_a_slow_tool_is_late_at_the_start_and_does_not_brake_for_it():
    rig = Rig(FAR, max_lag=0.05, start_fraction=0.8, velocity_fraction=0.1)
    rig.points.append(rig.core.step(0))
    rig.core.go_to_start()
    rig.run(12.0, until=lambda: rig.core.at_rest)
    np.testing.assert_allclose(rig.positions()[-1], PROFILE.home, atol=1e-9)


# ---- what stands until it is taken back


def moving_rig():
    rig = Rig()
    rig.ingest(positions=ramp(0.0, 0.5, 40))
    return rig.run(0.3)


@pytest.mark.parametrize(
    'hold', [Hold.CONTROLLER_MISSING, Hold.COMPETING_PUBLISHER, Hold.ROBOT_FAULT, Hold.CHUNK_STALE]
)
def test_a_fault_brakes_and_stands_until_it_is_cleared(hold):
    rig = moving_rig()
    epoch = rig.core.epoch
    rig.core.fault(hold, 'something is wrong')
    assert (rig.core.state, rig.core.hold, rig.core.epoch) == (State.BRAKING, hold, epoch + 1)
    rig.core.fault(hold, 'it still is')  # reported again: the same fault
    assert (rig.core.epoch, rig.core.message) == (epoch + 1, 'it still is')
    rig.run(1.0, until=lambda: rig.core.at_rest)
    assert rig.core.state is State.HOLDING
    assert rig.ingest(positions=ramp(0, 1)) is Verdict.NOT_ACCEPTING
    rig.core.clear(hold)
    assert (rig.core.hold, rig.core.epoch, rig.core.message) == (Hold.IDLE, epoch + 2, '')
    assert rig.ingest(positions=ramp(rig.points[-1].positions[0], 0.1)) is Verdict.ACCEPTED


def test_a_fault_cleared_while_the_arm_still_brakes_lets_it_come_to_rest_first():
    rig = moving_rig()
    rig.core.fault(Hold.CONTROLLER_MISSING, 'no subscriber')
    rig.core.clear(Hold.CONTROLLER_MISSING)
    assert rig.core.state is State.BRAKING
    assert not rig.core.accepting
    rig.run(1.0, until=lambda: rig.core.at_rest)
    assert rig.core.hold is Hold.IDLE
    assert rig.core.accepting


def test_of_several_faults_the_strongest_shows_and_all_must_go():
    rig = moving_rig()
    rig.core.fault(Hold.CHUNK_STALE, 'old')
    rig.core.fault(Hold.ROBOT_FAULT, 'reflex')
    rig.core.operator_stop()
    rig.core.fault(Hold.CONTROLLER_MISSING, 'no subscriber')
    rig.run(1.0)
    assert rig.core.hold is Hold.OPERATOR_STOP
    assert rig.core.resume()
    assert (rig.core.hold, rig.core.message) == (Hold.ROBOT_FAULT, 'reflex')
    rig.core.clear(Hold.ROBOT_FAULT)
    assert rig.core.hold is Hold.CONTROLLER_MISSING
    rig.core.clear(Hold.CHUNK_STALE)
    rig.core.clear(Hold.CONTROLLER_MISSING)
    assert rig.core.hold is Hold.IDLE


def test_the_emergency_stop_is_the_strongest_and_latched():
    rig = moving_rig()
    rig.core.emergency_stop()
    assert rig.core.hold is Hold.EMERGENCY_STOP
    assert not rig.core.reset_emergency_stop()  # it still brakes
    rig.core.operator_stop()
    rig.run(1.0)
    assert rig.core.hold is Hold.EMERGENCY_STOP
    rig.core.resume()  # of the operator's stop, no more
    assert rig.core.hold is Hold.EMERGENCY_STOP
    assert not rig.core.accepting
    rig.core.deactivate()
    assert (rig.core.state, rig.core.hold) == (State.INACTIVE, Hold.EMERGENCY_STOP)
    with pytest.raises(ValueError, match='emergency stop stands'):
        rig.core.activate(rig.now)
    assert rig.core.reset_emergency_stop()
    assert not rig.core.reset_emergency_stop()
    assert rig.core.hold is Hold.DEACTIVATED
    rig.core.observe(np.zeros(DOF), rig.now)
    rig.core.activate(rig.now)
    assert rig.core.hold is Hold.IDLE


def test_an_emergency_stop_counts_before_activation_too():
    core = ChunkExecutor(PROFILE)
    core.observe(np.zeros(DOF), 0)
    core.emergency_stop()
    with pytest.raises(ValueError, match='reset it first'):
        core.activate(0)


def test_a_fault_that_stands_outlasts_activation():
    rig = moving_rig()
    rig.core.fault(Hold.CONTROLLER_MISSING, 'no subscriber')
    rig.core.deactivate()
    rig.run(1.0, until=lambda: rig.core.state is State.INACTIVE)
    rig.core.observe(np.zeros(DOF), rig.now)
    rig.core.activate(rig.now)
    assert (rig.core.state, rig.core.hold) == (State.HOLDING, Hold.CONTROLLER_MISSING)
    assert not rig.core.accepting


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'interpolation': 'linear'}, 'cubic, monotone'),
        ({'velocity_fraction': 1.1}, 'velocity_fraction'),
        ({'tool_speed_limit': 0.0}, 'tool_speed_limit'),
        ({'smoothing_time': -0.1}, 'smoothing_time'),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        ExecutorConfig(**changes)


def test_what_is_no_fault_is_refused():
    core = ChunkExecutor(PROFILE)
    with pytest.raises(ValueError, match='IDLE is no fault'):
        core.fault(Hold.IDLE, '')
    with pytest.raises(ValueError, match='reset_emergency_stop'):
        core.clear(Hold.EMERGENCY_STOP)


# ---- limits


def test_a_first_chunk_too_far_from_the_arm_is_refused_with_the_distance():
    rig = Rig(start=0.6)
    rig.points.append(rig.core.step(0))
    assert rig.ingest(positions=np.zeros((40, DOF))) is Verdict.OUT_OF_LIMITS
    assert '0.60 rad from the resting arm' in rig.core.message
    rig.run(0.2)
    assert rig.core.state is State.HOLDING


@pytest.mark.parametrize('stop', ['operator_stop', 'emergency_stop', 'deactivate'])
def test_stops_are_quick_and_within_the_limits(stop):
    rig = Rig()
    rig.ingest(positions=ramp(0.0, 1.5, 40))
    rig.run(0.8)
    begun = rig.now
    getattr(rig.core, stop)()
    rig.run(2.0, until=lambda: rig.core.at_rest)
    assert (rig.now - begun) * 1e-9 < 1.5 / 10.0 + 0.06  # the brake, and what smoothing takes
    assert rig.accelerations() <= 10.0
    q = rig.positions()
    np.testing.assert_allclose(q, np.tile(q[:, :1], DOF), atol=1e-9)  # on the path
    assert (np.diff(q[:, 0]) >= -1e-12).all()


def test_jerk_stays_bounded_through_a_switch_and_a_stop():
    rig = Rig(period=0.001)
    rig.ingest(positions=ramp(0.0, 1.0, 40))
    rig.run(0.5, step_ms=1)
    rig.ingest(positions=ramp(rig.points[-1].positions[0] + 0.05, -0.5, 40))
    rig.run(0.1, step_ms=1)
    rig.core.operator_stop()
    rig.run(0.5, step_ms=1)
    assert np.abs(np.diff(rig.positions(), n=3, axis=0)).max() / 0.001**3 <= 2 * 10.0 / 0.02


def test_motion_ahead_is_promised_as_it_is_sent():
    rig = moving_rig()
    promise = rig.core.course.promise(0.2)
    positions, velocities = promise.sample(0.01 * np.arange(0, 20))
    np.testing.assert_allclose(positions[0], rig.points[-1].positions)
    n = len(rig.points)
    rig.run(0.19)
    np.testing.assert_allclose([p.positions for p in rig.points[n:]], positions[1:], atol=1e-9)
    np.testing.assert_allclose([p.velocities for p in rig.points[n:]], velocities[1:], atol=1e-6)
    end, rest = rig.core.course.promise(100.0).sample(np.array([100.0]))
    np.testing.assert_allclose(end[0], 1.0, atol=1e-9)  # the chunk's last step
    np.testing.assert_array_equal(rest, 0.0)


def test_what_is_sent_is_on_time():
    rig = Rig()
    rig.ingest(positions=ramp(0.0, 0.5, 60))
    rig.run(0.5)  # late by what it took to get going
    assert rig.ingest(positions=ramp(0.5 * rig.now * 1e-9, 0.5, 60)) is Verdict.ACCEPTED
    rig.run(1.5)
    np.testing.assert_allclose(rig.points[-1].positions, 0.5 * rig.now * 1e-9, atol=1e-4)


def test_where_acceleration_counts_a_motion_that_stood_still_begins_again_from_rest():
    """A controller that holds the last set-point has stopped the arm meanwhile."""
    rig = Rig(release_within_acceleration=True)
    rig.ingest(positions=ramp(0.0, 0.5, 60))
    rig.run(1.0)
    rig.now += 150 * MS
    rig.core.observe(rig.points[-1].positions, rig.now)
    first = rig.core.step(rig.now, 0.15)
    np.testing.assert_allclose(first.positions, rig.points[-1].positions, atol=1e-9)
    np.testing.assert_allclose(first.velocities, 0.0, atol=1e-9)
    rig.points = [first, first]
    rig.run(1.0)
    assert rig.core.state is State.EXECUTING
    assert rig.accelerations() <= 10.0
    np.testing.assert_allclose(rig.points[-1].positions, 0.5 * rig.now * 1e-9, atol=0.03)
