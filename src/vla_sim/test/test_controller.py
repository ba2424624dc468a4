import numpy as np
import pytest

from vla_sim.assets.robot import TORQUE_LIMIT
from vla_sim.controller import TORQUE_RATE, Gains, JointImpedance

DT = 0.001
ZERO = np.zeros(7)


def controller():
    made = JointImpedance(TORQUE_LIMIT, DT)
    made.reset(ZERO)
    return made


def test_far_targets_stay_within_torque_and_torque_rate():
    law, last = controller(), ZERO
    bias = np.array([5.0, -40.0, 3.0, 20.0, 1.0, 2.0, 0.0])
    law.set_target(np.full(7, 2.0))
    for _ in range(200):
        torque = law.torque(ZERO, ZERO, bias)
        assert (np.abs(torque) <= TORQUE_LIMIT).all()
        assert (np.abs(torque - bias - last) <= TORQUE_RATE * DT + 1e-12).all()
        last = torque - bias
    assert (torque == TORQUE_LIMIT).all()  # and they are used up
    law.set_target(np.full(7, -2.0))  # no wind-up: it turns round at once
    assert (law.torque(ZERO, ZERO, bias) < torque).all()


def test_bias_alone_when_the_arm_is_where_it_should_be():
    bias = np.array([5.0, -40.0, 3.0, 20.0, 1.0, 2.0, 0.0])
    assert np.array_equal(controller().torque(ZERO, ZERO, bias), bias)


def test_velocity_target_is_followed_and_is_zero_when_left_out():
    law = controller()
    law.set_target(ZERO, np.full(7, 0.01))
    assert (law.torque(ZERO, ZERO, ZERO) > 0).all()
    law = controller()
    law.set_target(ZERO, np.array([]))
    assert (law.torque(ZERO, ZERO, ZERO) == 0).all()


@pytest.mark.parametrize(
    ('positions', 'velocities', 'words'),
    [
        (np.full(7, np.nan), None, 'positions are not finite'),
        (np.zeros(7), np.full(7, np.inf), 'velocities are not finite'),
        (np.zeros(6), None, 'positions: 7 numbers needed, one per joint, got 6'),
        (np.zeros(7), np.zeros(3), 'velocities: 7 numbers needed, one per joint, got 3'),
    ],
)
def test_bad_targets_are_refused_and_the_one_before_stays(positions, velocities, words):
    law = controller()
    law.set_target(np.full(7, 0.1), np.full(7, 0.2))
    with pytest.raises(ValueError, match=words):
        law.set_target(positions, velocities)
    assert (law.target[0] == 0.1).all()
    assert (law.target[1] == 0.2).all()


def test_the_caller_may_reuse_its_array():
    law, positions = controller(), np.full(7, 0.1)
    law.set_target(positions)
    positions[:] = 9.0
    assert (law.target[0] == 0.1).all()


@pytest.mark.parametrize('bad', [np.ones(6), np.full(7, np.nan), -np.ones(7)])
def test_gains_that_are_none_are_named(bad):
    with pytest.raises(ValueError, match=r'gains\.stiffness'):
        Gains(stiffness=bad)
