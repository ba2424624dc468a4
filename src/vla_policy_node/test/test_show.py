"""The show node over real DDS: a small world sends what a robot and a policy send; and the parts it stands on."""

import array
import html
import re
from pathlib import Path as File
from types import SimpleNamespace

import numpy as np
import pytest
from builtin_interfaces.msg import Duration
from geometry_msgs.msg import TransformStamped
from nav_msgs.msg import Path
from PIL import ImageColor
from rclpy.parameter import Parameter
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import String
from tf2_msgs.msg import TFMessage
from trajectory_msgs.msg import JointTrajectory
from visualization_msgs.msg import Marker, MarkerArray

from vla_core.clocks import FUTURE_TOLERANCE, NS, OVERTAKING
from vla_core.kinematics.arm import load_kinematics
from vla_core.kinematics.frames import FrameError, Frames
from vla_core.kinematics.ik import quaternion_matrix, rotation_matrix
from vla_core.kinematics.projection import project
from vla_core.motion.states import Hold, State
from vla_core.profile import RobotProfile
from vla_model.types import Chunk
from vla_msgs.msg import ActionChunk, ExecutorStatus, PolicyStatus, VisualTrace
from vla_policy_node.ros import qos
from vla_policy_node.ros.chunk_msg import chunk_msg, to_ns, to_time
from vla_policy_node.ros.image_msg import image_msg
from vla_policy_node.ros.images import decode_image
from vla_policy_node.show import messages
from vla_policy_node.show.executed import MOST, Executed
from vla_policy_node.show.pair import Pairing
from vla_policy_node.show.pictures import MARK, draw_trace
from vla_policy_node.show.show_node import ShowNode
from vla_policy_node.show.sources import Source, stamp_of
from vla_policy_node.show.words import SCENE, SCREEN, words

PROFILE = File(__file__).parents[2] / 'vla_bringup' / 'config' / 'robots' / 'sim_panda.yaml'
BASE, OPTICAL = 'panda_link0', 'front_camera_optical_frame'
TOPICS = {
    'text': Marker,
    'predicted_path': Path,
    'predicted_markers': MarkerArray,
    'trajectory': JointTrajectory,
    'executed_path': Path,
    'trace': VisualTrace,
    'trace_image': Image,
    'predicted_and_observed': Image,
}


