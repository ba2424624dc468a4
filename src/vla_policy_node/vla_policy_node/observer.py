"""The policy node's ears and eyes: subscriptions that only store."""

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image, JointState

from vla_policy_node.intake import Fault, Intake
from vla_policy_node.lockstep import Lockstep
from vla_policy_node.observe.streams import Aligned, Streams
from vla_policy_node.policy_parameters import PolicyParameters
from vla_policy_node.ros import qos
from vla_policy_node.ros.chunk_msg import to_ns
from vla_policy_node.ros.images import COMPRESSED

__all__ = ['Fault', 'Observer']
LOG_EVERY = 5.0  # [s] per stream: bad messages may come at the rate of the sensor


class Observer:
    """Subscribes to the cameras and joints.

    on_image: called after each good image, in the spin thread, with the camera, the stamp [ns] and the pixels
    (height, width, 3) uint8 RGB. lockstep: is told of each message that was taken.
    A camera's topic that ends in /compressed has CompressedImage, as image_transport names it.
    """

    def __init__(
        self,
        node: Node,
        parameters: PolicyParameters,
        on_image: Callable[[str, int, np.ndarray], None],
        lockstep: Lockstep | None = None,
    ) -> None:
        p = parameters
        self._node, self._on_image, self._lockstep = node, on_image, lockstep
        self._logged: dict[str, float] = {}  # stream -> when a fault of it was logged last (monotonic, s)
        simulated = bool(node.get_parameter('use_sim_time').value)
        self._intake = Intake(
            p.profile,
            p.cameras,
            p.joint_topic,
            p.gripper_topic,
            camera_max_age=p.camera_max_age,
            joint_max_age=p.joint_max_age,
            gripper_max_age=p.gripper_max_age,
            real_time=not simulated,
            width=p.image_width,
            height=p.image_height,
            tell=self._log,
        )
        self._intake.streams.simulated = simulated
        self._subscriptions = []
        for topic in [*self._intake.cameras, *self._intake.joints]:
            kind: type = JointState
            if topic in self._intake.cameras:
                kind = CompressedImage if topic.endswith(COMPRESSED) else Image
            take = functools.partial(self._take, topic)
            self._subscriptions.append(node.create_subscription(kind, topic, take, qos.SENSOR))

    @property
    def streams(self) -> Streams:
        return self._intake.streams

    @property
    def frames(self) -> dict[str, str]:
        """Camera -> frame_id of its newest image."""
        return self._intake.frames

    def observe(self, now: int) -> Aligned | Fault:
        """The newest usable set at time now [ns]. A stream whose newest message could not be read is not usable."""
        return self._intake.observe(now)

    def close(self) -> None:
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()
        del self._intake  # it tells this one what is wrong, a circle that would hold the images

    def _take(self, topic: str, msg: Any) -> None:
        stored = self._intake.take(topic, msg, self._node.get_clock().now().nanoseconds)
        if stored and topic in self._intake.cameras:
            self._on_image(stored[0][0], to_ns(msg.header.stamp), stored[0][1])
        if self._lockstep is not None:
            self._lockstep.took(topic, msg.header.stamp)

    def _log(self, stream: str, message: str) -> None:
        if time.monotonic() - self._logged.get(stream, -math.inf) > LOG_EVERY:
            self._logged[stream] = time.monotonic()
            self._node.get_logger().error(message)
