"""Traces that a person draws: what is refused, how long one is in force, and that the model gets it."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from sensor_msgs.msg import Image

from vla_core.observe.streams import NS
from vla_model.policy import DEPTH, TRACE, PolicyInfo, Prediction
from vla_model.types import Chunk, DepthMap, Trace
from vla_msgs.msg import PolicyStatus, VisualTrace
from vla_policy_node.policy.inference_report import InferenceReport
from vla_policy_node.policy.outputs.depth import to_pixels
from vla_policy_node.policy.session import Session
from vla_policy_node.policy.steering import SteeringTraces
from vla_policy_node.ros import qos
from vla_policy_node.ros.chunk_msg import to_time
from vla_policy_node.ros.trace_msg import trace_msg, trace_of

from .policy_world import FakePolicy, S, activate

INFO = PolicyInfo('fake-1', True, ('front', 'wrist'), 7, 16, 0.05, steers=True)
POINTS = [(10.0, 90.0), (60.0, 50.0), (110.0, 10.0)]


class Traces:
    """What steers a model, without a node."""

    def __init__(self, info=INFO):
        self.now, self.log, self.refused, self.shown = 100 * NS, [], [], []
        self.session = Session('policy', lambda: self.now)
        report = SimpleNamespace(
            refuse=lambda why, code: self.refused.append((code, why)), accept=lambda: None, publish=lambda: None
        )
        log = SimpleNamespace(info=self.log.append, error=self.log.append)
        self.traces = SteeringTraces(self.session, report, log, lambda: self.now)
        self.traces.open(info, 30.0, lambda camera: (120, 160))
        self.traces.shown = self.shown.append
        self.session.activate(True)
        self.session.put('press a button')

    def draw(self, points=POINTS, age=1.0, kind=VisualTrace.STEERING, camera='front', size=(160, 120)):
        trace = Trace(camera, np.array(points, float).reshape(-1, 2), *size)
        self.traces.receive(trace_msg(to_time(self.now - round(age * NS)), '', kind, trace))

    def tool_at(self, u, v):
        """Deliver a chunk whose predicted trace begins there, in an image of twice the size."""
        seen = Trace('front', np.array([[2 * u + 0.5, 2 * v + 0.5], [0.0, 0.0]]), 320, 240)
        answer = SimpleNamespace(prediction=Prediction(None, trace=seen))
        self.session.delivered[0](answer, 1, 0.1)


@pytest.fixture
def drawn():
    return Traces()


def test_a_drawn_trace_steers_until_the_tool_has_passed_it(drawn):
    drawn.draw()
    np.testing.assert_allclose(drawn.traces.current().points, POINTS)
    for u, v in ((35, 70), (60, 50)):
        drawn.tool_at(u, v)
    left = drawn.traces.current().points
    np.testing.assert_allclose(left[0], [60, 50], atol=1.5)
    np.testing.assert_allclose(left[-1], POINTS[-1])
    assert len(left) == 2
    drawn.tool_at(10, 110)  # far from the line: nothing is cut off
    np.testing.assert_allclose(drawn.traces.current().points, left)
    for u, v in ((85, 30), (110, 10)):
        drawn.tool_at(u, v)
    assert drawn.traces.current() is None
    assert drawn.log[-1] == 'the trace no longer steers the model: the tool has passed it'
    assert drawn.shown[-1] is None


def test_five_points_of_a_drawn_trace_are_kept_at_equal_distances(drawn):
    drawn.draw([(float(i * i), 10.0) for i in range(13)])
    np.testing.assert_allclose(drawn.traces.current().points[:, 0], [0, 36, 72, 108, 144])


def test_a_trace_is_replaced_and_cleared(drawn):
    drawn.draw()
    drawn.draw([(0, 0), (0, 100)])
    assert drawn.traces.current().points.tolist() == [[0, 0], [0, 100]]
    drawn.draw([])
    assert drawn.traces.current() is None
    assert not drawn.refused


def test_a_trace_is_in_force_until_its_image_is_too_old(drawn):
    drawn.draw(age=10.0)
    drawn.now += 19 * NS
    assert drawn.traces.current() is not None
    drawn.now += 2 * NS
    assert drawn.traces.current() is None
    assert 'steer_max_age is 30 s' in drawn.log[-1]


def test_a_trace_ends_with_the_instruction_that_it_was_drawn_for(drawn):
    drawn.draw()
    drawn.session.put('press a button')  # the same words
    assert drawn.traces.in_force
    drawn.session.put('open the drawer')
    assert not drawn.traces.in_force
    drawn.session.halt()
    drawn.draw()  # before the instruction
    drawn.session.put('press a button')
    assert drawn.traces.in_force
    drawn.session.halt()
    assert not drawn.traces.in_force


@pytest.mark.parametrize(
    ('bad', 'why'),
    [
        ({'camera': 'wrist'}, "of camera 'wrist'"),
        ({'points': POINTS[:1]}, 'two or more points'),
        ({'points': [(1, 1), (2, 2)]}, 'too short'),
        ({'points': [(1, 1), (170, 50)]}, 'outside the image of 160 x 120 px'),
        ({'points': [(1, 1), (float('nan'), 50)]}, 'not finite'),
        ({'size': (120, 120), 'points': [(1, 1), (90, 90)]}, "camera 'front' has 160 x 120 px"),
        ({'size': (0, 0)}, 'outside the image'),
        ({'kind': VisualTrace.PREDICTED}, 'must be 1 (STEERING)'),
        ({'age': 31.0}, '31.0 s old, steer_max_age is 30 s'),
        ({'age': -2.0}, '2.0 s ahead of the clock'),
        ({'age': 100.0}, 'has no stamp'),
    ],
)
def test_a_trace_that_cannot_be_followed_is_refused_and_the_one_in_force_stays(drawn, bad, why):
    drawn.draw([(0, 0), (0, 100)])
    drawn.draw(**bad)
    ((code, message),) = drawn.refused
    assert code == PolicyStatus.BAD_TRACE
    assert why in message
    assert drawn.log[-1] == f'~/steer refused: {message}'
    assert drawn.traces.current().points.tolist() == [[0, 0], [0, 100]]


def test_a_trace_is_refused_where_the_model_follows_none_or_the_node_is_not_active(drawn):
    other = Traces(replace(INFO, steers=False))
    other.draw()
    assert 'fake-1 does not follow traces' in other.refused[0][1]
    drawn.session.deactivate()
    drawn.draw()
    assert 'not active' in drawn.refused[0][1]
    msg = VisualTrace(kind=VisualTrace.STEERING)
    msg.u.append(1.0)
    with pytest.raises(ValueError, match='1 columns u and 0 rows v'):
        trace_of(msg)


def test_chunks_that_are_over_before_the_next_ones_come_are_logged_once():
    logged = []
    node = SimpleNamespace(
        create_publisher=lambda *_: None, get_logger=lambda: SimpleNamespace(warning=logged.append)
    )  # fmt: skip
    for horizon, expected in ((1, 1), (8, 0)):
        logged.clear()
        report = InferenceReport(node, '7b-d-0812')
        chunk = Chunk(np.zeros((horizon, 7)), np.zeros(horizon), 0.3)
        answer = SimpleNamespace(
            skipped=0, aligned=SimpleNamespace(t_ref=0, skew=0.0), inference_time=1.5, waited=0.0, chunk=chunk
        )
        for sequence in range(6):
            report.delivered(answer, sequence, 1.6)
        assert len(logged) == expected
        assert all('0.30 s (1 set-points), its inference takes 1.50 s' in line and '20%' in line for line in logged)


def test_depth_is_an_image_in_metres_relative_or_of_codes():
    found = DepthMap(0, 'front', np.array([[1, 127]]))
    assert to_pixels(found).tolist() == [[1, 127]]
    assert to_pixels(replace(found, depth=np.array([[0.0, 1.0]], np.float32))).tolist() == [[0, 255]]
    metres = to_pixels(replace(found, depth=np.array([[0.25, 1.5]], np.float32), metric=True))
    assert (metres.dtype, metres.tolist()) == (np.float32, [[0.25, 1.5]])


class Draws(FakePolicy):
    """Predicts trace and depth with each chunk, and follows traces."""

    info = replace(
        FakePolicy.info, outputs=FakePolicy.info.outputs | {TRACE, DEPTH}, predicted=frozenset({TRACE, DEPTH}),
        steers=True,
    )  # fmt: skip

    def act(self, observation, prefix=None):
        found = super().act(observation, prefix)
        trace = Trace('front', np.array([[1.0, 2.0], [3.0, 4.0]]), 8, 6)
        return replace(found, trace=trace, depth=DepthMap(observation.t_ref, 'front', np.arange(100).reshape(10, 10)))


def test_the_model_follows_a_drawn_trace_and_its_own_trace_and_depth_come_out(start):
    policy = Draws()
    world, _ = start(policy)
    traces, depths, in_force = [], [], []
    world.node.create_subscription(VisualTrace, 'policy/trace', traces.append, qos.STATUS)
    world.node.create_subscription(Image, 'policy/depth_image', depths.append, qos.SENSOR)
    world.node.create_subscription(VisualTrace, 'policy/steering_in_force', in_force.append, qos.LATCHED)
    draw = world.node.create_publisher(VisualTrace, 'policy/steer', qos.STATUS)
    activate(world)
    world.say('press a button')
    trace = world.wait(lambda: traces, 'a predicted trace')[0]
    assert (trace.kind, trace.camera, trace.width, trace.height) == (VisualTrace.PREDICTED, 'front', 8, 6)
    assert (list(trace.u), list(trace.v), trace.header.frame_id) == ([1, 3], [2, 4], 'front_optical')
    depth = world.wait(lambda: depths, 'a depth image')[0]
    assert (depth.width, depth.height, depth.encoding, bytes(depth.data)) == (10, 10, 'mono8', bytes(range(100)))
    world.wait(draw.get_subscription_count, 'the node to subscribe')
    assert policy.seen[-1].steering is None
    line = Trace('front', np.array([[7.0, 0.0], [0.0, 5.0]]), 8, 6)
    draw.publish(trace_msg(world.node.get_clock().now().to_msg(), '', VisualTrace.STEERING, line))
    world.wait(lambda: policy.seen[-1].steering is not None, 'the model to follow it')
    np.testing.assert_allclose(policy.seen[-1].steering.points[-1], [0, 5])
    world.wait(lambda: world.status[-1].steering and in_force and len(in_force[-1].u), 'the status')
    draw.publish(VisualTrace(kind=VisualTrace.STEERING))
    world.wait(lambda: policy.seen[-1].steering is None, 'the trace to be cleared')
    draw.publish(trace_msg(world.node.get_clock().now().to_msg(), '', VisualTrace.PREDICTED, line))
    assert 'must be 1 (STEERING)' in world.code(S.BAD_TRACE, S.STATE_RUNNING).message


def test_a_goal_may_bring_a_trace(start):
    policy = Draws()
    world, _ = start(policy)
    activate(world)
    stamp = world.node.get_clock().now().to_msg()
    line = Trace('front', np.array([[7.0, 0.0], [0.0, 5.0]]), 8, 6)
    bad = world.goal('press a button', trace=trace_msg(stamp, '', VisualTrace.PREDICTED, line))
    assert not bad.accepted
    goal = world.goal('press a button', trace=trace_msg(stamp, '', VisualTrace.STEERING, line))
    assert goal.accepted
    world.wait(lambda: policy.seen and policy.seen[-1].steering is not None, 'the model to follow it')
    assert policy.seen[0].steering is not None  # from the first chunk on
