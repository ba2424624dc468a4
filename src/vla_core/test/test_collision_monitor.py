"""The collision monitor on the Panda: it knows where the arm is, what is near, and stops it on its path before."""

import re
from dataclasses import replace
from importlib.metadata import files
from pathlib import Path

import numpy as np
import pytest

pinocchio = pytest.importorskip('pinocchio', reason='no Pinocchio for this machine')

from vla_core.kinematics.collision_monitor import CollisionMonitor, CollisionMonitorConfig, Obstacle  # noqa: E402
from vla_core.motion.chunk import StampedChunk, Verdict  # noqa: E402
from vla_core.motion.executor import ChunkExecutor, ExecutorConfig, Hold, State  # noqa: E402
from vla_core.profile import RobotProfile  # noqa: E402

ROBOT = RobotProfile.load(Path(__file__).parents[2] / 'vla_bringup' / 'config' / 'robots' / 'sim_panda.yaml')
PANDA = replace(ROBOT, workspace=None)
_URDF = next(f for f in files('example-robot-data') if str(f).endswith('panda_description/urdf/panda.urdf'))
FOLDER = Path(str(_URDF.locate())).resolve().parents[4]
URDF = _URDF.read_text()
SRDF = Path(str(_URDF.locate())).parents[1].joinpath('srdf/panda.srdf').read_text()
MS = 1_000_000
DOWN = np.array([0, 0.3, 0, 0, 0, 0.3, 0])  # [rad/s] the hand sinks


def make(obstacles=(), workspace=None, **config) -> CollisionMonitor:
    profile = PANDA if workspace is None else replace(PANDA, workspace=np.array(workspace, float))
    monitor = CollisionMonitor.from_urdf(URDF, profile, CollisionMonitorConfig(**config), SRDF, [FOLDER])
    monitor.set_obstacles(list(obstacles))
    return monitor


def ball(position, radius=0.05, name='ball') -> Obstacle:
    return Obstacle(name, np.array(position, float), np.eye(3), sphere=radius)


def ahead() -> Obstacle:
    """Where the tool gets to after 2 s."""
    return ball(make().tool_positions(PANDA.home[None] + 2 * DOWN)[0])


class Rig:
    """An executor at 100 Hz, at home by default, whose arm is at its set-points."""

    def __init__(self, monitor, start=PANDA.home, **config) -> None:
        self.core, self.monitor, self.now = ChunkExecutor(PANDA, ExecutorConfig(**config), monitor), monitor, 0
        self.core.observe(start, 0)
        self.core.activate(0)
        self.sent = [np.array(start)]

    def run(self, seconds, until=lambda: False):
        end = self.now + round(seconds * 1e9)
        while self.now < end and not until():
            self.now += 10 * MS
            self.core.observe(self.sent[-1], self.now)
            self.sent.append(self.core.step(self.now).positions)
        return self

    def go(self, velocity, seconds=3.0, start=None) -> Verdict:
        start = self.sent[-1] if start is None else start
        steps = round(seconds / 0.1)
        positions = start + np.outer(0.1 * np.arange(1, steps + 1), velocity)
        core = self.core
        names, epoch, sequence = PANDA.joint_names, core.epoch, core.sequence + 1
        chunk = StampedChunk(self.now, epoch, sequence, '/p', names, 0.1, steps, positions, np.zeros(0))
        return core.ingest(chunk, self.now)

    def distances(self):
        """(set-points,) [m] the smallest of any pair."""
        return np.array([self.monitor.distances(q).min() for q in self.sent])


def test_it_knows_where_the_tool_is():
    monitor = make()
    model = pinocchio.buildModelFromXML(URDF)
    data, frame = model.createData(), model.getFrameId(PANDA.tool_frame)
    q = np.random.default_rng(0).uniform(PANDA.position_lower, PANDA.position_upper, (20, 7))
    expected = []
    for row in q:
        pinocchio.framesForwardKinematics(model, data, np.append(row, [0.0, 0.0]))
        expected.append(data.oMf[frame].translation.copy())
    np.testing.assert_allclose(monitor.tool_positions(q), expected, atol=1e-9)


