"""Lines of fact about this machine and the workspace, each with a verdict and, where needed, the remedy."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import psutil
from ament_index_python.packages import PackageNotFoundError, get_package_prefix
from rich.markup import escape

from vla_bringup.console import make_console
from vla_bringup.machine import cpu_name, cuda_device

PACKAGES = ('vla_msgs', 'vla_model', 'vla_policy_node', 'vla_sim', 'vla_bringup')
SHM = Path('/dev/shm')
RENDER = """
import mujoco, numpy
model = mujoco.MjModel.from_xml_string('<mujoco><worldbody><light pos="0 0 3"/><geom size=".5"/></worldbody></mujoco>')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 64, 64) as renderer:
    renderer.update_scene(data)
    pixels = renderer.render()
    from OpenGL import GL
    print(GL.glGetString(GL.GL_RENDERER).decode())
assert numpy.ptp(pixels) > 20, 'the picture is empty'
"""


class Verdict(Enum):
    OK = 'ok'
    WARN = 'warn'
    BAD = 'bad'


@dataclass(frozen=True)
class Check:
    """One line."""

    name: str
    fact: str
    verdict: Verdict = Verdict.OK
    remedy: str = ''


def warn(name: str, fact: str, remedy: str) -> Check:
    return Check(name, fact, Verdict.WARN, remedy)


def bad(name: str, fact: str, remedy: str) -> Check:
    return Check(name, fact, Verdict.BAD, remedy)


def check_python() -> Check:
    fact = f'{platform.python_version()} in {sys.prefix}'
    if not (3, 10) <= sys.version_info[:2] <= (3, 12):
        return bad('Python', fact, 'the suite runs on 3.10 to 3.12: set PYTHON and remove .venv')
    return Check('Python', fact)


def check_ros() -> Check:
    import rclpy

    distro = os.environ.get('ROS_DISTRO', '')
    path = Path(rclpy.__file__).parents[1]
    source = 'wheels in the virtual environment' if Path(sys.prefix) in path.parents else str(path)
    fact = f'{distro or "ROS_DISTRO is not set"}, rclpy from {source}'
    if distro not in ('humble', 'jazzy', 'kilted'):
        return warn('ROS 2', fact, 'the suite is made for Jazzy and tested on nothing else than Humble to Kilted')
    return Check('ROS 2', fact)


def check_rmw() -> Iterator[Check]:
    import rclpy

    rmw = rclpy.get_rmw_implementation_identifier()
    if not rmw.startswith('rmw_fastrtps'):
        yield warn('middleware', rmw, 'not the one this is tested with: make sure that large images arrive')
        return
    yield Check('middleware', rmw)
    path = os.environ.get('FASTDDS_DEFAULT_PROFILES_FILE') or os.environ.get('FASTRTPS_DEFAULT_PROFILES_FILE')
    remedy = 'set FASTRTPS_DEFAULT_PROFILES_FILE to vla_bringup/config/fastdds_loopback.xml, or fastdds_robot.xml'
    if not path:
        yield warn('Fast DDS profile', 'none: about 40 % of the images get lost', remedy)
    elif not Path(path).is_file():
        yield bad('Fast DDS profile', f'{path} does not exist', remedy)
    elif 'interfaceWhiteList' in Path(path).read_text() and _discovery_range() != 'LOCALHOST':
        yield warn('Fast DDS profile', f'{path} stays on this machine, the discovery range does not', remedy)
    else:
        yield Check('Fast DDS profile', path)


def _discovery_range() -> str:
    return os.environ.get('ROS_AUTOMATIC_DISCOVERY_RANGE', 'SUBNET').upper()


def check_discovery() -> Iterator[Check]:
    domain = os.environ.get('ROS_DOMAIN_ID', '0')
    if not domain.isdigit() or int(domain) > 232:
        yield bad('ROS_DOMAIN_ID', domain, 'must be a number from 0 to 101')
    elif int(domain) > 101:
        yield warn(
            'ROS_DOMAIN_ID', domain, 'above 101 its ports collide with those that Linux hands out: take 0 to 101'
        )
    else:
        yield Check('ROS_DOMAIN_ID', domain)
    where = _discovery_range()
    if 'ROS_LOCALHOST_ONLY' in os.environ:
        yield warn('discovery range', 'ROS_LOCALHOST_ONLY overrides it', 'unset it, it is deprecated')
    elif where not in ('LOCALHOST', 'SUBNET', 'OFF', 'SYSTEM_DEFAULT'):
        yield bad('discovery range', where, 'ROS_AUTOMATIC_DISCOVERY_RANGE must be LOCALHOST or SUBNET')
    else:
        yield Check('discovery range', where)
    if os.environ.get('ROS_PYTHON_CHECK_FIELDS') != '1':
        yield bad(
            'message checks', 'off: a field of the wrong type is sent as garbage', 'set ROS_PYTHON_CHECK_FIELDS=1'
        )


def check_workspace() -> Check:
    missing = []
    for package in PACKAGES:
        try:
            get_package_prefix(package)
        except PackageNotFoundError:
            missing.append(package)
    if missing:
        return bad('workspace', f'not built: {", ".join(missing)}', './vla build')
    root = Path(__file__).resolve().parents[3]
    stamp = root / 'install' / '.vla-stamp'
    if not stamp.is_file():
        return Check('workspace', f'installed in {get_package_prefix("vla_bringup")}')
    kinds = ('*.msg', '*.srv', '*.action', 'package.xml', 'setup.py', 'CMakeLists.txt')
    newer = [p for kind in kinds for p in (root / 'src').rglob(kind) if p.stat().st_mtime > stamp.stat().st_mtime]
    if newer:
        return warn('workspace', f'older than {newer[0].relative_to(root)}', './vla build')
    return Check('workspace', f'built in {root}')


def check_rendering() -> Check:
    # In a process of its own: a broken driver may take the whole process down.
    backend = os.environ.get('MUJOCO_GL', 'default')
    remedy = 'Debian, Ubuntu: apt-get install libegl1 libopengl0 libgl1-mesa-dri; or try MUJOCO_GL=osmesa'
    try:
        done = subprocess.run([sys.executable, '-c', RENDER], capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return bad('rendering', f'MuJoCo with MUJOCO_GL={backend} does not answer', remedy)
    if done.returncode != 0:
        why = (done.stderr.strip().splitlines() or [f'exit code {done.returncode}'])[-1]
        return bad('rendering', f'MuJoCo with MUJOCO_GL={backend}: {why}', remedy)
    return Check('rendering', f'MuJoCo draws with {done.stdout.strip()} (MUJOCO_GL={backend})')


def check_torch() -> Check:
    try:
        import torch
    except ImportError as error:
        return bad('torch', str(error), 'remove .venv/.vla-stamp and run ./vla build')
    return Check('torch', f'{torch.__version__}, CUDA device: {cuda_device()}')


def check_shared_memory() -> Iterator[Check]:
    if not SHM.is_dir():
        return
    free = shutil.disk_usage(SHM).free / 2**20
    fact = f'{free:.0f} MiB free in {SHM}'
    # Each process of ours takes 9 MiB; docker gives 64 MiB in all.
    low = warn('shared memory', fact, 'docker run --ipc=host, or --shm-size=1g') if free < 256 else None
    yield low or Check('shared memory', fact)
    used = set()
    for process in Path('/proc').glob('[0-9]*/maps'):
        try:
            used |= {line.split()[-1] for line in process.read_text().splitlines() if '/dev/shm/fastrtps_' in line}
        except OSError:
            continue  # ended meanwhile, or somebody else's
    left = [p for p in SHM.glob('fastrtps_*') if str(p) not in used and not p.name.endswith('_el')]
    size = sum(p.stat().st_size for p in left if p.exists()) / 2**20
    if size > 50:
        fact = f'{len(left)} segments of Fast DDS, {size:.0f} MiB, of processes that were killed'
        yield warn('shared memory', fact, 'fastdds shm clean')


def check_resources() -> Iterator[Check]:
    cores = len(os.sched_getaffinity(0))
    name = f'{cpu_name()}, {cores} cores'
    yield Check('processor', name) if cores > 1 else warn('processor', name, 'simulator and model need two cores')
    memory = psutil.virtual_memory()
    fact = f'{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free'
    few = memory.available < 2 * 2**30
    yield warn('memory', fact, 'the demo takes about 2 GiB: end other programs') if few else Check('memory', fact)
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    fact = f'{free:.1f} GiB free in {Path.cwd()}'
    yield warn('disk', fact, 'bags take 1 MB/s and more: make room') if free < 2 else Check('disk', fact)


def check_kernel() -> Check:
    realtime = Path('/sys/kernel/realtime')
    fact = f'Linux {platform.release()}'
    if (realtime.is_file() and realtime.read_text().strip() == '1') or 'PREEMPT_RT' in platform.version():
        return Check('kernel', f'{fact}, real-time')
    return warn(
        'kernel',
        f'{fact}, not real-time',
        'nothing in simulation; the machine that runs the 1 kHz controller of a real arm needs PREEMPT_RT',
    )


CHECKS: tuple[Callable[[], Check | Iterator[Check]], ...] = (
    check_python,
    check_ros,
    check_rmw,
    check_discovery,
    check_workspace,
    check_rendering,
    check_torch,
    check_shared_memory,
    check_resources,
    check_kernel,
)


def run_doctor() -> bool:
    """Print every check, those of a running robot last; False if one is bad."""
    from vla_bringup.doctor_robot import check_robot

    console, worst = make_console(), Verdict.OK
    for function in (*CHECKS, check_robot):
        found = function()
        for check in [found] if isinstance(found, Check) else found:
            colour = {Verdict.OK: 'green', Verdict.WARN: 'yellow', Verdict.BAD: 'red'}[check.verdict]
            line = f'[{colour}]{check.verdict.value:5}[/]{check.name:17} {escape(check.fact)}'
            console.print(
                line + (f'\n[{colour}]{"":5}->[/] {escape(check.remedy)}' if check.remedy else ''), soft_wrap=True
            )
            worst = max(worst, check.verdict, key=list(Verdict).index)
    return worst is not Verdict.BAD
