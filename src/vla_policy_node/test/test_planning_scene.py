"""Obstacles from MoveIt. moveit_msgs is not among our dependencies: its messages are played by what looks like them,
and where the wire matters by types that we have."""

import sys
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
from geometry_msgs.msg import Point, Pose, Quaternion
from shape_msgs.msg import Mesh, MeshTriangle, Plane, SolidPrimitive
from std_msgs.msg import String
from std_srvs.srv import Trigger

from vla_policy_node.integrations import planning_scene
from vla_policy_node.integrations.planning_scene import PlanningScene, World

pytest.importorskip('pinocchio', reason='no Pinocchio for this machine')


class CollisionObject:
    ADD, REMOVE, APPEND, MOVE = b'\x00', b'\x01', b'\x02', b'\x03'  # ROS bytes

    def __init__(self, name, *shapes, operation=ADD, frame='base', pose=None, poses=None):
        self.id, self.operation, self.header = name, operation, SimpleNamespace(frame_id=frame)
        self.pose = pose or at(0, 0, 0)
        of = {'primitive': SolidPrimitive, 'mesh': Mesh, 'plane': Plane}
        for shape, kind in of.items():
            mine = [i for i, s in enumerate(shapes) if isinstance(s, kind)]
            setattr(self, {'mesh': 'meshes'}.get(shape, shape + 's'), [shapes[i] for i in mine])
            setattr(self, f'{shape}_poses', [poses[i] for i in mine] if poses else [])


def at(x, y, z, turn=None):
    return Pose(position=Point(x=float(x), y=float(y), z=float(z)), orientation=Quaternion(**(turn or {})))


def solid(kind, *size):
    return SolidPrimitive(type=kind, dimensions=list(size))


def scene(*objects, diff=True, attached=(), octomap=()):
    octomap = SimpleNamespace(octomap=SimpleNamespace(id='OcTree' if len(octomap) else '', data=octomap))
    held = [SimpleNamespace(object=thing) for thing in attached]
    return SimpleNamespace(
        is_diff=diff,
        robot_state=SimpleNamespace(attached_collision_objects=held),
        world=SimpleNamespace(collision_objects=list(objects), octomap=octomap),
    )


BOX = solid(SolidPrimitive.BOX, 0.1, 0.2, 0.3)
QUARTER = {'z': np.sin(np.pi / 4), 'w': np.cos(np.pi / 4)}


def world(*objects):
    w = World(CollisionObject, 'base')
    w.apply(scene(*objects, diff=False), whole=True)
    return w


def names(w):
    found, wrong, _ = w.obstacles()
    assert not wrong
    return [o.name for o in found]


def test_every_shape_is_at_its_given_pose():
    mesh = Mesh(
        vertices=[Point(x=0.0), Point(x=1.0), Point(y=1.0)],
        triangles=[MeshTriangle(vertex_indices=np.array([0, 1, 2], np.uint32))],
    )
    ball, can = solid(SolidPrimitive.SPHERE, 0.05), solid(SolidPrimitive.CYLINDER, 0.4, 0.1)
    shelf = CollisionObject(
        'shelf', BOX, ball, can, mesh,
        pose=at(1, 0, 0, QUARTER), poses=[at(0.5, 0, 0), at(0, 0, 1), at(0, 0, 0), at(0, 2, 0)],
    )  # fmt: skip
    found, wrong, left_out = world(shelf).obstacles()
    assert (wrong, left_out) == ([], [])
    box, sphere, cylinder, sheet = found
    assert [o.name for o in found] == ['shelf', 'shelf[1]', 'shelf[2]', 'shelf[3]']
    assert box.box == (0.1, 0.2, 0.3)
    np.testing.assert_allclose(box.position, [1, 0.5, 0])  # the object is turned by a quarter
    np.testing.assert_allclose(box.rotation, [[0, -1, 0], [1, 0, 0], [0, 0, 1]], atol=1e-12)
    assert sphere.sphere == 0.05
    np.testing.assert_allclose(sphere.position, [1, 0, 1])
    assert cylinder.box == (0.2, 0.2, 0.4)
    np.testing.assert_allclose(sheet.position, [-1, 0, 0], atol=1e-12)
    np.testing.assert_array_equal(sheet.mesh[0][1], [1, 0, 0])
    np.testing.assert_array_equal(sheet.mesh[1], [[0, 1, 2]])


def test_changes_are_followed():
    w = world(CollisionObject('a', BOX), CollisionObject('b', BOX))
    w.apply(scene(CollisionObject('c', BOX), CollisionObject('a', operation=b'\x01')), whole=False)
    assert names(w) == ['b', 'c']
    assert w.obstacles()[0][0] is w.obstacles()[0][0]  # what the collision monitor has built of it stays
    w.apply(scene(CollisionObject('c', operation=b'\x03', pose=at(0, 0, 2))), whole=False)
    w.apply(scene(CollisionObject('gone', operation=b'\x03', pose=at(0, 0, 2))), whole=False)
    assert [o.position[2] for o in w.obstacles()[0]] == [0, 2]
    w.apply(scene(CollisionObject('b', BOX, operation=b'\x02')), whole=False)
    assert names(w) == ['b', 'b[1]', 'c']
    w.apply(scene(attached=[CollisionObject('b', BOX)]), whole=False)  # in the hand now
    assert names(w) == ['c']
    w.apply(scene(CollisionObject('', operation=b'\x01')), whole=False)
    assert names(w) == []
    w.apply(scene(CollisionObject('d', BOX), diff=False), whole=True)
    assert names(w) == ['d']


