"""Tool pixels of bags: kinematics, camera_info and tf give them; what is missing leaves them unknown."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vla_training.bag.setup import STATES, Setup
from vla_training.convert.convert import convert_bags
from vla_training.convert.report import notes
from vla_training.data import features
from vla_training.lerobot import Dataset

spec = importlib.util.spec_from_file_location('bags', Path(__file__).parent / 'bags.py')
bags = importlib.util.module_from_spec(spec)
sys.modules['bags'] = bags
spec.loader.exec_module(bags)
T = bags.TYPES

# Joint a moves the tool along x and b along y, by metres that are the time and its negative.
JOINT = (
    '<joint name="{0}" type="prismatic"><parent link="{1}"/><child link="{2}"/><axis xyz="{3}"/>'
    '<limit lower="-999" upper="999" effort="1" velocity="1"/></joint>'
)
URDF = (
    '<robot name="toy"><link name="base"/><link name="middle"/><link name="tool"/>'
    + JOINT.format('a', 'base', 'middle', '1 0 0')
    + JOINT.format('b', 'middle', 'tool', '0 1 0')
    + '</robot>'
)
FRONT, WRIST = features.tool_pixel('front'), features.tool_pixel('wrist')
TIMES = 100 + 0.1 * np.arange(30)


def info(model='plumb_bob', focal=40.0, side=16, distortion=0.0):
    roi = T['sensor_msgs/msg/RegionOfInterest'](x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
    centre = 7.5 if focal else 0.0
    k = np.array([focal, 0, centre, 0, focal, centre, 0, 0, float(focal > 0)])
    return T['sensor_msgs/msg/CameraInfo'](
        header=bags.header(100.0), height=side, width=side, distortion_model=model, d=np.full(5, distortion), k=k,
        r=np.eye(3).ravel(), p=np.insert(k.reshape(3, 3), 3, 0, axis=1).ravel(), binning_x=0, binning_y=0, roi=roi,
    )  # fmt: skip


def pose(parent, child, time, *place):
    vector, turn = T['geometry_msgs/msg/Vector3'], T['geometry_msgs/msg/Quaternion'](x=0.0, y=0.0, z=0.0, w=1.0)
    moved = T['geometry_msgs/msg/Transform'](translation=vector(*map(float, place)), rotation=turn)
    kind = T['geometry_msgs/msg/TransformStamped']
    header = replace(bags.header(time), frame_id=parent)
    return T['tf2_msgs/msg/TFMessage'](transforms=[kind(header=header, child_frame_id=child, transform=moved)])


SHORT = 8  # frames: enough for an episode


def entries(count=30):
    """A bag with a front camera that stands, and is moved at 101.45 s, and a wrist camera that follows the tool."""
    found = []
    for topic, message, time in bags.recording(count):
        if topic.endswith('image_raw'):
            camera = topic.split('/')[1]
            message = replace(message, header=replace(message.header, frame_id=camera))
            found.append((f'/{camera}/camera_info', info(), time))
        found.append((topic, message, time))
    found += [('/tf', pose('base', 'wrist', t, t, -101.5, -10), t + 0.001) for t in 99.9 + 0.05 * np.arange(70)]
    found.append(('/robot_description', bags.text(URDF), 99.9))
    found += [
        ('/tf_static', pose('base', 'front', 0.0, x, -101.5, -10), t) for x, t in ((101.5, 99.9), (102.5, 101.45))
    ]
    return sorted(found, key=lambda e: e[2])


def converted(folder, found, name='bag', **changes):
    (folder / 'robot.yaml').write_text(bags.PROFILE)
    setup = Setup.load(folder / 'robot.yaml', fps=10, actions=STATES, shortest=3, camera_gap=0.0, **changes)
    bags.write(folder / name, found)
    report = next(r for r in convert_bags([folder / name], folder / 'd', setup) if r['bag'] == name)
    return Dataset(folder / 'd'), report


def test_tool_pixels_are_of_the_time_of_each_image(tmp_path):
    data, report = converted(tmp_path, entries())
    columns = data.episode(0).columns
    down = 7.5 - 4 * (TIMES - 101.5)
    across = 7.5 + 4 * (TIMES - np.where(TIMES < 101.45, 101.5, 102.5))
    np.testing.assert_allclose(columns[FRONT], np.stack([across, down], 1), atol=2e-3)
    np.testing.assert_allclose(columns[WRIST], np.stack([np.full(30, 7.5), down], 1), atol=2e-3)
    assert (
        report['tool_pixels']['front']['known'] == 30
        and '/front/camera_info' in report['tool_pixels']['front']['source']
    )
    assert notes(report) == []


def changed(topic, message):
    return [(t, message if t == topic else m, time) for t, m, time in entries(SHORT)]


def without(topic):
    return [e for e in entries(SHORT) if e[0] != topic]


@pytest.mark.parametrize(
    ('found', 'why'),
    [
        (without('/robot_description'), 'give --urdf'),
        (changed('/robot_description', bags.text('<robot name="x"><link name="base"/></robot>')), 'no joint a, b'),
        (without('/front/camera_info'), 'no camera_info on /front/camera_info'),
        (changed('/front/camera_info', info(focal=0.0)), 'not calibrated'),
        (changed('/front/camera_info', info(side=32)), 'describes images of 32 x 32, the images have 16 x 16'),
        (changed('/front/camera_info', info('fisheye9', distortion=0.1)), "distortion model 'fisheye9'"),
        (changed('/front/camera_info', info(focal=np.nan)), 'not finite'),
        (without('/tf_static'), 'no transforms between front and base'),
        ([*entries(SHORT), ('/tf_static', pose('front', 'base', 0.0, 0, 0, 0), 99.9)], 'parents of one another'),
        (changed('/tf_static', pose('base', 'front', 0.0, 101.5, -101.5, 10)), 'behind the camera'),
    ],
)
def test_a_missing_or_wrong_input_is_one_note_and_no_column(tmp_path, found, why):
    data, report = converted(tmp_path, sorted(found, key=lambda e: e[2]))
    assert FRONT not in data.features and len(data.episode(0)) == SHORT
    [note] = [line for line in notes(report) if 'front' in line]
    assert why in note, note and note.startswith(f'tool pixel unknown in {SHORT} of {SHORT} frames')


def test_the_robot_description_may_be_a_file(tmp_path):
    (tmp_path / 'toy.urdf').write_text(URDF)
    data, _ = converted(tmp_path, without('/robot_description'), urdf=str(tmp_path / 'toy.urdf'))
    assert np.isfinite(data.episode(0).columns[FRONT]).all()


def test_bags_with_and_without_calibration_share_a_data_set(tmp_path):
    converted(tmp_path, entries(SHORT))
    data, report = converted(tmp_path, without('/front/camera_info'), 'second')
    assert not report['failed'], report['failed']
    found = data.episode(1).columns
    assert np.isnan(found[FRONT]).all() and np.isfinite(found[WRIST]).all()


def test_pixels_that_the_data_set_has_no_column_for_are_noted(tmp_path):
    converted(tmp_path, without('/front/camera_info'))
    data, report = converted(tmp_path, entries(), 'second')
    assert FRONT not in data.features and any('convert this bag first' in line for line in notes(report))
