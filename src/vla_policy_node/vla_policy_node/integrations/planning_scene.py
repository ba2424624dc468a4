"""Objects of MoveIt's planning scene as obstacles of the collision monitor."""

from typing import TYPE_CHECKING, Any

import numpy as np
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.task import Future

from vla_core.kinematics.ik import quaternion_matrix
from vla_core.profile import RobotProfile
from vla_policy_node.ros import qos
from vla_policy_node.ros.optional import message_type
from vla_policy_node.ros.parameters import declare

if TYPE_CHECKING:  # it loads Pinocchio
    from vla_core.kinematics.collision_monitor import CollisionMonitor, Obstacle

ASK_EVERY, ASK_AGAIN = 0.5, 5.0  # [s] of wall time: a look for move_group; a question that got no answer
_SHAPES = (('primitives', 'primitive_poses'), ('meshes', 'mesh_poses'), ('planes', 'plane_poses'))
_BOX, _SPHERE, _CYLINDER = 1, 2, 3  # of shape_msgs/SolidPrimitive
_OTHERS = {4: 'cone', 5: 'prism'}


class World:
    """The collision objects of a planning scene, kept up to date by its messages (moveit_msgs/PlanningScene).

    operations: moveit_msgs/CollisionObject, for its constants. base: frame that objects must be in.
    """

    def __init__(self, operations: Any, base: str) -> None:
        self._operations, self._base = operations, base
        self._objects: dict[str, Any] = {}  # messages, by id
        self._converted: dict[str, tuple[list[Obstacle], list[str], list[str]]] = {}  # of those that did not change
        self._octomap = False

    def apply(self, scene: Any, whole: bool) -> None:
        """A whole scene, or what changed. What the robot took into its hand is no obstacle any more."""
        if whole:
            self._objects.clear()
            self._converted.clear()
        for attached in scene.robot_state.attached_collision_objects:
            if attached.object.operation == self._operations.ADD:
                self._objects.pop(attached.object.id, None)
        for item in scene.world.collision_objects:
            self._change(item)
        if whole or scene.world.octomap.octomap.id:
            self._octomap = len(scene.world.octomap.octomap.data) > 0

    def _change(self, item: Any) -> None:
        known = self._objects.get(item.id)
        self._converted.pop(item.id, None)
        if item.operation == self._operations.REMOVE:
            if item.id:
                self._objects.pop(item.id, None)
            else:
                self._objects.clear()
        elif item.operation == self._operations.MOVE:
            if known is not None:
                known.header, known.pose = item.header, item.pose
                for _, poses in _SHAPES:
                    setattr(known, poses, list(getattr(item, poses)) or getattr(known, poses))
        elif item.operation == self._operations.APPEND and known is not None:
            for name in (name for pair in _SHAPES for name in pair):
                setattr(known, name, [*getattr(known, name), *getattr(item, name)])
        else:
            self._objects[item.id] = item

    def obstacles(self) -> tuple[list['Obstacle'], list[str], list[str]]:
        """Boxes, spheres and meshes, cylinders as the boxes around them; what must not be there, and what is left out,
        one sentence each."""
        found: list[Obstacle] = []
        wrong: list[str] = []
        left_out = ['the octomap is not monitored'] * self._octomap
        for name, item in self._objects.items():
            if name not in self._converted:
                self._converted[name] = self._convert(name, item)
            usable, bad, strange = self._converted[name]
            found, wrong, left_out = found + usable, wrong + bad, left_out + strange
        return found, wrong, left_out

    def _convert(self, name: str, item: Any) -> tuple[list['Obstacle'], list[str], list[str]]:
        from vla_core.kinematics.collision_monitor import Obstacle

        found: list[Obstacle] = []
        left_out: list[str] = []
        frame = item.header.frame_id
        if frame.lstrip('/') != self._base:
            return [], [f'object {name} is in frame {frame!r}, must be in {self._base}'], []
        try:
            for i, (shape, place) in enumerate(_placed(item)):
                label = f'{name}[{i}]' if i else name
                kind = _kind(shape)
                if isinstance(kind, str):
                    left_out.append(f'{kind} {label} is not monitored: only boxes, spheres, cylinders and meshes are')
                else:
                    found.append(Obstacle(label, place[:3, 3], place[:3, :3], **kind))
        except (ValueError, IndexError) as error:
            return [], [f'object {name} cannot be used: {error}'], []
        return found, [], left_out


def _placed(item: Any) -> list[tuple[Any, np.ndarray]]:
    """The shapes of a collision object, each with its pose (4, 4) in the object's frame_id."""
    origin = _matrix(item.pose)
    placed = []
    for shapes, poses in _SHAPES:
        given = list(getattr(item, poses))
        for i, shape in enumerate(getattr(item, shapes)):  # a pose that is left out is the object's own
            placed.append((shape, origin @ _matrix(given[i]) if i < len(given) else origin))
    return placed


def _matrix(pose: Any) -> np.ndarray:
    p, q = pose.position, pose.orientation
    matrix = np.eye(4)
    matrix[:3, :3] = quaternion_matrix(np.array([q.w, q.x, q.y, q.z]))
    matrix[:3, 3] = p.x, p.y, p.z
    return matrix


