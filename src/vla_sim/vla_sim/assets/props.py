"""Props on the table: buttons, blocks, bowls, fruit and vegetables, made of simple shapes.

Collision shapes are primitives (group 3, not drawn); the drawn shapes (group 2) may be finer meshes. The position of a
body is: block, produce: its centre; bowl, button: the middle of its bottom; button cap: the middle of its top.
"""

from itertools import pairwise

import numpy as np

from vla_sim.assets.meshes import Mesh, swept, turned
from vla_sim.assets.objects import BLOCK_EDGE, BOWL_HEIGHT
from vla_sim.assets.robot import COLLISION_GROUP, VISUAL_GROUP, WORLD_BITS, add_mesh
from vla_sim.rendering.opengl import mujoco

BUTTON_HEIGHT = 0.016  # [m] of the box
CAP_TOP = 0.032  # [m] above the table
CAP_TRAVEL = 0.010  # [m]
CAP_SPRING = 250.0  # [N/m]
CAP_PRELOAD = 1.0  # [N] preload of the spring under the cap

_DARK = (0.16, 0.16, 0.18, 1.0)
_GREEN = (0.20, 0.48, 0.16, 1.0)
_BOX, _CYLINDER = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_CYLINDER
_SPHERE, _CAPSULE, _MESH = mujoco.mjtGeom.mjGEOM_SPHERE, mujoco.mjtGeom.mjGEOM_CAPSULE, mujoco.mjtGeom.mjGEOM_MESH
# Torsional and rolling friction [m]: round objects come to rest, and do not turn in the grip.
_SOLID = {**WORLD_BITS, 'condim': 6, 'friction': [1.0, 0.01, 0.001], 'solref': [0.004, 1.0]}
_SEEN = {'contype': 0, 'conaffinity': 0, 'mass': 0, 'group': VISUAL_GROUP}


def resting_height(kind: str) -> float:
    """Return the height of the body's position above the table [m] when the prop stands on the table."""
    return {'button': 0.0, 'bowl': 0.0, 'block': BLOCK_EDGE / 2, **_PRODUCE_HEIGHT}[kind]


def add_button(spec: mujoco.MjSpec, slot: str) -> None:
    """Add a button: a box fixed to the table (a mocap body, moved by reset) and a spring-loaded cap `<slot>_cap`."""
    base = spec.worldbody.add_body(name=slot, mocap=True)
    half = BUTTON_HEIGHT / 2
    base.add_geom(type=_BOX, size=[0.034, 0.034, half], pos=[0, 0, half], rgba=_DARK, group=VISUAL_GROUP, **WORLD_BITS)
    base.add_geom(
        type=_CYLINDER, size=[0.026, 0.001, 0], pos=[0, 0, BUTTON_HEIGHT], rgba=(0.75, 0.75, 0.78, 1), **_SEEN
    )
    cap = base.add_body(name=f'{slot}_cap', pos=[0, 0, CAP_TOP])
    cap.add_joint(
        name=slot, type=mujoco.mjtJoint.mjJNT_SLIDE, axis=[0, 0, 1], range=[-CAP_TRAVEL, 0],
        limited=mujoco.mjtLimited.mjLIMITED_TRUE, stiffness=[CAP_SPRING, 0, 0], damping=[4.0, 0, 0],
        springref=CAP_PRELOAD / CAP_SPRING, solref_limit=[0.004, 1.0],
    )  # fmt: skip
    half = (CAP_TOP - BUTTON_HEIGHT) / 2
    cap.add_geom(
        name=f'{slot}_tint', type=_CYLINDER, size=[0.021, half, 0], pos=[0, 0, -half], mass=0.02, group=VISUAL_GROUP,
        **WORLD_BITS,
    )  # fmt: skip


def add_block(spec: mujoco.MjSpec, slot: str) -> None:
    """Add a wooden cube."""
    body = _free_body(spec, slot)
    body.add_geom(
        name=f'{slot}_tint', type=_BOX, size=[BLOCK_EDGE / 2] * 3, mass=0.05, group=VISUAL_GROUP, **_SOLID
    )  # fmt: skip


