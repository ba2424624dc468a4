"""package.xml names what the code imports, as rosdep knows it; what rosdep does not know is in requirements/."""

import ast
import re
import sys
import xml.etree.ElementTree as ET

import pytest

from .conftest import ROOT

# Imported name -> key of rosdep (rosdep/python.yaml) where it is not the name of a ROS package.
KEYS = {
    'PIL': 'python3-pil',
    'hypothesis': 'python3-hypothesis',
    'matplotlib': 'python3-matplotlib',
    'numpy': 'python3-numpy',
    'psutil': 'python3-psutil',
    'pytest': 'python3-pytest',
    'yaml': 'python3-yaml',
}
# Imported name -> distribution on PyPI, for what rosdep has no key for, or Ubuntu no fitting version.
PIP = {
    'av': 'av',
    'backports': 'backports.zstd',
    'coal': 'coal',
    'lz4': 'lz4',
    'msgpack': 'msgpack',
    'mujoco': 'mujoco',
    'openvino': 'openvino',
    'pinocchio': 'pin',
    'pydantic': 'pydantic',
    'pyarrow': 'pyarrow',
    'rich': 'rich',
    'rosbags': 'rosbags',
    'safetensors': 'safetensors',
    'tokenizers': 'tokenizers',
    'torch': 'torch',
    'typer': 'typer',
    'websockets': 'websockets',
}
# What comes with one of those.
BROUGHT = {'backports.zstd': 'rosbags', 'lz4': 'rosbags', 'coal': 'pin'}
# Used only where it is found; models: the public MM-ACT code, whose checkout a benchmark may be pointed to.
OPTIONAL = {
    'lerobot',
    'models',
    'onnx',
    'onnxruntime',
    'openpi_client',
    'openpi_server',
    'tensorrt',
    'torchao',
    'triton',
}
PACKAGES = sorted(p.parent for p in (ROOT / 'src').glob('*/setup.py'))


def imports(paths):
    """Top-level names that are imported, but for the standard library and relative imports."""
    found = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split('.')[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.split('.')[0])
    return found - set(sys.stdlib_module_names)


def keys(package, *kinds):
    return {e.text for e in ET.parse(package / 'package.xml').getroot() if e.tag in kinds}


def named(package):
    """What launch files and .rviz files name: packages of executables, launch files and displays."""
    files = [*(package / 'launch').glob('*.py'), *(package / 'rviz').glob('*.rviz')]
    return {word for path in files for word in re.findall(r'\w+', path.read_text())}


def wanted(names, package):
    """Keys of what is imported."""
    own = {package.name, 'conftest', *(p.stem for p in (package / 'test').glob('*.py'))}
    return {KEYS.get(name, name) for name in names - own - set(PIP) - OPTIONAL}


@pytest.mark.parametrize('package', PACKAGES, ids=lambda p: p.name)
def test_dependencies_are_what_is_imported(package):
    code = [*(package / package.name).rglob('*.py'), *(package / 'launch').glob('*.py')]
    needed, declared = wanted(imports(code), package), keys(package, 'depend', 'exec_depend')
    assert needed <= declared
    assert declared - needed <= named(package)
    tests = wanted(imports((package / 'test').rglob('*.py')), package) - declared
    assert tests == keys(package, 'test_depend')


def test_messages_depend_on_the_packages_of_their_fields():
    package = ROOT / 'src' / 'vla_msgs'
    text = '\n'.join(p.read_text() for kind in ('msg', 'srv', 'action') for p in (package / kind).iterdir())
    used = set(re.findall(r'^(\w+)/\w+(?:\[\])? ', text, re.M))
    assert used | {'action_msgs'} == keys(package, 'depend')


def test_what_rosdep_does_not_know_is_installed_by_pip_and_reported():
    text = '\n'.join(p.read_text() for p in (ROOT / 'requirements').glob('*.txt') if p.name != 'constraints.txt')
    listed = set(re.findall(r'^([\w.-]+)', text, re.M))
    told = (ROOT / 'docs' / 'how-to' / 'install.md').read_text()
    for name in PIP.values():
        assert name in listed or BROUGHT[name] in listed
        assert re.search(rf'\b{re.escape(name)}\b', told), name


def test_container_images_have_the_ros_packages_that_are_not_in_ros_base():
    """ros-base brings messages, rclpy, launch and tf2; the others must be asked for."""
    base = {
        'action_msgs', 'ament_cmake', 'ament_index_python', 'builtin_interfaces', 'diagnostic_msgs', 'geometry_msgs',
        'launch', 'launch_ros', 'lifecycle_msgs', 'nav_msgs', 'rcl_interfaces', 'rclpy', 'rosgraph_msgs',
        'rosidl_default_generators', 'rosidl_default_runtime', 'sensor_msgs', 'shape_msgs', 'std_msgs', 'std_srvs',
        'tf2_msgs', 'trajectory_msgs', 'visualization_msgs',
    }  # fmt: skip
    kinds = ('depend', 'build_depend', 'buildtool_depend', 'exec_depend')
    needed = set().union(*(keys(p.parent, *kinds) for p in (ROOT / 'src').glob('*/package.xml')))
    text = (ROOT / 'docker/install_ros.sh').read_text() + (ROOT / 'docker/desktop.Dockerfile').read_text()
    asked = {name.replace('-', '_') for name in re.findall(r'ros-\$(?:distro|ROS_DISTRO)-([\w-]+)', text)}
    if 'rviz2' in asked:
        asked.add('rviz_default_plugins')  # rviz2 depends on it
    missing = {k for k in needed - base - asked if not k.startswith(('vla_', 'python3-'))}
    assert not missing
