"""The arm as it is shown: its measured joints, its tool by forward kinematics, and the chunk that is meant."""

from collections.abc import Callable
from typing import Any

import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_msgs.msg import String

from vla_core.clocks import NS, ahead, tolerance
from vla_core.kinematics.arm import load_kinematics
from vla_core.kinematics.ik import Kinematics
from vla_core.motion.chunk import Refusal
from vla_core.profile import RobotProfile
from vla_msgs.msg import ActionChunk
from vla_policy_node.ros import qos
from vla_policy_node.ros.chunk_msg import stamped_chunk, to_ns
from vla_policy_node.ros.joints import decode_positions
from vla_policy_node.ros.parameters import declare
from vla_policy_node.show.sources import Source
from vla_policy_node.show.tool_path import ToolPath, tool_path

LINGER = 0.5  # [s] that a chunk is shown after its last step was due
CHUNKS = 8  # among which one of the wanted source is looked for
KEEP = 512  # joint states: half a second of those that come a thousand times a second


class Arm:
    """report: is called with a sentence for the user at each fault."""

    def __init__(self, node: Node, profile: RobotProfile, report: Callable[[str], None]) -> None:
        self._profile, self._report, self._node = profile, report, node
        topic = declare(node, 'topics.joint_states', 'joint_states', 'measured joints (JointState)', read_only=True)
        name = declare(
            node,
            'chunk_source',
            'policy',
            'node whose chunks are shown; empty: whoever sent the newest',
            read_only=True,
        )
        self._source = f'{node.get_namespace().rstrip("/")}/{name}' if name and not name.startswith('/') else name
        self.chunk = Source(node, ActionChunk, 'action_chunk', qos.CHUNK, keep=CHUNKS, stamped=True, shared=True)
        self.joints = Source(node, JointState, topic, qos.SENSOR, keep=KEEP, stamped=True, shared=True)
        self.description = Source(node, String, 'robot_description', qos.LATCHED)
        self._text = ''  # of the description that _kinematics is of
        self._kinematics: Kinematics | None = None
        self._path: tuple[Any, ToolPath | None] = (None, None)  # the newest chunk, and the path in it

    @property
    def kinematics(self) -> Kinematics | None:
        """None while there is no usable robot description."""
        message = self.description.newest
        if message is None:
            self._report(
                f'no robot description on {self.description.topic}: start robot_state_publisher or the simulator'
            )
            return None
        if message.data != self._text:
            self._text, self._kinematics, self._path = message.data, None, (None, None)
            try:
                self._kinematics = load_kinematics(message.data, self._profile)
            except ValueError as error:
                self._node.get_logger().error(f'no paths of the tool: {error}')
        return self._kinematics

    def path(self, now: int) -> ToolPath | None:
        """Of the newest chunk of the wanted source, while it means something at time now [ns].

        None: nothing is meant, or it is not known.
        """
        kinematics = self.kinematics
        message = self.chunk.as_of(2**63, lambda m: self._source in ('', m.source))
        if message is None and (other := self.chunk.newest) is not None:
            self._report(f'chunks come from {other.source}, none from {self._source}: set chunk_source to see those')
        if message is None or kinematics is None:
            return None
        if self._path[0] is not message:
            found = None
            if message.horizon > 0:  # 0: a request to stop
                try:
                    found = tool_path(stamped_chunk(message), self._profile, kinematics)
                except Refusal as error:
                    self._report(f'chunk {message.sequence} of {message.source} is not shown: {error.message}')
            self._path = message, found
        found = self._path[1]
        if found is None or now > found.end + LINGER * NS:
            return None
        early = (to_ns(message.header.stamp) - now) / NS
        if early > tolerance(bool(self._node.get_parameter('use_sim_time').value)):
            self._report(ahead(f'chunk {message.sequence} of {message.source}', early))
            return None
        return found

    def tool(self, time: int | None = None) -> tuple[int, np.ndarray, np.ndarray] | None:
        """Stamp [ns], position (3,) [m] and rotation (3, 3) of the tool in the base frame as it was measured last,
        not after time [ns] if that is given; None: not known."""
        kinematics, names = self.kinematics, self._profile.joint_names
        ours = set(names)
        message = self.joints.as_of(2**63 if time is None else time, lambda m: ours.issubset(m.name))
        if kinematics is None or message is None:
            return None
        try:
            q = decode_positions(message, names, self.joints.topic)
        except ValueError as error:
            self._report(str(error))
            return None
        position, rotation, _ = kinematics(q)
        return to_ns(message.header.stamp), position, rotation