def add_bowl(spec: mujoco.MjSpec, slot: str) -> None:
    """Add a bowl: drawn as one surface, collided as a floor and a ring of tilted plates."""
    foot, rim, wall = 0.040, 0.070, 0.0035
    body = _free_body(spec, slot)
    outside = [(foot, 0.0), (foot + 0.012, 0.010), (rim - 0.006, 0.030), (rim, BOWL_HEIGHT)]
    inside = [(r - wall, z + (0.003 if z else 0.004)) for r, z in outside[:-1]]
    profile = np.array([*outside, (rim - wall, BOWL_HEIGHT), *reversed(inside)])
    add_mesh(spec, slot, turned(profile, 32))
    _seen_mesh(body, slot, name=f'{slot}_tint')
    body.add_geom(
        type=_CYLINDER, size=[foot + 0.004, 0.002, 0], pos=[0, 0, 0.002], mass=0.12, group=COLLISION_GROUP, **_SOLID
    )
    tilt = np.arctan2(rim - foot - 0.004, BOWL_HEIGHT)
    half = BOWL_HEIGHT / np.cos(tilt) / 2
    plates = 16
    for angle in np.arange(plates) * 2 * np.pi / plates:
        about_z = np.array([np.cos(angle / 2), 0, 0, np.sin(angle / 2)])
        about_y = np.array([np.cos(tilt / 2), 0, np.sin(tilt / 2), 0])
        quat = np.zeros(4)
        mujoco.mju_mulQuat(quat, about_z, about_y)
        radius = (foot + 0.004 + rim) / 2 - wall / 2
        body.add_geom(
            type=_BOX, size=[wall / 2, rim * np.tan(np.pi / plates), half], quat=quat, mass=0.01, group=COLLISION_GROUP,
            pos=[radius * np.cos(angle), radius * np.sin(angle), BOWL_HEIGHT / 2], **_SOLID,
        )  # fmt: skip


def add_produce(spec: mujoco.MjSpec, name: str) -> None:
    """Add a fruit or vegetable; long ones are along x."""
    _PRODUCE[name](spec, _free_body(spec, name))


def _tomato(spec: mujoco.MjSpec, body: mujoco.MjsBody) -> None:
    body.add_geom(type=_SPHERE, size=[0.028, 0, 0], rgba=(0.82, 0.10, 0.06, 1), mass=0.09, group=VISUAL_GROUP, **_SOLID)
    body.add_geom(type=_SPHERE, size=[0.004, 0, 0], pos=[0, 0, 0.028], rgba=_GREEN, **_SEEN)
    for angle in np.arange(5) * 2 * np.pi / 5:
        x, y = np.cos(angle), np.sin(angle)
        ends = [0.004 * x, 0.004 * y, 0.0285, 0.014 * x, 0.014 * y, 0.0250]
        body.add_geom(type=_CAPSULE, size=[0.0025, 0, 0], fromto=ends, rgba=_GREEN, **_SEEN)


def _lemon(spec: mujoco.MjSpec, body: mujoco.MjsBody) -> None:
    t = np.linspace(-1, 1, 15)
    radius = 0.023 * np.sqrt(np.clip(1 - t**2, 0, 1)) + 0.004 * (1 - np.abs(t)) ** 0.5 + 0.002
    _skin(spec, body, 'lemon', turned(np.stack([radius, 0.033 * t], 1)), (0.97, 0.85, 0.10, 1))
    _core(body, 0.023, [(-0.009, 0.0), (0.009, 0.0)], 0.08)


