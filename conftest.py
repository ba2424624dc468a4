"""What holds for all tests."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from domain_coordinator import impl
from hypothesis import HealthCheck, settings

# Hypothesis times nothing: how long an example takes says how busy the machine is.
settings.register_profile('suite', settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile('suite')

# Tables of the commands have this width, however long the path of a test's folder is.
os.environ['COLUMNS'] = '200'

# One of several processes that share the tests (`-n 2`): threads of all of them would spin on each other.
WORKER, WORKERS = os.environ.get('PYTEST_XDIST_WORKER', 'gw0'), int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', '1'))
if WORKERS > 1:
    os.environ['OMP_NUM_THREADS'] = '1'

# Every test gets a domain that no test of this process had before it, and not the lowest one again. A participant that
# DDS makes soon after another one, in the same process and domain, can be lost with it: in three of 60 nodes a service
# that had answered was gone for good, in none of 120 with a domain each. Workers begin far from each other.
_domains = impl.default_selector()
for _ in range(int(WORKER.removeprefix('gw')) * 100 // WORKERS):
    _domains()
impl.default_selector = lambda: _domains


# ---- tests that run native code which may end the process: `pytestmark = pytest.mark.native`
#
# They run in a child process, in their order; their reports come back through a file. A death is the failure of the
# test that ran then, and the next test starts another child.

REPORTS = 'VLA_TEST_REPORTS'  # file of the reports; set in the child


class Child:
    """Runs tests in a process of its own. Usable for one test after the other, in the order given."""

    def __init__(self, config, nodeids):
        self.folder = tempfile.TemporaryDirectory()
        self.output = Path(self.folder.name, 'output').open('w+', errors='replace')  # noqa: SIM115
        reports = Path(self.folder.name, 'reports')
        reports.touch()
        self.reports, self.left, self.config = reports.open(), list(nodeids), config
        self.process = subprocess.Popen(
            [sys.executable, '-m', 'pytest', '-q', *nodeids],
            cwd=config.rootpath, env={**os.environ, REPORTS: str(reports)}, stdin=subprocess.DEVNULL,
            stdout=self.output, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, nodeid):
        """Reports of the next test."""
        self.left.remove(nodeid)
        found = []
        while True:
            ended = self.process.poll()
            for line in iter(self.reports.readline, ''):
                while not line.endswith('\n'):  # the rest is being written
                    line += self.reports.readline()
                entry = json.loads(line)
                if entry.get('end') == nodeid:
                    return found
                if 'report' in entry:
                    hook, data = self.config.hook, entry['report']
                    found.append(hook.pytest_report_from_serializable(config=self.config, data=data))
                    if isinstance(found[-1].longrepr, list):  # of a skipped test; JSON has no tuple
                        found[-1].longrepr = tuple(found[-1].longrepr)
            if ended is not None:
                self.left.clear()
                return [*found, self._death(nodeid, ended)]
            time.sleep(0.02)

    def _death(self, nodeid, code):
        self.output.seek(0)
        how = f'was killed by {signal.Signals(-code).name}' if code < 0 else f'ended with exit code {code}'
        text = f'the process of this test {how}. Its output:\n{self.output.read()}'
        return pytest.TestReport(nodeid, (nodeid, None, nodeid), {}, 'failed', text, 'call')

    def close(self):
        self.process.kill()
        self.process.wait()
        for file in (self.reports, self.output):
            file.close()
        self.folder.cleanup()


def pytest_configure(config):
    config.addinivalue_line('markers', 'native: runs in a child process, whose death is the failure of one test')
    config.native_child = None
    if REPORTS in os.environ:
        config.pluginmanager.register(_Reporter(config, os.environ[REPORTS]))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    if REPORTS in os.environ or item.get_closest_marker('native') is None:
        return None
    config, child = item.config, item.config.native_child
    if child is None or not child.left or child.left[0] != item.nodeid:
        pytest_unconfigure(config)
        items = item.session.items
        same = [i.nodeid for i in items[items.index(item) :] if i.path == item.path and i.get_closest_marker('native')]
        child = config.native_child = Child(config, same)
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in child.run(item.nodeid):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    item.session._setupstate.teardown_exact(nextitem)  # fixtures of tests before it that ran here
    return True


def pytest_unconfigure(config):
    if config.native_child is not None:
        config.native_child.close()
        config.native_child = None


class _Reporter:
    """In the child: writes the reports."""

    def __init__(self, config, path):
        self.config, self.file = config, open(path, 'a', buffering=1)  # noqa: PTH123, SIM115

    def pytest_runtest_logreport(self, report):
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        self.file.write(json.dumps({'report': data}) + '\n')

    def pytest_runtest_logfinish(self, nodeid):
        self.file.write(json.dumps({'end': nodeid}) + '\n')