def test_a_tool_that_the_description_lacks_is_monitored_where_its_offset_from_a_link_puts_it():
    offset = np.array([0.0, 0.0, 0.1034, 0.0, 0.0, -np.pi / 4])
    bare = re.sub(r'panda_hand_tcp"', 'other"', URDF)
    own = replace(PANDA, tool_frame='panda_link8', tool_offset=offset, workspace=ROBOT.workspace)
    monitor = CollisionMonitor.from_urdf(bare, own, CollisionMonitorConfig(), SRDF, [FOLDER])
    q = np.random.default_rng(0).uniform(PANDA.position_lower, PANDA.position_upper, (20, 7))
    np.testing.assert_allclose(monitor.tool_positions(q), make().tool_positions(q), atol=1e-6)
    known = make(workspace=ROBOT.workspace)
    for row in q:
        np.testing.assert_allclose(monitor.distances(row), known.distances(row), atol=1e-5)


def test_no_point_moves_further_than_the_bound():
    monitor, rng = make(), np.random.default_rng(1)
    for _ in range(50):
        a = rng.uniform(PANDA.position_lower, PANDA.position_upper)
        b = a + rng.normal(size=7) * 0.05
        moved = np.linalg.norm(np.diff(monitor.tool_positions(np.stack([a, b])), axis=0))
        assert moved <= monitor.travel(np.stack([a, b]))[-1] + 1e-12
        assert np.abs(monitor.distances(a) - monitor.distances(b)).max() <= monitor.travel(np.stack([a, b]))[-1] + 1e-9


def test_the_tool_keeps_its_speed_limit():
    speeds = {}
    for limit in (0.3, 10.0):
        rig = Rig(make(), tool_speed_limit=limit)
        assert rig.go(np.array([1.5, 0, 0, 0, 0, 0, 0]), 1.0) is Verdict.ACCEPTED
        rig.run(0.8)
        speeds[limit] = np.linalg.norm(np.diff(rig.monitor.tool_positions(np.array(rig.sent)), axis=0), axis=1) / 0.01
    assert 0.28 < speeds[0.3].max() <= 0.3
    assert speeds[10.0].max() > 0.4


@pytest.mark.parametrize(
    ('config', 'blocked', 'hold', 'words'),
    [
        ({'planes': ((0, 0, 1, 0.3),)}, False, Hold.WORKSPACE, 'finger.* plane'),
        ({'workspace': (-1, -1, 0.35, 1, 1, 2)}, False, Hold.WORKSPACE, 'tool .*workspace lower z'),
        ({'link_box': (-1, -1, 0.3, 1, 1, 2)}, False, Hold.WORKSPACE, 'link_box lower z'),
        ({}, True, Hold.COLLISION_AHEAD, 'ball'),
    ],
)
def test_it_stops_on_the_path_before_what_is_in_the_way(config, blocked, hold, words):
    monitor = make([ahead()] if blocked else [], **config)
    rig = Rig(monitor)
    assert rig.go(DOWN) is Verdict.ACCEPTED
    rig.run(4.0, until=lambda: rig.core.state is State.HOLDING and len(rig.sent) > 10)
    assert rig.core.hold is hold
    assert re.search(words, rig.core.message)
    assert 'joint positions [' in rig.core.message
    assert rig.core.epoch == 2
    clear = monitor.distances(PANDA.home) > monitor.margins  # but for the foot, which always is below the planes
    gap = (monitor.distances(rig.sent[-1]) - monitor.margins)[clear]
    assert -0.003 < gap.min() < 0.06  # not in it, and not long before it
    way = np.array(rig.sent) - PANDA.home
    np.testing.assert_allclose(way, np.outer(way[:, 1] / DOWN[1], DOWN), atol=1e-3)  # on the path


def test_it_does_not_fold_into_itself():
    rig = Rig(make())
    # The collision monitor is not concerned.
    assert rig.go(np.array([0, -0.3, 0, -0.4, 0, 1.0, 0]), 4.0) is Verdict.OUT_OF_LIMITS
    assert rig.go(np.array([0, 0.2, 0, -0.21, 0, -0.45, 0]), 3.3) is Verdict.ACCEPTED
    rig.run(6.0, until=lambda: rig.core.state is State.HOLDING and len(rig.sent) > 10)
    assert rig.core.hold is Hold.COLLISION_AHEAD, rig.core.message
    assert 'panda_link' in rig.core.message
    assert rig.distances().min() > 0.005


def test_far_from_everything_nothing_changes():
    free, monitored = Rig(None), Rig(make([ball([0.0, 0.9, 0.9])], planes=((0, 0, 1, 0.0),)), tool_speed_limit=9.0)
    for rig in (free, monitored):
        assert rig.go(np.array([0.2, 0.1, 0, 0, 0.1, 0, 0]), 2.0) is Verdict.ACCEPTED
        rig.run(2.5)
    np.testing.assert_allclose(free.sent, monitored.sent, atol=1e-9)


