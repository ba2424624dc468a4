"""A node beside the policy that shows what it intends: text, paths, trajectories, traces and pictures for RViz.

It only subscribes, in a process of its own, so that nothing here can make an action late. Nothing is subscribed to,
decoded or computed for a topic without subscriber.
"""

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from nav_msgs.msg import Path
from rclpy.clock import Clock, ClockType
from sensor_msgs.msg import Image
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory
from visualization_msgs.msg import Marker, MarkerArray

from vla_core.clocks import NS
from vla_msgs.msg import ExecutorStatus, PolicyStatus, VisualTrace
from vla_policy_node.ros import qos
from vla_policy_node.ros.chunk_msg import to_ns, to_time
from vla_policy_node.ros.image_msg import image_msg
from vla_policy_node.ros.images import decode_image
from vla_policy_node.ros.optional import message_type
from vla_policy_node.ros.parameters import declare, declare_profile
from vla_policy_node.ros.qos_mismatch import ReportsQosMismatch
from vla_policy_node.ros.run import run
from vla_policy_node.show import messages
from vla_policy_node.show.arm import Arm
from vla_policy_node.show.camera_view import CameraView, declare_cameras
from vla_policy_node.show.executed import Executed
from vla_policy_node.show.outputs import LOOK_EVERY, Output
from vla_policy_node.show.pair import Pairing
from vla_policy_node.show.pictures import draw_trace, side_by_side
from vla_policy_node.show.sources import Source
from vla_policy_node.show.words import SCENE, SCREEN, words

TELL_EVERY = 10.0  # [s] between two logs of the same sentence
POINTED_KEPT = NS  # for which the image shows places of before it was taken