def test_what_cannot_be_monitored_is_named():
    cone = solid(SolidPrimitive.CONE, 0.1, 0.1)
    floor, hat = CollisionObject('floor', Plane(), BOX), CollisionObject('hat', cone)
    w = world(floor, hat, CollisionObject('far', BOX, frame='x'))
    found, wrong, left_out = w.obstacles()
    assert [o.name for o in found] == ['floor']
    assert wrong == ["object far is in frame 'x', must be in base"]
    assert left_out[0].startswith('plane floor[1] is not monitored')
    assert left_out[1].startswith('cone hat')
    w.apply(scene(octomap=[1]), whole=False)
    assert 'the octomap is not monitored' in w.obstacles()[2]
    lost = CollisionObject('lost', BOX, pose=at(0, 0, 0, {'w': 0.0}))
    assert 'object lost cannot be used: quaternion' in world(lost).obstacles()[1][0]


class CollisionMonitor:
    def __init__(self):
        self.obstacles = None

    def set_obstacles(self, obstacles):
        if any(o.name == 'broken' for o in obstacles):
            raise ValueError('obstacle broken: its mesh is empty')
        self.obstacles = [o.name for o in obstacles]


@pytest.fixture
def scenes(monkeypatch):
    """By name, as the wire knows them: PlanningScene is played by String, GetPlanningScene by Trigger."""
    known = {'': scene()}
    part = SimpleNamespace(ROBOT_STATE_ATTACHED_OBJECTS=4, WORLD_OBJECT_NAMES=8, WORLD_OBJECT_GEOMETRY=16, OCTOMAP=32)
    monkeypatch.setattr(Trigger.Request, 'components', property(lambda _: part), raising=False)
    monkeypatch.setattr(Trigger.Response, 'scene', property(lambda r: deepcopy(known[r.message])), raising=False)
    for attribute in ('is_diff', 'robot_state', 'world'):
        monkeypatch.setattr(
            String, attribute, property(lambda m, a=attribute: getattr(deepcopy(known[m.data]), a)), raising=False
        )
    for name, content in {
        'moveit_msgs': {},
        'moveit_msgs.srv': {'GetPlanningScene': Trigger},
        'moveit_msgs.msg': {'PlanningScene': String, 'CollisionObject': CollisionObject},
    }.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**content))
    monkeypatch.setattr(planning_scene, 'ASK_EVERY', 0.02)
    return known


def test_the_collision_monitor_has_the_scene_of_move_group(ros, scenes):
    scenes |= {
        'first': scene(CollisionObject('table', BOX), diff=False),
        'more': scene(CollisionObject('crate', BOX)),
        'nothing': scene(),
        'wrong': scene(CollisionObject('lamp', BOX, frame='map')),
        'broken': scene(CollisionObject('broken', BOX)),
        'restarted': scene(CollisionObject('shelf', BOX), diff=False),
    }
    monitor = CollisionMonitor()
    ours = PlanningScene(ros.add('executor'), monitor, 'base')
    assert 'does /get_planning_scene answer' in ours.problems()[0]
    move_group = ros.add('move_group')
    out = move_group.create_publisher(String, 'monitored_planning_scene', 10)
    ros.wait(out.get_subscription_count, 'the executor listens')
    out.publish(String(data='more'))
    ros.wait(lambda: ours._early, 'it is heard before the scene')
    assert monitor.obstacles is None

    def answer(request, response):
        response.message = 'first'
        return response

    move_group.create_service(Trigger, 'get_planning_scene', answer)
    ros.wait(lambda: monitor.obstacles == ['table', 'crate'], 'the scene and what changed since')
    assert ours.problems() == []
    out.publish(String(data='wrong'))
    ros.wait(ours.problems, 'a frame that is not ours')
    assert "object lamp is in frame 'map'" in ours.problems()[0]
    assert monitor.obstacles == ['table', 'crate']
    out.publish(String(data='broken'))
    ros.wait(lambda: len(ours.problems()) == 2, 'what the collision monitor refuses')
    out.publish(String(data='restarted'))
    ros.wait(lambda: monitor.obstacles == ['shelf'], 'a whole scene replaces all')
    assert ours.problems() == []
    monitor.obstacles = None
    out.publish(String(data='nothing'))
    out.publish(String(data='more'))
    ros.wait(lambda: monitor.obstacles, 'the next change')
    assert monitor.obstacles == ['shelf', 'crate']
    ours.close()


def test_moveit_is_asked_for_by_name(ros, monkeypatch):
    monkeypatch.setitem(sys.modules, 'moveit_msgs.srv', None)
    with pytest.raises(ValueError, match=r'moveit.obstacles needs moveit_msgs/srv/GetPlanningScene'):
        PlanningScene(ros.add('executor'), CollisionMonitor(), 'base')
