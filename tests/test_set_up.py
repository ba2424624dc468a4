"""What `./vla` does before Python runs: scripts/set_up.sh, function by function; nothing is installed."""

import os
import re
import subprocess

import pytest

from .conftest import ROOT

HEAD = """
set -euo pipefail
say() { echo "$*" >&2; }
fail() { echo "FAILED $*" >&2; exit 1; }
. scripts/set_up.sh
"""


@pytest.fixture
def bash(tmp_path):
    """bash(code, **variables) -> the finished process; venv is tmp_path/venv."""
    venv = tmp_path / 'venv'
    venv.mkdir()

    def run(code, **variables):
        given = {'root': str(ROOT), 'venv': str(venv), 'ros': 'wheels', **variables}
        return subprocess.run(
            ['bash', '-c', HEAD + code],
            check=False,
            cwd=ROOT,
            env={**os.environ, **given},
            capture_output=True,
            text=True,
            timeout=60,
        )

    run.venv = venv
    return run


def test_a_step_reports_its_time_and_the_end_of_what_failed(bash):
    log = bash.venv / 'log'
    good = bash(f'step {log} counting seq 3')
    assert (good.returncode, log.read_text()) == (0, '1\n2\n3\n')
    assert re.fullmatch(r'counting\n  done in \d+ s\n', good.stderr)
    bad = bash(f'step {log} breaking sh -c "echo the reason; exit 7" || exit $?')
    assert bad.returncode == 7
    assert re.fullmatch(rf'breaking\nthe reason\n  failed after \d+ s; all of its output: {log}\n', bad.stderr)


def test_a_long_step_reports_its_newest_line(bash):
    log = bash.venv / 'log'
    told = bash(f"""
        sleep() {{ command sleep 0.05; }}
        cd {bash.venv}
        say() {{ echo "$*" >&2; [[ "$*" != *"the newest line" ]] || touch told; }}
        step {log} waiting bash -c 'echo the newest line; until [ -e told ]; do command sleep 0.05; done'
    """)
    assert told.returncode == 0
    assert ' s: the newest line' in told.stderr


@pytest.mark.parametrize(
    ('log', 'spoilt'),
    [
        ('Collecting a\n', False),
        ('Collecting a\nInstalling collected packages: a\n', True),
        ('Installing collected packages: a\nSuccessfully installed a-1\n', False),
    ],
)
def test_an_installation_that_was_cut_off_spoils_the_environment(bash, log, spoilt):
    (bash.venv / '.vla-pip-ros.log').write_text(log)
    assert bash('spoilt').stdout == ('an installation into it was cut off\n' if spoilt else '')


def test_an_environment_that_was_moved_or_is_for_another_ros_is_spoilt(bash):
    (bash.venv / '.vla-made').write_text(f'{bash.venv} wheels\n')
    assert bash('spoilt').stdout == ''
    assert 'it was made as' in bash('spoilt', ros='system-jazzy').stdout
    (bash.venv / '.vla-made').write_text('/elsewhere/.venv wheels\n')
    assert 'it was made as /elsewhere/.venv wheels' in bash('spoilt').stdout


def test_a_folder_of_the_user_is_never_emptied(bash):
    mine = bash.venv / 'thesis.tex'
    mine.write_text('mine')
    (bash.venv / '.vla-pip-ros.log').write_text('Installing collected packages: a\n')
    assert 'was not made by ./vla: remove it' in bash('prepare').stderr
    (bash.venv / '.vla-pip-ros.log').unlink()
    assert 'neither empty nor a virtual environment' in bash('new_environment').stderr
    assert mine.read_text() == 'mine'


def test_a_path_with_a_space_is_refused_before_anything_is_installed(bash):
    refused = bash('make_ready build', venv=f'{bash.venv} of mine')
    assert refused.returncode == 1 and 'a space or a colon' in refused.stderr


def test_a_second_one_waits_for_the_first(bash):
    waited = bash("""
        (alone; touch "$venv/held"; until [ -e "$venv/waits" ]; do sleep 0.05; done) &
        until [ -e "$venv/held" ]; do sleep 0.05; done
        say() { echo "$*" >&2; touch "$venv/waits"; }
        alone
    """, root=str(bash.venv.parent))  # fmt: skip
    assert waited.returncode == 0
    assert waited.stderr.splitlines()[0].startswith('another ./vla is preparing this checkout')


def test_a_python_that_is_too_new_is_reported_with_the_remedy(bash, tmp_path):
    python = tmp_path / 'python3.13'
    python.write_text('#!/bin/sh\nexit 1\n')
    python.chmod(0o755)
    assert (
        f'no Python 3.10 to 3.12 with venv found as PYTHON={python}' in bash('find_python', PYTHON=str(python)).stderr
    )


def test_where_the_workspace_was_sourced_ros_still_comes_from_the_wheels(tmp_path):
    """The beginning of ./vla, up to what decides it."""
    text = (ROOT / 'vla').read_text()
    begin = text[text.index('ros=wheels') : text.index('. scripts/set_up.sh')]
    wheels, system = tmp_path / 'venv', tmp_path / 'opt'
    for prefix in (wheels, system):
        (prefix / 'share/rclpy').mkdir(parents=True)
    (wheels / 'pyvenv.cfg').touch()
    for prefixes, expected in (
        (f'/install/vla_sim:{wheels}', 'wheels'),
        (f'/install/vla_sim:{system}', 'system-jazzy'),
        ('/install/vla_sim', 'wheels'),
    ):
        environment = {'PATH': os.environ['PATH'], 'AMENT_PREFIX_PATH': prefixes, 'ROS_DISTRO': 'jazzy'}
        code = f'set -euo pipefail\n{begin}\necho $ros'
        done = subprocess.run(['bash', '-c', code], check=False, env=environment, capture_output=True, text=True)
        assert (done.stdout, done.stderr) == (f'{expected}\n', '')
