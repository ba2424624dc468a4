"""scripts/test.sh: the tests of each step, and its exit code. A script in the place of Python records the calls."""

import os
import subprocess

import pytest

from .conftest import ROOT

PYTHON = """#!/bin/sh
echo "$*" >> "$CALLS"
case "$*" in *" src "*) exit "$SHARED" ;; *) exit "$WHOLE" ;; esac
"""
FIRST, SECOND = '-m pytest src -n 2 --dist loadfile', '-m pytest tests'


@pytest.fixture
def script(tmp_path):
    """script(*arguments, shared, whole) -> exit code and calls; shared, whole: exit codes of the two steps."""

    def run(*arguments, shared=0, whole=0):
        for name in ('python', 'ruff', 'mypy'):
            (tmp_path / name).write_text(PYTHON if name == 'python' else '#!/bin/sh\n')
            (tmp_path / name).chmod(0o755)
        calls = tmp_path / 'calls'
        calls.write_text('')
        environment = {'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'CALLS': str(calls)}
        environment |= {'SHARED': str(shared), 'WHOLE': str(whole)}
        command = ['bash', 'scripts/test.sh', *arguments]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, check=False, timeout=60)
        return done.returncode, calls.read_text().splitlines()

    return run


def test_all_tests_are_packages_in_two_processes_and_then_whole_systems(script):
    assert script() == (0, [FIRST, SECOND])
    assert script('-m', 'not slow') == (0, [f'{FIRST} -m not slow', f'{SECOND} -m not slow'])


@pytest.mark.parametrize('arguments', ['-k tests', 'src/vla_core', '-x', '-m slow -k bench'])
def test_any_other_choice_is_one_process(script, arguments):
    assert script(*arguments.split(), whole=1) == (1, [f'-m pytest {arguments}'])


@pytest.mark.parametrize(
    ('shared', 'whole', 'code'),
    [(1, 0, 1), (0, 1, 1), (1, 1, 1), (0, 3, 3), (5, 0, 0), (0, 5, 0), (5, 5, 5), (1, 5, 1)],
)
def test_a_failure_in_either_step_is_one_of_the_whole(script, shared, whole, code):
    found, calls = script(shared=shared, whole=whole)
    assert found == code and len(calls) == 2


@pytest.mark.parametrize('code', [2, 3, 4])
def test_a_first_step_that_was_stopped_is_the_last_one(script, code):
    assert script(shared=code) == (code, [FIRST])