class World:
    """Robot, camera and policy: sends all that the show node may want, every 30 ms."""

    def __init__(self, node, urdf):
        self.node, self.profile, self.urdf = node, RobotProfile.load(PROFILE), urdf
        self.sequence, self.source, self.camera, self.early = 0, '/policy', True, 0
        self.named = {'front': [12.0], 'wrist': [50.0]}
        self.info = CameraInfo(
            width=64, height=64, k=[60.0, 0.0, 31.5, 0.0, 60.0, 31.5, 0.0, 0.0, 1.0], distortion_model='plumb_bob'
        )
        out = node.create_publisher
        self.joints = out(JointState, 'joint_states', qos.SENSOR_OUT)
        self.chunks = out(ActionChunk, 'action_chunk', qos.CHUNK)
        self.images = out(Image, 'front/image_raw', qos.SENSOR_OUT)
        self.infos = out(CameraInfo, 'front/camera_info', qos.SENSOR_OUT)
        self.predicted = out(Image, 'policy/predicted_image', qos.SENSOR_OUT)
        self.status = out(PolicyStatus, 'policy/status', qos.STATUS)
        self.pointed = out(VisualTrace, 'policy/pointed', qos.STATUS)
        self.tf = out(TFMessage, '/tf', qos.STATUS)
        self.fixed = out(TFMessage, '/tf_static', qos.LATCHED)
        self.description = out(String, 'robot_description', qos.LATCHED)
        self.description.publish(String(data=urdf))
        self.plan = out(String, 'policy/plan_text', qos.LATCHED)
        self.plan.publish(String(data='first the bowl'))
        self.executor = out(ExecutorStatus, 'executor/status', qos.LATCHED)
        self.executor.publish(ExecutorStatus(state=State.BRAKING, hold_reason=Hold.WORKSPACE, message='too far'))
        # Above the table, looking down: x of the picture is -y of the base, y of the picture -x.
        self.pose = TransformStamped(child_frame_id=OPTICAL)
        self.pose.header.frame_id = BASE
        self.pose.transform.translation.x, self.pose.transform.translation.z = 0.4, 1.5
        turn = np.array([[0.0, -1, 0], [-1, 0, 0], [0, 0, -1]])
        q = self.pose.transform.rotation
        q.w, q.x, q.y, q.z = 0.0, 1 / np.sqrt(2), -1 / np.sqrt(2), 0.0
        np.testing.assert_allclose(quaternion_matrix(np.array([q.w, q.x, q.y, q.z])), turn, atol=1e-12)
        self.fixed.publish(TFMessage(transforms=[self.pose]))
        node.create_timer(0.03, self.publish)

    def publish(self):
        now = self.node.get_clock().now().nanoseconds
        stamp = to_time(now)
        state = JointState(name=[*self.profile.joint_names], position=list(self.profile.home), velocity=[0.0] * 7)
        state.header.stamp = stamp
        self.joints.publish(state)
        self.sequence += 1
        positions = self.profile.home + 0.02 * np.arange(1, 9)[:, None]
        chunk = Chunk(positions, np.zeros(8), 0.1, frozen=1, confidence=np.linspace(0.3, 1, 8, dtype=np.float32))
        self.chunks.publish(
            chunk_msg(
                chunk,
                t_ref=now + self.early,
                frame_id=BASE,
                epoch=0,
                sequence=self.sequence,
                source=self.source,
                joint_names=self.profile.joint_names,
                shadow=True,
            )
        )
        if self.camera:
            self.images.publish(image_msg(stamp, OPTICAL, np.full((64, 64, 3), 90, np.uint8)))
            self.infos.publish(self.info)
        self.predicted.publish(image_msg(to_time(now + 100_000_000), OPTICAL, np.full((32, 32, 3), 90, np.uint8)))
        status = PolicyStatus(state=PolicyStatus.STATE_RUNNING, instruction='fill it', surprise=0.25, chunks=1)
        self.status.publish(status)
        for camera in ('front', 'wrist'):
            named = VisualTrace(kind=VisualTrace.NAMED, camera=camera, u=self.named[camera], v=[20.0])
            named.header.stamp = stamp
            self.pointed.publish(named)


@pytest.fixture
def show(ros, panda_urdf):
    """(world, show node, the bench)"""
    node = ros.add(
        'show',
        lambda name, **kwargs: ShowNode(
            name,
            cli_args=['--ros-args', '--params-file', str(PROFILE)],
            parameter_overrides=[Parameter(f'rates.{topic}', value=30.0) for topic in TOPICS],
            **kwargs,
        ),
    )
    return World(ros.add('world'), panda_urdf.read_text()), node, ros


def look(ros, world, topic):
    """Subscribe, and return the list that fills."""
    got = []
    subscription = world.node.create_subscription(TOPICS[topic], f'show/{topic}', got.append, qos.STATUS)
    return got, subscription


def listens_to(node):
    return {subscription.topic_name for subscription in node.subscriptions} - {'/parameter_events'}


NEEDS = {
    'text': {'/policy/status', '/policy/plan_text', '/executor/status'},
    'predicted_path': {'/action_chunk', '/robot_description'},
    'predicted_markers': {'/action_chunk', '/robot_description'},
    'trajectory': {'/action_chunk', '/robot_description'},
    'executed_path': {'/joint_states', '/robot_description'},
    'trace': {
        '/action_chunk', '/robot_description', '/joint_states', '/front/image_raw', '/front/camera_info', '/tf',
        '/tf_static',
    },
    'predicted_and_observed': {'/policy/predicted_image', '/front/image_raw', '/policy/status'},
}  # fmt: skip
NEEDS['trace_image'] = NEEDS['trace'] | {'/policy/pointed'}


def test_nothing_runs_for_topics_without_subscriber(show, monkeypatch):
    world, node, ros = show
    stored = []
    original = Source._store
    monkeypatch.setattr(Source, '_store', lambda self, data: (stored.append(self.topic), original(self, data)))
    ros.wait(lambda: world.sequence > 20, 'the world goes on')
    assert not listens_to(node)
    assert not stored
    for topic, needs in NEEDS.items():
        got, subscription = look(ros, world, topic)
        ros.wait(lambda g=got: g, f'messages of {topic}')
        assert listens_to(node) == needs
        world.node.destroy_subscription(subscription)
        ros.wait(lambda: not listens_to(node), f'{topic} is left')
        del stored[:]
        mark = world.sequence
        ros.wait(lambda m=mark: world.sequence > m + 5, 'the world goes on')
        assert not stored


