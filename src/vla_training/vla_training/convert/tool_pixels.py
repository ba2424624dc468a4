"""Where the tool is in each image of a bag, from the measured joints, the robot description, camera_info and /tf.

A pixel is of the time at which its image was taken. It is unknown (NaN) wherever one of these inputs is missing or
wrong: a label that points beside the tool would train a model to move there.
"""

from pathlib import Path
from typing import Any

import numpy as np

from vla_core.clocks import NS
from vla_core.kinematics.arm import load_kinematics
from vla_core.kinematics.frames import Frames, Pose
from vla_core.kinematics.ik import Kinematics
from vla_core.kinematics.projection import project
from vla_core.observe.streams import JOINT_MAX_AGE, Aligned
from vla_policy_node.ros.camera_info import camera_info_topic
from vla_policy_node.ros.images import COMPRESSED
from vla_training.bag import Message
from vla_training.bag.setup import Setup
from vla_training.convert.episode_parts import Series
from vla_training.convert.report import BagReport
from vla_training.data import features

KEPT = 5 * NS  # [ns] of joint positions
UNKNOWN = np.full(2, np.nan, np.float32)
TF, TF_STATIC = '/tf', '/tf_static'


class ToolPixels:
    """Computes the columns of tool pixels of one bag's frames."""

    def __init__(self, setup: Setup, report: BagReport) -> None:
        self._setup, self._report = setup, report
        self._description = setup.topic('robot_description')
        self._frames, self._joints = Frames(), Series()
        self._kinematics: Kinematics | None = None
        self._no_kinematics = f'no robot description on {self._description}: record that topic, or give --urdf'
        self._infos: dict[str, Any] = {}  # camera -> sensor_msgs/CameraInfo
        self._optical: dict[str, str] = {}  # camera -> frame of its images
        if setup.urdf:
            self._load(setup.urdf)

    @property
    def topics(self) -> dict[str, Any]:
        """Return topic -> function of (message, time now [ns]) that takes its messages."""
        infos = {camera_info_topic(topic): self._info for topic in self._setup.cameras.values()}
        description = {} if self._setup.urdf else {self._description: self._describe}
        return {**infos, **description, TF: self._moving, TF_STATIC: self._fixed}

    def restart(self) -> None:
        """Forget what is from before a clock was set."""
        self._joints = Series()
        self._frames.set_back()

    def put_joints(self, stamp: int, positions: np.ndarray) -> None:
        """Take measured joint positions (dof,) [rad] of a time [ns]."""
        self._joints.put(stamp, positions)
        self._joints.forget(stamp - KEPT)

    def put_image(self, camera: str, frame: str) -> None:
        """Take the frame of a camera's image."""
        self._optical[camera] = frame

    def columns(self, found: Aligned) -> dict[str, np.ndarray]:
        """Return column -> pixel (2,) float32 of the tool in each image of a frame; NaN: unknown."""
        return {features.tool_pixel(name): self._counted(name, found) for name in self._setup.cameras}

    def _counted(self, camera: str, found: Aligned) -> np.ndarray:
        count = self._report.tool_pixel(camera)
        count.frames += 1
        try:
            pixel = self._pixel(camera, found.values[camera].shape[:2], found.stamps[camera])
        except ValueError as error:
            count.why_not = count.why_not or str(error)
            return UNKNOWN
        count.known += 1
        count.source = count.source or (
            f'joints on {self._setup.joint_states}, robot description from {self._setup.urdf or self._description}, '
            f'{self._info_topic(camera)}, pose of {self._optical[camera]} in {self._setup.profile.base_frame}'
        )
        return pixel

    def _pixel(self, camera: str, size: tuple[int, ...], stamp: int) -> np.ndarray:
        """Return the pixel (2,) float32 in an image of size (height, width) and time [ns]; ValueError: the reason."""
        if self._kinematics is None:
            raise ValueError(self._no_kinematics)
        if (info := self._infos.get(camera)) is None:
            raise ValueError(f'no camera_info on {self._info_topic(camera)}: record it with the images')
        _check(info, size, self._info_topic(camera))
        rotation, translation = self._base_in(camera, stamp)
        positions = self._joints.between(stamp, JOINT_MAX_AGE)
        if positions is None:
            raise ValueError(f'no joint states on {self._setup.joint_states} before and after the time of the image')
        tool = self._kinematics(positions)[0]
        topic = self._setup.cameras[camera].removesuffix(COMPRESSED)
        rectified = 'rect' in topic.rsplit('/', 1)[-1]
        pixels, ahead = project((rotation @ tool + translation)[None], info, rectified=rectified)
        if not ahead[0]:
            raise ValueError('the tool is behind the camera')
        return pixels[0].astype(np.float32)

    def _base_in(self, camera: str, stamp: int) -> Pose:
        """Return the pose of the arm's base in the optical frame of a camera at a time [ns]."""
        frame = self._optical[camera]
        if not frame:
            raise ValueError(f'the images on {self._setup.cameras[camera]} have no frame_id: set it in the driver')
        return self._frames.pose(self._setup.profile.base_frame, frame, stamp)

    def _info_topic(self, camera: str) -> str:
        return camera_info_topic(self._setup.cameras[camera])

    # ---- messages

    def _load(self, source: str | Path, text: str = '') -> None:
        try:
            self._kinematics = load_kinematics(text or Path(source).read_text(), self._setup.profile)
        except (OSError, ValueError) as error:
            self._no_kinematics = f'{source}: {error}'

    def _describe(self, m: Message, now: int) -> None:
        self._load(m.topic, m.data.data)

    def _info(self, m: Message, now: int) -> None:
        for camera in self._setup.cameras:
            if self._info_topic(camera) == m.topic:
                self._infos[camera] = m.data

    def _moving(self, m: Message, now: int) -> None:
        self._put(m, None)

    def _fixed(self, m: Message, now: int) -> None:
        self._put(m, now)

    def _put(self, m: Message, fixed: int | None) -> None:
        """Take transforms. fixed: time of arrival [ns] of those that hold until others come."""
        for each in m.data.transforms:
            t, q, stamp = each.transform.translation, each.transform.rotation, each.header.stamp
            at = stamp.sec * NS + stamp.nanosec if fixed is None else fixed
            quaternion, place = np.array([q.w, q.x, q.y, q.z]), np.array([t.x, t.y, t.z])
            try:
                self._frames.put(each.header.frame_id, each.child_frame_id, at, quaternion, place, fixed is not None)
            except ValueError as error:
                self._report.bad(m.topic, str(error))


def _check(info: Any, size: tuple[int, ...], topic: str) -> None:
    """Raise ValueError if a camera_info is not finite, or describes images of another size than (height, width)."""
    if not all(np.isfinite(np.asarray(values, float)).all() for values in (info.k, info.d, info.p)):
        raise ValueError(f'{topic} has values that are not finite: calibrate the camera')
    if info.k[0] <= 0 and info.p[0] <= 0:
        return  # the projection reports that it is not calibrated
    across, down = max(info.binning_x, 1), max(info.binning_y, 1)
    described = (info.roi.height or info.height) // down, (info.roi.width or info.width) // across
    if described != size:
        raise ValueError(
            f'{topic} describes images of {described[1]} x {described[0]}, the images have {size[1]} x {size[0]}: '
            'record the camera_info of these images'
        )