class ShowNode(ReportsQosMismatch):
    """All in one thread: subscriptions store bytes, one timer for each output that has a subscriber."""

    def __init__(self, name: str = 'show', **kwargs) -> None:
        super().__init__(name, **kwargs)
        self._profile = declare_profile(self)
        self._told: dict[str, float] = {}  # sentence -> when it was logged last (monotonic, s)
        self._frame = self._profile.base_frame
        arm = self._arm = Arm(self, self._profile, self._tell)
        self._status = Source(self, PolicyStatus, 'policy/status', qos.STATUS)
        self._plan = Source(self, String, 'policy/plan_text', qos.LATCHED)
        self._executor = Source(self, ExecutorStatus, 'executor/status', qos.LATCHED)
        cameras = declare_cameras(self)
        first = next(iter(cameras))
        chosen = declare(
            self,
            'trace_camera',
            first,
            'camera whose image the trace is drawn in',
            choices=tuple(cameras),
            read_only=True,
        )
        self._view = CameraView(self, chosen, cameras[chosen])
        # The one that images are imagined of.
        self._first = self._view if chosen == first else CameraView(self, first, cameras[first])
        self._pointed = Source(self, VisualTrace, 'policy/pointed', qos.STATUS, keep=16, stamped=True, shared=True)
        self._pair = Pairing()
        self._predicted = Source(self, Image, 'policy/predicted_image', qos.SENSOR, stamped=True)
        seconds = declare(
            self,
            'executed_seconds',
            30.0,
            'how long the executed path is kept [s]',
            low=1.0,
            high=600.0,
            read_only=True,
        )
        self._executed = Executed(self._frame, seconds, self._profile.tool_speed)
        self._place = declare(
            self, 'text_position', [0.3, -1.0, 0.6], 'middle of ~/text, x, y, z in the base frame [m]', read_only=True
        )
        self._height = declare(
            self, 'text_height', 0.025, 'of a small letter of ~/text [m]', low=0.005, high=0.5, read_only=True
        )
        if len(self._place) != 3 or not np.isfinite(self._place).all():
            raise ValueError(f'text_position must be three numbers, got {list(self._place)}')
        self._shown: dict[str, Any] = {}  # output -> what its newest message was made of
        intent = [arm.chunk, arm.description]
        trace = [*intent, arm.joints, *self._view.sources]
        text = [self._status, self._plan, self._executor]
        self._outputs = [
            self._output('text', Marker, 2.0, 'plan, progress and states beside the base', self._make_text, text),
            self._output('predicted_path', Path, 5.0, 'way of the tool in the chunk', self._make_path, intent),
            self._output('predicted_markers', MarkerArray, 5.0, 'the same by confidence', self._make_markers, intent),
            self._output('trajectory', JointTrajectory, 10.0, 'the chunk', self._make_trajectory, intent),
            self._output(
                'executed_path', Path, 5.0, 'way that the tool took', self._make_executed,
                [arm.joints, arm.description], self._executed.clear,
            ),
            self._output('trace', VisualTrace, 5.0, 'way of the tool in an image', self._make_trace, trace),
            self._output(
                'trace_image', Image, 5.0, 'the same, drawn', self._make_trace_image, [*trace, self._pointed],
                sensor=True,
            ),
            self._output(
                'predicted_and_observed', Image, 2.0, 'what was imagined beside what is seen', self._make_pair,
                [self._predicted, self._first.images, self._status], self._pair.clear, sensor=True,
            ),
        ]  # fmt: skip
        self._add_optional(text, intent)
        self.create_timer(LOOK_EVERY, self._look, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _output(
        self, name: str, kind: Any, rate: float, about: str, make: Any, sources: list[Source],
        forget: Any = None, *, sensor: bool = False,
    ) -> Output:  # fmt: skip
        def forgotten() -> None:
            self._shown.pop(name, None)
            if forget is not None:
                forget()

        profile = qos.SENSOR_OUT if sensor else qos.STATUS
        return Output(self, name, kind, profile, rate, about, make, sources, forgotten)

    def _add_optional(self, text: list[Source], intent: list[Source]) -> None:
        """Outputs of message packages that are not everywhere."""
        for name, package, kind, rate, about, make, sources in (
            ('overlay', 'rviz_2d_overlay_msgs', 'OverlayText', 2.0, 'the text on the screen', self._make_overlay, text),
            (
                'display_trajectory', 'moveit_msgs', 'DisplayTrajectory', 2.0, 'the chunk for MoveIt',
                self._make_display, [*intent, self._arm.joints],
            ),
        ):  # fmt: skip
            try:
                found = message_type(package, 'msg', kind, f'~/{name}')
            except ValueError:
                self.get_logger().info(f'no ~/{name}: {package} is not installed')
                continue
            self._outputs.append(self._output(name, found, rate, about, functools.partial(make, found), sources))

    def _look(self) -> None:
        for output in self._outputs:
            output.look()

    def _tell(self, sentence: str) -> None:
        if time.monotonic() - self._told.get(sentence, -math.inf) > TELL_EVERY:
            self._told = {s: t for s, t in self._told.items() if time.monotonic() - t < TELL_EVERY}
            self._told[sentence] = time.monotonic()
            self.get_logger().warning(sentence)

    def _now(self) -> int:
        return self.get_clock().now().nanoseconds

    def _stamp(self) -> Time:
        return self.get_clock().now().to_msg()

    def _once(self, name: str, made_of: Any) -> bool:
        """Whether this output has not shown that yet."""
        new = self._shown.get(name, self) != made_of
        self._shown[name] = made_of
        return new

    # ---- one method for each output: its next message, or None

    def _text(self, width: int) -> str:
        plan = self._plan.newest
        ages = self._status.age, self._executor.age
        return words(self._status.newest, plan.data if plan is not None else '', self._executor.newest, width, ages)

    def _make_text(self) -> Marker:
        return messages.text_marker(self._stamp(), self._frame, self._text(SCENE), self._place, self._height)

    def _make_overlay(self, kind: Any) -> Any:
        return messages.overlay_text(kind, self._text(SCREEN))

    def _make_path(self) -> Path | None:
        path = self._arm.path(self._now())
        if not self._once('predicted_path', path):
            return None
        return messages.predicted_path(path, self._stamp(), self._frame)

    def _make_markers(self) -> MarkerArray | None:
        path = self._arm.path(self._now())
        if not self._once('predicted_markers', path):
            return None
        return messages.predicted_markers(path, self._stamp(), self._frame)

    def _make_trajectory(self) -> JointTrajectory | None:
        path = self._arm.path(self._now())
        if path is None or not self._once('trajectory', path):
            return None
        return messages.trajectory(path, self._profile.joint_names, self._frame)

    def _make_display(self, kind: Any) -> Any:
        path, joints = self._arm.path(self._now()), self._arm.joints.newest
        if path is None or joints is None or not self._once('display_trajectory', path):
            return None
        part = message_type('moveit_msgs', 'msg', 'RobotTrajectory', '~/display_trajectory')()
        part.joint_trajectory = messages.trajectory(path, self._profile.joint_names, self._frame)
        msg = kind(model_id=self._profile.name, trajectory=[part])
        msg.trajectory_start.joint_state = joints
        return msg

    def _make_executed(self) -> Path | None:
        tool = self._arm.tool()
        if tool is None or not self._executed.add(*tool):
            return None
        return messages.path(to_time(tool[0]), self._frame, self._executed.poses)

    def _make_trace(self) -> VisualTrace | None:
        found = self._view.trace(self._arm, self._frame, self._now())
        if found is None or not self._once('trace', found.key):
            return None
        if found.problem:
            self._tell(f'no trace: {found.problem}')
            return None
        size = found.image.width, found.image.height
        return messages.visual_trace(found.image.header, self._view.camera, size, found.pixels)

    def _make_trace_image(self) -> Image | None:
        found = self._view.trace(self._arm, self._frame, self._now())
        if found is None or not self._once('trace_image', found.key):
            return None
        try:
            pixels = decode_image(found.image, self._view.images.topic)
        except ValueError as error:
            self._tell(str(error))
            return None
        header = found.image.header
        named = messages.pixels(self._pointed.as_of(to_ns(header.stamp), self._is_recent(to_ns(header.stamp))))
        drawn = draw_trace(pixels, found.pixels, found.colours, found.problem, named)
        return image_msg(header.stamp, header.frame_id, drawn)

    def _is_recent(self, stamp: int) -> Callable[[VisualTrace], bool]:
        """Of places: whether they are in the camera of the trace, and not from long before stamp [ns]."""
        return lambda msg: msg.camera == self._view.camera and stamp - to_ns(msg.header.stamp) < POINTED_KEPT

    def _make_pair(self) -> Image | None:
        imagined, status = self._predicted.newest, self._status.newest
        if imagined is None or not self._first.images.stamps:
            return None
        due = to_ns(imagined.header.stamp)
        seen = self._pair.choose(due, self._first.images)
        surprise = (0, math.nan) if status is None else (to_ns(status.surprise_stamp), status.surprise)
        stamp = to_ns(seen.header.stamp)
        if not self._once('predicted_and_observed', (due, stamp, surprise[0], math.isnan(surprise[1]))):
            return None
        try:
            left = decode_image(imagined, self._predicted.topic)
            right = decode_image(seen, self._first.images.topic)
        except ValueError as error:
            self._tell(str(error))
            return None
        words = f'imagined for {due * 1e-9:.2f} s', f'seen at {stamp * 1e-9:.2f} s'
        picture = side_by_side(left, right, *words, self._pair.verdict(due, surprise))
        return image_msg(seen.header.stamp, seen.header.frame_id, picture)


def main(args: list[str] | None = None) -> None:
    run(ShowNode, args)


if __name__ == '__main__':
    main()
