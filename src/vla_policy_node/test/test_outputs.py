"""The outputs of the model: their topics, their part of status and diagnostics, and their place behind actions."""

import math
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Float64

from vla_core.stats import Window
from vla_model.policy import POINTS
from vla_msgs.msg import VisualTrace
from vla_policy_node.policy import inference_report
from vla_policy_node.policy.inference_report import InferenceReport
from vla_policy_node.policy.outputs import base, collection, predicted_image
from vla_policy_node.policy.outputs.base import DecodedOutput, DecodeSettings, declare_rate
from vla_policy_node.ros import qos
from vla_policy_node.ros.chunk_msg import to_ns
from vla_policy_node.ros.parameters import declare

from .policy_world import ACTIVATE, CONFIGURE, DEACTIVATE, FakeJob, FakePolicy, S, activate, values_of


def test_an_output_without_a_subscriber_costs_nothing(start, monkeypatch):
    policy, made = FakePolicy(), Counter()

    def counted(kind, name):
        inner = getattr(kind, name)

        def wrapped(*args, **kwargs):
            made[name] += 1
            return inner(*args, **kwargs)

        monkeypatch.setattr(kind, name, wrapped)

    counted(InferenceReport, 'fill')  # of the status
    counted(Window, 'percentiles')  # of status and diagnostics
    counted(inference_report, 'KeyValue')  # of diagnostics
    counted(base, 'KeyValue')
    counted(predicted_image, 'image_msg')
    world, node = start(policy, rate=100.0)
    activate(world)
    world.say('go')
    world.wait(lambda: made['fill'] and made['KeyValue'], 'somebody listens')
    for subscription in world.told:
        world.node.destroy_subscription(subscription)
    topics = ('/policy/status', '/diagnostics')
    world.wait(lambda: not any(map(node.count_subscribers, topics)), 'nobody listens')
    world.new_chunks(3)
    made.clear()
    planned = len(policy.planned) + len(policy.imagined)
    world.new_chunks(40)  # more than a second: each timer of the node had its turn
    assert not made
    assert len(policy.planned) + len(policy.imagined) == planned


def test_grounding_points_are_published_in_pixels_of_their_cameras(start):
    policy = FakePolicy()
    policy.info = replace(FakePolicy.info, outputs=FakePolicy.info.outputs | {POINTS}, points=2)
    policy.points = np.array([[[0.5, 0.5], [0.0, 0.25]], [[1.0, 0.75], [0.25, 0.5]]])
    world, _ = start(policy)
    heard = []
    world.node.create_subscription(VisualTrace, 'policy/pointed', heard.append, qos.STATUS)
    activate(world)
    world.say('put the red block into the bowl')
    world.wait(lambda: {msg.camera for msg in heard} == {'front', 'wrist'}, 'where the block and the bowl are')
    world.wait(lambda: heard[-1].camera == 'wrist', 'both of a chunk')
    front, wrist = heard[-2:]
    assert front.kind == VisualTrace.NAMED and (front.width, front.height) == (8, 6)
    # The view is the image, 8 wide, with a bar of one pixel above and below it.
    assert (list(front.u), list(front.v)) == ([3.5, -0.5], [2.5, 0.5])
    assert (list(wrist.u), list(wrist.v)) == ([7.5, 1.5], [4.5, 2.5])
    assert front.header.frame_id == 'front_optical'
    assert to_ns(front.header.stamp) == to_ns(wrist.header.stamp) in {seen.t_ref for seen in policy.seen}


def test_plans_and_predicted_images_come_out_while_they_have_a_subscriber(start):
    policy = FakePolicy()
    world, _ = start(policy, rate=10.0, plan_rate=2.0, imagine_rate=2.0)
    activate(world)
    world.say('go')
    world.wait(lambda: len(world.chunks) > 20, 'time for a plan')
    assert {steps for _, steps in policy.planned + policy.imagined} == {3}  # those of the warm-up
    subscriptions = world.look()
    assert world.wait(lambda: world.plans, 'plan text')[0].data == 'I go'
    image = world.wait(lambda: world.predicted, 'predicted image')[0]
    assert (image.width, image.height, image.encoding, image.header.frame_id) == (4, 4, 'rgb8', 'front_optical')
    assert bytes(image.data) == bytes(range(48))
    seen = {observation.t_ref for observation in policy.seen}
    assert to_ns(image.header.stamp) - 800_000_000 in seen
    world.wait(lambda: len(world.plans) >= 3, 'more plans')
    stamps = [t_ref for t_ref, steps in policy.planned if t_ref > 0]
    assert min(np.diff(stamps)) >= 0.3e9
    world.wait(lambda: (d := world.diagnosis('plan')) and int(values_of(d)['done']) >= 2, 'diagnostics of plan')
    found = world.diagnosis('plan')
    assert (found.level, found.message) == (DiagnosticStatus.OK, 'OK')
    assert float(values_of(found)['latency p50/p95 [ms]'].split('/')[0]) > 0
    for subscription in subscriptions:
        world.node.destroy_subscription(subscription)
    world.wait(lambda: 'no subscriber' in world.diagnosis('imagine').message, 'nobody listens')
    begun = len(policy.planned)
    world.new_chunks(10)
    assert len(policy.planned) <= begun + 1