def test_paths_and_trajectory_are_the_tools(show, panda_urdf):
    world, _, ros = show
    names = ('predicted_path', 'predicted_markers', 'trajectory', 'executed_path')
    got = {name: look(ros, world, name)[0] for name in names}
    ros.wait(lambda: all(got[n] and getattr(got[n][-1], 'poses', True) for n in names), 'all of them')
    kinematics = load_kinematics(panda_urdf.read_text(), world.profile)
    path = got['predicted_path'][-1]
    assert path.header.frame_id == BASE
    assert len(path.poses) == 8
    for i, pose in enumerate(path.poses):
        position, rotation, _ = kinematics(world.profile.home + 0.02 * (i + 1))
        p, o = pose.pose.position, pose.pose.orientation
        np.testing.assert_allclose([p.x, p.y, p.z], position, atol=1e-9)
        np.testing.assert_allclose(quaternion_matrix(np.array([o.w, o.x, o.y, o.z])), rotation, atol=1e-9)
        assert to_ns(pose.header.stamp) - to_ns(path.header.stamp) == (i + 1) * 100_000_000
    line, balls = got['predicted_markers'][-1].markers
    assert (line.type, balls.type) == (Marker.LINE_STRIP, Marker.SPHERE_LIST)
    colours = [(c.r, c.g, c.b) for c in balls.colors]
    assert colours[0] == (1.0, 1.0, 1.0)  # given, not decided
    assert colours[-1] == (0.0, 1.0, 0.0)  # sure
    assert colours[1][0] == 1.0 and 0 < colours[1][1] < 1  # less so
    assert {c.a for c in balls.colors} < {0.45, np.float32(0.45)}  # in shadow
    trajectory = got['trajectory'][-1]
    assert tuple(trajectory.joint_names) == world.profile.joint_names
    np.testing.assert_allclose(trajectory.points[7].positions, world.profile.home + 0.16)
    assert trajectory.points[0].time_from_start == Duration(nanosec=100_000_000)
    p = got['executed_path'][-1].poses[-1].pose.position
    np.testing.assert_allclose([p.x, p.y, p.z], kinematics(world.profile.home)[0], atol=1e-9)


def test_a_chunk_that_ran_out_is_taken_away(show):
    world, _, ros = show
    paths, _ = look(ros, world, 'predicted_path')
    markers, _ = look(ros, world, 'predicted_markers')
    ros.wait(lambda: paths and paths[-1].poses and markers and markers[-1].markers[0].action == Marker.ADD, 'a path')
    world.source = '/somebody'  # the policy's own end
    ros.wait(lambda: not paths[-1].poses, 'an empty path')
    ros.wait(lambda: markers[-1].markers[0].action == Marker.DELETEALL, 'no markers')


def test_a_chunk_that_is_ahead_of_the_clock_is_not_shown(show):
    world, _, ros = show
    paths, _ = look(ros, world, 'predicted_path')
    ros.wait(lambda: paths and paths[-1].poses, 'a path')
    world.early = int((FUTURE_TOLERANCE + 0.1) * NS)
    ros.wait(lambda: not paths[-1].poses, 'an empty path')


def test_the_trace_begins_at_the_tool_in_the_picture(show, panda_urdf):
    world, _, ros = show
    traces, _ = look(ros, world, 'trace')
    images, _ = look(ros, world, 'trace_image')
    ros.wait(lambda: traces and len(traces[-1].u) == 9, 'a trace of the tool and eight steps')
    x, y, z = load_kinematics(panda_urdf.read_text(), world.profile)(world.profile.home)[0]
    u, v = 31.5 + 60 * -y / (1.5 - z), 31.5 + 60 * -(x - 0.4) / (1.5 - z)
    trace = traces[-1]
    np.testing.assert_allclose((trace.u[0], trace.v[0]), (u, v), atol=1e-3)
    assert (trace.camera, trace.width, trace.height, trace.kind) == ('front', 64, 64, VisualTrace.PREDICTED)
    assert trace.header.frame_id == OPTICAL
    ros.wait(lambda: len(images) > 1, 'pictures')
    assert images[-1].header.frame_id == OPTICAL

    def yellow():
        red, _, blue = decode_image(images[-1], 't')[20, 12]
        return red > 200 > blue

    ros.wait(yellow, 'a cross where the policy points to in this camera')
    at_other = decode_image(images[-1], 't')[20, 50]
    assert at_other.tolist() != list(ImageColor.getrgb(MARK)), 'and none of another camera'


