"""The grounding points: where in each camera's image the objects are that the instruction names."""

import array
from typing import Any

import numpy as np

from vla_model.observation import unsquared
from vla_model.policy import POINTS
from vla_msgs.msg import VisualTrace
from vla_policy_node.policy.outputs.base import Context, Output
from vla_policy_node.policy.session import Answer
from vla_policy_node.ros import qos
from vla_policy_node.ros.chunk_msg import to_time


class PointsOutput(Output):
    """Publishes `~/pointed` for each camera with each chunk, in pixels of the camera's image."""

    name = POINTS

    def __init__(self, context: Context, settings: Any) -> None:
        super().__init__(context, settings)
        self._topic = self.publisher(VisualTrace, '~/pointed', qos.STATUS)

    def delivered(self, answer: Answer) -> None:
        if self._topic.get_subscription_count() > 0:
            for camera, points in zip(self.context.policy.info.cameras, answer.prediction.points, strict=True):
                self._publish(answer.aligned.t_ref, camera, points, answer.aligned.values[camera].shape)

    def _publish(self, t_ref: int, camera: str, points: np.ndarray, shape: tuple[int, ...]) -> None:
        """points: (points, 2) shares of the square view; shape: of the camera's image."""
        height, width = shape[:2]
        msg = VisualTrace(kind=VisualTrace.NAMED, camera=camera, width=width, height=height)
        msg.header.stamp, msg.header.frame_id = to_time(t_ref), self.context.frames.get(camera, '')
        msg.u, msg.v = (array.array('f', column) for column in unsquared(points, height, width).T)
        self._topic.publish(msg)
