"""The predicted depth of the first camera's image."""

import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import Image

from vla_model.policy import DEPTH, DepthOptions
from vla_model.types import DepthMap
from vla_policy_node.policy.outputs.base import (
    Context,
    DecodedOutput,
    DecodeSettings,
    Owner,
    declare_cached,
    declare_rate,
)
from vla_policy_node.policy.session import Answer
from vla_policy_node.ros import qos
from vla_policy_node.ros.chunk_msg import to_time
from vla_policy_node.ros.image_msg import image_msg
from vla_policy_node.ros.parameters import declare


class DepthOutput(DecodedOutput[DepthMap]):
    """Publishes `~/depth_image`: decoded in steps, or with each chunk of a model that predicts both in one."""

    name, label = DEPTH, 'depth'
    kind, topic, profile = Image, '~/depth_image', qos.SENSOR_OUT

    @classmethod
    def declare(cls, node: Node) -> DecodeSettings:
        rate = declare_rate(node, cls.label, 'depth images')
        steps = declare(node, 'depth_steps', DepthOptions.steps, 'forwards per depth image', low=1, high=256)
        return DecodeSettings(rate, DepthOptions(steps, cached=declare_cached(node)))

    def __init__(self, context: Context, settings: DecodeSettings) -> None:
        super().__init__(context, settings)
        if DEPTH in context.policy.info.predicted:
            self.tasks.clear()

    def publish(self, owner: Owner, result: DepthMap) -> None:
        self._publish(result)

    def delivered(self, answer: Answer) -> None:
        if answer.prediction.depth is not None and self.out.get_subscription_count() > 0:
            self._publish(answer.prediction.depth)

    def _publish(self, found: DepthMap) -> None:
        frame = self.context.frames.get(found.camera, '')
        self.out.publish(image_msg(to_time(found.t_ref), frame, to_pixels(found)))


def to_pixels(found: DepthMap) -> np.ndarray:
    """Return metres (height, width) float32, relative depth uint8, 0 is near, or the codes (rows, columns) uint8."""
    if found.depth is None:
        return np.ascontiguousarray(found.codes, np.uint8)
    if found.metric:
        return np.ascontiguousarray(found.depth, np.float32)
    return np.rint(np.clip(found.depth, 0, 1) * 255).astype(np.uint8)
