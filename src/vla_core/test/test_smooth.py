"""What is sent of a planned motion: an average with bounded jerk, and brakes along it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_core.motion.brake import brake, brake_ends
from vla_core.motion.smooth import GRID, Motion, TrajectoryBuffer, averaging_rows

LIMIT = np.array([4.0, 3.0])


def motion(accelerations, start=(0.0, 0.0)):
    """Of piecewise constant accelerations (n, 2), one per 20 ms, then brought to rest."""
    a = np.repeat(np.asarray(accelerations, float), 10, axis=0)
    v = np.cumsum(a, axis=0) * GRID
    stop = np.ceil(np.abs(v[-1]) / LIMIT / GRID).max()
    down = np.tile(-v[-1] / max(stop, 1) / GRID, (int(max(stop, 1)), 1))
    a = np.vstack([a, down])
    v = np.vstack([np.zeros(2), np.cumsum(a, axis=0) * GRID])
    q = np.vstack([start, start + np.cumsum((v[1:] + v[:-1]) / 2, axis=0) * GRID])
    v[-1] = 0
    return Motion(q, v, np.vstack([a, np.zeros(2)]), GRID * np.arange(len(q)))


accelerations = st.lists(st.tuples(st.floats(-3, 3), st.floats(-2, 2)), min_size=1, max_size=15)


def drive(buffer, periods):
    """Times and positions sent."""
    t, times, sent = 0.0, [], []
    for period in periods:
        t += period
        buffer.advance(period)
        times.append(t)
        sent.append(buffer.sample(np.zeros(1))[0][0])
    return np.array(times), np.array(sent)


@settings(max_examples=60)
@given(accelerations, st.integers(0, 10**6))
def test_whatever_the_periods_what_is_sent_keeps_the_limits_of_what_is_planned(accelerations, seed):
    buffer = TrajectoryBuffer(width=10)
    buffer.hold(np.zeros(2))
    plan = motion(accelerations)
    buffer.follow(plan)
    rng = np.random.default_rng(seed)
    t, q = drive(buffer, rng.uniform(0.0005, 0.004, 400))
    v = np.diff(q, axis=0) / np.diff(t)[:, None]
    a = 2 * np.diff(v, axis=0) / (t[2:] - t[:-2])[:, None]
    j = 3 * np.diff(a, axis=0) / (t[3:] - t[:-3])[:, None]
    assert (np.abs(v) <= np.abs(plan.v).max(axis=0) + 1e-9).all()
    assert (np.abs(a) <= np.abs(plan.a).max(axis=0) + 1e-5).all()
    assert (np.abs(j) <= 2 * np.abs(plan.a).max(axis=0) / (10 * GRID) + 1e-2).all()


def test_it_is_the_average_of_the_last_rows():
    buffer = TrajectoryBuffer(width=10)
    buffer.hold(np.zeros(2))
    plan = motion(np.full((20, 2), 1.0))
    buffer.follow(plan)
    buffer.advance(0.2)
    k = buffer.head
    past = buffer.motion.q[: k + 1]
    points = [past[m - 9 : m + 1].mean(axis=0) for m in (k - 3, k - 2, k - 1, k)]
    u = buffer.since_head / GRID
    weights = np.array([(1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3]) / 6
    q, v = (x[0] for x in buffer.sample(np.zeros(1)))
    np.testing.assert_allclose(q, weights @ points, atol=1e-12)
    before, after = buffer.sample(np.array([-1e-5, 1e-5]))[0]
    np.testing.assert_allclose(v, (after - before) / 2e-5, atol=1e-6)
    # With constant acceleration the average is where the motion was `lag` ago, but for a T^2 / 24 and a h^2 / 6.
    ago = 0.2 - buffer.lag
    np.testing.assert_allclose(q, 0.5 * ago**2, atol=1.0 * (0.02**2 / 24 + GRID**2 / 6) + 1e-9)


def test_a_replaced_motion_changes_nothing_that_was_sent_and_does_not_jump():
    buffer = TrajectoryBuffer(width=10)
    buffer.hold(np.zeros(2))
    buffer.follow(motion(np.full((20, 2), 1.0)))
    buffer.advance(0.1013)
    before = [x[0] for x in buffer.sample(np.zeros(1))]
    head = buffer.motion.rows(buffer.head, buffer.head + 1)
    buffer.follow(head.then(head.rest(1)))
    for was, now in zip(before, buffer.sample(np.zeros(1)), strict=True):
        np.testing.assert_allclose(was, now[0], atol=1e-12)
    assert not buffer.finished
    buffer.advance(0.1)
    assert buffer.finished
    np.testing.assert_allclose(buffer.sample(np.zeros(1))[0][0], head.q[0])


@pytest.mark.parametrize('width', range(1, 60))
def test_a_motion_may_be_replaced_again_and_again_at_one_moment(width):
    """A chunk and a stop come between two control steps: both begin where the last one has left off."""
    buffer = TrajectoryBuffer(width)
    buffer.hold(np.zeros(2))
    buffer.follow(motion(np.full((40, 2), 1.0)))
    for step in (0.0, 0.1, 0.01, 0.01):
        buffer.advance(step)
        before = buffer.sample(np.zeros(1))
        for _ in range(3):
            buffer.follow(buffer.motion.rows(buffer.head))
            np.testing.assert_allclose(buffer.sample(np.zeros(1)), before, atol=1e-9)


@settings(max_examples=60)
@given(accelerations, st.floats(0, 0.6), st.sampled_from([0.002, 0.01, 0.02]))
def test_cubics_between_its_points_accelerate_as_the_track_does(accelerations, passed, longest):
    buffer, near = TrajectoryBuffer(width=10), np.array([0.05, 0.1])
    buffer.hold(np.zeros(2))
    buffer.follow(motion(accelerations))
    buffer.advance(passed)
    times = buffer.points(longest, near)
    assert times[0] == 0
    assert times[-1] == pytest.approx(buffer.duration)
    assert (np.diff(times) <= longest + 1e-9).all()
    times = times[np.diff(times, prepend=-1.0) > 1e-6]
    q, v = buffer.sample(times)
    h, rise = np.diff(times)[:, None], np.diff(q, axis=0)
    begins, ends = (6 * rise / h - 4 * v[:-1] - 2 * v[1:]) / h, (2 * v[:-1] + 4 * v[1:] - 6 * rise / h) / h
    for u in (0.01, 0.3, 0.5, 0.7, 0.99):
        at = times[:-1] + u * h[:, 0]
        a = (buffer.sample(at + 1e-6)[1] - buffer.sample(at - 1e-6)[1]) / 2e-6
        assert (np.abs((1 - u) * begins + u * ends - a) <= near + 1e-3).all()


def test_a_track_has_many_points_only_where_its_jerk_changes():
    buffer = TrajectoryBuffer(width=10)
    buffer.hold(np.zeros(2))
    buffer.follow(motion(np.full((20, 2), 1.0)))
    near = np.full(2, 0.01)
    times = buffer.points(0.01, near)
    assert 10 <= (np.diff(times) < 0.0021).sum() <= 40
    steady = times[(times > 0.05) & (times < 0.4)]
    np.testing.assert_allclose(np.diff(steady), 0.01)
    buffer.advance(10.0)
    assert buffer.points(0.01, near).tolist() == [0.0]


def test_jerk_asks_for_a_longer_average():
    assert averaging_rows(0.02, np.array([9.0]), np.array([5000.0])) == 10
    assert averaging_rows(0.0, np.array([9.0]), np.array([5000.0])) == 2
    assert averaging_rows(0.02, np.array([9.0]), np.array([500.0])) == 20  # 2 * 9 / (0.9 * 500) = 40 ms


@settings(max_examples=60)
@given(accelerations, st.floats(0, 1))
def test_a_brake_stays_on_the_way_and_inside_its_limit(accelerations, share):
    plan = motion(accelerations)
    first = int(share * (len(plan.q) - 2))
    rest = plan.rows(first)
    braked = brake(rest, LIMIT)
    np.testing.assert_allclose(braked.q[0], rest.q[0])
    assert (braked.v[-1] == 0).all()
    a = np.diff(braked.q, n=2, axis=0) / GRID**2
    assert (np.abs(a) <= LIMIT * 1.01).all()
    # It is on the way: at the path time of each row the motion was there.
    for i in (0, 1):
        np.testing.assert_allclose(braked.q[:, i], np.interp(braked.s, rest.s, rest.q[:, i]), atol=5e-6)
    assert braked.s[-1] <= rest.s[brake_ends(plan, LIMIT)[first] - first] + 1e-9


def test_a_brake_is_as_fast_as_the_limit_allows():
    plan = motion([(3.0, 0.0)] * 10 + [(0.0, 0.0)] * 10)  # to 0.6 rad/s
    braked = brake(plan.rows(150), LIMIT)
    assert len(braked.q) * GRID == pytest.approx(0.6 / 4.0, rel=0.06)
