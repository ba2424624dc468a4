"""Checks of GPU, Jetson and TensorRT."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from vla_bringup.doctor.check import Check, fail, output_of, skip, warn

QUERY = 'name,driver_version,memory.total,memory.used,temperature.gpu,power.limit'
TENSORRT = 'import tensorrt; print(tensorrt.__version__)'
DRIVER = 'install the NVIDIA driver; in a container: docker run --gpus all, with nvidia-container-toolkit'


def check_gpu() -> Iterator[Check]:
    """Yield a check for each GPU of the driver, and one for torch."""
    import torch

    try:
        text = output_of(['nvidia-smi', f'--query-gpu={QUERY}', '--format=csv,noheader,nounits'])
    except RuntimeError as error:
        text = ''
        yield fail('GPU', str(error), 'repair the driver: reboot after an update, see dmesg')
    rows = [[word.strip() for word in line.split(',')] for line in (text or '').splitlines() if line.count(',') == 5]
    for name, driver, total, used, celsius, watts in rows:
        memory = f'{used} of {total} MiB used' if total.isdigit() else 'memory shared with the system'
        hot = celsius.isdigit() and int(celsius) >= 85
        fact = f'{name}, driver {driver}, {memory}, {celsius} C, power limit {watts} W'
        yield warn('GPU', fact, 'it reduces its clocks: improve the cooling') if hot else Check('GPU', fact)
    build = f'torch {torch.__version__}'
    if torch.cuda.is_available():
        free, total_bytes = torch.cuda.mem_get_info()
        name, capability = torch.cuda.get_device_name(0), '.'.join(map(str, torch.cuda.get_device_capability(0)))
        memory = f'{free / 2**30:.1f} of {total_bytes / 2**30:.1f} GiB free'
        yield Check('torch', f'{build}: {name}, compute capability {capability}, {memory}')
    elif rows and torch.version.cuda is None:
        yield fail(
            'torch', f'{build} has no CUDA, but there is a GPU', 'install the CUDA build: see docs/how-to/jetson.md'
        )
    elif rows:
        yield fail(
            'torch', f'{build} does not find the GPU', f'the driver is too old for CUDA {torch.version.cuda}, or hidden'
        )
    else:
        yield Check('torch', f'{build}, on the CPU')
        if text is None:
            yield skip('GPU', 'no NVIDIA driver: small models run on the CPU, 8B needs a GPU', DRIVER)


def check_tensorrt() -> Check:
    try:
        version = (output_of([sys.executable, '-c', TENSORRT], 30.0) or '').strip()
    except RuntimeError as error:
        if 'ModuleNotFoundError' in str(error):
            return skip('TensorRT', 'not installed: only the engine tensorrt needs it')
        return fail('TensorRT', str(error), 'its libraries are missing or of another version than its Python package')
    if int(version.split('.')[0]) < 10:
        return fail('TensorRT', version, 'engines are built strongly typed: install 10 or newer')
    return Check('TensorRT', version)


def check_jetson(root: Path = Path('/')) -> Iterator[Check]:
    """Yield checks of release, power mode and clocks of a Jetson. root: folder of /etc, /proc and /sys."""
    release = root / 'etc/nv_tegra_release'
    if not release.is_file():
        yield skip('Jetson', 'this machine is not a Jetson')
        return
    text = release.read_text()
    found = re.search(r'R(\d+).*REVISION: ([\d.]+)', text)
    l4t = f'L4T {found.group(1)}.{found.group(2)}' if found else text.split('\n')[0]
    model = root / 'proc/device-tree/model'
    name = model.read_text().strip('\0\n ') if model.is_file() else 'Jetson'
    if found and int(found.group(1)) < 36:
        yield fail('Jetson', f'{name}, {l4t}', 'JetPack 6 (L4T 36) or newer is needed')
    else:
        yield Check('Jetson', f'{name}, {l4t}')
    yield _power_mode()
    yield _clocks(root)


def _power_mode() -> Check:
    try:
        text = output_of(['nvpmodel', '-q'])
    except RuntimeError as error:
        return skip('power mode', str(error), 'sudo nvpmodel -q')
    if text is None:
        return skip('power mode', 'nvpmodel is not installed (a container has it only when it is mounted)')
    mode = re.search(r'Power Mode: *(\S+)', text)
    name = mode.group(1) if mode else text.strip()
    if name.startswith('MAXN'):
        return Check('power mode', name)
    return warn('power mode', f'{name}: inference is up to three times slower than at MAXN', 'sudo nvpmodel -m 0')


def _clocks(root: Path) -> Check:
    """Check that frequencies are fixed at their highest, the effect of jetson_clocks."""
    pairs = [
        (p, p.with_name(p.name.replace('min', 'max')))
        for pattern in ('sys/devices/system/cpu/cpu*/cpufreq/scaling_min_freq', 'sys/class/devfreq/*gpu*/min_freq')
        for p in sorted(root.glob(pattern))
    ]
    pairs = [(low, high) for low, high in pairs if high.is_file()]
    if not pairs:
        return skip('jetson_clocks', 'the kernel does not report frequencies here')
    loose = [low for low, high in pairs if int(low.read_text()) < int(high.read_text())]
    if loose:
        fact = f'{len(loose)} of {len(pairs)} clocks may slow down: latencies vary'
        return warn('jetson_clocks', fact, 'sudo jetson_clocks (after nvpmodel; again after each boot)')
    return Check('jetson_clocks', f'all {len(pairs)} clocks fixed at their highest')
