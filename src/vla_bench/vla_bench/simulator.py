"""./vla bench sim: times of physics and camera images, and the real-time factor of both as in the node."""

import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from vla_sim.rendering.cameras import Cameras
from vla_sim.rendering.render_thread import RenderThread
from vla_sim.scene import CAMERAS
from vla_sim.tasks import TASKS
from vla_sim.world import World

_BATCH = 5  # physics steps at a time, as in the node


def bench_sim(seconds: float = 10.0, *, image_size: int = 256, camera_rate: float = 10.0) -> dict[str, Any]:
    """Measure for about `seconds` of wall time, and return the numbers; the keys have the units.

    physics: per task, one step of 1 ms with the controller. cameras: one pair of images. together: physics as fast as
    possible, with images of both cameras at camera_rate in simulation time from the render thread.
    """
    share = seconds / 5
    worlds = {task: World(task, image_size=image_size) for task in TASKS}
    hardest = max(worlds.values(), key=lambda world: world.model.nbody)  # most bodies and contacts
    return {
        'machine': _machine(),
        'image_size': image_size,
        'camera_rate_hz': camera_rate,
        'physics': {task: _physics(world, share) for task, world in worlds.items()},
        'scene': hardest.task,
        'cameras': _cameras(hardest, share, image_size),
        'together': _together(hardest, share, image_size, camera_rate),
    }


def report(result: dict[str, Any]) -> str:
    """Return the result of bench_sim as text."""
    machine, together = result['machine'], result['together']
    lines = [', '.join(f'{key} {value}' for key, value in machine.items()), '']
    lines.append('physics with controller, one step of 1 ms [us]      p50    p95    p99   real-time factor')
    for task, row in result['physics'].items():
        lines.append(f'  {task:44s} {_percentiles(row, "us")}   {row["real_time_factor"]:6.1f}')
    size = result['image_size']
    lines.append(f'\nfront + wrist, {size} x {size}, no shadows [ms]            p50    p95    p99')
    lines.append(f'  {result["scene"]:44s} {_percentiles(result["cameras"], "ms")}')
    lines.append(
        f'\nboth, images at {result["camera_rate_hz"]:g} Hz from a thread of their own: real-time factor '
        f'{together["real_time_factor"]:.1f} ({together["image_pairs"]} pairs of images, none left out)'
    )
    short = together['real_time_factor']
    lines.append('real time is kept' if short >= 1 else f'real time is NOT kept: {1 / short:.2f} times too slow')
    return '\n'.join(lines)


def _percentiles(row: dict[str, Any], unit: str) -> str:
    return ' '.join(f'{row[f"p{p}_{unit}"]:6.1f}' for p in (50, 95, 99))


def _summary(samples: list[float], scale: float, unit: str) -> dict[str, float]:
    return {f'p{p}_{unit}': float(np.percentile(samples, p) * scale) for p in (50, 95, 99)}


def _physics(world: World, seconds: float) -> dict[str, float]:
    world.reset(0)
    samples: list[float] = []
    start = last = time.perf_counter()
    while last - start < seconds:
        world.step()
        now = time.perf_counter()
        samples.append(now - last)
        last = now
    return {**_summary(samples, 1e6, 'us'), 'real_time_factor': len(samples) * 1e-3 / (last - start)}


def _cameras(world: World, seconds: float, image_size: int) -> dict[str, float]:
    cameras = Cameras(world.model, CAMERAS, image_size)
    try:
        cameras.render(world.snapshot())  # the first one uploads
        samples: list[float] = []
        start = last = time.perf_counter()
        while last - start < seconds:
            cameras.render(world.snapshot())
            now = time.perf_counter()
            samples.append(now - last)
            last = now
    finally:
        cameras.close()
    return _summary(samples, 1e3, 'ms')


def _together(world: World, seconds: float, image_size: int, camera_rate: float) -> dict[str, float]:
    pairs = 0

    def count(snapshot: Any, images: Any) -> None:
        nonlocal pairs
        pairs += 1

    renderer = RenderThread(CAMERAS, image_size, False, count)
    try:
        renderer.prepare(world.model)
        begin = due = world.time_ns
        start = now = time.perf_counter()
        while now - start < seconds and renderer.failure is None:
            world.step(_BATCH)
            if world.time_ns >= due:
                due += round(1e9 / camera_rate)
                renderer.offer(world.model, world.snapshot(), CAMERAS, wait=True)
            now = time.perf_counter()
    finally:
        renderer.close()
    if renderer.failure is not None:
        raise renderer.failure
    return {'real_time_factor': (world.time_ns - begin) * 1e-9 / (now - start), 'image_pairs': pairs}


def _machine() -> dict[str, str]:
    cpu = platform.processor() or platform.machine()
    info = Path('/proc/cpuinfo')
    if info.exists():
        cpu = next((line.split(':')[1].strip() for line in info.read_text().splitlines() if 'model name' in line), cpu)
    return {
        'cpu': cpu,
        'cores': str(os.cpu_count()),
        'python': platform.python_version(),
        'mujoco': version('mujoco'),
        'gl': os.environ.get('MUJOCO_GL', 'default'),
    }


if __name__ == '__main__':
    print(report(bench_sim()))