def test_a_picture_reports_why_there_is_no_trace(show):
    world, _, ros = show
    traces, _ = look(ros, world, 'trace')
    images, _ = look(ros, world, 'trace_image')
    world.info = CameraInfo(width=64, height=64)
    ros.wait(lambda: images and (decode_image(images[-1], 't') != 90).any(), 'words in the picture')
    assert not traces


def test_pictures_come_again_with_the_camera(show):
    world, _, ros = show
    images, _ = look(ros, world, 'trace_image')
    pairs, _ = look(ros, world, 'predicted_and_observed')
    ros.wait(lambda: images and pairs, 'pictures')
    assert (pairs[-1].width, pairs[-1].height) == (644, 368)
    world.camera = False
    mark = world.sequence
    ros.wait(lambda: world.sequence > mark + 10, 'the world goes on')
    count = len(images)
    ros.wait(lambda: world.sequence > mark + 20, 'the world goes on')
    assert len(images) == count  # an old picture is not sent as a new one
    world.camera = True
    ros.wait(lambda: len(images) > count + 2, 'pictures again')


def test_the_text_beside_the_base(show):
    world, _, ros = show
    texts, _ = look(ros, world, 'text')
    parts = ('"fill it"', 'first the bowl', 'surprise 0.25', 'in shadow', 'executor braking, WORKSPACE: too far')
    ros.wait(lambda: texts and all(part in texts[-1].text for part in parts), 'the text')
    marker = texts[-1]
    assert marker.type == Marker.TEXT_VIEW_FACING and marker.header.frame_id == BASE
    assert marker.scale.x == pytest.approx(0.5 * marker.scale.z)  # else RViz makes each space 0.7 m wide


@pytest.mark.parametrize('yaw', [0.0, 0.35, 0.7])
def test_the_text_stands_beside_the_robot_and_not_before_it(ros, yaw):
    """Seen from the front, up to the view of the RViz configurations."""
    node = ros.add('show', ShowNode, cli_args=['--ros-args', '--params-file', str(PROFILE)])
    status = PolicyStatus(state=PolicyStatus.STATE_RUNNING, instruction='put the bowl ' * 10, message='x' * 100, code=1)
    text = words(status, 'first the bowl, then the drawer, ' * 10, None, SCENE)
    marker = messages.text_marker(to_time(0), BASE, text, node._place, node._height)
    longest = max(len(line) for line in text.split('\n'))
    assert longest <= SCENE and len(text.split('\n')) > 10
    half = 0.5 * longest * marker.scale.z  # letters are as wide as that on the average
    right = np.array([-np.sin(yaw), np.cos(yaw)])  # of the screen, in the plane of the base
    middle = right @ [marker.pose.position.x, marker.pose.position.y]
    arm = [right @ [x, 0.0] for x in (0.0, 0.6)]  # where its tool works
    assert middle + half < min(arm) or middle - half > max(arm)


class Overlay(SimpleNamespace):
    """Stands for rviz_2d_overlay_msgs/OverlayText, which the suite does not install."""

    ADD, LEFT, TOP = 0, 0, 3

    def __init__(self, **fields):
        super().__init__(**fields, fg_color=SimpleNamespace(), bg_color=SimpleNamespace())


def test_the_text_on_the_screen_is_shown_as_written_and_in_full():
    """Its display takes text as HTML, and cuts what is below its box."""
    text = '"press the <red> button & the one at <0.2 m; <img src=x>"\npolicy running'
    msg = messages.overlay_text(Overlay, text)
    assert html.unescape(re.sub('<[^>]*>', '', msg.text)) == text
    assert messages.overlay_text(Overlay, text + 20 * '\nline').height >= msg.height + 20 * 17


def test_words_of_no_goal_or_source():
    assert words(None, '', None, SCREEN) == 'policy: not heard\nexecutor: not heard'


