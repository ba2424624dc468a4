"""A process asked to end does so, even from the middle of a callback that does not return."""

import os
import signal
import subprocess
import sys

import pytest

SCRIPT = """
import sys, time
from rclpy.node import Node
from vla_policy_node.ros import run

run.REST = run.SHUTDOWN = float(sys.argv[2])

class Stuck(Node):
    def __init__(self):
        super().__init__('stuck')
        self.create_timer(0.01, self.work)

    def work(self):
        print('working', flush=True)
        time.sleep(float(sys.argv[1]))

run.run(Stuck, [])
"""


@pytest.mark.parametrize(('seconds', 'patience', 'code'), [(0.05, 20.0, 0), (2.0, 20.0, 0), (600.0, 0.2, 1)])
def test_a_signal_ends_the_process(seconds, patience, code):
    words = [sys.executable, '-c', SCRIPT, str(seconds), str(patience)]
    env = os.environ | {'RCUTILS_LOGGING_USE_STDOUT': '0'}  # which is for the script's own words
    p = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    try:
        assert p.stdout is not None and p.stdout.readline() == 'working\n'
        p.send_signal(signal.SIGINT)
        _, said = p.communicate(timeout=30)
    finally:
        p.kill()
    assert p.returncode == code, said
    assert ('a callback does not return' in said) == bool(code)
