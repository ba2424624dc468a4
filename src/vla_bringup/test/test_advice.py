"""What the demo says at its end: after a death, and on a machine that did not keep up."""

import re
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from vla_bringup.demo.advice import Pace, after_death, keeping_up
from vla_bringup.demo.report import Run
from vla_policy_node.ros.chunk_msg import to_time

SECOND = 1_000_000_000


@dataclass
class Episode:
    start: int
    end: int


def run_of(latencies):
    run = Run()
    for i, latency in enumerate(latencies):
        stamp = i * SECOND // 5
        chunk = SimpleNamespace(header=SimpleNamespace(stamp=to_time(stamp)), source='/policy', horizon=8)
        run.chunks.add(stamp + int(latency * SECOND), chunk)
    return run


FAST = run_of([0.05] * 99 + [0.3])  # one of a hundred may be late
EPISODES = [Episode(0, 20 * SECOND)]
COUNTS = {'/policy/plan_text': 9, '/policy/predicted_image': 8}
PACES = [Pace(20.0, 19.9)]


def test_a_machine_that_keeps_up_gets_no_line():
    assert keeping_up(FAST, EPISODES, COUNTS, PACES, 1.0) == ''
    assert keeping_up(run_of([0.5] * 9), EPISODES, {}, [Pace(20.0, 5.0)], 0.0) == ''  # no pace was asked for
    assert keeping_up(FAST, EPISODES, COUNTS, [], 1.0) == ''  # no episode ended
    assert keeping_up(FAST, [Episode(0, 2 * SECOND)], {}, [Pace(2.0, 2.0)], 1.0) == ''  # too short for a plan


@pytest.mark.parametrize(
    ('given', 'sentence'),
    [
        (
            {'run': run_of([0.05] * 80 + [0.17] * 20)},
            '20 of 100 chunks .* more than 120 ms .* percentile 170 ms',
        ),
        ({'counts': {**COUNTS, '/policy/plan_text': 2}}, '2 of about 10 plan texts had time'),
        ({'counts': {'/policy/plan_text': 9}}, '0 of about 10 predicted images had time'),
        ({'paces': [Pace(20.0, 12.0)]}, 'the simulation ran at 0.60 of real time instead of 1'),
    ],
)
def test_what_was_too_slow_is_reported_with_numbers_and_what_to_try(given, sentence):
    asked = {'run': FAST, 'reports': EPISODES, 'counts': COUNTS, 'paces': PACES, 'real_time_factor': 1.0} | given
    line = keeping_up(**asked)
    assert re.search(f'^this machine did not keep up: {sentence}[^;]*[.] End other programs, try ', line), line
    assert '--real-time-factor 0.5 ' in line and './vla doctor' in line


def test_a_simulation_that_is_too_fast_for_the_model_should_run_at_real_time():
    paces = [Pace(p.wall / 4, p.simulation) for p in PACES]
    line = keeping_up(run_of([0.3] * 100), EPISODES, COUNTS, paces, 4.0)  # 75 ms of wall time
    assert '100 of 100 chunks were published more than 120 ms' in line and '--real-time-factor 1 ' in line
    paces = [Pace(p.wall * 2, p.simulation) for p in PACES]
    assert keeping_up(run_of([0.1] * 100), EPISODES, COUNTS, paces, 0.5) == ''  # 200 ms of wall time


@pytest.mark.parametrize(
    ('name', 'code', 'engine', 'line'),
    [
        ('policy', -8, 'auto', 'policy was killed by SIGFPE: try ./vla demo --engine eager, and ./vla doctor'),
        ('policy', 3, 'auto', 'policy ended with exit code 3: try ./vla demo --engine eager, and ./vla doctor'),
        ('policy', -11, 'eager', 'policy was killed by SIGSEGV: try ./vla doctor'),
        ('executor', -6, 'auto', 'executor was killed by SIGABRT: try ./vla doctor'),
    ],
)
def test_a_death_is_reported_with_what_to_try(name, code, engine, line):
    assert after_death(name, code, engine) == line


def test_a_simulator_that_dies_may_have_a_broken_driver_and_sigkill_may_be_memory(monkeypatch):
    for tried, other in (('egl', 'osmesa'), ('osmesa', 'egl')):
        monkeypatch.setenv('MUJOCO_GL', tried)
        assert f'MUJOCO_GL={other} ./vla demo' in after_death('sim', -11, 'auto')
    assert 'memory may have run out (dmesg)' in after_death('recorder', -9, 'auto')