def test_a_node_that_ended_is_not_shown_as_if_it_ran(show, monkeypatch):
    """The newest status of a policy that was killed says "running" for ever."""
    world, _, ros = show
    texts, _ = look(ros, world, 'text')
    ros.wait(lambda: texts and 'executor braking' in texts[-1].text, 'the text')
    assert 'SILENT' not in texts[-1].text
    monkeypatch.setattr('vla_policy_node.show.words.SILENT', -1.0)  # any age is too old
    marked = r'policy SILENT for \d+ s, before that.*executor SILENT for \d+ s, before that braking'
    ros.wait(lambda: re.search(marked, ' '.join(texts[-1].text.split())), 'the marks')


def test_words_of_a_status_that_is_old():
    text = words(PolicyStatus(state=PolicyStatus.STATE_RUNNING, drive=True), '', None, SCREEN, (12.0, 0.0))
    assert text.startswith('policy SILENT for 12 s, before that running, drives')


def test_a_source_knows_how_old_its_newest_message_is(ros):
    source = Source(ros.add('source'), String, 'words', qos.STATUS)
    source.open()
    sender = ros.add('sender').create_publisher(String, 'words', qos.STATUS)
    assert source.age == 0.0  # nothing is old yet
    ros.wait(lambda: sender.get_subscription_count() > 0, 'the source')
    sender.publish(String(data='x'))
    ros.wait(lambda: source.age > 0.0, 'its age')
    source.close()
    assert source.age == 0.0


def test_an_output_with_rate_zero_is_not_there(ros):
    node = ros.add(
        'show',
        lambda name, **kwargs: ShowNode(
            name,
            cli_args=['--ros-args', '--params-file', str(PROFILE)],
            parameter_overrides=[Parameter('rates.trace', value=0.0)],
            **kwargs,
        ),
    )
    topics = {name for name, _ in node.get_publisher_names_and_types_by_node('show', '/')}
    assert '/show/trace' not in topics and '/show/trace_image' in topics


# ---- the parts


def test_stamps_are_read_from_the_bytes():
    state = JointState()
    state.header.stamp = to_time(-3_000_000_000 + 7)
    assert stamp_of(serialize_message(state)) == -3_000_000_000 + 7


def transform(rng):
    return rng.normal(size=4), rng.normal(size=3)


def test_poses_go_up_and_down_the_tree():
    rng = np.random.default_rng(0)
    frames, truth = Frames(), {'world': np.eye(4)}
    for parent, child in (('world', 'base'), ('base', 'link'), ('link', 'camera'), ('base', 'tool')):
        q, t = transform(rng)
        frames.put(parent, child, 5, q, t, fixed=parent == 'link')
        m = np.eye(4)
        m[:3, :3], m[:3, 3] = quaternion_matrix(q), t
        truth[child] = truth[parent] @ m
    for a, pose_a in truth.items():
        for b, pose_b in truth.items():
            rotation, translation = frames.pose(a, b, 5)
            want = np.linalg.inv(pose_b) @ pose_a
            np.testing.assert_allclose(rotation, want[:3, :3], atol=1e-12)
            np.testing.assert_allclose(translation, want[:3, 3], atol=1e-12)


def test_between_two_transforms_it_is_in_between_and_outside_it_is_refused():
    frames = Frames()
    for stamp, angle in ((0, 0.0), (100, 0.1)):
        quaternion = np.array([np.cos(angle / 2), 0, 0, np.sin(angle / 2)])
        frames.put('base', 'hand', stamp * 10**6, -quaternion if stamp else quaternion, np.array([angle, 0, 0]), False)
    rotation, translation = frames.pose('hand', 'base', 25 * 10**6)
    np.testing.assert_allclose(rotation, rotation_matrix(np.array([0, 0, 0.025])), atol=1e-5)
    np.testing.assert_allclose(translation, [0.025, 0, 0])
    with pytest.raises(FrameError, match=r'only until 0\.20 s before'):
        frames.pose('hand', 'base', 300 * 10**6)
    with pytest.raises(FrameError, match='only from'):
        frames.pose('hand', 'base', -1)
    with pytest.raises(FrameError, match='no transforms between base and eye'):
        frames.pose('eye', 'base', 0)
    with pytest.raises(ValueError, match='not finite'):
        frames.put('base', 'hand', 0, np.zeros(4), np.zeros(3), False)
    frames.put('hand', 'base', 0, np.array([1.0, 0, 0, 0]), np.zeros(3), False)
    with pytest.raises(FrameError, match='parents of one another'):
        frames.pose('hand', 'base', 0)


