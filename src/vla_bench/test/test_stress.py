"""Whatever chunks come, what is sent keeps every limit. The long run is `python -m vla_bench.fuzz.run`."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vla_bench.fuzz.stress import Measured, Stream, stress
from vla_core.motion.chunk import Verdict
from vla_core.motion.executor import ExecutorConfig
from vla_core.motion.states import Hold
from vla_core.profile import RobotProfile

ROBOTS = Path(__file__).parents[2] / 'vla_bringup' / 'config' / 'robots'
PROFILES = {name: RobotProfile.load(ROBOTS / f'{name}.yaml') for name in ('fr3', 'sim_panda')}


@pytest.mark.parametrize('robot', PROFILES)
@pytest.mark.parametrize('period', [0.001, 0.005])
def test_no_limit_is_broken(robot, period):
    total = Measured()
    for seed in range(5):
        total.add(stress(PROFILES[robot], 30, seed, period))
    assert total.violations == []
    assert total.verdicts[Verdict.ACCEPTED] > 10
    assert sum(total.verdicts.values()) == total.chunks == 150
    assert total.moving > 0.1 * total.samples
    assert total.acceleration > 0.5  # it was asked for more than it may
    assert total.holds[Hold.BLOCKED] + total.holds[Hold.TRACKING_ERROR] > 0


@settings(max_examples=15)
@given(
    st.integers(0, 2**31),
    st.floats(0.05, 1.0),
    st.floats(0.05, 1.0),
    st.floats(0.05, 1.0),
    st.sampled_from([0.0, 0.02, 0.05]),
    st.sampled_from(['cubic', 'monotone']),
)
@example(7109, 1.0, 1.0, 1.0, 0.0, 'cubic')  # stopped from the start on: no set-point
@example(7610556, 1.0, 1.0, 1.0, 0.0, 'cubic')  # few set-points
def test_no_limit_is_broken_with_any_settings(seed, velocity, acceleration, brake, smoothing, interpolation):
    seen = stress(
        PROFILES['fr3'],
        10,
        seed,
        0.002,
        velocity_fraction=velocity,
        acceleration_fraction=acceleration,
        brake_fraction=brake,
        smoothing_time=smoothing,
        interpolation=interpolation,
        contact=False,
    )
    multiples = seen.multiples()
    assert max(multiples.values()) <= 1 + 1e-6, multiples
    assert seen.velocity <= velocity * (1 + 1e-6) + 1e-4
    assert seen.acceleration <= min(1.0, acceleration + brake) * (1 + 1e-6)
    assert seen.position <= 1e-9


def test_a_measurement_finds_violations():
    """The yardstick itself: set-points that no executor would send."""
    stream = Stream(PROFILES['fr3'], 3, ExecutorConfig(period=0.001))
    stream.core.fault(Hold.ROBOT_FAULT, 'it stands still')
    stream.run(0.1)
    still = stream.measure()
    assert still.violations == []
    for place, change, found in (
        (50, 1e-8, ''),
        (50, 1e-5, 'acceleration'),
        (50, 0.01, 'velocity'),
        (slice(50, None), 4.0, 'position'),
        (slice(10, None, 20), 5e-3, 'deviation'),
    ):
        sent = [x.copy() for x in stream.sent]
        sent[place] = sent[place] + change if isinstance(place, int) else [x + change for x in sent[place]]
        other = Stream(PROFILES['fr3'], 3, ExecutorConfig(period=0.001))
        other.times, other.sent, other.planned_positions = stream.times, sent, stream.planned_positions
        assert found in ' '.join(other.measure().violations)
        assert bool(other.measure().violations) == bool(found)
    assert np.isinf(still.distance)
