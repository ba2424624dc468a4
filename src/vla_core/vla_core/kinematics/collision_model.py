"""Reads an arm's URDF into Pinocchio's model with collision geometry, and derives values for the monitor."""

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np

from vla_core.kinematics.tool import TOOL, tool_frame
from vla_core.profile import RobotProfile

try:
    import coal
    import pinocchio
except ImportError as error:  # reported when a model is read
    coal = pinocchio = None
    _MISSING: ImportError | None = error
else:
    _MISSING = None


def collision_model(urdf: str, profile: RobotProfile, srdf: str | None, folders: list[Path]) -> tuple[Any, Any]:
    """Return Pinocchio's model and geometry with the profile's joints; others (fingers) are at their upper limit.

    srdf: text that disables pairs of links, '' for none; None: no pairs of links are checked. folders: contain the
    packages of package:// URLs. Meshes become convex hulls. Raises ValueError naming the missing joint, frame, mesh or
    library.
    """
    if _MISSING is not None:
        raise ValueError(f'the collision monitor needs Pinocchio and coal: pip install pin ({_MISSING})')
    _check_meshes(urdf, folders)
    try:
        model = pinocchio.buildModelFromXML(urdf)
        geometry = pinocchio.buildGeomFromUrdfString(
            model, urdf, pinocchio.GeometryType.COLLISION, package_dirs=[str(d) for d in folders]
        )
    except (ValueError, RuntimeError) as error:
        raise ValueError(f'the robot description cannot be read: {error}') from None
    if missing := [n for n in profile.joint_names if not model.existJointName(n)]:
        raise ValueError(f'the robot description lacks {", ".join(missing)} of the robot profile')
    others = [j for j in range(1, model.njoints) if model.names[j] not in profile.joint_names]
    opened = pinocchio.neutral(model)
    for j in others:
        if model.joints[j].nq == 1:
            opened[model.joints[j].idx_q] = model.upperPositionLimit[model.joints[j].idx_q]
    model, geometry = pinocchio.buildReducedModel(model, geometry, others, opened)
    tool_frame(model, profile)
    bare = [n for n in profile.joint_names if not _bodies(geometry, model.getJointId(n))]
    if bare:
        raise ValueError(f'the robot description has no collision geometry on the links moved by {", ".join(bare)}')
    for body in geometry.geometryObjects:
        if isinstance(body.geometry, coal.BVHModelBase):
            body.geometry.buildConvexRepresentation(False)
            body.geometry = body.geometry.convex
    if srdf is not None:
        _add_self_pairs(model, geometry, srdf)
    return model, geometry


def _check_meshes(urdf: str, folders: list[Path]) -> None:
    try:
        root = ET.fromstring(urdf)
    except ET.ParseError as error:
        raise ValueError(f'the robot description is no XML: {error}') from None
    for mesh in root.iterfind('link/collision/geometry/mesh'):
        name = mesh.get('filename', '')
        path = name.removeprefix('package://').removeprefix('file://')
        if not any(p.is_file() for p in (Path(path), *(folder / path for folder in folders))):
            places = ', '.join(map(str, folders)) or 'no folder given'
            raise ValueError(f'collision mesh {name} of the robot description is missing: searched in {places}')


def _bodies(geometry: Any, joint: int) -> list[Any]:
    return [g for g in geometry.geometryObjects if g.parentJoint == joint]


def _add_self_pairs(model: Any, geometry: Any, srdf: str) -> None:
    """Add pairs of links of different, not neighbouring joints, without those that the SRDF disables."""
    bodies = geometry.geometryObjects
    for j in range(len(bodies)):
        for i in range(j):
            a, b = bodies[i].parentJoint, bodies[j].parentJoint
            if a != b and model.parents[a] != b and model.parents[b] != a:
                geometry.addCollisionPair(pinocchio.CollisionPair(i, j))
    if srdf:
        pinocchio.removeCollisionPairsFromXML(model, geometry, srdf, False)


