import threading

import mujoco
import numpy as np
import pytest

from vla_sim.rendering.cameras import Cameras
from vla_sim.rendering.render_thread import RenderThread
from vla_sim.scene import CAMERAS
from vla_sim.world import World

HUES = {'red': 0, 'orange': 22, 'yellow': 46, 'green': 128, 'blue': 228, 'purple': 281}  # [degrees]


@pytest.fixture(scope='module')
def world():
    return World('stack_block', image_size=192)


@pytest.fixture
def cameras(world):
    made = Cameras(world.model, CAMERAS, world.image_size)
    yield made
    made.close()


def project(world, camera, point):
    """Column and row of a point in the base frame, by the published intrinsics and pose."""
    position, quat = world.camera_pose(camera)
    rotation = np.zeros(9)
    mujoco.mju_quat2Mat(rotation, quat)
    u, v, depth = world.camera_info(camera).matrix @ (rotation.reshape(3, 3).T @ (point - position))
    assert depth > 0, 'the optical frame must look forward along z'
    return np.array([u, v]) / depth


def seen_at(image, colour, near):
    """Middle of the pixels of a hue around a place, or None."""
    rgb = image.astype(float) / 255
    top, low = rgb.max(2), rgb.min(2)
    span = np.maximum(top - low, 1e-6)
    r, g, b = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    hue = np.select([top == r, top == g], [((g - b) / span) % 6, (b - r) / span + 2], (r - g) / span + 4) * 60
    rows, columns = np.nonzero((np.abs((hue - HUES[colour] + 180) % 360 - 180) < 10) & (span > 0.35 * top + 0.1))
    close = np.hypot(columns - near[0], rows - near[1]) < 15
    return np.array([columns[close].mean(), rows[close].mean()]) if close.sum() >= 10 else None


@pytest.mark.parametrize('camera', CAMERAS)
def test_objects_are_seen_where_intrinsics_and_pose_say(world, cameras, camera):
    errors = []
    for seed in range(6):
        world.reset(seed)
        world.step(20)
        image = cameras.render(world.snapshot())[camera]
        for name, (position, _) in world.objects().items():
            expected = project(world, camera, position)
            if np.abs(expected - world.image_size / 2).max() > world.image_size / 2 - 10:
                continue
            seen = seen_at(image, name.split('_')[0], expected)
            assert seen is not None, f'{name}, seed {seed}: not seen near {expected}'
            errors.append(seen - expected)
    assert len(errors) >= 12
    assert np.hypot(*np.transpose(errors)).max() < 4, 'half a block: sides are seen beside the top'
    assert np.abs(np.mean(errors, axis=0)).max() < 1


def test_a_snapshot_is_rendered_as_it_was(world, cameras):
    world.reset(0)
    snapshot = world.snapshot()
    before = cameras.render(snapshot)
    world.set_target(world.joint_positions + 0.3)
    world.step(500)
    world.reset(1)
    after, now = cameras.render(snapshot), cameras.render(world.snapshot())
    for name in CAMERAS:
        assert np.array_equal(before[name], after[name])
        assert np.abs(before[name].astype(int) - now[name]).mean() > 2


def test_only_the_named_cameras_are_rendered(world, cameras):
    world.reset(0)
    images = cameras.render(world.snapshot(), ('wrist',))
    assert list(images) == ['wrist']
    assert images['wrist'].shape == (192, 192, 3)
    assert images['wrist'].dtype == np.uint8


def test_render_thread_takes_the_newest_counts_the_rest_and_changes_models(world):
    got, hold, entered, last = [], threading.Event(), threading.Event(), threading.Event()

    def deliver(snapshot, images):
        got.append((snapshot.time_ns, sorted(images)))
        entered.set()
        if 'wrist' not in images:
            last.set()
        assert hold.wait(10)

    thread = RenderThread(CAMERAS, 64, False, deliver)
    try:
        thread.prepare(world.model)
        times = []
        for _ in range(4):
            world.step()
            times.append(world.time_ns)
            thread.offer(world.model, world.snapshot(), CAMERAS, wait=False)
            if len(times) == 1:
                assert entered.wait(10)
        assert thread.dropped == 2
        hold.set()
        other = World('press_button')
        thread.offer(other.model, other.snapshot(), ('front',), wait=True)
        assert last.wait(10)
        assert got == [(times[0], ['front', 'wrist']), (times[3], ['front', 'wrist']), (0, ['front'])]
        assert thread.failure is None
    finally:
        hold.set()
        thread.close()


def test_render_thread_keeps_its_failure_and_lets_no_caller_wait(world):
    def deliver(snapshot, images):
        raise RuntimeError('no such topic')

    thread = RenderThread(CAMERAS, 64, False, deliver)
    try:
        for _ in range(3):
            thread.offer(world.model, world.snapshot(), CAMERAS, wait=True)
        thread.prepare(world.model)
        assert str(thread.failure) == 'no such topic'
    finally:
        thread.close()