def _banana(spec: mujoco.MjSpec, body: mujoco.MjsBody) -> None:
    bend, half_angle = 0.075, 0.72  # [m] radius of the arc, [rad]
    angle = np.linspace(-half_angle, half_angle, 15)
    centre = bend * (1 + np.cos(half_angle)) / 2  # the body's position is inside the fruit, under its middle
    points = np.stack([bend * np.sin(angle), bend * np.cos(angle) - centre, np.zeros(15)], 1)
    radii = 0.0165 * np.clip(1.25 * np.sqrt(1 - np.abs(np.linspace(-1, 1, 15)) ** 3), 0.3, 1.0)
    add_mesh(spec, 'banana', swept(points, radii))
    _seen_mesh(body, 'banana', rgba=(0.98, 0.83, 0.18, 1))
    for end in (points[0], points[-1]):
        body.add_geom(type=_SPHERE, size=[0.0062, 0, 0], pos=end, rgba=(0.35, 0.25, 0.10, 1), **_SEEN)
    _core(body, 0.016, [tuple(points[i, :2]) for i in (2, 5, 9, 12)], 0.10)


def _carrot(spec: mujoco.MjSpec, body: mujoco.MjsBody) -> None:
    profile = np.array(
        [(0.003, -0.052), (0.007, -0.049), (0.0135, -0.010), (0.0165, 0.030), (0.014, 0.037), (0.005, 0.039)]
    )
    _skin(spec, body, 'carrot', turned(profile), (0.96, 0.45, 0.07, 1))
    for dy, dz in ((0, 0), (0.006, 0.003), (-0.006, 0.003)):
        body.add_geom(type=_CAPSULE, size=[0.003, 0, 0], fromto=[0.037, 0, 0, 0.056, dy, dz], rgba=_GREEN, **_SEEN)
    # The collision shape has even thickness: parallel fingers cannot grip a tapered carrot.
    _core(body, 0.0155, [(-0.034, 0.0), (0.024, 0.0)], 0.08)


def _eggplant(spec: mujoco.MjSpec, body: mujoco.MjsBody) -> None:
    profile = np.array(
        [
            (0.004, -0.044),
            (0.014, -0.041),
            (0.021, -0.032),
            (0.0235, -0.018),
            (0.022, 0.002),
            (0.017, 0.022),
            (0.012, 0.034),
            (0.004, 0.038),
        ]
    )
    _skin(spec, body, 'eggplant', turned(profile), (0.27, 0.07, 0.33, 1))
    _skin(spec, body, 'eggplant_top', turned(np.array([(0.0165, 0.025), (0.0135, 0.034), (0.004, 0.041)])), _GREEN)
    body.add_geom(type=_CAPSULE, size=[0.004, 0, 0], fromto=[0.038, 0, 0, 0.052, 0, 0.002], rgba=_GREEN, **_SEEN)
    _core(body, 0.021, [(-0.021, 0.0), (0.013, 0.0)], 0.11)


_PRODUCE = {'tomato': _tomato, 'banana': _banana, 'carrot': _carrot, 'eggplant': _eggplant, 'lemon': _lemon}
_PRODUCE_HEIGHT = {'tomato': 0.028, 'banana': 0.016, 'carrot': 0.0155, 'eggplant': 0.021, 'lemon': 0.023}


def _free_body(spec: mujoco.MjSpec, name: str) -> mujoco.MjsBody:
    body = spec.worldbody.add_body(name=name)
    body.add_freejoint()
    return body


def _seen_mesh(body: mujoco.MjsBody, mesh: str, **settings) -> None:
    body.add_geom(type=_MESH, meshname=mesh, **_SEEN, **settings)


def _skin(spec: mujoco.MjSpec, body: mujoco.MjsBody, name: str, mesh: Mesh, rgba: tuple[float, ...]) -> None:
    """Add a surface of revolution whose axis is the body's x axis."""
    vertices = mesh.vertices[:, [2, 0, 1]]
    add_mesh(spec, name, Mesh(vertices, mesh.faces))
    _seen_mesh(body, name, rgba=rgba)


def _core(body: mujoco.MjsBody, radius: float, points: list[tuple[float, float]], mass: float) -> None:
    """Add capsules of one radius [m] through points [m] in the body's xy plane, which share the mass [kg]."""
    for a, b in pairwise(points):
        body.add_geom(
            type=_CAPSULE, size=[radius, 0, 0], fromto=[a[0], a[1], 0, b[0], b[1], 0], mass=mass / (len(points) - 1),
            group=COLLISION_GROUP, **_SOLID,
        )  # fmt: skip
