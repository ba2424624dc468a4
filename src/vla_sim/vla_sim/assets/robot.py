"""The Franka Panda with its hand as a MuJoCo specification, from the installed package `example-robot-data`.

Inertias, joint limits, kinematics, meshes and collision shapes are read from that package at run time. Collisions
between the links of the arm are not simulated.
"""

import xml.etree.ElementTree as ET
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import numpy as np

from vla_sim.assets.meshes import Mesh, read_collada, read_stl, thin_out
from vla_sim.rendering.opengl import mujoco

ARM_JOINTS = tuple(f'panda_joint{i}' for i in range(1, 8))
FINGER_JOINTS = ('panda_finger_joint1', 'panda_finger_joint2')
BASE, HAND, TOOL = 'panda_link0', 'panda_hand', 'panda_hand_tcp'
HOME = np.array([0.0, -0.785398, 0.0, -2.356194, 0.0, 1.570796, 0.785398])  # [rad], Franka's own start pose
TORQUE_LIMIT = np.array([87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0])  # [Nm], Franka documentation and URDF
MAX_OPENING = 0.08  # [m] between the fingers
GRIP_FORCE = 35.0  # [N] of each finger; usual grasps of the Franka hand have 30 to 40 N

# Collision bits: the robot touches props, table and floor, never itself.
ROBOT_BITS = {'contype': 1, 'conaffinity': 2}
WORLD_BITS = {'contype': 3, 'conaffinity': 3}
VISUAL_GROUP, COLLISION_GROUP = 2, 3

_VISUAL_CELL = 0.004  # [m] halves the triangles without a visible difference at 256 x 256
_ARMATURE = 0.1  # [kg m^2], [kg] of motors and gears seen from the joint (MuJoCo Menagerie's Panda)
_DAMPING = 0.2  # [Nm s/rad] friction that Franka's compensation leaves


def share_directory() -> Path:
    """Return the directory of `package://example-robot-data/`. Raises FileNotFoundError with the remedy."""
    try:
        urdf = next(
            f for f in files('example-robot-data') or () if str(f).endswith('panda_description/urdf/panda.urdf')
        )
    except (PackageNotFoundError, StopIteration):
        raise FileNotFoundError(
            'the Panda comes from the Python package example-robot-data, which is not installed here: '
            'pip install example-robot-data'
        ) from None
    return Path(str(urdf.locate())).resolve().parents[3]


def urdf_text() -> str:
    """Return the URDF of the Panda with its hand; meshes have file paths of this machine, for RViz."""
    share = share_directory()
    text = (share / 'robots/panda_description/urdf/panda.urdf').read_text()
    return text.replace('package://example-robot-data', share.as_uri())


def add_robot(spec: mujoco.MjSpec, *, shapes: bool = True) -> None:
    """Add the Panda with its base at the origin of the world; joints and bodies have the names of the URDF.

    shapes: False leaves out drawn and collision shapes, so that kinematics and inertias remain.
    """
    spec.compiler.degree = False
    spec.compiler.balanceinertia = True  # the identified inertias of some links break the triangle inequality
    urdf = ET.fromstring(urdf_text())
    links = {link.get('name', ''): link for link in urdf.findall('link')}
    children: dict[str, list[ET.Element]] = {}
    for each in urdf.findall('joint'):
        children.setdefault(_attribute(each, 'parent', 'link'), []).append(each)

    # This is a loop, as the closure of a recursive function is a reference cycle. It would keep the specification with
    # all meshes and textures until the garbage collector runs.
    pending: list[tuple[mujoco.MjsBody, str, ET.Element | None]] = [(spec.worldbody, BASE, None)]
    while pending:
        parent, name, joint = pending.pop()
        body = parent.add_body(name=name, **_pose(joint.find('origin') if joint is not None else None))
        _add_inertia(body, links[name])
        if joint is not None and joint.get('type') != 'fixed':
            _add_joint(body, joint)
        if shapes:
            _add_shapes(spec, body, links[name])
        pending += [(body, _attribute(child, 'child', 'link'), child) for child in reversed(children.get(name, []))]
    _add_actuators(spec)


@lru_cache(maxsize=1)
def robot_only_model() -> mujoco.MjModel:
    """Return a model of arm and hand without shapes, for kinematics. nq = 9: seven arm joints, then two fingers."""
    spec = mujoco.MjSpec()
    add_robot(spec, shapes=False)
    return spec.compile()


def _attribute(element: ET.Element, tag: str, name: str) -> str:
    found = element.find(tag)
    assert found is not None
    return found.get(name, '')


def _vector(element: ET.Element | None, name: str, default: str = '0 0 0') -> np.ndarray:
    return np.array((element.get(name, default) if element is not None else default).split(), float)


def _pose(origin: ET.Element | None) -> dict[str, np.ndarray]:
    quat = np.zeros(4)
    mujoco.mju_euler2Quat(quat, _vector(origin, 'rpy'), 'XYZ')  # URDF: fixed axes x, y, z
    return {'pos': _vector(origin, 'xyz'), 'quat': quat}


def _add_inertia(body: mujoco.MjsBody, link: ET.Element) -> None:
    inertial = link.find('inertial')
    if inertial is None or float(_attribute(inertial, 'mass', 'value')) == 0:
        return
    inertia = inertial.find('inertia')
    assert inertia is not None
    body.explicitinertial = True
    body.mass = float(_attribute(inertial, 'mass', 'value'))
    body.ipos = _vector(inertial.find('origin'), 'xyz')
    body.fullinertia = [float(inertia.get(k, 0)) for k in ('ixx', 'iyy', 'izz', 'ixy', 'ixz', 'iyz')]