def test_what_came_is_compared_with_what_was_imagined(start):
    policy = FakePolicy()
    world, node = start(policy, rate=10.0, plan_rate=0.0, imagine_rate=5.0)
    activate(world)
    world.say('go')
    assert math.isnan(world.code(S.OK, S.STATE_RUNNING).surprise)
    assert not node.get_subscriptions_info_by_topic('/front/camera_info')
    world.look()
    infos = []
    calibration = CameraInfo(width=8, height=6, k=[8.0, 0.0, 3.5, 0.0, 8.0, 2.5, 0.0, 0.0, 1.0], p=[8.0, *[0.0] * 11])
    ours = world.node.create_publisher(CameraInfo, 'front/camera_info', qos.SENSOR_OUT)
    world.node.create_subscription(CameraInfo, 'policy/camera_info', infos.append, qos.SENSOR)
    world.wait(lambda: ours.get_subscription_count() == 1, 'the policy asks for the calibration')
    ours.publish(calibration)
    info = world.wait(lambda: infos, 'camera info')[0]
    # 8 x 6 pixels get a bar of one row above, and are halved.
    assert (info.width, info.height, info.header.frame_id) == (4, 4, 'front_optical')
    np.testing.assert_allclose(info.k, [4, 0, 1.5, 0, 4, 1.5, 0, 0, 1])
    status = world.wait(lambda: not math.isnan(world.status[-1].surprise) and world.status[-1], 'a comparison')
    assert 0 < status.surprise < 1  # something grey was imagined, all is black
    assert to_ns(info.header.stamp) in {to_ns(image.header.stamp) for image in world.predicted}
    assert to_ns(status.surprise_stamp) in {to_ns(image.header.stamp) for image in world.predicted}
    assert to_ns(status.surprise_stamp) <= to_ns(status.header.stamp)
    world.wait(lambda: (d := world.diagnosis('surprise')) and 'nan' not in str(values_of(d)), 'diagnostics')
    world.say('come back')
    world.wait(lambda: math.isnan(world.status[-1].surprise), 'what was imagined for other words counts no more')


def test_an_action_that_is_due_comes_before_the_next_step(start):
    policy = FakePolicy()
    world, _ = start(policy, rate=10.0, plan_rate=5.0, imagine_rate=0.0)
    activate(world)
    world.look()
    world.say('go')
    world.wait(lambda: world.plans, 'plan text')
    policy.pen.clear()
    world.wait(lambda: policy.held, 'a step under way')
    mark, due = len(policy.did), policy.seen[-1].t_ref + 150_000_000
    world.wait(lambda: world.node.get_clock().now().nanoseconds > due, 'an action is due')
    policy.pen.set()
    world.wait(lambda: len(policy.did) > mark, 'what comes next')
    assert policy.did[mark] == 'act'
    assert policy.imagined == []


def test_a_new_instruction_takes_back_the_plan_of_the_old_one(start):
    policy = FakePolicy()
    world, _ = start(policy, rate=10.0, plan_rate=5.0)
    activate(world)
    world.look()
    world.say('go')
    world.wait(lambda: world.plans and world.plans[-1].data == 'I go', 'plan')
    world.say('come back')
    world.wait(lambda: world.plans[-1].data == 'I come back', 'plan of the new instruction')
    texts = [plan.data for plan in world.plans]
    assert texts[texts.index('') :].count('I go') == 0
    assert world.transition(DEACTIVATE)
    world.wait(lambda: world.plans[-1].data == '', 'no plan without instruction')


