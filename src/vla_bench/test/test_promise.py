"""What a trajectory controller was sent is a promise: however late control steps come, the motion continues it."""

import contextlib
import copy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_bench.fuzz import holds
from vla_bench.fuzz.holds import Controller
from vla_bench.fuzz.trajectory_follower import TrajectoryFollower
from vla_core.motion.chunk import StampedChunk, Verdict
from vla_core.motion.executor import ChunkExecutor, ExecutorConfig
from vla_core.motion.limits import velocity_limits
from vla_core.motion.states import Hold, State
from vla_core.profile import RobotProfile

ROBOTS = Path(__file__).parents[2] / 'vla_bringup' / 'config' / 'robots'
PROFILES = {name: RobotProfile.load(ROBOTS / f'{name}.yaml') for name in ('fr3', 'sim_panda')}
NS, MS = 1_000_000_000, 1_000_000
CYCLE = MS  # of the controller


class Late:
    """An executor with a controller that executes its trajectories, on a machine that makes it late."""

    def __init__(self, profile: RobotProfile, seed: int = 0, monitor=None) -> None:
        self.profile, self.rng = profile, np.random.default_rng(seed)
        self.core = ChunkExecutor(profile, ExecutorConfig(release_within_acceleration=True), monitor)
        self.controller = Controller('joint_trajectory', self.core, profile.home)
        self.time, self.offset = 0, 10**6 * NS  # [ns] of the monotonic clock; what the ROS clock is ahead of it
        self.cycle = self.stepped = self.sequence = 0
        self.planning = 0.0  # [s] that a step takes until its message is ready
        self.executed: list[np.ndarray] = []  # each CYCLE
        self.jumps: list[tuple[float, float]] = []  # at each new trajectory: [rad], and of the velocity limit
        self.target = profile.home
        self.frequency = np.full(profile.dof, 1.0)
        self.lost = 0  # messages that will not arrive
        self.arrived = 0  # [ns] by the monotonic clock, the newest message
        self.begun = self.now
        self.core.observe(profile.home, self.now)
        self.core.activate(self.now)

    @property
    def now(self) -> int:
        return self.time + self.offset

    def wait(self, ns: int) -> None:
        """The controller goes on; the executor does nothing."""
        end = self.time + ns
        while self.cycle + CYCLE <= end:
            self.cycle = self.time = self.cycle + CYCLE
            self.executed.append(self.controller.follow(self.now, CYCLE / NS))
        self.time = end

    def step(self) -> None:
        """A control step, after the joint states of the arm, which is 10 ms late."""
        measured = self.executed[-10] if len(self.executed) > 10 else self.profile.home
        self.core.observe(measured + 1e-6 * self.rng.normal(size=self.profile.dof), self.now)
        now, elapsed = self.now, (self.time - self.stepped) / NS
        self.stepped = self.time
        point = self.core.step(now, elapsed)
        if point is None:
            return
        self.wait(round(self.planning * NS))
        old = copy.copy(self.controller.follower)
        self.controller.node.late = round(self.planning * NS)
        self.controller.send(now, point.positions, point.velocities)
        new = copy.copy(self.controller.follower)
        if new._new is None:
            return
        if self.lost:
            self.lost, self.controller.follower._new = self.lost - 1, None
            return
        self.arrived = self.time
        first = self.cycle + CYCLE + self.offset
        old.update(first, CYCLE)
        new.update(first, CYCLE)
        jump = np.abs(new.q - old.q).max(), (np.abs(new.v - old.v) / self.profile.velocity).max()
        self.jumps.append((float(jump[0]), float(jump[1])))

    def run(self, steps: int) -> None:
        """On time, with a chunk every 0.15 s, in between two steps."""
        for _ in range(steps):
            self.wait(6 * MS)
            if (self.sequence + 1) * 150 * MS < self.time:
                self.chunk()
            self.wait(4 * MS)
            self.step()

    def chunk(self, jump: float = 0.0, horizon: int = 12) -> Verdict:
        """Along slow sines about home; jump: [rad] about, off them."""
        self.sequence = self.time // (150 * MS)
        self.core.source = self.core.source or '/late'
        times = (self.now - self.begun) / NS + 0.05 * np.arange(1, horizon + 1)
        way = 0.25 * np.sin(times[:, None] * 0.55 * np.pi * self.frequency + np.arange(self.profile.dof))
        way -= 0.25 * np.sin(np.arange(self.profile.dof))
        q = self.profile.home + way + jump * self.rng.normal(size=self.profile.dof)
        return self.core.ingest(
            StampedChunk(
                t_ref=self.now, epoch=self.core.epoch, sequence=self.core.sequence + 1, source='/late',
                joint_names=self.profile.joint_names, dt=0.05, horizon=horizon, positions=q, gripper=np.zeros(0),
            ),
            self.now,
        )  # fmt: skip

    def judge(self) -> None:
        position, speed, velocity, acceleration = self.worst()
        assert position <= 1e-3
        assert speed <= 0.02
        assert velocity <= 1.0
        assert acceleration <= 1.1  # a new plan arrives some milliseconds behind its stamp
        assert self.controller.follower.refused == 0
        assert self.core.state is State.INACTIVE or self.time - self.arrived <= 60 * MS  # messages arrive again
        assert self.cubics()[0] <= 1.0
        assert self.cubics()[1] <= 1.0

    def cubics(self) -> tuple[float, float]:
        """Anywhere between the points of any message: largest shares of the limits of velocity and acceleration."""
        follower, profile = self.controller.follower, self.profile
        return float((follower.fastest / profile.velocity).max()), float(
            (follower.hardest / profile.acceleration).max()
        )

    def worst(self) -> tuple[float, float, float, float]:
        """Of new trajectories: [rad] and share of the velocity limit. Of what was executed, from 10 to 10 ms: shares of
        the limits of velocity and acceleration.
        """
        jumps = np.array(self.jumps or [(0.0, 0.0)])
        q = np.array(self.executed)[::10]
        v = np.diff(q, axis=0) / 0.01
        down, up = velocity_limits(self.profile, (q[1:] + q[:-1]) / 2)
        a = np.abs(np.diff(v, axis=0)) / 0.01 / self.profile.acceleration
        return (*jumps.max(axis=0), float((np.abs(v) / np.where(v > 0, up, down)).max()), float(a.max()))