def _add_joint(body: mujoco.MjsBody, joint: ET.Element) -> None:
    limit = joint.find('limit')
    assert limit is not None
    hinge = joint.get('type') == 'revolute'
    body.add_joint(
        name=joint.get('name', ''),
        type=mujoco.mjtJoint.mjJNT_HINGE if hinge else mujoco.mjtJoint.mjJNT_SLIDE,
        axis=_vector(joint.find('axis'), 'xyz', '0 0 1'),
        range=[float(limit.get('lower', 0)), float(limit.get('upper', 0))],
        limited=mujoco.mjtLimited.mjLIMITED_TRUE,
        damping=[_DAMPING if hinge else 5.0, 0, 0],
        armature=_ARMATURE,
    )


def _add_shapes(spec: mujoco.MjSpec, body: mujoco.MjsBody, link: ET.Element) -> None:
    for visual in link.findall('visual'):
        for name, rgba in _visual_meshes(spec, Path(_attribute(visual, 'geometry/mesh', 'filename')).name):
            body.add_geom(
                type=mujoco.mjtGeom.mjGEOM_MESH, meshname=name, rgba=rgba, contype=0, conaffinity=0, mass=0,
                group=VISUAL_GROUP, **_pose(visual.find('origin')),
            )  # fmt: skip
    for collision in link.findall('collision'):
        settings: dict[str, Any] = {
            **_pose(collision.find('origin')),
            **ROBOT_BITS,
            'group': COLLISION_GROUP,
            'mass': 0,
        }
        if 'finger' in body.name:  # rubber tips: torsional friction keeps a held object from turning
            settings |= {'friction': [1.5, 0.02, 0.0005], 'condim': 6, 'solref': [0.004, 1.0], 'priority': 1}
        mesh, box = collision.find('geometry/mesh'), collision.find('geometry/box')
        if mesh is not None:
            name = _collision_mesh(spec, Path(mesh.get('filename', '')).name)
            body.add_geom(type=mujoco.mjtGeom.mjGEOM_MESH, meshname=name, **settings)
        elif box is not None:
            body.add_geom(type=mujoco.mjtGeom.mjGEOM_BOX, size=_vector(box, 'size') / 2, **settings)


@lru_cache(maxsize=32)
def _read(kind: str, name: str) -> list[Mesh]:
    path = share_directory() / 'robots/panda_description/meshes' / kind / name
    return [thin_out(m, _VISUAL_CELL) for m in read_collada(path)] if kind == 'visual' else [read_stl(path)]


def _visual_meshes(spec: mujoco.MjSpec, file: str) -> list[tuple[str, tuple[float, ...]]]:
    found = []
    for i, mesh in enumerate(m for m in _read('visual', file) if len(m.faces) >= 4):
        name = f'{file}_{i}'
        if spec.mesh(name) is None:
            add_mesh(spec, name, mesh)
        found.append((name, mesh.rgba))
    return found


def _collision_mesh(spec: mujoco.MjSpec, file: str) -> str:
    name = f'{file}_hull'  # MuJoCo collides the convex hull
    if spec.mesh(name) is None:
        add_mesh(spec, name, _read('collision', file)[0])
    return name


def add_mesh(spec: mujoco.MjSpec, name: str, mesh: Mesh) -> None:
    """Register a mesh under a name for geoms."""
    spec.add_mesh(
        name=name, uservert=mesh.vertices.ravel(), userface=mesh.faces.ravel(),
        inertia=mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL,  # thinned meshes are not watertight
    )  # fmt: skip


def _add_actuators(spec: mujoco.MjSpec) -> None:
    """Add seven torque motors, and a position servo of the opening whose force acts on each finger."""
    for joint, limit in zip(ARM_JOINTS, TORQUE_LIMIT, strict=True):
        spec.add_actuator(
            name=joint, target=joint, trntype=mujoco.mjtTrn.mjTRN_JOINT, ctrlrange=[-limit, limit],
            ctrllimited=mujoco.mjtLimited.mjLIMITED_TRUE,
        )  # fmt: skip
    opening = spec.add_tendon(name='opening')
    for joint in FINGER_JOINTS:
        opening.wrap_joint(joint, 1.0)
    # One belt moves both fingers of the Franka hand.
    spec.add_equality(
        type=mujoco.mjtEq.mjEQ_JOINT, name1=FINGER_JOINTS[0], name2=FINGER_JOINTS[1],
        data=[0, 1] + [0] * (mujoco.mjNEQDATA - 2), solref=[0.004, 1.0], objtype=mujoco.mjtObj.mjOBJ_JOINT,
    )  # fmt: skip
    servo = spec.add_actuator(
        name='gripper', target='opening', trntype=mujoco.mjtTrn.mjTRN_TENDON, ctrlrange=[0, MAX_OPENING],
        ctrllimited=mujoco.mjtLimited.mjLIMITED_TRUE, forcerange=[-GRIP_FORCE, GRIP_FORCE],
        forcelimited=mujoco.mjtLimited.mjLIMITED_TRUE,
    )  # fmt: skip
    servo.set_to_position(kp=3000.0, kv=60.0)
