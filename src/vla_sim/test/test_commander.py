"""Physics and the sender of set-points, by simulated time in ms. A patience of 0 stands for one that is over."""

import threading

import pytest

from vla_sim.commander import Commander

MS = 1_000_000


def steady(patience=0.0, interval=10, until=200):
    """A sender whose newest set-point is of `until`."""
    commander = Commander(patience)
    for at in range(0, until + 1, interval):
        commander.sent(at * MS, at * MS)
    return commander


@pytest.mark.parametrize('interval', [5, 10, 50])
def test_physics_runs_on_until_the_next_set_point_is_late(interval):
    commander = steady(interval=interval, until=1000)
    assert commander.wait((1000 + interval + 20) * MS)
    assert not commander.wait((1000 + interval + 21) * MS)


def test_late_set_points_do_not_make_the_next_ones_later():
    commander = steady()
    commander.sent(280 * MS, 285 * MS)
    assert commander.wait(310 * MS) and not commander.wait(311 * MS)


def test_who_is_silent_is_waited_for_once_and_again_after_a_steady_stream():
    commander = steady()
    assert not commander.wait(400 * MS) and commander.wait(500 * MS)
    for at in range(600, 690, 10):
        commander.sent(at * MS, at * MS)
    assert commander.wait(900 * MS)
    for at in range(900, 1100, 10):
        commander.sent(at * MS, at * MS)
    assert not commander.wait(1200 * MS)


@pytest.mark.parametrize(
    ('what', 'stamps'),
    [
        ('no stamp', [0] * 30),
        ('time of day', [1_700_000_000_000 + 10 * i for i in range(30)]),
        ('seldom', range(0, 10_000, 200)),
        ('back and forth', [0, 50] * 15),
    ],
)
def test_stamps_that_are_not_of_a_steady_stream_are_not_waited_for(what, stamps):
    commander = Commander(0.0)
    for i, stamp in enumerate(stamps):
        commander.sent(stamp * MS, max(10 * i, stamp if what == 'seldom' else 0) * MS)
    assert commander.wait(20_000 * MS), what


def test_the_set_point_that_comes_lets_physics_continue():
    commander = steady(patience=60.0)
    went_on = []
    physics = threading.Thread(target=lambda: went_on.append(commander.wait(250 * MS)))
    physics.start()
    commander.sent(240 * MS, 250 * MS)
    physics.join(30)
    assert went_on == [True]
