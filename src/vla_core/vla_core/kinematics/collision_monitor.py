"""The collision monitor: distances of the arm to itself, obstacles and the workspace, and positions of its tool.

It uses Pinocchio on the robot's URDF, and coal for distances. Meshes of the robot are replaced by their convex hulls,
which contain them and are much faster to measure.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla_core.kinematics.collision_model import (
    base_placement,
    coal,
    collision_model,
    joint_reach,
    link_name,
    mesh_shape,
    pinocchio,
    tool_chain,
)
from vla_core.kinematics.tool import TOOL
from vla_core.motion.states import Hold
from vla_core.profile import RobotProfile

_TOOL = 'tool'
_WORKSPACE = 'workspace '


@dataclass(frozen=True)
class CollisionMonitorConfig:
    """Settings of the collision monitor, in the robot profile's base frame. Raises ValueError for one out of range."""

    self_collision: bool = True
    self_margin: float = 0.01  # [m] distance between two links
    obstacle_margin: float = 0.02  # [m] distance of links to obstacles
    planes: tuple[tuple[float, float, float, float], ...] = ()  # (x, y, z, d): tool and links stay where n p >= d [m]
    link_box: tuple[float, float, float, float, float, float] | None = (
        None  # moving links: lower x, y, z, upper x, y, z
    )
    workspace_margin: float = 0.0  # [m] distance to planes and sides of boxes
    resolution: float = 0.005  # [m] no point of the arm moves further between two checks near an obstacle

    def __post_init__(self) -> None:
        for name in ('self_margin', 'obstacle_margin', 'workspace_margin'):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f'collision monitor {name} must be 0 to 1 m, got {getattr(self, name)}')
        if not 0.001 <= self.resolution <= 0.1:
            raise ValueError(f'collision monitor resolution must be 0.001 to 0.1 m, got {self.resolution}')
        for plane in self.planes:
            if len(plane) != 4 or not np.isfinite(plane).all() or not np.linalg.norm(plane[:3]) > 1e-6:
                raise ValueError(
                    f'collision monitor plane {plane}: must be four numbers, a normal x, y, z and a distance d'
                )
        box = self.link_box
        if box is not None and (len(box) != 6 or not (np.array(box[:3]) < np.array(box[3:])).all()):
            raise ValueError(f'collision monitor link_box {box}: must be lower x, y, z, then upper x, y, z')


@dataclass(frozen=True)
class Obstacle:
    """An object to keep away from, at a pose in the base frame. Exactly one of box, sphere and mesh is given."""

    name: str
    position: np.ndarray  # (3,) [m] of its centre or origin
    rotation: np.ndarray  # (3, 3)
    box: tuple[float, float, float] | None = None  # [m] full lengths
    sphere: float | None = None  # [m] radius
    mesh: tuple[np.ndarray, np.ndarray] | None = None  # vertices (n, 3) [m], triangles (m, 3) of indices


