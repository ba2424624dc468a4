"""The predicted image: what the model expects the first camera to see when the chunk ends."""

from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image

from vla_model.policy import IMAGE, ImageOptions, Job
from vla_model.types import Observation, PredictedImage
from vla_msgs.msg import PolicyStatus
from vla_policy_node.policy.outputs.base import (
    Context,
    DecodedOutput,
    DecodeSettings,
    Owner,
    declare_cached,
    declare_rate,
)
from vla_policy_node.policy.outputs.prediction_error import PredictionErrors
from vla_policy_node.ros import qos
from vla_policy_node.ros.camera_info import camera_info_topic, squared
from vla_policy_node.ros.chunk_msg import to_time
from vla_policy_node.ros.image_msg import image_msg
from vla_policy_node.ros.parameters import declare


class ImageOutput(DecodedOutput[PredictedImage]):
    """Publishes `~/predicted_image` with its `~/camera_info`, and measures the prediction error of each image."""

    name, label = IMAGE, 'imagine'
    kind, topic, profile = Image, '~/predicted_image', qos.SENSOR_OUT

    @classmethod
    def declare(cls, node: Node) -> DecodeSettings:
        rate = declare_rate(node, cls.label, 'predicted images')
        steps = declare(node, 'imagine_steps', 18, 'forwards per predicted image', low=1, high=256)
        return DecodeSettings(rate, ImageOptions(steps, cached=declare_cached(node)))

    def __init__(self, context: Context, settings: DecodeSettings) -> None:
        super().__init__(context, settings)
        info = context.policy.info
        self._camera, self._horizon = info.cameras[0], round(info.horizon * info.dt * 1e9)
        self._infos = self.publisher(CameraInfo, '~/camera_info', qos.SENSOR_OUT)
        self._info_topic = camera_info_topic(context.camera_topics[self._camera])
        self._info_source: Any = None  # subscription to the camera's own, while `~/camera_info` has a subscriber
        self._info: CameraInfo | None = None  # the camera's newest
        self._errors = PredictionErrors(context.session)
        if self.tasks:
            self.tasks.append(self._errors.task(self.log))

    def start(self, seen: Observation, options: ImageOptions) -> Job[PredictedImage]:
        job = super().start(seen, options)
        self._errors.begin(seen.t_ref, seen.t_ref + self._horizon, seen.images[self._camera])
        return job

    def publish(self, owner: Owner, result: PredictedImage) -> None:
        frame = self.context.frames.get(self._camera, '')
        self.out.publish(image_msg(to_time(result.due), frame, result.image))
        self._publish_info(result, frame)
        self._errors.predicted(owner, result)

    def _publish_info(self, shown: PredictedImage, frame: str) -> None:
        if self._info is None or self._infos.get_subscription_count() == 0:
            return
        try:
            info = squared(self._info, shown.image.shape[0])
        except ValueError as error:
            self.node.get_logger().warning(f'{self._info_topic}: {error}', throttle_duration_sec=30.0)
            return
        info.header.stamp, info.header.frame_id = to_time(shown.due), frame
        self._infos.publish(info)

    def image(self, camera: str, stamp: int, pixels: Any) -> None:
        if camera == self._camera:
            self._errors.observed(stamp, pixels)

    def tick(self) -> None:
        wanted = self._infos.get_subscription_count() > 0
        if wanted and self._info_source is None:
            self._info_source = self.node.create_subscription(CameraInfo, self._info_topic, self._on_info, qos.SENSOR)
        elif not wanted:
            self._unsubscribe()

    def _on_info(self, msg: CameraInfo) -> None:
        self._info = msg

    def _unsubscribe(self) -> None:
        if self._info_source is not None:
            self.node.destroy_subscription(self._info_source)
            self._info_source = None

    def forget(self) -> None:
        self._errors.clear()

    def fill(self, msg: PolicyStatus) -> None:
        stamp, msg.surprise = self._errors.newest
        msg.surprise_stamp = to_time(stamp)

    def diagnose(self, act: float) -> list[DiagnosticStatus]:
        found = super().diagnose(act)
        if self.tasks:
            found.append(self.diagnosis(self.tasks[-1], act, self._errors.values()))
        return found

    def close(self) -> None:
        super().close()
        self._unsubscribe()