def test_an_obstacle_that_appears_stops_the_motion():
    rig = Rig(make())
    assert rig.go(DOWN) is Verdict.ACCEPTED
    rig.run(0.4)
    assert rig.core.state is State.EXECUTING
    rig.monitor.set_obstacles([ahead()])
    rig.run(4.0, until=lambda: rig.core.state is State.HOLDING)
    assert rig.core.hold is Hold.COLLISION_AHEAD
    assert rig.distances().min() > 0.015


def test_what_begins_in_contact_may_only_move_out():
    tool = make().tool_positions(PANDA.home[None])[0]
    rig = Rig(make([ball(tool - [0, 0, 0.06])]))
    assert rig.go(DOWN) is Verdict.COLLISION
    assert 'cannot start' in rig.core.message
    assert 'ball' in rig.core.message
    rig.run(0.2)
    assert rig.core.state is State.HOLDING
    np.testing.assert_array_equal(rig.sent[-1], PANDA.home)
    assert rig.go(-DOWN, 1.0) is Verdict.ACCEPTED
    rig.run(1.5)
    assert rig.core.hold is Hold.CHUNKS_STOPPED
    assert (rig.monitor.distances(rig.sent[-1]) > rig.monitor.margins).all()


def test_the_way_to_the_start_is_looked_at_whole_and_the_tool_keeps_its_speed():
    monitor, start = make(), PANDA.home + np.array([1.5, 0.3, 0, 0.3, 0, 0, 0])
    rig = Rig(monitor, start, tool_speed_limit=0.1)
    half = monitor.tool_positions((PANDA.home + start)[None] / 2)[0]
    rig.monitor.set_obstacles([ball(half)])
    rig.run(0.1)
    problem = rig.core.go_to_start()
    assert 'cannot start' in problem
    assert 'ball' in problem
    assert (rig.core.state, rig.core.epoch) == (State.HOLDING, 1)
    rig.monitor.set_obstacles([])
    assert rig.core.go_to_start() == ''
    rig.run(30.0, until=lambda: rig.core.at_rest)
    assert rig.core.hold is Hold.IDLE
    np.testing.assert_allclose(rig.sent[-1], PANDA.home, atol=1e-9)
    tool = np.linalg.norm(np.diff(monitor.tool_positions(np.array(rig.sent)), axis=0), axis=1) / 0.01
    assert 0.09 < tool.max() <= 0.1 * 1.001


def test_an_obstacle_that_appears_on_the_way_to_the_start_stops_the_arm():
    monitor, start = make(), PANDA.home + np.array([1.5, 0, 0, 0, 0, 0, 0])
    rig = Rig(monitor, start)
    rig.run(0.1)
    assert rig.core.go_to_start() == ''
    rig.run(0.3)
    monitor.set_obstacles([ball(monitor.tool_positions((PANDA.home + start)[None] / 2)[0])])
    rig.run(10.0, until=lambda: rig.core.at_rest)
    assert rig.core.hold is Hold.COLLISION_AHEAD
    assert rig.distances().min() > 0.015


@pytest.mark.parametrize('kind', ['box', 'sphere', 'mesh', 'hole'])
def test_shapes_of_obstacles(kind):
    monitor = make()
    tool = monitor.tool_positions(PANDA.home[None])[0]
    centre = tool - [0, 0, 0.2]
    if kind == 'box':
        turned = pinocchio.utils.rotate('z', 0.5)
        obstacle, gap = Obstacle('it', centre, turned, box=(0.1, 0.1, 0.1)), 0.15
    elif kind == 'sphere':
        obstacle, gap = Obstacle('it', centre, np.eye(3), sphere=0.05), 0.15
    else:  # a frame of four triangles around the tool's axis: what is in the middle is free
        side = 0.3 if kind == 'hole' else 0.0
        corners = np.array([[side, 0, 0], [side + 0.2, 0.2, 0], [side + 0.2, -0.2, 0], [-side - 0.2, 0, 0]])
        obstacle = Obstacle('it', centre, np.eye(3), mesh=(corners, np.array([[0, 1, 2]])))
        gap = 0.2 if kind == 'mesh' else np.hypot(0.2, 0.3)
    before = len(monitor.margins)
    monitor.set_obstacles([obstacle])
    new = monitor.distances(PANDA.home)[before:]
    assert new.min() == pytest.approx(gap, abs=0.02)  # the tool frame is between the finger tips
    assert (monitor.margins[before:] == 0.02).all()
    monitor.set_obstacles([])
    assert len(monitor.margins) == before


