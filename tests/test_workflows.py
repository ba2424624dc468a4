"""The workflows of GitHub: what they run is there. (They are linted with actionlint by hand; it is no wheel.)"""

import re

import yaml

from .conftest import ROOT
from .documented import check_line

FILES = sorted((ROOT / '.github' / 'workflows').glob('*.yml'))


def lines(path):
    """Commands of all steps, one each; continued lines are joined."""
    for job in yaml.safe_load(path.read_text())['jobs'].values():
        for step in job['steps']:
            for line in step.get('run', '').replace('\\\n', ' ').splitlines():
                yield line.strip()


def test_commands_of_the_workflows_exist():
    pattern = re.compile(r'(?:[.]/vla|ros2 launch) [^|]*?(?= 2>|$)')
    found = [pattern.search(line) for path in FILES for line in lines(path) if '$(' not in line]
    run = [match[0] for match in found if match]
    assert run
    wrong = [f'{line}: {problem}' for line in run if (problem := check_line(line))]
    assert not wrong


def test_readme_s_test_command_runs_with_and_without_ros():
    content = yaml.safe_load((ROOT / '.github/workflows/ci.yml').read_text())
    assert './vla test' in (ROOT / 'README.md').read_text()
    for job in content['jobs'].values():
        assert './vla test' in [step.get('run') for step in job['steps']]
    assert content['jobs']['ros']['container'] == 'ros:jazzy'


def test_a_workflow_installs_the_system_packages_that_vla_asks_for():
    script = (ROOT / 'scripts/set_up.sh').read_text()
    wanted = set(re.findall(r'want[+]=[(]([\w-]+)[)]', script)) - {'python3-dev'}  # setup-python has the headers
    assert {'build-essential', 'libegl1'} <= wanted
    for job in yaml.safe_load((ROOT / '.github/workflows/ci.yml').read_text())['jobs'].values():
        text = ' '.join(step.get('run', '') for step in job['steps'])
        assert wanted <= set(text.split())