def operator_stop(rig):
    rig.core.operator_stop()


def emergency_stop(rig):
    rig.core.emergency_stop()


def reset(rig):
    rig.core.reset_emergency_stop()
    rig.core.resume()
    rig.core.clear(Hold.ROBOT_FAULT)
    if rig.core.state is State.INACTIVE:
        with contextlib.suppress(ValueError):  # joint states are old behind a late step
            rig.core.activate(rig.now)


def fault(rig):
    rig.core.fault(Hold.ROBOT_FAULT, 'it is so')


def deactivate(rig):
    rig.core.deactivate()


def to_start(rig):
    rig.core.go_to_start()


def set_clock(seconds):
    def act(rig):
        rig.offset += round(seconds * NS)

    return act


def chunk(jump):
    return lambda rig: rig.chunk(jump)


def stop_request(rig):
    rig.chunk(horizon=0)


ACTIONS = {
    'nothing': lambda rig: None, 'chunk': chunk(0.0), 'other chunk': chunk(0.03), 'far chunk': chunk(0.2),
    'operator stop': operator_stop, 'emergency stop': emergency_stop, 'reset': reset, 'fault': fault,
    'deactivate': deactivate, 'start': to_start, 'stop request': stop_request,
    'clock +0.06': set_clock(0.06), 'clock -0.1': set_clock(-0.1), 'clock +1': set_clock(1.0),
    'clock -3600': set_clock(-3600.0),
}  # fmt: skip
EVENTS = st.tuples(
    st.integers(1, 40),  # control steps on time before it
    st.sampled_from(sorted(ACTIONS)),
    st.integers(0, 400),  # [ms] until the next control step
    st.floats(0.0, 1.0),  # of this, when it happens
    st.integers(0, 3),  # control steps at once behind it
    st.sampled_from([0.0, 0.0, 0.003, 0.008, 0.05]),  # [s] until the message is ready
)


@pytest.mark.slow
@settings(max_examples=25)
@given(st.sampled_from(sorted(PROFILES)), st.integers(0, 2**31), st.lists(EVENTS, min_size=3, max_size=6))
def test_a_new_trajectory_continues_the_one_that_the_controller_executes(robot, seed, events):
    rig = Late(PROFILES[robot], seed)
    rig.run(60)
    for steps, action, late, share, burst, planning in events:
        rig.run(steps)
        before = max(1, round(late * share))  # [ms] what was sent has arrived: a clock that is set meets no message
        rig.wait(before * MS)
        ACTIONS[action](rig)
        rig.wait(max(0, late - before) * MS)
        rig.planning = planning
        rig.step()
        rig.planning = 0.0
        for _ in range(burst):
            rig.wait(100_000)
            rig.step()
    rig.run(50)
    rig.judge()


@pytest.mark.parametrize('late', [30, 60, 120, 180, 195, 230, 300, 400])
def test_a_late_control_step_continues_as_it_was_sent(late):
    rig = Late(PROFILES['fr3'])
    rig.run(100)
    rig.wait(late * MS)
    rig.step()
    if late <= 150:  # a message is at most 50 ms old
        assert rig.core.state is State.EXECUTING
    elif late > 200:
        assert rig.core.hold is Hold.CHUNKS_STOPPED
        assert f'a control step came {late / 1000:.3f} s late: the controller braked by itself' in rig.core.message
    rig.wait(4 * MS)
    assert rig.chunk() is Verdict.ACCEPTED  # of the epoch before, if the arm is not at rest yet
    rig.run(60)
    assert rig.core.state is State.EXECUTING
    rig.judge()


@pytest.mark.parametrize('late', [0, 100, 150, 170])
@pytest.mark.parametrize('planning', [0.05, 0.1, 0.3])
def test_a_message_that_is_ready_when_the_controller_brakes_already_is_not_sent(late, planning):
    rig = Late(PROFILES['fr3'])
    rig.run(103)
    rig.wait(late * MS)
    rig.planning = planning
    rig.step()
    rig.planning = 0.0
    rig.run(50)
    rig.judge()


