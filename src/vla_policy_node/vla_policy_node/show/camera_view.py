"""One camera, and where the tool's way lies in its images."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from vla_core.kinematics.frames import FrameError
from vla_core.kinematics.projection import project
from vla_policy_node.ros import qos
from vla_policy_node.ros.camera_info import camera_info_topic
from vla_policy_node.ros.images import COMPRESSED
from vla_policy_node.ros.parameters import declare
from vla_policy_node.show.arm import Arm
from vla_policy_node.show.sources import Source
from vla_policy_node.show.tf import Tf
from vla_policy_node.show.tool_path import Colour

IMAGES = 96  # that are kept: an image may be imagined only after the time that it shows
TRIED = 8  # images that a trace may belong to: joints and transforms come a little later than images


def declare_cameras(node: Node) -> dict[str, str]:
    """Return camera -> image topic of the robot profile. Raises ValueError when their numbers differ or are zero."""
    names = declare(
        node, 'cameras', Parameter.Type.STRING_ARRAY, 'names of the cameras (robot profile)', read_only=True
    )
    topics = declare(
        node, 'camera_topics', Parameter.Type.STRING_ARRAY, 'image topic of each camera (robot profile)', read_only=True
    )
    if not names or len(names) != len(topics):
        raise ValueError(f'cameras and camera_topics must have one entry each, got {list(names)} and {list(topics)}')
    return dict(zip(names, topics, strict=True))


@dataclass(frozen=True)
class Trace:
    """The tool's way in one image. key: what it is made of; problem: why it is empty, one sentence."""

    image: Any  # sensor_msgs/Image, not decoded
    pixels: np.ndarray  # (n, 2) column, row: the tool now, then each step that is still due
    colours: list[Colour]  # n - 1
    key: Any
    problem: str = ''


class CameraView:
    """camera: its name. topic: of its images."""

    def __init__(self, node: Node, camera: str, topic: str) -> None:
        self.camera = camera
        self._rectified = 'rect' in topic.removesuffix(COMPRESSED).rsplit('/', 1)[-1]
        kind: Any = CompressedImage if topic.endswith(COMPRESSED) else Image
        self.images = Source(node, kind, topic, qos.SENSOR, keep=IMAGES, stamped=True)
        self._info = Source(node, CameraInfo, camera_info_topic(topic), qos.SENSOR)
        self._tf = Tf(node)
        self.sources: list[Any] = [self.images, self._info, self._tf]

    def trace(self, arm: Arm, base: str, now: int) -> Trace | None:
        """In the newest image for whose time the joints and the pose of the camera are known; where there is none, in
        the newest, with the problem. None: there is no image. base: the frame of the arm; now [ns]."""
        stamps = self.images.stamps
        if not stamps:
            return None
        problem = ''
        for stamp in reversed(stamps[-TRIED:]):
            try:
                return self._trace_in(stamp, arm, base, now)
            except (FrameError, ValueError) as error:
                problem = problem or str(error)
        return Trace(self.images.newest, np.zeros((0, 2)), [], (stamps[-1], problem), problem)

    def _trace_in(self, stamp: int, arm: Arm, base: str, now: int) -> Trace:
        image, info = self.images.nearest(stamp), self._info.newest
        if info is None:
            raise ValueError(f'no calibration on {self._info.topic}: start the camera driver with its camera_info')
        rotation, translation = self._tf.frames.pose(base, image.header.frame_id, stamp)
        tool = arm.tool(stamp)
        if tool is None:
            raise ValueError(f'no joint states on {arm.joints.topic} of the time of the image, or no robot description')
        path = arm.path(now)
        points, colours = [tool[1]], []
        if path is not None:
            still = np.flatnonzero(path.due > stamp)
            points += list(path.positions[still])
            colours = [path.colours[i] for i in still]
        pixels, ahead = project(np.array(points) @ rotation.T + translation, info, rectified=self._rectified)
        # A way that goes behind the camera ends there.
        count = len(points) if ahead.all() else int(np.argmin(ahead))
        # One picture for each image: a new chunk in an old image would look like news from the camera.
        return Trace(image, pixels[:count], colours[: max(count - 1, 0)], (stamp, ''))
