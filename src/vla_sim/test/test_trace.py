"""The tool's way as it is drawn in a picture: on the gripper that is seen there."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vla_core.kinematics.arm import load_kinematics
from vla_core.kinematics.ik import quaternion_matrix
from vla_core.kinematics.projection import project
from vla_core.profile import RobotProfile
from vla_sim.assets.robot import urdf_text
from vla_sim.scene import CAMERAS
from vla_sim.world import World

PROFILE = RobotProfile.load(Path(__file__).parents[2] / 'vla_bringup/config/robots/sim_panda.yaml')
REACH = np.array([0.0, 0.4, 0.0, -2.1, 0.0, 2.5, 0.8])  # the gripper above the middle of the table


@pytest.fixture(scope='module')
def world():
    w = World('stack_block')
    w.reset(1)
    w.set_target(REACH, np.zeros(7))
    w.step(3000)
    return w


def seen(world, name, cameras, opening):
    world.set_gripper(opening)
    world.step(1000)
    return cameras.render(world.snapshot(), (name,))[name].astype(int)


@pytest.mark.parametrize('name', CAMERAS)
def test_the_tool_is_where_the_fingers_move(world, name):
    kinematics = load_kinematics(urdf_text(), PROFILE)
    cameras = world.cameras()
    try:
        moved = np.abs(seen(world, name, cameras, 0.08) - seen(world, name, cameras, 0.0)).sum(2) > 60
    finally:
        cameras.close()
    camera, (place, quaternion) = world.camera_info(name), world.camera_pose(name)
    info = SimpleNamespace(
        k=camera.matrix.ravel(), d=[], binning_x=0, binning_y=0, roi=SimpleNamespace(x_offset=0, y_offset=0),
        distortion_model='plumb_bob',
    )  # fmt: skip
    tool = kinematics(world.joint_positions)[0]
    np.testing.assert_allclose(tool, world.tool_pose()[0], atol=1e-3)
    pixels, ahead = project((tool - place)[None] @ quaternion_matrix(quaternion), info)
    rows, columns = np.nonzero(moved)
    assert ahead.all() and len(rows) > 50
    # The fingers open to both sides of the tool, and reach from it upwards.
    (u, v), size = pixels[0], camera.width
    assert columns.min() < u < columns.max()
    assert abs(u - (columns.min() + columns.max()) / 2) < 0.04 * size
    assert rows.min() - 2 < v < rows.max() + 0.03 * size