def info(**kwargs):
    k = [100.0, 0.0, 50.0, 0.0, 110.0, 40.0, 0.0, 0.0, 1.0]
    none = SimpleNamespace(x_offset=0, y_offset=0)
    return SimpleNamespace(**{'k': k, 'p': [], 'd': [], 'distortion_model': '', 'binning_x': 0, 'binning_y': 0,
                              'roi': none, **kwargs})  # fmt: skip


POINTS = np.array([[0.2, 0.1, 1.0], [0.4, 0.2, 2.0], [0.1, 0.1, -1.0]])


def test_a_pinhole_camera():
    pixels, ahead = project(POINTS, info())
    np.testing.assert_allclose(pixels[:2], [[70, 51], [70, 51]])
    assert ahead.tolist() == [True, True, False]


@pytest.mark.parametrize(
    ('model', 'd', 'x', 'y'),
    [
        # r2 = 0.05: radial 1 + 0.1 r2 = 1.005; tangential 2 p1 x y + p2 (r2 + 2 x^2) and the like
        ('plumb_bob', [0.1, 0, 0, 0, 0], 0.201, 0.1005),
        ('plumb_bob', [0, 0, 0.01, 0.02, 0], 0.2 + 0.0004 + 0.0026, 0.1 + 0.0007 + 0.0008),
        ('rational_polynomial', [0.1, 0, 0, 0, 0, 0.1, 0, 0], 0.2, 0.1),
        ('equidistant', [0.5, 0, 0, 0], *(0.219988**3 * 0.5 + 0.219988) / np.sqrt(0.05) * np.array([0.2, 0.1])),
    ],
)
def test_lenses_bend(model, d, x, y):
    pixels, _ = project(POINTS[:1], info(distortion_model=model, d=d))
    np.testing.assert_allclose(pixels[0], [100 * x + 50, 110 * y + 40], atol=2e-3)


def test_an_unknown_lens_is_refused():
    with pytest.raises(ValueError, match='thin_prism'):
        project(POINTS, info(distortion_model='thin_prism', d=[0.1]))
    with pytest.raises(ValueError, match='not calibrated'):
        project(POINTS, info(k=[0.0] * 9))


def test_a_region_with_pixels_put_together():
    pixels, _ = project(POINTS[:1], info(binning_x=2, binning_y=2, roi=SimpleNamespace(x_offset=10, y_offset=20)))
    np.testing.assert_allclose(pixels[0], [(60.5) / 2 - 0.5, 31.5 / 2 - 0.5])


def test_the_executed_path_is_bounded_and_begins_anew_where_the_arm_cannot_have_gone():
    e = Executed('base', seconds=1.0, tool_speed=1.7)
    for i in range(3 * MOST):
        assert e.add(i * 10**6, np.array([0.003 * (i % 2), 0, 0]), np.eye(3))
    assert 990 < len(e.poses) < 1010
    assert e.add(3 * MOST * 10**6, np.array([0.5, 0, 0]), np.eye(3))  # half a metre in a millisecond
    assert len(e.poses) == 1
    assert not e.add((3 * MOST + 500) * 10**6, np.array([0.5001, 0, 0]), np.eye(3))  # it rests
    assert e.add((3 * MOST + 510) * 10**6, np.array([0.51, 0, 0]), np.eye(3))
    assert not e.add((3 * MOST + 500) * 10**6, np.array([0.52, 0, 0]), np.eye(3))  # it was overtaken
    assert len(e.poses) == 2
    assert e.add((3 * MOST + 400) * 10**6, np.array([0.52, 0, 0]), np.eye(3))  # the clock was set back
    assert len(e.poses) == 1


