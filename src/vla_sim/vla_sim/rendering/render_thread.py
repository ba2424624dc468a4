"""Camera images in a thread of their own, so that physics goes on meanwhile. No ROS."""

import threading
from collections.abc import Callable

import numpy as np

from vla_sim.rendering.cameras import Cameras, Snapshot
from vla_sim.rendering.opengl import mujoco

Deliver = Callable[[Snapshot, dict[str, np.ndarray]], None]


class RenderThread:
    """Renders the newest offered snapshot and hands the images on, in its thread. Makes a new OpenGL context by itself
    when a snapshot comes from another model."""

    def __init__(self, names: tuple[str, ...], size: int, shadows: bool, deliver: Deliver) -> None:
        """names: all cameras of the model that may be asked for; size [pixel]; deliver(snapshot, images by name)."""
        self._names, self._size, self._shadows, self._deliver = names, size, shadows, deliver
        self._changed = threading.Condition()
        self._job: tuple[mujoco.MjModel, Snapshot | None, tuple[str, ...]] | None = None
        self._busy = self._ending = False
        self.failure: BaseException | None = None
        self.dropped = 0  # snapshots that were replaced by a newer one before their turn
        self._thread = threading.Thread(target=self._run, name='render', daemon=True)
        self._thread.start()

    def offer(self, model: mujoco.MjModel, snapshot: Snapshot, names: tuple[str, ...], wait: bool) -> None:
        """Ask for images of these cameras. wait: until the snapshot before is done; else it may be dropped."""
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: not (self._job or self._busy) or self._ending or self.failure)
            elif self._job is not None:
                self.dropped += 1
            self._job = (model, snapshot, names)
            self._changed.notify_all()

    def prepare(self, model: mujoco.MjModel) -> None:
        """Make the OpenGL context for a model now and return when that is done (it halts all threads for a while)."""
        with self._changed:
            self._job = (model, None, ())
            self._changed.notify_all()
            self._changed.wait_for(lambda: not (self._job or self._busy) or self._ending or self.failure)

    def close(self) -> None:
        """End the thread and free the context."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        self._thread.join(10.0)

    def _run(self) -> None:
        cameras: Cameras | None = None
        model: mujoco.MjModel | None = None
        try:
            while job := self._next_job():
                wanted, snapshot, names = job
                if wanted is not model:
                    if cameras is not None:
                        cameras.close()
                    cameras = model = None  # the scene before is gone before the next one is made
                    cameras, model = Cameras(wanted, self._names, self._size, self._shadows), wanted
                if snapshot is not None and cameras is not None:
                    self._deliver(snapshot, cameras.render(snapshot, names))
                del job, wanted, snapshot  # while it waits nothing of a scene is held but what is drawn
        except BaseException as error:
            self.failure = error
        finally:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
            if cameras is not None:
                cameras.close()

    def _next_job(self) -> tuple[mujoco.MjModel, Snapshot | None, tuple[str, ...]] | None:
        with self._changed:
            self._busy = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._job is not None or self._ending)
            job, self._job = self._job, None
            self._busy = job is not None
            return None if self._ending else job
