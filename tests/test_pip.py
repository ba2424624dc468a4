"""vla_model and vla_training can be installed by pip: what they import is among the dependencies that they name."""

import ast
import re
import sys

import pytest

from .conftest import ROOT

OURS = {'vla_model', 'vla_core', 'vla_training', 'vla_policy_node', 'vla_sim', 'vla_msgs'}
ROS = {'rclpy', 'rosidl_runtime_py'}
# Name of an import -> of its distribution, where they differ.
DISTRIBUTIONS = {'PIL': 'pillow', 'yaml': 'pyyaml', 'backports': 'backports.zstd'}
# From the vendor by the version of CUDA; from a checkout of the public reference that is named on the command line.
BY_HAND = {'tensorrt', 'models'}


def named(package):
    """Names of all dependencies in setup.py, those of extras included, without versions and conditions."""
    tree = ast.parse((ROOT / 'src' / package / 'setup.py').read_text())
    call = next(n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, 'id', '') == 'setup')
    words = {k.arg: k.value for k in call.keywords}
    listed = ast.literal_eval(words['install_requires'])
    for extra in ast.literal_eval(words['extras_require']).values():
        listed += extra
    return {re.match(r'[\w.]+', name).group() for name in listed}


def imported(package):
    """Top-level names of all imports in the package, those inside functions included."""
    found = set()
    for path in (ROOT / 'src' / package / package).rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition('.')[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(node.module.partition('.')[0])
    return found


@pytest.mark.parametrize('package', ['vla_model', 'vla_training'])
def test_what_is_imported_is_a_dependency(package):
    foreign = imported(package) - set(sys.stdlib_module_names) - OURS - ROS - BY_HAND
    assert len(foreign) > 4
    assert {DISTRIBUTIONS.get(name, name) for name in foreign} <= named(package)
