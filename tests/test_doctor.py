"""`./vla doctor` beside the simulator: correct parts pass, broken parts fail."""

import json
import os
import subprocess
import sys

import pytest
from lifecycle_msgs.msg import Transition
from sensor_msgs.msg import JointState

from vla_bringup.doctor.check import Verdict
from vla_bringup.doctor.doctor import sections
from vla_bringup.doctor.robot import check_robot


def doctor():
    """Return the checks of the robot by name. The exit code agrees with the report, and every fault has a remedy."""
    words = [sys.executable, '-m', 'vla_bringup.cli', 'doctor', '--json']
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=150, env=os.environ)
    report = json.loads(done.stdout)
    assert done.returncode == (0 if report['good'] else 1), done.stderr
    checks = report['checks']
    assert {c['section'] for c in checks} == {name for name, _ in sections()}
    assert not [c for c in checks if c['verdict'] in ('warning', 'fail') and not c['remedy']]
    assert not [c for c in checks if 'no answer within' in c['fact']]
    return {c['name']: c for c in checks if c['section'] == 'robot'}


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_correct_robot_passes_and_a_broken_one_fails(graph):
    sim = graph.start('vla_sim', 'sim_node')
    graph.start('vla_policy_node', 'executor_node', params={'use_sim_time': 'true'})
    graph.start('vla_policy_node', 'policy_node', params={'use_sim_time': 'true', 'engine': 'eager'})
    for node in ('executor', 'policy'):
        graph.probe.bring_up(node, 180.0)

    found = doctor()
    for name in ('topics', 'controller', 'command topic', 'simulated time', 'executor', 'policy'):
        assert found[name]['verdict'] == 'ok', found[name]
    for name in ('joint states', 'camera front', 'camera wrist'):  # on a slow machine they may be slow
        assert found[name]['verdict'] in ('ok', 'warning'), found[name]
    assert '256 x 256 rgb8' in found['camera front']['fact'] or found['camera front']['verdict'] == 'warning'

    # Another node commands the arm, the policy is not active, and the profile is that of another robot.
    competitor = graph.node.create_publisher(JointState, 'target_joint', 1)
    assert graph.transition('policy', Transition.TRANSITION_DEACTIVATE)
    found = {c.name: c for c in check_robot('fr3')}
    assert found['command topic'].verdict is Verdict.FAIL
    assert found['joint states'].verdict is Verdict.FAIL
    assert 'franka/joint_states' in found['joint states'].fact
    assert found['policy'].verdict is Verdict.WARN
    graph.node.destroy_publisher(competitor)

    graph.kill(sim)
    found = {c.name: c for c in check_robot()}
    assert found['joint states'].verdict is found['camera front'].verdict is Verdict.FAIL


def test_without_a_robot_the_skipped_checks_are_named(domain):
    found = doctor()
    assert list(found) == ['robot'], found
    assert found['robot']['verdict'] == 'skipped'
    assert 'cameras' in found['robot']['fact']
