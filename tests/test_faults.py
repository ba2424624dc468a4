"""Parts fail in mid-motion on the simulated robot: the executor reports it in time, and the arm comes to rest.

These are some of the faults of `./vla bench faults`.
"""

import math

import pytest

from vla_bench.faults.faults import FAULTS, run_fault

TRIED = ('controller gone', 'joints NaN', 'emergency stop')


@pytest.mark.parametrize('name', TRIED)
def test_the_arm_comes_to_rest_and_the_code_is_right(name, tmp_path, monkeypatch):
    monkeypatch.setenv('ROS_DOMAIN_ID', '0')  # run_fault sets its own; restored afterwards
    fault = next(f for f in FAULTS if f.name == name)
    result = run_fault(fault, seed=3, folder=tmp_path)
    assert result.reported == fault.expected
    assert math.isfinite(result.held)
    assert (result.velocity <= 1.0, result.acceleration <= 1.0) == (True, True)
    assert result.speed_after < 0.8 * 2.61 + 0.2  # limit of the set-points, and the overshoot of the compliant arm
