"""The tutorial's way, with the simulator: a demo, an instruction of one's own, its bag as a data set."""

import json
import subprocess
import sys

import pytest

from vla_training.lerobot import Dataset

from .conftest import ROOT

PROFILE = 'src/vla_bringup/config/robots/sim_panda.yaml'


def vla(*words, code=0, timeout=170):
    done = subprocess.run(
        [sys.executable, '-m', 'vla_bringup.cli', *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
        cwd=ROOT,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_from_demo_to_data_set(tmp_path):
    out, data, graph = tmp_path / 'demo', tmp_path / 'data', tmp_path / 'graph.md'
    asked = ('--instruction', 'press the red button')
    vla('demo', '--expert', *asked, '--model', 'random-nano', '--out', out, '--graph-to', graph)
    assert json.loads((out / 'summary.json').read_text())
    assert list(out.glob('*press_button.mp4'))
    assert '/executor/status' in graph.read_text()

    report = vla('train', 'convert', out / 'bag', '--robot', PROFILE, '--out', data)
    assert 'bag' in report
    dataset = Dataset(data)
    # The simulator's first episode, before the demo asks for its own, is in the bag, too.
    assert dataset.episode(len(dataset.episodes) - 1).task == 'press the red button'
    vla('train', 'annotate', data)
    assert (data / 'meta' / 'plans.jsonl').read_text().strip()


def test_graph_without_a_system_reports_it(domain):
    assert 'ROS_DOMAIN_ID' in vla('graph', '--seconds', 1, code=1)
