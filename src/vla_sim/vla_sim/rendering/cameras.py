"""Camera images of a simulated world. A Cameras object owns the OpenGL context of its thread."""

from dataclasses import dataclass

import numpy as np

from vla_sim.assets.robot import BASE, VISUAL_GROUP
from vla_sim.rendering.opengl import mujoco, renderer


@dataclass(frozen=True)
class Appearance:
    """Fields of the model that reset changes, for the renderer. Arrays are copies."""

    geom_rgba: np.ndarray
    cam_pos: np.ndarray
    cam_quat: np.ndarray
    light_diffuse: np.ndarray
    light_dir: np.ndarray

    @classmethod
    def of(cls, model: mujoco.MjModel) -> 'Appearance':
        return cls(**{name: np.array(getattr(model, name)) for name in cls.__dataclass_fields__})

    def apply(self, model: mujoco.MjModel) -> None:
        """Write the fields into a model of the same scene."""
        for name in self.__dataclass_fields__:
            getattr(model, name)[:] = getattr(self, name)


@dataclass(frozen=True)
class Snapshot:
    """State for one set of images, copied from the running simulation."""

    time_ns: int  # simulation time of the state [ns]
    qpos: np.ndarray
    mocap_pos: np.ndarray
    mocap_quat: np.ndarray
    appearance: Appearance


@dataclass(frozen=True)
class CameraInfo:
    """A pinhole camera without distortion. Pixel centres have whole coordinates, as in ROS."""

    width: int  # [pixel]
    height: int  # [pixel]
    matrix: np.ndarray  # (3, 3) K


def camera_info(model: mujoco.MjModel, name: str, size: int) -> CameraInfo:
    """Return the intrinsics of a camera for square images of `size` [pixel]: f = size / 2 / tan(fovy / 2)."""
    focal = size / 2 / np.tan(np.deg2rad(model.camera(name).fovy[0]) / 2)
    centre = (size - 1) / 2
    return CameraInfo(size, size, np.array([[focal, 0, centre], [0, focal, centre], [0, 0, 1]]))


class Cameras:
    """Renders snapshots. One thread must make, use and close it."""

    def __init__(self, model: mujoco.MjModel, names: tuple[str, ...], size: int = 256, shadows: bool = False) -> None:
        """names: cameras of the model; size: edge of the square images [pixel].

        Raises ValueError with the remedy where OpenGL cannot be used.
        """
        self.names = names
        self._model = mujoco.MjModel.__copy__(model)  # a copy for the appearance, as physics uses the original
        self._data = mujoco.MjData(self._model)
        self._appearance: Appearance | None = None
        self._renderer = renderer(self._model, size)
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = shadows
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        self._option = mujoco.MjvOption()
        self._option.geomgroup[:] = 0
        self._option.geomgroup[VISUAL_GROUP] = 1

    def render(self, snapshot: Snapshot, names: tuple[str, ...] | None = None) -> dict[str, np.ndarray]:
        """Return new images (size, size, 3) uint8 RGB of the named cameras (default: all)."""
        self._take(snapshot)
        images = {}
        for name in self.names if names is None else names:
            self._renderer.update_scene(self._data, name, self._option)
            images[name] = self._renderer.render()
        return images

    def depth(self, snapshot: Snapshot, name: str) -> np.ndarray:
        """Return the depth along the optical axis of a camera, (size, size) float32 [m]."""
        self._take(snapshot)
        self._renderer.update_scene(self._data, name, self._option)
        self._renderer.enable_depth_rendering()
        try:
            return self._renderer.render()
        finally:
            self._renderer.disable_depth_rendering()

    def robot_mask(self, snapshot: Snapshot, name: str) -> np.ndarray:
        """Return which pixels of a camera's image show the robot, (size, size) bool."""
        self._take(snapshot)
        self._renderer.update_scene(self._data, name, self._option)
        self._renderer.enable_segmentation_rendering()
        try:
            found = self._renderer.render()
        finally:
            self._renderer.disable_segmentation_rendering()
        geoms, kinds = found[..., 0], found[..., 1]
        model = self._model
        roots = model.body_rootid[model.geom_bodyid]
        own = roots == model.body(BASE).id
        return (kinds == mujoco.mjtObj.mjOBJ_GEOM) & (geoms >= 0) & own[geoms.clip(0)]

    def _take(self, snapshot: Snapshot) -> None:
        if snapshot.appearance is not self._appearance:
            snapshot.appearance.apply(self._model)
            self._appearance = snapshot.appearance
        data = self._data
        data.qpos[:], data.mocap_pos[:], data.mocap_quat[:] = snapshot.qpos, snapshot.mocap_pos, snapshot.mocap_quat
        mujoco.mj_kinematics(self._model, data)
        mujoco.mj_comPos(self._model, data)
        mujoco.mj_camlight(self._model, data)

    def close(self) -> None:
        """Free the OpenGL context, in the thread that made it. A second call has no effect."""
        self._renderer.close()
