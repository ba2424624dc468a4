"""The parameters of the collision monitor: margins, and the space in which the arm may be."""

from pathlib import Path
from typing import TYPE_CHECKING

from ament_index_python import get_search_paths
from rclpy.node import Node

from vla_core.profile import RobotProfile
from vla_policy_node.ros.parameters import declare, refuse_unknown

if TYPE_CHECKING:  # it loads Pinocchio
    from vla_core.kinematics.collision_monitor import CollisionMonitor

_ANYWHERE = [0.0]  # ROS has no empty list of numbers as a default


def make_collision_monitor(node: Node, profile: RobotProfile, urdf: str) -> 'CollisionMonitor':
    """Return the collision monitor of the `collision_monitor.*` parameters. Raises ValueError naming a wrong one."""
    from vla_core.kinematics.collision_monitor import CollisionMonitor, CollisionMonitorConfig

    default = CollisionMonitorConfig()

    def length(name: str, about: str, high: float = 0.5) -> float:
        return declare(node, f'collision_monitor.{name}', getattr(default, name), f'{about} [m]', low=0.0, high=high)

    def numbers(name: str, about: str) -> list[float]:
        values = [
            float(v)
            for v in declare(node, f'collision_monitor.{name}', _ANYWHERE, about + ' [m]; [] or one number: none')
        ]
        return [] if len(values) == 1 else values

    box = numbers('link_box', 'box for every moving link in the base frame: lower x, y, z, upper x, y, z')
    planes = numbers('planes', 'half-spaces in the base frame, x, y, z, d each: tool and links stay where n p >= d')
    if len(planes) % 4:
        raise ValueError(
            f'collision_monitor.planes has {len(planes)} numbers: must be four for each plane, x, y, z and d'
        )
    config = CollisionMonitorConfig(
        self_collision=declare(
            node, 'collision_monitor.self_collision', True, 'whether links keep a distance from one another'
        ),
        self_margin=length('self_margin', 'distance that links keep from one another'),
        obstacle_margin=length('obstacle_margin', 'distance that links keep from obstacles'),
        planes=tuple(tuple(planes[i : i + 4]) for i in range(0, len(planes), 4)),  # type: ignore[arg-type, misc]
        link_box=tuple(box) or None,  # type: ignore[arg-type]
        workspace_margin=length('workspace_margin', 'distance that the arm keeps from planes and sides of boxes'),
        resolution=declare(
            node, 'collision_monitor.resolution', default.resolution,
            'largest motion of any point of the arm between two distance checks near an obstacle [m]',
            low=0.001, high=0.1,
        ),
    )  # fmt: skip
    srdf = declare(
        node, 'collision_monitor.srdf_file', '', 'SRDF file with the pairs of links that may touch; empty: none'
    )
    refuse_unknown(node, 'collision_monitor')
    try:
        text = Path(srdf).read_text() if srdf else ''
    except OSError as error:
        raise ValueError(f'collision_monitor.srdf_file: {error}') from None
    return CollisionMonitor.from_urdf(urdf, profile, config, text, [Path(p, 'share') for p in get_search_paths()])
