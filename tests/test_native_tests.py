"""A test whose process dies is one failed test: those after it run, and the run ends as it does with any failure."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DYING = """
import os, signal
import pytest
pytestmark = pytest.mark.native

def test_before():
    assert os.environ['VLA_TEST_REPORTS']

@pytest.mark.parametrize('how', ['SIGFPE', 'SIGSEGV', 'exit'])
def test_dies(how):
    os._exit(3) if how == 'exit' else os.kill(os.getpid(), getattr(signal, how))

def test_fails():
    assert 1 == 2

@pytest.mark.skip(reason='not here')
def test_skipped():
    pass

def test_after():
    pass
"""

MIXED = """
import os
import pytest

@pytest.fixture(scope='module')
def made():
    yield os.getpid()

def test_here(made):
    pass

@pytest.mark.native
def test_there(made):
    assert os.environ['VLA_TEST_REPORTS']
"""


def test_a_test_that_dies_is_one_failure(tmp_path):
    shutil.copy(ROOT / 'conftest.py', tmp_path)
    (tmp_path / 'test_dying.py').write_text(DYING)
    (tmp_path / 'test_mixed.py').write_text(MIXED)
    (tmp_path / 'test_zoo.py').write_text('def test_after_all(): pass')
    (tmp_path / 'pytest.ini').touch()
    done = subprocess.run(
        [sys.executable, '-m', 'pytest', '-p', 'no:cacheprovider', '-rA'],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert '4 failed, 5 passed, 1 skipped' in done.stdout
    for death in ('was killed by SIGFPE', 'was killed by SIGSEGV', 'ended with exit code 3'):
        assert f'the process of this test {death}' in done.stdout
    assert 'assert 1 == 2' in done.stdout and 'Fatal Python error: Floating point exception' in done.stdout
