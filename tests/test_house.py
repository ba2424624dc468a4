"""The rules of the house that code can check: who may import what."""

import importlib.util
import re
import subprocess
import sys

import pytest

from .conftest import ROOT

ROS = ('rclpy', 'sensor_msgs', 'vla_msgs', 'std_msgs')


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
        (('vla_model', 'vla_model'), (*ROS, 'vla_policy_node', 'vla_sim', 'vla_bringup')),
        (('vla_policy_node', 'vla_policy_node', 'core'), (*ROS, 'torch', 'pinocchio', 'vla_sim', 'vla_bringup')),
        (('vla_policy_node', 'vla_policy_node', 'observe'), (*ROS, 'torch', 'pinocchio', 'vla_sim', 'vla_bringup')),
        (('vla_policy_node', 'vla_policy_node', 'kinematics'), (*ROS, 'torch', 'vla_sim', 'vla_bringup')),
    ],
)
def test_cores_import_neither_ros_nor_what_stands_above_them(folder, forbidden):
    names = [n for n in modules(*folder) if importlib.util.find_spec('triton') or not n.endswith('_triton')]
    assert names
    assert not imported(names) & set(forbidden)


def test_training_needs_no_ros_but_for_bags():
    names = [
        n for n in modules('vla_training', 'vla_training') if not re.search(r'[.](bag[.].*|recording|convert)$', n)
    ]
    assert len(names) > 20
    assert not imported(names) & {*ROS, 'vla_bringup'}


def test_what_trains_on_a_gpu_machine_needs_little():
    names = [f'vla_training.{m}' for m in ('cli', 'trainer', 'image_tokenizer', 'ablate', 'plot')]
    assert not imported(names) & {*ROS, 'vla_policy_node', 'vla_sim', 'mujoco', 'av', 'pyarrow', 'rosbags', 'openvino'}


def test_types_cost_no_torch():
    assert 'torch' not in imported(['vla_model', 'vla_model.types'])


def test_a_simulated_task_is_named_in_its_own_file_alone():
    tasks = ROOT / 'src' / 'vla_sim' / 'vla_sim' / 'tasks'
    names = [name for p in tasks.glob('*.py') for name in re.findall(r"^    name = '(\w+)'", p.read_text(), re.M)]
    assert len(names) >= 3
    for package in ('vla_sim', 'vla_training'):
        for path in (ROOT / 'src' / package / package).rglob('*.py'):
            if path.parent != tasks:
                assert not re.search(f"'({'|'.join(names)})'", path.read_text()), f'{path} names a task'
