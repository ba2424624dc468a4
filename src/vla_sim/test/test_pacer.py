import pytest

from vla_sim.pacer import Pacer


class FakeTime:
    def __init__(self):
        self.now = 100.0

    def clock(self):
        return self.now

    def sleep(self, seconds):
        assert seconds > 0
        self.now += seconds


@pytest.fixture
def wall():
    return FakeTime()


def run(pacer, wall, simulated, busy, batch=0.005):
    for _ in range(round(simulated / batch)):
        wall.now += busy
        pacer.wait(batch)


@pytest.mark.parametrize('factor', [0.5, 1.0, 3.0])
def test_keeps_the_factor(wall, factor):
    pacer = Pacer(factor, wall.clock, wall.sleep)
    run(pacer, wall, 6.0, busy=0.001)
    assert wall.now - 100.0 == pytest.approx(6.0 / factor, abs=0.02)


def test_zero_is_as_fast_as_possible(wall):
    pacer = Pacer(0.0, wall.clock, wall.sleep)
    run(pacer, wall, 6.0, busy=0.001)
    assert wall.now - 100.0 == pytest.approx(1.2)


def test_a_short_stall_is_caught_up_a_long_one_is_not(wall):
    pacer = Pacer(1.0, wall.clock, wall.sleep)
    wall.now += 0.08
    run(pacer, wall, 1.0, busy=0.001)
    assert wall.now - 100.0 == pytest.approx(1.0, abs=0.01)
    wall.now += 5.0
    run(pacer, wall, 1.0, busy=0.001)
    assert wall.now - 100.0 == pytest.approx(7.0, abs=0.02)


def test_tells_what_it_achieved_once_per_window(wall):
    pacer = Pacer(1.0, wall.clock, wall.sleep)
    run(pacer, wall, 4.0, busy=0.010)  # half as fast as it should
    assert pacer.achieved() is None
    run(pacer, wall, 1.1, busy=0.010)
    assert pacer.achieved() == pytest.approx(0.5, abs=0.01)
    assert pacer.achieved() is None


def test_restart_forgets_a_pause(wall):
    pacer = Pacer(1.0, wall.clock, wall.sleep)
    run(pacer, wall, 5.0, busy=0.001)
    wall.now += 3.0
    pacer.restart()
    run(pacer, wall, 5.5, busy=0.001)
    assert wall.now - 100.0 == pytest.approx(13.5, abs=0.02)
    assert pacer.achieved() == pytest.approx(1.0, abs=0.01)
