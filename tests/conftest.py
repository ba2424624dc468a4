"""Fixtures for tests over real DDS between processes: a domain of its own, loopback only, no fixed sleeps."""

import contextlib
import os
import pathlib
import signal
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[1]
ROBOT = ROOT / 'src' / 'vla_bringup' / 'config' / 'robots' / 'sim_panda.yaml'
os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
os.environ.setdefault(
    'FASTRTPS_DEFAULT_PROFILES_FILE', str(ROOT / 'src' / 'vla_bringup' / 'config' / 'fastdds_loopback.xml')
)
os.environ.setdefault('ROS_PYTHON_CHECK_FIELDS', '1')  # wrong Python types raise instead of being sent as garbage
os.environ.setdefault('RCUTILS_LOGGING_USE_STDOUT', '1')
os.environ.pop('ROS_LOCALHOST_ONLY', None)

import domain_coordinator  # noqa: E402
import pytest  # noqa: E402
from ament_index_python.packages import get_package_prefix  # noqa: E402
from lifecycle_msgs.msg import Transition  # noqa: E402

from vla_bringup.processes.probe import Probe, TransitionFailed  # noqa: E402


def pytest_sessionstart(session):
    if str(ROOT / 'install') not in os.environ.get('AMENT_PREFIX_PATH', ''):
        pytest.exit('the workspace is not in the environment: run ./vla test', returncode=3)


@pytest.fixture
def domain(tmp_path, monkeypatch):
    """A ROS domain that no other test on this machine holds (a lock on a port keeps it)."""
    with domain_coordinator.domain_id() as number:
        monkeypatch.setenv('ROS_DOMAIN_ID', str(number))
        monkeypatch.setenv('ROS_LOG_DIR', str(tmp_path / 'ros_log'))
        yield int(number)


class Graph:
    """One node of the test's own, spun only inside wait(); and the processes that the test starts."""

    CONFIGURE = Transition.TRANSITION_CONFIGURE
    ACTIVATE = Transition.TRANSITION_ACTIVATE
    DEACTIVATE = Transition.TRANSITION_DEACTIVATE
    CLEANUP = Transition.TRANSITION_CLEANUP

    def __init__(self, domain, logs):
        self.probe = Probe('test', domain_id=domain)
        self.probe.check = self.check
        self.node = self.probe.node
        self.processes = []
        self.logs = logs

    def check(self):
        for p in self.processes:
            if p.poll() not in (None, 0):
                raise AssertionError(f'a process ended with {p.returncode}{self.outputs()}')

    def wait(self, condition, timeout=30.0, what=''):
        """Spin until condition() is true and return it."""
        try:
            return self.probe.wait(condition, timeout, what or str(condition))
        except TimeoutError as error:
            raise AssertionError(f'{error}{self.outputs()}') from None

    def call(self, kind, name, request=None, timeout=30.0):
        """Call a service and return its answer."""
        return self.probe.call(kind, name, request or kind.Request(), timeout)

    def transition(self, node, number):
        try:
            self.probe.transition(node, number)
        except TransitionFailed:
            return False
        return True

    def state(self, node):
        return self.probe.lifecycle_state(node, 30.0)

    def bring_up(self, *nodes):
        """Configure and activate lifecycle nodes; activation is tried until what it needs is there."""
        for node in nodes:
            self.probe.bring_up(node)

    def latest(self, kind, topic, qos=10):
        """A list that holds every message of a topic from now on."""
        got = []
        self.node.create_subscription(kind, topic, got.append, qos)
        return got

    def start(self, package, executable, *arguments, files=(ROBOT,), params=None, **env):
        program = pathlib.Path(get_package_prefix(package)) / 'lib' / package / executable
        words = [str(program), *arguments, '--ros-args']
        for file in files:
            words += ['--params-file', str(file)]
        for key, value in (params or {}).items():
            words += ['-p', f'{key}:={value}']
        log = (self.logs / f'{executable}.{len(self.processes)}.txt').open('w+')
        p = subprocess.Popen(
            words,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, 'PYTHONUNBUFFERED': '1', **env},
            start_new_session=True,
        )
        p.log = log
        self.processes.append(p)
        return p

    def kill(self, p):
        """kill -9: no word of farewell."""
        p.kill()
        p.wait()
        self.processes.remove(p)

    def stop(self, p, sig=signal.SIGINT, timeout=15.0):
        """Ask the process to end and return its exit code."""
        if p.poll() is None:
            p.send_signal(sig)
            try:
                p.wait(timeout)
            except subprocess.TimeoutExpired:
                os.killpg(p.pid, signal.SIGKILL)
                p.wait()
                raise AssertionError(f'{p.args[0]} did not stop on signal {sig}{self.outputs()}') from None
        return p.returncode

    def output(self, p):
        p.log.flush()
        p.log.seek(0)
        return p.log.read()

    def outputs(self):
        return ''.join(f'\n--- {p.args[0]} (rc {p.poll()})\n{self.output(p)[-3000:]}' for p in self.processes)

    def close(self):
        errors = []
        for p in reversed(self.processes):
            try:
                code = self.stop(p)
                if code:
                    errors.append(f'{p.args[0]} ended with {code}\n{self.output(p)[-2000:]}')
            except AssertionError as error:
                errors.append(str(error))
            p.log.close()
        self.probe.__exit__()
        assert not errors, errors


@pytest.fixture
def graph(domain, tmp_path):
    g = Graph(domain, tmp_path)
    try:
        yield g
    finally:
        g.close()


@pytest.fixture(scope='session', autouse=True)
def shared_memory():
    """Processes that were killed leave their Fast DDS segments; clean up what no living process holds."""
    yield
    with contextlib.suppress(FileNotFoundError):
        subprocess.run(['fastdds', 'shm', 'clean'], capture_output=True, check=False)
