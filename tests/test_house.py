"""The rules of the house that code can check: who may import what."""

import ast
import importlib.util
import re
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest

from .conftest import ROOT

ROS = ('rclpy', 'sensor_msgs', 'vla_msgs', 'std_msgs')
ABOVE = (*ROS, 'vla_policy_node', 'vla_sim', 'vla_training', 'vla_bringup', 'vla_bench')  # packages above the cores


def modules(*folder):
    base = ROOT.joinpath('src', *folder)
    start = ROOT.joinpath('src', folder[0])
    return ['.'.join(p.relative_to(start).with_suffix('').parts) for p in sorted(base.rglob('*.py'))]


def imported(names, python=sys.executable):
    """Top-level packages loaded by importing these modules in a fresh interpreter."""
    code = (
        f'import importlib, sys\nfor m in {names!r}:\n    importlib.import_module(m.removesuffix(".__init__"))\n'
        'print(*sorted({m.partition(".")[0] for m in sys.modules}))'
    )
    done = subprocess.run([python, '-c', code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ('folder', 'forbidden'),
    [
        (('vla_model', 'vla_model'), (*ABOVE, 'vla_core')),
        (('vla_core', 'vla_core', 'motion'), (*ABOVE, 'torch', 'pinocchio')),
        (('vla_core', 'vla_core', 'observe'), (*ABOVE, 'torch', 'pinocchio')),
        (('vla_core', 'vla_core'), (*ABOVE, 'torch')),
        (('vla_policy_node', 'vla_policy_node'), ('vla_sim', 'vla_training', 'vla_bringup', 'vla_bench')),
        (('vla_sim', 'vla_sim'), ('vla_training', 'vla_bringup', 'vla_bench')),
        (('vla_training', 'vla_training'), ('vla_bringup', 'vla_bench')),
    ],
)
def test_cores_import_neither_ros_nor_what_stands_above_them(folder, forbidden):
    names = [n for n in modules(*folder) if importlib.util.find_spec('triton') or not n.endswith('_triton')]
    assert names
    assert not imported(names) & set(forbidden)


def test_training_needs_no_ros_but_for_bags():
    names = [n for n in modules('vla_training', 'vla_training') if not re.search(r'[.](bag[.].*|convert[.].*)$', n)]
    assert len(names) > 20
    assert not imported(names) & {*ROS, 'vla_bringup'}


def test_what_trains_on_a_gpu_machine_needs_little():
    names = [f'vla_training.{m}' for m in ('cli', 'train.trainer', 'image_tokenizer.trainer', 'ablate', 'plot')]
    assert not imported(names) & {*ROS, 'vla_policy_node', 'vla_sim', 'mujoco', 'av', 'pyarrow', 'rosbags', 'openvino'}


def test_types_and_the_contract_of_policies_cost_no_torch():
    assert 'torch' not in imported(['vla_model', 'vla_model.types', 'vla_model.policy', 'vla_model.loading'])


def test_a_simulated_task_is_named_in_its_own_file_alone():
    tasks = ROOT / 'src' / 'vla_sim' / 'vla_sim' / 'tasks'
    names = [name for p in tasks.glob('*.py') for name in re.findall(r"^    name = '(\w+)'", p.read_text(), re.M)]
    assert len(names) >= 3
    for package in ('vla_sim', 'vla_training'):
        for path in (ROOT / 'src' / package / package).rglob('*.py'):
            if path.parent != tasks:
                assert not re.search(f"'({'|'.join(names)})'", path.read_text()), f'{path} names a task'


def test_random_weights_are_special_in_one_place():
    for path in (ROOT / 'src').rglob('*.py'):
        if 'test' not in path.parts and path.name != 'shipped.py':
            assert not re.search(r"[!=]= *(RANDOM\b|'random-nano')", path.read_text()), path


def imports_of(name, path):
    """Modules of the suite that a module imports, anywhere in it but under TYPE_CHECKING."""
    tree = ast.parse(path.read_text())
    typing = [n for n in ast.walk(tree) if isinstance(n, ast.If) and 'TYPE_CHECKING' in ast.unparse(n.test)]
    skipped = {id(inner) for n in typing for inner in ast.walk(n)}
    package = name.split('.') if path.name == '__init__.py' else name.split('.')[:-1]
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = '.'.join([*start, *([node.module] if node.module else [])])
            yield base
            yield from (f'{base}.{alias.name}' for alias in node.names)


def test_a_robot_needs_no_benchmarks():
    for path in (ROOT / 'src' / 'vla_bringup' / 'vla_bringup').rglob('*.py'):
        name = '.'.join(path.relative_to(ROOT / 'src' / 'vla_bringup').with_suffix('').parts)
        assert not [i for i in imports_of(name, path) if i.split('.')[0] == 'vla_bench'], f'{name} imports vla_bench'


def test_no_module_imports_itself_by_way_of_others():
    files = {}
    for package in (ROOT / 'src').iterdir():
        for path in (package / package.name).rglob('*.py'):
            files['.'.join(path.relative_to(package).with_suffix('').parts).removesuffix('.__init__')] = path
    graph = {name: {i for i in imports_of(name, path) if i in files} - {name} for name, path in files.items()}
    # A package is loaded with each of its modules: what it imports from them is no circle.
    graph = {n: {i for i in to if not n.startswith(f'{i}.') and not i.startswith(f'{n}.')} for n, to in graph.items()}
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError, which names the modules


def test_the_root_of_a_package_can_be_read_in_one_sitting():
    for package in (ROOT / 'src').iterdir():
        modules = [p.name for p in (package / package.name).glob('*.py') if p.name != '__init__.py']
        assert len(modules) <= 12, f'{package.name}: {modules}'


def test_files_stay_short():
    for package in (ROOT / 'src').iterdir():
        for path in (package / package.name).rglob('*.py'):
            lines = len(path.read_text().splitlines())
            assert lines <= 400, f'{path} has {lines} lines: split it along its ideas'