class CollisionMonitor:
    """Measures distances and tool positions of one arm. Not thread-safe. `version` grows when the obstacles change."""

    def __init__(self, model: Any, geometry: Any, profile: RobotProfile, config: CollisionMonitorConfig) -> None:
        """model, geometry: of Pinocchio, with the joints of the profile alone. Use `from_urdf`."""
        self.config, self.version = config, 0
        self._model, self._data = model, model.createData()
        self._joint_names = profile.joint_names
        joints = [model.getJointId(name) for name in profile.joint_names]
        self._order = [model.joints[j].idx_q for j in joints]  # index of the profile's joints in Pinocchio's q
        self._base = base_placement(model, profile)
        self._tool, self._chain = tool_chain(model, profile)
        self._add_workspace(geometry, profile)
        self.reach = joint_reach(model, geometry, joints)
        self._fixed = geometry
        self._links = [i for i, g in enumerate(geometry.geometryObjects) if g.parentJoint > 0 and g.name != _TOOL]
        self._known: dict[int, tuple[Obstacle, Any]] = {}  # obstacles and the bodies built from them
        self.set_obstacles([])
        self._refuse_touching(profile.home)

    @classmethod
    def from_urdf(
        cls,
        urdf: str,
        profile: RobotProfile,
        config: CollisionMonitorConfig | None = None,
        srdf: str = '',
        package_dirs: list[Path] | None = None,
    ) -> 'CollisionMonitor':
        """Return the monitor of an arm. Its fingers count as opened wide.

        urdf, srdf: the texts. package_dirs: folders that contain the packages of package:// URLs. Raises ValueError
        naming the joint, frame, mesh or library that is missing.
        """
        config = config or CollisionMonitorConfig()
        folders = [Path(d) for d in package_dirs or []]
        model, geometry = collision_model(urdf, profile, srdf if config.self_collision else None, folders)
        return cls(model, geometry, profile, config)

    # ---- questions

    def tool_positions(self, q: np.ndarray) -> np.ndarray:
        """Return the positions (n, 3) [m] of the tool in the base frame at joint positions (n, dof) [rad]."""
        where = np.tile(self._tool, (len(q), 1))
        for joint, place, turns in self._chain:
            still, sine, versine = np.split(where @ turns, 3, axis=1)
            angle = q[:, joint, None]
            where = place + still + np.sin(angle) * sine + (1 - np.cos(angle)) * versine
        return (where - self._base.translation) @ self._base.rotation

    def distances(self, q: np.ndarray) -> np.ndarray:
        """Return the distances (pairs,) [m] at joint positions (dof,) [rad], negative in contact. See `margins`."""
        place = np.empty(len(q))
        place[self._order] = q
        pinocchio.computeDistances(self._model, self._data, self._geometry, self._distances, place)
        return np.fromiter((r.min_distance for r in self._distances.distanceResults), float, len(self.margins))

    def names(self, pair: int) -> tuple[str, str, Hold]:
        """Return the names of the two bodies of a pair, and the hold for a distance below their margin."""
        p = self._geometry.collisionPairs[pair]
        first, second = (self._geometry.geometryObjects[i] for i in (p.first, p.second))
        hold = Hold.WORKSPACE if second.name.startswith(_WORKSPACE) else Hold.COLLISION_AHEAD
        return link_name(first.name), link_name(second.name), hold

    def travel(self, q: np.ndarray) -> np.ndarray:
        """Return bounds (n,) [m] along a motion q (n, dof) [rad].

        Between two rows no point of the arm moves further than their bounds differ.
        """
        return np.concatenate([[0.0], np.cumsum(np.abs(np.diff(q, axis=0)) @ self.reach)])

    # ---- obstacles

    def set_obstacles(self, obstacles: list[Obstacle]) -> None:
        """Replace all obstacles by these.

        An Obstacle that is among them already costs little; a new mesh takes 5 ms per 1000 triangles. Raises ValueError
        naming the obstacle that is not usable; then the old ones stay.
        """
        known = self._known
        new = {id(o): known[id(o)] if id(o) in known else (o, self._object(o)) for o in obstacles}
        geometry = pinocchio.GeometryModel(self._fixed)
        for _, body in new.values():
            index = geometry.addGeometryObject(body)
            for link in self._links:
                geometry.addCollisionPair(pinocchio.CollisionPair(link, index))
        self._geometry, self._distances, self._known = geometry, pinocchio.GeometryData(geometry), new
        self.margins = np.array([self._margin(p) for p in geometry.collisionPairs])  # (pairs,) [m]
        self.version += 1

    def _object(self, obstacle: Obstacle) -> Any:
        name = f'obstacle {obstacle.name}'
        given = [s for s in ('box', 'sphere', 'mesh') if getattr(obstacle, s) is not None]
        if len(given) != 1:
            raise ValueError(f'{name}: must be one of box, sphere and mesh, is {" and ".join(given) or "none"}')
        rotation, position = np.asarray(obstacle.rotation, float), np.asarray(obstacle.position, float)
        if rotation.shape != (3, 3) or not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-4):
            raise ValueError(f'{name}: its rotation is no rotation matrix')
        if position.shape != (3,) or not np.isfinite(position).all():
            raise ValueError(f'{name}: its position must be three finite numbers')
        if obstacle.mesh is not None:
            shape = mesh_shape(name, *obstacle.mesh)
        else:
            size = np.array(obstacle.box if obstacle.box is not None else [obstacle.sphere], float)
            if not (np.isfinite(size).all() and (size > 0).all()):
                raise ValueError(f'{name}: its size must be above zero, is {size.tolist()}')
            shape = coal.Box(*size) if obstacle.box is not None else coal.Sphere(size[0])
        pose = self._base * pinocchio.SE3(rotation, position)
        return pinocchio.GeometryObject(name, 0, 0, pose, shape)

    # ---- inside

    def _add_workspace(self, geometry: Any, profile: RobotProfile) -> None:
        """Add half-spaces that are solid outside the workspace, and the tool frame as a point."""
        config, model = self.config, self._model
        frame = model.frames[model.getFrameId(TOOL)]
        links = [i for i, g in enumerate(geometry.geometryObjects) if g.parentJoint > 0]
        point = pinocchio.GeometryObject(_TOOL, frame.parentJoint, 0, frame.placement, coal.Sphere(1e-4))
        tool = geometry.addGeometryObject(point)
        walls = [(f'plane {list(p)}', np.array(p[:3]), p[3], [*links, tool]) for p in config.planes]
        for name, box, bodies in (('', profile.workspace, [tool]), ('link_box ', config.link_box, links)):
            for axis in range(3 if box is not None else 0):
                assert box is not None
                inwards = np.eye(3)[axis]
                walls.append((f'{name}lower {"xyz"[axis]}', inwards, box[axis], bodies))
                walls.append((f'{name}upper {"xyz"[axis]}', -inwards, -box[axis + 3], bodies))
        for name, normal, distance, bodies in walls:
            shape = coal.Halfspace(normal / np.linalg.norm(normal), distance / np.linalg.norm(normal))
            index = geometry.addGeometryObject(pinocchio.GeometryObject(_WORKSPACE + name, 0, 0, self._base, shape))
            for body in bodies:
                geometry.addCollisionPair(pinocchio.CollisionPair(body, index))

    def _margin(self, pair: Any) -> float:
        other = self._geometry.geometryObjects[pair.second]
        if other.name.startswith(_WORKSPACE):
            return self.config.workspace_margin
        return (
            self.config.self_margin if pair.second < len(self._fixed.geometryObjects) else self.config.obstacle_margin
        )

    def _refuse_touching(self, home: np.ndarray) -> None:
        """Raise ValueError for links that are too close at home: they would stop every motion."""
        close = [
            f'{a} and {b} ({d:.3f} m)'
            for d, margin, (a, b, hold) in zip(
                self.distances(home), self.margins, map(self.names, range(len(self.margins))), strict=True
            )
            if d < margin and hold is Hold.COLLISION_AHEAD
        ]
        if close:
            raise ValueError(
                f'closer than self_margin {self.config.self_margin} m at home: {", ".join(close)}. Give an SRDF that '
                'disables these pairs, or a smaller margin'
            )
