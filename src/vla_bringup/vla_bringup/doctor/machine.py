"""Checks of this machine: Python, ROS, workspace, rendering, memory, disk, real time."""

import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
from ament_index_python.packages import PackageNotFoundError, get_package_prefix

from vla_bringup.doctor.check import Check, fail, skip, warn
from vla_model.engines.processor import cpu_name
from vla_model.engines.trial import ending

PACKAGES = ('vla_msgs', 'vla_model', 'vla_policy_node', 'vla_sim', 'vla_training', 'vla_bringup')
SHM = Path('/dev/shm')
RTPRIO = 80  # wanted by the 1 kHz controllers of ros2_control
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


def check_python() -> Check:
    fact = f'{platform.python_version()} in {sys.prefix}'
    if not (3, 10) <= sys.version_info[:2] <= (3, 12):
        return fail('Python', fact, 'the suite runs on 3.10 to 3.12: set PYTHON and remove .venv')
    return Check('Python', fact)


def check_ros() -> Check:
    import rclpy

    distro = os.environ.get('ROS_DISTRO', '')
    path = Path(rclpy.__file__).parents[1]
    source = 'wheels in the virtual environment' if Path(sys.prefix) in path.parents else str(path)
    fact = f'{distro or "ROS_DISTRO is not set"}, rclpy from {source}'
    if distro not in ('humble', 'jazzy', 'kilted'):
        return warn('ROS 2', fact, 'the suite is made for Jazzy and tested on Humble to Kilted')
    return Check('ROS 2', fact)


def check_workspace() -> Check:
    missing = []
    for package in PACKAGES:
        try:
            get_package_prefix(package)
        except PackageNotFoundError:
            missing.append(package)
    if missing:
        return fail('workspace', f'not built: {", ".join(missing)}', './vla build')
    root = Path(__file__).resolve().parents[4]
    stamp = root / 'install' / '.vla-stamp'
    if not stamp.is_file():
        return Check('workspace', f'installed in {get_package_prefix("vla_bringup")}')
    kinds = ('*.msg', '*.srv', '*.action', 'package.xml', 'setup.py', 'CMakeLists.txt')
    newer = [p for kind in kinds for p in (root / 'src').rglob(kind) if p.stat().st_mtime > stamp.stat().st_mtime]
    if newer:
        return warn('workspace', f'older than {newer[0].relative_to(root)}', './vla build')
    return Check('workspace', f'built in {root}')


def check_rendering() -> Check:
    # In a child process: a broken driver may kill the process.
    backend = os.environ.get('MUJOCO_GL', 'default')
    remedy = 'Debian, Ubuntu: apt-get install libegl1 libopengl0 libgl1-mesa-dri; or try MUJOCO_GL=osmesa'
    try:
        done = subprocess.run([sys.executable, '-c', RENDER], capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return fail('rendering', f'MuJoCo with MUJOCO_GL={backend} does not answer', remedy)
    if done.returncode != 0:
        lines = (
            done.stderr.strip().splitlines() if done.returncode > 0 else []
        )  # a killed process does not print the cause
        why = lines[-1] if lines else ending(done.returncode)
        return fail('rendering', f'MuJoCo with MUJOCO_GL={backend}: {why}', remedy)
    return Check('rendering', f'MuJoCo draws with {done.stdout.strip()} (MUJOCO_GL={backend})')


def check_shared_memory() -> Iterator[Check]:
    if not SHM.is_dir():
        yield skip('shared memory', f'{SHM} does not exist')
        return
    free = shutil.disk_usage(SHM).free / 2**20
    fact = f'{free:.0f} MiB free in {SHM}'
    # Each process of the suite takes 9 MiB; docker gives 64 MiB in all.
    low = warn('shared memory', fact, 'docker run --ipc=host, or --shm-size=1g') if free < 256 else None
    yield low or Check('shared memory', fact)
    used = set()
    for process in Path('/proc').glob('[0-9]*/maps'):
        try:
            used |= {line.split()[-1] for line in process.read_text().splitlines() if '/dev/shm/fastrtps_' in line}
        except OSError:
            continue  # ended meanwhile, or of another user
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
    yield warn('disk', fact, 'bags take 1 MB/s and more: free some space') if free < 2 else Check('disk', fact)


def check_kernel(root: Path = Path('/')) -> Check:
    realtime = root / 'sys/kernel/realtime'
    fact = f'Linux {platform.release()}'
    if (realtime.is_file() and realtime.read_text().strip() == '1') or 'PREEMPT_RT' in platform.version():
        return Check('kernel', f'{fact}, real-time')
    remedy = 'nothing in simulation; the machine that runs the 1 kHz controller of a real arm needs PREEMPT_RT'
    return warn('kernel', f'{fact}, not real-time', remedy)


def check_limits() -> Iterator[Check]:
    """Check this user's limits of real-time priority and locked memory."""
    where = 'in /etc/security/limits.d/realtime.conf; in docker --ulimit'
    _, priority = resource.getrlimit(resource.RLIMIT_RTPRIO)
    fact = 'unlimited' if priority == resource.RLIM_INFINITY else str(priority)
    if priority != resource.RLIM_INFINITY and priority < RTPRIO:
        yield warn(
            'rtprio limit', f'{fact}; 1 kHz controllers want {RTPRIO}', f'@realtime - rtprio 99 {where} rtprio=99'
        )
    else:
        yield Check('rtprio limit', fact)
    _, locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if locked != resource.RLIM_INFINITY:
        fact = f'{locked / 2**20:.0f} MiB: a controller cannot keep its memory from being paged out'
        yield warn('memlock limit', fact, f'@realtime - memlock unlimited {where} memlock=-1')
    else:
        yield Check('memlock limit', 'unlimited')


def check_governor(root: Path = Path('/')) -> Check:
    found = [p.read_text().strip() for p in root.glob('sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor')]
    if not found:
        return skip('CPU governor', 'the kernel has no frequency control here (a virtual machine?)')
    slow = sorted(set(found) - {'performance'})
    if slow:
        fact = f'{", ".join(slow)} on {sum(g != "performance" for g in found)} of {len(found)} cores: latencies vary'
        return warn('CPU governor', fact, 'sudo cpupower frequency-set -g performance')
    return Check('CPU governor', f'performance on {len(found)} cores')
