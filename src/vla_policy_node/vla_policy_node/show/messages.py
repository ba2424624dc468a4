"""Messages for RViz, of what is computed elsewhere. Every number becomes a plain Python one: rclpy checks fields."""

import array
import html
from collections.abc import Sequence
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point, PoseStamped
from nav_msgs.msg import Path
from std_msgs.msg import ColorRGBA, Header
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint
from visualization_msgs.msg import Marker, MarkerArray

from vla_core.kinematics.ik import rotation_vector
from vla_msgs.msg import VisualTrace
from vla_policy_node.ros.chunk_msg import to_duration, to_time
from vla_policy_node.show.tool_path import ToolPath

SHADOW = 0.45  # opacity of what does not move the arm
SPACE = 0.5  # width of a space in a text, of the height of a small letter
LINE, BORDER = 18, 8  # [pixel] height of a line on the screen, of which the letters take 17; below the last one


def pose_stamped(stamp: int, frame: str, position: np.ndarray, rotation: np.ndarray) -> PoseStamped:
    """stamp [ns], position (3,) [m], rotation (3, 3)."""
    msg = PoseStamped(header=Header(stamp=to_time(stamp), frame_id=frame))
    p, o = msg.pose.position, msg.pose.orientation
    p.x, p.y, p.z = (float(v) for v in position)
    turn = rotation_vector(rotation)
    angle = float(np.linalg.norm(turn))
    o.x, o.y, o.z = (float(v) for v in turn * 0.5 * np.sinc(angle / (2 * np.pi)))
    o.w = float(np.cos(angle / 2))
    return msg


def path(stamp: Time, frame: str, poses: Sequence[PoseStamped]) -> Path:
    return Path(header=Header(stamp=stamp, frame_id=frame), poses=list(poses))


def predicted_path(p: ToolPath | None, now: Time, frame: str) -> Path:
    """Of the tool; each pose has the time at which it is due. None: nothing is intended."""
    if p is None:
        return path(now, frame, [])
    poses = [
        pose_stamped(int(due), frame, at, turned)
        for due, at, turned in zip(p.due, p.positions, p.rotations, strict=True)
    ]
    return path(to_time(p.chunk.t_ref), frame, poses)


def predicted_markers(p: ToolPath | None, now: Time, frame: str) -> MarkerArray:
    """A line and a ball for each step, coloured by confidence, faint when the chunk does not move the arm."""
    if p is None:
        return MarkerArray(markers=[Marker(header=Header(stamp=now, frame_id=frame), action=Marker.DELETEALL)])
    points = [Point(x=float(x), y=float(y), z=float(z)) for x, y, z in p.positions]
    opaque = SHADOW if p.chunk.shadow else 1.0
    colours = [ColorRGBA(r=float(r), g=float(g), b=float(b), a=opaque) for r, g, b in p.colours]
    markers = []
    for number, (kind, size) in enumerate(((Marker.LINE_STRIP, 0.006), (Marker.SPHERE_LIST, 0.016))):
        marker = Marker(ns='prediction', id=number, type=kind, action=Marker.ADD, points=points, colors=colours)
        marker.header = Header(stamp=to_time(p.chunk.t_ref), frame_id=frame)
        marker.pose.orientation.w = 1.0
        marker.scale.x = marker.scale.y = marker.scale.z = size
        markers.append(marker)
    return MarkerArray(markers=markers)


def text_marker(stamp: Time, frame: str, text: str, position: Sequence[float], height: float) -> Marker:
    """height of a small letter [m], position of the middle (3,) [m].

    A line of RViz is twice as high, and letters are about as wide as `height`. The width of a space is scale.x [m];
    without it every space is as wide as a letter of 1 m height.
    """
    marker = Marker(ns='policy', id=0, type=Marker.TEXT_VIEW_FACING, action=Marker.ADD, text=text)
    marker.header = Header(stamp=stamp, frame_id=frame)
    marker.pose.position.x, marker.pose.position.y, marker.pose.position.z = (float(v) for v in position)
    marker.pose.orientation.w = 1.0
    marker.scale.x, marker.scale.z = SPACE * float(height), float(height)
    marker.color = ColorRGBA(r=1.0, g=1.0, b=1.0, a=1.0)
    return marker


def overlay_text(kind: Any, text: str) -> Any:
    """Text at the top left of the screen, in a box as high as its lines. kind: the type OverlayText.

    The display of rviz_2d_overlay_plugins takes text as HTML: unescaped, "<red>" is not shown.
    """
    height = LINE * len(text.split('\n')) + BORDER
    msg = kind(action=kind.ADD, width=620, height=height, horizontal_distance=10, vertical_distance=10, text_size=11.0)
    msg.horizontal_alignment, msg.vertical_alignment = kind.LEFT, kind.TOP
    msg.font, msg.text = 'DejaVu Sans Mono', html.escape(text, quote=False)
    msg.fg_color.r = msg.fg_color.g = msg.fg_color.b = msg.fg_color.a = 1.0
    msg.bg_color.a = 0.5
    return msg


def trajectory(p: ToolPath, names: Sequence[str], frame: str) -> JointTrajectory:
    """The chunk as it stands: stamped with the time of its observation, step i due (i + 1) dt after it."""
    msg = JointTrajectory(header=Header(stamp=to_time(p.chunk.t_ref), frame_id=frame), joint_names=list(names))
    msg.points = [
        JointTrajectoryPoint(
            positions=array.array('d', q), time_from_start=to_duration((int(due) - p.chunk.t_ref) * 1e-9)
        )
        for due, q in zip(p.due, p.joints, strict=True)
    ]
    return msg


def visual_trace(header: Header, camera: str, size: tuple[int, int], pixels: np.ndarray) -> VisualTrace:
    """header: of the image; size: its width and height [pixel]; pixels (n, 2), the first is now."""
    msg = VisualTrace(header=header, kind=VisualTrace.PREDICTED, camera=camera, width=size[0], height=size[1])
    msg.u, msg.v = (array.array('f', column) for column in np.asarray(pixels, np.float32).reshape(-1, 2).T)
    return msg


def pixels(msg: VisualTrace | None) -> np.ndarray:
    """(n, 2) column and row [pixel] of the points of a message; None: no points."""
    return np.zeros((0, 2)) if msg is None else np.column_stack((msg.u, msg.v))