def test_what_stays_is_not_built_again(monkeypatch):
    one, other = ball([1, 0, 0], name='one'), ball([0, 1, 0], name='other')
    monitor = make([one])
    built = []
    monkeypatch.setattr(monitor, '_object', lambda o, build=monitor._object: built.append(o.name) or build(o))
    monitor.set_obstacles([one, other])
    both = monitor.distances(PANDA.home)
    monitor.set_obstacles([])
    monitor.set_obstacles([other, one])
    assert built == ['other', 'other', 'one']
    np.testing.assert_allclose(np.sort(monitor.distances(PANDA.home)), np.sort(both))


def test_a_mesh_that_is_touched_counts_as_touched():
    tool = make().tool_positions(PANDA.home[None])[0]
    corners = tool + np.array([[0.3, 0, 0.03], [-0.3, 0.3, 0.03], [-0.3, -0.3, 0.03]])
    monitor = make([Obstacle('sheet', np.zeros(3), np.eye(3), mesh=(corners, np.array([[0, 1, 2]])))])
    assert (monitor.distances(PANDA.home) - monitor.margins).min() < 0


@pytest.mark.parametrize(
    ('obstacle', 'message'),
    [
        (Obstacle('x', np.zeros(3), np.eye(3)), 'obstacle x: must be one of'),
        (Obstacle('x', np.zeros(3), 2 * np.eye(3), sphere=0.1), 'no rotation matrix'),
        (Obstacle('x', np.array([0, np.nan, 0]), np.eye(3), sphere=0.1), 'three finite numbers'),
        (Obstacle('x', np.zeros(3), np.eye(3), sphere=0.0), 'above zero'),
        (Obstacle('x', np.zeros(3), np.eye(3), mesh=(np.eye(3), np.array([[0, 1, 3]]))), 'vertices that do not exist'),
    ],
)
def test_obstacles_that_are_none_change_nothing(obstacle, message):
    monitor = make([ahead()])
    version, pairs = monitor.version, len(monitor.margins)
    with pytest.raises(ValueError, match=message):
        monitor.set_obstacles([obstacle])
    assert (monitor.version, len(monitor.margins)) == (version, pairs)


@pytest.mark.parametrize(
    ('urdf', 'folders', 'message'),
    [
        (URDF, [], 'collision mesh package://.*link0.stl .* is missing: searched in no folder'),
        (URDF.replace('link3.stl', 'gone.stl'), [FOLDER], 'gone.stl'),
        (URDF.replace('"panda_joint4"', '"other"'), [FOLDER], 'lacks panda_joint4'),
        (URDF.replace('panda_hand_tcp"', 'x"'), [FOLDER], 'no link panda_hand_tcp'),
        ('<robot', [FOLDER], 'no XML'),
        ('<robot name="x"/>', [FOLDER], 'cannot be read'),
    ],
)
def test_what_cannot_be_monitored_is_reported(urdf, folders, message):
    with pytest.raises(ValueError, match=message):
        CollisionMonitor.from_urdf(urdf, PANDA, CollisionMonitorConfig(), SRDF, folders)


def test_links_that_always_touch_must_be_given():
    with pytest.raises(ValueError, match=r'panda_link5 and panda_link7.*Give an SRDF'):
        CollisionMonitor.from_urdf(URDF, PANDA, CollisionMonitorConfig(self_margin=0.05), '', [FOLDER])
    alone = CollisionMonitor.from_urdf(URDF, PANDA, CollisionMonitorConfig(self_collision=False), '', [FOLDER])
    assert len(alone.margins) == 0
    assert len(alone.distances(PANDA.home)) == 0


def test_links_without_geometry_are_named():
    bare = URDF.replace('<collision>', '<nothing>').replace('</collision>', '</nothing>')
    with pytest.raises(ValueError, match='no collision geometry on the links moved by panda_joint1'):
        CollisionMonitor.from_urdf(bare, PANDA, CollisionMonitorConfig(), SRDF, [FOLDER])


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ({'planes': ((0, 0, 0, 1),)}, 'plane'),
        ({'link_box': (0, 0, 0, 1, 1, 0)}, 'link_box'),
        ({'self_margin': -0.1}, 'self_margin'),
        ({'resolution': 0.0}, 'resolution'),
    ],
)
def test_settings_that_make_no_sense(config, message):
    with pytest.raises(ValueError, match=message):
        CollisionMonitorConfig(**config)
