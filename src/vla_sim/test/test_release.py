"""What an episode made is gone when the next one begins, without the garbage collector."""

import gc
import weakref

import mujoco
import pytest

from vla_sim.rendering import render_thread
from vla_sim.rendering.render_thread import RenderThread
from vla_sim.scene import CAMERAS, build_model
from vla_sim.tasks import TASKS
from vla_sim.world import World


@pytest.fixture(autouse=True)
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def made(monkeypatch):
    """Weak references to all that is made of these classes."""
    found = []

    def noted(owner, name):
        make = getattr(owner, name)

        def noting(*arguments, **options):
            thing = make(*arguments, **options)
            found.append(weakref.ref(thing))
            return thing

        monkeypatch.setattr(owner, name, noting)

    noted(mujoco, 'MjSpec')
    noted(mujoco, 'MjData')
    noted(mujoco, 'Renderer')
    noted(render_thread, 'Cameras')
    return found


def alive(found, kind):
    return sum(type(ref()).__name__ == kind for ref in found)


@pytest.mark.parametrize('task', TASKS)
def test_a_compiled_scene_leaves_no_specification_behind(made, task):
    model = build_model(task)
    assert made and alive(made, 'MjSpec') == 0
    gone = weakref.ref(model)
    del model
    assert gone() is None


def test_a_world_that_is_replaced_is_gone_with_its_model_data_and_cameras(made):
    shown = []
    thread = RenderThread(CAMERAS, 32, False, lambda snapshot, images: shown.append(snapshot.time_ns))
    worlds, models = [], []
    world = None
    try:
        for seed, task in enumerate(TASKS * 2):
            world = World(task, image_size=32)
            world.reset(seed)
            world.step(20)
            thread.offer(world.model, world.snapshot(), CAMERAS, wait=True)
            thread.prepare(world.model)  # returns when what was offered is drawn
            worlds.append(weakref.ref(world))
            models.append(weakref.ref(world.model))
        assert thread.failure is None
        assert sum(ref() is not None for ref in worlds) == 1
        assert sum(ref() is not None for ref in models) == 1
        assert alive(made, 'Cameras') == 1
        assert alive(made, 'MjData') == 2  # of physics and of the cameras
    finally:
        thread.close()
    assert alive(made, 'Cameras') == 0
