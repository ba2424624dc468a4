"""Machine and versions, for the end of every report."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import psutil

from vla_model.engines.processor import cpu_name


def version(package: str) -> str:
    """Return the version of a Python package; '-' when it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return '-'


def cuda_device() -> str:
    """Return the name of torch's CUDA device; 'none' without one. Imports torch."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else 'none'


def commit() -> str:
    """Return the commit of the checkout, with '+' when files differ from it; 'unknown' outside a checkout."""
    root = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        return subprocess.run(
            ['git', '-C', str(root), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git('rev-parse', '--short', 'HEAD') + ('+' if git('status', '--porcelain') else '')
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'


def facts() -> dict[str, str]:
    """Return machine and versions: name -> text."""
    system = platform.freedesktop_os_release().get('PRETTY_NAME', platform.system())
    return {
        'processor': f'{cpu_name()}, {len(os.sched_getaffinity(0))} cores',
        'memory': f'{psutil.virtual_memory().total / 2**30:.0f} GiB',
        'CUDA device': cuda_device(),
        'system': f'{system}, Linux {platform.release()}',
        'Python': platform.python_version(),
        'ROS 2': f'{os.environ.get("ROS_DISTRO", "?")}, {os.environ.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp")}',
        **{name: version(name) for name in ('mujoco', 'torch', 'numpy', 'rosbags')},
        'commit': commit(),
    }
