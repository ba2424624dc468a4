import xml.etree.ElementTree as ET
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from urllib.parse import unquote, urlparse

import numpy as np
import pytest

from vla_sim.assets import robot
from vla_sim.assets.meshes import Mesh, swept, thin_out, turned


def test_every_mesh_of_the_urdf_is_a_file_that_exists():
    meshes = [mesh.get('filename') for mesh in ET.fromstring(robot.urdf_text()).iter('mesh')]
    assert len(meshes) > 10
    for mesh in meshes:
        assert Path(unquote(urlparse(mesh).path)).is_file(), mesh


def test_robot_only_model_has_the_urdf_joints_and_limits_in_order():
    model = robot.robot_only_model()
    assert [model.joint(i).name for i in range(model.njnt)] == [*robot.ARM_JOINTS, *robot.FINGER_JOINTS]
    assert model.ngeom == 0
    limits = {j.get('name'): j.find('limit') for j in ET.fromstring(robot.urdf_text()).findall('joint')}
    for name in robot.ARM_JOINTS:
        assert model.joint(name).range == pytest.approx([float(limits[name].get(k)) for k in ('lower', 'upper')])
        assert model.actuator(name).ctrlrange[1] == float(limits[name].get('effort'))


def test_missing_package_is_named_with_the_remedy(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(robot, 'files', missing)
    with pytest.raises(FileNotFoundError, match='pip install example-robot-data'):
        robot.share_directory()


def volume(mesh):
    a, b, c = (mesh.vertices[mesh.faces[:, k]] for k in range(3))
    return float((a * np.cross(b, c)).sum() / 6)  # positive when faces look outwards


def test_turned_and_swept_surfaces_are_closed_and_look_outwards():
    cylinder = turned(np.array([(0.02, 0.0), (0.02, 0.1)]), 64)
    assert volume(cylinder) == pytest.approx(np.pi * 0.02**2 * 0.1, rel=0.01)
    tube = swept(np.stack([np.linspace(0, 0.1, 9), np.zeros(9), np.zeros(9)], 1), np.full(9, 0.02), 64)
    assert volume(tube) == pytest.approx(np.pi * 0.02**2 * 0.1, rel=0.01)


def test_thinning_out_keeps_the_shape():
    ball = turned(np.stack([np.sin(np.linspace(0.02, 3.12, 60)), -np.cos(np.linspace(0.02, 3.12, 60))], 1) * 0.1, 120)
    thin = thin_out(Mesh(ball.vertices, ball.faces), 0.01)
    assert len(thin.faces) < len(ball.faces) / 4
    assert volume(thin) == pytest.approx(volume(ball), rel=0.03)
    assert thin.faces.max() < len(thin.vertices)