@pytest.mark.parametrize('planning', [0.02, 0.03, 0.05])
def test_the_arm_moves_even_if_each_message_is_ready_too_late(planning):
    rig = Late(PROFILES['fr3'])
    rig.run(100)
    rig.planning, begun = planning, len(rig.executed)
    rig.run(120)
    rig.planning = 0.0
    rig.run(50)
    rig.judge()
    second = 1000  # cycles
    for i in range(begun, len(rig.executed) - second, second):
        assert np.ptp(rig.executed[i : i + second], axis=0).max() > 0.01


def test_a_step_that_is_later_than_a_clock_jump_finds_the_arm_at_rest():
    rig = Late(PROFILES['fr3'])
    rig.run(100)
    rig.wait(700 * MS)
    rig.step()
    assert (rig.core.state, rig.core.hold) == (State.HOLDING, Hold.CLOCK_JUMP)
    assert 'a control step came 0.700 s late' in rig.core.message
    np.testing.assert_allclose(rig.core.planned_positions, rig.controller.follower.q, atol=1e-6)
    rig.judge()


@pytest.mark.parametrize('action', ['operator stop', 'emergency stop', 'deactivate', 'far chunk', 'fault'])
@pytest.mark.parametrize('late', [120, 300])
def test_what_is_asked_while_control_steps_do_not_come_begins_where_the_arm_is(action, late):
    rig = Late(PROFILES['fr3'])
    rig.run(100)
    ACTIONS[action](rig)  # from where the arm was at the last step, and then nothing runs for so long
    rig.wait(late * MS)
    rig.step()
    rig.run(30)
    rig.judge()


def test_an_arm_that_was_lent_is_not_where_it_was_sent():
    rig = Late(PROFILES['fr3'])
    rig.run(100)
    rig.core.fault(Hold.ROBOT_FAULT, 'its guiding button is pressed')
    rig.run(60)
    rig.core.muted = True
    rig.run(5)
    elsewhere = rig.executed[-1] + 0.2
    rig.executed += [elsewhere] * 100
    rig.controller.follower.q = elsewhere  # by hand
    rig.core.observe(elsewhere, rig.now)
    rig.time += 300 * MS
    for _ in range(20):
        rig.time += 10 * MS
        rig.core.observe(elsewhere + 1e-6 * rig.rng.normal(size=7), rig.now)
        rig.core.step(rig.now, 0.01)
    np.testing.assert_allclose(rig.core.planned_positions, elsewhere, atol=1e-4)


def test_the_trajectory_that_was_sent_stops_before_what_is_in_the_way_even_when_nothing_runs_any_more():
    wall = holds.Wall(Hold.COLLISION_AHEAD)
    rig = Late(PROFILES['fr3'], monitor=wall)
    rig.run(60)
    moving = rig.executed[-1][0] - rig.executed[-11][0]
    assert moving > 0
    wall.stand_at(rig.executed[-1][0] + 0.05)
    rig.run(1)
    assert rig.core.state is not State.HOLDING
    rig.wait(1000 * MS)
    assert rig.executed[-1][0] < wall.at


def test_a_lost_message_is_made_up_by_the_next_ones():
    rig = Late(PROFILES['fr3'])
    rig.run(100)
    rig.lost = 3
    rig.run(30)
    assert rig.lost == 0
    assert max(rig.worst()[:2]) <= 1.0


@pytest.mark.parametrize('desired', [False, True])
def test_a_controller_that_interpolates_from_its_desired_state_stops_dead_when_its_clock_is_set_back(desired):
    """Why our controller file leaves interpolate_from_desired_state alone: a new trajectory in the first cycle after
    that is not executed until the clock is again where it was.
    """
    rig = Late(PROFILES['fr3'])
    rig.controller.follower = TrajectoryFollower(rig.profile.home, desired)
    rig.run(100)
    rig.offset -= NS // 2
    rig.step()
    before = rig.executed[-1]
    rig.wait(30 * MS)
    assert np.array_equal(rig.executed[-1], before) is desired


@pytest.mark.parametrize('action', ['operator stop', 'emergency stop', 'stop request', 'fault', 'deactivate', 'start'])
@pytest.mark.parametrize('robot', sorted(PROFILES))
def test_the_cubics_between_the_points_of_a_message_keep_the_limits(robot, action):
    """Whenever after a row of the plan the arm is braked, or goes on while it brakes."""
    rig = Late(PROFILES[robot])
    rig.run(60)
    for i in range(8):
        rig.run(7)
        rig.chunk(jump=0.15)
        rig.run(9)
        rig.wait(250_000 * i)
        ACTIONS[action](rig)
        rig.run(3)
        rig.chunk()
        rig.run(20)
        reset(rig)
        rig.chunk()
        rig.run(20)
    speed, acceleration = rig.cubics()
    assert 0.1 < speed <= 1.0
    assert 0.8 < acceleration <= 1.0
