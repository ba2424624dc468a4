"""The subscriptions of the policy node to cameras and joints: they only store."""

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from rclpy.node import Node
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage, Image, JointState

from vla_core.clocks import SimulatedClock
from vla_core.observe.streams import Aligned
from vla_msgs.msg import PolicyStatus
from vla_policy_node.policy.intake import Fault, Intake
from vla_policy_node.policy.lockstep import Lockstep
from vla_policy_node.policy.parameters import PolicyParameters
from vla_policy_node.ros import qos
from vla_policy_node.ros.chunk_msg import to_ns
from vla_policy_node.ros.images import COMPRESSED
from vla_policy_node.ros.pending import pending

LOG_EVERY = 5.0  # [s] per stream: bad messages may come at the rate of the sensor


class Observer:
    """Stores the messages of cameras and joints in `intake`, from `subscribe` to `close`.

    A camera's topic that ends in /compressed has CompressedImage, as image_transport names it.
    """

    def __init__(self, node: Node, p: PolicyParameters, clock: SimulatedClock, lockstep: Lockstep | None) -> None:
        """clock: judges /clock where the node uses simulated time. lockstep: is given each message that was taken."""
        self._node, self._clock, self._lockstep = node, clock, lockstep
        self._logged: dict[str, float] = {}  # stream -> when a fault of it was logged last (monotonic, s)
        self._subscriptions: dict[str, Subscription] = {}  # by topic
        simulated = bool(node.get_parameter('use_sim_time').value)
        self.intake = Intake(
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
            report=self._log,
        )
        self.intake.streams.simulated = simulated

    def subscribe(
        self, on_image: Callable[[str, int, np.ndarray], None], on_settled: Callable[[], None] = lambda: None
    ) -> None:
        """Start to store. on_image: called in the spin thread after each good image.

        It gets the camera, the stamp [ns] and the pixels (height, width, 3) uint8 RGB. on_settled: called there, too,
        after the joint state that a set waited for.
        """
        self._on_image, self._on_settled = on_image, on_settled
        for topic in [*self.intake.cameras, *self.intake.joints]:
            kind, profile, take = JointState, qos.HISTORY, self._take_all
            if topic in self.intake.cameras:
                kind, profile = CompressedImage if topic.endswith(COMPRESSED) else Image, qos.SENSOR
                take = self._take
            callback = functools.partial(take, topic)
            self._subscriptions[topic] = self._node.create_subscription(kind, topic, callback, profile)

    def observe(self, now: int) -> Aligned | Fault:
        """The newest usable set at time now [ns]. There is none while /clock stands still, see Intake, too."""
        if self._node.get_parameter('use_sim_time').value:
            problem = self._clock.look(now, time.monotonic())
            if problem and (now == 0 or self._lockstep is None):
                return Fault(PolicyStatus.CLOCK_NOT_RUNNING, problem)
        return self.intake.observe(now)

    def usable(self) -> Aligned | None:
        """The newest usable set now, or None."""
        found = self.observe(self._node.get_clock().now().nanoseconds)
        return found if isinstance(found, Aligned) else None

    def image_size(self, camera: str) -> tuple[int, ...] | None:
        """Height and width of a camera's image in the newest usable set [pixel]; None without one."""
        found = self.usable()
        return None if found is None else found.values[camera].shape[:2]

    def close(self) -> None:
        for subscription in self._subscriptions.values():
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()
        del self.intake  # it calls this object, a circle that would hold the images

    def _take_all(self, topic: str, msg: Any) -> None:
        """Take a joint state and those that wait behind it."""
        self._take(topic, msg)
        for later in pending(self._subscriptions[topic]):
            self._take(topic, later)

    def _take(self, topic: str, msg: Any) -> None:
        stored = self.intake.take(topic, msg, self._node.get_clock().now().nanoseconds)
        if stored and topic in self.intake.cameras:
            self._on_image(stored[0][0], to_ns(msg.header.stamp), stored[0][1])
        elif (awaited := self.intake.streams.awaited) is not None and to_ns(msg.header.stamp) >= awaited:
            self._on_settled()
        if self._lockstep is not None:
            self._lockstep.took(topic, msg.header.stamp)

    def _log(self, stream: str, message: str) -> None:
        if time.monotonic() - self._logged.get(stream, -math.inf) > LOG_EVERY:
            self._logged[stream] = time.monotonic()
            self._node.get_logger().error(message)
