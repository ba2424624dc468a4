"""The supervisor, with small programs in place of nodes."""

import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from vla_bringup.processes import supervisor as module
from vla_bringup.processes.nodes import NodeSpec
from vla_bringup.processes.supervisor import NodeEnded, Supervisor, command

POLITE = 'import signal, sys, time; signal.signal(signal.SIGINT, lambda *_: sys.exit(0)); print("up"); time.sleep(60)'
STUBBORN = 'import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print("up"); time.sleep(60)'
PARENT = 'import subprocess, time; print(subprocess.Popen(["sleep", "60"]).pid); time.sleep(60)'
BROKEN = 'raise SystemExit("no arm [here]")'


@pytest.fixture(autouse=True)
def programs(monkeypatch):
    """The executable of a spec is Python code."""
    monkeypatch.setattr(module, 'command', lambda spec, folder: [sys.executable, '-c', spec.executable])


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def gone(pid):
    """Ended, or a zombie that nobody has waited for yet."""
    try:
        with open(f'/proc/{pid}/stat') as file:  # noqa: PTH123
            return file.read().rsplit(')', 1)[1].split()[0] == 'Z'
    except OSError:
        return True


def started(tmp_path, **nodes):
    s = Supervisor(tmp_path)
    for name, code in nodes.items():
        s.start(NodeSpec('p', code, name))
        until(lambda name=name: (tmp_path / f'{name}.log').read_text())
    return s


def test_nodes_stop_in_reverse_order_with_code_0(tmp_path):
    s = started(tmp_path, first=POLITE, second=POLITE)
    s.check()
    assert list(s.stop().items()) == [('/second', 0), ('/first', 0)]


def test_a_node_that_ignores_the_signal_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'STOP_TIME', 0.2)
    s = started(tmp_path, stubborn=STUBBORN)
    assert s.stop() == {'/stubborn': -signal.SIGKILL}


def test_what_a_node_started_goes_with_it(tmp_path):
    with started(tmp_path, parent=PARENT):
        child = int((tmp_path / 'parent.log').read_text())
        assert not gone(child)
    until(lambda: gone(child))


def test_a_node_that_ended_is_named_with_its_last_lines(tmp_path):
    with started(tmp_path, broken=BROKEN) as s:
        until(lambda: not s.alive('/broken'))
        with pytest.raises(NodeEnded, match=r'(?s)/broken ended with exit code 1.*no arm \[here\]'):
            s.check()
        assert s.stop() == {}


def test_a_killed_node_is_named_with_the_signal(tmp_path):
    with started(tmp_path, polite=POLITE) as s:
        os.kill(s.pid('/polite'), signal.SIGKILL)
        until(lambda: not s.alive('/polite'))
        with pytest.raises(NodeEnded, match='killed by SIGKILL'):
            s.check()


@pytest.mark.parametrize('error', [KeyboardInterrupt, RuntimeError])
def test_no_process_is_left_after_an_exception(tmp_path, error):
    with pytest.raises(error), started(tmp_path, a=POLITE, b=POLITE) as s:
        pids = [s.pid('/a'), s.pid('/b')]
        raise error
    assert all(gone(pid) for pid in pids)


def test_no_process_is_left_when_the_supervisor_itself_is_killed(tmp_path):
    code = f"""
import sys, time
from pathlib import Path
from vla_bringup.processes import supervisor
from vla_bringup.processes.nodes import NodeSpec
supervisor.command = lambda spec, folder: [sys.executable, '-c', spec.executable]
s = supervisor.Supervisor(Path({str(tmp_path)!r}))
s.start(NodeSpec('p', {POLITE!r}, 'a'))
print(s.pid('/a'), flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True) as process:
        pid = int(process.stdout.readline())
        until((tmp_path / 'a.log').read_text)
        process.kill()
    until(lambda: gone(pid))


def test_a_second_node_of_the_same_name_is_refused(tmp_path):
    with started(tmp_path, a=POLITE) as s, pytest.raises(ValueError, match='/a runs already'):
        s.start(NodeSpec('p', POLITE, 'a'))


def test_the_command_line_carries_name_namespace_parameters_and_remappings(tmp_path):
    parameters = {'x': 1.0, 'text': 'true', 'names': ['a', 'b'], 'on': True}
    spec = NodeSpec('vla_bringup', 'recorder_node', 'r', '/arm', parameters, remappings=(('joint_states', 'js'),))
    words = command(spec, tmp_path)
    assert words[1:] == [
        '--ros-args', '-r', '__node:=r', '-r', '__ns:=/arm', '-r', 'joint_states:=js',
        '--params-file', str(tmp_path / 'arm.r.yaml'), '--disable-external-lib-logs',
    ]  # fmt: skip
    assert yaml.safe_load((tmp_path / 'arm.r.yaml').read_text()) == {'/**': {'ros__parameters': parameters}}


@pytest.mark.parametrize(
    ('spec', 'text'),
    [
        (NodeSpec('no_such_package', 'x', 'n'), 'no_such_package is not built'),
        (NodeSpec('vla_bringup', 'x_node', 'n'), 'no executable x_node'),
    ],
)
def test_what_cannot_be_started_is_reported_before(tmp_path, spec, text):
    with pytest.raises(ValueError, match=text):
        command(spec, tmp_path)
