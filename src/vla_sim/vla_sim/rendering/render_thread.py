"""Renders camera images in a thread beside physics. No ROS."""

import threading
from collections.abc import Callable

import numpy as np

from vla_sim.rendering.cameras import Cameras, Snapshot
from vla_sim.rendering.opengl import mujoco

Deliver = Callable[[Snapshot, dict[str, np.ndarray]], None]


class RenderThread:
    """Renders the newest offered snapshot in its thread and delivers the images.

    A snapshot of another model gets a new OpenGL context.
    """

    def __init__(self, names: tuple[str, ...], size: int, shadows: bool, deliver: Deliver) -> None:
        """names: all cameras of the model that may be asked for; size [pixel]; deliver(snapshot, images by name)."""
        self._names, self._size, self._shadows, self._deliver = names, size, shadows, deliver
        self._changed = threading.Condition()
        self._job: tuple[mujoco.MjModel, Snapshot | None, tuple[str, ...]] | None = None
        self._busy = self._ending = False
        self.failure: BaseException | None = None
        self.dropped = 0  # number of snapshots that a newer one replaced
        self._thread = threading.Thread(target=self._run, name='render', daemon=True)
        self._thread.start()

    def offer(self, model: mujoco.MjModel, snapshot: Snapshot, names: tuple[str, ...], wait: bool) -> None:
        """Offer a snapshot for images of these cameras. wait: for the one before, which may else be dropped."""
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: not (self._job or self._busy) or self._ending or self.failure)
            elif self._job is not None:
                self.dropped += 1
            self._job = (model, snapshot, names)
            self._changed.notify_all()

    def prepare(self, model: mujoco.MjModel) -> None:
        """Make the OpenGL context for a model, and return when it is ready; this halts all threads for a while."""
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
                    cameras = model = None  # the old scene is freed before the next one is made
                    cameras, model = Cameras(wanted, self._names, self._size, self._shadows), wanted
                if snapshot is not None and cameras is not None:
                    self._deliver(snapshot, cameras.render(snapshot, names))
                del job, wanted, snapshot  # while it waits it holds only the drawn parts of a scene
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