def _kind(shape: Any) -> dict[str, Any] | str:
    """The shape as arguments of an Obstacle, or what it is called where there is none for it."""
    if hasattr(shape, 'vertices'):
        vertices = np.array([(p.x, p.y, p.z) for p in shape.vertices], float)
        return {'mesh': (vertices, np.array([t.vertex_indices for t in shape.triangles], int))}
    if hasattr(shape, 'coef'):
        return 'plane'
    size = [float(x) for x in shape.dimensions]
    if shape.type == _BOX:
        return {'box': (size[0], size[1], size[2])}
    if shape.type == _SPHERE:
        return {'sphere': size[0]}
    if shape.type == _CYLINDER:  # height, radius
        return {'box': (2 * size[1], 2 * size[1], size[0])}
    return _OTHERS.get(shape.type, f'shape {shape.type}')


class PlanningScene:
    """Keeps the collision monitor's obstacles those of move_group: asks for them once, then receives changes.

    Until it has received them, and while one cannot be monitored, `problems` speaks against activation.
    Raises ValueError when moveit_msgs is not installed.
    """

    def __init__(self, node: Node, monitor: 'CollisionMonitor', base: str) -> None:
        wanted_by = 'moveit.obstacles'
        get = message_type('moveit_msgs', 'srv', 'GetPlanningScene', wanted_by)
        changes = message_type('moveit_msgs', 'msg', 'PlanningScene', wanted_by)
        self._world = World(message_type('moveit_msgs', 'msg', 'CollisionObject', wanted_by), base)
        self._node, self._monitor = node, monitor
        self._early: list[Any] | None = []  # changes received before the scene itself
        self._asked: Future | None = None
        self._left_out: list[str] = []
        self._client = node.create_client(get, 'get_planning_scene')
        service = node.resolve_service_name('get_planning_scene')
        self._wrong = [f'the planning scene is not known yet: does {service} answer, is move_group running?']
        part = get.Request().components
        self._request = get.Request()
        self._request.components.components = (
            part.ROBOT_STATE_ATTACHED_OBJECTS | part.WORLD_OBJECT_NAMES | part.WORLD_OBJECT_GEOMETRY | part.OCTOMAP
        )
        self._subscription = node.create_subscription(changes, 'monitored_planning_scene', self._on_change, qos.CHANGES)
        self._waited = 0.0
        self._timer = node.create_timer(ASK_EVERY, self._ask, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def problems(self) -> list[str]:
        """What speaks against activating, one sentence each."""
        return self._wrong

    def close(self) -> None:
        self._node.destroy_timer(self._timer)
        self._node.destroy_subscription(self._subscription)
        self._node.destroy_client(self._client)

    def _ask(self) -> None:
        if self._early is None:
            self._timer.cancel()
            return
        self._waited += ASK_EVERY
        if self._asked is not None and self._waited < ASK_AGAIN:
            return
        if self._asked is not None:
            self._client.remove_pending_request(self._asked)
        self._asked, self._waited = None, 0.0
        if self._client.service_is_ready():
            self._asked = self._client.call_async(self._request)
            self._asked.add_done_callback(self._on_scene)

    def _on_scene(self, answer: Future) -> None:
        early, self._early = self._early, None
        self._world.apply(answer.result().scene, whole=True)
        for change in early or ():
            self._world.apply(change, whole=not change.is_diff)
        self._pass_on()

    def _on_change(self, change: Any) -> None:
        if self._early is not None:
            self._early.append(change)
            return
        self._world.apply(change, whole=not change.is_diff)
        attached = change.robot_state.attached_collision_objects
        if not change.is_diff or attached or change.world.collision_objects or change.world.octomap.octomap.id:
            self._pass_on()  # else it holds only the state of the robot

    def _pass_on(self) -> None:
        obstacles, wrong, left_out = self._world.obstacles()
        try:
            self._monitor.set_obstacles(obstacles)
        except ValueError as error:  # those before stay
            wrong.append(str(error))
        for problem in wrong:
            if problem not in self._wrong:
                self._node.get_logger().error(f'planning scene: {problem}')
        for problem in left_out:
            if problem not in self._left_out:
                self._node.get_logger().warning(f'planning scene: {problem}')
        self._wrong, self._left_out = wrong, left_out


def planning_scene(node: Node, monitor: 'CollisionMonitor | None', profile: RobotProfile) -> PlanningScene | None:
    """Return the subscriber of the planning scene; None unless `moveit.obstacles` is set.

    Raises ValueError without a collision monitor, which would use the obstacles, or without moveit_msgs.
    """
    about = "the collision monitor's obstacles are those of the planning scene of MoveIt"
    if not declare(node, 'moveit.obstacles', False, about):
        return None
    if monitor is None:
        raise ValueError(
            'moveit.obstacles is set, but collision_monitor.enabled is not: nothing would keep away from them'
        )
    return PlanningScene(node, monitor, profile.base_frame)