def test_a_plan_that_fails_stops_no_action(start):
    policy = FakePolicy()

    def fail(observation):
        raise RuntimeError('no words')

    world, _ = start(policy, rate=10.0, plan_rate=5.0, imagine_rate=5.0)
    world.look()
    assert world.transition(CONFIGURE)
    policy.words = fail
    assert world.transition(ACTIVATE)
    world.say('go')
    world.wait(lambda: (d := world.diagnosis('plan')) and 'no words' in d.message, 'the reason')
    assert world.diagnosis('plan').level == DiagnosticStatus.WARN
    world.wait(lambda: len(world.predicted) > 1, 'predicted images')
    world.new_chunks(5)
    world.code(S.OK, S.STATE_RUNNING)
    assert not world.plans
    policy.words = lambda observation: 'better'
    world.wait(lambda: world.plans, 'a plan')
    world.wait(lambda: world.diagnosis('plan').level == DiagnosticStatus.OK, 'all well')


def test_the_real_random_model_in_shadow(start):
    from vla_model.loading import load

    world, _ = start(load=load, threads=1, rate=2.0, plan_steps=8, imagine_steps=4)
    world.size = (64, 48)
    world.positions = [*world.profile.home, 0.02, 0.02]
    activate(world)
    world.look()
    world.say('press the red button')
    chunk = world.new_chunks()[0]
    assert chunk.shadow
    assert chunk.model_id.startswith('random-nano')
    assert len(chunk.positions) == chunk.horizon * 7
    assert np.isfinite(chunk.positions).all()
    world.wait(lambda: world.plans, 'plan text')  # random weights may have nothing to say
    image = world.wait(lambda: world.predicted, 'predicted image')[0]
    assert image.width == image.height
    assert len(set(image.data)) > 10
    horizon = round(chunk.horizon * chunk.dt * 1e9)
    answered = {to_ns(c.header.stamp) for c in world.chunks}
    assert to_ns(image.header.stamp) - horizon in answered


@dataclass(frozen=True)
class Heat:
    t_ref: int  # [ns]
    metres: float


@dataclass(frozen=True)
class HeatOptions:
    steps: int


class HeatOutput(DecodedOutput[Heat]):
    """An output that no file of the suite knows."""

    name, label = 'heat', 'heat'
    kind, topic, profile = Float64, '~/heat', qos.STATUS

    @classmethod
    def declare(cls, node):
        steps = declare(node, 'heat_steps', 8, 'forwards per depth', low=1, high=256)
        return DecodeSettings(declare_rate(node, cls.label, 'heats'), HeatOptions(steps))

    def publish(self, owner, result):
        self.out.publish(Float64(data=result.metres))


def test_an_output_is_one_class_and_one_entry_of_the_list(start, monkeypatch):
    monkeypatch.setattr(collection, 'OUTPUTS', (*collection.OUTPUTS, HeatOutput))
    policy, steps, heats = FakePolicy(), [], []
    policy.info = replace(policy.info, outputs=frozenset({'heat'}))

    def begin(output, seen, options):
        assert output == 'heat'
        steps.append(options.steps)
        return FakeJob(policy, options.steps, lambda: Heat(seen.t_ref, 1.5))

    policy.start = begin
    world, node = start(policy, rate=10.0, heat_rate=5.0, heat_steps=6)
    activate(world)
    assert set(steps) == {3}  # the trials
    world.say('go')
    world.new_chunks(5)
    assert set(steps) == {3}  # no subscriber
    world.node.create_subscription(Float64, 'policy/heat', lambda msg: heats.append(msg.data), qos.STATUS)
    world.wait(lambda: len(heats) > 1, 'heats')
    assert heats[0] == 1.5 and steps[-1] == 6
    world.wait(lambda: (found := world.diagnosis('heat')) and values_of(found)['subscribers'] == '1', 'diagnostics')
    assert node.get_parameter('heat_steps').value == 6
    assert not node.count_publishers('/policy/plan_text')  # the policy has no plan


def test_a_policy_without_outputs_gives_chunks_and_no_other_topic(start):
    policy = FakePolicy()
    policy.info = replace(policy.info, outputs=frozenset())
    world, node = start(policy, rate=10.0)
    activate(world)
    world.goal('go', plan=True)
    world.new_chunks(3)
    world.wait(lambda: world.feedback, 'feedback')
    assert world.feedback[-1].plan_text == '' and math.isnan(world.feedback[-1].progress)
    assert math.isnan(world.status[-1].surprise)
    topics = {name for name, _ in node.get_publisher_names_and_types_by_node('policy', '/')}
    assert not topics & {'/policy/plan_text', '/policy/predicted_image', '/policy/camera_info', '/policy/pointed'}
    assert world.diagnosis('plan') is None
