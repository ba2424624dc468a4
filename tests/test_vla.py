"""The script ./vla: what it starts, and from where."""

import hashlib
import os
import shutil
import subprocess

from .conftest import ROOT

PYTHON = """#!/bin/sh
case "$*" in *colcon*) mkdir -p build install; touch install/setup.bash;; esac
echo "$PWD"
for word; do echo "$word"; done
"""


def test_relative_paths_count_from_where_the_user_stands(tmp_path):
    suite, here = tmp_path / 'suite', tmp_path / 'data'
    for folder in ('.venv/bin', 'requirements', 'scripts', 'src', 'compat', 'install'):
        (suite / folder).mkdir(parents=True)
    here.mkdir()
    for file in ('vla', 'scripts/set_up.sh'):
        shutil.copy(ROOT / file, suite / file)
    for file in ('requirements/all.txt', 'scripts/mend_wheels.py', '.venv/local_setup.sh', 'install/setup.bash'):
        (suite / file).touch()
    # All is installed, and whatever Python is asked for is shown.
    (suite / '.venv/.vla-stamp').write_text(f'{hashlib.sha256(b"").hexdigest()[:16]}-wheels\n')
    (suite / '.venv/bin/python').write_text(PYTHON)
    (suite / '.venv/bin/python').chmod(0o755)
    (tmp_path / 'link').symlink_to(suite / 'vla')

    environment = {'PATH': os.environ['PATH'], 'VLA_ROS': 'wheels'}
    for _ in range(2):  # the first builds, too
        done = subprocess.run(
            ['../link', 'replay', 'bag'], cwd=here, env=environment, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == str(here)
    assert lines[-2:] == ['replay', 'bag']


def test_a_file_of_the_user_is_no_module_of_the_suite(tmp_path):
    (tmp_path / 'typer.py').write_text('raise SystemExit("the module of the user")')
    program = next(line for line in (ROOT / 'vla').read_text().splitlines() if line.startswith('cli='))
    done = subprocess.run(
        ['bash', '-c', f'{program}; exec python -c "$cli" --help'],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert 'Usage: ./vla' in done.stdout, done.stderr