def test_what_was_imagined_stands_beside_the_image_of_its_time():
    images = SimpleNamespace(stamps=[100, 200, 300], newest='newest', nearest=lambda time: f'nearest {time}')
    pair = Pairing()
    assert pair.choose(350, images) == 'newest'  # not yet
    assert pair.choose(210, images) == 'nearest 210'
    images.stamps, images.nearest = [900], None
    assert pair.choose(210, images) == 'nearest 210'  # and stays
    assert pair.choose(400, images) == 'newest'  # too late to know
    assert pair.verdict(5, (5, 0.5)) == 'surprise 0.50'
    assert pair.verdict(5, (4_000_000_000, 0.5)) == 'surprise 0.50, for 4.00 s'
    assert pair.verdict(5, (0, float('nan'))) == 'surprise: not known yet'


def test_the_line_is_drawn_where_it_belongs():
    blank = np.zeros((256, 256, 3), np.uint8)
    drawn = draw_trace(blank, np.array([[20.0, 30.0], [120.0, 30.0], [120.0, 900.0]]), [(0.0, 1.0, 0.0)] * 2)
    assert drawn[30, 70].tolist() == drawn[200, 120].tolist() == [0, 255, 0]
    assert not drawn[100:, :100].any()
    assert not blank.any()
    assert draw_trace(blank, np.zeros((0, 2)), [], 'no calibration')[230:].any()
    named = draw_trace(blank, np.zeros((0, 2)), [], named=np.array([[40.0, 60.0], [400.0, 60.0]]))
    assert named[60, 40].any() and not named[100:].any() and not named[:, 80:].any()


class Sent:
    """A source whose messages come at a time that the test sets."""

    def __init__(self, keep, *, shared=False):
        clock = SimpleNamespace(now=lambda: SimpleNamespace(nanoseconds=self.now))
        node = SimpleNamespace(get_clock=lambda: clock)
        self.source = Source(node, JointState, 'joints', qos.SENSOR, keep=keep, stamped=True, shared=shared)
        self.now = 0

    def __call__(self, stamp, *, received=None):
        """[s]"""
        self.now = round((stamp if received is None else received) * NS)
        state = JointState(position=array.array('d', [float(stamp)]))
        state.header.stamp = to_time(round(stamp * NS))
        self.source._store(serialize_message(state))
        return [round(stamp / NS, 3) for stamp in self.source.stamps]


def test_a_source_keeps_no_more_than_it_should():
    sent = Sent(3)
    assert [sent(second) for second in range(6)][-1] == [3, 4, 5]
    source = sent.source
    assert source.nearest(4_100_000_000).position[0] == 4
    assert source.as_of(4_100_000_000, lambda m: m.position[0] != 4).position[0] == 3
    assert source.as_of(2 * 10**9, lambda m: True) is None


STEP = 0.3  # [s] by which a clock is set back
OVERTAKEN = OVERTAKING / 2


def test_messages_from_before_their_sender_was_set_back_are_forgotten():
    sent = Sent(9)
    for stamp in (10.0, 10.1, 10.1 - OVERTAKEN):
        kept = sent(stamp, received=10.1)
    assert len(kept) == 3
    assert sent(10.1 - STEP, received=10.1) == [9.8]


def test_several_senders_are_not_one_that_is_set_back_but_our_own_clock_is_one():
    sent = Sent(9, shared=True)
    for stamp in (10.0, 10.0 - STEP, 10.01, 10.01 - STEP):
        kept = sent(stamp, received=10.0)
    assert len(kept) == 4
    assert sent.source.as_of(10 * NS, lambda m: True).position[0] == 10.01 - STEP
    assert sent(10.01 - STEP, received=10.0 - STEP) == [9.71]


def test_poses_from_before_a_clock_was_set_back_are_forgotten():
    frames, q, t = Frames(), np.array([1.0, 0, 0, 0]), np.zeros(3)
    frames.put('base', 'eye', 0, q, t, fixed=True)
    for stamp in (10.0, 10.1, 10.1 - OVERTAKEN):
        frames.put('base', 'hand', round(stamp * NS), q, t, fixed=False)
    frames.pose('hand', 'base', round(10.05 * NS))
    frames.put('base', 'hand', round((10.1 - STEP) * NS), q, t, fixed=False)
    with pytest.raises(FrameError, match='only until'):
        frames.pose('hand', 'base', round(10.05 * NS))
    frames.set_back()  # our own clock was
    frames.pose('eye', 'base', 0)
    with pytest.raises(FrameError, match='no transforms'):
        frames.pose('hand', 'base', round((10.1 - STEP) * NS))
