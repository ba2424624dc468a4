"""The scripts of examples/, each run as its first line says."""

import subprocess
import sys

import pytest

from vla_bringup.bags.synthetic import write_bag

from .conftest import ROOT

EXAMPLES = sorted((ROOT / 'examples').glob('*.py'))


def run(name, *arguments):
    command = [sys.executable, str(ROOT / 'examples' / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize('path', EXAMPLES, ids=lambda p: p.name)
def test_an_example_is_short_and_reports_how_to_run_it(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 30
    assert f'python examples/{path.name}' in text


def test_a_model_is_loaded_and_gives_a_chunk_and_a_plan():
    told = run('act.py')
    assert 'first set-points [rad]: [' in told and 'plan:' in told


def test_the_simulated_arm_does_a_task():
    assert 'success after' in run('drive_simulator.py')


def test_a_bag_is_read(tmp_path):
    write_bag(tmp_path / 'bag', 0.5, compressed=False, side=64)
    told = run('read_bag.py', str(tmp_path / 'bag'))
    assert 'sensor_msgs/msg/JointState' in told and '/joint_states' in told and 'not read: nothing' in told
