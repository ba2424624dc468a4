"""The scene of one task: table, floor, light, cameras, robot, props."""

import numpy as np

from vla_sim.assets.robot import HAND, VISUAL_GROUP, WORLD_BITS, add_robot
from vla_sim.rendering.opengl import mujoco
from vla_sim.tasks import task_of

TIMESTEP = 0.001  # [s]
CAMERAS = ('front', 'wrist')
MAX_IMAGE_SIZE = 1024  # [pixel]

_TABLE_CENTRE, _TABLE_HALF = (0.42, 0.0), (0.57, 0.62)  # [m]
_FLOOR_DEPTH = 0.74  # [m] below the table top
_LIGHT_DIRECTION = np.array([0.15, 0.35, -1.0])


def build_model(task: str, *, shadow_size: int = 1024, samples: int = 0) -> mujoco.MjModel:
    """Return the compiled scene of a task. Table top at z = 0, robot base at the origin, x towards the front camera.

    shadow_size: edge of the shadow map [pixel]; samples: multisampling of the off-screen buffer. Raises ValueError
    for an unknown task.
    """
    chosen = task_of(task)
    spec = mujoco.MjSpec()
    spec.modelname = task
    spec.option.timestep = TIMESTEP
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    # Elliptic cones and stiff friction: a held object does not creep out of the grip.
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    spec.option.impratio = 10.0
    spec.stat.extent, spec.stat.center = 1.2, [0.4, 0.0, 0.2]
    spec.visual.quality.shadowsize, spec.visual.quality.offsamples = shadow_size, samples
    spec.visual.global_.offwidth = spec.visual.global_.offheight = MAX_IMAGE_SIZE
    spec.visual.map.znear, spec.visual.map.zfar, spec.visual.map.shadowclip = 0.005, 20.0, 1.0
    head = spec.visual.headlight
    head.ambient, head.diffuse, head.specular = [0.38] * 3, [0.25] * 3, [0.0] * 3
    add_robot(spec)
    _add_room(spec)
    _add_cameras(spec)
    chosen.add_props(spec)
    return spec.compile()


def look_along(forward: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Return the orientation (4,) wxyz of a MuJoCo camera (x right, y up, view along -z) that views along `forward`."""
    z = -np.asarray(forward, float) / np.linalg.norm(forward)
    x = np.cross(up, z)
    x /= np.linalg.norm(x)
    quat = np.zeros(4)
    mujoco.mju_mat2Quat(quat, np.stack([x, np.cross(z, x), z], 1).ravel())
    return quat


def _add_cameras(spec: mujoco.MjSpec) -> None:
    # View of the table, no wider than the area of the props: a policy's small images have few pixels per object.
    eye, target = np.array([1.08, 0.0, 0.90]), np.array([0.43, 0.0, 0.06])
    spec.worldbody.add_camera(name='front', pos=eye, quat=look_along(target - eye, np.array([0, 0, 1.0])), fovy=37)
    # Mounted before the hand and tilted back, so that the fingertips are in the image.
    forward = np.array([-0.08, 0.0, 1.0])
    spec.body(HAND).add_camera(
        name='wrist', pos=[0.075, 0, 0.01], quat=look_along(forward, np.array([1.0, 0, 0])), fovy=80
    )


def _add_room(spec: mujoco.MjSpec) -> None:
    _add_material(spec, 'wood', _wood(np.random.default_rng(0)), specular=0.15)
    tiles = np.full((64, 64, 3), 178, np.uint8)
    tiles[:1], tiles[:, :1] = 150, 150
    _add_material(spec, 'floor', tiles, texrepeat=[14, 14])
    spec.add_texture(
        name='sky', type=mujoco.mjtTexture.mjTEXTURE_SKYBOX, builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
        rgb1=[0.86, 0.88, 0.90], rgb2=[0.62, 0.66, 0.70], width=64, height=384,
    )  # fmt: skip
    world = spec.worldbody
    world.add_light(
        name='lamp', type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL, pos=[0.2, -0.8, 2.2], dir=_LIGHT_DIRECTION,
        diffuse=[0.5] * 3, specular=[0.2] * 3, castshadow=True,
    )  # fmt: skip
    (x, y), (half_x, half_y) = _TABLE_CENTRE, _TABLE_HALF
    world.add_geom(
        name='floor', type=mujoco.mjtGeom.mjGEOM_PLANE, size=[5, 5, 0.1], pos=[0, 0, -_FLOOR_DEPTH], material='floor',
        group=VISUAL_GROUP, **WORLD_BITS,
    )  # fmt: skip
    world.add_geom(
        name='table', type=mujoco.mjtGeom.mjGEOM_BOX, size=[half_x, half_y, 0.02], pos=[x, y, -0.02], material='wood',
        group=VISUAL_GROUP, condim=6, friction=[1.0, 0.01, 0.001], solref=[0.004, 1.0], **WORLD_BITS,
    )  # fmt: skip
    height = (_FLOOR_DEPTH - 0.04) / 2
    for side_x in (-1, 1):
        for side_y in (-1, 1):
            world.add_geom(
                type=mujoco.mjtGeom.mjGEOM_BOX, size=[0.03, 0.03, height], rgba=(0.25, 0.25, 0.27, 1), contype=0,
                conaffinity=0, pos=[x + side_x * (half_x - 0.05), y + side_y * (half_y - 0.05), -0.04 - height],
                group=VISUAL_GROUP,
            )  # fmt: skip


def _add_material(spec: mujoco.MjSpec, name: str, image: np.ndarray, **settings) -> None:
    texture = spec.add_texture(
        name=name, type=mujoco.mjtTexture.mjTEXTURE_2D, width=image.shape[1], height=image.shape[0], nchannel=3
    )
    texture.data = image.tobytes()
    material = spec.add_material(name=name, **settings)
    textures = list(material.textures)
    textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = name
    material.textures = textures


def _wood(rng: np.random.Generator, size: int = 256, planks: int = 8) -> np.ndarray:
    """Return an image of planks with a grain along one axis, (size, size, 3) uint8."""
    grain = rng.normal(size=(size, 32)).repeat(size // 32, 1)
    kernel = np.hanning(49)
    grain = np.apply_along_axis(
        lambda row: np.convolve(np.r_[row[-24:], row, row[:24]], kernel / kernel.sum(), 'valid'), 1, grain
    )
    plank = np.arange(size) * planks // size
    tone = rng.uniform(-0.035, 0.035, planks)[plank][:, None] + 0.05 * grain
    tone[np.r_[True, plank[1:] != plank[:-1]]] -= 0.10
    return (255 * np.clip(np.array([0.72, 0.56, 0.40]) * (1 + tone[..., None]), 0, 1)).astype(np.uint8)