def base_placement(model: Any, profile: RobotProfile) -> Any:
    """Return Pinocchio's pose of the base frame in its world. Raises ValueError if the frame moves."""
    frame = model.frames[model.getFrameId(profile.base_frame)]
    if frame.parentJoint != 0:
        raise ValueError(
            f'{profile.base_frame} moves with {model.names[frame.parentJoint]}: base_frame must stand still'
        )
    return frame.placement


def tool_chain(model: Any, profile: RobotProfile) -> tuple[np.ndarray, list[tuple[int, np.ndarray, np.ndarray]]]:
    """Return the tool's position (3,) [m] in the frame of the last joint, and the joints from there to the base.

    A joint is its index in the profile, its position (3,) [m] in the frame of the joint before, and a matrix (3, 9).
    A row vector in the joint's frame times this matrix gives three parts of the rotated vector. They are the constant
    part, and the factors of sin(q) and of 1 - cos(q). Raises ValueError for a joint that is not revolute.
    """
    frame = model.frames[model.getFrameId(TOOL)]
    data, chain, joint = model.createData(), [], frame.parentJoint
    while joint != 0:
        q = pinocchio.neutral(model)
        q[model.joints[joint].idx_q] = 1.0
        pinocchio.forwardKinematics(model, data, q)
        place = model.jointPlacements[joint]
        moved = place.actInv(data.liMi[joint])
        axis = pinocchio.log3(moved.rotation)
        if abs(np.linalg.norm(axis) - 1) > 1e-6 or np.linalg.norm(moved.translation) > 1e-9:
            raise ValueError(f'{model.names[joint]} is no revolute joint: only arms of revolute joints are monitored')
        turn, cross = place.rotation, pinocchio.skew(axis)  # Rodrigues
        turns = np.hstack([part.T for part in (turn, turn @ cross, turn @ cross @ cross)])
        chain.append((profile.joint_names.index(model.names[joint]), place.translation.copy(), turns))
        joint = model.parents[joint]
    return frame.placement.translation.copy(), chain


def joint_reach(model: Any, geometry: Any, joints: list[int]) -> np.ndarray:
    """Return for each joint (dof,) [m] a bound on the distance of the points that it moves from its axis.

    The bound is the sum of the lengths of the links between.
    """
    reach = np.zeros(model.njoints)
    for body in geometry.geometryObjects:
        if body.parentJoint == 0:
            continue
        body.geometry.computeLocalAABB()
        shape = body.geometry
        length = np.linalg.norm(body.placement.translation) + np.linalg.norm(shape.aabb_center) + shape.aabb_radius
        joint = body.parentJoint
        while joint != 0:
            reach[joint] = max(reach[joint], length)
            length += np.linalg.norm(model.jointPlacements[joint].translation)
            joint = model.parents[joint]
    return reach[joints]


def mesh_shape(name: str, vertices: np.ndarray, triangles: np.ndarray) -> Any:
    """Return a mesh as coal's shape, and not its hull: arms reach into shelves.

    vertices (n, 3) [m], triangles (m, 3) of indices. Raises ValueError naming the fault of the mesh.
    """
    vertices, triangles = np.asarray(vertices, float), np.asarray(triangles, int)
    if vertices.ndim != 2 or vertices.shape[1] != 3 or triangles.ndim != 2 or triangles.shape[1] != 3:
        raise ValueError(f'{name}: a mesh needs vertices (n, 3) and triangles (m, 3)')
    if not (len(triangles) and np.isfinite(vertices).all()):
        raise ValueError(f'{name}: its mesh is empty or not finite')
    if triangles.min() < 0 or triangles.max() >= len(vertices):
        raise ValueError(f'{name}: its triangles name vertices that do not exist')
    mesh = coal.BVHModelOBBRSS()
    mesh.beginModel(len(triangles), len(vertices))
    for triangle in triangles:
        mesh.addTriangle(*vertices[triangle])
    mesh.endModel()
    return mesh


def link_name(name: str) -> str:
    """Return the link of a geometry: Pinocchio appends numbers to geometries, panda_link5_0."""
    base, _, number = name.rpartition('_')
    return base if number.isdigit() and base else name
