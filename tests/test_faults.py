"""Parts die in mid-motion on the simulated robot: the arm comes to rest, no faster than before, and says why."""

import pytest

from vla_bringup.faults import FAULTS, run_fault


@pytest.mark.parametrize('fault', FAULTS, ids=lambda fault: fault.name.replace(' ', '_'))
def test_the_arm_comes_to_rest(fault, tmp_path, monkeypatch):
    monkeypatch.setenv('ROS_DOMAIN_ID', '0')  # run_fault sets its own; restored afterwards
    result = run_fault(fault, seed=3, folder=tmp_path)
    assert result.time_to_hold < 1.8
    assert result.speed_after < 0.8 * 2.61 + 0.2  # the velocity guard, and what the compliant arm adds
    assert result.executor == ('dead' if fault.name == 'executor killed' else 'CHUNKS_STOPPED')
